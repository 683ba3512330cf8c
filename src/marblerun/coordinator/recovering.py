"""One recovery or rehearsal under way: secrets one at a time, and the ephemeral key they may be encrypted for.

Everything lives in this process's memory, as in the reference (protocol, section 10.7); what is decided is decided in
``commands.recover`` and ``commands.rehearse``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from marblerun.coordinator.commands.recover import PLAIN_SIZES, Gathering, Progress, begin, give
from marblerun.coordinator.commands.rehearse import Rehearsal, Rehearsed, rehearse
from marblerun.coordinator.state import State
from marblerun.errors import Busy, Conflict, Malformed, Unavailable, Untrusted
from marblerun.pki.issue import Entropy

EPHEMERAL_KEY_BITS: Final = 4096
# Anybody may upload secrets: they are looked at one after the other, and this many wait for their turn.
MAX_WAITING: Final = 16
# After the first secret of a rehearsal the others have this long; then all of them are forgotten.
REHEARSAL_SECONDS: Final = 15 * 60.0
_OAEP: Final = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


class CannotDecrypt(Malformed):
    """An uploaded secret is not plain and was not encrypted for the ephemeral key."""


class _Upload:
    """Secrets as they come in: in turns, and plain or encrypted for a key that lives as long as this object."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._key: asyncio.Task[rsa.RSAPrivateKey] | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def public_key(self) -> bytes:
        """The ephemeral key (PKIX DER), made on the first call; raises Unavailable if it cannot be made."""
        if self._key is None:
            self._key = asyncio.create_task(asyncio.to_thread(self._entropy.rsa_key, EPHEMERAL_KEY_BITS))
        task = self._key
        try:
            key = await asyncio.shield(task)
        except Exception as error:
            if self._key is task and task.done():
                self._key = None  # the next call tries again
            raise Unavailable("the ephemeral recovery key could not be made") from error
        return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until nobody else's secret is being looked at; raises Busy where too many wait already."""
        if self._waiting >= MAX_WAITING:
            raise Busy("too many recovery secrets at once; try again", retry_after=1.0)
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1

    async def plain(self, secret: bytes) -> bytes:
        """The secret itself; raises CannotDecrypt, also if nobody has asked for the ephemeral key yet."""
        if len(secret) in PLAIN_SIZES:
            return secret
        if self._key is None or not self._key.done():
            raise CannotDecrypt(
                "the recovery secret is neither 16, 32 nor 33 bytes long, and nobody has asked this Coordinator for an "
                "ephemeral key since it started"
            )
        key = await self._key
        if len(secret) != key.key_size // 8:
            raise CannotDecrypt("the recovery secret is neither plain nor as long as what the ephemeral key encrypts")
        try:
            return await asyncio.to_thread(key.decrypt, secret, _OAEP)
        except ValueError:
            raise CannotDecrypt("the recovery secret was not encrypted for this Coordinator's ephemeral key") from None


class Recovering(_Upload):
    """Gathers secrets for one sealed state."""

    def __init__(self, sealed_data: bytes, entropy: Entropy) -> None:
        super().__init__(entropy)
        self._gathering: Gathering = begin(sealed_data)

    @property
    def gathering(self) -> Gathering:
        """What was given so far."""
        return self._gathering

    async def give(self, secret: bytes, signature: bytes) -> Progress:
        """Take a plain secret; raises what ``commands.recover.give`` raises. Only during one's turn."""
        before = self._gathering
        try:
            progress = await asyncio.to_thread(give, before, secret, signature)
        except Untrusted:
            self.forget()
            raise
        if self._gathering is not before:
            raise Conflict("the stored state changed meanwhile; send the secret again")
        self._gathering = progress.gathering
        return progress

    def turn_to(self, sealed_data: bytes) -> None:
        """Go on with a newer sealed state; secrets that were given still count if its list of them is the same."""
        newer = begin(sealed_data)
        is_same = newer.expected == self._gathering.expected
        self._gathering = replace(newer, given=self._gathering.given if is_same else ())

    def forget(self) -> None:
        """Forget all secrets; the ephemeral key stays."""
        self._gathering = self._gathering.forgotten()


class Rehearsing(_Upload):
    """Gathers secrets to find out whether they would recover, one rehearsal at a time, for a limited time."""

    def __init__(self, entropy: Entropy) -> None:
        super().__init__(entropy)
        self._rehearsal: Rehearsal | None = None
        self._expiry: asyncio.TimerHandle | None = None

    async def give(self, state: State, secret: bytes, signature: bytes) -> Rehearsed:
        """Take a plain secret; raises what ``commands.rehearse.rehearse`` raises. Only during one's turn."""
        rehearsed = await asyncio.to_thread(rehearse, state, self._rehearsal, secret, signature)
        if rehearsed.rehearsal is None or rehearsed.given == 1:
            self.forget()
        self._rehearsal = rehearsed.rehearsal
        if self._rehearsal is not None and self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(REHEARSAL_SECONDS, self.forget)
        return rehearsed

    def forget(self) -> None:
        """Forget all secrets; the ephemeral key stays."""
        self._rehearsal = None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
