"""JSON is read and written as Go does it; the golden file holds Go's verdicts, the oracle is Go itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.go.oracle import Oracle, running
from tests.manifest import golden

from marblerun.errors import Malformed
from marblerun.wire import gojson, jsontree

STRUCTURAL = [(mode, text, answer) for mode, text, answer in golden.load() if mode != "manifest"]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    with running("jsondiff", tmp_path_factory.mktemp("go")) as program:
        if program is None:
            pytest.skip("Go is not installed: no differential test, only the golden file")
        yield program


def test_the_golden_file_is_large_and_holds_refusals_too() -> None:
    verdicts = [answer.ok for _, _, answer in golden.load()]
    assert len(verdicts) >= 400
    assert 150 <= sum(verdicts) <= 300


@pytest.mark.parametrize(("mode", "text", "answer"), STRUCTURAL, ids=lambda value: str(value)[:40])
def test_structures_read_as_go_reads_them(mode: str, text: bytes, answer: object) -> None:
    assert golden.ours(mode, text) == answer


def test_golden_file_is_what_go_says_today(oracle: Oracle) -> None:
    for mode, text, answer in golden.load():
        assert golden.theirs(oracle, mode, text) == answer


_KEYS = ["I8", "i64", "U8", "Bytes", "bytes", "List", "list", "Pairs", "Map", "Ptr", "Any"]
_VALUES = ["null", "[]", "[null]", '["a"]', '["a","b",null]', "{}", '{"A":"x"}', '{"b":"y"}', '[{"A":"x"},{"B":"y"}]']
_VALUES += ["[{}]", "[null,{}]", '{"k":["v"]}', '{"k":[null]}', "127", "-1", "256", '"AQID"', '"AQ=="', "[1,2]"]
_VALUES += ["[null,7]", "1e400"]
_members = st.lists(st.tuples(st.sampled_from(_KEYS), st.sampled_from(_VALUES)), max_size=6).map(
    lambda pairs: "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"
)
_pieces = st.sampled_from(["{", "}", ",", '"', ":", " ", "\\u0041", "\xff", "\ufeff", '"List":', *_VALUES])


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(mode=st.sampled_from(["shapes", "first"]), text=st.one_of(_members, st.lists(_pieces, max_size=8).map("".join)))
def test_random_structures_read_as_go_reads_them(oracle: Oracle, mode: str, text: str) -> None:
    document = text.encode("latin-1", errors="replace") if "\xff" in text else text.encode()
    assert golden.theirs(oracle, mode, document) == golden.ours(mode, document)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), _TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXT, inner, max_size=3)),
    max_leaves=8,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(_values)
def test_text_written_is_byte_for_byte_what_go_writes(oracle: Oracle, value: object) -> None:
    text = gojson.marshal(value)
    assert oracle.ask("marshal", text).value == text.decode()


@given(_values)
def test_what_is_written_means_the_same_to_any_json_reader(value: object) -> None:
    assert json.loads(gojson.marshal(value)) == json.loads(
        json.dumps(value, ensure_ascii=False).encode(errors="replace")
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, b"null"),
        (b"\x00\xff", b'"AP8="'),
        (b"", b'""'),
        ({"b": 1, "a": True}, b'{"a":true,"b":1}'),
        (gojson.Struct((("b", 1), ("a", ()))), b'{"b":1,"a":[]}'),
        ('<&>\u2028\u2029\x01\x7f\n"\\', b'"\\u003c\\u0026\\u003e\\u2028\\u2029\\u0001\x7f\\n\\"\\\\"'),
        ("\ud800", b'"\\ufffd"'),
        (18446744073709551615, b"18446744073709551615"),
    ],
)
def test_go_s_choices_when_writing(value: object, text: bytes) -> None:
    assert gojson.marshal(value) == text


def test_writing_what_json_cannot_hold_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="float"):
        gojson.marshal({"a": 1.5})


_TREE = gojson.record(
    Packages=gojson.mapping(gojson.record(SecurityVersion=gojson.uint(16), Names=gojson.list_of(gojson.string)))
)


def _refusal(text: bytes, shape: gojson.Shape[Any] = _TREE) -> gojson.BadJson:
    with pytest.raises(gojson.BadJson) as caught:
        gojson.unmarshal(text, shape)
    return caught.value


def test_a_type_error_names_path_line_column_and_both_sides() -> None:
    error = _refusal(b'{"packages":\n  {"backend": {"securityversion": -1}}}')
    fault = error.faults[0]
    assert (error.where, fault.line, fault.column) == ("Packages.backend.SecurityVersion", 2, 35)
    assert "from 0 to 65535" in str(error)
    assert "found number -1" in str(error)


def test_all_type_errors_are_told_at_once() -> None:
    error = _refusal(b'{"Packages":{"a":{"SecurityVersion":"1","Names":["x",2,[]]},"b":3}}')
    assert [fault.path for fault in error.faults] == [
        "Packages.a.SecurityVersion",
        "Packages.a.Names[1]",
        "Packages.a.Names[2]",
        "Packages.b",
    ]


def test_values_that_may_be_secret_do_not_appear_in_messages() -> None:
    assert "hunter2" not in str(_refusal(b'{"Packages":{"a":"hunter2"}}'))


@pytest.mark.parametrize(
    ("text", "says", "at"),
    [
        (b'{"a":1,\n}', "quoted key", (2, 1)),
        (b"[1,]", "expected a value", (1, 4)),
        (b'"abc', "does not end", (1, 1)),
        (b'{"a\x01":1}', "must be escaped", (1, 4)),
        (b'"\\q"', "invalid escape", (1, 2)),
        (b"01", "after the value", (1, 2)),
        (b"1.", "invalid number", (1, 1)),
        (b"\xef\xbb\xbf{}", "byte order mark", (1, 1)),
        (b"[1 2]", "expected ',' or ']'", (1, 4)),
        (b'{"a" 1}', "expected ':'", (1, 6)),
    ],
)
def test_a_syntax_error_says_what_and_where(text: bytes, says: str, at: tuple[int, int]) -> None:
    error = _refusal(text)
    assert says in str(error)
    assert (error.faults[0].line, error.faults[0].column) == at


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_random_bytes_are_read_or_refused_but_never_crash(raw: bytes) -> None:
    try:
        value: object = gojson.unmarshal(raw, _TREE)
    except Malformed as error:
        value = str(error)
    assert value


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 4_000_000,
        b'{"a":' * 1_000_000,
        b'"' + b"\\n" * 1_000_000,
        b'"' + b"\xff" * 1_000_000,
        b"1" * 4_000_000 + b"x",
    ],
    ids=["brackets", "objects", "escapes", "not utf-8", "digits"],
)
def test_hostile_text_is_refused_quickly(raw: bytes) -> None:
    assert isinstance(_refusal(raw), Malformed)


def test_a_huge_number_is_out_of_range_and_not_converted() -> None:
    assert "very long number" in str(_refusal(b'{"Packages":{"a":{"SecurityVersion":' + b"9" * 100_000 + b"}}}"))


def test_nothing_is_lost_in_the_tree() -> None:
    document = jsontree.parse(b'{"a":1,"a":[null,true,"\\u00e9"]}')
    assert isinstance(document.root, jsontree.Object)
    assert [member.key for member in document.root.members] == ["a", "a"]
    assert document.root.members[1].value == jsontree.Array(
        11, [jsontree.Null(12), jsontree.Bool(17, True), jsontree.String(22, "é", True)]
    )
