"""What the commands write: results to standard output, everything for people to standard error, files with care."""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from marblerun.errors import Unavailable

F = TypeVar("F", bound=Callable[..., Any])
FORMATS: Final = ("text", "json")
_PATIENCE_SECONDS: Final = 1.0
_SPINNER: Final = "|/-\\"


def note(text: str) -> None:
    """A line about what is going on, for people."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """A warning that cannot be overlooked."""
    click.secho(f"Warning: {text}", err=True, bold=True, fg="yellow")


class _CollateralWarnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # A failure to fetch becomes the command's error, in the same words.
        if record.levelno >= logging.WARNING and not record.name.endswith(".cache"):
            warn(for_terminal(record.getMessage()))


def show_collateral_warnings() -> None:
    """From now on what the collateral client warns of is shown to the user, once however often this is called."""
    log = logging.getLogger("marblerun.collateral")
    if not any(isinstance(handler, _CollateralWarnings) for handler in log.handlers):
        log.addHandler(_CollateralWarnings())


def emit(text: str) -> None:
    """A line of the result."""
    click.echo(text)


def emit_json(document: Mapping[str, object]) -> None:
    """The result as one JSON document."""
    click.echo(json.dumps(document, indent=2))


def emit_bytes(content: bytes) -> None:
    """The result as it is, with a newline at its end if it has none."""
    sys.stdout.buffer.write(content if content.endswith(b"\n") else content + b"\n")
    sys.stdout.flush()


def for_terminal(text: str) -> str:
    """A peer's text without control characters, except for line ends and tabs."""
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def format_option(*, short: bool = False) -> Callable[[F], F]:
    """Adds ``--format text|json`` and ``--json``; with ``short`` also ``-o/--output``.

    The reference uses ``-o/--output FILE`` on some commands. There it keeps that meaning, so JSON has another option
    that all commands share.
    """

    def decorate(function: F) -> F:
        names = ("-o", "--output", "--format") if short else ("--format",)
        choice = click.option(
            *names, "output_format", type=click.Choice(FORMATS), default="text", help="Form of the result."
        )
        flag = click.option("--json", "output_format", flag_value="json", type=str, help="The same as --format json.")
        return choice(flag(function))

    return decorate


def write_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Writes a file in one step: the old content or the new, never half. Devices and pipes are written as they are.

    Raises:
        Unavailable: the file system does not let us; the message names the path.
    """
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            path.write_bytes(content)
            return
        target = path.resolve() if path.is_symlink() else path
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(mode)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from None


def umask_mode() -> int:
    """The mode of a file that is made without a wish of its own."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Says what is being waited for, on standard error, once that takes longer than a second."""
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(text, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(text: str, done: threading.Event) -> None:
    if done.wait(_PATIENCE_SECONDS):
        return
    if not sys.stderr.isatty():
        note(f"{text} ...")
        return
    turn = 0
    while not done.wait(0.1):
        click.echo(f"\r{_SPINNER[turn % len(_SPINNER)]} {text} ...", err=True, nl=False)
        turn += 1
    click.echo("\r\033[K", err=True, nl=False)
