"""The outer shape of the command line: help, usage, exit codes, lazy loading, completion, the reference page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.cli.session import Session

from marblerun.cli import exit_codes
from marblerun.cli.main import NOUNS, Noun, NounGroup, cli
from marblerun.cli.options import Command, Group
from marblerun.cli.output import progress
from marblerun.cli.reference import render
from marblerun.client.problems import Unauthorized
from marblerun.errors import Malformed, MarbleRunError, Untrusted

MINE = ("manifest", "secret", "certificate", "status", "version", "completion")


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            if path or name in MINE:
                yield from _commands(child, (*path, name))


LATER = [("manifest", verb) for verb in ("lint", "schema", "diff", "render")]
"""Verbs of other modules, with rules of their own."""
ALL = list(_commands(cli))


@pytest.mark.parametrize("path", [path for path, _ in ALL], ids=" ".join)
def test_every_help_has_an_example_that_names_the_command(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"], prog_name="marblerun")
    assert result.exit_code == 0
    example = result.output.partition("Example:\n")[2].partition("\n\n")[0]
    assert f"marblerun {' '.join(path)}".strip() in " ".join(example.split())


def test_all_eight_persistent_flags_of_the_reference_are_there() -> None:
    text = CliRunner().invoke(cli, ["--help"]).output
    for flag in ("--coordinator-cert", "--era-config", "-i, --insecure", "--accepted-tcb-statuses",
                 "--accepted-advisories", "-n, --namespace", "--nonce", "--save-sgx-quote"):  # fmt: skip
        assert flag in text


def test_every_command_of_ours_takes_the_global_options() -> None:
    for path, command in ALL:
        if command.__class__.__module__.startswith("marblerun"):
            options = {option for param in command.params for option in param.opts}
            assert {"--era-config", "--insecure", "--nonce", "--pccs-url"} <= options, path
            assert isinstance(command, Command | Group), path


def test_every_command_speaks_json_or_bytes() -> None:
    for path, command in ALL:
        if not isinstance(command, click.Group) and path not in (("completion",), ("manifest", "get")):
            options = {option for param in command.params for option in param.opts}
            if path not in LATER:
                assert "--json" in options, path


def test_the_global_option_namespace_is_accepted() -> None:
    assert CliRunner().invoke(cli, ["-n", "elsewhere", "version"]).exit_code == 0


def test_usage_errors_are_2_and_show_the_usage(session: Session) -> None:
    for arguments in (
        ["nope"],
        ["status"],
        ["status", "a:1", "b:1"],
        ["status", "nonsense"],
        ["--nope"],
        ["status", "-o", "x", "a:1"],
    ):
        result = session.run(*arguments)
        assert (result.exit_code, "Usage: " in result.stderr) == (2, True), arguments


def test_a_command_that_is_not_installed_is_reported() -> None:
    group = NounGroup("x", nouns=[Noun("ghost", "marblerun.cli.ghost", "Not there.")])
    assert group.list_commands(click.Context(group)) == []
    with pytest.raises(click.ClickException, match="lacks the command 'ghost'"):
        group.get_command(click.Context(group), "ghost")


def test_every_error_class_has_one_code() -> None:
    kinds = [kind for row in exit_codes.TABLE for kind in row.errors]
    assert len(kinds) == len(set(kinds))
    assert {kind for kind in MarbleRunError.__subclasses__() if kind.__module__ == "marblerun.errors"} <= set(kinds)
    assert len({row.code for row in exit_codes.TABLE}) == len(exit_codes.TABLE)


def test_the_nearest_class_decides_the_code() -> None:
    assert exit_codes.exit_code(MarbleRunError("x")) == 1
    assert exit_codes.exit_code(Untrusted("x", step="s")) == 3
    assert exit_codes.exit_code(Malformed("x")) == 7
    assert exit_codes.exit_code(Unauthorized("x", status=401, method="GET", url="u")) == 4


def test_our_errors_show_no_traceback_unless_asked(session: Session) -> None:
    quiet = session.run("manifest", "signature", "none.json")
    loud = session.run("--debug", "manifest", "signature", "none.json")
    assert (quiet.exit_code, loud.exit_code) == (8, 8)
    assert quiet.stderr == "Error: there is no file none.json\n"
    assert "Traceback" in loud.stderr


def test_a_bug_is_one_line_and_code_1() -> None:
    @click.command()
    def broken() -> None:
        raise KeyError("oops")

    cli.add_command(broken)
    try:
        result = CliRunner().invoke(cli, ["broken"])
    finally:
        del cli.commands["broken"]
    assert result.exit_code == 1
    assert "Error: unexpected KeyError" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_is_130_and_a_reader_that_left_is_silent(session: Session) -> None:
    @click.command()
    def waiting() -> None:
        raise KeyboardInterrupt

    cli.add_command(waiting)
    try:
        assert CliRunner().invoke(cli, ["waiting"]).exit_code == 130
    finally:
        del cli.commands["waiting"]
    reading, writing = os.pipe()
    os.close(reading)
    gone = subprocess.run([sys.executable, "-m", "marblerun", "version"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (gone.returncode, gone.stderr) == (1, b"")


def test_what_takes_longer_than_a_second_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("quick"):
        pass
    told, end = "", time.monotonic() + 60
    with progress("Waiting for collateral"):
        while not told.endswith("\n") and time.monotonic() < end:
            time.sleep(0.05)
            told += capsys.readouterr().err
    assert told + capsys.readouterr().err == "Waiting for collateral ...\n"


def test_help_imports_neither_network_nor_cryptography() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from marblerun.cli.main import cli;"
        "r = CliRunner().invoke(cli, ['--help']); assert r.exit_code == 0;"
        "print([m for m in ('httpx', 'cryptography', 'ssl', 'asyncio', 'yaml', 'OpenSSL') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_version_in_text_and_json() -> None:
    assert CliRunner().invoke(cli, ["version"]).output.startswith("CLI Version: v")
    assert json.loads(CliRunner().invoke(cli, ["version", "-o", "json"]).output)["version"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0
    assert "_MARBLERUN_COMPLETE" in result.output
    assert CliRunner().invoke(cli, ["completion", "tcsh"]).exit_code == 2


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("marblerun evidence verify quote.bin --collateral x", "file"),
        ("marblerun evidence check quote.bin --report-data-of x", "file"),
        ("marblerun evidence collateral show x", "file"),
        ("marblerun coordinator --startup-manifest x", "file"),
        ("marblerun coordinator --seal-dir x", "dir"),
    ],
)
def test_files_and_directories_are_completed_by_the_shell(words: str, kind: str) -> None:
    environment = {
        "_MARBLERUN_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    run = subprocess.run(
        [sys.executable, "-c", "from marblerun.cli.main import main; main()"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (0, f"{kind},x\n"), run.stderr


def test_completion_completes_nouns_and_verbs() -> None:
    for words, index, expected in (("marblerun cert", 1, "certificate"), ("marblerun manifest upd", 2, "update")):
        environment = {"_MARBLERUN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}
        result = CliRunner().invoke(cli, [], env=environment, prog_name="marblerun")
        assert expected in result.output


def test_the_nouns_are_where_the_table_says() -> None:
    for noun in NOUNS:
        if noun.is_there:
            assert noun.load().name == noun.name


def test_the_reference_page_is_what_the_commands_say() -> None:
    """After a change: ``python -m marblerun.cli.reference > docs/cli.md``."""
    page = Path(__file__).parents[2] / "docs" / "cli.md"
    assert page.read_text() == render()
