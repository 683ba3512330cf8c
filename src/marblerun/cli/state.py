"""``marblerun state``: inspect, back up and restore a Coordinator's sealed state, and see that it does not go back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from marblerun.cli.connection import pinned
from marblerun.cli.options import Command, endpoint_argument, global_options, with_global_options
from marblerun.cli.output import emit, emit_json, format_option, note, warn
from marblerun.cli.state_view import DATA, described, show, suffixes
from marblerun.cli.status import with_what_to_do
from marblerun.cli.takeover import takeover
from marblerun.errors import Conflict, Malformed, MarbleRunError, Unavailable, Untrusted

_DIRECTORY: Final = click.Path(file_okay=False)
_FILE: Final = click.Path(dir_okay=False)


@click.group("state")
def state() -> None:
    """Inspect, back up, restore and take over the sealed state of a Coordinator.

    All but 'verify' work on files and need no Coordinator; only 'takeover' looks inside, if it is given the key.

    \b
    Example:
      marblerun state inspect marblerun-coordinator-data
    """


@state.command("inspect")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@format_option()
def inspect(directory: str, output_format: str) -> None:
    """Show what can be known about sealed state without its key.

    \b
    Example:
      marblerun state inspect marblerun-coordinator-data
    """
    from marblerun.coordinator.store.backup import read_generation

    folder = Path(directory)
    broken: MarbleRunError | None = None
    present: dict[str, object]
    try:
        present = described(read_generation(folder))
    except MarbleRunError as error:
        # Whoever has lost the present state needs the older ones.
        broken, present = error, {"problem": str(error)}
    older: dict[str, dict[str, object]] = {}
    for suffix in suffixes(folder):
        try:
            older[suffix] = described(read_generation(folder, suffix))
        except MarbleRunError as error:
            older[suffix] = {"problem": str(error)}
    if broken is not None and not older:
        raise broken
    if output_format == "json":
        emit_json({**present, "older": older})
    else:
        show(present)
        for suffix, found in older.items():
            emit(f"\nolder state {DATA}.{suffix}:")
            show(found)
    if broken is not None:
        raise broken


@state.command("backup")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.argument("file", metavar="FILE", type=_FILE)
@click.option(
    "--generation", metavar="NAME", default="", help="An older state, as 'inspect' names it: old, old.2, aside-..."
)
@format_option()
def backup(directory: str, file: str, generation: str, output_format: str) -> None:
    """Save sealed state to a file (tar); works while a Coordinator is running.

    On the same machine and enclave the backup opens by itself; anywhere else it needs the recovery keys.

    \b
    Example:
      marblerun state backup marblerun-coordinator-data state-2026-06-01.tar
    """
    from marblerun.cli.recover_with_signature import write_new
    from marblerun.coordinator.store.backup import pack, read_generation

    if Path(file).exists():
        raise Conflict(f"{file} exists; choose another file")
    sealed = read_generation(Path(directory), generation)
    found = described(sealed)
    write_new(Path(file), pack(sealed))
    _warn_about_key(found)
    if output_format == "json":
        emit_json({"file": file, **found})
    else:
        emit(f"The state was saved to {file}")


@state.command("restore")
@click.argument("file", metavar="FILE", type=_FILE)
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@format_option()
def restore(file: str, directory: str, output_format: str) -> None:
    """Put a backup into a state directory that no Coordinator is using; what is there is kept beside it.

    A backup is an older state: activation budgets, counters, secrets and users go back to what they were. Clients and
    Coordinators that remember a later state (EDG_COORDINATOR_ANCHOR) will notice.

    \b
    Example:
      marblerun state restore state-2026-06-01.tar marblerun-coordinator-data
    """
    from marblerun.coordinator.store.backup import unpack
    from marblerun.coordinator.store.file import FileStore

    sealed = unpack(_read_backup(Path(file)))
    found = described(sealed)
    store = FileStore(Path(directory))
    try:
        store.set_aside()
        store.save(sealed.data, sealed.keys[0] if sealed.keys else b"")
    finally:
        store.close()
    if output_format == "json":
        emit_json({"directory": directory, **found})
        return
    emit(f"The state was restored to {directory}")
    note("If the Coordinator starts in recovery mode, it needs the recovery keys: see 'marblerun recover'")


@state.command("verify", cls=Command)
@endpoint_argument
@click.option(
    "--accept-older",
    is_flag=True,
    help="Begin anew from the present state: accept that everything since the remembered one may be undone.",
)
@format_option()
@with_global_options
def verify(endpoint: str, accept_older: bool, output_format: str) -> None:
    """Verify that a Coordinator has not gone back to an older state since it was last looked at.

    The Coordinator is verified as 'status' does it. The highest number seen for its root certificate is remembered in
    marblerun/sequences.json in the user's configuration folder.

    \b
    Example:
      marblerun state verify localhost:4433
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from marblerun.client.statement import SequenceMemory, default_memory_path

    with pinned(global_options(), endpoint).client as client:
        try:
            statement = client.statement()
        except Untrusted as error:
            raise with_what_to_do(error) from None
    try:
        root = x509.load_pem_x509_certificate(statement.root_certificate.encode()).public_bytes(Encoding.DER)
    except ValueError:
        raise Malformed("is not a certificate", where="statement.rootCertificate") from None
    memory = SequenceMemory(default_memory_path(os.environ))
    try:
        memory.check(root, statement, accept_older=accept_older)
    except Untrusted as error:
        raise Untrusted(
            f"{error.message}. If that was meant, for example after a recovery of a backup, --accept-older begins anew",
            step=error.step,
            reason=error.reason,
        ) from None
    if output_format == "json":
        emit_json({"ok": True, "sequence": statement.sequence, "head": statement.head})
    else:
        emit(f"OK: state number {statement.sequence}, {statement.head or 'nothing is stored'}")


def _read_backup(path: Path) -> bytes:
    from marblerun.cli.connection import read_file
    from marblerun.wire.limits import MAX_SEALED_STATE_BYTES

    if path.is_dir():
        raise Unavailable(f"{path} is a directory; give the file that 'state backup' wrote")
    return read_file(path, MAX_SEALED_STATE_BYTES + 1024 * 1024)


def _warn_about_key(found: dict[str, object]) -> None:
    keys = found["keys"]
    if isinstance(keys, list) and any("CLEAR" in key["form"] for key in keys):
        warn("the key is in the clear: whoever has this file has every secret of the deployment")
    if not keys:
        warn("there is no key in this backup: it opens only with the recovery keys")


state.add_command(takeover)
