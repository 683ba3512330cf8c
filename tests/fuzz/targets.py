"""What is fuzzed: how an input is made from random numbers, and what has to hold for every input.

The invariant is always the same in the end: a value or one of our own errors, nothing else, in bounded time. Where a
second opinion is at hand it is asked too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.manifest import golden
from tests.manifest.templates.grammar import Generator
from tests.manifest.templates.sample import FUNCTIONS, SAMPLE

from marblerun.client.yaml_json import yaml_document, yaml_to_json
from marblerun.errors import Malformed
from marblerun.manifest.lint import lint
from marblerun.manifest.parse import parse_manifest
from marblerun.manifest.templates import Budget, compile_template
from marblerun.wire import jsontree

SAMPLES = Path(__file__).parents[2] / "examples" / "manifests"


class Target(NamedTuple):
    """One thing to fuzz: ``make`` an input, ``check`` it; ``check`` raises whatever is a bug."""

    make: Callable[[random.Random], bytes]
    check: Callable[[bytes], None]


@cache
def _json_seeds() -> tuple[bytes, ...]:
    documents = [text for _, text, _ in golden.load() if len(text) < 5_000]
    return (*documents, *(path.read_bytes() for path in sorted(SAMPLES.glob("*.json"))))


@cache
def _yaml_seeds() -> tuple[bytes, ...]:
    return (
        *(path.read_bytes()[:2_000] for path in sorted(SAMPLES.glob("*.yaml"))),
        b"a: &x {k: [1, 2.5, ~]}\nb: *x\nc: {<<: *x, d: !!str 1}\n",
        b"? 'q'\n: |\n  text\n  more\nz: \"\\u00e9\\n\"\n",
    )


_TOKENS = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"true", b"1e9", b"-0", b"\\ud800", b"\xff", b"\0"]
_TOKENS += [b"\\u0041", b'"Packages"', b'"Cert"', b"  ", b"\n", b"0x1", b"NaN", b"\xef\xbb\xbf"]
_TOKENS += [b"- ", b"&a ", b"*a", b"<<: "]


def mutated(seeds: tuple[bytes, ...], dice: random.Random) -> bytes:
    """A seed with a few changes: bytes flipped, pieces cut, doubled, moved in from other seeds, tokens put in."""
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.randint(0, 6)):
        at = dice.randint(0, len(data))
        to = min(len(data), at + dice.randint(0, 12))
        match dice.randrange(6):
            case 0:
                data[at:to] = b""
            case 1:
                data[at:at] = data[at:to]
            case 2:
                data[at:to] = dice.choice(_TOKENS)
            case 3:
                other = dice.choice(seeds)
                start = dice.randint(0, len(other))
                data[at:to] = other[start : start + dice.randint(0, 40)]
            case 4 if at < len(data):
                data[at] ^= 1 << dice.randrange(8)
            case _:
                data[at:at] = dice.choice(_TOKENS) * dice.randint(1, 50)
    return bytes(data)


def _check_decoder(raw: bytes) -> None:
    with suppress(Malformed):
        parse_manifest(raw)
    try:
        jsontree.parse(raw)
        ours = True
    except Malformed:
        ours = False
    assert ours == _python_reads(raw), "another JSON reader disagrees"
    assert all(finding.line > 0 and finding.column > 0 for finding in lint(raw))


def _python_reads(raw: bytes) -> bool:
    """Whether the standard library takes the text, once bytes that are not UTF-8 are replaced."""
    text = raw.decode(errors="replace")
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError:
        return False
    return True


def _refuse(word: str) -> object:
    raise ValueError(word)


def _template(dice: random.Random) -> bytes:
    text = Generator(dice.getrandbits(32)).template().encode(errors="surrogateescape")
    return text if dice.random() < 0.3 else mutated((text,), dice)


def _check_template(raw: bytes) -> None:
    for functions in FUNCTIONS.values():
        with suppress(Malformed):
            template = compile_template(raw, functions)
            template.references()
            assert isinstance(template.execute(SAMPLE, budget=Budget(steps=20_000, output=100_000)), bytes)


def _check_yaml(raw: bytes) -> None:
    try:
        document = yaml_document(raw)
        text = yaml_to_json(raw)
    except Malformed:
        return
    assert _values(jsontree.parse(text).root) == _values(document.root), "its JSON says something else"


def _values(node: jsontree.Node) -> object:
    """A tree without its places."""
    match node:
        case jsontree.Object():
            return [(member.key, _values(member.value)) for member in node.members]
        case jsontree.Array():
            return [_values(item) for item in node.items]
        case jsontree.String():
            return ("string", node.text)
    return node[1:]


TARGETS: Mapping[str, Target] = {
    "decoder": Target(lambda dice: mutated(_json_seeds(), dice), _check_decoder),
    "templates": Target(_template, _check_template),
    "yaml": Target(lambda dice: mutated(_yaml_seeds(), dice), _check_yaml),
}
