"""A software TPM of one's own (swtpm), started where a test wants it; skipped loudly without swtpm or tpm2-pytss."""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


def _loads(module: str) -> bool:
    try:
        importlib.import_module(module)
    except (ImportError, OSError):
        return False
    return True


_MISSING = [
    name for name, there in (("swtpm", shutil.which("swtpm")), ("tpm2-pytss", _loads("tpm2_pytss"))) if not there
]
needs_tpm = pytest.mark.skipif(bool(_MISSING), reason=f"no TPM was tried: {' and '.join(_MISSING)} missing")

_SECONDS = 60.0


def short_directory(prefix: str) -> str:
    """A new directory whose path leaves room for a socket's name: the whole may have 107 bytes."""
    short = len(tempfile.gettempdir()) < 60 or not Path("/tmp").is_dir()
    return tempfile.mkdtemp(prefix=prefix, dir=None if short else "/tmp")


class SoftTpm:
    """One TPM; its memory lies in a directory and outlives the process that serves it."""

    def __init__(self, directory: Path) -> None:
        self.memory = directory
        """Point it to another TPM's while the power is off, and this place has another TPM."""
        self._sockets = Path(short_directory("swtpm"))
        self._process: subprocess.Popen[bytes] | None = None
        self.memory.mkdir(exist_ok=True)

    @property
    def tcti(self) -> str:
        """The way to it."""
        return f"swtpm:path={self._sockets}/s"

    def power_on(self) -> None:
        """Begin to serve; PCRs are as after a reset."""
        path = self._sockets / "s"
        self._process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.memory}"),
                *("--server", f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={path}.ctrl"),
                *("--flags", "startup-clear,not-need-init"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("swtpm did not start")
            time.sleep(0.005)

    def _answers(self) -> bool:
        from tpm2_pytss import TSS2_Exception

        try:
            with self.esapi():
                return True
        except TSS2_Exception:
            return False

    def power_off(self) -> None:
        """Without a shutdown command, as if the power failed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for path in self._sockets.iterdir():
            path.unlink()

    def reboot(self) -> None:
        """Off and on again."""
        self.power_off()
        self.power_on()

    @contextmanager
    def esapi(self) -> Iterator[Any]:
        """The TPM as the host's root sees it."""
        from marblerun.coordinator.seal.tpm_device import tpm_library

        with tpm_library().ESAPI(self.tcti) as esapi:
            yield esapi

    def extend(self, pcr: int, what: bytes = b"other software") -> None:
        """Measure something."""
        from tpm2_pytss import ESYS_TR

        with self.esapi() as esapi:
            esapi.pcr_event(getattr(ESYS_TR, f"PCR{pcr}"), what)

    def clear(self) -> None:
        """TPM2_Clear: new owner seed, owner's objects and indices gone."""
        from tpm2_pytss import ESYS_TR

        with self.esapi() as esapi:
            esapi.clear(ESYS_TR.LOCKOUT)

    def undefine(self, index: int) -> None:
        """Remove an NV index with the owner's authorization."""
        from tpm2_pytss import ESYS_TR, TPM2_HANDLE

        with self.esapi() as esapi:
            esapi.nv_undefine_space(esapi.tr_from_tpmpublic(TPM2_HANDLE(index)), ESYS_TR.OWNER)

    def remove(self) -> None:
        """Off for good."""
        self.power_off()
        shutil.rmtree(self._sockets)


class Bus:
    """What passes between a program and a TPM, seen by whoever has a probe on it."""

    def __init__(self, tpm: SoftTpm) -> None:
        self.seen = bytearray()
        self._target = tpm.tcti.removeprefix("swtpm:path=")
        self._sockets = Path(short_directory("bus"))
        self._passing: list[socket.socket] = []
        self._listeners = [self._listen(suffix) for suffix in ("", ".ctrl")]

    @property
    def tcti(self) -> str:
        """The way to the TPM over this bus."""
        return f"swtpm:path={self._sockets}/s"

    def _listen(self, suffix: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self._sockets}/s{suffix}")
        listener.listen()
        threading.Thread(target=self._serve, args=(listener, suffix), daemon=True).start()
        return listener

    def _serve(self, listener: socket.socket, suffix: str) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(f"{self._target}{suffix}")
                self._passing += (near, far)
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Nothing passes any more."""
        for one in (*self._listeners, *self._passing):
            one.close()
        shutil.rmtree(self._sockets)


@contextmanager
def bus_of(tpm: SoftTpm) -> Iterator[Bus]:
    """A bus to a TPM that runs."""
    bus = Bus(tpm)
    try:
        yield bus
    finally:
        bus.close()


@contextmanager
def soft_tpm(directory: Path) -> Iterator[SoftTpm]:
    """A TPM that runs."""
    tpm = SoftTpm(directory)
    try:
        tpm.power_on()
        yield tpm
    finally:
        tpm.remove()
