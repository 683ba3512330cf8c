"""What a secret is: its definition in the manifest and its value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from marblerun.pki.profiles import CertificateTemplate


class SecretType(StrEnum):
    """The kinds of secret a manifest may ask for (protocol, section 5.5); exact case on the wire."""

    SYMMETRIC_KEY = "symmetric-key"
    CERT_RSA = "cert-rsa"
    CERT_ECDSA = "cert-ecdsa"
    CERT_ED25519 = "cert-ed25519"
    PLAIN = "plain"

    @property
    def is_certificate(self) -> bool:
        """Whether values of this kind carry a certificate."""
        return self in (SecretType.CERT_RSA, SecretType.CERT_ECDSA, SecretType.CERT_ED25519)


@dataclass(frozen=True, slots=True)
class SecretDefinition:
    """A secret as the manifest defines it.

    ``type`` is the text as written, which the checks compare with :class:`SecretType`. ``template`` is the object
    form of ``Cert``, ``certificate`` its base64 form (DER); at most one of them is set. ``private`` and ``public``
    are accepted in a manifest and have no effect (protocol, section 5.5).
    """

    type: str = ""
    size: int = 0
    """Bits."""
    shared: bool = False
    user_defined: bool = False
    valid_for: int = 0
    """Days; 0 means unset."""
    template: CertificateTemplate | None = None
    certificate: bytes | None = None
    private: bytes = b""
    public: bytes = b""


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A secret's value with the definition it was made from; ``repr`` shows neither key nor data.

    Symmetric and plain: ``private == public ==`` the bytes. Certificates: ``private`` is PKCS#8 DER, ``public`` PKIX
    DER, ``certificate`` DER. Unset user-defined secrets have all three empty.
    """

    type: str
    size: int = 0
    shared: bool = False
    user_defined: bool = False
    valid_for: int = 0
    certificate: bytes = b""
    private: bytes = b""
    public: bytes = b""

    def __repr__(self) -> str:
        return f"Secret(type={self.type!r}, size={self.size}, shared={self.shared}, user_defined={self.user_defined})"
