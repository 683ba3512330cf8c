"""``marblerun recover``: hand one party's recovery secret to a Coordinator that was verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from marblerun.cli.connection import attested, cache, read_file
from marblerun.cli.options import Command, endpoint_argument, global_options, with_global_options
from marblerun.cli.output import emit, emit_json, for_terminal, format_option, note, progress, warn
from marblerun.errors import MarbleRunError, NotFound, Untrusted, WrongPhase

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from cryptography.hazmat.primitives.asymmetric import rsa

    from marblerun.cli.options import GlobalOptions
    from marblerun.client import Client, RecoveryReply

    F = TypeVar("F", bound=Callable[..., Any])

MAX_RECOVERY_FILE_BYTES: Final = 1024 * 1024
_RECOVERY: Final = 1
_FILE: Final = click.Path(dir_okay=False)


def key_option(function: F) -> F:
    """Adds ``-k/--key``, the party's private key."""
    text = "The party's private key, as in the manifest's RecoveryKeys (RSA, PEM)."
    return click.option("-k", "--key", "private_key", metavar="FILE", type=_FILE, required=True, help=text)(function)


def name_option(function: F) -> F:
    """Adds ``--name``, which secret of a recovery data file."""
    text = "Which secret of a recovery data file. Default: the one that the key decrypts."
    return click.option("--name", metavar="NAME", default="", help=text)(function)


def manifest_option(function: F) -> F:
    """Adds ``--manifest``, what has to be in force after the recovery."""
    text = (
        "After the last secret: the manifest (or its signature) that has to be in force again, under the root "
        "certificate in the cache."
    )
    return click.option("--manifest", metavar="FILE|SIGNATURE", default="", help=text)(function)


@click.command("recover", cls=Command)
@click.argument("recovery_key_file", metavar="RECOVERY_KEY_FILE", type=click.Path())
@endpoint_argument
@key_option
@name_option
@manifest_option
@format_option()
@with_global_options
def recover(
    recovery_key_file: str, endpoint: str, private_key: str, name: str, manifest: str, output_format: str
) -> None:
    """Recover a Coordinator that cannot open its sealed state.

    RECOVERY_KEY_FILE is the recovery data that 'manifest set' saved, or one secret of it, in base64 or decoded. It is
    decrypted and signed with the party's key here. The Coordinator is verified by its evidence, and has to be in
    recovery mode, before the secret leaves this machine. With several parties each runs this command.

    \b
    Example:
      marblerun recover recovery.json localhost:4433 --era-config era-config.json --key recovery.pem
      marblerun recover recovery.json localhost:4433 -k recovery.pem --manifest manifest.json
    """
    from marblerun.client.recovery import recovery_secret, sign_recovery_secret

    key = load_key(private_key)
    secret = recovery_secret(read_file(Path(recovery_key_file), MAX_RECOVERY_FILE_BYTES), key, name)
    signature = sign_recovery_secret(key, secret)
    send(global_options(), endpoint, secret, signature, manifest, output_format)


def load_key(path: str) -> rsa.RSAPrivateKey:
    """The private key in a file."""
    from marblerun.client.recovery import load_recovery_key

    return load_recovery_key(read_file(Path(path), MAX_RECOVERY_FILE_BYTES))


def send(
    options: GlobalOptions, endpoint: str, secret: bytes, signature: bytes, manifest: str, output_format: str
) -> None:
    """Verify the Coordinator, hand in the secret, and say what is left to do."""
    expected = expected_fingerprint(manifest)
    with attested(options, endpoint).client() as client:
        _verify_waiting(client)
        with progress("Sending the recovery secret"):
            answer = client.recover(secret, signature)
    _tell(answer, output_format)
    if not answer.remaining and expected:
        verify_recovered(options, endpoint, expected)
        note("The manifest and the root certificate are the expected ones")


def _verify_waiting(client: Client) -> None:
    """Raises WrongPhase if the Coordinator says that it waits for no secret; passes on what it says about its state."""
    try:
        status = client.status()
    except MarbleRunError:
        return  # it does not say; it will refuse a secret that it cannot use
    if status.code != _RECOVERY:
        raise WrongPhase(f"nothing was sent: the Coordinator is not in recovery mode ({status.message})")
    for line in status.message.splitlines()[1:]:
        warn(for_terminal(line))


def expected_fingerprint(manifest: str) -> str:
    """The fingerprint that ``--manifest`` stands for; empty if it was not given."""
    from marblerun.cli.manifest import load_manifest
    from marblerun.client.deployment import fingerprint_of

    if not manifest:
        return ""
    return load_manifest(manifest).fingerprint if Path(manifest).is_file() else fingerprint_of(manifest)


def verify_recovered(options: GlobalOptions, endpoint: str, expected: str) -> None:
    """Attest again, under the certificate served now; raises Denied or Untrusted if it is another deployment."""
    from marblerun.client.deployment import verify_manifest

    coordinator = attested(options, endpoint)
    with coordinator.client() as client:
        verify_manifest(client.manifest_get(), expected)
    try:
        known = cache(options).load()
    except NotFound:
        warn("there is no cached certificate to compare the recovered root with")
        return
    if known.root_der != coordinator.chain.root_der:
        raise Untrusted(
            "the state was recovered, but its root certificate is not the cached one: this is another deployment",
            step="certificate-cache",
            reason="mismatch",
        )


def _tell(answer: RecoveryReply, output_format: str) -> None:
    if output_format == "json":
        emit_json({"remaining": answer.remaining, "message": answer.message})
        return
    if not answer.remaining:
        emit("Successfully recovered the Coordinator")
        return
    noun = "secret is" if answer.remaining == 1 else "secrets are"
    emit(f"The secret was accepted; {answer.remaining} more {noun} needed")
    if answer.message:
        note(for_terminal(answer.message))
