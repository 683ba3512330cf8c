"""JSON text as a tree that forgets nothing: members in order, duplicates kept, each node with its offset.

The grammar is that of Go's ``encoding/json``: RFC 8259, no byte order mark, at most ``MAX_JSON_DEPTH`` open brackets,
bytes that are not UTF-8 and lone surrogates inside strings become U+FFFD (one per byte). Nothing here recurses, so
depth costs memory and not the stack; the time is linear in the input.
Source: protocol, section 13.1.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from marblerun.errors import Malformed
from marblerun.wire import limits


class Null(NamedTuple):
    """``null``."""

    at: int


class Bool(NamedTuple):
    """``true`` or ``false``."""

    at: int
    value: bool


class Number(NamedTuple):
    """A number as written; what it means depends on the type it is read into."""

    at: int
    literal: str


class String(NamedTuple):
    """A string with escapes resolved; ``escaped`` tells whether there were any."""

    at: int
    text: str
    escaped: bool = False


class Array(NamedTuple):
    """``[...]``."""

    at: int
    items: list[Node]


class Member(NamedTuple):
    """One ``"key": value`` of an object; ``at`` is where the key starts."""

    at: int
    key: str
    value: Node


class Object(NamedTuple):
    """``{...}`` with its members in order of appearance, duplicates included."""

    at: int
    members: list[Member]


Node = Null | Bool | Number | String | Array | Object


class BadJson(Malformed):
    """JSON that cannot be read: ``faults`` lists everything wrong, in order; the message tells the first few."""

    code = "malformed-json"

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        first, *others = faults
        text = f"{first.message} (line {first.line}, column {first.column})"
        for other in others[:_FAULTS_TOLD]:
            text += f"; {other.path or 'document'}: {other.message} (line {other.line}, column {other.column})"
        if len(others) > _FAULTS_TOLD:
            text += f"; and {len(others) - _FAULTS_TOLD} more"
        super().__init__(text, where=first.path)
        self.faults = faults


class Fault(NamedTuple):
    """One thing wrong with a document. ``path`` is empty for the document itself; line and column count from 1."""

    path: str
    message: str
    line: int
    column: int


_FAULTS_TOLD: Final = 9


class Document(NamedTuple):
    """A parsed text: its tree and what is needed to say where a node stands."""

    root: Node
    text: str

    def position(self, at: int) -> tuple[int, int]:
        """Line and column (both from 1, in characters) of an offset."""
        return self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at)


_WS: Final = r"[ \t\r\n]*+"
# Possessive repeats: no backtracking memory, however long a string is.
_BODY: Final = r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'
_NUMERAL: Final = r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++|(?!\.))(?:[eE][+-]?[0-9]++|(?![eE]))"
_SPACE = re.compile(_WS)
_INSIDE = re.compile(_BODY)
_SCALAR = re.compile(f'(?:"({_BODY})"|({_NUMERAL})|(true|false|null)){_WS}')
_KEY = re.compile(f'"({_BODY})"{_WS}:{_WS}')
_ESCAPE = re.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))",
)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_SIMPLE_ESCAPES: Final = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def parse(raw: bytes) -> Document:
    """The tree of a whole document; anything but white space after the value is refused. Raises :class:`BadJson`."""
    reader = _Reader(_decode(raw))
    document = reader.value()
    if reader.position != len(reader.text):
        raise reader.bad(reader.position, f"unexpected {_show(reader.text, reader.position)} after the value")
    return document


def parse_first(raw: bytes) -> Document:
    """The tree of the first value; whatever follows it is ignored, as Go's stream decoder does. Raises BadJson."""
    return _Reader(_decode(raw)).value()


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # surrogateescape marks each single bad byte, which is how Go counts them; real surrogates cannot occur.
        return _NOT_UTF8.sub("�", raw.decode(errors="surrogateescape"))


def _show(text: str, at: int) -> str:
    return f"character {text[at]!a}" if at < len(text) else "end of input"


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


class _Reader:
    """Turns text into nodes with a stack of its own instead of recursion.

    ``position`` is always the next character that is not white space.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = _skip(text, 0)

    def bad(self, at: int, message: str) -> BadJson:
        """The error that points at an offset."""
        line, column = Document(Null(0), self.text).position(at)
        return BadJson((Fault("", message, line, column),))

    def value(self) -> Document:
        """Read one value, however deep."""
        above: list[tuple[Array | Object, tuple[int, str]]] = []
        while True:
            node = self._scalar_or_bracket()
            if isinstance(node, Array | Object):
                if len(above) >= limits.MAX_JSON_DEPTH:
                    raise self.bad(node.at, f"nested deeper than {limits.MAX_JSON_DEPTH} levels")
                if not self._closes(node):
                    above.append((node, self._key() if isinstance(node, Object) else _NO_KEY))
                    continue
            while above:
                parent, (at, key) = above[-1]
                if isinstance(parent, Object):
                    parent.members.append(Member(at, key, node))
                else:
                    parent.items.append(node)
                if self._comma():
                    if isinstance(parent, Object):
                        above[-1] = (parent, self._key())
                    break
                if not self._closes(parent):
                    raise self.bad(self.position, f"expected ',' or '{_closing(parent)}', found {self._found()}")
                node = above.pop()[0]
            else:
                return Document(node, self.text)

    def _scalar_or_bracket(self) -> Node:
        """A scalar, or an array or object of which only the opening bracket has been read."""
        at = self.position
        match = _SCALAR.match(self.text, at)
        if match is None:
            mark = self.text[at : at + 1]
            if mark not in ("{", "["):
                raise self._explain(at)
            self.position = _skip(self.text, at + 1)
            return Object(at, []) if mark == "{" else Array(at, [])
        self.position = match.end()
        body, numeral, word = match.groups()
        if body is not None:
            return String(at, _ESCAPE.sub(_unescape, body), True) if "\\" in body else String(at, body)
        if numeral is not None:
            return Number(at, numeral)
        return Null(at) if word == "null" else Bool(at, word == "true")

    def _key(self) -> tuple[int, str]:
        at = self.position
        match = _KEY.match(self.text, at)
        if match is None:
            raise self._explain_key(at)
        self.position = match.end()
        key = match.group(1)
        return at, _ESCAPE.sub(_unescape, key) if "\\" in key else key

    def _comma(self) -> bool:
        if self.text.startswith(",", self.position):
            self.position = _skip(self.text, self.position + 1)
            return True
        return False

    def _closes(self, node: Array | Object) -> bool:
        if self.text.startswith(_closing(node), self.position):
            self.position = _skip(self.text, self.position + 1)
            return True
        return False

    def _found(self) -> str:
        return _show(self.text, self.position)

    def _explain(self, at: int) -> BadJson:
        """What is wrong where a value should be."""
        mark = self.text[at : at + 1]
        if mark == '"':
            return self._explain_string(at, "string")
        if mark and mark in "-0123456789":
            return self.bad(at, "invalid number")
        if mark == "\ufeff":
            return self.bad(at, "byte order mark; JSON must not begin with one")
        return self.bad(at, f"expected a value, found {self._found()}")

    def _explain_key(self, at: int) -> BadJson:
        """What is wrong where a key and a colon should be."""
        if not self.text.startswith('"', at):
            return self.bad(at, f"expected a quoted key, found {self._found()}")
        inside = _INSIDE.match(self.text, at + 1)
        end = inside.end() if inside else at + 1
        if not self.text.startswith('"', end):
            return self._explain_string(at, "key")
        colon = _skip(self.text, end + 1)
        return self.bad(colon, f"expected ':' after a key, found {_show(self.text, colon)}")

    def _explain_string(self, at: int, what: str) -> BadJson:
        inside = _INSIDE.match(self.text, at + 1)
        end = inside.end() if inside else at + 1
        if end == len(self.text):
            return self.bad(at, f"{what} does not end")
        if self.text[end] == "\\":
            return self.bad(end, f"invalid escape in {what}")
        return self.bad(end, f"control {_show(self.text, end)} in {what} must be escaped")


_NO_KEY: Final = (0, "")


def _closing(node: Array | Object) -> str:
    return "}" if isinstance(node, Object) else "]"


def _unescape(match: re.Match[str]) -> str:
    high, low, unit, simple = match.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00))
    if unit:
        point = int(unit, 16)
        return "�" if 0xD800 <= point <= 0xDFFF else chr(point)
    return _SIMPLE_ESCAPES[simple]
