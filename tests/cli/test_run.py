"""``marblerun run`` as a user meets it: a process that becomes the program, or says why not."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.forge.mesh import Mesh
from tests.marble.stub import mesh_listener

from marblerun.attestation.issue import detect_issuer
from marblerun.cli.main import main
from marblerun.coordinator.commands.activate import Activated, ActivationRefused, ActivationRequest, Stage
from marblerun.errors import Misconfigured

MESH = Mesh.mint()
CANARY = "canary-7f3a"
SHOW = "import json, os, sys; print(json.dumps([sys.argv, dict(os.environ), os.getpid()]))"


@dataclass
class Coordinator:
    """Gives every Marble the same, or refuses."""

    answer: Activated | Exception = field(default_factory=lambda: Activated({}, {}, ()))
    types: list[str] = field(default_factory=list)
    address: str = ""

    async def activate(self, request: ActivationRequest, _leaf: bytes | None) -> Activated:
        self.types.append(request.marble_type)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(scope="module")
def listening() -> Iterator[Coordinator]:
    coordinator = Coordinator()
    with mesh_listener(MESH, coordinator.activate) as endpoint:
        coordinator.address = str(endpoint)
        yield coordinator


@pytest.fixture
def coordinator(listening: Coordinator) -> Coordinator:
    listening.answer = Activated({}, {}, ())
    listening.types.clear()
    return listening


def run(
    coordinator: Coordinator, *arguments: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command with nothing in the environment but what a Marble needs."""
    marble = {
        "PATH": os.environ["PATH"],
        "OE_SIMULATION": "1",
        "EDG_MARBLE_TYPE": "shop",
        "EDG_MARBLE_COORDINATOR_ADDR": coordinator.address,
        "EDG_MARBLE_ACTIVATION_TIMEOUT": "20s",
    }
    command = [sys.executable, "-m", "marblerun", "run", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=marble | (environment or {}), capture_output=True, text=True, timeout=120, check=False
    )


@dataclass
class Here:
    """The command in this very process; only for runs that fail, since success would replace the tests."""

    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]
    directory: Path
    address: str

    def run(self, *arguments: str, **environment: str) -> int:
        """Return the exit code."""
        variables = {"OE_SIMULATION": "1", "EDG_MARBLE_TYPE": "shop", "EDG_MARBLE_COORDINATOR_ADDR": self.address}
        for name, value in (variables | environment).items():
            self.patch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            main(["run", *arguments])
        return int(end.value.code or 0)

    def errors(self) -> str:
        return self.capture.readouterr().err

    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())


@pytest.fixture
def here(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Here:
    monkeypatch.chdir(tmp_path)
    return Here(monkeypatch, capsys, tmp_path, coordinator.address)


def test_the_program_gets_files_environment_and_arguments_and_takes_the_place_of_the_runner(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    coordinator.answer = Activated(
        {"data/secret": b"\x00" + CANARY.encode()}, {"SECRET": CANARY.encode(), "PATH": os.environb[b"PATH"]}, ()
    )
    done = run(coordinator, "--", sys.executable, "-c", SHOW, "--own", "-x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    argv, environment, _ = json.loads(done.stdout)
    assert argv == ["-c", "--own", "-x"]
    assert environment["SECRET"] == CANARY
    assert environment["EDG_MARBLE_TYPE"] == "shop"
    assert (tmp_path / "data/secret").read_bytes() == b"\x00" + CANARY.encode()
    assert CANARY not in done.stderr


def test_each_step_is_told_in_order_behind_the_prefix(coordinator: Coordinator, tmp_path: Path) -> None:
    done = run(coordinator, "true", cwd=tmp_path)
    steps = (
        "starting",
        "NO EVIDENCE",
        "not verified",
        "loading TLS credentials",
        "loading UUID",
        "UUID not found, generated",
        "generating quote",
        "activating marble of type shop",
        "not using TTLS",
        "creating 0 files",
        "setting 0 environment variables",
        "done",
    )
    lines = done.stderr.splitlines()
    assert [line[:10] for line in lines] == ["[PreMain] "] * len(steps)
    assert [step for step, line in zip(steps, lines, strict=True) if step not in line] == []


def test_log_lines_are_json_if_asked_for(coordinator: Coordinator, tmp_path: Path) -> None:
    done = run(coordinator, "--log-format", "json", "true", cwd=tmp_path)
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert {record["logger"] for record in records} == {"PreMain"}
    assert [r["level"] for r in records].count("warning") == 2


def test_arguments_of_the_manifest_replace_all_of_the_command_line(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.answer = Activated({}, {}, ("shop", "-c", SHOW, "from-manifest"))
    done = run(coordinator, "--", sys.executable, "ignored.py", cwd=tmp_path)
    assert json.loads(done.stdout)[0] == ["-c", "from-manifest"], done.stderr


def test_without_a_program_the_manifest_names_it(coordinator: Coordinator, tmp_path: Path) -> None:
    coordinator.answer = Activated({}, {}, ("sh", "-c", "echo $0 $1", "zero", "one"))
    assert run(coordinator, cwd=tmp_path).stdout == "zero one\n"


def test_the_exit_code_is_the_programs(coordinator: Coordinator, tmp_path: Path) -> None:
    assert run(coordinator, "sh", "-c", "exit 42", cwd=tmp_path).returncode == 42


def test_options_go_before_variables(coordinator: Coordinator, tmp_path: Path) -> None:
    done = run(coordinator, "--type", "ledger", "--uuid-file", "id", "true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert coordinator.types == ["ledger"]
    assert (tmp_path / "id").exists()


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        (
            ActivationRefused(Stage.EVIDENCE, "SecurityVersion is 1, at least 2 is required"),
            4,
            "at least 2 is required",
        ),
        (Activated({"../escape": b""}, {}, ()), 7, "'..' is not allowed"),
        (Activated({"a": b"", "A": b""}, {}, ()), 4, "same file"),
        (Activated({}, {"A=B": b""}, ()), 7, "not a name"),
        (Activated({}, {"PATH": b"/nowhere"}, ()), 8, "no program"),
        (Activated({}, {"MARBLE_TTLS_CONFIG": b'{"tls":{"Incoming":{"*:1":{}}}}'}, ()), 9, "transparent TLS"),
        (Activated({}, {"MARBLE_TTLS_CONFIG": b'{"tls":{}}'}, ()), 7, "MARBLE_TTLS_CONFIG"),
    ],
)
def test_a_failure_ends_with_the_exit_code_of_its_class_and_nothing_is_written_or_started(
    answer: Activated | Exception, code: int, reason: str, coordinator: Coordinator, here: Here
) -> None:
    coordinator.answer = answer
    assert here.run("sh", "-c", "echo started > started") == code
    assert reason in here.errors()
    assert here.files() == ["uuid"]


def test_without_a_type_nothing_is_done(coordinator: Coordinator, here: Here) -> None:
    assert here.run("true", EDG_MARBLE_TYPE="") == 9
    assert "EDG_MARBLE_TYPE is not set" in here.errors()
    assert (here.files(), coordinator.types) == ([], [])


def test_without_a_tee_nobody_is_asked(coordinator: Coordinator, here: Here) -> None:
    try:
        detect_issuer({})
    except Misconfigured:
        assert here.run("true", OE_SIMULATION="") == 9
        assert "no trusted execution environment was found" in here.errors()
        assert coordinator.types == []
    else:
        pytest.skip("this machine has a TEE")


def test_a_coordinator_that_never_comes_ends_it_in_time(here: Here) -> None:
    assert here.run("--coordinator-addr", "127.0.0.1:1", "--timeout", "0.3s", "true") == 6
    assert "gave up after" in here.errors()


@pytest.mark.parametrize("option", ["--root-cert", "--policy", "--manifest-fingerprint"])
def test_a_pin_that_cannot_be_made_ends_it_before_anybody_is_asked(
    option: str, coordinator: Coordinator, here: Here
) -> None:
    assert here.run(option, "missing", "true") == 9
    assert (here.files(), coordinator.types) == ([], [])


def test_core_files_are_possible_again_after_a_failure(here: Here) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    assert here.run("true", EDG_MARBLE_TYPE="") == 9
    assert resource.getrlimit(resource.RLIMIT_CORE) == before


def test_a_simulated_platform_is_loud(coordinator: Coordinator, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "marblerun", "simulator", "init", "sim"], cwd=tmp_path, check=True)
    done = run(coordinator, "true", cwd=tmp_path, environment={"OE_SIMULATION": "", "EDG_SIMULATED_PLATFORM": "sim"})
    assert done.returncode == 0, done.stderr
    assert "WARNING: evidence comes from a SIMULATED platform" in done.stderr
