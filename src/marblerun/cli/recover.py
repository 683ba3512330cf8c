"""``marblerun recover``: hand one party's recovery secret to a Coordinator that was verified."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from marblerun.cli.connection import attested, cache, read_file
from marblerun.cli.options import Command, endpoint_argument, global_options, with_global_options
from marblerun.cli.output import emit, emit_json, for_terminal, format_option, note, progress, warn
from marblerun.errors import Denied, MarbleRunError, NotFound, Untrusted, WrongPhase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import TypeVar

    from marblerun.cli.options import GlobalOptions
    from marblerun.client import Client, RecoveryReply, RehearsalReply
    from marblerun.client.recovery import RecoveryPrivateKey

    F = TypeVar("F", bound=Callable[..., Any])

MAX_RECOVERY_FILE_BYTES: Final = 1024 * 1024
_RECOVERY: Final = 1
_RUNNING: Final = 3
_FILE: Final = click.Path(dir_okay=False)


def key_option(function: F) -> F:
    """Adds ``-k/--key`` and the PKCS#11 options: the party's private key, in a file or in a token, as ``private_key``.

    What the command gets is a context manager that opens it.
    """

    @wraps(function)
    def with_key(
        *arguments: Any, key_file: str, pkcs11_config: str, pkcs11_key_id: str, pkcs11_key_label: str, **options: Any
    ) -> Any:
        key = recovery_key_of(key_file, pkcs11_config, pkcs11_key_id, pkcs11_key_label)
        return function(*arguments, private_key=key, **options)

    texts = (
        ("--pkcs11-key-label", "pkcs11_key_label", "LABEL", None, "Label of the private key in the token."),
        ("--pkcs11-key-id", "pkcs11_key_id", "ID", None, "ID of the private key in the token (its bytes as text)."),
        ("--pkcs11-config", "pkcs11_config", "FILE", _FILE, "Key in a PKCS#11 token: its configuration (JSON)."),
    )
    command: Any = with_key
    for option, name, metavar, kind, text in texts:
        command = click.option(option, name, metavar=metavar, type=kind, default="", help=text)(command)
    text = "The party's private key, as in the manifest's RecoveryKeys (RSA, PEM)."
    with_all: F = click.option("-k", "--key", "key_file", metavar="FILE", type=_FILE, default="", help=text)(command)
    return with_all


def recovery_key_of(file: str, config: str, key_id: str, label: str) -> AbstractContextManager[RecoveryPrivateKey]:
    """The key that the options name, to be opened; raises a usage error unless they name exactly one."""
    named = bool(key_id or label)
    if bool(file) == bool(config) or bool(config) != named:
        raise click.UsageError(
            "give the recovery key: -k/--key FILE, or --pkcs11-config FILE with --pkcs11-key-id or --pkcs11-key-label"
        )
    if file:
        return _from_file(file)
    from marblerun.client.token import KeyName, open_token_key, parse_token_config

    return open_token_key(parse_token_config(read_file(Path(config), MAX_RECOVERY_FILE_BYTES)), KeyName(key_id, label))


@contextmanager
def _from_file(path: str) -> Iterator[RecoveryPrivateKey]:
    from marblerun.client.recovery import load_recovery_key

    yield load_recovery_key(read_file(Path(path), MAX_RECOVERY_FILE_BYTES))


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


def rehearse_option(function: F) -> F:
    """Adds ``--rehearse``."""
    text = (
        "Find out whether the secrets would recover a Coordinator that is running: they are compared and forgotten, "
        "and nothing changes. --manifest is compared before anything is sent."
    )
    return click.option("--rehearse", is_flag=True, help=text)(function)


@click.command("recover", cls=Command)
@click.argument("recovery_key_file", metavar="RECOVERY_KEY_FILE", type=click.Path())
@endpoint_argument
@key_option
@name_option
@manifest_option
@rehearse_option
@format_option()
@with_global_options
def recover(
    recovery_key_file: str,
    endpoint: str,
    private_key: AbstractContextManager[RecoveryPrivateKey],
    name: str,
    manifest: str,
    rehearse: bool,
    output_format: str,
) -> None:
    """Recover a Coordinator that cannot open its sealed state.

    RECOVERY_KEY_FILE is the recovery data that 'manifest set' saved, or one secret of it, in base64 or decoded. It is
    decrypted and signed with the party's key here. The Coordinator is verified by its evidence, and has to be in
    recovery mode, before the secret leaves this machine. With several parties each runs this command.

    With --rehearse the Coordinator has to be running instead, and says only whether the secrets would recover it.

    \b
    Example:
      marblerun recover recovery.json localhost:4433 --era-config era-config.json --key recovery.pem
      marblerun recover recovery.json localhost:4433 -k recovery.pem --manifest manifest.json
      marblerun recover recovery.json localhost:4433 -k recovery.pem --rehearse
    """
    from marblerun.client.recovery import recovery_secret, sign_recovery_secret

    raw = read_file(Path(recovery_key_file), MAX_RECOVERY_FILE_BYTES)
    with private_key as key:
        secret = recovery_secret(raw, key, name)
        signature = sign_recovery_secret(key, secret)
    hand_in = rehearse_with if rehearse else send
    hand_in(global_options(), endpoint, secret, signature, manifest, output_format)


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


def rehearse_with(
    options: GlobalOptions, endpoint: str, secret: bytes, signature: bytes, manifest: str, output_format: str
) -> None:
    """Verify a running Coordinator, show what it is, hand in the secret, and say whether it would recover.

    Raises:
        Denied: the Coordinator says that the secrets would not recover it, or refuses this one.
    """
    from marblerun.client.deployment import verify_manifest

    expected = expected_fingerprint(manifest)
    coordinator = attested(options, endpoint)
    with coordinator.client() as client:
        status = client.status()
        if status.code != _RUNNING:
            raise WrongPhase(f"nothing was sent: the Coordinator is not running ({for_terminal(status.message)})")
        view = client.manifest_get()
        if expected:
            verify_manifest(view, expected)
        _verify_root(options, coordinator.chain.root_der, "nothing was sent: its root certificate is")
        note(f"Root certificate: SHA-256 {hashlib.sha256(coordinator.chain.root_der).hexdigest()}")
        note(f"Manifest in force: SHA-256 {hashlib.sha256(view.manifest).hexdigest()}")
        with progress("Sending the recovery secret"):
            answer = client.rehearse(secret, signature)
    _tell_rehearsal(answer, output_format)
    if answer.recoverable is False:
        raise Denied("the secrets would NOT recover this deployment, though each is one of it")


def _tell_rehearsal(answer: RehearsalReply, output_format: str) -> None:
    if output_format == "json":
        fields = ("holder", "given", "needed", "recoverable", "message")
        emit_json({name: getattr(answer, name) for name in fields})
        return
    emit(f"The secret of {for_terminal(answer.holder)} is a right one: {answer.given} of {answer.needed}")
    if answer.recoverable:
        emit("These secrets would recover the Coordinator; nothing was changed")
    elif answer.recoverable is None:
        missing = answer.needed - answer.given
        note(f"Nothing was changed; {missing} more {'is' if missing == 1 else 'are'} needed in the next minutes")


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
    from marblerun.cli.manifest import named_fingerprint

    return named_fingerprint(manifest) if manifest else ""


def verify_recovered(options: GlobalOptions, endpoint: str, expected: str) -> None:
    """Attest again, under the certificate served now; raises Denied or Untrusted if it is another deployment."""
    from marblerun.client.deployment import verify_manifest

    coordinator = attested(options, endpoint)
    with coordinator.client() as client:
        verify_manifest(client.manifest_get(), expected)
    _verify_root(options, coordinator.chain.root_der, "the state was recovered, but its root certificate is")


def _verify_root(options: GlobalOptions, root_der: bytes, what: str) -> None:
    """Raises Untrusted if the cache knows another root; a warning where it knows none."""
    try:
        known = cache(options).load()
    except NotFound:
        warn("there is no cached certificate to compare the root with")
        return
    if known.root_der != root_der:
        raise Untrusted(
            f"{what} not the cached one: this is another deployment", step="certificate-cache", reason="mismatch"
        )


def _tell(answer: RecoveryReply, output_format: str) -> None:
    if not answer.remaining:
        for line in answer.message.splitlines()[1:]:  # what went wrong although the state is back
            warn(for_terminal(line))
    if output_format == "json":
        emit_json({"remaining": answer.remaining, "message": answer.message})
        return
    if not answer.remaining:
        emit("Successfully recovered the Coordinator")
        return
    if str(answer.remaining) in answer.message:
        emit(for_terminal(answer.message))  # it says how many, and may know more; ours would say it twice
        return
    noun = "secret is" if answer.remaining == 1 else "secrets are"
    emit(f"The secret was accepted; {answer.remaining} more {noun} needed")
    if answer.message:
        note(for_terminal(answer.message))
