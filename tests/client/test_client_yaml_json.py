"""Manifest files as JSON bytes: JSON untouched, YAML as the reference's library converts it, or a clear refusal."""

from __future__ import annotations

import contextlib
import json
import time
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.client.yaml_json import manifest_from_bytes, yaml_to_json
from marblerun.errors import Malformed

GOLDEN: list[tuple[str, str | None]] = [
    (document, answer) for document, answer in json.loads((Path(__file__).parent / "golden_yaml.json").read_text())
]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def _ours(document: str) -> bytes | None:
    try:
        return manifest_from_bytes(document.encode()).json
    except Malformed:
        return None


def test_every_document_that_is_accepted_gives_the_bytes_that_go_gives() -> None:
    """498 documents through sigs.k8s.io/yaml 1.6.0; ours may refuse more, but never reads another meaning."""
    wrong = [
        (document, answer, ours)
        for document, answer in GOLDEN
        if (ours := _ours(document)) is not None and (answer is None or ours.decode() != answer)
    ]
    # libyaml reads the 1.2 directive, Go's does not; the meaning is the same.
    assert [document for document, _, _ in wrong] == ["%YAML 1.2\n---\na: 1\n"]


def test_most_of_what_go_accepts_is_accepted() -> None:
    accepted = [document for document, answer in GOLDEN if answer is not None and answer.startswith("{")]
    refused = [document for document in accepted if _ours(document) is None]
    assert len(accepted) > 350
    # Tags that JSON cannot carry, numbers it does not have as keys, one key in two spellings, several documents.
    assert len(refused) < 40


@given(JSON)
def test_valid_json_is_sent_byte_for_byte(value: object) -> None:
    raw = json.dumps(value, indent=1).encode()
    source = manifest_from_bytes(raw)
    assert (source.json, source.from_yaml, source.fingerprint) == (raw, False, sha256(raw).hexdigest())


@given(st.dictionaries(st.text("abcXYZ_-", min_size=1), JSON, min_size=1))
def test_json_as_yaml_keeps_its_meaning(value: dict[str, object]) -> None:
    """JSON is YAML: converting it changes layout and order, nothing else."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isprintable():  # YAML does not have the other characters unescaped
        converted = json.loads(yaml_to_json(text.encode()), parse_int=float)
        assert converted == json.loads(text, parse_int=float)


def test_the_fingerprint_of_yaml_is_that_of_its_json() -> None:
    yaml = b"Packages:\n  shop:\n    SecurityVersion: 1\n    Debug: no\n"
    assert manifest_from_bytes(yaml).json == b'{"Packages":{"shop":{"Debug":false,"SecurityVersion":1}}}'


@given(st.binary(max_size=200))
def test_any_bytes_are_json_yaml_or_malformed(raw: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(manifest_from_bytes(raw).json, bytes)


REFUSALS = [
    (b"a: 1\na: 2\n", "key 'a' is there twice (line 2, column 1)"),
    (b"1: x\n'1': y\n", "key '1' is there twice"),
    (b"x: &a {k: 1}\ny: {<<: *a, k: 2}\n", "key 'k' is there twice"),
    (b"a: 1\n---\nb: 1\n", "more than one document"),
    (b"a: &x [*x]\n", "contains itself"),
    (b"a: !!binary aGk=\n", "cannot be read with the tag binary"),
    (b"a: .inf\n", "number that JSON does not have"),
    (b"? [a]\n: b\n", "cannot be a key"),
    (b"just text", "neither a JSON object nor a YAML mapping"),
    (b"", "neither a JSON object nor a YAML mapping"),
    (b"a: \xff", "is not UTF-8 (byte 3)"),
    (b'{"a": 1,, }', "is not JSON"),
]


@pytest.mark.parametrize(("raw", "text"), REFUSALS)
def test_what_is_ambiguous_is_refused_with_its_place(raw: bytes, text: str) -> None:
    with pytest.raises(Malformed) as refusal:
        manifest_from_bytes(raw)
    assert text in str(refusal.value)


BOMBS = {
    "aliases": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(9)),
    "deep": b"a: " + b"[" * 100_000,
    "deep json": b"[" * 100_000,
    "deep indent": b"".join(b" " * i + b"a:\n" for i in range(2_000)),
    "long number": b"a: " + b"9" * 1_000_000,
    "huge": b"a: " + b"x" * (17 * 1024 * 1024),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_within_bounded_time(name: str) -> None:
    start = time.process_time()
    with contextlib.suppress(Malformed):
        manifest_from_bytes(BOMBS[name])
        assert name == "long number"
    assert time.process_time() - start < 15
