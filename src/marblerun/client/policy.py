"""What a relying party demands of a Coordinator's evidence, read from the reference's policy file and judged at once.

Source: cli-marble-k8s, sections 1.3 and 2.4.
"""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from marblerun.attestation.model import Claims, Origin, SgxReport, TcbStatus, TdReport
from marblerun.client.policy_tdx import parse_tdx
from marblerun.errors import Denied, Malformed, Misconfigured
from marblerun.manifest.model import TdxIdentity
from marblerun.policy.admission import Mismatch, judge_tcb, judge_td
from marblerun.wire import jsontree

DEFAULT_TCB_STATUSES: Final = (TcbStatus.UP_TO_DATE.value, TcbStatus.SW_HARDENING_NEEDED.value)
MAX_POLICY_BYTES: Final = 64 * 1024
SIMULATED_EVIDENCE: Final = "the evidence comes from a SIMULATED platform; nothing protects this Coordinator"
_REFUSED: Final = "the Coordinator is not the one that is expected"


@dataclass(frozen=True, slots=True)
class CoordinatorPolicy:
    """The Coordinator we mean. ``unique_id``, or ``signer_id`` with product id and security version, or ``tdx``.

    ``insecure`` admits a Coordinator without looking at any evidence: whoever answers is believed.
    """

    unique_id: str = ""
    """MRENCLAVE, 64 hex digits, lower case; empty if any is admitted."""
    signer_id: str = ""
    """MRSIGNER, 64 hex digits, lower case; empty if any is admitted."""
    product_id: int = 0
    """Exact ISVPRODID, 16 bits."""
    security_version: int = 0
    """Lowest ISVSVN."""
    debug: bool = False
    """Whether a debug enclave, whose memory the host can read, is admitted."""
    accepted_tcb_statuses: tuple[str, ...] = DEFAULT_TCB_STATUSES
    """``UpToDate`` is admitted even if it is not in the list."""
    accepted_advisories: tuple[str, ...] = ()
    """Advisories admitted with ``SWHardeningNeeded``; empty admits all."""
    insecure: bool = False
    nonce: bytes = b""
    tdx: TdxIdentity | None = None
    """A Coordinator that runs in a TD, beside or instead of an enclave; keys as a package's in a manifest."""

    @property
    def states_enclave(self) -> bool:
        """Whether anything is said about an SGX enclave."""
        return bool(self.unique_id or self.signer_id or self.product_id or self.security_version)

    def verify_complete(self) -> None:
        """Raises :class:`Misconfigured` if this would admit enclaves or TDs of anybody; an empty policy refuses."""
        if self.insecure:
            return
        if self.tdx is not None and not self.tdx.mrtd:
            raise Misconfigured("the attestation policy misses TDX.MRTD; without it any TD would do")
        if self.unique_id or (self.tdx is not None and not self.states_enclave):
            return
        missing = [
            name
            for name, value in (
                ("SignerID", self.signer_id),
                ("ProductID", self.product_id),
                ("SecurityVersion", self.security_version),
            )
            if not value
        ]
        if missing:
            raise Misconfigured(
                f"the attestation policy misses {', '.join(missing)}; "
                "state UniqueID, or SignerID with ProductID and SecurityVersion, or TDX with MRTD"
            )

    def judge(self, claims: Claims) -> tuple[str, ...]:
        """Admits authentic claims, or refuses them with every mismatch; what comes back are warnings for the user.

        1. the kind of evidence, 2. debug mode and identity, 3. TCB status and advisories.

        Raises:
            Denied: something does not fit.
        """
        self.verify_complete()
        report = claims.report
        mismatches = [
            *(self._enclave_mismatches(report) if isinstance(report, SgxReport) else self._td_mismatches(report)),
            *judge_tcb(claims, "policy", self.accepted_tcb_statuses, self.accepted_advisories),
        ]
        if mismatches:
            raise Denied(_REFUSED, mismatches=tuple(str(mismatch) for mismatch in mismatches))
        return self._warnings(claims)

    def _td_mismatches(self, report: TdReport) -> list[Mismatch]:
        if self.tdx is None:
            return [Mismatch("policy", "an SGX enclave", "it is a TD, and the policy has no TDX")]
        found: list[Mismatch] = []
        if report.debug and not self.debug:
            found.append(Mismatch("policy.Debug", "a production TD", "it is a debug TD"))
        return [*found, *judge_td(report, "policy.TDX", self.tdx)]

    def _enclave_mismatches(self, report: SgxReport) -> list[Mismatch]:
        if self.tdx is not None and not self.states_enclave:
            return [Mismatch("policy", "a TD", "it is an SGX enclave")]
        found: list[Mismatch] = []
        if report.debug and not self.debug:
            found.append(Mismatch("policy.Debug", "a production enclave", "it is a debug enclave"))
        for name, expected, actual in (
            ("UniqueID", self.unique_id.lower(), report.mrenclave.hex()),
            ("SignerID", self.signer_id.lower(), report.mrsigner.hex()),
        ):
            if expected and expected != actual:
                found.append(Mismatch(f"policy.{name}", expected, actual))
        # With UniqueID the enclave is known to the last byte; an unset product id then says nothing.
        if (self.product_id or not self.unique_id) and report.isv_prod_id != self.product_id:
            found.append(Mismatch("policy.ProductID", str(self.product_id), str(report.isv_prod_id)))
        if report.isv_svn < self.security_version:
            found.append(Mismatch("policy.SecurityVersion", f"at least {self.security_version}", str(report.isv_svn)))
        return found

    @staticmethod
    def _warnings(claims: Claims) -> tuple[str, ...]:
        warnings: list[str] = []
        if claims.origin is not Origin.HARDWARE:
            warnings.append(SIMULATED_EVIDENCE)
        if claims.debug:
            kind = "enclave" if isinstance(claims.report, SgxReport) else "TD"
            warnings.append(f"the Coordinator is a DEBUG {kind}; its host can read its memory")
        if claims.tcb_status is not TcbStatus.UP_TO_DATE:
            text = f"TCB status {claims.tcb_status.value} is accepted"
            warnings.append(f"{text}; advisories: {', '.join(claims.advisories)}" if claims.advisories else text)
        return tuple(warnings)


def parse_policy(raw: bytes) -> CoordinatorPolicy:
    """Reads the JSON policy file; keys in any case, as the reference does, but unknown or repeated ones are refused.

    Raises:
        Malformed: the path of the key, what was found and what was expected.
    """
    if len(raw) > MAX_POLICY_BYTES:
        raise Malformed(f"is larger than {MAX_POLICY_BYTES} bytes", where="attestation policy")
    root = jsontree.parse(raw).root
    if not isinstance(root, jsontree.Object):
        raise Malformed("is not a JSON object", where="attestation policy")
    policy = CoordinatorPolicy()
    seen: set[str] = set()
    for member in root.members:
        key = member.key.casefold()
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, 1)
            hint = f"; did you mean {_KEYS[close[0]][0]}?" if close else ""
            raise Malformed(f"is not a key of an attestation policy{hint}", where=member.key)
        if key in seen:
            raise Malformed("is there twice", where=member.key)
        seen.add(key)
        if not isinstance(member.value, jsontree.Null):
            name, apply = _KEYS[key]
            policy = apply(policy, member.value, name)
    return policy


def _number(node: jsontree.Node, where: str, bits: int) -> int:
    if isinstance(node, jsontree.Number) and node.literal.isdecimal() and len(node.literal) < 25:
        value = int(node.literal)
        if value < 1 << bits:
            return value
    raise Malformed(f"expected a number of {bits} bits that is not negative", where=where)


def _flag(node: jsontree.Node, where: str) -> bool:
    if not isinstance(node, jsontree.Bool):
        raise Malformed("expected true or false", where=where)
    return node.value


def _text(node: jsontree.Node, where: str) -> str:
    if not isinstance(node, jsontree.String):
        raise Malformed("expected a string", where=where)
    return node.text


def _measurement(node: jsontree.Node, where: str) -> str:
    text = _text(node, where).lower()
    if text and (len(text) != 64 or not set(text) <= set("0123456789abcdef")):
        raise Malformed("expected 64 hex digits", where=where)
    return text


def _texts(node: jsontree.Node, where: str) -> tuple[str, ...]:
    if not isinstance(node, jsontree.Array):
        raise Malformed("expected a list of strings", where=where)
    return tuple(_text(item, where) for item in node.items)


def _statuses(node: jsontree.Node, where: str) -> tuple[str, ...]:
    return verify_tcb_statuses(_texts(node, where), where) or DEFAULT_TCB_STATUSES


def _nonce(node: jsontree.Node, where: str) -> bytes:
    try:
        return base64.b64decode(_text(node, where), validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("expected base64", where=where) from None


def verify_tcb_statuses(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The names again, if all of them are TCB statuses; a misspelt one would refuse what its author meant to accept.

    Raises:
        Malformed: one is not.
    """
    known = [status.value for status in TcbStatus]
    for name in names:
        if name not in known:
            raise Malformed(f"{name!r} is not a TCB status; there are {', '.join(known)}", where=where)
    return names


_Apply = Callable[[CoordinatorPolicy, jsontree.Node, str], CoordinatorPolicy]
_KEYS: Final[dict[str, tuple[str, _Apply]]] = {
    name.casefold(): (name, apply)
    for name, apply in (
        ("SecurityVersion", lambda p, node, where: replace(p, security_version=_number(node, where, 32))),
        ("ProductID", lambda p, node, where: replace(p, product_id=_number(node, where, 16))),
        ("UniqueID", lambda p, node, where: replace(p, unique_id=_measurement(node, where))),
        ("SignerID", lambda p, node, where: replace(p, signer_id=_measurement(node, where))),
        ("Debug", lambda p, node, where: replace(p, debug=_flag(node, where))),
        ("InsecureSkipVerify", lambda p, node, where: replace(p, insecure=_flag(node, where))),
        ("AcceptedTCBStatuses", lambda p, node, where: replace(p, accepted_tcb_statuses=_statuses(node, where))),
        ("AcceptedAdvisories", lambda p, node, where: replace(p, accepted_advisories=_texts(node, where))),
        ("Nonce", lambda p, node, where: replace(p, nonce=_nonce(node, where))),
        # Ours; a file without it is read as the reference reads it.
        ("TDX", lambda p, node, where: replace(p, tdx=parse_tdx(node, where))),
    )
}
