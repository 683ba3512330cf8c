"""What a process uses, seen from outside: CPU time, memory, descriptors, threads; its children count with it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


def tree(pid: int) -> list[int]:
    """The process and all its descendants; worker processes are part of a server."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for task in _tasks(one):
            with contextlib.suppress(OSError):
                todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and its descendants, ended threads included.

    From the process's CPU clock, which counts nanoseconds; the same sum stands in ``/proc/PID/stat``, in steps of
    10 ms, which is what is read where a sandbox has no such clock.
    """
    return sum(_cpu_seconds(one) for one in tree(pid))


def _cpu_seconds(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of another process, see clock_getcpuclockid(3)
    except OSError:
        return cpu_seconds_from_stat(pid)


def cpu_seconds_from_stat(pid: int) -> float:
    """User and system time of one process as ``/proc/PID/stat`` has it; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds at one moment."""

    resident: int
    """Bytes."""
    descriptors: int
    threads: int


def usage(pid: int) -> Usage:
    """What the process and its descendants hold now. Pages that workers share count once each: an upper bound."""
    resident = descriptors = threads = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{one}/statm").read_text().split()[1])
            resident += pages * os.sysconf("SC_PAGE_SIZE")
            descriptors += len(list(Path(f"/proc/{one}/fd").iterdir()))
            threads += len(_tasks(one))
    return Usage(resident, descriptors, threads)
