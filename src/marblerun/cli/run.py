"""``marblerun run``: become a member of the mesh, then be the program.

Imports are inside the function, so that the help of other commands does not wait for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from marblerun.marble.pins import CoordinatorPin

# Option, variable, help. The variables are the interface that charts and enclaves use; options mirror them.
_OPTIONS: Final = (
    ("--type", "EDG_MARBLE_TYPE", "NAME", "Which Marble of the manifest this is."),
    ("--coordinator-addr", "EDG_MARBLE_COORDINATOR_ADDR", "HOST:PORT", "Mesh API. Default: localhost:2001."),
    ("--dns-names", "EDG_MARBLE_DNS_NAMES", "LIST", "Names and addresses of this service. Default: localhost."),
    ("--uuid-file", "EDG_MARBLE_UUID_FILE", "FILE", "Identity of this instance, made if missing. Default: uuid."),
    ("--timeout", "EDG_MARBLE_ACTIVATION_TIMEOUT", "TIME", "How long to wait for a Coordinator. Default: 5m."),
    ("--root-cert", "EDG_MARBLE_COORDINATOR_ROOT_CERT", "FILE", "Pin the Coordinator by its root (PEM)."),
    ("--policy", "EDG_MARBLE_COORDINATOR_POLICY", "FILE", "Pin the Coordinator by its evidence (policy file)."),
    ("--manifest-fingerprint", "EDG_MARBLE_MANIFEST_FINGERPRINT", "HEX", "With a pin: the manifest in force."),
    ("--client-addr", "EDG_MARBLE_COORDINATOR_CLIENT_ADDR", "HOST:PORT", "For the pins. Default: port 4433."),
    ("--log-format", "EDG_LOG_FORMAT", "json", "Log lines as JSON."),
)

_PIN_VARIABLES: Final = (
    "EDG_MARBLE_COORDINATOR_ROOT_CERT",
    "EDG_MARBLE_COORDINATOR_POLICY",
    "EDG_MARBLE_MANIFEST_FINGERPRINT",
)


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    for option, variable, metavar, text in reversed(_OPTIONS):
        name = variable.lower()
        command = click.option(option, name, metavar=metavar, help=f"{text} [{variable}]")(command)
    return command


@click.command("run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@_settings
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[--] [PROGRAM [ARGS]...]")
def run(command: tuple[str, ...], **options: str | None) -> None:
    """Start PROGRAM as a Marble, with the identity, files, environment and arguments that the manifest gives it.

    Evidence comes from where it is asked for by name (a simulated platform, EDG_SIMULATED_PLATFORM=DIR, or nowhere,
    OE_SIMULATION=1), else from Gramine or a confidential VM (configfs-tsm). A Coordinator that is not there yet, or
    has no manifest yet, is waited for.

    If the manifest has Argv, PROGRAM is started with exactly these arguments, the program's name included; without
    PROGRAM, Argv[0] is started. Without Argv, PROGRAM keeps its ARGS. On success this process becomes PROGRAM, so the
    exit code is PROGRAM's.

    \b
    Examples:
      EDG_MARBLE_TYPE=shop marblerun run -- python shop.py
      marblerun run --type ledger --dns-names ledger,10.0.0.7 --policy era.json -- ./ledger
    """
    from marblerun.attestation.issue import detect_issuer
    from marblerun.marble.premain import PremainLog, no_core_files, premain
    from marblerun.marble.settings import load_settings

    given = {variable: value for _, variable, _, _ in _OPTIONS if (value := options[variable.lower()]) is not None}
    environment = {**os.environ, **given}
    log = PremainLog(as_json=environment.get("EDG_LOG_FORMAT") == "json")
    log("starting")
    with no_core_files():
        settings = load_settings(environment, Path.cwd())
        launch = premain(
            settings,
            detect_issuer(environment),
            command,
            environment=os.environb,
            working_directory=Path.cwd(),
            log=log,
            pin=_pin(environment, settings.coordinator.host),
        )
    launch.exec()


def _pin(environment: Mapping[str, str], mesh_host: str) -> CoordinatorPin | None:
    """Return the pin that the variables ask for; without one, its modules are not loaded."""
    if not any(environment.get(variable) for variable in _PIN_VARIABLES):
        return None
    from marblerun.cli.run_pin import pin_from_environment

    return pin_from_environment(environment, mesh_host)
