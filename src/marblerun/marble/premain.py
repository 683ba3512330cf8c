"""The way from a bare process to a member of the mesh: activate, write files, set environment and arguments, start.

Source: cli-marble-k8s, section 3.2.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from marblerun.attestation.issue import EvidenceIssuer
from marblerun.attestation.model import Origin
from marblerun.marble.activation import Activation, activate
from marblerun.marble.apply import plan_files, write_files
from marblerun.marble.launch import Launch, plan_launch
from marblerun.marble.pins import CoordinatorPin
from marblerun.marble.settings import MarbleSettings
from marblerun.marble.ttls import TTLS_VARIABLE, parse_ttls_addresses, verify_no_ttls_needed


class PremainLog:
    """Lines about each step on standard error, behind ``[PreMain] `` or as JSON. No secret ever comes here."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __call__(self, line: str) -> None:
        """Write an ordinary line."""
        self.write("info", line)

    def warn(self, line: str) -> None:
        """Write a line that somebody should look at."""
        self.write("warning", line)

    def write(self, level: str, line: str) -> None:
        """Write one line at a level."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._as_json:
            text = json.dumps({"time": now, "level": level, "logger": "PreMain", "message": line})
        else:
            text = f"[PreMain] {now} {'' if level == 'info' else level.upper() + ': '}{line}"
        print(text, file=sys.stderr, flush=True)


def premain(
    settings: MarbleSettings,
    issuer: EvidenceIssuer,
    command: Sequence[str],
    *,
    environment: Mapping[bytes, bytes],
    working_directory: Path,
    log: PremainLog,
    pin: CoordinatorPin | None = None,
) -> Launch:
    """Return the program, ready to start, after everything that the manifest gives this Marble is in place.

    Raises:
        MarbleRunError: as :func:`.activate`, :func:`.apply.plan_files`, :func:`.apply.write_files`,
            :func:`.launch.plan_launch` and :func:`.ttls.verify_no_ttls_needed` say.
    """
    warn_about_origin(issuer.origin, log)
    if pin is None:
        log.warn("the Coordinator is not verified (no pin is set): whoever answers decides what this process is given")
    return apply(activate(settings, issuer, pin=pin, narrate=log), command, environment, working_directory, log)


def apply(
    activation: Activation,
    command: Sequence[str],
    environment: Mapping[bytes, bytes],
    working_directory: Path,
    log: PremainLog,
) -> Launch:
    """Put files in place and return the program with its environment and arguments; everything is checked first."""
    _check_ttls(activation, log)
    launch = plan_launch(command, activation.argv, activation.env, environment)
    planned = plan_files(activation.files, working_directory)
    log(f"creating {len(planned)} files from the manifest")
    write_files(planned)
    log(f"setting {len(activation.env)} environment variables from the manifest")
    if activation.argv and len(command) > 1:
        log("the arguments of the manifest replace those of the command line")
    log(f"done, starting {os.fsdecode(launch.file)}")
    return launch


def warn_about_origin(origin: Origin, log: PremainLog) -> None:
    """Say loudly that evidence does not come from hardware."""
    if origin is Origin.SIMULATED:
        log.warn("evidence comes from a SIMULATED platform: this process is not protected by hardware")
    elif origin is Origin.NONE:
        log.warn("OE_SIMULATION=1: NO EVIDENCE is given and this process is not protected")


@contextmanager
def no_core_files() -> Iterator[None]:
    """Keep secrets out of core files while the block runs; the program gets its own limit back."""
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)


def _check_ttls(activation: Activation, log: PremainLog) -> None:
    config = activation.env.get(TTLS_VARIABLE)
    if config is None:
        log("not using TTLS")
        return
    addresses = parse_ttls_addresses(config)
    log(f"TTLS incoming: {list(addresses.incoming)}, outgoing: {list(addresses.outgoing)}")
    verify_no_ttls_needed(addresses)
