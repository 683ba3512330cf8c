"""The first PEM block of a text is the one Go finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.go.oracle import Answer, Oracle, running

from marblerun.wire.gopem import Block, first_block

PLAIN = "-----BEGIN X-----\nAQID\n-----END X-----\n"


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    with running("jsondiff", tmp_path_factory.mktemp("go")) as program:
        if program is None:
            pytest.skip("Go is not installed: no differential test")
        yield program


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f"some text before\n{PLAIN}",
        f"{PLAIN}garbage after",
        f"{PLAIN}-----BEGIN Y-----\nBAUG\n-----END Y-----\n",
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("AQID", " A Q\tI\nD "),
        PLAIN.replace("X-----\nAQ", "X-----\nProc-Type: 4\n\nAQ"),
        f"-----BEGIN Y-----\n!!!!\n-----END Y-----\n{PLAIN}",
        f"-----BEGIN Y-----\n{PLAIN}",
        f"\n-----END {PLAIN}",
        PLAIN.removesuffix("\n"),
    ],
)
def test_what_go_tolerates_is_tolerated(text: str) -> None:
    assert first_block(text) == Block("X", b"\x01\x02\x03")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AQID",
        PLAIN.replace("END X", "END Y"),
        PLAIN.replace("AQID", "AQI"),
        f"x{PLAIN}",
        PLAIN.replace("-----\n", "----\n"),
    ],
)
def test_text_without_a_complete_block_gives_none(text: str) -> None:
    assert first_block(text) is None


def test_an_empty_block_is_a_block() -> None:
    assert first_block("-----BEGIN X-----\n-----END X-----\n") == Block("X", b"")


_PIECES = [
    "-----BEGIN ",
    "-----END ",
    "-----",
    "X",
    "Y",
    "AQID",
    "AQ==",
    "=",
    "\n",
    "\n",
    "\r\n",
    ":",
    "k: v",
    " ",
    "!",
]
_PIECES += ["k: v", " ", "!", "-----BEGIN X-----\n", "\n-----END X-----", "\n-----END X-----\n", "\nAQID"]


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.sampled_from(_PIECES), max_size=14).map("".join))
def test_any_text_has_the_block_that_go_finds(oracle: Oracle, text: str) -> None:
    block = first_block(text)
    ours = Answer(False) if block is None else Answer(True, [block.label, block.data.hex()])
    assert oracle.ask("pem", text.encode()) == ours


def test_many_broken_blocks_take_linear_time() -> None:
    assert first_block("-----BEGIN X-----\n!\n-----END X-----\n" * 20_000) is None
