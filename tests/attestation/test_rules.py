"""Every rule of formats, sections 3 to 7, broken alone. ``docs/attestation.md`` lists them; here it is held to that.

A case is evidence in which exactly one rule is broken, and how it is refused; or, where a rule allows or computes
something, evidence that needs it, and what the claims must say then.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.forge.dcap import NOW, Dcap, Minted, isv_level, level, module, new_keys, raw_key

from marblerun.attestation.dcap.pck import collateral_key
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Collateral, CollateralKey, Origin, Tee, TrustRoot
from marblerun.errors import Malformed, Untrusted
from marblerun.wire.limits import MAX_QUOTE_BYTES

DOCUMENT = Path(__file__).parents[2] / "docs" / "attestation.md"
ROW = re.compile(r"^\| (\d\.\d{1,2}\.\d) \| .+? \| `([\w.]+)` \| `([\w/.:]+)(?:\[([\d.]+)\])?` \|$", re.MULTILINE)

SGX = Dcap()
TDX = Dcap(tdx=True, version=5)
LATER = (NOW + timedelta(days=1), NOW + timedelta(days=2))
EARLIER = (NOW - timedelta(days=2), NOW - timedelta(days=1))


def svn(*first: int) -> bytes:
    return bytes(first) + bytes(16 - len(first))


def components(*first: int) -> tuple[int, ...]:
    return tuple(svn(*first))


@dataclass(frozen=True)
class Broken:
    """Evidence that must be refused at this step for this reason; ``parse`` stands for Malformed."""

    made: Dcap | Callable[[], Minted]
    step: str
    reason: str = ""


@dataclass(frozen=True)
class Holds:
    """Evidence that must be accepted, and what ``read`` must find in its claims."""

    made: Dcap
    read: Callable[[Claims], object]
    value: object


def mint(made: Dcap | Callable[[], Minted]) -> Minted:
    return made.mint() if isinstance(made, Dcap) else made()


def collateral(dcap: Dcap, change: Callable[[Collateral, Collateral], Collateral]) -> Callable[[], Minted]:
    """Evidence with collateral changed, with that of another hierarchy at hand."""

    def make() -> Minted:
        minted, other = dcap.mint(), dcap.mint()
        return replace(minted, collateral=change(minted.collateral, other.collateral))

    return make


def quote(dcap: Dcap, change: Callable[[bytes], bytes]) -> Callable[[], Minted]:
    """Evidence with the quote's bytes changed."""

    def make() -> Minted:
        minted = dcap.mint()
        return replace(minted, quote=change(minted.quote))

    return make


def at(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def first_block(pem: str) -> str:
    end = "-----END CERTIFICATE-----\n"
    return pem.partition(end)[0] + end


def rest(pem: str) -> str:
    return pem.partition("-----END CERTIFICATE-----\n")[2]


def foreign_signer(mine: Collateral, other: Collateral) -> Collateral:
    return replace(
        mine, tcb_info_issuer_chain=first_block(other.tcb_info_issuer_chain) + rest(mine.tcb_info_issuer_chain)
    )


def unknown_root() -> Minted:
    return replace(SGX.mint(), root=TrustRoot("another", bytes(32), Origin.SIMULATED))


def crl_of_the_other_ca() -> Minted:
    keys = new_keys()
    platform, processor = SGX.with_(keys=keys).mint(), SGX.with_(keys=keys, ca="Processor").mint()
    chain = processor.collateral.pck_crl_issuer_chain
    changed = replace(platform.collateral, pck_crl=processor.collateral.pck_crl, pck_crl_issuer_chain=chain)
    return replace(platform, collateral=changed)


def tcb_info_of_the_other_technology() -> Minted:
    """Genuine, of the same platform family and by the same signer."""
    keys = new_keys()
    sgx, tdx = SGX.with_(keys=keys).mint(), TDX.with_(keys=keys).mint().collateral
    changed = replace(
        sgx.collateral,
        tcb_info=tdx.tcb_info,
        tcb_info_signature=tdx.tcb_info_signature,
        tcb_info_issuer_chain=tdx.tcb_info_issuer_chain,
    )
    return replace(sgx, collateral=changed)


def off_the_curve() -> Minted:
    """The QE vouches, rightly, for something that is no key."""
    bad = bytes(63) + b"\x01"
    digest = hashlib.sha256(bad + SGX.auth_data).digest() + bytes(32)
    minted = SGX.with_(qe={"report_data": digest}).mint()
    return replace(minted, quote=at(minted.quote, 500, bad))


def qe_of_another_machine() -> Minted:
    minted, other = SGX.mint(), SGX.mint()
    return replace(minted, quote=at(minted.quote, 948, other.quote[948:1012]))


MODULES = [module(1, isv_level(5, "UpToDate", advisoryIDs=["NEW"]), isv_level(2, "OutOfDate", advisoryIDs=["OLD"]))]


def moving(platform: str, launched: bytes, current: bytes) -> Dcap:
    """A TD launched under one module and running under another."""
    return TDX.with_(
        tcb={"tcbLevels": [level(5, platform, tdx=components(0, 0, 2))], "tdxModuleIdentities": MODULES},
        report={"tee_tcb_svn": launched, "tee_tcb_svn2": current},
    )


def tcb_status(claims: Claims) -> str:
    return claims.tcb_status.value


def with_qe_out_of_date(platform: str) -> Dcap:
    return SGX.with_(tcb={"tcbLevels": [level(5, platform)]}, qe={"isv_svn": b"\x06\x00"})


DATED = {
    "tcb": {"tcbLevels": [level(5, "UpToDate")]},
    "identity": {"tcbLevels": [isv_level(8, "UpToDate") | {"tcbDate": "2020-02-02T00:00:00Z"}]},
}
SHORT_LEVEL = level(5, "UpToDate")
SHORT_LEVEL["tcb"]["sgxtcbcomponents"] = SHORT_LEVEL["tcb"]["sgxtcbcomponents"][:15]

CASES: dict[str, Broken | Holds] = {
    # certificates
    "3.1.1": Broken(SGX.with_(names={"signer": "Forged SGX Something Else"}), "tcb-signer", "mismatch"),
    "3.1.2": Broken(SGX.with_(keys={"ca": ec.generate_private_key(ec.SECP384R1())}), "pck-crl", "malformed"),
    "3.1.3": Broken(SGX.with_(not_a_ca=True), "pck-crl", "mismatch"),
    "3.1.4": Broken(SGX.with_(root_path_length=0), "pck-crl", "mismatch"),
    "3.1.5": Broken(SGX.with_(pck_is_ca=True), "pck-chain", "mismatch"),
    "3.1.6": Broken(collateral(SGX, foreign_signer), "tcb-signer", "bad-signature"),
    "3.1.7": Broken(unknown_root, "tcb-signer", "unknown-root"),
    "3.1.8": Broken(SGX.with_(validity={"pck": EARLIER}), "pck-chain", "expired"),
    "3.1.9": Broken(SGX.with_(critical_extension="pck"), "pck-chain", "malformed"),
    # SGX extension
    "3.2.1": Broken(SGX.with_(pck_svns=(5,) * 15), "pck-chain", "malformed"),
    "3.2.2": Broken(SGX.with_(fmspc="00606a0000", tcb={"fmspc": "00606a000000"}), "pck-chain", "malformed"),
    # TCB Info
    "4.1.1": Broken(SGX.with_(tcb={"version": 2}), "tcb-info", "malformed"),
    "4.1.2": Broken(SGX.with_(validity={"tcb_info": LATER}), "tcb-info", "not-yet-valid"),
    "4.1.3": Holds(SGX.with_(tcb={"fmspc": "00606A000000"}), lambda c: c.platform.fmspc.hex(), "00606a000000"),
    "4.1.4": Broken(SGX.with_(tcb={"tcbLevels": [SHORT_LEVEL]}), "tcb-info", "malformed"),
    "4.1.5": Broken(TDX.with_(tcb={"tdxModuleIdentities": MODULES * 2}), "tcb-info", "malformed"),
    "4.1.6": Broken(SGX.with_(tcb={"tcbLevels": [level(5, "TDRelaunchAdvised")]}), "tcb-info", "malformed"),
    # QE identity
    "4.2.1": Broken(SGX.with_(identity={"id": "QVE"}), "qe-identity", "malformed"),
    "4.2.2": Broken(SGX.with_(identity={"tcbLevels": [isv_level(1, "SWHardeningNeeded")]}), "qe-identity", "malformed"),
    "4.2.3": Broken(SGX.with_(validity={"qe_identity": EARLIER}), "qe-identity", "expired"),
    # what is signed
    "4.3.1": Broken(SGX.with_(sign_text=lambda text: text.replace(",", ", ", 1)), "tcb-info", "bad-signature"),
    "4.3.2": Broken(SGX.with_(tcb={"tcbEvaluationDataNumber": 17.0}), "tcb-info", "malformed"),
    # platform levels
    "5.1.1": Holds(SGX.with_(tcb={"tcbLevels": [level(3, "OutOfDate"), level(5, "UpToDate")]}), tcb_status, "UpToDate"),
    "5.1.2": Broken(SGX.with_(pck_svns=(5,) * 15 + (4,)), "tcb-level", "not-supported"),
    "5.1.3": Broken(SGX.with_(pce_svn=12), "tcb-level", "not-supported"),
    "5.1.4": Broken(TDX.with_(report={"tee_tcb_svn": svn(5, 1, 1)}), "tcb-level", "not-supported"),
    "5.1.5": Holds(
        TDX.with_(report={"tee_tcb_svn": svn(2, 1, 2), "tee_tcb_svn2": svn(2, 1, 2)}), tcb_status, "OutOfDate"
    ),
    "5.1.6": Broken(SGX.with_(tcb={"tcbLevels": []}), "tcb-level", "not-supported"),
    "5.1.7": Broken(SGX.with_(tcb={"tcbLevels": [level(5, "Revoked")]}), "tcb-level", "revoked"),
    # QE and module levels
    "5.2.1": Holds(SGX.with_(qe={"isv_svn": b"\x07\x00"}), lambda c: c.parts["qe"].advisories, ("INTEL-SA-QE",)),
    "5.2.2": Broken(SGX.with_(qe={"isv_svn": b"\x05\x00"}), "qe-level", "not-supported"),
    "5.2.3": Broken(SGX.with_(identity={"tcbLevels": [isv_level(8, "Revoked")]}), "qe-level", "revoked"),
    "5.2.4": Broken(TDX.with_(report={"tee_tcb_svn": svn(5, 3, 2)}), "tdx-module", "not-supported"),
    "5.2.5": Holds(
        TDX.with_(report={"tee_tcb_svn": svn(5, 0, 2), "tee_tcb_svn2": svn(5, 0, 2)}),
        lambda c: sorted(c.parts),
        ["platform", "platform-current", "qe"],
    ),
    "5.2.6": Broken(TDX.with_(report={"tee_tcb_svn": svn(1, 1, 2)}), "tdx-module", "not-supported"),
    "5.2.7": Broken(TDX.with_(report={"mrsignerseam": b"\x01" * 48}), "tdx-module", "mismatch"),
    "5.2.8": Broken(TDX.with_(report={"seam_attributes": b"\x01" + bytes(7)}), "tdx-module", "mismatch"),
    # convergence
    "5.3.1": Holds(with_qe_out_of_date("SWHardeningNeeded"), tcb_status, "OutOfDate"),
    "5.3.2": Holds(with_qe_out_of_date("ConfigurationNeeded"), tcb_status, "OutOfDateConfigurationNeeded"),
    "5.3.3": Holds(with_qe_out_of_date("OutOfDate"), tcb_status, "OutOfDate"),
    "5.3.4": Broken(
        TDX.with_(tcb={"tdxModuleIdentities": [module(1, isv_level(1, "Revoked"))]}), "tdx-module", "revoked"
    ),
    "5.3.5": Holds(
        TDX.with_(
            tcb={
                "tcbLevels": [level(5, "UpToDate", tdx=components(0, 0, 2), advisoryIDs=["P", "BOTH"])],
                "tdxModuleIdentities": [module(1, isv_level(5, "UpToDate", advisoryIDs=["M"]))],
            },
            identity={"tcbLevels": [isv_level(8, "UpToDate", advisoryIDs=["BOTH", "Q"])]},
        ),
        lambda c: c.advisories,
        ("P", "BOTH", "M", "Q"),
    ),
    "5.3.6": Holds(SGX.with_(**DATED), lambda c: c.tcb_date, datetime(2020, 2, 2, tzinfo=UTC)),
    # relaunch
    "5.4.1": Holds(moving("UpToDate", svn(2, 1, 2), svn(5, 1, 2)), tcb_status, "TDRelaunchAdvised"),
    "5.4.2": Holds(
        moving("ConfigurationNeeded", svn(2, 1, 2), svn(5, 1, 2)), tcb_status, "TDRelaunchAdvisedConfigurationNeeded"
    ),
    "5.4.3": Holds(moving("UpToDate", svn(5, 1, 2), svn(2, 1, 2)), tcb_status, "UpToDate"),
    "5.4.4": Broken(moving("UpToDate", svn(5, 1, 2), svn(1, 1, 2)), "tdx-module", "not-supported"),
    # root CRL
    "6.1.1": Broken(
        collateral(SGX, lambda c, other: replace(c, root_ca_crl=other.root_ca_crl)), "root-crl", "bad-signature"
    ),
    "6.1.2": Broken(SGX.with_(validity={"root_crl": EARLIER}), "root-crl", "expired"),
    "6.1.3": Broken(SGX.with_(revoked_by_root=("ca",)), "root-crl", "revoked"),
    "6.1.4": Broken(SGX.with_(revoked_by_root=("signer",)), "root-crl", "revoked"),
    # PCK CRL
    "6.2.1": Broken(crl_of_the_other_ca, "pck-crl", "mismatch"),
    "6.2.2": Broken(collateral(SGX, lambda c, other: replace(c, pck_crl=other.pck_crl)), "pck-crl", "bad-signature"),
    "6.2.3": Broken(SGX.with_(validity={"pck_crl": EARLIER}), "pck-crl", "expired"),
    "6.2.4": Broken(SGX.with_(pck_revoked=True), "pck-crl", "revoked"),
    "6.3.1": Broken(collateral(SGX, lambda c, _: replace(c, pck_crl=b"")), "pck-crl", "missing"),
    "6.3.2": Broken(SGX.with_(critical_crl_extension=True), "root-crl", "malformed"),
    # parsing
    "7.1.1": Broken(quote(SGX, lambda q: q + bytes(MAX_QUOTE_BYTES)), "parse"),
    "7.1.2": Broken(quote(SGX, lambda q: q[:-1]), "parse"),
    "7.1.3": Broken(quote(SGX, lambda q: q + b"\x00"), "parse"),
    "7.1.4": Broken(quote(SGX, lambda q: at(q, 0, b"\x06")), "parse"),
    "7.1.5": Broken(quote(SGX, lambda q: at(q, 2, b"\x03")), "parse"),
    "7.1.6": Broken(quote(TDX, lambda q: at(q, 4, b"\x82")), "parse"),
    "7.1.7": Broken(quote(SGX, lambda q: at(q, 12, b"\x00")), "parse"),
    "7.1.8": Broken(quote(SGX, lambda q: at(q, 1046, b"\x08")), "parse"),
    "7.3.1": Broken(unknown_root, "tcb-signer", "unknown-root"),
    "7.4.1": Holds(
        SGX.with_(tcb={"tcbEvaluationDataNumber": 20}, identity={"tcbEvaluationDataNumber": 19}),
        lambda c: c.tcb_evaluation_number,
        19,
    ),
    # platform and collateral
    "7.6.1": Broken(SGX.with_(tcb={"fmspc": "00606a000001"}), "collateral-match", "mismatch"),
    "7.6.2": Broken(SGX.with_(tcb={"pceId": "0001"}), "collateral-match", "mismatch"),
    "7.6.3": Broken(tcb_info_of_the_other_technology, "collateral-match", "mismatch"),
    "7.6.4": Broken(SGX.with_(identity={"id": "TD_QE"}), "collateral-match", "mismatch"),
    # QE
    "7.7.1": Broken(qe_of_another_machine, "qe-report-signature", "bad-signature"),
    "7.8.1": Broken(SGX.with_(qe={"report_data": bytes(64)}), "qe-report-data", "mismatch"),
    "7.9.1": Broken(SGX.with_(qe={"miscselect": b"\x01\x00\x00\x00"}), "qe-match", "mismatch"),
    "7.9.2": Broken(SGX.with_(qe={"attributes": b"\x05" + bytes(15)}), "qe-match", "mismatch"),
    "7.9.3": Broken(SGX.with_(qe={"mrsigner": b"\x01" * 32}), "qe-match", "mismatch"),
    "7.9.4": Broken(SGX.with_(qe={"isv_prod_id": b"\x02\x00"}), "qe-match", "mismatch"),
    "7.9.5": Broken(SGX.with_(qe={"attributes": b"\x17" + bytes(15)}), "qe-match", "debug"),
    # quote
    "7.10.1": Broken(off_the_curve, "attestation-key", "bad-key"),
    "7.10.2": Broken(SGX.with_(foreign_attestation_key=True), "quote-signature", "bad-signature"),
    "7.12.1": Broken(TDX.with_(report={"td_attributes": svn(2)[:8]}), "report", "reserved-bits"),
}


def two_signers(revoked: str) -> Callable[[], Minted]:
    """TCB Info and identity by signers with certificates of their own; that over ``revoked`` was revoked."""

    def make() -> Minted:
        keys = new_keys()
        minted = SGX.with_(keys=keys, revoked_by_root=("signer",)).mint()
        other = SGX.with_(keys=keys).mint().collateral
        spared = {"tcb_info": "qe_identity", "qe_identity": "tcb_info"}[revoked]
        changes: dict[str, Any] = {f"{spared}_issuer_chain": getattr(other, f"{spared}_issuer_chain")}
        return replace(minted, collateral=replace(minted.collateral, **changes))

    return make


def qe_that_says_more() -> Minted:
    """It vouches for the key, rightly, and for something else behind it."""
    keys = new_keys()
    digest = hashlib.sha256(raw_key(keys["qe"]) + SGX.auth_data).digest()
    return SGX.with_(keys=keys, qe={"report_data": digest + bytes(31) + b"\x01"}).mint()


def signer_twice(mine: Collateral, _: Collateral) -> Collateral:
    chain = mine.tcb_info_issuer_chain
    return replace(mine, tcb_info_issuer_chain=first_block(chain) + chain)


CONFIGURED_NOW = TDX.with_(
    tcb={
        "tcbLevels": [
            level(5, "ConfigurationNeeded", tdx=components(0, 0, 3)),
            level(5, "OutOfDate", tdx=components(0, 0, 2)),
        ]
    },
    report={"tee_tcb_svn": svn(5, 1, 2), "tee_tcb_svn2": svn(5, 1, 3)},
)

# The other half of rules that say more than one thing.
FURTHER: dict[str, Broken | Holds] = {
    "3.1.1, two of a name": Broken(collateral(SGX, signer_twice), "tcb-signer", "mismatch"),
    "5.4.2, only now": Holds(CONFIGURED_NOW, tcb_status, "TDRelaunchAdvisedConfigurationNeeded"),
    "6.1.4, over the TCB Info": Broken(two_signers("tcb_info"), "root-crl", "revoked"),
    "6.1.4, over the identity": Broken(two_signers("qe_identity"), "root-crl", "revoked"),
    "7.8.1, not zeros": Broken(qe_that_says_more, "qe-report-data", "mismatch"),
}


@pytest.mark.parametrize("rule", CASES | FURTHER)
def test_a_rule_broken_alone_is_refused_at_its_step_and_one_that_allows_allows(rule: str) -> None:
    case = (CASES | FURTHER)[rule]
    minted = mint(case.made)
    verifier = Verifier([minted.root])
    if isinstance(case, Holds):
        assert case.read(verifier.verify(minted.quote, minted.collateral, NOW)) == case.value
        return
    with pytest.raises((Malformed, Untrusted)) as refusal:
        verifier.verify(minted.quote, minted.collateral, NOW)
    error = refusal.value
    assert (case.step, case.reason) == ((error.step, error.reason) if isinstance(error, Untrusted) else ("parse", ""))


def test_what_selects_collateral_is_read_from_the_untrusted_leaf() -> None:
    """Rule 7.2.1: TEE, FMSPC and CA; the root is not asked."""
    key = collateral_key(parse_quote(TDX.mint().quote))
    assert key == CollateralKey(Tee.TDX, bytes.fromhex("00606a000000"), "platform")


def test_parts_under_two_roots_do_not_go_together() -> None:
    """Rules 7.4.2 and 7.5.1: both roots are trusted, neither vouches for parts of the other."""
    one, two = SGX.mint(), SGX.mint()
    verifier = Verifier([one.root, two.root])
    crl = {"pck_crl": two.collateral.pck_crl, "pck_crl_issuer_chain": two.collateral.pck_crl_issuer_chain}
    changes: dict[str, Any] = crl
    for mixed, quoted, step in (
        (replace(one.collateral, **changes), one, "pck-crl"),
        (one.collateral, two, "pck-chain"),
    ):
        with pytest.raises(Untrusted) as refusal:
            verifier.verify(quoted.quote, mixed, NOW)
        assert (refusal.value.step, refusal.value.reason) == (step, "mismatch")


def test_the_document_lists_every_rule_with_the_function_that_holds_it_and_the_test_that_breaks_it() -> None:
    """The function is there and names the rule's number; the test is there, or the case of that number is."""
    rows = ROW.findall(DOCUMENT.read_text())
    assert {rule for rule, *_ in rows} >= set(CASES)
    assert len(rows) == len({rule for rule, *_ in rows})
    wrong = [rule for rule, function, test, case in rows if not _is_held(rule, function, test, case)]
    assert wrong == []


def _is_held(rule: str, function: str, test: str, case: str) -> bool:
    room, *names = function.split(".")
    package = "marblerun.policy" if room == "admission" else "marblerun.attestation.dcap"
    found: Any = importlib.import_module(f"{package}.{room}")
    for name in names:
        found = getattr(found, name)
    source = inspect.getsource(getattr(found, "fget", found))
    numbered = re.search(rf"(?<![\d.]){re.escape(rule)}(?![\d])", source) is not None
    if case:
        return numbered and case == rule and rule in CASES and test == "test_rules.py"
    file, _, name = test.partition("::")
    text = (Path(__file__).parents[1] / file).read_text()
    return numbered and f"def {name}(" in text
