"""What a Coordinator on this path cannot avoid: the cryptography of one activation by itself.

The server's side of the TLS handshake with a client certificate, the signature of the Marble's request, the key and
the certificate's signature that the Marble gets, and the quote's signature. The Coordinator's own key is P-384, as
the protocol's CA keys are. The other side of the handshake is the client that
the rows use, so that the key exchange is the same (X25519).

There are two floors. The one that goals are relative to is all OpenSSL, through pyca and pyOpenSSL. The server does
three of the five by AWS-LC (ADR 9), which is faster; the second floor has these three as the server does them.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from marblerun.marble.credentials import make_credentials
from marblerun.pki.ecdsa import SigningKey, VerifyingKey, new_pair
from marblerun.pki.encodings import public_key_info
from marblerun.pki.profiles import SubjectNames


@dataclass(frozen=True, slots=True)
class Floor:
    """Milliseconds of CPU."""

    handshake: float
    request_signature: float
    key: float
    certificate_signature: float
    quote_signature: float
    request_signature_here: float
    """This and the next two: as the server does it."""
    key_here: float
    certificate_signature_here: float

    @property
    def total(self) -> float:
        """All of it, by OpenSSL."""
        return self._unchanged + self.request_signature + self.key + self.certificate_signature

    @property
    def total_here(self) -> float:
        """All of it, as the server does it."""
        return self._unchanged + self.request_signature_here + self.key_here + self.certificate_signature_here

    @property
    def _unchanged(self) -> float:
        return self.handshake + self.quote_signature


class Activation:
    """The cryptography of activations whose Marbles have a TLS key on ``curve``."""

    def __init__(self, curve: ec.EllipticCurve | None = None) -> None:
        curve = curve or ec.SECP384R1()
        self._server_key = ec.generate_private_key(ec.SECP384R1())
        self._marble_key = ec.generate_private_key(curve)
        self._quote_key = ec.generate_private_key(ec.SECP256R1())
        self._message = bytes(432)
        self._hash = hashes.SHA256() if curve.key_size == 256 else hashes.SHA384()
        self._scheme = ec.ECDSA(self._hash)
        self._request = self._marble_key.sign(self._message, self._scheme)
        self._quote = self._quote_key.sign(self._message, ec.ECDSA(hashes.SHA256()))
        self._server = server_context(self._server_key)
        self._client = make_credentials(SubjectNames.parse("localhost"), curve).client_context()
        self._marble_key_here = VerifyingKey.of(public_key_info(self._marble_key.public_key()))
        self._server_key_here = SigningKey.of(self._server_key)

    def measure(self, rounds: int = 40) -> Floor:
        """The mean of so many."""
        spent = [0.0] * 8
        for _ in range(rounds):
            for step, seconds in enumerate(self._once()):
                spent[step] += seconds
        return Floor(*(seconds / rounds * 1000 for seconds in spent))

    def _once(self) -> tuple[float, ...]:
        shaken = handshake(self._server, self._client)
        times = [time.thread_time()]
        self._marble_key.public_key().verify(self._request, self._message, self._scheme)
        times.append(time.thread_time())
        ec.generate_private_key(ec.SECP384R1())
        times.append(time.thread_time())
        self._server_key.sign(self._message, ec.ECDSA(hashes.SHA384()))
        times.append(time.thread_time())
        self._quote_key.public_key().verify(self._quote, self._message, ec.ECDSA(hashes.SHA256()))
        times.append(time.thread_time())
        assert self._marble_key_here is not None
        assert self._server_key_here is not None
        self._marble_key_here.is_signed(self._request, self._message, self._hash)
        times.append(time.thread_time())
        new_pair(self._server_key.curve)
        times.append(time.thread_time())
        self._server_key_here.sign(self._message, ec.ECDSA(hashes.SHA384()))
        times.append(time.thread_time())
        return shaken, *(after - before for before, after in pairwise(times))


def server_context(key: ec.EllipticCurvePrivateKey) -> SSL.Context:
    """A context that demands a client certificate and accepts any, as the Coordinator's."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "floor")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_privatekey(key)
    context.use_certificate(builder.sign(key, hashes.SHA384()))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
    context.set_verify_depth(0)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def handshake(context: SSL.Context, client_context: ssl.SSLContext) -> float:
    """CPU seconds of the server's side of one handshake in memory, with the client that the rows use."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = SSL.Connection(context, None)
    server.set_accept_state()
    spent, is_done, client_done = 0.0, False, False
    while not is_done:
        if not client_done:
            client_done = _client_step(client)
        data = to_server.read()
        began = time.thread_time()
        server.bio_write(data)
        is_done = _server_step(server)
        answer = _outgoing(server)
        spent += time.thread_time() - began
        to_client.write(answer)
    return spent


def _client_step(client: ssl.SSLObject) -> bool:
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _server_step(server: SSL.Connection) -> bool:
    try:
        server.do_handshake()
    except SSL.WantReadError:
        return False
    return True


def _outgoing(server: SSL.Connection) -> bytes:
    pieces = []
    while True:
        try:
            pieces.append(server.bio_read(65536))
        except SSL.WantReadError:
            return b"".join(pieces)
