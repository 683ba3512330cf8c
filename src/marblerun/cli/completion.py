"""``marblerun completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from marblerun.cli.options import Command, with_global_options
from marblerun.cli.output import emit

SHELLS = ("bash", "zsh", "fish")


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
    script = kind(click.get_current_context().find_root().command, {}, "marblerun", "_MARBLERUN_COMPLETE")
    # The template directly: source() would first start the user's bash to ask for its version.
    emit(script.source_template % script.source_vars())
