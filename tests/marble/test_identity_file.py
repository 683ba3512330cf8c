"""The identity file makes an instance the same one after a restart."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.errors import Misconfigured
from marblerun.marble.identity_file import load_or_create_uuid, parse_uuid

TEXT = "d3b07384-d113-4ec6-8f2a-1c2d3e4f5a6b"


def test_the_first_start_makes_a_random_uuid_and_the_next_one_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "uuid"
    made, is_new = load_or_create_uuid(path)
    assert is_new
    assert made.version == 4
    assert path.read_text() == str(made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_uuid(path) == (made, False)


def test_an_empty_file_as_a_crash_leaves_it_counts_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "uuid"
    path.write_text(" \n")
    made, is_new = load_or_create_uuid(path)
    assert is_new
    assert path.read_text() == str(made)


@pytest.mark.parametrize(
    "text",
    [TEXT, TEXT.upper(), f"{TEXT}\n", f"urn:uuid:{TEXT}", f"URN:UUID:{TEXT}", f"{{{TEXT}}}", TEXT.replace("-", "")],
)
def test_every_spelling_the_coordinator_takes_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "uuid").write_text(text)
    assert load_or_create_uuid(tmp_path / "uuid") == (UUID(TEXT), False)


@pytest.mark.parametrize(
    "content", [b"garbage", TEXT[:-1].encode(), (TEXT + "0").encode(), b"\xff" * 36, b"0" * 5000, b"g" * 32, b"-" * 36]
)
def test_anything_else_is_an_error_and_stays_as_it_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "uuid").write_bytes(content)
    with pytest.raises(Misconfigured, match="does not hold a UUID"):
        load_or_create_uuid(tmp_path / "uuid")
    assert (tmp_path / "uuid").read_bytes() == content


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text(TEXT)
    (tmp_path / "uuid").symlink_to("other")
    (tmp_path / "dangling").symlink_to("new")
    for name in ("uuid", "dangling"):
        with pytest.raises(Misconfigured, match="cannot open"):
            load_or_create_uuid(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "other", "uuid"]


def test_a_pipe_or_a_missing_directory_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "no/uuid", "."):
        with pytest.raises(Misconfigured):
            load_or_create_uuid(tmp_path / name)


@given(st.text(alphabet="0123456789abcdefABCDEF-{}urnid:", max_size=50))
def test_any_text_is_a_uuid_or_a_value_error(text: str) -> None:
    try:
        parsed = parse_uuid(text)
    except ValueError:
        return
    assert str(parsed).replace("-", "") in text.lower().replace("-", "")
