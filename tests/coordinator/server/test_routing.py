"""Paths, queries and envelopes (protocol, sections 7.1, 7.2)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.coordinator.server import envelope
from marblerun.coordinator.server.routing import Routes, clean_path, query_values, redirect, split_target

ROUTES = Routes({"/status": {"GET": 1}, "/api/v2/status": {"GET": 2, "POST": 3}})


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/status", 1),
        ("GET", "/api/v2/status", 2),
        ("POST", "/api/v2/status", 3),
        ("POST", "/status", None),
        ("HEAD", "/status", None),
        ("get", "/status", None),
        ("GET", "/status/", None),
        ("GET", "/Status", None),
        ("GET", "/", None),
        ("GET", "", None),
        ("GET", "/api/v2", None),
        ("GET", "/%73tatus", 1),
        ("GET", "/api%2Fv2/status", None),
        ("GET", "/api/v2/status%00", None),
        ("GET", "/api/v2/status%2f", None),
        ("GET", "/%ff", None),
    ],
)
def test_paths_are_exact_and_escapes_are_decoded_within_a_segment(method: str, path: str, expected: int | None) -> None:
    assert ROUTES.find(method, path) == expected


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/", "/"), ("/a", "/a"), ("//a", "/a"), ("/a//b", "/a/b"), ("/a/./b", "/a/b"), ("/a/../b", "/b"),
        ("/../../a", "/a"), ("/a/", "/a/"), ("//", "/"), ("/a/..", "/"), ("/a/../", "/"), ("///a///", "/a/"),
        ("/a/.", "/a"), ("/...", "/..."), ("/a%2F..%2Fb", "/a%2F..%2Fb"),
    ],
)  # fmt: skip
def test_canonical_paths_have_no_empty_and_no_dot_segments(path: str, clean: str) -> None:
    assert clean_path(path) == clean


@given(st.text(alphabet="/.a%2", max_size=30))
def test_a_canonical_path_stays_as_it_is_and_never_leads_to_another_host(path: str) -> None:
    cleaned = clean_path("/" + path)
    assert clean_path(cleaned) == cleaned
    assert cleaned.startswith("/")
    assert not cleaned.startswith("//")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a?b=c?d", ("/a", "b=c?d")),
        ("/a", ("/a", "")),
        ("https://host:1/a?b", ("/a", "b")),
        ("http://host", ("", "")),
        ("http://host?a=b", ("", "a=b")),
        ("http:/a", ("/a", "")),
        ("mailto:a?b", ("", "b")),
        ("http://u:p@host:1/a", ("/a", "")),
        ("http://u<@host/a", None),
        ("http://host:x/a", None),
        ("http://h%41/a", None),
        ("http://h%c3/a", ("/a", "")),
        ("http://h@%zz/a", None),
        ("http://[::1]:1/a", ("/a", "")),
        ("http://[fe80::1%25en0]/a", ("/a", "")),
        ("http://[::1/a", None),
        ("http://[1.2.3.4]/a", None),
        ("/a\x01", None),
        ("/a?\x7f", None),
        ("/a|b", ("/a%7Cb", "")),
        ("/\xe9%7c", ("/%E9%7C", "")),
        ("HTTP://host:1/a?b", ("/a", "b")),
        ("ftp://host/a", ("/a", "")),
        ("1ftp://host/a", None),
        ("://host/a", None),
        ("*", None),
        ("", None),
        ("a", None),
        ("host:443", ("", "")),
        ("/%", None),
        ("/%4", None),
        ("/%zz", None),
        ("/a?%", ("/a", "%")),
    ],
)
def test_targets_are_split_or_refused(target: str, expected: tuple[str, str] | None) -> None:
    assert split_target(target) == expected


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("s=a&s=b", ["a", "b"]),
        ("s=a&t=b&s", ["a", ""]),
        ("s=a%20b+c", ["a b c"]),
        ("s=a;s=b", []),
        ("s=%", []),
        ("%73=x", ["x"]),
        ("", []),
        ("&&s=1&", ["1"]),
        ("S=1", []),
        ("s==", ["="]),
    ],
)
def test_query_values_follow_go(query: str, values: list[str]) -> None:
    assert query_values(query, "s") == values


def test_a_redirect_keeps_the_query_and_escapes_its_page() -> None:
    response = redirect('/a"<>', "q=<", "GET")
    assert response.status == 307
    assert dict(response.headers)[b"location"] == b"/a%22%3C%3E?q=<"
    assert b"<>" not in response.body
    assert redirect("/a", "", "POST").body == redirect("/a", "", "HEAD").body == b""


# -- envelopes ---------------------------------------------------------------------------------------------------


def test_a_success_has_data_even_if_it_is_null() -> None:
    assert envelope.success(None).body == b'{"status":"success","data":null}\n'
    assert dict(envelope.success(None).headers) == {b"content-type": b"application/json"}


def test_an_error_has_no_message_field_when_there_is_nothing_to_say() -> None:
    response = envelope.error(405)
    assert (response.status, response.body) == (405, b'{"status":"error","data":null}\n')
    assert dict(response.headers) == {
        b"content-type": b"text/plain; charset=utf-8",
        b"x-content-type-options": b"nosniff",
    }


def test_a_fail_is_json_with_its_message() -> None:
    response = envelope.fail(400, "a<b")
    assert response.body == b'{"status":"fail","data":null,"message":"a\\u003cb"}\n'
    assert json.loads(response.body)["message"] == "a<b"
    assert dict(response.headers) == {b"content-type": b"application/json"}


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)))
def test_a_redirect_stays_on_this_host_and_is_one_header_line(path: str, query: str) -> None:
    """Browsers read a backslash as a slash, so that ``/\\host`` would lead to another host."""
    (_, location), *_ = redirect(clean_path("/" + path), query, "GET").headers
    assert location.startswith(b"/")
    assert location[1:2] not in (b"/", b"\\")
    assert not set(location) - set(range(0x21, 0x7F))


def test_a_redirect_to_another_host_by_a_backslash_is_escaped() -> None:
    assert redirect(clean_path("/./\\evil.example"), "", "GET").headers[0] == (b"location", b"/%5Cevil.example")
    assert redirect(clean_path("//a%20b"), "x=1&y=%2F", "GET").headers[0] == (b"location", b"/a%2520b?x=1&y=%2F")
    assert redirect("/a", "\xe9", "GET").headers[0] == (b"location", b"/a?%e9")


def test_a_target_to_connect_to_is_no_path() -> None:
    """Go looks at it as at an authority, unless it begins with a slash."""
    assert split_target("host:443", "CONNECT") == ("", "")
    assert split_target("host:443/a?b", "CONNECT") == ("/a", "b")
    assert split_target("/a", "CONNECT") == ("/a", "")
    assert split_target("host:x", "CONNECT") is None


def test_a_query_is_read_as_the_bytes_that_were_sent() -> None:
    assert query_values("s=\xc3\xa9", "s") == ["\xe9"]


@given(st.one_of(st.sampled_from(["/status", "/api/v2/status"]), st.text(alphabet="/.astu%7?3", max_size=12)))
def test_what_is_taken_for_a_path_as_it_stands_means_the_same_when_it_is_taken_apart(target: str) -> None:
    if ROUTES.is_path(target):
        assert split_target(target) == (target, "")
        assert clean_path(target) == target
        assert ROUTES.find("GET", target) is not None
    assert ROUTES.is_path("/status")
    assert not ROUTES.is_path("/status?")


def test_a_table_with_paths_that_are_not_canonical_never_takes_them_as_they_stand() -> None:
    odd = Routes({"/a//b": {"GET": 1}, "/a%62": {"GET": 2}, "/a?b": {"GET": 3}})
    assert not [path for path in ("/a//b", "/a%62", "/a?b") if odd.is_path(path)]
