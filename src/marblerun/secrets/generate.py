"""Making the values of secrets: from a manifest's definition, or anew from a stored value.

Source: protocol, sections 5.10 and 6.1 to 6.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.errors import Malformed
from marblerun.pki.encodings import encoded_pair
from marblerun.pki.issue import Entropy, Issuer, issue_secret_certificate
from marblerun.pki.parsed import ParsedCertificate, parse_certificate
from marblerun.pki.profiles import CertificateTemplate
from marblerun.secrets.derive import derive_symmetric_key
from marblerun.secrets.model import Secret, SecretDefinition, SecretType

# What a certificate secret without a stated lifetime gets, and what is then stored as its ``ValidFor``.
DEFAULT_VALID_FOR: Final = 365
# Far above any key; keeps a manifest from asking for gigabytes of randomness.
MAX_SHARED_KEY_BYTES: Final = 1024 * 1024
# Go refuses smaller ones; larger ones take minutes to make and OpenSSL cannot use them.
MIN_RSA_BITS: Final = 1024
MAX_RSA_BITS: Final = 16384

_CURVES: Final[dict[int, type[ec.EllipticCurve]]] = {
    224: ec.SECP224R1,
    256: ec.SECP256R1,
    384: ec.SECP384R1,
    521: ec.SECP521R1,
}
# PKCS#8 and SubjectPublicKeyInfo DER of one key.
Pair = tuple[bytes, bytes]
# Go's zero time, which a template may state and which means "not stated".
_ZERO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, repr=False)
class Inputs:
    """What every generation of one operation shares."""

    root_secret: bytes
    issuer: Issuer
    """The Marble root certificate with the intermediate key."""
    at: datetime
    entropy: Entropy


def generate_secret(
    name: str, source: SecretDefinition | Secret, *, uuid: UUID | None, marble_name: str, inputs: Inputs
) -> Secret:
    """A new value for the secret ``name``, from its definition or from the stored value it replaces.

    ``uuid`` is the Marble instance's for a private secret and ``None`` for a shared one (``ValueError`` otherwise).
    Private symmetric keys are derived, so the same inputs give the same key; everything else is fresh each time.
    ``Malformed`` with the path for what the reference refuses: a missing or unsuitable size, an unknown type, ``plain``
    that is not user-defined, a certificate template that cannot be issued.
    """
    if source.user_defined:
        raise ValueError(f"secret {name} is user-defined and cannot be generated")
    if source.shared != (uuid is None):
        raise ValueError(f"secret {name}: an instance's UUID is needed exactly for private secrets")
    if source.type == SecretType.SYMMETRIC_KEY:
        return _symmetric(name, source, uuid, marble_name, inputs)
    make_pair = _KEY_MAKERS.get(source.type)
    if make_pair is None:
        raise Malformed(f"a secret of type {source.type[:80]!r} cannot be generated", where=f"Secrets.{name}.Type")
    return _certificate(name, source, make_pair(name, source.size, inputs.entropy), inputs)


def _symmetric(
    name: str, source: SecretDefinition | Secret, uuid: UUID | None, marble_name: str, inputs: Inputs
) -> Secret:
    where = f"Secrets.{name}.Size"
    size, rest = divmod(source.size, 8)
    if size <= 0 or rest:
        raise Malformed(f"expected a positive multiple of 8 bits, found {source.size}", where=where)
    if uuid is not None:
        key = derive_symmetric_key(inputs.root_secret, uuid=uuid, name=name, marble_name=marble_name, size=size)
    elif size <= MAX_SHARED_KEY_BYTES:
        key = inputs.entropy.token(size)
    else:
        raise Malformed(f"expected at most {MAX_SHARED_KEY_BYTES} bytes, found {size}", where=where)
    return _value(source, private=key, public=key)


def _value(
    source: SecretDefinition | Secret, *, private: bytes = b"", public: bytes = b"", certificate: bytes = b""
) -> Secret:
    return Secret(
        type=source.type,
        size=source.size,
        shared=source.shared,
        user_defined=source.user_defined,
        valid_for=source.valid_for,
        certificate=certificate,
        private=private,
        public=public,
    )


def _rsa_pair(name: str, size: int, entropy: Entropy) -> Pair:
    if not MIN_RSA_BITS <= size <= MAX_RSA_BITS:
        raise Malformed(f"expected {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, found {size}", where=f"Secrets.{name}.Size")
    return encoded_pair(entropy.rsa_key(size))


def _ecdsa_pair(name: str, size: int, entropy: Entropy) -> Pair:
    if size not in _CURVES:
        raise Malformed(f"expected 224, 256, 384 or 521 bits, found {size}", where=f"Secrets.{name}.Size")
    return entropy.ec_pair(_CURVES[size]())


def _ed25519_pair(name: str, size: int, entropy: Entropy) -> Pair:
    if size:
        raise Malformed(f"an Ed25519 key takes no size, found {size}", where=f"Secrets.{name}.Size")
    return encoded_pair(entropy.ed25519_key())


_KEY_MAKERS: Final[Mapping[str, Callable[[str, int, Entropy], Pair]]] = {
    SecretType.CERT_RSA: _rsa_pair,
    SecretType.CERT_ECDSA: _ecdsa_pair,
    SecretType.CERT_ED25519: _ed25519_pair,
}


def _certificate(name: str, source: SecretDefinition | Secret, pair: Pair, inputs: Inputs) -> Secret:
    where = f"Secrets.{name}"
    try:
        request = _request(source)
        not_after, valid_for = _lifetime(source, request.not_after, inputs.at)
    except OverflowError as error:
        raise Malformed("the end of validity is after the year 9999", where=f"{where}.ValidFor") from error
    except Malformed as error:
        raise Malformed(f"not a usable certificate: {error}", where=f"{where}.Cert") from error
    private, public = pair
    try:
        certificate = issue_secret_certificate(
            request,
            public_key=public,
            issuer=inputs.issuer,
            not_after=not_after,
            at=inputs.at,
            entropy=inputs.entropy,
        )
    except Malformed as error:
        raise Malformed(error.message, where=f"{where}.Cert.{error.where}".rstrip(".")) from error
    value = _value(source, private=private, public=public, certificate=certificate)
    return value if value.valid_for == valid_for else replace(value, valid_for=valid_for)


def _request(source: SecretDefinition | Secret) -> CertificateTemplate | ParsedCertificate:
    """What to issue: the certificate there is, else the template, else one that says nothing."""
    if source.certificate:
        return _stored_certificate(source.certificate)
    template = source.template if isinstance(source, SecretDefinition) else None
    return template or CertificateTemplate()


@lru_cache(maxsize=512)
def _stored_certificate(certificate: bytes) -> ParsedCertificate:
    """A stored certificate taken apart, once for all instances that get one like it."""
    return parse_certificate(certificate)


def _lifetime(source: SecretDefinition | Secret, not_after: datetime | None, at: datetime) -> tuple[datetime, int]:
    """The end of validity and the days to store; an end that is stated yields only to a private secret's days.

    ``OverflowError`` after the year 9999, which X.509 cannot express.
    """
    if not_after is not None and not_after != _ZERO_TIME and (source.shared or not source.valid_for):
        return not_after, source.valid_for
    days = source.valid_for or DEFAULT_VALID_FOR
    return at + timedelta(days=days), days


def shared_secrets(definitions: Mapping[str, SecretDefinition], inputs: Inputs) -> dict[str, Secret]:
    """A value for every shared secret that is not user-defined."""
    return {
        name: generate_secret(name, definition, uuid=None, marble_name="", inputs=inputs)
        for name, definition in definitions.items()
        if definition.shared and not definition.user_defined
    }


def placeholder_secrets(definitions: Mapping[str, SecretDefinition], inputs: Inputs) -> dict[str, Secret]:
    """What is stored for private secrets: values of an instance that does not exist, so that templates can be tried.

    One random UUID for all and an empty Marble name, as in the reference (protocol, section 5.10).
    """
    uuid = random_uuid(inputs.entropy)
    return {
        name: generate_secret(name, definition, uuid=uuid, marble_name="", inputs=inputs)
        for name, definition in definitions.items()
        if not definition.shared and not definition.user_defined
    }


def unset_secrets(definitions: Mapping[str, SecretDefinition]) -> dict[str, Secret]:
    """What is stored for user-defined secrets until somebody uploads them: the definition without a value."""
    return {name: _value(definition) for name, definition in definitions.items() if definition.user_defined}


def regenerated_certificates(stored: Mapping[str, Secret], inputs: Inputs) -> dict[str, Secret]:
    """New values for all shared, generated certificate secrets, as after a package update.

    They are made from the stored certificates and so keep the expiry of their first issue.
    """
    return {
        name: generate_secret(name, secret, uuid=None, marble_name="", inputs=inputs)
        for name, secret in stored.items()
        if secret.shared and not secret.user_defined and secret.type != SecretType.SYMMETRIC_KEY
    }


def random_uuid(entropy: Entropy) -> UUID:
    """A random (version 4) UUID."""
    return UUID(bytes=entropy.token(16), version=4)
