"""The values a template computes with, and how they stand for Go's.

==============  =====================================================
Go              here
==============  =====================================================
no value, nil   ``None``
bool            ``bool``
int             ``int``
uint, uint8     :class:`Uint`, :class:`Uint8`
float64         ``float``
complex128      ``complex``
string          ``bytes`` (a Go string is bytes; its length counts them)
slice           :class:`Slice`
map             :class:`Dictionary`
struct          :class:`Record`
==============  =====================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from marblerun.manifest.templates.unicode import to_bytes, to_text


class Uint(int):
    """A Go ``uint``."""


class Uint8(int):
    """A Go ``uint8``: an element of bytes or a string."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Slice:
    """A view of ``items[start:stop]`` that may be widened again up to ``limit``, as in Go."""

    items: bytes | tuple[bytes, ...]
    """The elements: ``uint8`` for bytes, strings for a tuple."""
    start: int
    stop: int
    limit: int
    type_name: str
    is_nil: bool

    def __len__(self) -> int:
        return self.stop - self.start

    def capacity(self) -> int:
        """How far the view can be widened."""
        return self.limit - self.start

    def at(self, index: int) -> Uint8 | bytes:
        """The element at an index that is within the length."""
        item = self.items[self.start + index]
        return Uint8(item) if isinstance(item, int) else item

    def cut(self, begin: int, end: int, limit: int | None) -> Slice:
        """``[begin:end]`` or ``[begin:end:limit]``; the caller has checked the bounds."""
        furthest = self.limit if limit is None else self.start + limit
        return Slice(self.items, self.start + begin, self.start + end, furthest, self.type_name, self.is_nil)

    def content(self) -> bytes | None:
        """The bytes, or None for a slice of something else."""
        return self.items[self.start : self.stop] if isinstance(self.items, bytes) else None


def byte_slice(data: bytes, type_name: str = "[]uint8") -> Slice:
    """Bytes as a slice; empty ones are Go's nil, as everything unset in a secret is."""
    return Slice(data, 0, len(data), len(data), type_name, not data)


def text_slice(texts: tuple[str, ...]) -> Slice:
    """A slice of strings."""
    return Slice(tuple(map(to_bytes, texts)), 0, len(texts), len(texts), "[]string", not texts)


class Record(ABC):
    """A struct: named fields, none of which is printed unless it is asked for by name."""

    type_name: ClassVar[str]
    read_steps: ClassVar[int] = 0
    """What reading a field costs beyond looking it up."""

    @abstractmethod
    def get(self, name: str) -> Value:
        """The field's value; KeyError if there is none of this name."""


class Dictionary:
    """A map with string keys over entries that may be made only when asked for."""

    __slots__ = ("_entries", "_missing", "_wrap", "type_name")

    def __init__(
        self, entries: Mapping[str, object], wrap: Callable[[str], Record], missing: Record, name: str
    ) -> None:
        self._entries = entries
        self._wrap = wrap
        self._missing = missing
        self.type_name = name

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Record | None:
        """The entry, or None if there is none."""
        try:
            return self._wrap(to_text(key))
        except KeyError:
            return None

    def get_or_zero(self, key: bytes) -> Record:
        """The entry, or the zero value of its type, which is what Go's ``index`` gives."""
        entry = self.get(key)
        return self._missing if entry is None else entry

    def items(self) -> Iterator[tuple[bytes, Record]]:
        """Keys in Go's order, by bytes, with their entries."""
        for key in sorted(map(to_bytes, self._entries)):
            yield key, self._wrap(to_text(key))


Value: TypeAlias = bool | int | float | complex | bytes | Slice | Dictionary | Record | None

_BASIC_NAMES = {
    bool: "bool",
    int: "int",
    Uint: "uint",
    Uint8: "uint8",
    float: "float64",
    complex: "complex128",
    bytes: "string",
}


def type_name(value: Value) -> str:
    """What Go calls the value's type; ``nil`` for no value."""
    if value is None:
        return "nil"
    if isinstance(value, Slice | Dictionary | Record):
        return value.type_name
    return _BASIC_NAMES[type(value)]


def is_true(value: Value) -> bool:
    """Go's truth: false for nil, zero and whatever is empty; structs are always true."""
    if value is None:
        return False
    if isinstance(value, Record):
        return True
    if isinstance(value, bytes | Slice | Dictionary):
        return len(value) > 0
    return value != 0
