"""The checks of the key exchange that need nothing but the bytes, what they are compared with, and the time."""

from __future__ import annotations

from datetime import datetime

from marblerun.attestation.binding import verify_binding, verify_key_binding
from marblerun.attestation.model import Claims
from marblerun.coordinator.seal import SealMode
from marblerun.errors import Untrusted
from marblerun.pki import extensions as ext
from marblerun.pki.parsed import ParsedCertificate, parse_certificate
from marblerun.policy.sharing import Identity, require_client_like, require_server_like


def evidence_in(leaf: bytes, at: datetime) -> tuple[ParsedCertificate, bytes]:
    """The certificate of a key server and the evidence in it; nothing of either is trusted yet.

    Raises Malformed for what is no certificate and Untrusted (step ``server-certificate``) for one that is not valid at
    the time ``at`` or carries no evidence.
    """
    certificate = parse_certificate(leaf)
    if not certificate.not_before <= at <= certificate.not_after:
        raise Untrusted("the certificate is not valid now", step="server-certificate", reason="expired")
    found = certificate.extensions.get(ext.OE_EVIDENCE)
    if found is None or not found.value:
        raise Untrusted("the certificate carries no evidence", step="server-certificate", reason="missing")
    return certificate, found.value


def verify_server(own: Identity, certificate: ParsedCertificate, claims: Claims) -> None:
    """Accept a key server, or raise Untrusted or Denied (protocol, section 11.4).

    1. Its evidence is about the key of its certificate, which the handshake proved.
    2. It is a Coordinator like us.
    """
    verify_key_binding(claims.report_data, certificate.public_key)  # 1
    require_server_like(own, claims)  # 2


def verify_client(own: Identity, mode: SealMode, leaf: bytes, claims: Claims) -> None:
    """Accept one who asks for the key, or raise Malformed, Untrusted or Denied (protocol, section 11.4).

    1. Its evidence is about the very certificate of this connection.
    2. That is no CA's. A Coordinator shows everybody evidence about its root certificate, and the root key lies in
       every state: whoever was ever able to recover one could ask as this Coordinator.
    3. It is a Coordinator like us; exactly the same one unless the state is sealed to the product.
    """
    verify_binding(claims.report_data, leaf, strict=False)  # 1
    constraints = parse_certificate(leaf).basic_constraints  # 2
    if constraints is not None and constraints[0]:
        raise Untrusted("a CA's certificate is not for asking", step="client-certificate", reason="ca")
    require_client_like(own, claims, product=mode is SealMode.PRODUCT_KEY)  # 3
