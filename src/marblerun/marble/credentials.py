"""What a Marble shows on the TLS connection on which it asks for its real identity."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from marblerun.coordinator.entropy import SystemEntropy
from marblerun.marble.keyfile import load_key_pair
from marblerun.pki.csr import build_csr
from marblerun.pki.issue import issue_self_signed_marble
from marblerun.pki.profiles import SubjectNames

AEAD_SUITES: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""TLS 1.2 suites; every suite of TLS 1.3 is one."""


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A key, its self-signed certificate for the TLS connection, and a request with the service's names.

    The Coordinator binds evidence to the certificate and takes the names from the request; the key itself is thrown
    away with the connection, as the real one comes with the answer (protocol, section 2.7).
    """

    key: ec.EllipticCurvePrivateKey
    certificate: bytes
    """DER."""
    csr: bytes
    """DER PKCS#10."""

    def client_context(self) -> ssl.SSLContext:
        """Return a TLS context that shows this certificate and offers HTTP/2.

        It does not judge the server by any CA, since none exists before the answer; a pin does that, with the
        certificate of the finished handshake.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(AEAD_SUITES)
        context.set_alpn_protocols(["h2"])
        key_pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        load_key_pair(context, ssl.DER_cert_to_PEM_cert(self.certificate).encode(), key_pem)
        return context


def make_credentials(names: SubjectNames, curve: ec.EllipticCurve | None = None) -> Credentials:
    """Return fresh credentials for a service with these names, to which the loopback addresses are added.

    ``curve`` defaults to P-256: the Coordinator accepts any, and its handshake then costs half of what stock Marbles'
    P-384 costs. Raises Malformed if a name cannot stand in a certificate.
    """
    entropy = SystemEntropy()
    key = entropy.ec_key(curve or ec.SECP256R1())
    certificate = issue_self_signed_marble(names, key, datetime.now(UTC), entropy)
    return Credentials(key, certificate, build_csr(names, key))
