"""TLS towards a Coordinator: the peer must present one known certificate, checked before the first request byte.

Marble certificates chain to the Coordinator's root as well, so "signed by the root" would let every Marble pose as the
Coordinator. Two locks instead: OpenSSL verifies against the root alone, during the handshake and before a client
certificate leaves; then the leaf's DER has to equal the root's, at the end of the handshake and before any request.

Source: protocol, section 3.3 (the Coordinator serves its root certificate alone); cli-marble-k8s, section 6.5.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from marblerun.errors import Malformed, NotFound

PIN_FAILED = "the peer's certificate is not the pinned root of the Coordinator"
_CERTIFICATE, _KEY = "client certificate", "client key"


@dataclass(frozen=True, slots=True)
class PinnedRoot:
    """The one certificate that the Coordinator may present, DER."""

    der: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, hex."""
        return hashlib.sha256(self.der).hexdigest()


@dataclass(frozen=True, slots=True)
class Unverified:
    """No check of the peer at all: whoever answers is believed. Only for simulation and for fetching a quote."""


UNVERIFIED = Unverified()
PeerTrust = PinnedRoot | Unverified


@dataclass(frozen=True, slots=True)
class Credentials:
    """A client certificate and its key, PEM. The key must not be encrypted."""

    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def load(cls, certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> Credentials:
        """Reads both files.

        Raises:
            NotFound: there is no such file. Malformed: it cannot be read, is not PEM, or the two do not belong
                together.
        """
        credentials = cls(_read(certificate), _read(key))
        try:
            credentials.verify()
        except Malformed as error:
            path = certificate if error.where == _CERTIFICATE else key
            raise Malformed(error.message, where=f"{error.where} {os.fspath(path)}") from None
        return credentials

    def verify(self) -> None:
        """Raises :class:`Malformed` unless both are readable and the key belongs to the first certificate."""
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate)
        except ValueError:
            raise Malformed("is not a PEM certificate", where=_CERTIFICATE) from None
        try:
            key = serialization.load_pem_private_key(self.key, password=None)
        except TypeError:
            raise Malformed("is encrypted with a password; decrypt it first ('openssl pkey')", where=_KEY) from None
        except (ValueError, UnsupportedAlgorithm):
            raise Malformed("is not a PEM private key", where=_KEY) from None
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
            raise Malformed("does not belong to the client certificate", where=_KEY)


class _PinMismatch(ssl.SSLCertVerificationError):
    """The handshake ended with another certificate than the pinned one."""


class _PinnedContext(ssl.SSLContext):
    """A context that knows its pin; the two classes below ask it at the end of each handshake."""

    pin: bytes = b""

    def check(self, leaf: bytes | None) -> None:
        if not self.pin or leaf != self.pin:
            raise _PinMismatch(PIN_FAILED)


class _PinnedSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        _check(self.context, self.getpeercert(binary_form=True))


class _PinnedObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        _check(self.context, self.getpeercert(binary_form=True))


def _check(context: ssl.SSLContext, leaf: bytes | None) -> None:
    if not isinstance(context, _PinnedContext):
        raise RuntimeError("a pinned connection outside its context")
    context.check(leaf)


def tls_context(trust: PeerTrust, credentials: Credentials | None = None) -> ssl.SSLContext:
    """A client context for one Coordinator: TLS 1.2 or 1.3, no renegotiation, no host name check (the pin is stricter).

    Raises:
        Malformed: the pin is not a certificate, or the credentials cannot be used.
    """
    context = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT) if isinstance(trust, PinnedRoot) else _unverified()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.check_hostname = False
    if isinstance(trust, PinnedRoot) and isinstance(context, _PinnedContext):
        context.pin = trust.der
        context.sslsocket_class = _PinnedSocket
        context.sslobject_class = _PinnedObject
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(cadata=trust.der)
        except (ssl.SSLError, ValueError):
            raise Malformed("is not a certificate", where="pinned root") from None
    if credentials is not None:
        _load(context, credentials)
    return context


def is_pin_failure(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that the peer's certificate was refused."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, ssl.SSLCertVerificationError):
            return True
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return False


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _load(context: ssl.SSLContext, credentials: Credentials) -> None:
    credentials.verify()
    with _as_file(credentials.certificate) as certificate, _as_file(credentials.key) as key:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            raise Malformed(f"TLS cannot use it: {error}", where=_CERTIFICATE) from None


def _no_password() -> str:
    raise ValueError("the key is encrypted")


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path with this content, readable by this process only; in memory where the system can (OpenSSL wants paths)."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("tls", getattr(os, "MFD_CLOEXEC", 0))
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name


def _read(path: str | os.PathLike[str]) -> bytes:
    limit = 1024 * 1024
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no file {os.fspath(path)}") from None
    except OSError as error:
        raise Malformed(f"cannot be read: {error.strerror}", where=os.fspath(path)) from None
    if len(content) > limit:
        raise Malformed(f"is larger than {limit} bytes", where=os.fspath(path))
    return content
