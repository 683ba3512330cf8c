"""What the reference accepts at first and then fails on while it sets the manifest, told before anything is stored.

Source: protocol, sections 5.6 (end), 6.3 to 6.5, 8.1 and 10.3; what Go's generator refuses in a template: section 5.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from marblerun.errors import Malformed
from marblerun.manifest.model import Manifest
from marblerun.manifest.report import Problem, Report
from marblerun.pki import extensions
from marblerun.pki.names import encode_name
from marblerun.pki.profiles import CertificateTemplate
from marblerun.secrets.generate import MAX_RSA_BITS, MAX_SHARED_KEY_BYTES, MIN_RSA_BITS
from marblerun.secrets.given import RSA, read_given_certificate, read_given_public_key
from marblerun.secrets.model import SecretDefinition, SecretType
from marblerun.secrets.uris import is_uri_name
from marblerun.wire.gopem import first_block

# HKDF with SHA-256 gives at most 255 blocks of 32 bytes; private keys are derived with it.
MAX_PRIVATE_KEY_BITS: Final = 255 * 32 * 8
ECDSA_BITS: Final = (224, 256, 384, 521)
# Go's numbers of ECDSA with SHA-256, SHA-384 and SHA-512; 0 lets the signer choose. The signer's key is ECDSA.
SIGNATURE_ALGORITHMS: Final = (0, 10, 11, 12)
# Counted from 2026, so many days end after the year 9999, the last that a certificate can state.
MAX_VALID_FOR_DAYS: Final = 2_913_000


def check_material(manifest: Manifest) -> Report:
    """Keys, certificates and sizes that cannot work, in the order in which setting the manifest would meet them.

    1. generated secrets  2. recovery keys  3. users
    """
    steps = (_secrets(manifest), _recovery_keys(manifest), _users(manifest))
    return Report.of(problem for step in steps for problem in step)


def certificate_der(pem: str) -> bytes:
    """The certificate that a user's PEM text stands for: its first block, whatever the label. Raises Malformed."""
    block = first_block(pem)
    if block is None:
        raise Malformed("contains no PEM block")
    return read_given_certificate(block.data).der


def recovery_key(pem: str) -> rsa.RSAPublicKey:
    """The RSA key of a recovery key's PEM text: first block, ``PUBLIC KEY``, at least 1024 bits. Raises Malformed."""
    block = first_block(pem)
    if block is None:
        raise Malformed("contains no PEM block")
    if block.label != "PUBLIC KEY":
        raise Malformed(f"PEM block is a {block.label[:40] or 'block without a label'}, not a PUBLIC KEY")
    try:
        algorithm = read_given_public_key(block.data)
        key = load_der_public_key(block.data)
    except (Malformed, ValueError, UnsupportedAlgorithm) as error:
        raise Malformed("PEM block does not hold a public key (PKIX)") from error
    if not isinstance(key, rsa.RSAPublicKey) or algorithm != RSA:
        raise Malformed("key is not an RSA key")
    if key.key_size < MIN_RSA_BITS:
        raise Malformed(f"RSA key of {key.key_size} bits is too small, at least {MIN_RSA_BITS} are needed")
    return key


def _secrets(manifest: Manifest) -> Iterator[Problem]:
    for name, secret in sorted(manifest.secrets.items()):
        path = f"Secrets.{name}"
        if secret.user_defined:
            if secret.type == SecretType.SYMMETRIC_KEY and _size_fault(secret):
                yield Problem(
                    f"{path}.Size",
                    f"no value can ever be uploaded for secret {name}",
                    found=str(secret.size),
                    expected="a positive multiple of 8",
                    code="secret-size",
                    warning=True,
                )
            continue
        if secret.type == SecretType.PLAIN:
            yield Problem(
                path,
                f"secret {name} of type plain cannot be generated: unsupported type",
                found="UserDefined: false",
                expected="UserDefined: true",
                hint="plain secrets are uploaded by users; to have one generated use symmetric-key",
                code="secret-plain",
            )
        if fault := _size_fault(secret):
            yield Problem(
                f"{path}.Size",
                f"secret {name} has an unsuitable size",
                found=str(secret.size),
                expected=fault,
                code="secret-size",
            )
        if secret.type in (SecretType.CERT_RSA, SecretType.CERT_ECDSA, SecretType.CERT_ED25519):
            yield from _certificate(name, secret)


def _size_fault(secret: SecretDefinition) -> str:
    """What the size should have been; empty if it is right."""
    size = secret.size
    match secret.type:
        case SecretType.SYMMETRIC_KEY:
            if size <= 0 or size % 8:
                return "a positive multiple of 8 (bits)"
            if size > MAX_PRIVATE_KEY_BITS and not secret.shared and not secret.user_defined:
                return f"at most {MAX_PRIVATE_KEY_BITS} bits for a key that is derived"
            if size > MAX_SHARED_KEY_BYTES * 8 and not secret.user_defined:
                return f"at most {MAX_SHARED_KEY_BYTES * 8} bits (1 MiB)"
        case SecretType.CERT_RSA if size < MIN_RSA_BITS:
            return f"at least {MIN_RSA_BITS} bits, better 3072"
        case SecretType.CERT_RSA if size > MAX_RSA_BITS:
            return f"at most {MAX_RSA_BITS} bits; larger keys take minutes to make"
        case SecretType.CERT_ECDSA if size not in ECDSA_BITS:
            return "one of 224, 256, 384, 521"
        case SecretType.CERT_ED25519 if size:
            return "no Size, an Ed25519 key has only one"
    return ""


def _certificate(name: str, secret: SecretDefinition) -> Iterator[Problem]:
    path = f"Secrets.{name}"
    if secret.valid_for > MAX_VALID_FOR_DAYS:
        yield Problem(
            f"{path}.ValidFor",
            f"secret {name} would be valid beyond the year 9999",
            found=f"{secret.valid_for} days",
            expected=f"at most {MAX_VALID_FOR_DAYS}",
            code="secret-validity",
        )
    if secret.template is None:
        return
    for fault in _template_faults(secret.template):
        yield Problem(
            f"{path}.Cert.{fault.where}" if fault.where else f"{path}.Cert",
            f"no certificate can be made from Cert of secret {name}: {fault.message}",
            code="secret-template",
        )


def _template_faults(template: CertificateTemplate) -> Iterator[Malformed]:
    if template.signature_algorithm not in SIGNATURE_ALGORITHMS:
        yield Malformed(
            f"signature algorithm {template.signature_algorithm} is not one of the issuer's key (0, 10, 11 or 12)",
            where="SignatureAlgorithm",
        )
    for uri in template.uris or ():
        if uri.isascii() and not is_uri_name(uri):
            yield Malformed(f"not a URI that a certificate can have: {uri[:80]!r}", where="URIs")
    if len(set(template.policies)) < len(template.policies):
        yield Malformed("a policy is named twice", where="Policies")
    try:
        encode_name(template.subject)
    except Malformed as error:
        yield Malformed(error.message, where="Subject")
    try:
        extensions.from_template(template, critical_names=False, key_id=b"", authority_id=b"")
    except Malformed as error:
        yield error


def _recovery_keys(manifest: Manifest) -> Iterator[Problem]:
    for name, pem in sorted(manifest.recovery_keys.items()):
        try:
            recovery_key(pem)
        except Malformed as error:
            yield Problem(
                f"RecoveryKeys.{name}",
                f"recovery key {name} cannot be used: {error}",
                expected="a PEM block PUBLIC KEY with an RSA key",
                hint="make one with: openssl rsa -in private.pem -pubout",
                code="recovery-key",
            )


def _users(manifest: Manifest) -> Iterator[Problem]:
    owners: dict[bytes, str] = {}
    for name, user in sorted(manifest.users.items()):
        if not user.certificate:
            continue  # told by check_manifest
        path = f"Users.{name}.Certificate"
        try:
            der = certificate_der(user.certificate)
        except Malformed as error:
            yield Problem(
                path,
                f"certificate of user {name} cannot be read: {error}",
                expected="a certificate in PEM",
                hint="in JSON its line breaks are written as \\n",
                code="user-certificate",
            )
            continue
        other = owners.setdefault(der, name)
        if other != name and manifest.users[other].certificate != user.certificate:
            yield Problem(
                path,
                f"users {other} and {name} have the same certificate, written differently",
                hint="whoever shows it is taken for one of them",
                code="user-certificate-shared",
                warning=True,
            )
