"""``marblerun recover-with-signature``: whoever holds the key needs no network, whoever sends sees no secret."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from marblerun.cli.connection import attested, read_file
from marblerun.cli.options import Group, endpoint_argument, global_options, with_global_options
from marblerun.cli.output import emit, emit_json, format_option
from marblerun.cli.recover import (
    MAX_RECOVERY_FILE_BYTES,
    key_option,
    manifest_option,
    name_option,
    rehearse_option,
    rehearse_with,
    send,
)
from marblerun.errors import Conflict, Malformed, Unavailable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from marblerun.client.recovery import RecoveryPrivateKey

_SEND: Final = "send"
_FILE: Final = click.Path(dir_okay=False)


class SendsByDefault(Group):
    """A group whose command ``send`` may be left out, as in the reference."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The named command, else ``send`` with everything as its arguments."""
        if args and args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return _SEND, self.commands[_SEND], args


@click.group("recover-with-signature", cls=SendsByDefault, context_settings={"ignore_unknown_options": True})
@with_global_options
def recover_with_signature() -> None:
    """Recover without bringing key and network together.

    1. With the network: 'public-key' gets the ephemeral key of the verified Coordinator. 2. With the recovery key,
    offline: 'encrypt-secret' and 'sign-secret'. 3. With the network: 'send' hands both in.

    \b
    Example:
      marblerun recover-with-signature public-key localhost:4433 -o coordinator.pem
      marblerun recover-with-signature encrypt-secret recovery.json -k key.pem \
        --coordinator-pub-key coordinator.pem -o s.enc
      marblerun recover-with-signature sign-secret recovery.json -k key.pem -o s.sig
      marblerun recover-with-signature s.enc localhost:4433 -s s.sig
    """


@recover_with_signature.command(_SEND)
@click.argument("recovery_key_file", metavar="SECRET_FILE", type=click.Path())
@endpoint_argument
@click.option("-s", "--signature", metavar="FILE", type=_FILE, required=True, help="What 'sign-secret' wrote.")
@manifest_option
@rehearse_option
@format_option()
@with_global_options
def send_(
    recovery_key_file: str, endpoint: str, signature: str, manifest: str, rehearse: bool, output_format: str
) -> None:
    """Send a secret, plain or encrypted for the Coordinator, with its signature; the word 'send' may be left out.

    \b
    Example:
      marblerun recover-with-signature s.enc localhost:4433 -s s.sig --era-config era-config.json
    """
    secret = read_file(Path(recovery_key_file), MAX_RECOVERY_FILE_BYTES)
    signed = read_file(Path(signature), MAX_RECOVERY_FILE_BYTES)
    hand_in = rehearse_with if rehearse else send
    hand_in(global_options(), endpoint, secret, signed, manifest, output_format)


@recover_with_signature.command("public-key")
@endpoint_argument
@click.option("-o", "--output", metavar="FILE", default="", help="File to write (PEM). Default: standard output.")
@click.option("--rehearse", is_flag=True, help="The key for rehearsals, of a Coordinator that is running.")
@format_option()
@with_global_options
def public_key(endpoint: str, output: str, rehearse: bool, output_format: str) -> None:
    """Get the ephemeral public key of a Coordinator in recovery mode, after verifying it.

    \b
    Example:
      marblerun recover-with-signature public-key localhost:4433 -o coordinator.pem
    """
    from marblerun.client.recovery import verify_public_key
    from marblerun.wire.pem import encode_pem

    _refuse_existing(output)
    with attested(global_options(), endpoint).client() as client:
        key = client.recovery_public_key(rehearse=rehearse)
    verify_public_key(key.public_key)
    pem = encode_pem(key.public_key, "PUBLIC KEY")
    if output:
        write_new(Path(output), pem.encode())
    if output_format == "json":
        emit_json({"algorithm": key.algorithm, "file": output} if output else {"algorithm": key.algorithm, "pem": pem})
    elif output:
        emit(f"The Coordinator's public key was written to {output}")
    else:
        emit(pem.rstrip("\n"))


@recover_with_signature.command("encrypt-secret")
@click.argument("recovery_key_file", metavar="RECOVERY_KEY_FILE", type=click.Path())
@click.option("-o", "--output", metavar="FILE", required=True, type=_FILE, help="File to write.")
@click.option("--coordinator-pub-key", metavar="FILE", required=True, type=_FILE, help="What 'public-key' wrote (PEM).")
@key_option
@name_option
def encrypt_secret(
    recovery_key_file: str,
    output: str,
    coordinator_pub_key: str,
    private_key: AbstractContextManager[RecoveryPrivateKey],
    name: str,
) -> None:
    """Encrypt a recovery secret for the eyes of one Coordinator; works without a network.

    \b
    Example:
      marblerun recover-with-signature encrypt-secret recovery.json -k key.pem --coordinator-pub-key c.pem -o s.enc
    """
    from marblerun.client.recovery import encrypt_recovery_secret, recovery_secret
    from marblerun.wire.pem import decode_pem

    _refuse_existing(output)
    pem = read_file(Path(coordinator_pub_key), MAX_RECOVERY_FILE_BYTES)
    try:
        (public,) = decode_pem(pem, "PUBLIC KEY", max_blocks=1) or (b"",)
    except Malformed as error:
        raise Malformed(f"is not what 'public-key' wrote ({error})", where=coordinator_pub_key) from None
    raw = read_file(Path(recovery_key_file), MAX_RECOVERY_FILE_BYTES)
    with private_key as key:
        secret = recovery_secret(raw, key, name)
    write_new(Path(output), encrypt_recovery_secret(public, secret))
    emit(f"The encrypted secret was written to {output}")


@recover_with_signature.command("sign-secret")
@click.argument("recovery_key_file", metavar="RECOVERY_KEY_FILE", type=click.Path())
@click.option("-o", "--output", metavar="FILE", required=True, type=_FILE, help="File to write.")
@key_option
@name_option
def sign_secret(
    recovery_key_file: str, output: str, private_key: AbstractContextManager[RecoveryPrivateKey], name: str
) -> None:
    """Sign a recovery secret; works without a network.

    \b
    Example:
      marblerun recover-with-signature sign-secret recovery.json -k key.pem -o s.sig
    """
    from marblerun.client.recovery import recovery_secret, sign_recovery_secret

    _refuse_existing(output)
    raw = read_file(Path(recovery_key_file), MAX_RECOVERY_FILE_BYTES)
    with private_key as key:
        signature = sign_recovery_secret(key, recovery_secret(raw, key, name))
    write_new(Path(output), signature)
    emit(f"The signature was written to {output}")


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that is not there yet (mode 0600).

    Raises:
        Conflict: it is there. Unavailable: it cannot be written.
    """
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(content)
    except FileExistsError:
        raise Conflict(f"{path} exists; choose another file") from None
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from None


def _refuse_existing(output: str) -> None:
    """Before anything is done; ``write_new`` looks again."""
    if output and Path(output).exists():
        raise Conflict(f"{output} exists; choose another file")
