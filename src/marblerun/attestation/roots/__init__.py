"""The roots of trust that this package ships, and how to make one from a certificate."""

from __future__ import annotations

from typing import Final

from marblerun.attestation.dcap.certificates import read_certificate, verify_authority
from marblerun.attestation.model import Origin, TrustRoot

INTEL: Final = TrustRoot(
    name="Intel SGX Root CA",
    # SHA-256 of the SubjectPublicKeyInfo in Intel_SGX_Provisioning_Certification_RootCA.cer, which Intel publishes for
    # its provisioning certification service. The certificate valid until 2033 and its successor valid until 2049 have
    # the same key (formats, section 3.1).
    spki_sha256=bytes.fromhex("a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"),
    origin=Origin.HARDWARE,
)


def root_from_certificate(der: bytes, name: str, origin: Origin) -> TrustRoot:
    """The root whose key the certificate in ``der`` holds, under ``name``; Untrusted (step ``root``) if unreadable.

    Nothing but the key is taken from the certificate. It must be an authority, so that nobody pins a leaf by mistake.
    """
    certificate = read_certificate(der, "root", "the root certificate")
    verify_authority(certificate, "root")
    return TrustRoot(name=name, spki_sha256=certificate.spki_sha256, origin=origin)
