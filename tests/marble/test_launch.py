"""What a program is started with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from marblerun.errors import Malformed, Misconfigured, NotFound
from marblerun.marble.launch import plan_launch

BASE = {b"PATH": b"/bin:/usr/bin", b"KEEP": b"1", b"REPLACED": b"host"}


def test_without_argv_the_command_keeps_its_arguments() -> None:
    launch = plan_launch(["sh", "-c", "true"], [], {}, BASE)
    assert (launch.file, launch.argv) == (b"/bin/sh", (b"sh", b"-c", b"true"))


def test_argv_of_the_manifest_replaces_every_argument_but_not_the_file() -> None:
    launch = plan_launch(["/bin/sh", "-c", "true"], ["shop", "--port", "ä"], {}, BASE)
    assert (launch.file, launch.argv) == (b"/bin/sh", (b"shop", b"--port", "ä".encode()))


def test_without_a_command_the_manifest_names_the_program() -> None:
    assert plan_launch([], ["sh", "-x"], {}, BASE).file == b"/bin/sh"


def test_without_either_there_is_nothing_to_run() -> None:
    with pytest.raises(Misconfigured, match="nothing to run"):
        plan_launch([], [], {}, BASE)


def test_variables_of_the_manifest_win_over_those_of_the_host() -> None:
    launch = plan_launch(["sh"], [], {"REPLACED": b"\xff\xfe", "NEW": b""}, BASE)
    assert launch.environment == {
        b"PATH": b"/bin:/usr/bin",
        b"KEEP": b"1",
        b"REPLACED": b"\xff\xfe",
        b"NEW": b"",
    }


def test_the_program_is_looked_for_in_the_path_that_it_will_see(tmp_path: Path) -> None:
    program = tmp_path / "app"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert plan_launch(["app"], [], {"PATH": os.fsencode(tmp_path)}, BASE).file == os.fsencode(program)


@pytest.mark.parametrize("program", ["no-such-program", "/etc", "/etc/passwd"])
def test_what_cannot_be_executed_is_not_found(program: str) -> None:
    with pytest.raises(NotFound):
        plan_launch([program], [], {}, BASE)


@pytest.mark.parametrize("env", [{"": b""}, {"A=B": b""}, {"A\x00": b""}, {"A": b"x\x00y"}])
def test_variables_that_no_process_can_have_are_malformed(env: dict[str, bytes]) -> None:
    with pytest.raises(Malformed):
        plan_launch(["sh"], [], env, BASE)


def test_an_argument_with_a_nul_is_malformed() -> None:
    with pytest.raises(Malformed):
        plan_launch(["sh"], ["a\x00b"], {}, BASE)


def test_repr_shows_no_value_of_the_environment() -> None:
    launch = plan_launch(["sh"], [], {"SECRET": b"canary"}, BASE)
    assert repr(launch) == "Launch(file=b'/bin/sh', 1 arguments, 4 variables)"


def test_the_program_takes_the_place_of_the_process_with_ordinary_signals() -> None:
    code = (
        "from marblerun.marble.launch import plan_launch\n"
        "plan_launch(['sh', '-c', 'echo $SECRET $0 $$; grep SigIgn /proc/self/status'], [], {'SECRET': b's'},"
        " {b'PATH': b'/bin:/usr/bin'}).exec()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    output = process.communicate(timeout=60)[0]
    *words, ignored = output.split()
    assert words == ["s", "sh", str(process.pid), "SigIgn:"]
    # What Python itself ignores; others may be ignored by whoever started the tests.
    pythons_own = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ))
    assert int(ignored, 16) & pythons_own == 0
