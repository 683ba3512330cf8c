"""The client of one Coordinator: every call of its API, blocking and asynchronous.

Whom they talk to is decided before: they take a :class:`~marblerun.client.pinning.PinnedRoot`, which
:func:`marblerun.client.attest` or the certificate cache gives, or the named and loud
:data:`~marblerun.client.pinning.UNVERIFIED`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

from marblerun.client import calls
from marblerun.client.lost import is_lost, lost, new_key
from marblerun.client.pinning import Credentials, PeerTrust
from marblerun.client.replies import (
    ManifestView,
    PendingUpdate,
    QuoteReply,
    RecoveryKey,
    RecoveryReply,
    RehearsalReply,
    Secrets,
    SignedQuote,
    Status,
    UpdateReply,
    UserSecret,
)
from marblerun.client.rest import Reply, Request
from marblerun.client.statement import Statement
from marblerun.client.transport import AsyncTransport, Endpoint, TimeOuts, Transport
from marblerun.errors import MarbleRunError

T = TypeVar("T")
Conversation = Generator[Request, Reply, T]


def converse(transport: Transport, conversation: Conversation[T]) -> T:
    """Drives one conversation over a blocking transport."""
    try:
        request = next(conversation)
        while True:
            request = conversation.send(transport.exchange(request))
    except StopIteration as end:
        result: T = end.value
        return result


async def converse_async(transport: AsyncTransport, conversation: Conversation[T]) -> T:
    """Drives one conversation over an asynchronous transport."""
    try:
        request = next(conversation)
        while True:
            request = conversation.send(await transport.exchange(request))
    except StopIteration as end:
        result: T = end.value
        return result


def converse_once(transport: Transport, conversation: Callable[[str], Conversation[T]]) -> T:
    """Drives a conversation under a fresh key; once more under the same one if the answer was lost.

    Raises:
        Unavailable: it was lost again, or the Coordinator does not remember it.
    """
    key = new_key()
    try:
        return converse(transport, conversation(key))
    except MarbleRunError as error:
        if not is_lost(error):
            raise
    try:
        return converse(transport, conversation(key))
    except MarbleRunError as error:
        raise lost(error) from error


async def converse_once_async(transport: AsyncTransport, conversation: Callable[[str], Conversation[T]]) -> T:
    """The same over an asynchronous transport."""
    key = new_key()
    try:
        return await converse_async(transport, conversation(key))
    except MarbleRunError as error:
        if not is_lost(error):
            raise
    try:
        return await converse_async(transport, conversation(key))
    except MarbleRunError as error:
        raise lost(error) from error


class Client:
    """The blocking client; close it, or use it in ``with``. Calls and errors: :mod:`marblerun.client.calls`."""

    def __init__(
        self,
        endpoint: str,
        trust: PeerTrust,
        *,
        credentials: Credentials | None = None,
        times: TimeOuts | None = None,
    ) -> None:
        self._transport = Transport(Endpoint.parse(endpoint), trust, credentials, times)

    def status(self) -> Status:
        """The Coordinator's state."""
        return converse(self._transport, calls.status())

    def quote(self, nonce: bytes = b"") -> QuoteReply:
        """Certificates and quote as they come; :func:`marblerun.client.attest` is what verifies them."""
        return converse(self._transport, calls.quote(nonce, nonce_required=bool(nonce)))[0]

    def manifest_get(self) -> ManifestView:
        """The active manifest with fingerprint and signature."""
        return converse(self._transport, calls.manifest_get())

    def manifest_set(self, manifest: bytes) -> Mapping[str, bytes]:
        """Sets the first manifest (JSON bytes); encrypted recovery secrets by key name come back."""
        return converse_once(self._transport, lambda key: calls.manifest_set(manifest, key))

    def manifest_log(self) -> tuple[str, ...]:
        """The update log, one JSON text per entry."""
        return converse(self._transport, calls.manifest_log())

    def update_apply(self, manifest: bytes) -> UpdateReply:
        """Starts an update. Needs a user's credentials."""
        return converse_once(self._transport, lambda key: calls.update_apply(manifest, key))

    def update_get(self) -> PendingUpdate:
        """The pending update."""
        return converse(self._transport, calls.update_get())

    def update_acknowledge(self, manifest: bytes) -> UpdateReply:
        """Acknowledges the pending update. Needs a user's credentials."""
        return converse_once(self._transport, lambda key: calls.update_acknowledge(manifest, key))

    def update_cancel(self) -> str:
        """Cancels the pending update. Needs a user's credentials."""
        return converse(self._transport, calls.update_cancel())

    def secrets_get(self, names: Sequence[str]) -> Secrets:
        """Reads secrets. Needs a user's credentials."""
        return converse(self._transport, calls.secrets_get(names))

    def secrets_set(self, secrets: Mapping[str, UserSecret]) -> None:
        """Uploads values of user-defined secrets. Needs a user's credentials."""
        return converse(self._transport, calls.secrets_set(secrets))

    def recover(self, secret: bytes, signature: bytes) -> RecoveryReply:
        """Hands in one recovery secret with its signature."""
        return converse(self._transport, calls.recover(secret, signature))

    def rehearse(self, secret: bytes, signature: bytes) -> RehearsalReply:
        """Hands in one recovery secret to find out whether it would recover; nothing changes."""
        return converse(self._transport, calls.rehearse(secret, signature))

    def recovery_public_key(self, *, rehearse: bool = False) -> RecoveryKey:
        """The Coordinator's ephemeral key of this recovery, or of rehearsals in the running state."""
        return converse(self._transport, calls.recovery_public_key(rehearse=rehearse))

    def statement(self) -> Statement:
        """Which deployment this is and how far its history has come."""
        return converse(self._transport, calls.statement())

    def quoted_statement(self, nonce: bytes) -> tuple[Statement, bytes] | None:
        """Statement and quote over it as they come; :func:`marblerun.client.verify_deployment` verifies them."""
        return converse(self._transport, calls.quoted_statement(nonce))

    def sign_quote(self, quote: bytes) -> SignedQuote:
        """Lets the Coordinator verify an SGX quote and sign the status it found."""
        return converse(self._transport, calls.sign_quote(quote))

    def monotonic_counter(self, name: str, value: int) -> int:
        """Raises a Marble's counter; its value before comes back. Needs a Marble's credentials."""
        return converse(self._transport, calls.monotonic_counter(name, value))

    def close(self) -> None:
        """Closes all connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The asynchronous client; close it, or use it in ``async with``. The calls are those of :class:`Client`."""

    def __init__(
        self,
        endpoint: str,
        trust: PeerTrust,
        *,
        credentials: Credentials | None = None,
        times: TimeOuts | None = None,
    ) -> None:
        self._transport = AsyncTransport(Endpoint.parse(endpoint), trust, credentials, times)

    async def status(self) -> Status:
        """As :meth:`Client.status`."""
        return await converse_async(self._transport, calls.status())

    async def quote(self, nonce: bytes = b"") -> QuoteReply:
        """See :meth:`Client.quote`."""
        return (await converse_async(self._transport, calls.quote(nonce, nonce_required=bool(nonce))))[0]

    async def manifest_get(self) -> ManifestView:
        """As :meth:`Client.manifest_get`."""
        return await converse_async(self._transport, calls.manifest_get())

    async def manifest_set(self, manifest: bytes) -> Mapping[str, bytes]:
        """As :meth:`Client.manifest_set`."""
        return await converse_once_async(self._transport, lambda key: calls.manifest_set(manifest, key))

    async def manifest_log(self) -> tuple[str, ...]:
        """As :meth:`Client.manifest_log`."""
        return await converse_async(self._transport, calls.manifest_log())

    async def update_apply(self, manifest: bytes) -> UpdateReply:
        """As :meth:`Client.update_apply`."""
        return await converse_once_async(self._transport, lambda key: calls.update_apply(manifest, key))

    async def update_get(self) -> PendingUpdate:
        """As :meth:`Client.update_get`."""
        return await converse_async(self._transport, calls.update_get())

    async def update_acknowledge(self, manifest: bytes) -> UpdateReply:
        """As :meth:`Client.update_acknowledge`."""
        return await converse_once_async(self._transport, lambda key: calls.update_acknowledge(manifest, key))

    async def update_cancel(self) -> str:
        """As :meth:`Client.update_cancel`."""
        return await converse_async(self._transport, calls.update_cancel())

    async def secrets_get(self, names: Sequence[str]) -> Secrets:
        """As :meth:`Client.secrets_get`."""
        return await converse_async(self._transport, calls.secrets_get(names))

    async def secrets_set(self, secrets: Mapping[str, UserSecret]) -> None:
        """As :meth:`Client.secrets_set`."""
        return await converse_async(self._transport, calls.secrets_set(secrets))

    async def recover(self, secret: bytes, signature: bytes) -> RecoveryReply:
        """As :meth:`Client.recover`."""
        return await converse_async(self._transport, calls.recover(secret, signature))

    async def rehearse(self, secret: bytes, signature: bytes) -> RehearsalReply:
        """As :meth:`Client.rehearse`."""
        return await converse_async(self._transport, calls.rehearse(secret, signature))

    async def recovery_public_key(self, *, rehearse: bool = False) -> RecoveryKey:
        """As :meth:`Client.recovery_public_key`."""
        return await converse_async(self._transport, calls.recovery_public_key(rehearse=rehearse))

    async def statement(self) -> Statement:
        """As :meth:`Client.statement`."""
        return await converse_async(self._transport, calls.statement())

    async def quoted_statement(self, nonce: bytes) -> tuple[Statement, bytes] | None:
        """As :meth:`Client.quoted_statement`."""
        return await converse_async(self._transport, calls.quoted_statement(nonce))

    async def sign_quote(self, quote: bytes) -> SignedQuote:
        """As :meth:`Client.sign_quote`."""
        return await converse_async(self._transport, calls.sign_quote(quote))

    async def monotonic_counter(self, name: str, value: int) -> int:
        """As :meth:`Client.monotonic_counter`."""
        return await converse_async(self._transport, calls.monotonic_counter(name, value))

    async def close(self) -> None:
        """Closes all connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
