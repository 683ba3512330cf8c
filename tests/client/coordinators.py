"""Coordinators to test clients against: a small real HTTPS server in this process, honest or lying as told.

TLS is terminated with pyOpenSSL, because like the real one it has to request client certificates that nobody vouches
for. Everything that arrives inside TLS is recorded.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from marblerun.attestation.dcap.quote import add_oe_header
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.client.pinning import Credentials

NOW = datetime.now(UTC).replace(microsecond=0)
FAR = datetime(2318, 3, 1, tzinfo=UTC)
"""Go's longest duration after now, which the reference gives its certificates."""


@dataclass(frozen=True)
class Identity:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.pem, self.key_pem)


def mint(name: str, issuer: Identity | None = None, *, ca: bool = True, not_after: datetime = FAR) -> Identity:
    """A P-384 certificate in the profile of protocol, section 3.1."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(True, False, False, False, False, ca, False, False, False)
    eku = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(not_after)
        .add_extension(usage, critical=True)
        .add_extension(eku, critical=False)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(issuer.key if issuer else key, hashes.SHA384())
    )
    return Identity(certificate, key)


@dataclass(frozen=True)
class Call:
    """A request as the Coordinator saw it."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    body: bytes
    client_certificate: bytes | None

    @property
    def names(self) -> list[str]:
        return [value for name, value in self.query if name == "s"]

    def json(self) -> dict[str, object]:
        document = json.loads(self.body)
        assert isinstance(document, dict)
        return document


Answer = tuple[int, bytes]
Handler = Callable[[Call], Answer]


def success(data: object) -> Answer:
    return 200, json.dumps({"status": "success", "data": data}).encode() + b"\n"


def failure(status: int, message: str) -> Answer:
    return status, json.dumps({"status": "error", "data": None, "message": message}).encode()


@dataclass
class FakeCoordinator:
    """Answers from ``routes`` (``"GET /path"``); anything else is 405. Serves ``tls``, by default its own root."""

    root: Identity
    intermediate: Identity
    evidence: Callable[[bytes], bytes]
    """Makes a quote over root DER and the nonce it is given."""
    tls: Identity
    routes: dict[str, Handler] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    """Every byte that arrived inside TLS, one entry a connection."""
    certificates_seen: list[bytes | None] = field(default_factory=list)
    """The client certificate of each completed handshake."""
    endpoint: str = ""
    ignores_nonce: bool = False
    raw_answer: bytes | Callable[[], bytes] | None = None

    @property
    def chain(self) -> bytes:
        return self.intermediate.pem + self.root.pem

    @property
    def sent_requests(self) -> list[str]:
        """Method and path of each request, without queries."""
        return [f"{call.method} {call.path}" for call in self.calls]

    def quote_route(self, call: Call) -> Answer:
        text = dict(call.query).get("nonce", "")
        nonce = b"" if self.ignores_nonce else base64.urlsafe_b64decode(text)
        quote = self.evidence(nonce)
        return success({"cert": self.chain.decode(), "quote": base64.b64encode(quote).decode() if quote else None})

    def quote_route_v1(self, _call: Call) -> Answer:
        quote = self.evidence(b"")
        return success({"Cert": self.chain.decode(), "Quote": base64.b64encode(quote).decode() if quote else None})

    def answer(self, call: Call) -> Answer:
        handler = self.routes.get(f"{call.method} {call.path}")
        return handler(call) if handler else failure(405, "")


def quote_maker(platform: SimulatedPlatform, root_der: bytes, **identity: object) -> Callable[[bytes], bytes]:
    """Genuine quotes of the simulated platform over a root certificate, with Open Enclave header."""

    def make(nonce: bytes) -> bytes:
        return add_oe_header(platform.quote(sha256(root_der + nonce).digest(), **identity))  # type: ignore[arg-type]

    return make


def coordinator(platform: SimulatedPlatform, **identity: object) -> FakeCoordinator:
    """An honest Coordinator with fresh keys on the platform; version 2 of the API, only the quote."""
    root = mint("MarbleRun Coordinator")
    intermediate = mint("MarbleRun Coordinator - Intermediate CA", root)
    fake = FakeCoordinator(root, intermediate, quote_maker(platform, root.der, **identity), root)
    fake.routes["GET /api/v2/quote"] = fake.quote_route
    return fake


@contextmanager
def serving(fake: FakeCoordinator) -> Iterator[FakeCoordinator]:
    """Runs the Coordinator on a free port until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    fake.endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
    stopped = threading.Event()
    thread = threading.Thread(target=_accept, args=(fake, listener, stopped), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        stopped.set()
        with suppress(OSError):
            socket.create_connection(listener.getsockname(), timeout=60).close()
        thread.join(60)
        listener.close()


def _accept(fake: FakeCoordinator, listener: socket.socket, stopped: threading.Event) -> None:
    while not stopped.is_set():
        connection, _ = listener.accept()
        connection.settimeout(60)
        threading.Thread(target=_serve, args=(fake, connection), daemon=True).start()


def _context(fake: FakeCoordinator) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(fake.tls.certificate)
    context.use_privatekey(fake.tls.key)
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    return context


def _serve(fake: FakeCoordinator, raw: socket.socket) -> None:
    raw.setblocking(True)
    tls = SSL.Connection(_context(fake), raw)
    tls.set_accept_state()
    received = bytearray()
    try:
        tls.do_handshake()
        certificate = tls.get_peer_certificate(as_cryptography=True)
        der = certificate.public_bytes(Encoding.DER) if certificate else None
        fake.certificates_seen.append(der)
        while (call := _read_call(tls, received, der)) is not None:
            fake.calls.append(call)
            if fake.raw_answer is not None:
                tls.sendall(fake.raw_answer() if callable(fake.raw_answer) else fake.raw_answer)
                break
            status, body = fake.answer(call)
            head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            tls.sendall(head.encode() + body)
    except (SSL.Error, OSError):
        pass
    finally:
        if received:
            fake.received.append(bytes(received))
        with suppress(SSL.Error, OSError):
            tls.shutdown()
        raw.close()


def _read_call(tls: SSL.Connection, received: bytearray, certificate: bytes | None) -> Call | None:
    data = bytearray()

    def more() -> bool:
        try:
            chunk = tls.recv(65536)
        except (SSL.ZeroReturnError, SSL.SysCallError):
            return False
        data.extend(chunk)
        received.extend(chunk)
        return bool(chunk)

    while b"\r\n\r\n" not in data:
        if not more():
            return None
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    length = int(headers.get("content-length", "0"))
    while len(body) < length:
        if not more():
            return None
        body = bytes(data).partition(b"\r\n\r\n")[2]
    parts = urlsplit(target)
    return Call(method, parts.path, tuple(parse_qsl(parts.query, keep_blank_values=True)), body, certificate)


def manifest_routes(manifest: bytes, *, version: int = 2) -> Mapping[str, Handler]:
    """Routes that serve a manifest."""
    fingerprint, text = sha256(manifest).hexdigest(), base64.b64encode(manifest).decode()
    if version == 1:
        old = {"ManifestSignatureRootECDSA": "", "ManifestSignature": fingerprint, "Manifest": text}
        return {"GET /manifest": lambda _: success(old)}
    new = {"manifestSignatureRootECDSA": "", "manifestFingerprint": fingerprint, "manifest": text}
    return {"GET /api/v2/manifest": lambda _: success(new)}
