"""The command ``marblerun``: finds the noun, runs the verb, and turns what went wrong into a text and an exit code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import click

from marblerun.cli import exit_codes
from marblerun.cli.completion import COMPLETION_VARIABLE, name_files
from marblerun.cli.options import Group, with_global_options
from marblerun.cli.output import for_terminal
from marblerun.cli.pipe import until_reader_leaves
from marblerun.errors import MarbleRunError
from marblerun.version import __version__


@dataclass(frozen=True, slots=True)
class Noun:
    """A command in a module of its own, which is imported only when it is used."""

    name: str
    module: str
    help: str
    attribute: str = ""

    def load(self) -> click.Command:
        """The command.

        Raises:
            click.ClickException: this installation does not have the module.
        """
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name != self.module:
                raise
            raise click.ClickException(f"this installation lacks the command {self.name!r}") from None
        command: click.Command = getattr(module, self.attribute or self.name)
        if COMPLETION_VARIABLE in os.environ:
            name_files(command)
        return command

    @property
    def is_there(self) -> bool:
        """Whether this installation has the module; it is not imported."""
        return importlib.util.find_spec(self.module) is not None


class NounGroup(Group):
    """A group whose commands come from a table."""

    def __init__(self, *args: Any, nouns: Sequence[Noun] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.nouns = {noun.name: noun for noun in nouns}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names that this installation has, in the order of the table, before those defined in place."""
        there = [name for name, noun in self.nouns.items() if noun.is_there]
        return [*super().list_commands(ctx), *there] if self.commands else there

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        noun = self.nouns.get(cmd_name)
        return noun.load() if noun else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list without importing what is in it."""
        rows = []
        for name in self.list_commands(ctx):
            noun = self.nouns.get(name)
            command = None if noun else super().get_command(ctx, name)
            rows.append((name, noun.help if noun else command.get_short_help_str(80) if command else ""))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


class Root(NounGroup):
    """The outermost group: here every error gets its text and its exit code, once."""

    debug = False
    """Whether failures of the present run show a traceback."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *, standalone_mode: bool = True, **_: Any
    ) -> Any:
        """Runs the command line; in stand-alone mode it ends the process."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False)
        sys.exit(until_reader_leaves(lambda: self._run(args, prog_name)))

    def _run(self, args: Sequence[str] | None, prog_name: str | None) -> int:
        self.debug = False
        try:
            result = super().main(args, prog_name, standalone_mode=False)
            return result if isinstance(result, int) else exit_codes.OK
        except click.exceptions.Exit as end:
            return end.exit_code
        except click.UsageError as error:
            error.show()
            return exit_codes.USAGE
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("Interrupted", err=True)
            return exit_codes.INTERRUPTED
        except BrokenPipeError:
            raise  # for ``until_reader_leaves``
        except MarbleRunError as error:
            self._trace()
            click.echo(f"Error: {for_terminal(str(error))}", err=True)
            return exit_codes.exit_code(error)
        except Exception as error:
            self._trace()
            click.echo(
                f"Error: unexpected {type(error).__name__}: {error}\n"
                "This is a bug; 'marblerun --debug ...' shows where it happened.",
                err=True,
            )
            return exit_codes.GENERAL

    def _trace(self) -> None:
        if self.debug:
            traceback.print_exc()


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if isinstance(ctx.command, Root):
        ctx.command.debug = value


NOUNS: Final = (
    Noun("coordinator", "marblerun.cli.coordinator", "Run the Coordinator."),
    Noun("run", "marblerun.cli.run", "Run a program as a Marble."),
    Noun("manifest", "marblerun.cli.manifest", "Set, verify, read and update the manifest."),
    Noun("secret", "marblerun.cli.secret", "Read and set secrets of the manifest."),
    Noun("certificate", "marblerun.cli.certificate", "Get the Coordinator's certificates."),
    Noun("status", "marblerun.cli.status", "Show the Coordinator's state."),
    Noun("recover", "marblerun.cli.recover", "Recover a sealed Coordinator."),
    Noun(
        "recover-with-signature",
        "marblerun.cli.recover_with_signature",
        "Recover with the key kept offline.",
        "recover_with_signature",
    ),
    Noun("state", "marblerun.cli.state", "Inspect, back up and restore sealed state."),
    Noun("evidence", "marblerun.cli.evidence", "Verify and inspect attestation evidence."),
    Noun("simulator", "marblerun.cli.simulator", "A simulated platform for development."),
    Noun("package-info", "marblerun.cli.package_info", "Show an enclave's package properties.", "package_info"),
    Noun("demo", "marblerun.cli.demo", "Watch a confidential application start."),
    Noun("version", "marblerun.cli.version", "Show versions."),
    Noun("completion", "marblerun.cli.completion", "Print a shell completion script."),
)


@click.command("marblerun", cls=Root, nouns=NOUNS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="marblerun %(version)s")
@click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show a traceback when something fails."
)
@with_global_options
def cli() -> None:
    """The service mesh for confidential computing.

    Every command that talks to a Coordinator verifies it first, and sends nothing to one that it cannot verify.

    \b
    Example:
      marblerun manifest set manifest.json localhost:4433 --era-config era-config.json
      marblerun status localhost:4433
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the command; never returns."""
    cli.main(args=arguments, prog_name="marblerun")
    raise RuntimeError("stand-alone mode ends the process")
