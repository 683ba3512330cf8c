"""The functions templates may call, and Go's own among them.

Files and environment variables have different sets: a variable holds no NUL bytes, so ``raw`` is for files only and
``string`` for variables only (protocol, section 5.7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from marblerun.manifest.templates import encoders
from marblerun.manifest.templates.budget import CHARACTERS_PER_STEP, Budget, TemplateFailure
from marblerun.manifest.templates.compare import is_equal, is_less
from marblerun.manifest.templates.escape import escape_html, escape_js, escape_url
from marblerun.manifest.templates.printf import sprint, sprintf, sprintln
from marblerun.manifest.templates.values import Dictionary, Slice, Uint8, Value, is_true, type_name

Body: TypeAlias = Callable[[Sequence[Value], Budget], Value]


class Special(Enum):
    """Functions that do not evaluate all their arguments."""

    AND = auto()
    OR = auto()


@dataclass(frozen=True, slots=True)
class Function:
    """What the executor must know to call it: how many arguments, and whether the first has to be a string."""

    body: Body
    least: int
    most: int | None
    """None: any number."""
    first_is_text: bool = False
    special: Special | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FunctionSet:
    """The functions of one kind of template, Go's included; compared by identity, so it can key a cache."""

    name: str
    functions: Mapping[str, Function]


def _no_body(arguments: Sequence[Value], budget: Budget) -> Value:
    raise RuntimeError("and/or are evaluated by the executor")


def _not(arguments: Sequence[Value], budget: Budget) -> Value:
    return not is_true(arguments[0])


def _call(arguments: Sequence[Value], budget: Budget) -> Value:
    # Nothing a manifest's template can reach is a function value.
    raise TemplateFailure(f"call: a value of type {type_name(arguments[0])} is not a function")


def _len(arguments: Sequence[Value], budget: Budget) -> Value:
    value = arguments[0]
    if isinstance(value, bytes | Slice | Dictionary):
        return len(value)
    raise TemplateFailure(f"len of a value of type {type_name(value)}")


def _position(value: Value, ceiling: int) -> int:
    """A value as an index from 0 to ``ceiling``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TemplateFailure(f"cannot index with a value of type {type_name(value)}")
    if not 0 <= value <= ceiling:
        raise TemplateFailure(f"index out of range: {int(value)}")
    return int(value)


def _index(arguments: Sequence[Value], budget: Budget) -> Value:
    item = arguments[0]
    if item is None:
        raise TemplateFailure("index of nil")
    for key in arguments[1:]:
        if isinstance(item, bytes):
            item = Uint8(item[_position(key, len(item) - 1)])
        elif isinstance(item, Slice):
            item = item.at(_position(key, len(item) - 1))
        elif isinstance(item, Dictionary):
            if not isinstance(key, bytes):
                raise TemplateFailure(f"a map of secrets is indexed by a string, not by {type_name(key)}")
            item = item.get_or_zero(key)
        else:
            raise TemplateFailure(f"cannot index a value of type {type_name(item)}")
    return item


def _slice(arguments: Sequence[Value], budget: Budget) -> Value:
    item, keys = arguments[0], arguments[1:]
    if len(keys) > 3:
        raise TemplateFailure(f"too many slice indexes: {len(keys)}")
    if isinstance(item, bytes):
        if len(keys) == 3:
            raise TemplateFailure("a string cannot be sliced with three indexes")
        ceiling = len(item)
    elif isinstance(item, Slice):
        ceiling = item.capacity()
    else:
        raise TemplateFailure(f"cannot slice a value of type {type_name(item)}")
    bounds = [_position(key, ceiling) for key in keys]
    begin = bounds[0] if bounds else 0
    end = bounds[1] if len(bounds) > 1 else len(item)
    limit = bounds[2] if len(bounds) > 2 else None
    if begin > end or (limit is not None and end > limit):
        raise TemplateFailure("invalid slice: its indexes must not decrease")
    if isinstance(item, Slice):
        return item.cut(begin, end, limit)
    budget.text(end - begin)
    return item[begin:end]


def _pay_comparison(first: Value, second: Value, budget: Budget) -> None:
    if isinstance(first, bytes) and isinstance(second, bytes):
        budget.text(min(len(first), len(second)))


def _eq(arguments: Sequence[Value], budget: Budget) -> Value:
    if len(arguments) == 1:
        raise TemplateFailure("missing argument for comparison")
    for other in arguments[1:]:
        budget.step()
        _pay_comparison(arguments[0], other, budget)
        if is_equal(arguments[0], other):
            return True
    return False


def _comparison(decide: Callable[[Value, Value], bool]) -> Body:
    def body(arguments: Sequence[Value], budget: Budget) -> Value:
        _pay_comparison(arguments[0], arguments[1], budget)
        return decide(arguments[0], arguments[1])

    return body


def _is_less_or_equal(first: Value, second: Value) -> bool:
    return is_less(first, second) or is_equal(first, second)


def _print(arguments: Sequence[Value], budget: Budget) -> Value:
    return sprint(arguments, budget)


def _println(arguments: Sequence[Value], budget: Budget) -> Value:
    return sprintln(arguments, budget)


def _printf(arguments: Sequence[Value], budget: Budget) -> Value:
    template = arguments[0]
    assert isinstance(template, bytes), "the executor has checked the first argument"
    return sprintf(template, arguments[1:], budget)


def _escaper(escape: Callable[[bytes], bytes]) -> Body:
    def body(arguments: Sequence[Value], budget: Budget) -> Value:
        if len(arguments) == 1 and isinstance(arguments[0], bytes):
            text = arguments[0]
        else:
            text = sprint([b"<no value>" if value is None else value for value in arguments], budget)
        budget.step(len(text) // CHARACTERS_PER_STEP)
        return escape(text)

    return body


def _encoder(encode: Callable[[Value], bytes]) -> Function:
    return Function(lambda arguments, budget: encode(arguments[0]), 1, 1)


BUILTINS: Final[Mapping[str, Function]] = {
    "and": Function(_no_body, 1, None, special=Special.AND),
    "or": Function(_no_body, 1, None, special=Special.OR),
    "not": Function(_not, 1, 1),
    "call": Function(_call, 1, None),
    "len": Function(_len, 1, 1),
    "index": Function(_index, 1, None),
    "slice": Function(_slice, 1, None),
    "print": Function(_print, 0, None),
    "println": Function(_println, 0, None),
    "printf": Function(_printf, 1, None, first_is_text=True),
    "html": Function(_escaper(escape_html), 0, None),
    "js": Function(_escaper(escape_js), 0, None),
    "urlquery": Function(_escaper(escape_url), 0, None),
    "eq": Function(_eq, 1, None),
    "ne": Function(_comparison(lambda first, second: not is_equal(first, second)), 2, 2),
    "lt": Function(_comparison(is_less), 2, 2),
    "le": Function(_comparison(_is_less_or_equal), 2, 2),
    "gt": Function(_comparison(lambda first, second: not _is_less_or_equal(first, second)), 2, 2),
    "ge": Function(_comparison(lambda first, second: not is_less(first, second)), 2, 2),
}

_SHARED: Final = {
    **BUILTINS,
    "pem": _encoder(encoders.encode_pem),
    "hex": _encoder(encoders.encode_hex),
    "base64": _encoder(encoders.encode_base64),
}
FILE_FUNCTIONS: Final = FunctionSet("files", {**_SHARED, "raw": _encoder(encoders.encode_raw)})
ENV_FUNCTIONS: Final = FunctionSet("environment variables", {**_SHARED, "string": _encoder(encoders.encode_string)})
