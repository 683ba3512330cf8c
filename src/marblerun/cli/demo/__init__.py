"""``marblerun demo``: watch a confidential application start, and impostors being refused."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(
    epilog="""\b
Examples:
  marblerun demo
  marblerun demo --keep --directory demo
""",
)
@click.option("--keep", is_flag=True, help="Leave everything running at the end and print what to try; Ctrl-C ends it.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to put state, logs and services. Default: a temporary directory, removed at the end.",
)
def demo(keep: bool, directory: Path | None) -> int:
    """Run the whole way once, on this machine, and check every step.

    A simulated platform stands in for SGX hardware; everything else is real: a Coordinator with sealed state, a
    manifest, attestation of every service, mutual TLS between them, refused impostors, a crash, a move to another host.
    The exit code is 0 only if every step showed what it should.
    """
    from marblerun.cli.demo.story import run_demo

    return run_demo(keep=keep, directory=directory)
