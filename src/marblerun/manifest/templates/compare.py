"""Go's ``eq`` and ``lt``: only values of one kind compare, except that integers of both signs do."""

from __future__ import annotations

from typing import Final

from marblerun.manifest.templates.budget import TemplateFailure
from marblerun.manifest.templates.values import Dictionary, Record, Slice, Uint, Uint8, Value, type_name

_KINDS: Final[dict[type, str]] = {
    bool: "bool",
    int: "integer",
    Uint: "integer",
    Uint8: "integer",
    float: "float",
    complex: "complex",
    bytes: "string",
}


def _kind(value: Value) -> str:
    """The kind that decides what a value compares with; empty for those that have no order and no equality."""
    return _KINDS.get(type(value), "")


def is_equal(first: Value, second: Value) -> bool:
    """Go's ``eq`` of two values; nil equals nil and an unset slice.

    Raises:
        TemplateFailure: the values are of different kinds, or of a kind that has no equality.
    """
    kind = _kind(first)
    if kind != _kind(second):
        if first is None or second is None:
            return False
        raise _incompatible(first, second)
    if kind:
        return first == second
    if first is None or second is None or _is_nil(first) or _is_nil(second):
        if not _same_shape(first, second):
            raise _incompatible(first, second)
        return _is_nil(first) == _is_nil(second)
    raise TemplateFailure(f"values of type {type_name(first)} cannot be compared")


def _is_nil(value: Value) -> bool:
    return value is None or (isinstance(value, Slice) and value.is_nil)


def _same_shape(first: Value, second: Value) -> bool:
    """Whether both are of one Go kind, or one of them is nil without a type."""
    if first is None or second is None:
        return True
    return any(isinstance(first, shape) and isinstance(second, shape) for shape in (Slice, Dictionary, Record))


def is_less(first: Value, second: Value) -> bool:
    """Go's ``lt``; TemplateFailure for kinds without an order and for different kinds."""
    for value in (first, second):
        if not _kind(value):
            raise TemplateFailure(f"invalid type for comparison: {type_name(value)}")
    if _kind(first) != _kind(second):
        raise _incompatible(first, second)
    if isinstance(first, bytes) and isinstance(second, bytes):
        return first < second
    if isinstance(first, bool) or not isinstance(first, int | float) or not isinstance(second, int | float):
        raise TemplateFailure(f"invalid type for comparison: {type_name(first)}")
    return first < second


def _incompatible(first: Value, second: Value) -> TemplateFailure:
    return TemplateFailure(f"incompatible types for comparison: {type_name(first)} and {type_name(second)}")
