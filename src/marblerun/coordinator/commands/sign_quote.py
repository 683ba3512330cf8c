"""Signing what a quote's TCB status was found to be (protocol, section 7.8).

The service verifies in between: ``evidence_to_verify``, then evidence, collateral and time become a verdict, then
``sign_quote``.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.attestation.dcap.quote import add_oe_header, is_raw_sgx_quote
from marblerun.attestation.model import Claims, Tee, Verdict
from marblerun.coordinator.commands.features import SIGN_QUOTE, require_feature
from marblerun.coordinator.state import State
from marblerun.errors import Untrusted


@dataclass(frozen=True, slots=True)
class SignedStatus:
    """What the Coordinator vouches for: this quote was authentic, and this was its platform's standing."""

    tcb_status: str
    signature: bytes
    """ECDSA by the root key, ASN.1 DER."""


def evidence_to_verify(state: State, quote: bytes) -> bytes:
    """What to verify for an uploaded quote: a raw SGX quote gets the header that the verifier expects.

    Raises FeatureDisabled, in every state.
    """
    require_feature(state, SIGN_QUOTE)
    return add_oe_header(quote) if is_raw_sgx_quote(quote) else quote


def sign_quote(state: State, quote: bytes, verdict: Verdict) -> SignedStatus:
    """The status in ``verdict``, signed together with ``quote`` exactly as it was uploaded.

    Every status that verification lets through is signed, it is for the reader to judge it; no package is looked at.
    Raises Untrusted where nothing was verified (simulation without evidence) and for anything but SGX.
    """
    require_feature(state, SIGN_QUOTE)
    if not isinstance(verdict, Claims):
        raise Untrusted("this Coordinator runs without evidence and verifies none", step="evidence", reason="none")
    if verdict.tee is not Tee.SGX:
        raise Untrusted("the evidence is not an SGX quote", step="evidence", reason="kind")
    status = verdict.tcb_status.value
    message = base64.b64encode(quote) + status.encode("ascii")
    return SignedStatus(status, state.authority.root_key.sign(message, ec.ECDSA(hashes.SHA256())))
