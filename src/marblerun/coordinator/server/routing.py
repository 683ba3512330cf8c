"""Which handler a path and method lead to, as Go's request multiplexer decides it (protocol, section 7.2). Pure."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Mapping
from typing import Final, Generic, TypeVar
from urllib.parse import quote, unquote_to_bytes

from marblerun.coordinator.server.exchange import Headers, Response

H = TypeVar("H")

# What Go's URLs write as it is: in a path that it makes, and in a path that it was given.
_PLAIN_IN_PATH: Final = "/$&+,:;=@-._~"
_AS_GIVEN: Final = re.compile(r"[0-9A-Za-z/$&+,:;=@\-._~!'()*\[\]%]*")
_NOT_PLAIN: Final = re.compile(rb"[^!-~]")
_CONTROL: Final = re.compile(r"[\0-\x1f\x7f]")
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_USER: Final = re.compile(r"[0-9A-Za-z\-._:~!$&'()*+,;=%@]*")
# Escapes in a host are for what is not ASCII, and for the percent sign itself.
_HOST: Final = re.compile(r"(?:[0-9A-Za-z\-._~!$&'()*+,;=:\[\]<>\"\x80-\xff]|%(?:[89A-Fa-f][0-9A-Fa-f]|25))*")
_PORT: Final = re.compile(r"(?::[0-9]*)?")
# Go's html.EscapeString and that of its redirects differ from Python's in the quotation marks.
_IN_HTML: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"})


class Routes(Generic[H]):
    """A method table by path. Paths are exact; a trailing slash is another path."""

    def __init__(self, table: Mapping[str, Mapping[str, H]]) -> None:
        self._table = {tuple(path.split("/")): dict(methods) for path, methods in table.items()}
        self._as_written = {
            path: dict(methods)
            for path, methods in table.items()
            if split_target(path) == (path, "") and clean_path(path) == path and "%" not in path
        }

    def is_path(self, target: str) -> bool:
        """Whether a request target is nothing but one of the paths, as most are: no query, nothing to clean."""
        return target in self._as_written

    def find(self, method: str, path: str) -> H | None:
        """The handler, or ``None`` for an unknown path or method: the reference answers 405 to both."""
        methods = self._as_written.get(path)
        if methods is not None:
            return methods.get(method)
        segments = tuple(unquote_to_bytes(segment).decode("utf-8", "replace") for segment in path.split("/"))
        return self._table.get(segments, {}).get(method)


def split_target(target: str, method: str = "GET") -> tuple[str, str] | None:
    """Split a request target into path, escaped as Go would escape it, and query; ``None`` if it is malformed.

    The path is empty where the target has none. Source: Go's ``url.ParseRequestURI``, ``URL.EscapedPath``.
    """
    if method == "CONNECT" and not target.startswith("/"):
        target = "http://" + target
    if not target.startswith("/"):  # as sent through proxies; nobody looks at scheme and host
        scheme = _SCHEME.match(target)
        if scheme is None:
            return None
        target = target[scheme.end() :]
        if target.startswith("//"):
            authority, slash, rest = target[2:].partition("?")[0].partition("/")
            if not _is_authority(authority):
                return None
            target = slash + rest + target[2 + len(authority) + len(slash + rest) :]
        elif not target.startswith("/"):
            target = "?" + target.partition("?")[2]
    path, _, query = target.partition("?")
    if _BROKEN_ESCAPE.search(path) or _CONTROL.search(target):
        return None
    return path if _AS_GIVEN.fullmatch(path) else _escaped(unquote_to_bytes(path.encode("latin-1", "replace"))), query


def _is_authority(text: str) -> bool:
    """Whether this may stand between the slashes of an absolute target."""
    user, _, host = text.rpartition("@")
    if not _USER.fullmatch(user) or _BROKEN_ESCAPE.search(user) or not _HOST.fullmatch(host):
        return False
    if not host.startswith("["):
        name, colon, port = host.partition(":")
        return "[" not in name and _PORT.fullmatch(colon + port) is not None
    literal, bracket, port = host[1:].rpartition("]")
    try:
        ipaddress.IPv6Address(literal.partition("%25")[0])
    except ValueError:
        return False
    return bool(bracket) and _PORT.fullmatch(port) is not None


def _escaped(path: bytes) -> str:
    return quote(path, _PLAIN_IN_PATH)


def clean_path(path: str) -> str:
    """The canonical form of a path: no empty and no dot segments, a trailing slash kept."""
    cleaned = posixpath.normpath("/" + path.lstrip("/"))
    return cleaned + "/" if path.endswith("/") and cleaned != "/" else cleaned


def redirect(path: str, query: str, method: str) -> Response:
    """307 to the canonical path, with the query kept. What was escaped in the path is escaped once more, as by Go."""
    # A backslash must not stay in a path: browsers take "/\\host" for another host.
    location = (_escaped(path.encode("latin-1", "replace")) + ("?" + query if query else "")).encode(
        "latin-1", "replace"
    )
    headers: Headers = ((b"location", _NOT_PLAIN.sub(lambda found: b"%%%02x" % found[0][0], location)),)
    if method not in ("GET", "HEAD"):
        return Response(307, headers)
    shown = location.decode("latin-1").translate(_IN_HTML).encode("latin-1")
    body = b"" if method == "HEAD" else b'<a href="%s">Temporary Redirect</a>.\n\n' % shown
    return Response(307, (*headers, (b"content-type", b"text/html; charset=utf-8")), body)


def query_values(query: str, name: str) -> list[str]:
    """All values of a query parameter, by Go's rules: pairs with a semicolon or a broken escape do not count."""
    values: list[str] = []
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if not pair or ";" in pair or _BROKEN_ESCAPE.search(pair):
            continue
        if _unescape(key) == name:
            values.append(_unescape(value))
    return values


def _unescape(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ").encode("latin-1", "replace")).decode("utf-8", "surrogateescape")
