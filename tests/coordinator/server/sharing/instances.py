"""Two Coordinators as the key exchange sees them, without a state, and a stock gRPC peer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.coordinator.peers import tls
from tests.coordinator.states import ENTROPY

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.collect import CachedSource, CollateralSource, DirectorySource
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.issue import EvidenceIssuer
from marblerun.attestation.issue.simulated import SimulatedIssuer
from marblerun.attestation.registry import DcapEvidence, Registry
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.kek import KekSealer
from marblerun.coordinator.seal.none import PlainSealer
from marblerun.coordinator.server.attempts import FailedAttempts
from marblerun.coordinator.server.exchange import Patience
from marblerun.coordinator.server.overload import Limits
from marblerun.coordinator.server.sharing.attestor import Attestor
from marblerun.coordinator.server.sharing.key_client import KeyClient
from marblerun.coordinator.server.sharing.key_server import KeyServer
from marblerun.coordinator.server.turns import Overload
from marblerun.pki.issue import issue_key_client
from marblerun.wire.pem import encode_pem
from marblerun.wire.rpc import KEY_PATH, KeyRequest, KeyResponse

T = TypeVar("T")
LIMIT = 60.0


def now() -> datetime:
    return datetime.now(UTC)


class Nowhere:
    """A map that keeps nothing."""

    def load(self, entry: str) -> bytes | None:
        return None

    def save(self, entry: str, value: bytes) -> None:
        pass


def knowing(kek_of: str = "some deployment") -> KekSealer:
    """A sealer that has stored a state; ``kek_of`` is only for the reader."""
    sealer = KekSealer(PlainSealer(), Nowhere(), ENTROPY)
    sealer.seal(bytes(32), SealMode.PRODUCT_KEY, kek_of.encode())
    sealer.settled(SealMode.PRODUCT_KEY)
    return sealer


def attestor(
    platform: SimulatedPlatform,
    identity: EnclaveIdentity | None = None,
    *,
    issuer: EvidenceIssuer | None = None,
    clock: Callable[[], datetime] = now,
    collateral: CollateralSource | None = None,
) -> Attestor:
    """The evidence side of a Coordinator on a simulated platform."""
    who = identity or EnclaveIdentity()
    return Attestor(
        issuer=issuer or SimulatedIssuer(lambda data: platform.quote_as(who, data)),
        registry=Registry([DcapEvidence(Verifier([platform.trust_root()]))]),
        collateral=collateral or CachedSource(DirectorySource(platform.directory, clock), clock),
        clock=clock,
    )


@dataclass
class Loop:
    """An event loop in a thread."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LIMIT)


@contextmanager
def event_loop() -> Iterator[Loop]:
    """A running loop, gone with all its tasks at the end."""
    made = Loop()
    thread = threading.Thread(target=made.loop.run_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.call(_end())
        made.loop.call_soon_threadsafe(made.loop.stop)
        thread.join(LIMIT)
        made.loop.close()


async def _end() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


@dataclass
class Serving:
    """A key server that listens."""

    server: KeyServer
    sealer: KekSealer
    loop: Loop

    @property
    def port(self) -> int:
        return int(self.server.address.rpartition(":")[2])

    def ask(self, client: KeyClient) -> bytes:
        """What our own client gets."""
        return self.loop.call(client.ask("127.0.0.1", self.port))


def always(mode: SealMode) -> Callable[[], Coroutine[Any, Any, SealMode]]:
    """What a key server asks for the seal mode."""

    async def tell() -> SealMode:
        return mode

    return tell


@contextmanager
def serving(
    own: Attestor,
    mode: SealMode = SealMode.PRODUCT_KEY,
    *,
    sealer: KekSealer | None = None,
    attempts: FailedAttempts | None = None,
    patience: Patience | None = None,
) -> Iterator[Serving]:
    """A key server on a free port."""
    with event_loop() as loop:
        known = sealer or knowing()
        server = KeyServer(own, known, always(mode), ENTROPY, attempts)
        overload = Overload(Limits())
        loop.call(server.start("127.0.0.1:0", overload, patience or Patience()))
        try:
            yield Serving(server, known, loop)
        finally:
            loop.call(_close(server))
            overload.close()


async def _close(server: KeyServer) -> None:
    server.close()


def shown_by(port: int) -> bytes:
    """The certificate of whoever listens there, DER."""
    with tls(("127.0.0.1", port), mesh=True, seconds=LIMIT) as connection:
        found = connection.getpeercert(binary_form=True)
    assert found is not None
    return found


@dataclass(frozen=True)
class Stock:
    """A stock gRPC client with a certificate of its own; it is told the server's, which gRPC insists on."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ENTROPY.ec_key(ec.SECP384R1()))

    @cached_property
    def certificate(self) -> bytes:
        """DER."""
        return issue_key_client(self.key, now(), ENTROPY)

    def quote(self, platform: SimulatedPlatform, identity: EnclaveIdentity | None = None, about: bytes = b"") -> bytes:
        """Evidence over the certificate, or over something else."""
        issuer = SimulatedIssuer(lambda data: platform.quote_as(identity or EnclaveIdentity(), data))
        return issuer.issue(report_data_for(about or self.certificate))

    def ask(self, serving: Serving, quote: bytes, path: str = KEY_PATH) -> bytes:
        """The KEK; raises ``grpc.RpcError``."""
        credentials = grpc.ssl_channel_credentials(
            root_certificates=encode_pem(shown_by(serving.port), "CERTIFICATE").encode(),
            private_key=self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            certificate_chain=encode_pem(self.certificate, "CERTIFICATE").encode(),
        )
        options = (("grpc.ssl_target_name_override", "EGo"),)
        with grpc.secure_channel(f"127.0.0.1:{serving.port}", credentials, options) as channel:
            method = channel.unary_unary(
                path, request_serializer=KeyRequest.SerializeToString, response_deserializer=KeyResponse.FromString
            )
            answer: KeyResponse = method(KeyRequest(quote=quote), timeout=LIMIT)
        return answer.key
