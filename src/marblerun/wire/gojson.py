"""JSON as Go's ``encoding/json`` reads and writes it, with shapes instead of reflection.

A shape says what is expected and what comes out::

    counter = record(name=string, value=uint(64))
    unmarshal(body, counter)                      # {"name": "foo", "value": 3}, the whole input
    unmarshal_first(body, counter)                # the first value of a stream, the rest is ignored

What Go does and most decoders do not: keys of structures match ignoring case (an exact match is not better than
a folded one that comes later), ``null`` changes nothing except that it empties lists, maps and optional values, a
structure given twice is merged field by field, a map given twice is merged entry by entry, a list given twice is
merged element by element (a ``null`` element shows what stood there before), unknown keys are ignored.

Therefore a shape is not given one node but the *history* of a place: every node the document assigns to it, in order.
An empty history gives the zero value. All type errors of a document are gathered into one :class:`BadJson`.
Source: protocol, section 13; every rule is compared with Go itself in ``tests/wire/test_gojson.py``.
"""

from __future__ import annotations

import binascii
import re
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from marblerun.wire.jsontree import (
    Array,
    BadJson,
    Bool,
    Document,
    Fault,
    Node,
    Null,
    Number,
    Object,
    String,
    parse,
    parse_first,
)
from marblerun.wire.limits import MAX_JSON_VALUES

__all__ = [
    "BadJson",
    "Fault",
    "Field",
    "Inside",
    "Shape",
    "Struct",
    "Trail",
    "anything",
    "boolean",
    "byte_string",
    "decode",
    "decode_base64",
    "fold_key",
    "integer",
    "list_of",
    "lower",
    "mapping",
    "marshal",
    "nullable_list_of",
    "optional",
    "record",
    "string",
    "struct",
    "uint",
    "unmarshal",
    "unmarshal_first",
]

T = TypeVar("T")
History = Sequence[Node]

_FAULTS_KEPT: Final = 100


class Trail:
    """Where in the document we are, and the faults found so far (shared by the whole decoding)."""

    __slots__ = ("_document", "_name", "_parent", "faults")

    def __init__(self, document: Document, parent: Trail | None = None, name: str = "") -> None:
        self._document = document
        self._parent = parent
        self._name = name
        self.faults: list[Fault] = parent.faults if parent is not None else []

    def step(self, name: str) -> Trail:
        """The place below this one under a key."""
        return Trail(self._document, self, name)

    def path(self) -> str:
        """Dotted path, for example ``Packages.backend.SecurityVersion`` or ``Marbles.m.Parameters.Argv[2]``."""
        names: list[str] = []
        trail: Trail | None = self
        while trail is not None:
            names.append(trail._name)
            trail = trail._parent
        text = ""
        for name in reversed(names):
            text += name if not text or name.startswith("[") else f".{name}"
        return text

    def fault(self, node: Node, message: str) -> None:
        """Note something wrong with a node of this place."""
        if len(self.faults) < _FAULTS_KEPT:
            line, column = self._document.position(node.at)
            self.faults.append(Fault(self.path(), message, line, column))

    def mismatch(self, node: Node, expected: str) -> None:
        """Note that a node has the wrong JSON type."""
        self.fault(node, f"expected {expected}, found {describe(node)}")


_NOWHERE: Final = Trail(Document(Null(0), ""))


class Inside(NamedTuple):
    """What a shape is made of: fixed fields, elements of a list, or entries of a map. A scalar has nothing inside."""

    fields: tuple[Field, ...] = ()
    elements: Shape[Any] | None = None
    entries: Shape[Any] | None = None


class Shape(ABC, Generic[T]):
    """What a place in a document holds."""

    def inside(self) -> Inside:
        """What to expect below this place, for tools that explain documents."""
        return Inside()

    def pointee(self) -> Shape[Any]:
        """The shape itself, or what it holds if it is optional."""
        return self

    @abstractmethod
    def read(self, history: History, trail: Trail) -> T:
        """The value after everything in ``history`` was assigned in order; faults are noted on ``trail``."""


def unmarshal(raw: bytes, shape: Shape[T], *, max_values: int = MAX_JSON_VALUES) -> T:
    """Decode a whole document; text after the value is an error. Raises :class:`BadJson`.

    ``max_values`` may be raised only for what was authenticated before it is read.
    """
    return decode(parse(raw, max_values=max_values), shape)


def unmarshal_first(raw: bytes, shape: Shape[T]) -> T:
    """Decode the first value of a stream and ignore the rest. Raises :class:`BadJson`."""
    return decode(parse_first(raw), shape)


def decode(document: Document, shape: Shape[T]) -> T:
    """Decode a parsed document. Raises :class:`BadJson` with every type error."""
    trail = Trail(document)
    value = shape.read([document.root], trail)
    if trail.faults:
        raise BadJson(tuple(trail.faults))
    return value


def describe(node: Node) -> str:
    """A node for people: its type, and its text where that is short and not secret."""
    match node:
        case Null():
            return "null"
        case Bool():
            return "true" if node.value else "false"
        case Number():
            return f"number {node.literal}" if len(node.literal) <= 40 else "a very long number"
        case String():
            return "a string"
        case Array():
            return "an array"
        case Object():
            return "an object"


# Keys --------------------------------------------------------------------------------------------------------------


def fold_key(key: str) -> str:
    """A key as Go compares it: upper-case ASCII, with the two other letters of Unicode that fold to S and K.

    Field names are ASCII, so no other character can take part in a match.
    """
    if key.isascii():
        return key.upper()
    return "".join(c.upper() if c.isascii() else _FOLDS_TO_ASCII.get(c, c) for c in key)


def lower(text: str) -> str:
    """Lower case as Go's ``strings.ToLower`` does it, as far as ASCII words can tell the difference."""
    return text.replace("İ", "i").lower()


_FOLDS_TO_ASCII: Final = {"\u017f": "S", "\u212a": "K"}


# Scalars -----------------------------------------------------------------------------------------------------------


class _StringShape(Shape[str]):
    def read(self, history: History, trail: Trail) -> str:
        value = ""
        for node in history:
            if isinstance(node, String):
                value = node.text
            elif not isinstance(node, Null):
                trail.mismatch(node, "a string")
        return value


class _BooleanShape(Shape[bool]):
    def read(self, history: History, trail: Trail) -> bool:
        value = False
        for node in history:
            if isinstance(node, Bool):
                value = node.value
            elif not isinstance(node, Null):
                trail.mismatch(node, "true or false")
        return value


class _IntegerShape(Shape[int]):
    def __init__(self, low: int, high: int) -> None:
        self.limits = (low, high)
        self._digits = re.compile("-?[0-9]{1,20}" if low < 0 else "[0-9]{1,20}")
        self._expected = f"a whole number from {low} to {high}, digits only"

    def read(self, history: History, trail: Trail) -> int:
        value = 0
        for node in history:
            if isinstance(node, Number):
                # 20 digits hold every 64-bit number; longer ones are out of range without converting them.
                if self._digits.fullmatch(node.literal) and self.limits[0] <= int(node.literal) <= self.limits[1]:
                    value = int(node.literal)
                else:
                    trail.mismatch(node, self._expected)
            elif not isinstance(node, Null):
                trail.mismatch(node, self._expected)
        return value


class _AnythingShape(Shape[Node | None]):
    """Go's ``any``: every value will do, except numbers that a float64 cannot hold. The last node, or None."""

    def read(self, history: History, trail: Trail) -> Node | None:
        for node in history:
            self._check_numbers(node, trail)
        return history[-1] if history else None

    @staticmethod
    def _check_numbers(node: Node, trail: Trail) -> None:
        rest = [node]
        while rest:
            top = rest.pop()
            if isinstance(top, Number) and float(top.literal) in (float("inf"), float("-inf")):
                trail.fault(top, "number is too large")
            elif isinstance(top, Array):
                rest.extend(top.items)
            elif isinstance(top, Object):
                rest.extend(member.value for member in top.members)


string: Final[Shape[str]] = _StringShape()
boolean: Final[Shape[bool]] = _BooleanShape()
anything: Final[Shape[Node | None]] = _AnythingShape()


def uint(bits: int) -> Shape[int]:
    """An unsigned number of that many bits: plain decimal digits; no sign, fraction or exponent."""
    return _IntegerShape(0, 2**bits - 1)


def integer(bits: int) -> Shape[int]:
    """A signed number of that many bits."""
    return _IntegerShape(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


# Bytes -------------------------------------------------------------------------------------------------------------

_BASE64 = re.compile("[A-Za-z0-9+/]*+={0,2}")


def decode_base64(text: str) -> bytes:
    """Standard padded base64 as Go decodes it: CR and LF anywhere are skipped. Raises ValueError."""
    compact = text.replace("\r", "").replace("\n", "")
    if len(compact) % 4 or not _BASE64.fullmatch(compact):
        raise ValueError("not padded standard base64")
    return binascii.a2b_base64(compact)


class _BytesShape(Shape[bytes]):
    def read(self, history: History, trail: Trail) -> bytes:
        memory = bytearray()
        length = 0
        for node in history:
            match node:
                case Null():
                    memory, length = bytearray(), 0
                case String():
                    try:
                        memory = bytearray(decode_base64(node.text))
                    except ValueError as error:
                        trail.fault(node, f"expected bytes in base64: {error}")
                    length = len(memory)
                case Array():
                    length = self._overwrite(memory, node, trail)
                case _:
                    trail.mismatch(node, "bytes in base64, or an array of numbers from 0 to 255")
        return bytes(memory[:length])

    @staticmethod
    def _overwrite(memory: bytearray, node: Array, trail: Trail) -> int:
        if not node.items:
            memory.clear()
        memory.extend(bytes(max(0, len(node.items) - len(memory))))
        for index, item in enumerate(node.items):
            if isinstance(item, Null):
                continue
            memory[index] = _OCTET.read([item], trail.step(f"[{index}]"))
        return len(node.items)


_OCTET: Final = _IntegerShape(0, 255)
byte_string: Final[Shape[bytes]] = _BytesShape()
"""Bytes, ``b""`` for null and absent."""


# Containers --------------------------------------------------------------------------------------------------------


def _spans(history: History) -> list[list[Node]]:
    """A history cut at its nulls: null drops the pointer with all that it held, only the last span counts."""
    spans: list[list[Node]] = [[]]
    for node in history:
        if isinstance(node, Null):
            spans.append([])
        else:
            spans[-1].append(node)
    return spans


class _Optional(Shape[T | None]):
    def __init__(self, of: Shape[T]) -> None:
        self._of = of

    def inside(self) -> Inside:
        return self._of.inside()

    def pointee(self) -> Shape[Any]:
        return self._of.pointee()

    def read(self, history: History, trail: Trail) -> T | None:
        value: T | None = None
        for span in _spans(history):
            value = self._of.read(span, trail) if span else None
        return value


class _NullableList(Shape[tuple[T, ...] | None]):
    def __init__(self, of: Shape[T]) -> None:
        self._of = of

    def inside(self) -> Inside:
        return Inside(elements=self._of)

    def read(self, history: History, trail: Trail) -> tuple[T, ...] | None:
        columns: list[list[Node]] = []  # by index, everything ever assigned there
        length: int | None = None
        for node in history:
            if isinstance(node, Null):
                self._values(columns, trail)
                columns, length = [], None
            elif isinstance(node, Array):
                if not node.items:
                    self._values(columns, trail)
                    columns = []
                for index, item in enumerate(node.items):
                    if index == len(columns):
                        columns.append([])
                    columns[index].append(item)
                length = len(node.items)
            else:
                trail.mismatch(node, "an array")
        values = self._values(columns, trail)
        return None if length is None else values[:length]

    def _values(self, columns: list[list[Node]], trail: Trail) -> tuple[T, ...]:
        return tuple(self._of.read(column, trail.step(f"[{index}]")) for index, column in enumerate(columns))


class _List(Shape[tuple[T, ...]]):
    def __init__(self, of: Shape[T]) -> None:
        self._list = _NullableList(of)

    def inside(self) -> Inside:
        return self._list.inside()

    def read(self, history: History, trail: Trail) -> tuple[T, ...]:
        return self._list.read(history, trail) or ()


class _Mapping(Shape[dict[str, T]]):
    def __init__(self, of: Shape[T]) -> None:
        self._of = of

    def inside(self) -> Inside:
        return Inside(entries=self._of)

    def read(self, history: History, trail: Trail) -> dict[str, T]:
        values: dict[str, T] = {}
        for node in history:
            if isinstance(node, Null):
                values = {}
            elif isinstance(node, Object):
                for _, key, value in node.members:
                    # Each entry starts from zero, so the last one wins as a whole.
                    values[key] = self._of.read([value], trail.step(key))
            else:
                trail.mismatch(node, "an object")
        return values


def optional(of: Shape[T]) -> Shape[T | None]:
    """A Go pointer: ``None`` when absent or null."""
    return _Optional(of)


def list_of(of: Shape[T]) -> Shape[tuple[T, ...]]:
    """A list; absent, null and empty all give ``()``."""
    return _List(of)


def nullable_list_of(of: Shape[T]) -> Shape[tuple[T, ...] | None]:
    """A list of which ``None`` (absent or null) and ``()`` (an empty array) are told apart."""
    return _NullableList(of)


def mapping(of: Shape[T]) -> Shape[dict[str, T]]:
    """An object whose keys the author chooses; they are exact."""
    return _Mapping(of)


# Structures --------------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """One field of a structure: its name in JSON, the keyword it is passed as, its shape."""

    name: str
    keyword: str
    shape: Shape[Any]


class _StructShape(Shape[T]):
    def __init__(self, make: Callable[..., T], fields: Sequence[Field]) -> None:
        self._make = make
        self._fields = tuple(fields)
        self._by_key = {fold_key(field.name): field for field in self._fields}
        self._exact = {field.name: field for field in self._fields}
        # What absent fields give. Most are, so they are not read each time, except for what could be changed later.
        self._zeros = {field.keyword: field.shape.read((), _NOWHERE) for field in self._fields if field.keyword}
        shared = (str, int, bytes, tuple, type(None))
        self._fresh = [f for f in self._fields if f.keyword and not isinstance(self._zeros[f.keyword], shared)]

    def inside(self) -> Inside:
        return Inside(fields=self._fields)

    def read(self, history: History, trail: Trail) -> T:
        assigned: dict[Field, list[Node]] = {}
        for node in history:
            if isinstance(node, Object):
                for _, key, value in node.members:
                    field = self._exact.get(key) or self._by_key.get(fold_key(key))
                    if field is not None:
                        assigned.setdefault(field, []).append(value)
            elif not isinstance(node, Null):
                trail.mismatch(node, "an object")
        values = dict(self._zeros)
        for field in self._fresh:
            if field not in assigned:
                values[field.keyword] = field.shape.read((), trail)
        for field in self._fields if len(assigned) > 1 else assigned:
            if nodes := assigned.get(field):
                value = field.shape.read(nodes, trail.step(field.name))
                if field.keyword:
                    values[field.keyword] = value
        return self._make(**values)


def struct(make: Callable[..., T], *fields: Field | tuple[str, str, Shape[Any]]) -> Shape[T]:
    """A structure: ``make`` is called with one keyword for each field.

    A field whose keyword is empty is checked for its type and then dropped.
    """
    return _StructShape(make, [Field(*field) for field in fields])


def record(**fields: Shape[Any]) -> Shape[dict[str, Any]]:
    """A structure as a dict with exactly these keys, which are also the names in JSON."""
    return _StructShape(dict, [Field(name, name, shape) for name, shape in fields.items()])


# Writing -----------------------------------------------------------------------------------------------------------


class Struct(tuple[tuple[str, Any], ...]):
    """A Go structure to be written: ``(name, value)`` pairs that keep their order (a dict is sorted, as Go's maps)."""

    __slots__ = ()


_MUST_ESCAPE = re.compile('[\x00-\x1f"\\\\<>&\u2028\u2029\ud800-\udfff]')
_SHORT_ESCAPES: Final = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}


def marshal(value: object) -> bytes:
    """JSON text as Go writes it: no spaces, maps sorted by key, bytes as base64, ``<``, ``>`` and ``&`` escaped.

    Takes None, bool, int, str, bytes, mappings, :class:`Struct`, lists and tuples; ValueError for anything else.
    None stands for every nil: pointer, list, map and bytes.
    """
    parts: list[str] = []
    _write(value, parts)
    return "".join(parts).encode()


def _write(value: object, out: list[str]) -> None:
    match value:
        case None:
            out.append("null")
        case bool():
            out.append("true" if value else "false")
        case int():
            out.append(str(value))
        case str():
            out.append(_quote(value))
        case bytes():
            out.append(f'"{b64encode(value).decode()}"')
        case Struct():
            _write_object(value, out)
        case Mapping():
            _write_object(sorted(value.items()), out)
        case list() | tuple():
            out.append("[")
            for index, item in enumerate(value):
                if index:
                    out.append(",")
                _write(item, out)
            out.append("]")
        case _:
            raise ValueError(f"cannot write {type(value).__name__} as JSON")


def _write_object(pairs: Iterable[tuple[str, object]], out: list[str]) -> None:
    out.append("{")
    for index, (key, item) in enumerate(pairs):
        if index:
            out.append(",")
        out.append(f"{_quote(key)}:")
        _write(item, out)
    out.append("}")


def _quote(text: str) -> str:
    return f'"{_MUST_ESCAPE.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    if short := _SHORT_ESCAPES.get(character):
        return short
    point = ord(character)
    return "\\ufffd" if 0xD800 <= point <= 0xDFFF else f"\\u{point:04x}"
