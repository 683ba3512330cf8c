"""Mints a whole DCAP hierarchy in memory: root, PCK CA, PCK, TCB signer, QE, quote and collateral. For tests only.

Change one field of :class:`Dcap` and :meth:`Dcap.mint` gives evidence that is right in everything else. Keys are made
anew for each hierarchy. It shares no code with what it tests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from marblerun.attestation.model import Collateral, Origin, TrustRoot

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
MRSIGNER_QE = "8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff"
SGX_OID = "1.2.840.113741.1.13.1"


@dataclass(frozen=True)
class Minted:
    """Evidence, what vouches for it, and the root over both."""

    quote: bytes
    collateral: Collateral
    root: TrustRoot
    root_der: bytes


@dataclass(frozen=True)
class Dcap:
    """Everything that goes into a hierarchy; the defaults are a genuine, up-to-date SGX quote."""

    tdx: bool = False
    version: int = 3
    body_type: int = 3
    """Only for version 5: 1 SGX, 2 TD 1.0, 3 TD 1.5, 4 TD 1.5 extended."""
    ca: str = "Platform"
    names: dict[str, str] = field(default_factory=dict)
    """Other common names, by role: ``root``, ``ca``, ``pck``, ``signer``."""
    validity: dict[str, tuple[datetime, datetime]] = field(default_factory=dict)
    """Other periods, by role, and by ``root_crl``, ``pck_crl``, ``tcb_info``, ``qe_identity``."""
    revoked_by_root: tuple[str, ...] = ()
    """Roles whose serial numbers the root CRL lists."""
    also_revoked_by_root: tuple[int, ...] = ()
    """Further serial numbers."""
    pck_revoked: bool = False
    not_a_ca: bool = False
    pck_is_ca: bool = False
    root_path_length: int = 1
    critical_extension: str = ""
    """The role that gets a critical extension nobody knows."""
    critical_crl_extension: bool = False
    """The root CRL says, critically, that it is about authorities only."""
    fmspc: str = "00606a000000"
    pce_id: str = "0000"
    pck_svns: tuple[int, ...] = (5,) * 16
    pce_svn: int = 13
    tcb: dict[str, Any] = field(default_factory=dict)
    """Members of the TCB Info to replace."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Members of the QE identity to replace."""
    qe: dict[str, Any] = field(default_factory=dict)
    """Fields of the QE report to replace: see :func:`sgx_body`."""
    report: dict[str, Any] = field(default_factory=dict)
    """Fields of the report to replace: see :func:`sgx_body` and :func:`td_body`."""
    auth_data: bytes = bytes(range(32))
    foreign_attestation_key: bool = False
    """The quote is signed by a key that the QE report does not name."""
    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)
    """Keys to use instead of new ones, by role; from :func:`new_keys`."""
    sign_text: Callable[[str], str] = str
    """What happens to signed JSON after signing."""

    def mint(self) -> Minted:
        """The evidence and collateral of this description."""
        return _Mint(self).build()

    def with_(self, **changes: Any) -> Dcap:
        """The same with some fields changed."""
        return replace(self, **changes)


def new_keys() -> dict[str, ec.EllipticCurvePrivateKey]:
    """A new key for each role."""
    return {role: ec.generate_private_key(ec.SECP256R1()) for role in ("root", "ca", "pck", "signer", "qe")}


def level(svn: int, status: str, *, pce: int = 13, tdx: tuple[int, ...] | None = None, **more: Any) -> dict[str, Any]:
    """A platform level that asks for ``svn`` in all 16 components."""
    tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": svn}] * 16, "pcesvn": pce}
    if tdx is not None:
        tcb["tdxtcbcomponents"] = [{"svn": one} for one in tdx]
    return {"tcb": tcb, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": status, **more}


def isv_level(svn: int, status: str, **more: Any) -> dict[str, Any]:
    """A level of a QE or a TDX module."""
    return {"tcb": {"isvsvn": svn}, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": status, **more}


def module(version: int, *levels: dict[str, Any], mrsigner: str = "00" * 48) -> dict[str, Any]:
    """A TDX module identity."""
    return {
        "id": f"TDX_{version:02X}",
        "mrsigner": mrsigner,
        "attributes": "00" * 8,
        "attributesMask": "ff" * 8,
        "tcbLevels": list(levels),
    }


def sgx_body(**fields: Any) -> bytes:
    """A 384-byte SGX report body from named fields."""
    known: dict[str, tuple[int, bytes]] = {
        "cpusvn": (0, bytes(16)),
        "miscselect": (16, bytes(4)),
        "reserved_20": (20, bytes(12)),
        "attributes": (48, bytes.fromhex("0500000000000000e700000000000000")),
        "mrenclave": (64, b"\x11" * 32),
        "mrsigner": (128, b"\x22" * 32),
        "isv_prod_id": (256, (1).to_bytes(2, "little")),
        "isv_svn": (258, (2).to_bytes(2, "little")),
        "report_data": (320, bytes(64)),
    }
    body = bytearray(384)
    for name, (offset, default) in known.items():
        value = fields.pop(name, default)
        body[offset : offset + len(value)] = value
    assert not fields
    return bytes(body)


def td_body(size: int, **fields: Any) -> bytes:
    """A TD report body of 584, 648 or 885 bytes from named fields."""
    known: dict[str, tuple[int, bytes]] = {
        "tee_tcb_svn": (0, bytes([5, 1, 2]) + bytes(13)),
        "mrseam": (16, b"\x33" * 48),
        "mrsignerseam": (64, bytes(48)),
        "seam_attributes": (112, bytes(8)),
        "td_attributes": (120, bytes.fromhex("0000001000000000")),
        "xfam": (128, bytes.fromhex("e702060000000000")),
        "mrtd": (136, b"\x44" * 48),
        "report_data": (520, bytes(64)),
        "tee_tcb_svn2": (584, bytes([5, 1, 2]) + bytes(13)),
    }
    body = bytearray(885)
    for name, (offset, default) in known.items():
        value = fields.pop(name, default)
        body[offset : offset + len(value)] = value
    assert not fields
    return bytes(body[:size])


def raw_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key as ``x || y``."""
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """The signature as ``r || s``."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    return bytes([tag, 0x82]) + size.to_bytes(2, "big") + content


def _integer(value: int) -> bytes:
    return _tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _oid(dotted: str) -> bytes:
    der = x509.UnrecognizedExtension(x509.ObjectIdentifier(dotted), b"").oid
    first, second, *rest = map(int, der.dotted_string.split("."))
    encoded = bytes([first * 40 + second])
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return _tlv(6, encoded)


def _pair(dotted: str, value: bytes) -> bytes:
    return _tlv(0x30, _oid(dotted) + value)


def sgx_extension(svns: tuple[int, ...], pce_svn: int, pce_id: str, fmspc: str) -> bytes:
    """The value of the PCK certificate's SGX extension."""
    tcb = b"".join(_pair(f"{SGX_OID}.2.{i}", _integer(svn)) for i, svn in enumerate(svns, 1))
    tcb += _pair(f"{SGX_OID}.2.17", _integer(pce_svn)) + _pair(f"{SGX_OID}.2.18", _tlv(4, bytes(svns)))
    fields = _pair(f"{SGX_OID}.1", _tlv(4, b"\x55" * 16)) + _pair(f"{SGX_OID}.2", _tlv(0x30, tcb))
    fields += _pair(f"{SGX_OID}.3", _tlv(4, bytes.fromhex(pce_id)))
    fields += _pair(f"{SGX_OID}.4", _tlv(4, bytes.fromhex(fmspc))) + _pair(f"{SGX_OID}.5", _tlv(10, b"\x00"))
    return _tlv(0x30, fields)


class _Mint:
    def __init__(self, dcap: Dcap) -> None:
        self.dcap = dcap
        self.keys = new_keys() | dcap.keys
        self.serials = {role: x509.random_serial_number() for role in ("root", "ca", "pck", "signer")}
        self.common_names = {
            "root": "Forged SGX Root CA",
            "ca": f"Forged SGX PCK {dcap.ca} CA",
            "pck": "Forged SGX PCK Certificate",
            "signer": "Forged SGX TCB Signing",
        } | dcap.names

    def build(self) -> Minted:
        root = self._certificate("root", "root")
        ca = self._certificate("ca", "root")
        pck = self._certificate("pck", "ca")
        signer = self._certificate("signer", "root")
        tcb_info, tcb_signature = self._signed(self._tcb_info())
        identity, identity_signature = self._signed(self._identity())
        revoked = tuple(self.serials[role] for role in self.dcap.revoked_by_root) + self.dcap.also_revoked_by_root
        collateral = Collateral(
            pck_crl_issuer_chain=ca + root,
            root_ca_crl=self._crl("root", "root_crl", revoked),
            pck_crl=self._crl("ca", "pck_crl", (self.serials["pck"],) if self.dcap.pck_revoked else ()),
            tcb_info_issuer_chain=signer + root,
            tcb_info=tcb_info,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=signer + root,
            qe_identity=identity,
            qe_identity_signature=identity_signature,
        )
        root_der = x509.load_pem_x509_certificate(root.encode()).public_bytes(Encoding.DER)
        spki = self.keys["root"].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        trusted = TrustRoot("forged", hashlib.sha256(spki).digest(), Origin.SIMULATED)
        return Minted(self._quote((pck + ca + root).encode() + b"\x00"), collateral, trusted, root_der)

    def _name(self, role: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.common_names[role])])

    def _period(self, what: str) -> tuple[datetime, datetime]:
        return self.dcap.validity.get(what, (NOW - timedelta(days=10), NOW + timedelta(days=20)))

    def _certificate(self, role: str, issuer: str) -> str:
        authority = (role in ("root", "ca") and not (role == "ca" and self.dcap.not_a_ca)) or (
            role == "pck" and self.dcap.pck_is_ca
        )
        before, after = self._period(role)
        builder = (
            x509.CertificateBuilder(self._name(issuer), self._name(role), self.keys[role].public_key())
            .serial_number(self.serials[role])
            .not_valid_before(before)
            .not_valid_after(after)
            .add_extension(_key_usage(authority), critical=True)
        )
        length = (self.dcap.root_path_length if role == "root" else 0) if authority else None
        builder = builder.add_extension(x509.BasicConstraints(authority, length), critical=True)
        if role == "pck":
            value = sgx_extension(self.dcap.pck_svns, self.dcap.pce_svn, self.dcap.pce_id, self.dcap.fmspc)
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_OID), value), critical=False
            )
        if role == self.dcap.critical_extension:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
            builder = builder.add_extension(unknown, critical=True)
        return builder.sign(self.keys[issuer], hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def _crl(self, issuer: str, what: str, serials: tuple[int, ...]) -> bytes:
        before, after = self._period(what)
        builder = x509.CertificateRevocationListBuilder(self._name(issuer), before, after)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(before).build()
            builder = builder.add_revoked_certificate(entry)
        builder = builder.add_extension(x509.CRLNumber(1), critical=False)
        if self.dcap.critical_crl_extension and issuer == "root":
            scope = x509.IssuingDistributionPoint(None, None, False, True, None, False, False)
            builder = builder.add_extension(scope, critical=True)
        return builder.sign(self.keys[issuer], hashes.SHA256()).public_bytes(Encoding.DER)

    def _times(self, what: str) -> dict[str, str]:
        before, after = self._period(what)
        return {"issueDate": f"{before:%Y-%m-%dT%H:%M:%SZ}", "nextUpdate": f"{after:%Y-%m-%dT%H:%M:%SZ}"}

    def _tcb_info(self) -> dict[str, Any]:
        tdx_svns = (5, 0, 2) + (0,) * 13
        info: dict[str, Any] = {
            "id": "TDX" if self.dcap.tdx else "SGX",
            "version": 3,
            **self._times("tcb_info"),
            "fmspc": self.dcap.fmspc,
            "pceId": self.dcap.pce_id,
            "tcbType": 0,
            "tcbEvaluationDataNumber": 17,
            "tcbLevels": [level(5, "UpToDate", tdx=tdx_svns if self.dcap.tdx else None)],
        }
        if self.dcap.tdx:
            info["tdxModule"] = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8}
            info["tdxModuleIdentities"] = [module(1, isv_level(5, "UpToDate"), isv_level(2, "OutOfDate"))]
        return {"tcbInfo": info | self.dcap.tcb}

    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {
            "id": "TD_QE" if self.dcap.tdx else "QE",
            "version": 2,
            **self._times("qe_identity"),
            "tcbEvaluationDataNumber": 17,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": MRSIGNER_QE,
            "isvprodid": 1,
            "tcbLevels": [isv_level(8, "UpToDate"), isv_level(6, "OutOfDate", advisoryIDs=["INTEL-SA-QE"])],
        }
        return {"enclaveIdentity": identity | self.dcap.identity}

    def _signed(self, wrapped: dict[str, Any]) -> tuple[str, bytes]:
        (members,) = wrapped.values()
        text = json.dumps(members, separators=(",", ":"))
        return self.dcap.sign_text(text), raw_signature(self.keys["signer"], text.encode())

    def _body(self) -> bytes:
        if not self.dcap.tdx:
            return sgx_body(**self.dcap.report)
        size = 584 if self.dcap.version == 4 else {2: 584, 3: 648, 4: 885}[self.dcap.body_type]
        return td_body(size, **self.dcap.report)

    def _quote(self, chain: bytes) -> bytes:
        dcap, key = self.dcap, raw_key(self.keys["qe"])
        versioned = dcap.version >= 4
        header = dcap.version.to_bytes(2, "little") + b"\x02\x00" + (0x81 if dcap.tdx else 0).to_bytes(4, "little")
        header += bytes(4) if versioned else b"\x08\x00\x0d\x00"
        header += bytes.fromhex("939a7233f79c4ca9940a0db3957f0607") + bytes(20)
        body = self._body()
        if dcap.version == 5:
            header += dcap.body_type.to_bytes(2, "little") + len(body).to_bytes(4, "little")
        qe_fields = {
            "attributes": bytes.fromhex("1500000000000000e700000000000000"),
            "mrsigner": bytes.fromhex(MRSIGNER_QE),
            "isv_svn": (8).to_bytes(2, "little"),
            "report_data": hashlib.sha256(key + dcap.auth_data).digest() + bytes(32),
        } | dcap.qe
        qe_report = sgx_body(**qe_fields)
        inner = qe_report + raw_signature(self.keys["pck"], qe_report)
        inner += len(dcap.auth_data).to_bytes(2, "little") + dcap.auth_data
        inner += (5).to_bytes(2, "little") + len(chain).to_bytes(4, "little") + chain
        if versioned:
            inner = (6).to_bytes(2, "little") + len(inner).to_bytes(4, "little") + inner
        signer = ec.generate_private_key(ec.SECP256R1()) if dcap.foreign_attestation_key else self.keys["qe"]
        signature_data = raw_signature(signer, header + body) + key + inner
        return header + body + len(signature_data).to_bytes(4, "little") + signature_data


def _key_usage(authority: bool) -> x509.KeyUsage:
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
