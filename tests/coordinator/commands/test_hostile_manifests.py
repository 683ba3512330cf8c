"""Manifests made to hurt: a clear error that names the place, in about a second, and nothing is kept."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.coordinator.manifests import encode, integration
from tests.coordinator.running import World

from marblerun.errors import Malformed
from marblerun.wire import limits

# What is promised is a second on an idle machine; tests share theirs, and count lines meanwhile.
# This is here to find what takes minutes.
SECONDS = 30.0
MILLION = 1_000_000


def with_file(template: str | dict[str, object]) -> bytes:
    document = integration()
    document["Marbles"]["bare"]["Parameters"] = {"Files": {"/f": template}}
    return encode(document)


def with_files(template: str, count: int) -> bytes:
    document = integration()
    document["Marbles"]["bare"]["Parameters"] = {"Files": {f"/{number}": template for number in range(count)}}
    return encode(document)


FILE = "Marbles.bare.Parameters.Files[/f]"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "open brackets": (b"[" * 16 * MILLION, "nested deeper than 10000 levels (line 1, column 10001)"),
    "objects in objects": (b'{"Packages":' * MILLION, "nested deeper than"),
    "50 MB": (b'{"Packages":"' + b"x" * 50 * MILLION + b'"}', "larger than 16777216 bytes"),
    "dense numbers": (b'{"x":[' + b"1," * 8 * MILLION + b"1]}", "holds more than 100000 values"),
    "dense lists": (b"[" + b"[]," * 5 * MILLION + b"[]]", "holds more than 100000 values"),
    "dense objects": (b"[" + b"{}," * 5 * MILLION + b"{}]", "holds more than 100000 values"),
    "one key again and again": (b"{" + b'"Packages":{},' * MILLION + b'"":0}', "holds more than 100000 values"),
    "as many values as there may be, all wrong": (
        b'{"Packages":[' + b"1," * (limits.MAX_JSON_VALUES - 3) + b"1]}",
        "Packages: expected an object, found an array",
    ),
    "many packages, all wrong": (
        b'{"Packages":{' + b",".join(b'"%d":1' % number for number in range(99_000)) + b"}}",
        "Packages.0: expected an object, found number 1",
    ),
    "many empty secrets": (
        b'{"Secrets":{' + b",".join(b'"%d":{}' % number for number in range(99_000)) + b"}}",
        "manifest contains no packages",
    ),
    "long string that does not end": (b'"' + b"\\n" * 8 * MILLION, "string does not end (line 1, column 1)"),
    "a number of megabytes": (b'{"Config":{"UpdateThreshold":' + b"9" * 16 * MILLION + b"}}", "Config.UpdateThreshold"),
    "NUL between values": (b'{"Packages"\0:{}}', "expected ':' after a key, found character '\\x00'"),
    "NUL in a string": (b'{"Packages":{"\0":{}}}', "control character '\\x00' in key must be escaped"),
    "not UTF-8": (b'{"Packages":\xff}', "expected a value, found character '\\ufffd' (line 1, column 13)"),
    "templates in a circle": (
        with_file('{{define "a"}}{{template "b"}}{{end}}{{define "b"}}{{template "a"}}{{end}}{{template "a"}}'),
        f"{FILE}: template, line 1",
    ),
    "a template that prints gigabytes": (with_file("{{range 9999}}{{printf `%9999999d` 1}}{{end}}"), FILE),
    "a template that doubles": (
        with_file('{{$x := "aaaaaaaaaaaaaaaa"}}{{range 60}}{{$x = print $x $x}}{{end}}'),
        FILE,
    ),
    "a template that never ends": (with_file("{{range 9223372036854775807}}{{end}}"), FILE),
    "a thousand templates that are long": (
        with_files("{{range 200000}}{{end}}", 1000),
        "Marbles.bare.Parameters.Files",
    ),
    "a thousand marbles with a long template": (
        encode(
            {
                "Packages": {"p": {"Debug": True}},
                "Marbles": {
                    f"m{number}": {"Package": "p", "Parameters": {"Files": {"/f": "{{range 300000}}{{end}}"}}}
                    for number in range(1000)
                },
            }
        ),
        "Parameters.Files[/f]: template, line 1",
    ),
    "a template of a million actions": (with_file("{{1}}" * MILLION), "bare"),
    "deep parentheses": (with_file("{{" + "(" * MILLION + "1" + ")" * MILLION + "}}"), "bare"),
}


@pytest.mark.parametrize(("raw", "says"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_manifests_are_refused_soon_with_their_place_and_leave_nothing(raw: bytes, says: str) -> None:
    world = World()

    async def scenario() -> tuple[Malformed, float]:
        coordinator = world.coordinator()
        await coordinator.start()
        try:
            before = coordinator.state
            stored = world.store.load()
            begin = time.process_time()
            with pytest.raises(Malformed) as refused:
                await coordinator.set_manifest(raw)
            took = time.process_time() - begin
            assert coordinator.state is before
            assert world.store.load() == stored
            assert coordinator.status().code == 2
            return refused.value, took
        finally:
            await coordinator.stop()

    error, took = asyncio.run(scenario())
    assert says in str(error)
    assert len(str(error)) < 20_000
    assert took < SECONDS


def test_t8_a_nul_byte_for_the_environment_is_found_whether_it_comes_as_an_escape_or_encoded() -> None:
    """T8."""
    for value in ("a\0b", {"Data": "YQBi", "Encoding": "base64"}, {"Data": "6100", "Encoding": "hex"}):
        document = integration()
        document["Marbles"]["bare"]["Parameters"] = {"Env": {"X": value}}

        async def scenario(raw: bytes) -> None:
            coordinator = World().coordinator()
            await coordinator.start()
            with pytest.raises(Malformed, match=r"Marbles\.bare\.Parameters\.Env\[X\]: .*NUL"):
                await coordinator.set_manifest(raw)
            await coordinator.stop()

        asyncio.run(scenario(encode(document)))
