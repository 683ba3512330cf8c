"""The form of a key that a TPM sealed, and what may be named as PCRs; needs no TPM."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.states import ENTROPY

from marblerun.attestation.issue import NoEvidenceIssuer
from marblerun.coordinator.seal import SealMode, is_vouching
from marblerun.coordinator.seal.detect import detect_sealer
from marblerun.coordinator.seal.tpm import TpmSealer
from marblerun.coordinator.seal.tpm_device import DEFAULT_TCTI, parse_tcti, tpm_code
from marblerun.coordinator.seal.tpm_key import (
    DEFAULT_PCRS,
    MAGIC,
    PcrSelection,
    TpmObject,
    parse_pcrs,
    parse_tpm_key,
    pcrs_for,
)
from marblerun.coordinator.store.anchors.tpm import TpmAnchor
from marblerun.coordinator.store.description import describe_key
from marblerun.errors import Malformed, Misconfigured

OBJECT = TpmObject(SealMode.PRODUCT_KEY, DEFAULT_PCRS, b"\0\x0b" + b"n" * 32, b"public", b"private")
BOX = bytes(range(60))

SELECTIONS = st.builds(
    PcrSelection,
    st.sampled_from(["sha256", "sha384"]),
    st.sets(st.integers(0, 23), min_size=1).map(lambda pcrs: tuple(sorted(pcrs))),
)
OBJECTS = st.builds(
    TpmObject,
    st.sampled_from([SealMode.PRODUCT_KEY, SealMode.UNIQUE_KEY]),
    SELECTIONS,
    st.binary(min_size=1, max_size=66),
    st.binary(min_size=1, max_size=256),
    st.binary(min_size=1, max_size=512),
)


@given(OBJECTS, st.sampled_from([44, 60]))
def test_what_is_encoded_is_parsed_again(wrapped: TpmObject, size: int) -> None:
    found = parse_tpm_key(wrapped.encode() + bytes(size))
    assert (found.object, found.box) == (wrapped, bytes(size))


@given(st.binary(max_size=400), st.booleans(), st.data())
def test_garbage_is_malformed_and_whatever_is_not_is_what_it_encodes_to(
    garbage: bytes, begins: bool, data: st.DataObject
) -> None:
    """No two byte strings mean the same key."""
    whole = OBJECT.encode() + BOX
    at = data.draw(st.integers(0, len(whole)))
    for text in ((MAGIC + garbage if begins else garbage), whole[:at] + garbage, whole[:at] + garbage + whole[at:]):
        try:
            found = parse_tpm_key(text)
        except Malformed:
            continue
        assert found.object.encode() + found.box == text


def test_every_truncation_and_everything_that_follows_is_malformed() -> None:
    whole = OBJECT.encode() + BOX
    # 16 bytes less are the key of an old release, with its 16 bytes.
    sizes = [size for size in range(len(whole)) if size != len(whole) - 16]
    for text in (*(whole[:size] for size in sizes), whole + b"\0"):
        with pytest.raises(Malformed):
            parse_tpm_key(text)


@pytest.mark.parametrize(
    ("position", "byte"),
    [(8, 0), (8, 2), (9, 0), (9, 3), (10, 0x04), (10, 0x0D), (11, 1), (15, 0), (15, 67), (16, 1), (0, 0)],
)
def test_unknown_versions_modes_banks_and_impossible_sizes_are_malformed(position: int, byte: int) -> None:
    broken = bytearray(OBJECT.encode() + BOX)
    broken[position] = byte
    with pytest.raises(Malformed):
        parse_tpm_key(bytes(broken))


@pytest.mark.parametrize(("part", "most"), [("root_name", 66), ("public", 256), ("private", 512)])
def test_parts_are_bounded_and_never_empty(part: str, most: int) -> None:
    def sealed(size: int) -> bytes:
        sizes: dict[str, Any] = {part: bytes(size)}
        return replace(OBJECT, **sizes).encode() + BOX

    assert getattr(parse_tpm_key(sealed(most)).object, part) == bytes(most)
    for size in (0, most + 1):
        with pytest.raises(Malformed, match="are possible"):
            parse_tpm_key(sealed(size))


def test_a_key_without_a_pcr_is_malformed() -> None:
    whole = bytearray(OBJECT.encode() + BOX)
    whole[12:15] = bytes(3)
    with pytest.raises(Malformed, match="no PCR"):
        parse_tpm_key(bytes(whole))


def test_pcrs_are_read_in_any_order_and_written_in_one() -> None:
    assert parse_pcrs("sha256:7,4,0,2,7") == DEFAULT_PCRS
    assert str(parse_pcrs("sha384:22,0")) == "sha384:0,22"
    # The TPM's own form: one selection of three bytes, PCR 0 in the lowest bit.
    assert DEFAULT_PCRS.encode() == bytes.fromhex("00000001 000b 03 950000")


@pytest.mark.parametrize(
    "text",
    [
        *("", "7", "sha256", "sha256:", "sha1:7", "sha256:24", "sha256:-1", "sha256:1,", "sha256:1, 2", "SHA256:1"),
        *("sha256:7+sha384:7", "sha256:16", "sha256:0,23", "sha256:100", "sha256:٧"),
    ],
)
def test_pcrs_that_cannot_be_or_that_anybody_can_reset_are_refused(text: str) -> None:
    with pytest.raises(Misconfigured, match="EDG_COORDINATOR_TPM_PCRS"):
        parse_pcrs(text)


def test_unique_key_binds_to_more_than_product_key() -> None:
    assert pcrs_for(SealMode.PRODUCT_KEY, DEFAULT_PCRS) == DEFAULT_PCRS
    assert str(pcrs_for(SealMode.UNIQUE_KEY, parse_pcrs("sha384:9,7"))) == "sha384:7,8,9,12"
    with pytest.raises(ValueError, match="disabled"):
        pcrs_for(SealMode.DISABLED, DEFAULT_PCRS)


def test_the_way_to_the_tpm_is_one_that_runs_nothing() -> None:
    assert parse_tcti("1") == DEFAULT_TCTI == "device:/dev/tpmrm0"
    for way in ("device:/dev/tpm0", "swtpm:path=/run/tpm", "tabrmd", "mssim:host=localhost,port=2321"):
        assert parse_tcti(way) == way
    for way in ("", "0", "cmd:sh", "/tmp/evil.so", "libtss2-tcti-cmd.so.0:sh", "device:", "device:/dev/tpm0\n"):
        with pytest.raises(Misconfigured):
            parse_tcti(way)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (0x99D, 0x09D),  # TPM_RC_POLICY_FAIL, session 1
        (0x18B, 0x08B),  # TPM_RC_HANDLE, handle 1
        (0x1DF, 0x09F),  # TPM_RC_INTEGRITY, parameter 1
        (0x128, 0x128),  # TPM_RC_PCR_CHANGED
        (0x14A, 0x14A),  # TPM_RC_NV_UNINITIALIZED
        (0xB099D, 0x09D),  # the first one by a resource manager
        *((code, None) for code in (0x903, 0x908, 0x920, 0x921, 0x922, 0x923)),  # too busy, or told to wait
        *((code, None) for code in (0xA000A, 0x70001, 0xB0922, 0xC0001)),  # not the TPM's
    ],
)
def test_a_refusal_of_the_tpm_is_told_from_one_that_does_not_answer(answer: int, code: int | None) -> None:
    """The first makes a key untrusted, the second says nothing about it."""
    assert tpm_code(answer) == code


def test_a_missing_library_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, before anything is opened."""
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(Misconfigured, match=r"marblerun\[tpm\] and the system library tpm2-tss"):
        detect_sealer({"EDG_COORDINATOR_TPM": "1"}, NoEvidenceIssuer(), None, ENTROPY, tmp_path)
    with pytest.raises(Misconfigured, match=r"marblerun\[tpm\]"):
        TpmAnchor(None, 0x01500100).load()


def test_a_tpm_does_not_vouch_for_what_it_opens() -> None:
    """Anybody on its machine can have sealed it."""
    assert not is_vouching(TpmSealer(DEFAULT_TCTI, DEFAULT_PCRS, ENTROPY))


def test_inspecting_names_the_tpm_and_the_pcrs() -> None:
    form = describe_key(OBJECT.encode() + BOX, b"").form
    assert ("TPM 2.0" in form, "sha256:0,2,4,7" in form, "ProductKey" in form) == (True, True, True)
    assert "damaged" in describe_key(OBJECT.encode(), b"").form
