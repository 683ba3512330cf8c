"""Claims of verified evidence, with any field of their report changed."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from tests.forge.dcap import NOW, Dcap

from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims


@lru_cache(maxsize=2)
def _minted(tdx: bool) -> Claims:
    minted = Dcap(tdx=True, version=5).mint() if tdx else Dcap().mint()
    return Verifier([minted.root]).verify(minted.quote, minted.collateral, NOW)


def sgx(**report: Any) -> Claims:
    """Of an enclave."""
    claims = _minted(False)
    return replace(claims, report=replace(claims.report, **report))


def tdx(**report: Any) -> Claims:
    """Of a TD."""
    claims = _minted(True)
    return replace(claims, report=replace(claims.report, **report))
