"""Raw HTTP/1 requests, answered by our client listener and by Go's own server: the same, but for what is listed here.

The Go program of ``tests/go/edgeserver`` has the routes and the bodies; what it makes of a request is Go's.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.coordinator.manifests import INTEGRATION
from tests.coordinator.peers import http1
from tests.coordinator.running import Address, running

SOURCE = Path(__file__).resolve().parents[1] / "go" / "edgeserver"
ROUTES = [
    ("GET", "/status", False),
    ("GET", "/api/v2/status", False),
    ("GET", "/secrets", False),
    ("POST", "/recover", False),
    ("POST", "/manifest", True),
]
HOST, CLOSE = b"Host: x", b"Connection: close"


def request(line: bytes = b"GET /status HTTP/1.1", *headers: bytes, body: bytes = b"", end: bytes = b"\r\n") -> bytes:
    return end.join((line, *headers, b"", b"")) + body


LAST = request(b"GET /status HTTP/1.1", HOST, CLOSE)


def targets() -> Iterator[bytes]:
    texts = (
        "//status /./status /x/../status /../status // /. /status/ /status/. /status// /%73tatus /%2e/status "
        "/status%00 /status%2f /%zz /% /%4 /status? /status?a=% /status?%zz /status#f /a|b /\\evil "
        "//evil.example/x /<x> /a//b?c=// //%41 //%2f //a%20b //a|b //a\\b //<x>?<\"' //a'b //a!*() //[x] //: "
        "//a@b?# http://x/status http://x http://x?y HTTP://x/status http:///status http:/status http:status "
        "foo:bar ://x/status 1a://x/status http://x:a/status http://[::1]/status http://[::1/status "
        "http://[1.2.3.4]/status http://u@x/status http://u<@x/status http://x%41/ http://x//status status * "
        "** ? a/b x:1 /é //é?é /status?é /STATUS /api /nothing"
    )
    for text in texts.split():
        for method in (b"GET", b"POST", b"CONNECT", b"OPTIONS", b"HEAD"):
            yield request(method + b" " + text.encode() + b" HTTP/1.1", HOST, CLOSE)
        yield request(b"GET " + text.encode() + b" HTTP/1.0")


def bytes_everywhere() -> Iterator[bytes]:
    for byte in (*range(48), 58, 64, 91, 92, 96, 123, 127, 128, 255):
        one = bytes((byte,))
        yield request(b"GET /sta" + one + b"tus HTTP/1.1", HOST, CLOSE)
        yield request(b"GET /status?" + one + b" HTTP/1.1", HOST, CLOSE)
        yield request(b"GET //x" + one + b"y?" + one + b" HTTP/1.1", HOST, CLOSE)
        yield request(b"G" + one + b"T /status HTTP/1.1", HOST, CLOSE)
        yield request(b"GET /status HTTP/1.1" + one, HOST, CLOSE)
        for header in (b"A: x%by", b"A:%b", b"A: y%b", b"A%by: x", b"%bA: x", b"A%b: x"):
            yield request(b"GET /status HTTP/1.1", HOST, CLOSE, header % one)
        yield request(b"GET /status HTTP/1.1", b"Host: x" + one + b"y", CLOSE)


def lines_and_versions() -> Iterator[bytes]:
    for version in (
        "1.0",
        "1.1",
        "1.2",
        "1.9",
        "2.0",
        "0.9",
        "3.0",
        "1",
        "1.10",
        "1.",
        "+1.1",
        "01.1",
        "1.1 ",
        "1.1 x",
    ):
        for headers in ((HOST, CLOSE), (CLOSE,), (HOST, b"Connection: keep-alive")):
            yield request(b"GET /status HTTP/" + version.encode(), *headers) + LAST
    lines = (
        b"GET",
        b"GET ",
        b"GET /status",
        b"GET  /status HTTP/1.1",
        b" GET /status HTTP/1.1",
        b"",
        b" ",
        b"/status",
        b"get /status HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"PRI / HTTP/2.0",
        b"GET /status http/1.1",
        b"GET /a b HTTP/1.1",
    )
    for line in lines:
        yield request(line, HOST, CLOSE) + LAST
        yield request(line) + LAST
    for end in (b"\n", b"\r\r\n"):
        yield request(b"GET /status HTTP/1.1", HOST, CLOSE, end=end) + LAST
    for method in (b"HEAD", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"BREW", b"PRI"):
        yield request(method + b" /status HTTP/1.1", HOST, CLOSE)
        yield request(method + b" /status HTTP/1.0", HOST)


def header_rules() -> Iterator[bytes]:
    hosts = (
        "x",
        "",
        " ",
        "x y",
        "x/y",
        "x@y",
        "[::1]",
        "[::1",
        "x:a",
        ":1",
        "a,b",
        "<",
        "%zz",
        "x#",
        "x\r\n y",
        "x\r\nHost: x",
    )
    for host in hosts:
        for line in (
            b"GET /status HTTP/1.1",
            b"GET /status HTTP/1.0",
            b"GET http://y/status HTTP/1.1",
            b"CONNECT y:1 HTTP/1.1",
        ):
            yield request(line, b"Host: " + host.encode(), CLOSE)
    for field in (
        b"A: b\r\n c",
        b"A:\r\n\tc",
        b"A: b\r\n ",
        b"A: b\r\n c\0",
        b"A\r\n : b",
        b"A",
        b": b",
        b"A::b",
        b'"A": b',
    ):
        yield request(b"GET /status HTTP/1.1", HOST, field, CLOSE)
        yield request(b"GET /status HTTP/1.1", field, HOST, CLOSE)
    for value in (
        "close",
        "Close",
        "keep-alive",
        "close, keep-alive",
        "te, close",
        "x close",
        "close;x",
        "upgrade",
        "",
    ):
        for line in (b"GET /status", b"HEAD /status", b"POST /recover", b"OPTIONS *", b"GET *", b"GET //x"):
            for version in (b"1.1", b"1.0", b"1.2"):
                head = request(line + b" HTTP/" + version, HOST, b"Connection: " + value.encode())
                yield head + request(b"GET /status HTTP/1.1", HOST, CLOSE)
    for value in ("100-continue", "100-Continue", "foo", "", "foo, 100-continue", "100"):
        for version in (b"1.1", b"1.0"):
            expects = b"Expect: " + value.encode()
            yield request(b"GET /status HTTP/" + version, HOST, CLOSE, expects)
            yield request(b"POST /manifest HTTP/" + version, HOST, CLOSE, expects, b"Content-Length: 0")
            yield request(b"POST /manifest HTTP/" + version, HOST, CLOSE, expects, b"Content-Length: 3", body=b"abc")


def framing() -> Iterator[bytes]:
    chunks = b"3\r\nabc\r\n0\r\n\r\n"
    for coding in (
        "chunked",
        "CHUNKED",
        "identity",
        "gzip, chunked",
        "chunked, chunked",
        "",
        " chunked\t",
        "chunked;x",
    ):
        for more in ((), (b"Content-Length: 5",), (b"Transfer-Encoding: chunked",), (b"Trailer: content-length",)):
            coded = b"Transfer-Encoding: " + coding.encode()
            yield request(b"POST /manifest HTTP/1.1", HOST, coded, *more, body=chunks) + LAST
            yield request(b"POST /manifest HTTP/1.0", HOST, coded, b"Content-Length: 3", body=b"abc")
    for length in (
        "",
        " ",
        "0",
        "00",
        "3",
        "03",
        "+3",
        "-3",
        "3,3",
        "0x3",
        "3.0",
        "9" * 30,
        str(2**63),
        "3\r\n 3",
        "3\r\nContent-Length: 3",
    ):
        for line in (b"GET /status", b"POST /manifest", b"POST /recover"):
            yield request(line + b" HTTP/1.1", HOST, b"Content-Length: " + length.encode(), body=b"abc") + LAST
    good = (
        chunks,
        b"03\r\nabc\r\n00\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3;a=b\r\nabc\r\n0;x\r\n\r\n",
        b"3;\0\r\nabc\r\n0\r\n\r\n",
        b"0" * 15 + chunks,
        b"3\r\nabc\r\n0\r\nA: b\r\n\r\n",
        b"3\r\nabc\r\n0\r\nA : b\r\n\r\n",
        b"1\r\na\r\n" * 300 + b"0\r\n\r\n",
        chunks + b"\r\n",
    )
    for body in good:
        for line in (b"POST /manifest", b"POST /recover"):
            yield request(line + b" HTTP/1.1", HOST, b"Transfer-Encoding: chunked", body=body) + LAST
    for count in (2, 10):
        yield request(b"GET /status HTTP/1.1", HOST) * count + LAST
        yield request(b"GET /status HTTP/1.1", HOST, b"", b"") * count + LAST
        yield (request(b"POST /recover HTTP/1.1", HOST, b"Content-Length: 3", body=b"abc") + b"\r\n") * count + LAST


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Address, Address]]:
    """Our listener and Go's, with the same routes and bodies."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: some thousand raw requests were not compared")
    program = tmp_path_factory.mktemp("edgeserver") / "edgeserver"
    subprocess.run([go, "build", "-o", str(program), "."], cwd=SOURCE, check=True, timeout=300)
    with running(manifest=INTEGRATION) as up:
        table = [_as_answered(up.client, *route) for route in ROUTES]
        table.append({**_as_answered(up.client, "GET", "/nothing", False), "Path": ""})
        process = subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.closing(process.stdin):
            process.stdin.write(json.dumps(table).encode() + b"\n")
            process.stdin.flush()
            host, _, port = process.stdout.readline().decode().strip().rpartition(":")
            yield up.client, (host, int(port))
        process.stdout.close()
        process.wait(timeout=60)


def _as_answered(address: Address, method: str, path: str, reads: bool) -> dict[str, Any]:
    """What we answer to a plain request, for the Go program to answer it too."""
    answer = http1(address, request(f"{method} {path} HTTP/1.1".encode(), HOST, CLOSE, b"Content-Length: 0"))
    head, _, body = answer.decode().partition("\r\n\r\n")
    found = dict(re.findall(r"^(Content-Type|X-Content-Type-Options): (.*?)\r?$", head, re.MULTILINE))
    status = int(head.split()[1])
    return {"Path": path, "Method": method, "Status": status, "Headers": found, "Body": body, "Reads": reads}


def what_counts(answer: bytes) -> list[tuple[bytes, list[bytes], bytes]]:
    """Of each response the status line, the fields in no order, and the body; not what time it is."""
    found = []
    for part in re.split(rb"(?=HTTP/1\.[01] [0-9]{3} )", answer)[1:]:
        head, _, body = part.partition(b"\r\n\r\n")
        start, *fields = head.split(b"\r\n")
        fields = [b"Date" if field.startswith(b"Date: ") else field for field in fields]
        kept = sorted(field for field in fields if not field.startswith(b"X-Request-Id: "))
        # The reasons in our bodies are our own; the program has them for plain requests.
        if b" 400 " in start and body.startswith(b"{"):
            kept, body = [field for field in kept if not field.startswith(b"Content-Length")], body[:20]
        found.append((start, kept, body))
    return found


@pytest.mark.parametrize("requests", [targets, bytes_everywhere, lines_and_versions, header_rules, framing])
def test_raw_requests_are_answered_as_by_go(
    both: tuple[Address, Address], requests: Callable[[], Iterator[bytes]]
) -> None:
    ours, theirs = both
    tried = list(requests())
    differences = {
        sent: (mine, goes)
        for sent in tried
        if (mine := what_counts(http1(ours, sent))) != (goes := what_counts(http1(theirs, sent)))
    }
    assert differences == {}
    assert len(tried) > 80


BROKEN = [
    b"3\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\n0\r\n\r\n",
    b"3\r\nabc\r\n0\n\r\n",
    b" 3\r\nabc\r\n0\r\n\r\n",
    b"3 ;a\r\nabc\r\n0\r\n\r\n",
    b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    b"0x3\r\nabc\r\n0\r\n\r\n",
    b"-3\r\nabc\r\n0\r\n\r\n",
    b"g\r\n",
    b"\r\nabc",
    b";a\r\nabc\r\n",
    b"3\r\nabcd\r\n0\r\n\r\n",
    b"0" * 17 + b"3\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n0\r\nA\r\n\r\n",
    b"3\r\nabc\r\n0\r\nA: \0\r\n\r\n",
    b"3\r\nabc\r\n0\r\n A: b\r\n\r\n",
    b"3\r\nabc\r\n0\r\nA: " + b"b" * 5000 + b"\r\n\r\n",
    b"3;" + b"x" * 5000 + b"\r\nabc\r\n0\r\n\r\n",
    b"".join(b"1;" + b"x" * 900 + b"\r\na\r\n" for _ in range(30)) + b"0\r\n\r\n",
]


@pytest.mark.parametrize("body", BROKEN)
def test_a_body_with_broken_chunks_ends_the_connection_here_and_there(
    both: tuple[Address, Address], body: bytes
) -> None:
    """What is said before differs: Go's handlers may answer before they look at the body (divergences)."""
    for address in both:
        sent = request(b"POST /manifest HTTP/1.1", HOST, b"Transfer-Encoding: chunked", body=body) + LAST
        (answer,) = what_counts(http1(address, sent))
        assert answer[0] == b"HTTP/1.1 400 Bad Request"
        assert b"Connection: close" in answer[1]


def test_a_trailer_section_that_ends_in_a_bare_line_feed_is_refused(both: tuple[Address, Address]) -> None:
    """Go goes on with the next request; nobody else has to agree on where that begins."""
    sent = request(b"POST /recover HTTP/1.1", HOST, b"Transfer-Encoding: chunked", body=b"0\r\nA: b\n\n\r\n\r\n") + LAST
    assert [start[9:12] for start, _, _ in what_counts(http1(both[0], sent))] == [b"400"]


def test_go_is_told_apart_when_it_should_be(both: tuple[Address, Address]) -> None:
    """The comparison compares: a status line more or less, a header or a body would show."""
    same = what_counts(http1(both[1], LAST))
    assert same == what_counts(http1(both[0], LAST))
    assert same != what_counts(http1(both[1], request(b"GET /nothing HTTP/1.1", HOST, CLOSE)))
