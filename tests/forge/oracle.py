"""A second opinion: dcap-qvl, which shares no code with this project."""

from __future__ import annotations

from dataclasses import astuple
from datetime import datetime

import dcap_qvl
from tests.forge.evidence import Evidence

from marblerun.attestation.model import Collateral


def verify_with_dcap_qvl(quote: bytes, collateral: Collateral, root_der: bytes, at: datetime) -> str:
    """The merged status dcap-qvl gives a raw quote; ValueError with its reason if it refuses."""
    fields = dcap_qvl.QuoteCollateralV3(*astuple(collateral)[:9])
    return str(dcap_qvl.verify_with_root_ca(quote, fields, root_der, int(at.timestamp())).status)


def dcap_qvl_status(evidence: Evidence) -> str:
    """The same for forged evidence."""
    return verify_with_dcap_qvl(evidence.quote, evidence.collateral, evidence.root_der, evidence.at)
