"""JSON text as a tree that forgets nothing: members in order, duplicates kept, each node with its offset.

The grammar is that of Go's ``encoding/json``: RFC 8259, no byte order mark, at most ``MAX_JSON_DEPTH`` open brackets,
bytes that are not UTF-8 and lone surrogates inside strings become U+FFFD (one per byte). Nothing here recurses, so
depth costs memory and not the stack; the time is linear in the input, and the number of values has a ceiling too:
a node costs a hundred times what its text does.
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
# The number of the group that matched says what begins: a string, a number, a word, an array or object.
_VALUE = re.compile(f'(?:"({_BODY})"|({_NUMERAL})|(true|false|null)|([{{\\[])){_WS}')
_STRING, _NUMBER, _WORD, _OPENING = 1, 2, 3, 4
_NEXT = re.compile(f"([]}},]){_WS}")
_CLOSING: Final = {"{": "}", "[": "]"}
# Makes a node without the detour over the constructor that a NamedTuple has.
_new: Final = tuple.__new__
_KEY = re.compile(f'"({_BODY})"{_WS}:{_WS}')
_ESCAPE = re.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))",
)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_SIMPLE_ESCAPES: Final = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def parse(raw: bytes, *, max_values: int = limits.MAX_JSON_VALUES) -> Document:
    """The tree of a whole document; anything but white space after the value is refused. Raises :class:`BadJson`.

    ``max_values`` may be raised only for what was authenticated before it is read.
    """
    reader = _Reader(_decode(raw), max_values)
    document = reader.value()
    if reader.position != len(reader.text):
        raise reader.bad(reader.position, f"unexpected {_show(reader.text, reader.position)} after the value")
    return document


def parse_first(raw: bytes) -> Document:
    """The tree of the first value; whatever follows it is ignored, as Go's stream decoder does. Raises BadJson."""
    return _Reader(_decode(raw), limits.MAX_JSON_VALUES).value()


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

    ``position`` is always the next character that is not white space. ``value`` is written for speed, in one loop
    without calls: sixteen megabytes of brackets and commas are as cheap to send as a manifest.
    """

    def __init__(self, text: str, max_values: int) -> None:
        self.text = text
        self._max_values = max_values
        self.position = _skip(text, 0)

    def bad(self, at: int, message: str) -> BadJson:
        """The error that points at an offset."""
        line, column = Document(Null(0), self.text).position(at)
        return BadJson((Fault("", message, line, column),))

    def value(self) -> Document:
        """Read one value, however deep."""
        text, at, left = self.text, self.position, self._max_values
        value_at, key_at, next_at = _VALUE.match, _KEY.match, _NEXT.match
        above: list[tuple[Array | Object, int, str]] = []  # what is open, and the key that waits for its value
        node: Node
        while True:
            match = value_at(text, at)
            if match is None:
                raise self._explain(at)
            left -= 1
            if left < 0:
                raise self.bad(at, f"holds more than {self._max_values} values")
            kind, end = match.lastindex, match.end()
            if kind == _STRING:
                body = match[_STRING]
                node = _new(String, (at, _unescaped(body), True) if "\\" in body else (at, body, False))
            elif kind == _NUMBER:
                node = _new(Number, (at, match[_NUMBER]))
            elif kind == _WORD:
                node = _word(at, match[_WORD])
            else:
                if len(above) >= limits.MAX_JSON_DEPTH:
                    raise self.bad(at, f"nested deeper than {limits.MAX_JSON_DEPTH} levels")
                node = Object(at, []) if match[_OPENING] == "{" else Array(at, [])
                closing = next_at(text, end)
                if closing is None or closing[1] != _CLOSING[match[_OPENING]]:
                    at, key_start, key = end, 0, ""
                    if match[_OPENING] == "{":
                        at, key_start, key = self._key(key_at(text, end), end)
                    above.append((node, key_start, key))
                    continue
                end = closing.end()
            while above:
                parent, key_start, key = above[-1]
                if type(parent) is Object:
                    parent.members.append(_new(Member, (key_start, key, node)))
                    mark = "}"
                else:
                    parent.items.append(node)  # type: ignore[union-attr]
                    mark = "]"
                delimiter = next_at(text, end)
                found = delimiter[1] if delimiter else ""
                if found != "," and found != mark:
                    raise self.bad(end, f"expected ',' or '{mark}', found {_show(text, end)}")
                at = end = delimiter.end()  # type: ignore[union-attr]
                if found == ",":
                    if mark == "}":
                        at, key_start, key = self._key(key_at(text, end), end)
                        above[-1] = (parent, key_start, key)
                    break
                node = above.pop()[0]
            else:
                self.position = end
                return Document(node, text)

    def _key(self, match: re.Match[str] | None, at: int) -> tuple[int, int, str]:
        """Where the value of a key begins, where the key begins, and the key."""
        if match is None:
            raise self._explain_key(at)
        key = match[1]
        return match.end(), at, _unescaped(key) if "\\" in key else key

    def _explain(self, at: int) -> BadJson:
        """What is wrong where a value should be."""
        mark = self.text[at : at + 1]
        if mark == '"':
            return self._explain_string(at, "string")
        if mark and mark in "-0123456789":
            return self.bad(at, "invalid number")
        if mark == "\ufeff":
            return self.bad(at, "byte order mark; JSON must not begin with one")
        return self.bad(at, f"expected a value, found {_show(self.text, at)}")

    def _explain_key(self, at: int) -> BadJson:
        """What is wrong where a key and a colon should be."""
        if not self.text.startswith('"', at):
            return self.bad(at, f"expected a quoted key, found {_show(self.text, at)}")
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


def _word(at: int, word: str) -> Node:
    return Null(at) if word == "null" else Bool(at, word == "true")


def _unescaped(body: str) -> str:
    return _ESCAPE.sub(_unescape, body)


def _unescape(match: re.Match[str]) -> str:
    high, low, unit, simple = match.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + (int(low, 16) - 0xDC00))
    if unit:
        point = int(unit, 16)
        return "�" if 0xD800 <= point <= 0xDFFF else chr(point)
    return _SIMPLE_ESCAPES[simple]
