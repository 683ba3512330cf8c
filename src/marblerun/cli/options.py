"""Options that many commands share, accepted before and after the command's name, as the reference does.

Every level of the command line (``marblerun``, ``manifest``, ``set``) takes them; what stands nearest to the verb wins.

Source: cli-marble-k8s, sections 1.2 and 1.7.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

F = TypeVar("F", bound=Callable[..., Any])
_META: Final = "marblerun.options"
_FILE: Final = click.Path(dir_okay=False)


@dataclass(frozen=True, slots=True)
class GlobalOptions:
    """What the global options say; ``None`` where one was not given."""

    coordinator_cert: str | None = None
    era_config: str | None = None
    insecure: bool = False
    accepted_tcb_statuses: tuple[str, ...] | None = None
    accepted_advisories: tuple[str, ...] | None = None
    namespace: str = "marblerun"
    nonce: str | None = None
    save_sgx_quote: str | None = None
    pccs_url: str | None = None
    pccs_ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @property
    def cache_path(self) -> Path:
        """Where the certificate cache is."""
        from marblerun.client.certcache import default_path

        return Path(self.coordinator_cert) if self.coordinator_cert else default_path(os.environ)


def global_options() -> GlobalOptions:
    """The values given on the command line that is being run."""
    given = click.get_current_context().meta.get(_META, {})
    return GlobalOptions(**{field.name: given[field.name] for field in fields(GlobalOptions) if field.name in given})


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if param.name and ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE:
        ctx.meta.setdefault(_META, {})[param.name] = value
    return value


def _split(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    parts = tuple(part.strip() for text in value for part in text.split(",") if part.strip())
    _remember(ctx, param, parts)
    return parts


def _statuses(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> tuple[str, ...]:
    from marblerun.client.policy import verify_tcb_statuses
    from marblerun.errors import Malformed

    parts = _split(ctx, param, value)
    try:
        return verify_tcb_statuses(parts, "")
    except Malformed as error:
        raise click.BadParameter(error.message) from None


class GlobalOption(click.Option):
    """An option that every level accepts; help shows these apart from the command's own."""


class _WithGlobalOptions(click.Command):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        shared: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                (shared if isinstance(param, GlobalOption) else own).append(record)
        for title, records in (("Options", own), ("Global options", shared)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Command(_WithGlobalOptions):
    """A command whose help lists the global options in a section of their own."""


class Group(_WithGlobalOptions, click.Group):
    """A group of such commands; its commands and groups are of these classes too."""

    command_class = Command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, then the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


Group.group_class = Group


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    settings.setdefault("callback", _remember)
    return click.option(*names, cls=GlobalOption, expose_value=False, **settings)


_GLOBAL: Final[tuple[Callable[[Any], Any], ...]] = (
    _option(
        "--coordinator-cert",
        metavar="FILE",
        type=_FILE,
        help="Certificate cache. Default: marblerun/coordinator-cert.pem in the user's configuration folder.",
    ),
    _option(
        "--era-config",
        metavar="FILE",
        type=_FILE,
        help="Attestation policy of the Coordinator (JSON). Default: ./era-config.json if there is one.",
    ),
    _option(
        "-i",
        "--insecure",
        is_flag=True,
        default=False,
        help="Verify neither quote nor TLS; whoever answers is believed. For simulation only.",
    ),
    _option(
        "--accepted-tcb-statuses",
        metavar="LIST",
        multiple=True,
        callback=_statuses,
        help="TCB statuses to accept, comma separated or repeated. "
        "Default: what the policy says, else UpToDate,SWHardeningNeeded.",
    ),
    _option(
        "--accepted-advisories",
        metavar="LIST",
        multiple=True,
        callback=_split,
        help="Intel advisories to accept with SWHardeningNeeded. Default: what the policy says, else all.",
    ),
    _option("-n", "--namespace", metavar="NS", help="Kubernetes namespace of the installation. Default: marblerun."),
    _option(
        "--nonce",
        metavar="STRING",
        help="The bytes of this text must be covered by the quote. Default: fresh random bytes.",
    ),
    _option("--save-sgx-quote", metavar="FILE", type=_FILE, help="Keep the Coordinator's verified quote."),
    _option("--pccs-url", metavar="URL", help="Where collateral comes from. Default: EDG_PCCS_URL, else Intel."),
    _option(
        "--pccs-ca", metavar="FILE", type=_FILE, help="CA certificates that vouch for it. Default: EDG_PCCS_CA_FILE."
    ),
)


def with_global_options(function: F) -> F:
    """Adds the global options to a command or group; their values come from :func:`global_options`."""
    for option in reversed(_GLOBAL):
        function = option(function)
    return function


def with_client_credentials(function: F) -> F:
    """Adds ``-c/--cert`` and ``-k/--key``, the user's certificate."""
    key = click.option(
        "-k", "--key", metavar="FILE", type=_FILE, expose_value=False, callback=_remember, help="Its private key (PEM)."
    )
    cert = click.option(
        "-c",
        "--cert",
        metavar="FILE",
        type=_FILE,
        expose_value=False,
        callback=_remember,
        help="The user's certificate, as in the manifest (PEM).",
    )
    for name in _TOKEN_OPTIONS:
        function = click.option(name, hidden=True, expose_value=False, callback=_refuse_token)(function)
    return cert(key(function))


# The reference has these (cli-marble-k8s, section 1.7). Who comes from there is told why they are not here.
_TOKEN_OPTIONS: Final = (
    *("--pkcs11-config", "--pkcs11-key-id", "--pkcs11-key-label"),
    *("--pkcs11-cert-id", "--pkcs11-cert-label"),
)


def _refuse_token(_ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.UsageError(
            f"{param.opts[0]}: a user's key cannot stay in a PKCS#11 token, since Python's TLS takes keys only from "
            "files; give -c/--cert and -k/--key"
        )


def endpoint_argument(function: F) -> F:
    """Adds the Coordinator's address, always the last argument."""
    return click.argument("endpoint", metavar="IP:PORT", callback=_endpoint)(function)


def _endpoint(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    from marblerun.client.transport import Endpoint
    from marblerun.errors import Malformed

    try:
        Endpoint.parse(value)
    except Malformed as error:
        raise click.BadParameter(error.message) from None
    return value
