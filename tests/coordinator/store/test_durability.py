"""A whole Coordinator that is stopped anywhere: what was answered is there after a restart, nothing is in between."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.coordinator.manifests import encode, many
from tests.coordinator.parties import manifest
from tests.coordinator.people import ADMIN, office, person, recovery_pem
from tests.coordinator.running import World
from tests.coordinator.states import UUID_1, applicant

from marblerun.coordinator.commands.activate import ActivationRefused
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.store.entries import encode_state
from marblerun.coordinator.store.file import FileStore
from marblerun.errors import MarbleRunError
from marblerun.secrets.upload import SecretUpload

T = TypeVar("T")
CALLS = ("open", "fdopen", "fsync", "replace", "unlink", "close", "fstat")
"""What a save asks of the operating system; writing happens to what ``fdopen`` gave."""


class PowerCut(BaseException):
    """The process is gone: no handler may do anything about it."""


def on(directory: Path, scenario: Callable[[Coordinator], Coroutine[Any, Any, T]]) -> T:
    """A scenario on a Coordinator that was started on a directory."""

    async def main(store: FileStore) -> T:
        coordinator = World(store=store).coordinator()
        await coordinator.start()
        try:
            return await asyncio.wait_for(scenario(coordinator), 120)
        finally:
            await coordinator.stop()

    store = FileStore(directory)
    try:
        return asyncio.run(main(store))
    finally:
        store.close()


async def entries(coordinator: Coordinator) -> dict[str, bytes]:
    return encode_state(coordinator.state)


async def activate(coordinator: Coordinator, marble: str = "m") -> None:
    await coordinator.activate(applicant().request(marble, UUID_1), applicant().certificate)


async def history(coordinator: Coordinator, answered: list[dict[str, bytes]]) -> None:
    """Activations that count, a secret, an update with a new data key; after each answer what was promised."""
    document = {**office({"alice": ADMIN}), "RecoveryKeys": {"party0": recovery_pem("party0")}}
    alice = person("alice").der
    steps: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: activate(coordinator, "back"),
        lambda: coordinator.write_secrets(alice, {"userPlain": SecretUpload(key=b"value")}),
        lambda: coordinator.update_manifest(alice, encode({**document, "Config": {"RotateRootSecret": True}})),
        lambda: activate(coordinator, "back"),
    ]
    for step in steps:
        await step()
        answered.append(await entries(coordinator))


@contextmanager
def power_cut_at(number: int, directory: Path) -> Iterator[list[int]]:
    """From this operation on nothing reaches the directory any more."""
    count, lock = [0], threading.Lock()
    real = {name: getattr(os, name) for name in CALLS}

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not str(args[0]).startswith(str(directory)):
                return real[name](*args, **kwargs)
            with lock:
                count[0] += 1
                if count[0] > number:
                    raise PowerCut
            return real[name](*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(name))
        yield count


async def until_the_cut(coordinator: Coordinator, number: int, directory: Path) -> tuple[list[dict[str, bytes]], int]:
    """What was answered before the cut, and how many operations there were."""
    answered = [await entries(coordinator)]
    with power_cut_at(number, directory) as count:
        task = asyncio.create_task(history(coordinator, answered))
        while not task.done() and count[0] <= number:
            await asyncio.wait({task}, timeout=0.002)
        # Nobody gets an answer any more; whoever waits for one waits in vain.
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(results[0], None | asyncio.CancelledError | PowerCut)
    return answered, count[0]


def without_cut(directory: Path) -> tuple[list[dict[str, bytes]], int]:
    return on(directory, lambda coordinator: until_the_cut(coordinator, 10_000, directory))


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with a deployment."""
    directory = tmp_path_factory.mktemp("deployed") / "state"
    on(directory, lambda coordinator: coordinator.set_manifest(encode(office({"alice": ADMIN}))))
    return directory


def test_after_a_stop_at_every_operation_of_a_history_the_last_answered_state_is_back(
    deployed: Path, tmp_path: Path
) -> None:
    """Every operation of four changes; the change under way is there or not, never half."""
    shutil.copytree(deployed, tmp_path / "whole")
    whole, operations = without_cut(tmp_path / "whole")
    assert len(whole) == 5
    assert operations > 100
    lengths = set()
    for number in range(0, operations, 1 if os.environ.get("MARBLERUN_LONG") else 3):
        directory = tmp_path / "cut"
        shutil.copytree(deployed, directory)
        answered, _ = on(directory, lambda c, n=number, d=directory: until_the_cut(c, n, d))  # type: ignore[misc]
        found = on(directory, entries)
        lengths.add(len(answered))
        if found != answered[-1]:
            # The change whose answer was not given: exactly one step further.
            assert steps_of(found) == steps_of(whole[len(answered)])
        shutil.rmtree(directory)
    assert lengths == {1, 2, 3, 4}


def steps_of(state: dict[str, bytes]) -> tuple[bytes | None, bool, int]:
    """What tells the states of the history apart."""
    lines = state["updateLog"].count(b"\n")
    return state.get("activations:back"), b'"Public":null' in state["secret:userPlain"], lines


@contextmanager
def broken(number: int, error: int) -> Iterator[None]:
    """Every write (or what comes before it) fails from the given kind of operation on."""
    real_fdopen, real_fsync, real_open = os.fdopen, os.fsync, os.open

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(error, os.strerror(error))

    def fdopen(descriptor: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real_fdopen(descriptor, mode, *args, **kwargs)
        if "w" not in mode:
            return file
        file.close()
        return refuse()

    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        return int(refuse()) if flags & os.O_CREAT else real_open(path, flags, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, ("open", "fdopen", "fsync")[number], (opened, fdopen, refuse)[number])
        yield
    assert os.fsync is real_fsync


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (0, errno.EROFS, "Read-only file system"),
        (0, errno.EACCES, "Permission denied"),
        (1, errno.ENOSPC, "No space left"),
        (2, errno.EIO, "Input/output error"),
    ],
)
def test_while_the_disk_refuses_requests_fail_and_afterwards_service_goes_on(
    tmp_path: Path, number: int, error: int, text: str
) -> None:
    """K4: memory does not move ahead of the disk; the budget is spent only by activations that were answered."""
    directory = tmp_path / "state"

    async def scenario(coordinator: Coordinator) -> dict[str, bytes]:
        await coordinator.set_manifest(encode(many(3)))
        await activate(coordinator)
        before = await entries(coordinator)
        with broken(number, error):
            for _ in range(3):
                with pytest.raises(ActivationRefused, match=text):
                    await activate(coordinator)
            assert coordinator.status().code == 3
            assert await entries(coordinator) == before
        for _ in range(2):
            await activate(coordinator)
        with pytest.raises(ActivationRefused, match=r"(?i)max"):
            await activate(coordinator)
        return await entries(coordinator)

    assert on(directory, scenario) == on(directory, entries)


def test_a_manifest_that_cannot_be_written_is_not_set(tmp_path: Path) -> None:
    """K6: state and manifest stay as they were."""

    async def scenario(coordinator: Coordinator) -> None:
        with broken(1, errno.ENOSPC), pytest.raises(MarbleRunError, match="No space left"):
            await coordinator.set_manifest(manifest(1))
        assert coordinator.status().code == 2
        await coordinator.set_manifest(manifest(1))
        assert coordinator.status().code == 3

    on(tmp_path / "state", scenario)


CHILD = """
import asyncio, sys
from pathlib import Path
from tests.coordinator.store.test_durability import activate, on

async def spend(coordinator):
    print(coordinator.state.activations.get("m", 0), flush=True)
    while True:
        await activate(coordinator)
        print(coordinator.state.activations["m"], flush=True)

on(Path(sys.argv[1]), spend)
"""


def test_a_process_that_is_killed_over_and_over_has_forgotten_no_answered_activation(tmp_path: Path) -> None:
    """SIGKILL; after each restart the count is the last one told, or one more that nobody was told of."""
    directory = tmp_path / "state"
    on(directory, lambda coordinator: coordinator.set_manifest(encode(many(1_000_000))))
    dice, last = random.Random(7), 0
    rounds = 40 if os.environ.get("MARBLERUN_LONG") else 4
    root = Path(__file__).resolve().parents[3]
    for _ in range(rounds):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(directory)], stdout=subprocess.PIPE, cwd=root, text=True
        )
        assert process.stdout is not None
        first = int(process.stdout.readline())
        assert first in (last, last + 1)
        killer = threading.Timer(dice.uniform(0.02, 0.25), process.send_signal, (signal.SIGKILL,))
        killer.start()
        told = [int(line) for line in process.stdout if line.endswith("\n")]
        assert process.wait(60) == -signal.SIGKILL
        process.stdout.close()
        last = told[-1] if told else first
        assert told == list(range(first + 1, first + 1 + len(told)))
    assert last > 0
