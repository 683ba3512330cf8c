"""The asking side's TLS: shows a certificate of its own, and gives the server's to whoever judges it."""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from marblerun.errors import Unavailable

_READ_BYTES: Final = 64 * 1024
_TLS12_CIPHERS: Final = b"ECDHE+AESGCM"


def client_context(certificate: bytes, key: ec.EllipticCurvePrivateKey) -> SSL.Context:
    """A TLS 1.2/1.3 client context for HTTP/2 that shows ``certificate`` (DER).

    It judges nobody: no CA vouches for the server. Evidence does, after the handshake and before a request.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_TLS12_CIPHERS)
    # A server is judged once: it must not become another one on the same connection.
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_verify(SSL.VERIFY_NONE)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_privatekey(cast(Any, key))
    context.use_certificate(cast(Any, x509.load_der_x509_certificate(certificate)))
    context.set_alpn_protos([b"h2"])
    return context


class Connection:
    """One connection to a server; every method raises Unavailable when the network or the server ends it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: SSL.Context) -> None:
        self._reader = reader
        self._writer = writer
        self._tls = SSL.Connection(context, None)
        self._tls.set_connect_state()

    @classmethod
    async def open(cls, host: str, port: int, context: SSL.Context) -> Connection:
        """Connect and shake hands."""
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except (OSError, ValueError) as error:
            raise Unavailable(f"cannot connect: {getattr(error, 'strerror', None) or error}") from error
        connection = cls(reader, writer, context)
        try:
            await connection._shake_hands()
        except BaseException:
            connection.close()
            raise
        return connection

    async def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except SSL.WantReadError:
                await self._feed()
                continue
            except SSL.Error as error:
                raise Unavailable("the TLS handshake failed") from error
            await self._flush()
            break
        if self._tls.get_alpn_proto_negotiated() != b"h2":
            raise Unavailable("the server does not speak HTTP/2")

    def server_certificate(self) -> bytes:
        """DER of the certificate whose key the handshake proved."""
        found = self._tls.get_peer_certificate(as_cryptography=False)
        if found is None:
            raise Unavailable("the server showed no certificate")
        return crypto.dump_certificate(crypto.FILETYPE_ASN1, found)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        if data:
            try:
                self._tls.sendall(data)
            except SSL.Error as error:
                raise Unavailable("the connection broke") from error
        await self._flush()

    async def receive(self) -> bytes:
        """What came next, at least a byte."""
        while True:
            try:
                return self._tls.recv(_READ_BYTES)
            except SSL.WantReadError:
                await self._feed()
            except SSL.Error as error:
                raise Unavailable("the server closed the connection before it had answered") from error

    def close(self) -> None:
        """Give it back."""
        self._writer.close()

    async def _feed(self) -> None:
        await self._flush()
        try:
            data = await self._reader.read(_READ_BYTES)
        except OSError as error:
            raise Unavailable(f"the connection broke: {error.strerror or error}") from error
        if not data:
            raise Unavailable("the server closed the connection")
        self._tls.bio_write(data)

    async def _flush(self) -> None:
        while True:
            try:
                self._writer.write(self._tls.bio_read(_READ_BYTES))
            except SSL.Error:  # WantReadError: empty
                break
        try:
            await self._writer.drain()
        except OSError as error:
            raise Unavailable(f"the connection broke: {error.strerror or error}") from error
