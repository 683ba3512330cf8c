"""``marblerun coordinator``: run a Coordinator in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from marblerun.coordinator.server.settings import VARIABLES, settings_from_environment

# Option to the variable it overrides, with the placeholder shown in help.
_OPTIONS: Final = (
    ("--mesh-addr", "EDG_COORDINATOR_MESH_ADDR", "HOST:PORT"),
    ("--client-addr", "EDG_COORDINATOR_CLIENT_ADDR", "HOST:PORT"),
    ("--prometheus-addr", "EDG_COORDINATOR_PROMETHEUS_ADDR", "HOST:PORT"),
    ("--dns-names", "EDG_COORDINATOR_DNS_NAMES", "NAMES"),
    ("--seal-dir", "EDG_COORDINATOR_SEAL_DIR", "DIR"),
    ("--tpm", "EDG_COORDINATOR_TPM", "TPM"),
    ("--tpm-pcrs", "EDG_COORDINATOR_TPM_PCRS", "PCRS"),
    ("--anchor", "EDG_COORDINATOR_ANCHOR", "PLACE"),
    ("--startup-manifest", "EDG_STARTUP_MANIFEST", "FILE"),
    ("--simulated-platform", "EDG_SIMULATED_PLATFORM", "DIR"),
    ("--pccs-url", "EDG_PCCS_URL", "URL"),
    ("--pccs-ca-file", "EDG_PCCS_CA_FILE", "FILE"),
    ("--pccs-timeout", "EDG_PCCS_TIMEOUT", "SECONDS"),
    ("--pcs-api-key-file", "EDG_PCS_API_KEY_FILE", "FILE"),
    ("--collateral-cache-dir", "EDG_COLLATERAL_CACHE_DIR", "DIR"),
    ("--collateral-dir", "EDG_COLLATERAL_DIR", "DIR"),
    ("--qcnl-config", "EDG_QCNL_CONFIG", "FILE"),
    ("--limit-connections", "EDG_LIMIT_CONNECTIONS", "NUMBER"),
    ("--limit-handshakes", "EDG_LIMIT_HANDSHAKES", "NUMBER"),
    ("--limit-activations", "EDG_LIMIT_ACTIVATIONS", "NUMBER"),
    ("--limit-requests", "EDG_LIMIT_REQUESTS", "NUMBER"),
    ("--limit-wait", "EDG_LIMIT_WAIT", "SECONDS"),
    ("--limit-key-threads", "EDG_LIMIT_KEY_THREADS", "NUMBER"),
    ("--cwd", "EDG_CWD", "DIR"),
    ("--http-error-log-level", "EDG_HTTP_ERROR_LOG_LEVEL", "LEVEL"),
)
_FLAGS: Final = (
    ("--dev-mode", "EDG_COORDINATOR_DEV_MODE"),
    ("--debug-logging", "EDG_DEBUG_LOGGING"),
    ("--metrics-uuid", "EDG_COORDINATOR_METRICS_UUID"),
)
_MEANING: Final = {variable.name: variable for variable in VARIABLES}


def _describe(name: str) -> str:
    variable = _MEANING[name]
    default = f" Default: {variable.default}." if variable.default else ""
    return f"{variable.meaning[0].upper()}{variable.meaning[1:]}.{default} [{name}]"


def _parse_assignments(
    _context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not equals or not name.startswith("EDG_"):
            raise click.BadParameter(f"{name!r} is not EDG_NAME=VALUE")
    return tuple((name, value) for name, _, value in pairs)


@click.command(
    epilog="""\b
Every option has an environment variable, shown in brackets; the option wins. --set reaches the others.
OE_SIMULATION=1 runs without any evidence, as the reference's switch of that name.

\b
Example, on a machine without a TEE:
  marblerun simulator init platform
  marblerun coordinator --simulated-platform platform --seal-dir state
""",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="EDG_NAME=VALUE",
    callback=_parse_assignments,
    help="Set any EDG_ variable, as if it were in the environment; may be repeated.",
)
def coordinator(assignments: tuple[tuple[str, str], ...], **options: str | bool | None) -> None:
    """Run a Coordinator in the foreground until SIGTERM or SIGINT.

    It serves Marbles (gRPC, port 2001) and users (HTTPS, port 4433), keeps its sealed state in a directory, and logs
    to standard error, one JSON object a line. Without a trusted execution environment it refuses to start unless a
    simulation is asked for by name.
    """
    from marblerun.coordinator.server.logs import configure_logging
    from marblerun.coordinator.server.main import run

    environment = {**os.environ, **dict(assignments)}
    for name, value in options.items():
        if value not in (None, False):
            environment[_VARIABLE_OF[name]] = "1" if value is True else str(value)
    settings = settings_from_environment(environment, Path.cwd())
    configure_logging(console=settings.dev_mode, debug=settings.debug_logging)
    run(environment, settings)


_VARIABLE_OF: Final = {
    option.removeprefix("--").replace("-", "_"): variable
    for option, variable in [(o, v) for o, v, _ in _OPTIONS] + list(_FLAGS)
}
for _option, _variable, _placeholder in _OPTIONS:
    coordinator.params.append(click.Option([_option], metavar=_placeholder, help=_describe(_variable)))
for _flag, _variable in _FLAGS:
    coordinator.params.append(click.Option([_flag], is_flag=True, help=_describe(_variable)))
