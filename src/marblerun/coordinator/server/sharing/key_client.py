"""The asking side of the key exchange: whoever starts without the KEK asks every other instance for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from marblerun.coordinator.seal.kek import KEK_BYTES
from marblerun.coordinator.server.sharing.attestor import Attestor
from marblerun.coordinator.server.sharing.call import call
from marblerun.coordinator.server.sharing.checks import evidence_in, verify_server
from marblerun.coordinator.server.sharing.tls import Connection, client_context
from marblerun.errors import Malformed, MarbleRunError, Unavailable
from marblerun.pki.issue import Entropy, issue_key_client
from marblerun.policy.sharing import Identity, identity_of
from marblerun.wire.rpc import KEY_PATH, KeyRequest, parse_key_response

_log = logging.getLogger(__name__)

Address = tuple[str, int]
"""Host and port."""

# Until TCP and TLS are done; instances that have gone stay in the list for a while.
CONNECT_SECONDS: Final = 10.0
# Of the whole errand; the other side may have to fetch collateral.
ANSWER_SECONDS: Final = 60.0
MAX_ANSWER_BYTES: Final = 4096
# More instances than any deployment has; the cluster says where they are, and may say anything.
MAX_ADDRESSES: Final = 256


@dataclass(frozen=True, slots=True, repr=False)
class _Errand:
    """What one round asks with: who we are, by evidence over the certificate that every server is shown."""

    quote: bytes
    context: SSL.Context


class KeyClient:
    """Asks key servers."""

    def __init__(self, attestor: Attestor, entropy: Entropy) -> None:
        self._attestor = attestor
        self._entropy = entropy

    async def ask_all(self, addresses: Sequence[Address]) -> AsyncGenerator[bytes, None]:
        """The KEKs of the servers that accept us and that we accept, one after the other, as they are asked.

        Whatever goes wrong with one of them is logged, and the next one is asked. Raises IdentityUnknown, Untrusted or
        Unavailable if we cannot say who we are.
        """
        if not addresses:
            return
        errand = await self._errand()
        for host, port in addresses[:MAX_ADDRESSES]:
            try:
                yield await self.ask(host, port, errand)
            except MarbleRunError as error:
                fields = {"address": f"{host}:{port}", "reason": str(error)}
                _log.warning("another Coordinator did not give its key", extra={"fields": fields})

    async def _errand(self) -> _Errand:
        at = self._attestor.clock()
        key = self._entropy.ec_key(ec.SECP384R1())
        certificate = issue_key_client(key, at, self._entropy)
        quote = await self._attestor.quote(certificate)
        await self._own(quote, at)
        return _Errand(quote, client_context(certificate, key))

    async def _own(self, quote: bytes, at: datetime) -> Identity:
        return identity_of(await self._attestor.claims(quote, at))

    async def ask(self, host: str, port: int, errand: _Errand | None = None) -> bytes:
        """The KEK of one server, which is judged before it is asked anything.

        Raises Unavailable, Malformed, Untrusted (its evidence) or Denied (it is not like us, or it refuses us).
        """
        errand = errand or await self._errand()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                async with asyncio.timeout(CONNECT_SECONDS):
                    connection = await Connection.open(host, port, errand.context)
                try:
                    await self._accept(errand.quote, connection.server_certificate())
                    message = KeyRequest(quote=errand.quote).SerializeToString()
                    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                    answer = await call(connection, authority, KEY_PATH, message, MAX_ANSWER_BYTES)
                finally:
                    connection.close()
        except TimeoutError as error:
            raise Unavailable("it did not answer in time") from error
        kek = parse_key_response(answer).key
        if len(kek) != KEK_BYTES:
            raise Malformed(f"a key encryption key has {KEK_BYTES} bytes, not {len(kek)}", where="key")
        return kek

    async def _accept(self, quote: bytes, leaf: bytes) -> None:
        """Judge a server by its certificate, and by our own evidence, at one time for both."""
        at = self._attestor.clock()
        certificate, evidence = evidence_in(leaf, at)
        own = await self._own(quote, at)
        verify_server(own, certificate, await self._attestor.claims(evidence, at))
