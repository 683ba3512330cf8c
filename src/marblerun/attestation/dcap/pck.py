"""The PCK certificate: which platform it names, and the chain that vouches for it.

Source: formats, sections 3.1 and 3.2 (Intel SGX PCK Certificate and CRL Profile Specification, table of SGX
extensions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from marblerun.attestation.dcap.certificates import (
    Certificate,
    CertificateMemory,
    named,
    parsing,
    read_chain,
    verify_intermediate,
    verify_leaf,
    verify_root,
)
from marblerun.attestation.dcap.completion import pck_query, read_lone_leaf, unsupported
from marblerun.attestation.dcap.quote import (
    ENCRYPTED_PPID_RSA_2048,
    ENCRYPTED_PPID_RSA_3072,
    PCK_CHAIN,
    PCK_LEAF,
    PLAIN_PPID,
    PLATFORM_MANIFEST,
    CertificationData,
    Quote,
)
from marblerun.attestation.dcap.validity import Validity
from marblerun.attestation.model import CollateralKey, Platform, TrustRoot
from marblerun.errors import Malformed, Untrusted
from marblerun.wire import der

STEP: Final = "pck-chain"
_CHAIN: Final = "the PCK chain"
ROOT_NAME: Final = "SGX Root CA"
LEAF_NAME: Final = "SGX PCK Certificate"
CA_NAMES: Final = {"processor": "SGX PCK Processor CA", "platform": "SGX PCK Platform CA"}

_SGX: Final = "1.2.840.113741.1.13.1"
_SGX_OID: Final = bytes.fromhex("2a864886f84d010d01")
_COMPONENTS: Final = 16
_DESCRIPTIONS: Final = {
    PLAIN_PPID: "PPID; the PCK certificate has to be asked for",
    ENCRYPTED_PPID_RSA_2048: "PPID encrypted with RSA-2048; the PCK certificate has to be asked for",
    ENCRYPTED_PPID_RSA_3072: "PPID encrypted with RSA-3072; the PCK certificate has to be asked for",
    PCK_LEAF: "PCK certificate without its chain",
    PCK_CHAIN: "PCK certificate chain",
    PLATFORM_MANIFEST: "platform manifest",
}


@dataclass(frozen=True, slots=True, eq=False)
class PckChain:
    """A PCK certificate with its chain, signatures checked; dates and revocation are asked on every use."""

    leaf: Certificate
    ca: Certificate
    root: Certificate
    trusted: TrustRoot
    platform: Platform

    @property
    def validities(self) -> tuple[Validity, ...]:
        """When each certificate is valid, root first."""
        what = f"a certificate of {_CHAIN}"
        return tuple(one.validity(STEP, what) for one in (self.root, self.ca, self.leaf))


def verify_pck_chain(
    certification: CertificationData, roots: Sequence[TrustRoot], memory: CertificateMemory | None = None
) -> PckChain:
    """The chain in certification data of type 5: leaf, CA and root, signatures up to a trusted root.

    Untrusted of step ``certification-data`` for a type that holds no chain, of ``pck-chain`` for anything else.
    """
    chain = read_chain(_chain_pem(certification), STEP, _CHAIN, memory)
    root = named(chain, ROOT_NAME, STEP, _CHAIN)
    leaf = named(chain, LEAF_NAME, STEP, _CHAIN)
    ca_kind, ca = _ca(chain, leaf)
    trusted = verify_root(root, roots, STEP, memory)
    verify_intermediate(ca, root, STEP, memory)
    verify_leaf(leaf, ca, STEP, memory)
    return PckChain(leaf=leaf, ca=ca, root=root, trusted=trusted, platform=read_platform(leaf, ca_kind))


def collateral_key(quote: Quote, memory: CertificateMemory | None = None) -> CollateralKey:
    """Which collateral belongs to ``quote``: its TEE, and FMSPC and CA of its PCK certificate, not yet trusted.

    For certification data of types 1 to 3 how to ask for that certificate instead. Untrusted of step
    ``certification-data`` if nothing leads to one, or if a lone certificate cannot be read; of ``pck-chain`` if one in
    a chain cannot. Rule 7.2.1.
    """
    query = pck_query(quote)
    if query is not None:
        return CollateralKey(tee=quote.tee, fmspc=b"", ca="", pck=query)
    leaf, kind = _unverified_leaf(quote.certification, memory)
    return CollateralKey(tee=quote.tee, fmspc=read_platform(leaf, kind).fmspc, ca=kind)


def platform_of_chain(chain: str, roots: Sequence[TrustRoot] = ()) -> Platform:
    """The platform that a PCK certificate chain in PEM names; Untrusted if it cannot be read.

    With ``roots``, its signatures must lead to one of them; without, nothing is verified.
    """
    certification = CertificationData(PCK_CHAIN, chain.encode("ascii", "replace"))
    if roots:
        return verify_pck_chain(certification, roots).platform
    return read_platform(*_unverified_leaf(certification))


@dataclass(frozen=True, slots=True)
class CertificationSummary:
    """What certification data claims, for showing; ``platform`` and ``valid`` of the PCK certificate, if readable."""

    description: str
    platform: Platform | None = None
    valid: tuple[datetime, datetime] | None = None


def summarise_certification(certification: CertificationData) -> CertificationSummary:
    """What the certification data says, nothing verified; never raises over its content."""
    description = _DESCRIPTIONS[certification.type]
    if certification.type not in (PCK_LEAF, PCK_CHAIN):
        return CertificationSummary(description)
    try:
        leaf, kind = _unverified_leaf(certification)
        platform = read_platform(leaf, kind)
    except Untrusted as error:
        return CertificationSummary(f"{description}, unreadable: {error.message}")
    return CertificationSummary(description, platform, (leaf.not_before, leaf.not_after))


def _unverified_leaf(
    certification: CertificationData, memory: CertificateMemory | None = None
) -> tuple[Certificate, str]:
    if certification.type == PCK_LEAF:
        leaf = read_lone_leaf(certification, memory)
    else:
        chain = read_chain(_chain_pem(certification), STEP, _CHAIN, memory)
        leaf = named(chain, LEAF_NAME, STEP, _CHAIN)
    return leaf, _ca_kind(leaf)


def _chain_pem(certification: CertificationData) -> bytes:
    if certification.type != PCK_CHAIN:
        raise unsupported(certification)
    # Most producers end the text with a NUL, some do not (formats, section 1.4); some pad it with several.
    return certification.data.rstrip(b"\x00")


def _ca(chain: Sequence[Certificate], leaf: Certificate) -> tuple[str, Certificate]:
    kind = _ca_kind(leaf)
    return kind, named(chain, CA_NAMES[kind], STEP, _CHAIN)


def _ca_kind(leaf: Certificate) -> str:
    for kind, name in CA_NAMES.items():
        if name in leaf.issuer_common_name:
            return kind
    raise Untrusted(f"the PCK certificate names {leaf.issuer_common_name!r} as issuer", step=STEP, reason="mismatch")


def read_platform(leaf: Certificate, ca: str) -> Platform:
    """The platform that the SGX extension of a PCK certificate names; Untrusted if it is missing or malformed."""
    if leaf.sgx_extension is None:
        raise Untrusted("the PCK certificate has no SGX extension", step=STEP, reason="missing")
    with parsing(STEP, "the SGX extension"):
        return parse_sgx_extension(leaf.sgx_extension, ca)


def parse_sgx_extension(extension: bytes, ca: str) -> Platform:
    """The platform in the value of the extension 1.2.840.113741.1.13.1; Malformed for anything else.

    Rules 3.2.1 (all fields, each once, 16 components) and 3.2.2 (their types, sizes and ranges).
    """
    fields = _pairs(der.single(extension), _SGX, _SGX_OID, limit=16)
    tcb = _pairs(_required(fields, 2), f"{_SGX}.2", _SGX_OID + b"\x02", limit=_COMPONENTS + 2)
    components = bytes(_required(tcb, i + 1).unsigned(der.INTEGER, "SVN", limit=255) for i in range(_COMPONENTS))
    _required(tcb, 18).octets(16, "CPUSVN")
    configuration = _pairs(fields[7], f"{_SGX}.7", _SGX_OID + b"\x07", limit=8) if 7 in fields else {}
    return Platform(
        fmspc=_required(fields, 4).octets(6, "FMSPC"),
        pce_id=_required(fields, 3).octets(2, "PCEID"),
        pce_svn=_required(tcb, 17).unsigned(der.INTEGER, "PCESVN", limit=0xFFFF),
        cpu_svns=components,
        ca=ca,
        ppid=_required(fields, 1).octets(16, "PPID"),
        platform_instance_id=fields[6].octets(16, "platform instance id") if 6 in fields else None,
        sgx_type=_required(fields, 5).unsigned(der.ENUMERATED, "SGX type", limit=255),
        dynamic_platform=_flag(configuration, 1),
        cached_keys=_flag(configuration, 2),
        smt_enabled=_flag(configuration, 3),
    )


def _flag(configuration: dict[int, der.Element], number: int) -> bool | None:
    element = configuration.get(number)
    return None if element is None else element.boolean(f"configuration {number}")


def _required(fields: dict[int, der.Element], number: int) -> der.Element:
    if number not in fields:
        raise Malformed(f"field {number} is missing", where="SGX extension")
    return fields[number]


def _pairs(sequence: der.Element, prefix: str, stem: bytes, *, limit: int) -> dict[int, der.Element]:
    """A SEQUENCE OF SEQUENCE {OID, value} as values by the number behind ``prefix``; each at most once.

    ``stem`` is ``prefix`` as it is encoded.
    """
    pairs: dict[int, der.Element] = {}
    for pair in der.elements(sequence.expect(der.SEQUENCE, prefix), limit=limit):
        members = der.elements(pair.expect(der.SEQUENCE, prefix), limit=2)
        if len(members) != 2:
            raise Malformed("a field without value", where="SGX extension")
        number = _number_behind(members[0], prefix, stem)
        if number in pairs:
            raise Malformed(f"field {prefix}.{number} is there twice", where="SGX extension")
        pairs[number] = members[1]
    return pairs


def _number_behind(oid: der.Element, prefix: str, stem: bytes) -> int:
    encoded = oid.expect(der.OBJECT_IDENTIFIER, prefix)
    if encoded[:-1] == stem and encoded[-1] < 0x80:  # all that the vendor has; the rest is for the sake of the message
        return encoded[-1]
    before, _, last = oid.oid(prefix).rpartition(".")
    if before != prefix:
        raise Malformed(f"field {before}.{last} is unexpected", where="SGX extension")
    return int(last)
