"""``marblerun manifest``: set, get, verify, signature, log; updates are in :mod:`marblerun.cli.manifest_update`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from marblerun.cli import recovery_file
from marblerun.cli.connection import attested, attested_for, cache, known_root, pinned, read_file, verify_origin
from marblerun.cli.main import Noun, NounGroup
from marblerun.cli.options import endpoint_argument, global_options, with_global_options
from marblerun.cli.output import emit, emit_bytes, emit_json, for_terminal, format_option, note, progress, write_file
from marblerun.errors import Malformed, NotFound
from marblerun.wire.limits import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from marblerun.client.yaml_json import ManifestFile

_SIGNATURE_DIGITS: Final = 64

VERBS = (
    Noun("update", "marblerun.cli.manifest_update", "Update the manifest in force."),
    Noun("lint", "marblerun.cli.manifest_tools", "Find mistakes and dangers in a manifest.", "lint"),
    Noun("schema", "marblerun.cli.manifest_tools", "Print the JSON Schema of manifests.", "schema"),
    Noun("diff", "marblerun.cli.manifest_tools", "Show what a new manifest would change.", "diff"),
    Noun("render", "marblerun.cli.manifest_tools", "Show what a Marble would get.", "render"),
)


@click.group("manifest", cls=NounGroup, nouns=VERBS)
@with_global_options
def manifest() -> None:
    """Set, verify, read and update the manifest of a deployment.

    A manifest is a JSON file, which is sent byte for byte, or a YAML file, which is converted strictly.

    \b
    Example:
      marblerun manifest set manifest.json localhost:4433 --era-config era-config.json
    """


@manifest.command("set")
@click.argument("file", metavar="FILE", type=click.Path())
@endpoint_argument
@click.option(
    "-r",
    "--recoverydata",
    metavar="FILE",
    default="",
    help="Where to keep the recovery data. Default: standard output.",
)
@click.option("--force", is_flag=True, help="Overwrite an existing recovery data file.")
@format_option(short=True)
@with_global_options
def set_(file: str, endpoint: str, recoverydata: str, force: bool, output_format: str) -> None:
    """Set the manifest of a new deployment, after verifying the Coordinator.

    Prints the manifest's signature (its SHA-256) and the recovery data, which exists only now: keep it. The verified
    certificate goes into the certificate cache, which later commands pin.

    \b
    Example:
      marblerun manifest set manifest.json localhost:4433 --recoverydata recovery.json
    """
    options = global_options()
    source = load_manifest(file)
    with recovery_file.reserve(recoverydata, force=force) as place:
        origin = attested_for(options, endpoint, None)
        coordinator = origin.coordinator
        with coordinator.client() as client, progress("Setting the manifest"):
            secrets = client.manifest_set(source.json)
        # First of all what exists only once; then everything that may fail.
        saved = place.save(secrets) if secrets else None
    if output_format == "json":
        document: dict[str, object] = {"manifestSignature": source.fingerprint}
        emit_json(document | (_where(saved) if saved else recovery_file.recovery_document(secrets)))
    else:
        if secrets and saved is None:
            recovery_file.show(secrets)
        emit(f"Manifest signature: {source.fingerprint}")
        note("Manifest successfully set")
        if saved:
            emit(f"Recovery data saved to: {saved}")
    # Whoever knows the keys of a CA that was brought in can answer in the enclave's place, also to this command.
    with coordinator.client() as client:
        verify_origin(origin, client, source.json)
    cache(options).store(coordinator.chain)


@manifest.command("get")
@endpoint_argument
@click.option("-o", "--output", metavar="FILE", default="", help="Write to a file instead of standard output.")
@click.option("-s", "--signature", is_flag=True, help="Wrap the manifest into an object with its signature.")
@click.option("-u", "--display-update", is_flag=True, help="Show security versions as raised by package updates.")
@click.option("--keep-cert", is_flag=True, help="Keep the verified certificate in the cache.")
@with_global_options
def get(endpoint: str, output: str, signature: bool, display_update: bool, keep_cert: bool) -> None:
    """Get the manifest in force, after verifying the Coordinator.

    Without -u and -s the output is the manifest byte for byte.

    \b
    Example:
      marblerun manifest get localhost:4433 -o manifest.json
    """
    from marblerun.client.manifest_text import merge_updates, with_signature

    options = global_options()
    coordinator = attested(options, endpoint)
    with coordinator.client() as client, progress("Reading the manifest"):
        view = client.manifest_get()
        log = client.manifest_log() if display_update else ()
    content = merge_updates(view.manifest, log) if display_update else view.manifest
    if signature:
        content = with_signature(content, view.fingerprint)
    if output:
        write_file(Path(output), content)
        emit(f"Manifest written to: {output}")
    else:
        emit_bytes(content)
    if keep_cert:
        cache(options).store(coordinator.chain)


@manifest.command("verify")
@click.argument("expected", metavar="FILE|SIGNATURE", type=click.Path())
@endpoint_argument
@click.option(
    "--allow-recovered",
    is_flag=True,
    help="Accept a state that was recovered with recovery keys that are not those of the manifest.",
)
@click.option(
    "--require-provenance",
    is_flag=True,
    help="Refuse a Coordinator that does not say where its CA comes from. Default: a warning.",
)
@format_option(short=True)
@with_global_options
def verify(expected: str, endpoint: str, allow_recovered: bool, require_provenance: bool, output_format: str) -> None:
    """Verify that a deployment is genuine and runs the manifest that you know.

    FILE is the manifest; SIGNATURE is its SHA-256, 64 hex digits. On success the verified certificate goes into the
    certificate cache, which later commands pin.

    Unless its root certificate is in the cache already, the Coordinator has to say where its CA comes from: made in
    the enclave, or brought in by a recovery with the manifest's own recovery keys. Whoever recovered it with others may
    know its keys; --allow-recovered accepts that, for example after the recovery keys were changed by an update.

    \b
    Example:
      marblerun manifest verify manifest.json shop.example.com:4433 --era-config era-config.json
    """
    from marblerun.client.deployment import Demands, verify_manifest

    options = global_options()
    fingerprint = named_fingerprint(expected)
    origin = attested_for(options, endpoint, Demands(allow_recovered, require_provenance, known_root(options)))
    coordinator = origin.coordinator
    with coordinator.client() as client:
        with progress("Reading the manifest"):
            view = client.manifest_get()
        verify_manifest(view, fingerprint)
        verify_origin(origin, client, view.manifest)
    cache(options).store(coordinator.chain)
    if output_format == "json":
        emit_json({"ok": True, "manifestSignature": fingerprint, "certificate": str(options.cache_path)})
    else:
        emit("OK")


@manifest.command("signature")
@click.argument("file", metavar="FILE", type=click.Path())
@format_option(short=True)
@with_global_options
def signature(file: str, output_format: str) -> None:
    """Print the signature of a manifest file, the SHA-256 of its JSON form. Works offline.

    \b
    Example:
      marblerun manifest signature manifest.yaml
    """
    fingerprint = load_manifest(file).fingerprint
    if output_format == "json":
        emit_json({"manifestSignature": fingerprint})
    else:
        emit(fingerprint)


@manifest.command("log")
@endpoint_argument
@click.option("-o", "--output", metavar="FILE", default="", help="Write to a file instead of standard output.")
@format_option()
@with_global_options
def log(endpoint: str, output: str, output_format: str) -> None:
    """Show what was changed in a deployment, one JSON record a line.

    The connection is pinned to the cached certificate; with --era-config the Coordinator is verified now.

    \b
    Example:
      marblerun manifest log localhost:4433
    """
    connection = pinned(global_options(), endpoint)
    with connection.client as client, progress("Reading the update log"):
        lines = client.manifest_log()
    if output_format == "json":
        text = json.dumps({"updateLog": list(lines)}, indent=2)
    else:
        text = "\n".join(for_terminal(line) for line in lines)
    if output:
        write_file(Path(output), text.encode() + b"\n")
        emit(f"Update log written to: {output}")
        return
    if output_format != "json":
        emit("Update log:")
    emit(text)


def named_fingerprint(manifest: str) -> str:
    """The fingerprint that ``FILE|SIGNATURE`` stands for.

    Raises:
        NotFound: there is no such file. Malformed: the file is no manifest, or what looks like a signature is none.
    """
    from marblerun.client.deployment import fingerprint_of

    if Path(manifest).is_file():
        return load_manifest(manifest).fingerprint
    try:
        return fingerprint_of(manifest)
    except Malformed as error:
        text = f"there is no file {manifest}, and as a signature it is not right: {error.message}"
        looks_like_one = len(manifest) == _SIGNATURE_DIGITS or set(manifest.lower()) <= set("0123456789abcdef")
        raise (Malformed(text) if looks_like_one else NotFound(text)) from None


def load_manifest(file: str) -> ManifestFile:
    """A manifest file as JSON bytes; ``-`` is standard input."""
    from marblerun.client.yaml_json import manifest_from_bytes

    source = manifest_from_bytes(read_file(Path(file), MAX_MANIFEST_BYTES))
    if source.from_yaml:
        note(f"{file} was converted from YAML to JSON")
    return source


def _where(saved: Path) -> dict[str, object]:
    return {"recoveryDataFile": str(saved)}
