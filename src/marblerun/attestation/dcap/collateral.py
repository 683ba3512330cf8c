"""Collateral: its JSON form, and the check that a trusted root stands behind all of it.

Source: formats, sections 4 to 7; the JSON form is that of the nine fields of ``sgx_ql_qve_collateral_t``, chains and
signed texts as text, CRLs and signatures in hex.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from marblerun.attestation.dcap import qe, tcb
from marblerun.attestation.dcap.certificates import (
    Certificate,
    CertificateMemory,
    named,
    read_chain,
    verify_intermediate,
    verify_leaf,
    verify_root,
)
from marblerun.attestation.dcap.crl import RevocationList, read_crl
from marblerun.attestation.dcap.pck import CA_NAMES, ROOT_NAME
from marblerun.attestation.dcap.signatures import verify_raw_signature
from marblerun.attestation.dcap.validity import Validity
from marblerun.attestation.model import Collateral, TrustRoot
from marblerun.errors import Malformed, Untrusted
from marblerun.wire.limits import MAX_COLLATERAL_FIELD_BYTES

SIGNER_NAME: Final = "SGX TCB Signing"
_CA_NAME: Final = "SGX PCK"
MAX_SIGNED: Final = 64
"""CRLs, TCB Infos and identities remembered, of each kind; one is 1 to 30 KB in practice."""
MAX_COLLATERAL_JSON_BYTES: Final = 9 * MAX_COLLATERAL_FIELD_BYTES
_CHAIN_FIELD: Final = "pck_certificate_chain"
_FIELDS: Final = tuple(field.name for field in fields(Collateral) if field.name != _CHAIN_FIELD)
_HEX_FIELDS: Final = frozenset({"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"})


def parse_collateral_json(text: str | bytes) -> Collateral:
    """The collateral in ``text``, a JSON object of the nine fields and, for evidence that does not carry it, the
    machine's ``pck_certificate_chain``; other members are ignored.

    Raises Malformed for anything else, and for a field of more than 1 MiB. Nothing is trusted yet.
    """
    if len(text) > MAX_COLLATERAL_JSON_BYTES:
        raise Malformed(f"more than {MAX_COLLATERAL_JSON_BYTES} bytes", where="collateral")
    try:
        members = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}", where="collateral") from error
    if not isinstance(members, dict):
        raise Malformed("not a JSON object", where="collateral")
    chain = members.get(_CHAIN_FIELD)
    return Collateral(
        **{name: _parse_field(name, members.get(name)) for name in _FIELDS},
        pck_certificate_chain="" if chain is None else _parse_field(_CHAIN_FIELD, chain),
    )


def _parse_field(name: str, value: object) -> Any:
    where = f"collateral.{name}"
    if not isinstance(value, str):
        raise Malformed("missing" if value is None else "not a string", where=where)
    if len(value) > MAX_COLLATERAL_FIELD_BYTES:
        raise Malformed(f"more than {MAX_COLLATERAL_FIELD_BYTES} characters", where=where)
    if name not in _HEX_FIELDS:
        return value
    try:
        return bytes.fromhex(value)
    except ValueError as error:
        raise Malformed("not hexadecimal", where=where) from error


def collateral_to_json(collateral: Collateral) -> str:
    """The JSON object that :func:`parse_collateral_json` reads back as ``collateral``."""
    members = {name: getattr(collateral, name) for name in _FIELDS}
    if collateral.pck_certificate_chain:
        members[_CHAIN_FIELD] = collateral.pck_certificate_chain
    return json.dumps({name: value.hex() if isinstance(value, bytes) else value for name, value in members.items()})


@dataclass(frozen=True, slots=True, eq=False)
class VouchedCollateral:
    """Collateral with every signature checked up to one trusted root; its dates are asked on every use."""

    trusted: TrustRoot
    root_crl: RevocationList
    tcb_info: tcb.TcbInfo
    identity: qe.EnclaveIdentity
    pck_ca: Certificate
    pck_crl: RevocationList
    authorities: tuple[Certificate, ...]
    """The two signers and the PCK CA, which the root CRL may have revoked."""
    collateral_validities: tuple[Validity, ...]
    """Root, root CRL, signers, TCB Info, QE identity: in the order of steps 3 and 4."""
    pck_validities: tuple[Validity, ...]
    """PCK CA and PCK CRL: part of step 5."""

    @property
    def expires(self) -> datetime:
        """The first moment at which a part of it ends."""
        return min(one.not_after for one in (*self.collateral_validities, *self.pck_validities))


class CollateralMemory(CertificateMemory):
    """The same for CRLs and signed texts: they are shared by platforms, or renewed one by one.

    Only what its signer has signed is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crl: Callable[[bytes, Certificate, str, str], RevocationList] = lru_cache(MAX_SIGNED)(read_crl)
        self.tcb_info = lru_cache(MAX_SIGNED)(_verify_tcb_info)
        self.identity: Callable[[str, bytes, Certificate], qe.EnclaveIdentity] = lru_cache(MAX_SIGNED)(_verify_identity)


def verify_collateral(
    collateral: Collateral, roots: Sequence[TrustRoot], memory: CollateralMemory | None = None
) -> VouchedCollateral:
    """Who stands behind ``collateral``: the signature part of steps 3 and 4, and of step 5 for the PCK CRL.

    Untrusted naming the step if a signature, a name or the shape is wrong, or if not all of it is under one root.
    """
    memory = memory or CollateralMemory()
    # 3. root and root CRL
    what = "the TCB Info issuer chain"
    signer_chain = _Chain(collateral.tcb_info_issuer_chain, "tcb-signer", what, roots, memory)
    root, trusted = signer_chain.root, signer_chain.trusted
    root_crl = memory.crl(collateral.root_ca_crl, root, "root-crl", "the root CRL")
    # 4. the signers and what they signed
    signer = signer_chain.verify_leaf(SIGNER_NAME)
    if collateral.qe_identity_issuer_chain == collateral.tcb_info_issuer_chain:
        # As ever in practice; the same text needs no second look.
        identity_chain, identity_signer = signer_chain, signer
    else:
        what = "the QE identity issuer chain"
        identity_chain = _Chain(collateral.qe_identity_issuer_chain, "tcb-signer", what, roots, memory)
        identity_chain.verify_same_root(trusted)
        identity_signer = identity_chain.verify_leaf(SIGNER_NAME)
    tcb_info = memory.tcb_info(collateral.tcb_info, collateral.tcb_info_signature, signer)
    identity = memory.identity(collateral.qe_identity, collateral.qe_identity_signature, identity_signer)
    # 5. the PCK CA's own list
    ca_chain = _Chain(collateral.pck_crl_issuer_chain, "pck-crl", "the PCK CRL issuer chain", roots, memory)
    ca_chain.verify_same_root(trusted)
    ca = ca_chain.verify_authority(_CA_NAME)
    pck_crl = memory.crl(collateral.pck_crl, ca, "pck-crl", "the PCK CRL")
    return VouchedCollateral(
        trusted=trusted,
        root_crl=root_crl,
        tcb_info=tcb_info,
        identity=identity,
        pck_ca=ca,
        pck_crl=pck_crl,
        authorities=(signer, identity_signer, ca),
        collateral_validities=(
            signer_chain.validity_of(root),
            root_crl.validity,
            signer_chain.validity_of(signer),
            identity_chain.validity_of(identity_chain.root),
            identity_chain.validity_of(identity_signer),
            tcb_info.validity,
            identity.validity,
        ),
        pck_validities=(ca_chain.validity_of(ca_chain.root), ca_chain.validity_of(ca), pck_crl.validity),
    )


class _Chain:
    """An issuer chain of the collateral: one certificate and the root over it."""

    def __init__(self, pem: str, step: str, what: str, roots: Sequence[TrustRoot], memory: CertificateMemory) -> None:
        self.memory = memory
        self.step = step
        self.what = what
        try:
            encoded = pem.encode("ascii")
        except UnicodeEncodeError as error:
            raise Untrusted(f"{what} is not ASCII", step=step, reason="malformed") from error
        # Services that fill C strings count the NUL at their end.
        self.certificates = read_chain(encoded.rstrip(b"\x00"), step, what, memory)
        self.root = named(self.certificates, ROOT_NAME, step, what)
        self.trusted = verify_root(self.root, roots, step, memory)

    def validity_of(self, certificate: Certificate) -> Validity:
        """When a certificate of this chain is valid."""
        return certificate.validity(self.step, f"a certificate of {self.what}")

    def verify_same_root(self, trusted: TrustRoot) -> None:
        """Untrusted unless the chain ends in ``trusted``: no root vouches for another one's parts (rule 7.4.2)."""
        if self.trusted != trusted:
            raise Untrusted(f"{self.what} is under another root", step=self.step, reason="mismatch")

    def verify_leaf(self, name: str) -> Certificate:
        """The certificate called ``name``, which the root issued for signing data."""
        leaf = named(self.certificates, name, self.step, self.what)
        verify_leaf(leaf, self.root, self.step, self.memory)
        self.memory.keep(leaf)
        return leaf

    def verify_authority(self, name: str) -> Certificate:
        """The certificate called ``name``, which the root issued as an authority."""
        authority = named(self.certificates, name, self.step, self.what)
        if not any(kind in authority.common_name for kind in CA_NAMES.values()):
            raise Untrusted(f"{authority.common_name!r} is no PCK CA", step=self.step, reason="mismatch")
        verify_intermediate(authority, self.root, self.step, self.memory)
        return authority


def _verify_tcb_info(text: str, signature: bytes, signer: Certificate) -> tcb.TcbInfo:
    _verify_text(text, signature, signer, tcb.STEP, "the TCB Info")
    try:
        return tcb.parse_tcb_info(text)
    except Malformed as error:
        raise Untrusted(str(error), step=tcb.STEP, reason="malformed") from error


def _verify_identity(text: str, signature: bytes, signer: Certificate) -> qe.EnclaveIdentity:
    _verify_text(text, signature, signer, qe.STEP, "the QE identity")
    try:
        return qe.parse_identity(text)
    except Malformed as error:
        raise Untrusted(str(error), step=qe.STEP, reason="malformed") from error


def _verify_text(text: str, signature: bytes, signer: Certificate, step: str, what: str) -> None:
    # Rule 4.3.1: over the exact text, nothing is written again.
    if not text:
        raise Untrusted(f"{what} is missing", step=step, reason="missing")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        # A lone surrogate, as JSON escapes can make them, has no bytes and so was never signed.
        raise Untrusted(f"{what} is not UTF-8", step=step, reason="malformed") from error
    verify_raw_signature(signer.key, signature, encoded, step=step, what=what)
