"""Everything worth saying about a manifest's text: errors, misspelt keys, unused things, dangers; each with its place.

``lint`` never raises for bad input: what cannot be read is a finding too. Rules: :mod:`marblerun.manifest.rules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from typing import Any

from marblerun.manifest import parse
from marblerun.manifest.certificate import IGNORED_KEYS
from marblerun.manifest.check import check_manifest
from marblerun.manifest.hazards import hazards
from marblerun.manifest.material import check_material
from marblerun.manifest.report import Problem
from marblerun.manifest.rules import RULES, Severity
from marblerun.wire import limits
from marblerun.wire.gojson import BadJson, Field, Shape, decode, decode_base64, fold_key
from marblerun.wire.jsontree import Array, Document, Node, Object, String
from marblerun.wire.jsontree import parse as parse_tree

MAX_FINDINGS = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark: which rule, where (path, line and column from 1), what, and what to do."""

    severity: Severity
    rule: str
    path: str
    line: int
    column: int
    message: str
    hint: str = ""


def lint(raw: bytes, environment: Mapping[str, str] | None = None) -> tuple[Finding, ...]:
    """All findings in the order of the text; an empty tuple for a manifest without any.

    ``environment`` stands for the Coordinator's; without it, what depends on it is not asked.
    """
    if len(raw) > limits.MAX_MANIFEST_BYTES:
        return (unreadable(f"manifest is larger than {limits.MAX_MANIFEST_BYTES} bytes"),)
    try:
        document = parse_tree(raw)
    except BadJson as error:
        return tuple(unreadable(f.message, f.line, f.column) for f in error.faults)
    return (*undecodable(raw), *lint_document(document, environment))


def unreadable(message: str, line: int = 1, column: int = 1) -> Finding:
    """The finding about a text that is no document at all."""
    return _finding("json", "", line, column, message)


def undecodable(raw: bytes) -> tuple[Finding, ...]:
    """The finding about bytes of a JSON text that are not UTF-8, if there are any; it tells the first."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line, start = raw.count(b"\n", 0, error.start) + 1, raw.rfind(b"\n", 0, error.start) + 1
        column = len(raw[start : error.start].decode()) + 1
        hint = "write binary data in base64 or hex: see the key Encoding"
        return (_finding("not-utf8", "", line, column, "bytes that are not UTF-8 become U+FFFD", hint),)
    return ()


def lint_document(document: Document, environment: Mapping[str, str] | None = None) -> tuple[Finding, ...]:
    """The same for a text that was read into a tree, whatever language it is written in."""
    walk = _Walk(document)
    walk.visit(document.root, parse.manifest, "")
    findings = walk.findings
    try:
        manifest = decode(document, parse.manifest)
    except BadJson as error:
        findings += [_finding("json", f.path, f.line, f.column, f.message) for f in error.faults]
    else:
        checked = check_manifest(manifest, environment or {}) + check_material(manifest)
        problems: Iterable[Problem] = (*checked.errors, *checked.warnings, *hazards(manifest))
        if environment is None:
            problems = [problem for problem in problems if problem.code != "feature-gate-environment"]
        # Finding a place costs time, and nobody reads thousands.
        findings += [_located(problem, walk) for problem in islice(problems, MAX_FINDINGS)]
    return tuple(sorted(findings, key=lambda f: (f.line, f.column, f.rule)))[:MAX_FINDINGS]


def _finding(rule: str, path: str, line: int, column: int, message: str, hint: str = "") -> Finding:
    return Finding(RULES[rule].severity, rule, path, line, column, message, hint)


def _located(problem: Problem, walk: _Walk) -> Finding:
    line, column = walk.find(problem.path)
    severity = RULES[problem.code].severity
    if problem.warning and severity is Severity.ERROR:
        severity = Severity.WARNING
    expected = f" (expected {problem.expected})" if problem.expected else ""
    return Finding(severity, problem.code, problem.path, line, column, problem.message + expected, problem.hint)


class _Walk:
    """Goes through the tree beside the shape it is read into: notes places, judges keys and placeholders."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._places: dict[str, int] = {"": document.root.at}
        self.findings: list[Finding] = []

    def find(self, path: str) -> tuple[int, int]:
        """Line and column of a path, or of what is nearest above it."""
        while path not in self._places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._document.position(self._places[path])

    def visit(self, node: Node, shape: Shape[Any], path: str) -> None:
        """Look at a node and everything below it. Recursion ends with the shape, which is shallow."""
        inside = shape.inside()
        match node:
            case Object() if inside.entries is not None:
                self._duplicates(node, path, exact=True)
                for at, key, value in node.members:
                    self._place(f"{path}.{key}", at)
                    self._boolean_name(at, key, path)
                    self.visit(value, inside.entries, f"{path}.{key}")
            case Object() if inside.fields:
                self._duplicates(node, path, exact=False)
                for at, key, value in node.members:
                    self._field(at, key, value, shape, path)
            case Array() if inside.elements is not None:
                for index, item in enumerate(node.items):
                    self._place(f"{path}[{index}]", item.at)
                    self.visit(item, inside.elements, f"{path}[{index}]")
            case String():
                self._string(node, shape, path)

    def _boolean_name(self, at: int, key: str, path: str) -> None:
        """A name that is a word for true or false without quotes; only YAML knows such keys."""
        if key in ("true", "false") and self._document.text[at : at + 1] not in ('"', "'"):
            message = f"YAML reads this name as {key}"
            self._note("yaml-boolean", f"{path}.{key}", at, message, "put it in quotes")

    def _field(self, at: int, key: str, value: Node, shape: Shape[Any], path: str) -> None:
        known = _fields(shape)
        field = known.get(fold_key(key))
        if field is None:
            self._unknown(at, key, [field.name for field in known.values()], path)
            return
        below = f"{path}.{field.name}" if path else field.name
        self._place(below, at)
        if key != field.name:
            self._note("key-case", below, at, f"key {key} is read as {field.name}")
        if path.endswith(".Cert") and field.name in IGNORED_KEYS:
            self._note("key-ignored", below, at, f"{field.name} has no effect in a manifest")
        self.visit(value, field.shape, below)

    def _unknown(self, at: int, key: str, known: list[str], path: str) -> None:
        if len(self.findings) >= MAX_FINDINGS:
            return
        below = f"{path}.{key}" if path else key
        close = get_close_matches(fold_key(key), [fold_key(name) for name in known], n=1, cutoff=0.7)
        if close:
            name = next(name for name in known if fold_key(name) == close[0])
            self._note("key-unknown", below, at, f"unknown key {key}", f"did you mean {name}?")
            return
        home = _HOMES.get(fold_key(key), ())
        if home:
            self._note("key-misplaced", below, at, f"key {key} has no meaning here", f"it belongs to {_or(home)}")
        else:
            self._note("key-unknown", below, at, f"unknown key {key}", f"known here: {', '.join(sorted(known))}")

    def _duplicates(self, node: Object, path: str, *, exact: bool) -> None:
        seen: set[str] = set()
        for at, key, _ in node.members:
            name = key if exact else fold_key(key)
            if name in seen:
                below = f"{path}.{key}" if path else key
                self._note("key-duplicate", below, at, f"key {key} is given twice", "keep one of them")
            seen.add(name)

    def _string(self, node: String, shape: Shape[Any], path: str) -> None:
        if shape.inside().fields and path.endswith(".Cert"):
            try:
                decode_base64(node.text)
            except ValueError:
                message = "Cert is not base64 and counts as if it were not there"
                self._note("cert-ignored", path, node.at, message, "write the certificate's DER in base64")
        if _is_placeholder(node.text):
            self._note("placeholder", path, node.at, f"looks like a placeholder: {node.text.strip()[:60]}")

    def _place(self, path: str, at: int) -> None:
        self._places[path] = at

    def _note(self, rule: str, path: str, at: int, message: str, hint: str = "") -> None:
        if len(self.findings) < MAX_FINDINGS:
            line, column = self._document.position(at)
            self.findings.append(_finding(rule, path, line, column, message, hint))


_PLACEHOLDER = re.compile(
    r"<[^<>\n]{1,80}>|\$\{[A-Za-z_]+\}|\.\.\."
    r"|(?i:todo|fixme|tbd|x{3,}|placeholder|(?:change|replace)[-_ ]?me|(?:your|insert)[-_ ].{1,60})"
)
# What nobody means as it stands, also in the middle of a longer text.
_INSIDE = re.compile(r"\b(?:CHANGE[-_]?ME|REPLACE[-_]?ME|TODO)\b")
_INSIDE_ANGLES = re.compile(r"<(?:(?i:your|insert)[-_ ][^<>\n]{1,80}|[^<>\n@/=]{0,40}(?i:host)[^<>\n@/=]{0,40})>")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")


def _is_placeholder(text: str) -> bool:
    if _PLACEHOLDER.fullmatch(text.strip()):
        return True
    if "-----BEGIN " in text:
        return False  # base64 may spell anything
    text = _TEMPLATE.sub("", text)
    # Where tags are closed, angle brackets are markup.
    return bool(_INSIDE.search(text) or ("</" not in text and _INSIDE_ANGLES.search(text)))


@lru_cache(maxsize=256)
def _fields(shape: Shape[Any]) -> dict[str, Field]:
    return {fold_key(field.name): field for field in shape.inside().fields}


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(names)


def _homes(shape: Shape[Any], path: str) -> Iterator[tuple[str, str]]:
    """Every key of every structure, with the path of its home."""
    inside = shape.inside()
    for below in (inside.elements, inside.entries):
        if below is not None:
            yield from _homes(below, f"{path}.*" if below is inside.entries else f"{path}[]")
    for field in inside.fields:
        home = f"{path}.{field.name}" if path else field.name
        yield fold_key(field.name), home
        if field.name != "Cert":
            yield from _homes(field.shape, home)


def _collect_homes() -> dict[str, tuple[str, ...]]:
    homes: dict[str, tuple[str, ...]] = {}
    for key, home in _homes(parse.manifest, ""):
        if home not in homes.get(key, ()):
            homes[key] = (*homes.get(key, ()), home)
    return homes


_HOMES = _collect_homes()

__all__ = ["Finding", "Severity", "lint", "lint_document", "undecodable", "unreadable"]
