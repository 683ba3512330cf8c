"""A short form of the sweeps in ``sweep.py``: some bytes and some lengths of every genuine quote."""

from __future__ import annotations

import pytest
from tests.attestation.sweep import flipped, genuine, sweep, truncated
from tests.forge.dcap import NOW, Dcap
from tests.vectors import Vector, load, vectors_directory

from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.dcap.verify import Verifier

FORGED = {"sgx": Dcap(), "tdx-4": Dcap(tdx=True, version=4), "tdx-5": Dcap(tdx=True, version=5)}
STEP = 61
"""Prime, so that the bytes looked at differ from quote to quote together with the offset of each."""


def forged(name: str) -> Vector:
    minted = FORGED[name].mint()
    return Vector(
        name, minted.quote, minted.collateral, None, NOW, minted.root, minted.root_der, {"ok": True}, {}, None
    )


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("name", FORGED)
def test_no_changed_or_cut_byte_of_a_forged_quote_is_accepted(name: str) -> None:
    vector = forged(name)
    size = len(vector.quote)
    assert sweep(vector, flipped(vector.quote, range(0, size, 7), masks=(0x01,))).accepted == []
    assert sweep(vector, truncated(vector.quote, range(size))).accepted == []


@pytest.mark.skipif(vectors_directory() is None, reason="no vectors: the sweep runs over forged quotes only")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_no_changed_or_cut_byte_of_a_recorded_quote_is_accepted() -> None:
    accepted: dict[str, list[str]] = {}
    for i, name in enumerate(genuine()):
        vector = load(name)
        verifier, size = Verifier([vector.root]), len(vector.quote)
        # The last bytes and all length fields in any case.
        offsets = sorted({*range(i, size, STEP), *range(size - 4, size), *range(430, 440), *range(632, 640)})
        result = sweep(vector, flipped(vector.quote, offsets, masks=(0x01, 0x20)), verifier)
        result.accepted += sweep(vector, truncated(vector.quote, range(i, size, STEP)), verifier).accepted
        accepted |= {name: result.accepted} if result.accepted else {}
    assert accepted == {}


def test_parts_of_two_genuine_quotes_do_not_make_a_third() -> None:
    """Header and body of one quote with the signature data of another of the same platform's root are refused."""
    minted = Dcap().mint()
    body = bytearray(minted.quote)
    body[112] ^= 1
    quote = parse_quote(minted.quote)
    vector = forged("sgx")
    swapped = minted.quote[:436] + vector.quote[436 : 436 + 64] + minted.quote[500:]
    collateral = minted.collateral
    changed = Vector("swap", swapped, collateral, None, NOW, minted.root, None, {"ok": False}, {}, None)
    assert quote.signed == minted.quote[:432]
    result = sweep(changed, [("signature of another", swapped), ("body of another", bytes(body))])
    assert (result.accepted, dict(result.refused)) == ([], {"quote-signature": 2})
