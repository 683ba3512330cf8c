"""``marblerun status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from marblerun.cli.connection import pinned
from marblerun.cli.options import Command, endpoint_argument, global_options, with_global_options
from marblerun.cli.output import emit, emit_json, for_terminal, format_option, progress, warn
from marblerun.errors import MarbleRunError, Untrusted

if TYPE_CHECKING:
    from marblerun.client import Client, Status
    from marblerun.client.provenance import Provenance
    from marblerun.client.statement import Statement

_RUNNING: Final = 3


@click.command("status", cls=Command)
@endpoint_argument
@format_option(short=True)
@with_global_options
def status(endpoint: str, output_format: str) -> None:
    """Show which state the Coordinator is in.

    1 is recovery, 2 waiting for a manifest, 3 running and accepting Marbles. The connection is pinned to the cached
    certificate that 'manifest set' or 'manifest verify' left; with --era-config the Coordinator is verified now.

    Where the Coordinator offers a statement, number and SHA-256 of its stored state are shown, and whether it was ever
    recovered; 'state verify' compares the number with what was seen before.

    \b
    Example:
      marblerun status localhost:4433
      marblerun status localhost:4433 -o json
    """
    connection = pinned(global_options(), endpoint)
    with connection.client as client, progress(f"Waiting for {endpoint}"):
        try:
            answer = client.status()
        except Untrusted as error:
            raise with_what_to_do(error) from None
        statement = _statement(client)
    if output_format == "json":
        emit_json(_document(answer, statement, connection.how))
        return
    emit(for_terminal(f"{answer.code}: {answer.message}"))
    if answer.evidence and answer.evidence != "hardware":
        emit(for_terminal(f"evidence: {answer.evidence.upper()}"))
    if statement is not None:
        _show(statement, answer.code)


def _statement(client: Client) -> Statement | None:
    """What the Coordinator says about its state; ``None`` where it says nothing, as those of the reference."""
    from marblerun.client.problems import NotOffered

    try:
        return client.statement()
    except NotOffered:
        return None
    except MarbleRunError as error:
        warn(for_terminal(f"the Coordinator's statement cannot be shown: {error}"))
        return None


def with_what_to_do(error: Untrusted) -> Untrusted:
    """The error; where another certificate was shown than the cached one, with what that can mean."""
    if error.step != "tls-pin":
        return error
    return Untrusted(
        f"{error.message}. It may be another deployment, or be in recovery mode, where it has another certificate: "
        "--era-config FILE verifies it now and shows its state",
        step=error.step,
        reason=error.reason,
    )


def _document(answer: Status, statement: Statement | None, how: str) -> dict[str, object]:
    found: dict[str, object] = {"code": answer.code, "message": answer.message, "connection": how}
    if answer.evidence:
        found["evidence"] = answer.evidence
    if statement is not None:
        provenance = _provenance_document(statement.provenance) if statement.provenance is not None else None
        found |= {"sequence": statement.sequence, "head": statement.head, "provenance": provenance}
    return found


def _provenance_document(provenance: Provenance) -> dict[str, object]:
    """As the statement itself names it."""
    groups = [
        {
            "recoveryKeys": list(group.keys),
            "needed": group.needed,
            "times": group.times,
            "first": group.first,
            "last": group.last,
        }
        for group in provenance.recovered_by
    ]
    return {
        "complete": provenance.complete,
        "firstManifest": provenance.first_manifest,
        "recoveries": provenance.recoveries,
        "recoveredBy": groups,
    }


def _show(statement: Statement, code: int) -> None:
    if statement.sequence and code != _RUNNING:
        emit(f"state: number {statement.sequence} was reached, and is not what runs")
    elif statement.sequence:
        emit(for_terminal(f"state: number {statement.sequence}, SHA-256 {statement.head}"))
    if code == _RUNNING and statement.provenance is not None:
        emit(for_terminal(f"origin: {_origin(statement.provenance)}"))


def _origin(provenance: Provenance) -> str:
    """Where the CA comes from, in a line."""
    recoveries = provenance.recoveries
    last = max((group.last for group in provenance.recovered_by), default="")
    told = (
        f"recovered {recoveries} time{'' if recoveries == 1 else 's'}, last {last}" if recoveries else "not recovered"
    )
    return told if provenance.complete else f"{told}, as far as is known; its past is not all known"
