"""Users upload values of user-defined secrets only in the form their type takes (protocol, section 6.6)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.pki.authority import AT, CountingEntropy, der, marble_issuer, marble_root

from marblerun.errors import Malformed
from marblerun.pki.encodings import public_key_info
from marblerun.pki.issue import issue_secret_certificate
from marblerun.pki.profiles import CertificateTemplate
from marblerun.secrets.model import Secret
from marblerun.secrets.upload import SecretUpload, apply_upload


def unset(kind: str, size: int = 0) -> Secret:
    return Secret(type=kind, size=size, user_defined=True, valid_for=3)


def test_a_key_of_the_declared_size_is_taken() -> None:
    """U3: upload: symmetric of right size, certificate, plain ok."""
    value = apply_upload("s", unset("symmetric-key", 128), SecretUpload(key=bytes(16)))
    assert value == Secret(
        type="symmetric-key", size=128, user_defined=True, valid_for=3, private=bytes(16), public=bytes(16)
    )


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_key_of_another_size_is_refused_with_the_fixed_text(size: int) -> None:
    """U3: wrong size err; E12: secret of wrong size refused (fixed text)."""
    with pytest.raises(Malformed, match="declared size and actual size don't match"):
        apply_upload("s", unset("symmetric-key", 128), SecretUpload(key=bytes(size)))


@pytest.mark.parametrize("data", [b"", b"\x00text", bytes(5000)])
def test_any_plain_data_is_taken(data: bytes) -> None:
    value = apply_upload("s", unset("plain"), SecretUpload(key=data))
    assert (value.private, value.public, value.certificate) == (data, data, b"")


@pytest.mark.parametrize("kind", ["cert-rsa", "cert-ecdsa", "cert-ed25519"])
@pytest.mark.parametrize("private", [b"", b"not even a key"])
def test_a_certificate_of_any_algorithm_is_taken_with_its_unchecked_key(kind: str, private: bytes) -> None:
    own = rsa.generate_private_key(65537, 1024).public_key()
    certificate = issue_secret_certificate(
        CertificateTemplate(),
        public_key=own,
        issuer=marble_issuer(),
        not_after=AT + timedelta(days=1),
        at=AT,
        entropy=CountingEntropy(),
    )
    value = apply_upload("s", unset(kind, 521), SecretUpload(certificate=certificate, private=private))
    assert (value.certificate, value.private, value.public) == (certificate, private, public_key_info(own))


CERTIFICATE = der(marble_root())
REFUSED = [
    (Secret(type="plain"), SecretUpload(key=b"x")),
    (unset("symmetric-key", 128), SecretUpload(key=bytes(16), private=b"x")),
    (unset("symmetric-key", 128), SecretUpload(key=bytes(16), certificate=CERTIFICATE)),
    (unset("symmetric-key", 0), SecretUpload()),
    (unset("symmetric-key", 12), SecretUpload(key=b"xx")),
    (unset("plain"), SecretUpload(key=b"x", private=b"x")),
    (unset("plain"), SecretUpload(certificate=CERTIFICATE)),
    (unset("cert-ecdsa", 384), SecretUpload()),
    (unset("cert-ecdsa", 384), SecretUpload(private=b"x")),
    (unset("cert-ecdsa", 384), SecretUpload(certificate=CERTIFICATE, key=b"x")),
    (unset("cert-ecdsa", 384), SecretUpload(certificate=CERTIFICATE[:-1])),
    (unset("cert-ecdsa", 384), SecretUpload(certificate=b"\x30\x00")),
    (unset("unknown"), SecretUpload(key=b"x")),
]


@pytest.mark.parametrize(("current", "upload"), REFUSED)
def test_anything_else_is_malformed_and_names_the_secret(current: Secret, upload: SecretUpload) -> None:
    with pytest.raises(Malformed) as caught:
        apply_upload("s", current, upload)
    assert caught.value.where == "s"


def test_an_upload_does_not_show_in_its_representation() -> None:
    assert "hidden" not in repr(SecretUpload(key=b"hidden", private=b"hidden"))
