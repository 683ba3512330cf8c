"""``marblerun manifest update``: apply, acknowledge, cancel, get."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from marblerun.cli import recovery_file
from marblerun.cli.connection import credentials, pinned
from marblerun.cli.manifest import load_manifest
from marblerun.cli.options import (
    Group,
    endpoint_argument,
    global_options,
    with_client_credentials,
    with_global_options,
)
from marblerun.cli.output import (
    emit,
    emit_bytes,
    emit_json,
    for_terminal,
    format_option,
    progress,
    umask_mode,
    write_file,
)

if TYPE_CHECKING:
    from marblerun.client import Client, UpdateReply


@click.group("update", cls=Group)
@with_global_options
def update() -> None:
    """Update the manifest in force; users whom it allows start, acknowledge and cancel updates.

    The connection is pinned to the cached certificate of 'manifest set' or 'manifest verify'.

    \b
    Example:
      marblerun manifest update apply new.json localhost:4433 --cert alice.crt --key alice.key
    """


@update.command("apply")
@click.argument("file", metavar="FILE", type=click.Path())
@endpoint_argument
@with_client_credentials
@click.option(
    "-r",
    "--recoverydata",
    metavar="FILE",
    default="",
    help="Where to keep new recovery data. Default: standard output.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing recovery data file.")
@format_option()
@with_global_options
def apply(file: str, endpoint: str, recoverydata: str, force: bool, output_format: str) -> None:
    """Start an update: raise security versions of packages, or replace the whole manifest.

    It is in force at once, unless other users have to acknowledge it; then it says how many, and who may.

    \b
    Example:
      marblerun manifest update apply new.json localhost:4433 --cert alice.crt --key alice.key
    """
    answer, saved = _send(file, endpoint, recoverydata, force, "Applying the update", lambda c, m: c.update_apply(m))
    _report(answer, saved, output_format, "Update manifest set successfully")


@update.command("acknowledge")
@click.argument("file", metavar="FILE", type=click.Path())
@endpoint_argument
@with_client_credentials
@click.option(
    "-r",
    "--recoverydata",
    metavar="FILE",
    default="",
    help="Where to keep new recovery data. Default: standard output.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing recovery data file.")
@format_option()
@with_global_options
def acknowledge(file: str, endpoint: str, recoverydata: str, force: bool, output_format: str) -> None:
    """Agree to the pending update; FILE must be the very manifest that is pending.

    \b
    Example:
      marblerun manifest update acknowledge new.json localhost:4433 --cert bob.crt --key bob.key
    """
    answer, saved = _send(
        file, endpoint, recoverydata, force, "Acknowledging the update", lambda c, m: c.update_acknowledge(m)
    )
    _report(answer, saved, output_format, "All users have acknowledged the update; it is in force")


@update.command("cancel")
@endpoint_argument
@with_client_credentials
@format_option()
@with_global_options
def cancel(endpoint: str, output_format: str) -> None:
    """Cancel the pending update.

    \b
    Example:
      marblerun manifest update cancel localhost:4433 --cert alice.crt --key alice.key
    """
    options = global_options()
    connection = pinned(options, endpoint, credentials(options))
    with connection.client as client, progress("Cancelling the update"):
        message = client.update_cancel()
    if output_format == "json":
        emit_json({"cancelled": True, "message": message})
    else:
        emit("Cancellation successful")


@update.command("get")
@endpoint_argument
@click.option("-o", "--output", metavar="FILE", default="", help="Write to a file instead of standard output.")
@click.option("--missing", is_flag=True, help="Show the users who may still acknowledge instead of the manifest.")
@format_option()
@with_global_options
def get(endpoint: str, output: str, missing: bool, output_format: str) -> None:
    """Show the pending update.

    \b
    Example:
      marblerun manifest update get localhost:4433
      marblerun manifest update get localhost:4433 --missing
    """
    connection = pinned(global_options(), endpoint)
    with connection.client as client, progress("Reading the pending update"):
        pending = client.update_get()
    if output_format == "json" and missing:
        emit_json({"missingUsers": list(pending.users)})
        return
    content = f"[{' '.join(pending.users)}]".encode() if missing else pending.manifest
    if output:
        write_file(Path(output), content, mode=umask_mode())
        emit(f"{'Missing users' if missing else 'Pending manifest'} written to: {output}")
    else:
        emit_bytes(for_terminal(content.decode()).encode() if missing else content)


def _send(
    file: str,
    endpoint: str,
    recoverydata: str,
    force: bool,
    doing: str,
    call: Callable[[Client, bytes], UpdateReply],
) -> tuple[UpdateReply, Path | None]:
    """Sends the manifest as the user; new recovery data has its place before anything leaves."""
    options = global_options()
    source = load_manifest(file)
    person = credentials(options)
    with recovery_file.reserve(recoverydata, force=force) as place:
        connection = pinned(options, endpoint, person)
        with connection.client as client, progress(doing):
            answer = call(client, source.json)
        return answer, place.save(answer.recovery_secrets) if answer.recovery_secrets else None


def _report(answer: UpdateReply, saved: Path | None, output_format: str, done: str) -> None:
    """Says what is left to do; recovery data that has no file is printed first."""
    if output_format == "json":
        document: dict[str, object] = {
            "missingAcknowledgments": answer.missing,
            "missingUsers": list(answer.users),
            "message": answer.message,
        }
        if saved:
            document["recoveryDataFile"] = str(saved)
        elif answer.recovery_secrets:
            document |= recovery_file.recovery_document(answer.recovery_secrets)
        emit_json(document)
        return
    if answer.recovery_secrets and not saved:
        recovery_file.show(answer.recovery_secrets)
    if saved:
        emit(f"Recovery data saved to: {saved}")
    if not answer.missing:
        emit(done)
        return
    emit(f"The update is pending. {answer.missing} more user(s) must acknowledge it.")
    if answer.users:
        emit(for_terminal(f"Users who may acknowledge it: {', '.join(answer.users)}"))
