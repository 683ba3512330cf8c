"""Which handler a path and method lead to, as Go's request multiplexer decides it (protocol, section 7.2). Pure."""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Mapping
from typing import Final, Generic, TypeVar
from urllib.parse import quote, unquote_to_bytes

from marblerun.coordinator.server.exchange import Headers, Response

H = TypeVar("H")

_PLAIN_IN_TARGET: Final = "/?%!$&'()*+,;:@=~-._[]"
_ABSOLUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


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


def split_target(target: str) -> tuple[str, str] | None:
    """Split a request target into path and query; ``None`` if it is not one that a server can answer."""
    if absolute := _ABSOLUTE.match(target):  # as sent through proxies; Go looks at neither scheme nor host
        target = "/" + target[absolute.end() :].partition("/")[2]
    path, _, query = target.partition("?")
    if not path.startswith("/") or _BROKEN_ESCAPE.search(path):
        return None
    return path, query


def clean_path(path: str) -> str:
    """The canonical form of a path: no empty and no dot segments, a trailing slash kept."""
    cleaned = posixpath.normpath("/" + path.lstrip("/"))
    return cleaned + "/" if path.endswith("/") and cleaned != "/" else cleaned


def redirect(path: str, query: str, method: str) -> Response:
    """307 to the canonical path, with the query kept."""
    # What Go's URL does not write plainly. A backslash above all: browsers take "/\\host" for another host.
    location = quote((f"{path}?{query}" if query else path).encode("latin-1", "replace"), _PLAIN_IN_TARGET)
    headers: Headers = ((b"location", location.encode("ascii")),)
    if method not in ("GET", "HEAD"):
        return Response(307, headers)
    body = b"" if method == "HEAD" else f'<a href="{html.escape(location)}">Temporary Redirect</a>.\n\n'.encode()
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
    return unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "surrogateescape")
