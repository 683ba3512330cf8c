"""Which verifier a piece of evidence goes to. The kinds that are admitted are a value, never an ``if``.

A registry without :class:`NoEvidence` refuses a peer that shows none; simulation is a kind of evidence in the list,
or it does not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final, Protocol

from marblerun.attestation.dcap.quote import HEADER_BYTES, OE_HEADER_BYTES, is_oe_report, parse_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral, CollateralKey, Unattested, Verdict
from marblerun.errors import Untrusted

_DCAP_VERSIONS: Final = (3, 4, 5)
MAX_PARSED_QUOTES: Final = 64


class EvidenceVerifier(Protocol):
    """Verifies one kind of evidence."""

    def recognises(self, evidence: bytes) -> bool:
        """Whether the evidence claims to be of this kind; never raises and proves nothing."""

    def collateral_key(self, evidence: bytes) -> CollateralKey | None:
        """Which collateral :meth:`verify` will need, ``None`` for none. Raises Malformed or Untrusted."""

    def verify(self, evidence: bytes, collateral: Collateral | None, at: datetime) -> Verdict:
        """What the evidence says at the time ``at``. Raises Malformed or Untrusted."""


class DcapEvidence:
    """SGX and TDX quotes, raw or behind the Open Enclave header."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        # Evidence is asked for its collateral, then verified; in between others come.
        self._parse = lru_cache(MAX_PARSED_QUOTES)(parse_quote)

    def recognises(self, evidence: bytes) -> bool:
        """Whether the evidence begins as a quote of version 3, 4 or 5 does, with or without header."""
        offset = OE_HEADER_BYTES if is_oe_report(evidence) else 0
        version = int.from_bytes(evidence[offset : offset + 2], "little")
        return len(evidence) >= offset + HEADER_BYTES and version in _DCAP_VERSIONS

    def collateral_key(self, evidence: bytes) -> CollateralKey | None:
        """TEE, FMSPC and PCK CA of the quote's platform, whose PCK chain has a trusted root."""
        return self._verifier.collateral_key(self._parse(evidence))

    def verify(self, evidence: bytes, collateral: Collateral | None, at: datetime) -> Verdict:
        """The quote's claims; Untrusted (step ``collateral``) if there is no collateral."""
        if collateral is None:
            raise Untrusted("there is no collateral to verify the quote with", step="collateral", reason="missing")
        return self._verifier.verify_parsed(self._parse(evidence), collateral, at)


class NoEvidence:
    """Admits every peer as :class:`Unattested`, whatever it shows: the reference's ``OE_SIMULATION=1``.

    Insecure by its nature; it belongs into a registry only where someone asked for it by name, and last.
    """

    def recognises(self, evidence: bytes) -> bool:
        """True."""
        return True

    def collateral_key(self, evidence: bytes) -> CollateralKey | None:
        """None: nothing is looked at."""
        return None

    def verify(self, evidence: bytes, collateral: Collateral | None, at: datetime) -> Verdict:
        """Unattested."""
        return Unattested()


class Registry:
    """The kinds of evidence that are admitted, asked in order; an empty one refuses everything."""

    def __init__(self, verifiers: Sequence[EvidenceVerifier]) -> None:
        self._verifiers = tuple(verifiers)

    def collateral_key(self, evidence: bytes) -> CollateralKey | None:
        """Which collateral ``evidence`` needs. Raises Malformed or Untrusted as :meth:`verify` would."""
        return self._verifier(evidence).collateral_key(evidence)

    def verify(self, evidence: bytes, collateral: Collateral | None, at: datetime) -> Verdict:
        """What ``evidence`` says at the time ``at``; Untrusted (step ``evidence``) if its kind is not admitted."""
        return self._verifier(evidence).verify(evidence, collateral, at)

    def _verifier(self, evidence: bytes) -> EvidenceVerifier:
        for verifier in self._verifiers:
            if verifier.recognises(evidence):
                return verifier
        if not evidence:
            raise Untrusted(
                "no evidence was shown; the peer does not run in a TEE, or its evidence is switched off "
                "(OE_SIMULATION) while it is demanded here",
                step="evidence",
                reason="missing",
            )
        raise Untrusted("the evidence is neither an SGX nor a TDX quote", step="evidence", reason="unknown")
