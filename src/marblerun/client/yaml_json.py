"""A manifest file as the JSON bytes that are sent and hashed: JSON as it is, YAML converted strictly.

The conversion gives the bytes that the reference's tools give for the same YAML, because the fingerprint of a
deployment is a hash over them: YAML 1.1 scalars as its parser reads them (``yes`` and ``on`` are true, ``0777`` is
octal, timestamps stay text), keys become strings and are sorted, and the text is Go's (``<``, ``>`` and ``&`` escaped,
no white space). What would be ambiguous is refused: a key twice, several documents, binary and unknown tags.

Source: cli-marble-k8s, section 1.8 (``manifest set``, step 2); sigs.k8s.io/yaml, ``YAMLToJSONStrict``.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import yaml

from marblerun.errors import Malformed
from marblerun.wire import jsontree
from marblerun.wire.jsontree import BadJson
from marblerun.wire.limits import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    _Parser = yaml.SafeLoader
else:
    _Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MAX_YAML_NODES: Final = 200_000
"""Nodes after aliases are followed; a few lines of nested aliases could otherwise become gigabytes."""
MAX_YAML_DEPTH: Final = 100
"""Levels of nesting; a manifest has about eight."""

_PREFIX: Final = "tag:yaml.org,2002:"
_PLAIN: Final = "plain"
_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_INTEGER: Final = re.compile(
    r"[-+]?(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)|0|[1-9][0-9]*)"
)
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_LOOSE: Final = re.compile(r"(?<![0-9])_|_(?![0-9])")
_NOT_JSON: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_ESCAPES: Final = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}
_ESCAPED: Final = re.compile('["\\\\\x00-\x1f<>&\u2028\u2029]')


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A manifest ready to be sent: its JSON bytes, and whether they were made from YAML."""

    json: bytes
    from_yaml: bool

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the JSON bytes, hex; what the Coordinator states for it."""
        return hashlib.sha256(self.json).hexdigest()


def manifest_from_bytes(raw: bytes) -> ManifestFile:
    """Valid JSON byte for byte; anything else is read as YAML and converted.

    Raises:
        Malformed: too large, or neither; the message has line and column.
    """
    if len(raw) > MAX_MANIFEST_BYTES:
        raise Malformed(f"is larger than {MAX_MANIFEST_BYTES} bytes", where="manifest")
    try:
        jsontree.parse(raw)
    except Malformed as not_json:
        if raw.lstrip()[:1] in (b"{", b"["):
            # YAML's flow style looks like JSON; if it is not that either, the JSON error is the helpful one.
            try:
                return ManifestFile(yaml_to_json(raw), True)
            except Malformed:
                raise Malformed(f"is not JSON: {not_json}", where="manifest") from None
        return ManifestFile(yaml_to_json(raw), True)
    return ManifestFile(raw, False)


def manifest_document(raw: bytes) -> jsontree.Document:
    """The tree of a manifest file, JSON or YAML, with its places in that file; for tools that explain manifests.

    Raises:
        Malformed: as :func:`manifest_from_bytes`; BadJson or BadYaml where the place is known.
    """
    try:
        return jsontree.parse(raw)
    except BadJson:
        try:
            return yaml_document(raw)
        except Malformed:
            if raw.lstrip()[:1] not in (b"{", b"["):
                raise
        raise


def yaml_to_json(raw: bytes) -> bytes:
    """One YAML document, a mapping, as canonical JSON bytes.

    Raises:
        Malformed: it is not YAML, or holds something that has no place in JSON.
    """
    parts: list[str] = []
    _write(yaml_document(raw).root, parts)
    try:
        return "".join(parts).encode()
    except UnicodeEncodeError:
        raise Malformed("holds a character that is not one (a lone surrogate)", where="manifest") from None


def yaml_document(raw: bytes) -> jsontree.Document:
    """One YAML document, a mapping, as the tree that its JSON form has; offsets are those of the YAML text.

    Keys are sorted, aliases written out, merges done. Where an alias stands, nodes tell the place of its anchor.

    Raises:
        Malformed: it is not YAML, or holds something that has no place in JSON; BadYaml where the place is known.
    """
    node = _compose(raw)
    if node is None or node.kind != "map":
        raise Malformed("is neither a JSON object nor a YAML mapping", where="manifest")
    return jsontree.Document(_Builder().value(node, frozenset()), raw.decode().removeprefix("\ufeff"))


class BadYaml(Malformed):
    """YAML that cannot be read, or has no JSON form: ``reason`` without the place, line and column from 1."""

    code = "malformed-yaml"

    def __init__(self, reason: str, line: int, column: int) -> None:
        super().__init__(f"{reason} (line {line}, column {column})", where="manifest")
        self.reason = reason
        self.line = line
        self.column = column


@dataclass(slots=True, eq=False)
class _Node:
    """A node of the document. ``items`` are a sequence's values, or a mapping's keys and values in turn."""

    kind: str
    tag: str
    """Full tag; ``plain`` for a plain scalar without one, since Go resolves those in its own way."""
    at: Any
    """Where it begins, as the library has it (line and column from 0)."""
    text: str = ""
    items: list[_Node] = field(default_factory=list)


def _compose(raw: bytes) -> _Node | None:
    """The root of the only document. Not by the library's composer: that recurses, in C, and ends the process."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"is not UTF-8 (byte {error.start})", where="manifest") from None
    try:
        return _Composer().document(yaml.parse(text, Loader=_Parser))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or "is not YAML"
        raise (_bad(problem, mark) if mark else Malformed(problem, where="manifest")) from None
    except (yaml.YAMLError, ValueError) as error:
        raise Malformed(f"is not YAML: {(str(error).splitlines() or [''])[0]}", where="manifest") from None


class _Composer:
    """Builds nodes from parser events with a stack of its own."""

    def __init__(self) -> None:
        self.root: _Node | None = None
        self.open: list[_Node] = []
        self.anchors: dict[str, _Node] = {}

    def document(self, events: Iterable[yaml.Event]) -> _Node | None:
        for count, event in enumerate(events):
            if count > MAX_YAML_NODES:
                raise _bad(f"holds more than {MAX_YAML_NODES} values", event.start_mark)
            if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
                raise _bad("holds more than one document", event.start_mark)
            if isinstance(event, yaml.CollectionEndEvent):
                self.open.pop()
            elif isinstance(event, yaml.NodeEvent):
                node = self._node(event)
                self._add(node)
                if isinstance(event, yaml.CollectionStartEvent):
                    self._enter(node)
        return self.root

    def _node(self, event: yaml.NodeEvent) -> _Node:
        at = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise _bad(f"alias {event.anchor!r} stands for nothing", at)
            return self.anchors[event.anchor]
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            raise RuntimeError(f"an unknown kind of node: {event}")
        tag = None if event.tag == "!" else event.tag
        if isinstance(event, yaml.ScalarEvent):
            untagged = _PLAIN if event.implicit[0] else f"{_PREFIX}str"
            node = _Node("scalar", tag or untagged, at, event.value)
        else:
            kind = "seq" if isinstance(event, yaml.SequenceStartEvent) else "map"
            node = _Node(kind, tag or f"{_PREFIX}{kind}", at)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _add(self, node: _Node) -> None:
        if self.open:
            self.open[-1].items.append(node)
        else:
            self.root = node

    def _enter(self, node: _Node) -> None:
        if len(self.open) >= MAX_YAML_DEPTH:
            raise _at(node, f"is nested deeper than {MAX_YAML_DEPTH} levels")
        self.open.append(node)


class _Builder:
    """Makes the tree of a node graph; aliases are written out, within a budget."""

    def __init__(self) -> None:
        self.left = MAX_YAML_NODES

    def value(self, node: _Node, above: frozenset[int]) -> jsontree.Node:
        self.pay(node)
        if id(node) in above:
            raise _at(node, "contains itself")
        if node.kind == "map":
            return self._mapping(node, above | {id(node)})
        if node.kind == "seq":
            _known(node, "seq")
            items = [self.value(item, above | {id(node)}) for item in node.items]
            return jsontree.Array(node.at.index, items)
        return _leaf(_scalar(node), node.at.index)

    def pay(self, node: _Node) -> None:
        self.left -= 1
        if self.left < 0:
            raise _at(node, f"grows beyond {MAX_YAML_NODES} values")

    def _mapping(self, node: _Node, above: frozenset[int]) -> jsontree.Object:
        entries: dict[str, tuple[_Node, _Node]] = {}
        self._collect(node, entries, above)
        members = []
        for name in sorted(entries, key=_by_bytes):
            key, value = entries[name]
            members.append(jsontree.Member(key.at.index, name, self.value(value, above)))
        return jsontree.Object(node.at.index, members)

    def _collect(self, node: _Node, entries: dict[str, tuple[_Node, _Node]], above: frozenset[int]) -> None:
        """Key and value nodes, with those of ``<<`` merged in; any key that comes twice is refused."""
        _known(node, "map")
        for key, value in zip(node.items[::2], node.items[1::2], strict=True):
            self.pay(node)
            if key.kind == "scalar" and key.tag in (_PLAIN, f"{_PREFIX}merge") and key.text == "<<":
                self._merge(value, entries, above)
                continue
            name = _key(key)
            if name in entries:
                raise _at(key, f"key {name!r} is there twice")
            entries[name] = (key, value)

    def _merge(self, node: _Node, entries: dict[str, tuple[_Node, _Node]], above: frozenset[int]) -> None:
        maps = list(reversed(node.items)) if node.kind == "seq" else [node]
        for entry in maps:
            if entry.kind != "map":
                raise _at(node, "a merge needs a mapping")
            if id(entry) in above:
                raise _at(node, "contains itself")
            self._collect(entry, entries, above | {id(entry)})


def _known(node: _Node, kind: str) -> None:
    if node.tag != f"{_PREFIX}{kind}":
        raise _at(node, f"has a tag that JSON cannot carry: {node.tag}")


def _scalar(node: _Node) -> str | bool | int | float | None:
    """The value that Go's YAML reader gives a scalar."""
    text, tag = node.text, node.tag
    if tag == f"{_PREFIX}str":
        return text
    if tag == _PLAIN:
        return _plain(text, node)
    found = _plain(text, node)
    fits = {
        f"{_PREFIX}bool": isinstance(found, bool),
        f"{_PREFIX}null": found is None,
        f"{_PREFIX}int": isinstance(found, int) and not isinstance(found, bool),
        f"{_PREFIX}float": isinstance(found, int | float) and not isinstance(found, bool),
    }
    if not fits.get(tag, False):
        raise _at(node, f"{text!r} cannot be read with the tag {tag.removeprefix(_PREFIX)}")
    return float(found) if tag == f"{_PREFIX}float" and isinstance(found, int) else found


def _plain(text: str, node: _Node) -> str | bool | int | float | None:
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_JSON.fullmatch(text):
        raise _at(node, f"{text} is a number that JSON does not have; quote it if it is a text")
    digits = text.replace("_", "")
    if text[:1] in "+-0123456789" and (match := _INTEGER.fullmatch(digits)):
        value = _integer(digits, match)
        if -(1 << 63) <= value < 1 << 64 and not (digits[0] == "+" and value >= 1 << 63):
            return value
    if text[:1] in "+-.0123456789" and _FLOAT.fullmatch(digits) and not (text[0] == "." and _LOOSE.search(text)):
        number = float(digits)
        return number if number not in (float("inf"), float("-inf")) else text
    return text


def _integer(digits: str, match: re.Match[str]) -> int:
    sign = -1 if digits[0] == "-" else 1
    for group, base in (("hex", 16), ("bin", 2), ("oct", 8)):
        if match[group]:
            return sign * int(match[group], base) if len(match[group]) < 70 else 1 << 64
    return int(digits) if len(digits) < 25 else 1 << 64


def _key(node: _Node) -> str:
    if node.kind != "scalar":
        raise _at(node, "a list or mapping cannot be a key")
    value = _scalar(node)
    if value is None:
        raise _at(node, "null cannot be a key")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _short_float(value)
    if isinstance(value, int) and value >= 1 << 63:
        raise _at(node, "is too large a number for a key; quote it")
    return str(value)


def _leaf(value: str | bool | int | float | None, at: int) -> jsontree.Node:
    if value is None:
        return jsontree.Null(at)
    if isinstance(value, bool):
        return jsontree.Bool(at, value)
    if isinstance(value, str):
        return jsontree.String(at, value)
    return jsontree.Number(at, str(value) if isinstance(value, int) else _go_float(value))


def _write(node: jsontree.Node, parts: list[str]) -> None:
    """The text of a tree that has no more levels than YAML may have."""
    match node:
        case jsontree.Null():
            parts.append("null")
        case jsontree.Bool():
            parts.append("true" if node.value else "false")
        case jsontree.Number():
            parts.append(node.literal)
        case jsontree.String():
            parts.append(_quote(node.text))
        case jsontree.Array():
            for index, item in enumerate(node.items):
                parts.append("," if index else "[")
                _write(item, parts)
            parts.append("]" if node.items else "[]")
        case jsontree.Object():
            for index, member in enumerate(node.members):
                parts.append(f"{',' if index else '{'}{_quote(member.key)}:")
                _write(member.value, parts)
            parts.append("}" if node.members else "{}")


def _quote(text: str) -> str:
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    return _ESCAPES.get(char) or f"\\u{ord(char):04x}"


def _go_float(value: float) -> str:
    """A float as Go's encoding/json writes it: shortest digits, an exponent only outside 1e-6 and 1e21."""
    if value == 0:
        return "-0" if str(value).startswith("-") else "0"
    if 1e-6 <= abs(value) < 1e21:
        text = format(Decimal(repr(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = format(Decimal(repr(value)).normalize(), "e").partition("e")
    return f"{mantissa}e{exponent[0]}{exponent[1:].lstrip('0')}"


def _short_float(value: float) -> str:
    """A float key: the shortest text that means the same 32-bit float, as Go's ``'g', -1, 32``."""
    try:
        narrow = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return ".inf" if value > 0 else "-.inf"
    digits = next(
        text for size in range(9) if struct.pack("<f", float(text := f"{narrow:.{size}e}")) == struct.pack("<f", narrow)
    )
    mantissa, _, exponent = digits.partition("e")
    power = int(exponent)
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    if power < -4 or power >= 6:
        return f"{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"
    return format(Decimal(f"{mantissa}e{power}"), "f")


def _by_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _at(node: _Node, message: str) -> BadYaml:
    return _bad(message, node.at)


def _bad(message: str, mark: Any) -> BadYaml:
    return BadYaml(message, mark.line + 1, mark.column + 1)
