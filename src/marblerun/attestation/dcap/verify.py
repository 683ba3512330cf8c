"""The DCAP verifier: evidence, collateral, roots and one time in; :class:`Claims` or a refusal naming the step out.

This object cannot do I/O and does not know the clock. Claims are authentic, not acceptable: apart from a revoked TCB,
which nobody may accept, no status, debug flag or measurement is judged here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.attestation.dcap.collateral import CollateralMemory, VouchedCollateral, verify_collateral
from marblerun.attestation.dcap.completion import complete, verify_stated_platform
from marblerun.attestation.dcap.pck import PckChain, collateral_key, verify_pck_chain
from marblerun.attestation.dcap.qe import matching_level, verify_identity
from marblerun.attestation.dcap.quote import PCK_CHAIN, CertificationData, Quote, parse_quote
from marblerun.attestation.dcap.signatures import read_raw_key, verify_raw_signature
from marblerun.attestation.dcap.tcb import TcbVerdict, evaluate_sgx, evaluate_tdx, verify_module
from marblerun.attestation.dcap.validity import verify_validity
from marblerun.attestation.model import Claims, Collateral, CollateralKey, PartStatus, SgxReport, TdReport, TrustRoot
from marblerun.attestation.sgx import parse_sgx_report
from marblerun.attestation.tdx import verify_td_attributes
from marblerun.errors import Malformed, Untrusted

# A Coordinator sees a few platform families and collateral generations; an entry is some 100 KB.
MAX_CACHED_COLLATERAL: Final = 64
# One entry per machine (chain) and per machine and QE start (key); some 20 KB and 3 KB each.
MAX_CACHED_CHAINS: Final = 1024
MAX_CACHED_KEYS: Final = 1024
MAX_CACHED_VERDICTS: Final = 1024


@dataclass(frozen=True, slots=True, eq=False)
class QuotingEnclave:
    """A quoting enclave whose report the PCK key signed, and the attestation key that the report vouches for."""

    report: SgxReport
    attestation_key: ec.EllipticCurvePublicKey


class Verifier:
    """Verifies DCAP quotes under the given roots. An empty ``roots`` refuses everything.

    The order is that of formats, section 7:

    1. The quote is parsed, strictly (:class:`Malformed`, everything after is :class:`Untrusted`).
    2. Collateral was selected by the caller (:meth:`collateral_key`); here it is only what it is. Where the quote does
       not carry its whole PCK chain, the collateral's is put in its place (``certification-data``).
    3. A trusted root; the root's CRL, its signature and dates (steps ``tcb-signer``, ``root-crl``).
    4. The TCB signers: names, dates, revocation; TCB Info and QE identity: signature over the exact text, id, version,
       dates (``tcb-signer``, ``tcb-info``, ``qe-identity``).
    5. The PCK chain: names, signatures, dates, both CRLs, the same root as the collateral (``pck-crl``, ``pck-chain``).
    6. FMSPC, PCEID and TEE of quote and collateral are the same (``collateral-match``); a PCK certificate that the
       quote did not carry is for the platform that it names (``certification-data``).
    7. The PCK key signed the QE report (``qe-report-signature``).
    8. The QE report names the attestation key (``qe-report-data``).
    9. The QE is the one of the identity, not in debug mode (``qe-match``), and reaches a level (``qe-level``).
    10. The attestation key is a point of the curve (``attestation-key``) and signed the quote (``quote-signature``).
    11. Platform level, TDX module, convergence, relaunch (``tcb-level``, ``tdx-module``).
    12. The report is read: bits without a known meaning are refused (``report``), the rest becomes claims.

    Authenticity is cached by content: signatures once found good are not checked again for the very same bytes. Dates
    and revocation are judged on every call. The caches are bounded, hold only what a trusted root signed, and drop the
    least recently used. Safe for use by many threads at once.
    """

    def __init__(self, roots: Sequence[TrustRoot]) -> None:
        self._roots = tuple(roots)
        self._memory = CollateralMemory()
        # Refusals raise, and lru_cache keeps no exceptions: nothing that failed is ever remembered.
        self._vouched = lru_cache(MAX_CACHED_COLLATERAL)(self._vouch)
        self._chain = lru_cache(MAX_CACHED_CHAINS)(self._verify_chain)
        self._enclave = lru_cache(MAX_CACHED_KEYS)(_verify_quoting_enclave)
        self._verdict = lru_cache(MAX_CACHED_VERDICTS)(_evaluate)

    @property
    def roots(self) -> tuple[TrustRoot, ...]:
        """The roots this verifier trusts."""
        return self._roots

    def verify(self, quote_bytes: bytes, collateral: Collateral, at: datetime) -> Claims:
        """What the quote says, at the time ``at`` (aware). Raises Malformed (step 1) or Untrusted (steps 3 to 12)."""
        return self.verify_parsed(parse_quote(quote_bytes), collateral, at)  # 1

    def verify_parsed(self, quote: Quote, collateral: Collateral, at: datetime) -> Claims:
        """The same for a quote that was parsed before, which is step 1."""
        if at.tzinfo is None:
            raise ValueError("`at` must be an aware time")
        if not self._roots:
            raise Untrusted("no root of trust is configured", step="root", reason="unknown-root")
        certification = complete(quote.certification, collateral)  # 2
        if collateral.pck_certificate_chain:
            # One machine's; the rest is kept for all machines of its family.
            collateral = replace(collateral, pck_certificate_chain="")
        vouched = self._vouched(collateral)  # 3, 4: signatures
        _verify_collateral_now(vouched, at)  # 3, 4: dates and revocation
        chain = self._chain(certification)  # 5: signatures
        _verify_chain_now(chain, vouched, at)  # 5: dates and revocation
        _verify_collateral_match(quote, chain, vouched)  # 6
        verify_stated_platform(quote.certification, chain.platform)  # 6
        enclave = self._enclave(  # 7, 8
            chain, quote.qe_report, quote.qe_report_signature, quote.qe_auth_data, quote.attestation_key
        )
        qe_level = _verify_qe_identity(enclave, vouched)  # 9
        _verify_quote_signature(quote, enclave)  # 10
        _verify_tdx_module(quote.report, vouched)  # 11
        verdict = self._verdict(vouched, chain, qe_level, *_tcb_inputs(quote.report))  # 11
        _verify_report(quote.report)  # 12
        return _claims(quote, vouched, chain, enclave, verdict)

    def collateral_key(self, quote: Quote) -> CollateralKey:
        """Which collateral :meth:`verify` will need for this quote.

        The PCK chain's signatures are checked first, up to a trusted root (step 5, remembered for :meth:`verify`), so
        that nobody can have collateral fetched for platforms that do not exist. A quote without its chain is believed
        so far: there is nothing to check yet. Raises Untrusted or Malformed.
        """
        if not self._roots:
            raise Untrusted("no root of trust is configured", step="root", reason="unknown-root")
        if quote.certification.type != PCK_CHAIN:
            return collateral_key(quote, self._memory)
        platform = self._chain(quote.certification).platform
        return CollateralKey(tee=quote.tee, fmspc=platform.fmspc, ca=platform.ca)

    def forget_evidence(self) -> None:
        """Drop what is remembered about machines and their QEs; collateral stays. Changes speed, never a verdict."""
        self._chain.cache_clear()
        self._enclave.cache_clear()
        self._verdict.cache_clear()
        self._memory.forget_recent()

    def forget_platforms(self) -> None:
        """The same for platform families (TCB Infos) too; authorities, CRLs and QE identities stay."""
        self.forget_evidence()
        self._vouched.cache_clear()
        self._memory.tcb_info.cache_clear()

    def _vouch(self, collateral: Collateral) -> VouchedCollateral:
        return verify_collateral(collateral, self._roots, self._memory)

    def _verify_chain(self, certification: CertificationData) -> PckChain:
        return verify_pck_chain(certification, self._roots, self._memory)


def _verify_collateral_now(vouched: VouchedCollateral, at: datetime) -> None:
    """Steps 3 and 4, what changes with time."""
    verify_validity(vouched.collateral_validities, at)
    for authority in vouched.authorities:  # 6.1.3, 6.1.4
        vouched.root_crl.verify_not_revoked(authority)


def _verify_chain_now(chain: PckChain, vouched: VouchedCollateral, at: datetime) -> None:
    """Step 5, what changes with time or collateral: the root is the same, nothing has expired or is revoked."""
    if chain.trusted != vouched.trusted:  # 7.5.1
        raise Untrusted("the PCK chain is under another root than the collateral", step="pck-chain", reason="mismatch")
    verify_validity(vouched.pck_validities, at)
    verify_validity(chain.validities, at)
    vouched.root_crl.verify_not_revoked(chain.ca)
    crl = vouched.pck_crl
    # 6.2.1
    if crl.issuer != chain.leaf.issuer or crl.issuer_spki_sha256 != chain.ca.spki_sha256:
        raise Untrusted("the PCK CRL is not by the CA of the PCK certificate", step="pck-crl", reason="mismatch")
    crl.verify_not_revoked(chain.leaf)  # 6.2.4


def _verify_collateral_match(quote: Quote, chain: PckChain, vouched: VouchedCollateral) -> None:
    """Step 6: the collateral is about this kind of evidence and this platform."""
    info, platform = vouched.tcb_info, chain.platform
    for what, expected, actual in (
        # 7.6.3, 7.6.4, 7.6.1, 7.6.2
        ("TEE of the TCB Info", quote.tee.value, info.tee.value),
        ("TEE of the QE identity", quote.tee.value, vouched.identity.tee.value),
        ("FMSPC of the TCB Info", platform.fmspc.hex(), info.fmspc.hex()),
        ("PCEID of the TCB Info", platform.pce_id.hex(), info.pce_id.hex()),
    ):
        if expected != actual:
            raise Untrusted(
                f"{what} is {actual}, the evidence has {expected}", step="collateral-match", reason="mismatch"
            )


def _verify_quoting_enclave(
    chain: PckChain, report: bytes, signature: bytes, auth_data: bytes, attestation_key: bytes
) -> QuotingEnclave:
    """Steps 7 and 8, and the first half of 10: the QE under the PCK key, the attestation key under the QE."""
    # 7.7.1
    verify_raw_signature(chain.leaf.key, signature, report, step="qe-report-signature", what="the QE report")
    try:
        parsed = parse_sgx_report(report)
    except Malformed as error:
        raise Untrusted(str(error), step="qe-report-signature", reason="malformed") from error
    # 7.8.1
    expected = hashlib.sha256(attestation_key + auth_data).digest() + bytes(32)
    if not hmac.compare_digest(expected, parsed.report_data):
        raise Untrusted("the QE report does not name the attestation key", step="qe-report-data", reason="mismatch")
    # 7.10.1
    return QuotingEnclave(parsed, read_raw_key(attestation_key, step="attestation-key"))


def _verify_qe_identity(enclave: QuotingEnclave, vouched: VouchedCollateral) -> PartStatus:
    """Step 9: the QE is the vendor's, and how it stands."""
    verify_identity(enclave.report, vouched.identity)
    levels = vouched.identity.levels
    return matching_level(levels, enclave.report.isv_svn, step="qe-level", what="the quoting enclave")


def _verify_quote_signature(quote: Quote, enclave: QuotingEnclave) -> None:
    """Step 10 (rule 7.10.2)."""
    key = enclave.attestation_key
    verify_raw_signature(key, quote.signature, quote.signed, step="quote-signature", what="the quote")


def _verify_tdx_module(report: SgxReport | TdReport, vouched: VouchedCollateral) -> None:
    """Step 11, TDX: the module is the vendor's."""
    if isinstance(report, TdReport):
        verify_module(vouched.tcb_info, report)


def _tcb_inputs(report: SgxReport | TdReport) -> tuple[bytes, bytes | None]:
    return (b"", None) if isinstance(report, SgxReport) else (report.tee_tcb_svn, report.tee_tcb_svn2)


def _evaluate(
    vouched: VouchedCollateral, chain: PckChain, qe_level: PartStatus, tee_tcb_svn: bytes, svn2: bytes | None
) -> TcbVerdict:
    """Step 11: levels, convergence, relaunch."""
    if not tee_tcb_svn:
        return evaluate_sgx(vouched.tcb_info, chain.platform, qe_level)
    return evaluate_tdx(vouched.tcb_info, chain.platform, qe_level, tee_tcb_svn, svn2)


def _verify_report(report: SgxReport | TdReport) -> None:
    """Step 12: no attribute that we do not know (rule 7.12.1)."""
    if isinstance(report, TdReport):
        verify_td_attributes(report)


def _claims(
    quote: Quote, vouched: VouchedCollateral, chain: PckChain, enclave: QuotingEnclave, verdict: TcbVerdict
) -> Claims:
    return Claims(
        origin=vouched.trusted.origin,
        tee=quote.tee,
        root=vouched.trusted.name,
        root_spki_sha256=vouched.trusted.spki_sha256,
        tcb_status=verdict.status,
        advisories=verdict.advisories,
        tcb_date=min(part.tcb_date for part in verdict.parts.values()),  # 5.3.6
        parts=dict(verdict.parts),
        # 7.4.1
        tcb_evaluation_number=min(vouched.tcb_info.evaluation_number, vouched.identity.evaluation_number),
        qe_svn=enclave.report.isv_svn,
        platform=chain.platform,
        report=quote.report,
        collateral_expires=vouched.expires,
    )
