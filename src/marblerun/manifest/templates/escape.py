"""The escaping of ``html``, ``js`` and ``urlquery``."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote_plus

from marblerun.manifest.templates.unicode import is_printable, is_stray_byte, to_bytes, to_text

_HTML: Final = {
    b"\0": "�".encode(), b'"': b"&#34;", b"'": b"&#39;", b"&": b"&amp;", b"<": b"&lt;", b">": b"&gt;",
}  # fmt: skip
_HTML_SPECIAL = re.compile(rb"[\0\"'&<>]")

_JS: Final = {
    "\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D",
}  # fmt: skip
_JS_SPECIAL = re.compile("[\\\\'\"<>&=\\x00-\\x1f]|[^\\x00-\\x7f]")


def escape_html(data: bytes) -> bytes:
    """Text for HTML: quotes, ampersand and angle brackets as entities, NUL as U+FFFD."""
    return _HTML_SPECIAL.sub(lambda found: _HTML[found.group()], data)


def escape_js(data: bytes) -> bytes:
    """Text for a JavaScript string: quotes and markup escaped, as is whatever is not printable."""
    return to_bytes(_JS_SPECIAL.sub(lambda found: _js(found.group()), to_text(data)))


def _js(char: str) -> str:
    if char in _JS:
        return _JS[char]
    if is_stray_byte(char) or (char >= "\x80" and is_printable(char)):
        return char
    return f"\\u{ord(char):04X}"


def escape_url(data: bytes) -> bytes:
    """Text for a URL query: everything but letters, digits and ``-_.~`` as %XX, space as plus."""
    return quote_plus(data).encode()
