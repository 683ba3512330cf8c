"""``marblerun completion``."""

from __future__ import annotations

import re
from typing import Final

import click
from click.shell_completion import get_completion_class

from marblerun.cli.options import Command, with_global_options
from marblerun.cli.output import emit

SHELLS: Final = ("bash", "zsh", "fish")
COMPLETION_VARIABLE: Final = "_MARBLERUN_COMPLETE"
"""Set by the scripts when they ask; not set where a command is run."""
_FILES: Final = re.compile(r"FILE|CERT|QUOTE")
_DIRECTORIES: Final = re.compile(r"DIR")


def name_files(command: click.Command) -> None:
    """Let the shell complete file names wherever help says that a value is one.

    Many of these values are read with checks of our own and therefore are plain text to the parser of the command line.
    """
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            name_files(inner)
    for parameter in command.params:
        if parameter.type is not click.STRING:
            continue
        if _FILES.search(parameter.metavar or ""):
            parameter.type = click.Path()
        elif _DIRECTORIES.search(parameter.metavar or ""):
            parameter.type = click.Path(file_okay=False)


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@with_global_options
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Example:
      source <(marblerun completion bash)
      marblerun completion fish > ~/.config/fish/completions/marblerun.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"no completion for {shell}")
    script = kind(click.get_current_context().find_root().command, {}, "marblerun", COMPLETION_VARIABLE)
    # The template directly: source() would first start the user's bash to ask for its version.
    emit(script.source_template % script.source_vars())
