"""``marblerun status``."""

from __future__ import annotations

import click

from marblerun.cli.connection import pinned
from marblerun.cli.options import Command, endpoint_argument, global_options, with_global_options
from marblerun.cli.output import emit, emit_json, for_terminal, format_option, progress


@click.command("status", cls=Command)
@endpoint_argument
@format_option(short=True)
@with_global_options
def status(endpoint: str, output_format: str) -> None:
    """Show which state the Coordinator is in.

    1 is recovery, 2 waiting for a manifest, 3 running and accepting Marbles. The connection is pinned to the cached
    certificate that 'manifest set' or 'manifest verify' left; with --era-config the Coordinator is verified now.

    \b
    Example:
      marblerun status localhost:4433
      marblerun status localhost:4433 -o json
    """
    connection = pinned(global_options(), endpoint)
    with connection.client as client, progress(f"Waiting for {endpoint}"):
        answer = client.status()
    if output_format == "json":
        found = {"code": answer.code, "message": answer.message, "connection": connection.how}
        emit_json({**found, **({"evidence": answer.evidence} if answer.evidence else {})})
        return
    emit(for_terminal(f"{answer.code}: {answer.message}"))
    if answer.evidence and answer.evidence != "hardware":
        emit(for_terminal(f"evidence: {answer.evidence.upper()}"))
