"""A certificate hierarchy in the exact shape of Intel's, under a root of our own.

Four certificates: root, PCK CA, PCK leaf, TCB signer. Shapes, extension order and key usages are those of the
hardware's hierarchy, so that one verifier judges both; only the names say that no hardware stands behind it.

Source: formats, section 3; Intel SGX PCK Certificate and CRL Profile Specification, revision 1.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from marblerun.attestation.model import Platform
from marblerun.attestation.simulated import der
from marblerun.attestation.simulated.entropy import Entropy

SGX_EXTENSION_OID: Final = "1.2.840.113741.1.13.1"
# A machine with a wrong clock shall still find the certificates valid.
BACKDATED_BY: Final = timedelta(days=1)
LIFETIME: Final = timedelta(days=30 * 365)
# ".invalid" never resolves (RFC 6761): a verifier that follows distribution points fails at once.
CRL_HOST: Final = "https://simulated-platform.invalid"

Role = Literal["root", "pck-ca", "pck", "tcb-signer"]


@dataclass(frozen=True, slots=True)
class Names:
    """Subject names of a hierarchy.

    Intel's quote verification library looks for "SGX Root CA", "CA", "SGX PCK Certificate" and "SGX TCB Signing"
    in the common names (formats, section 14); our verifier wants the names to end like Intel's.
    """

    root: str = "Simulated SGX Root CA"
    pck_ca: str = "Simulated SGX PCK {ca} CA"
    pck: str = "Simulated SGX PCK Certificate"
    tcb_signer: str = "Simulated SGX TCB Signing"
    organization: str = "Simulation, not hardware"
    locality: str = "Nowhere"
    province: str = "None"
    country: str = "ZZ"
    """ISO 3166 keeps ZZ free for private use."""

    def subject(self, common_name: str) -> x509.Name:
        """The distinguished name, attributes in the order of Intel's certificates."""
        return x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, common_name),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.organization),
                x509.NameAttribute(NameOID.LOCALITY_NAME, self.locality),
                x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, self.province),
                x509.NameAttribute(NameOID.COUNTRY_NAME, self.country),
            ]
        )


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate with the private key that belongs to it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def pem(self) -> str:
        """The certificate as PEM text with a final newline."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Everything a provisioning service and a platform hold between them."""

    root: Signer
    pck_ca: Signer
    tcb_signer: Signer
    pck: Signer
    platform: Platform

    @property
    def root_der(self) -> bytes:
        """The root certificate, DER."""
        return self.root.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pck_chain(self) -> str:
        """PEM text: PCK leaf, PCK CA, root; what a quote carries."""
        return self.pck.pem + self.pck_ca.pem + self.root.pem

    @property
    def pck_crl_issuer_chain(self) -> str:
        """PEM text: PCK CA, root."""
        return self.pck_ca.pem + self.root.pem

    @property
    def tcb_signer_chain(self) -> str:
        """PEM text: TCB signer, root."""
        return self.tcb_signer.pem + self.root.pem


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA with SHA-256 over ``data``: 64 bytes ``r || s``, big-endian, as quotes and collateral carry it."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def public_point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key as 64 bytes ``x || y``, big-endian, without the 04 prefix."""
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def mint_hierarchy(platform: Platform, *, at: datetime, entropy: Entropy, names: Names | None = None) -> Hierarchy:
    """New keys and the four certificates for one platform, valid from a day before ``at`` for thirty years."""
    names = names or Names()
    valid = (at - BACKDATED_BY, at + LIFETIME)
    ca_name = names.pck_ca.format(ca=platform.ca.capitalize())

    def issue(role: Role, common_name: str, issuer: Signer | None) -> Signer:
        key = entropy.ec_key(ec.SECP256R1())
        extension = sgx_extension(platform) if role == "pck" else None
        return issue_certificate(
            role,
            names.subject(common_name),
            key,
            issuer,
            valid=valid,
            serial=new_serial(entropy),
            crl_url=f"{CRL_HOST}/pck-{platform.ca}.crl" if role == "pck" else f"{CRL_HOST}/root-ca.crl",
            extension=extension,
        )

    root = issue("root", names.root, None)
    pck_ca = issue("pck-ca", ca_name, root)
    tcb_signer = issue("tcb-signer", names.tcb_signer, root)
    return Hierarchy(root, pck_ca, tcb_signer, issue("pck", names.pck, pck_ca), platform)


def new_platform(fmspc: bytes, ca: str, *, entropy: Entropy) -> Platform:
    """A machine that never was: PCK CA ``platform`` or ``processor``, a random PPID, plausible SVNs."""
    multi_package = ca == "platform"
    return Platform(
        fmspc=fmspc,
        pce_id=bytes(2),
        pce_svn=13,
        cpu_svns=bytes((7, 9, 3, 3, 255, 255, *bytes(10))),
        ca=ca,
        ppid=entropy.token(16),
        platform_instance_id=entropy.token(16) if multi_package else None,
        sgx_type=1 if multi_package else 0,
        dynamic_platform=False if multi_package else None,
        cached_keys=False if multi_package else None,
        smt_enabled=False if multi_package else None,
    )


def new_serial(entropy: Entropy) -> int:
    """A random positive serial number of exactly 20 bytes."""
    return int.from_bytes(entropy.token(20), "big") >> 2 | 1 << 158


def issue_certificate(
    role: Role,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: Signer | None,
    *,
    valid: tuple[datetime, datetime],
    serial: int,
    crl_url: str,
    extension: bytes | None = None,
) -> Signer:
    """One certificate in the shape of its role; ``issuer`` None makes it self-signed.

    Extensions come in the order of Intel's certificates. ``extension`` is the DER value of the SGX extension.
    Source: formats, section 3.1.
    """
    signing_key = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
        .add_extension(_distribution_points(crl_url), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_key_usage(authority=role in ("root", "pck-ca")), critical=True)
        .add_extension(_basic_constraints(role), critical=True)
    )
    if extension is not None:
        oid = x509.ObjectIdentifier(SGX_EXTENSION_OID)
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, extension), critical=False)
    return Signer(builder.sign(signing_key, hashes.SHA256()), key)


def _distribution_points(url: str) -> x509.CRLDistributionPoints:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return x509.CRLDistributionPoints([point])


def _basic_constraints(role: Role) -> x509.BasicConstraints:
    path_length = {"root": 1, "pck-ca": 0}.get(role)
    return x509.BasicConstraints(ca=path_length is not None, path_length=path_length)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def sgx_extension(platform: Platform) -> bytes:
    """The DER value of the SGX extension that names a platform in its PCK certificate.

    A platform of the Platform CA also has an instance id and three configuration flags.
    Source: formats, section 3.2.
    """
    base = SGX_EXTENSION_OID

    def pair(suffix: str, value: bytes) -> bytes:
        return der.sequence(der.oid(f"{base}.{suffix}"), value)

    components = [pair(f"2.{i}", der.integer(svn)) for i, svn in enumerate(platform.cpu_svns, 1)]
    tcb = der.sequence(
        *components, pair("2.17", der.integer(platform.pce_svn)), pair("2.18", der.octet_string(platform.cpu_svns))
    )
    items = [
        pair("1", der.octet_string(platform.ppid)),
        pair("2", tcb),
        pair("3", der.octet_string(platform.pce_id)),
        pair("4", der.octet_string(platform.fmspc)),
        pair("5", der.enumerated(platform.sgx_type)),
    ]
    if platform.ca == "platform":
        items.append(pair("6", der.octet_string(platform.platform_instance_id or bytes(16))))
        flags = (platform.dynamic_platform, platform.cached_keys, platform.smt_enabled)
        items.append(pair("7", der.sequence(*(pair(f"7.{i}", der.boolean(bool(f))) for i, f in enumerate(flags, 1)))))
    return der.sequence(*items)
