"""``marblerun secret``: get and set."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from marblerun.cli.connection import credentials, pinned, read_file
from marblerun.cli.options import (
    Group,
    endpoint_argument,
    global_options,
    with_client_credentials,
    with_global_options,
)
from marblerun.cli.output import emit, emit_json, for_terminal, format_option, note, progress, write_file

if TYPE_CHECKING:
    from marblerun.secrets.model import Secret

_LABEL: Final = 14
MAX_SECRET_FILE_BYTES: Final = 16 * 1024 * 1024


@click.group("secret", cls=Group)
@with_client_credentials
@with_global_options
def secret() -> None:
    """Read and set secrets of the manifest, as one of its users.

    The connection is pinned to the cached certificate of 'manifest set' or 'manifest verify'.

    \b
    Example:
      marblerun secret get db-key localhost:4433 --cert alice.crt --key alice.key
    """


@secret.command("get")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@endpoint_argument
@click.option("-o", "--output", metavar="FILE", default="", help="Write the secrets as JSON to a file (mode 0600).")
@with_client_credentials
@format_option()
@with_global_options
def get(names: tuple[str, ...], endpoint: str, output: str, output_format: str) -> None:
    """Get secrets that your roles let you read; keys are shown in base64, certificates in PEM.

    \b
    Example:
      marblerun secret get db-key tls-cert localhost:4433 --cert alice.crt --key alice.key
    """
    options = global_options()
    connection = pinned(options, endpoint, credentials(options))
    with connection.client as client, progress("Reading secrets"):
        found = client.secrets_get(names)
    if output:
        write_file(Path(output), (json.dumps(found.document, indent=2) + "\n").encode())
        emit(f"Secrets written to: {output}")
    elif output_format == "json":
        emit_json(found.document)
    else:
        for name in sorted(found.values):
            emit(for_terminal(describe(name, found.values[name])))


@secret.command("set")
@click.argument("file", metavar="FILE", type=click.Path())
@endpoint_argument
@click.option(
    "--from-pem",
    metavar="NAME",
    default="",
    help="FILE is PEM: set the certificate secret NAME to its certificate and key.",
)
@with_client_credentials
@format_option()
@with_global_options
def set_(file: str, endpoint: str, from_pem: str, output_format: str) -> None:
    """Set user-defined secrets.

    FILE is JSON: {"NAME": {"Key": BASE64}} for keys and plain secrets, {"NAME": {"Cert": BASE64, "Private": BASE64}}
    (DER and PKCS#8) for certificates.

    \b
    Example:
      marblerun secret set secrets.json localhost:4433 --cert alice.crt --key alice.key
      marblerun secret set tls.pem localhost:4433 --from-pem tls-cert --cert alice.crt --key alice.key
    """
    from marblerun.client.user_secrets import parse_user_secrets, user_secret_from_pem

    options = global_options()
    person = credentials(options)
    raw = read_file(Path(file), MAX_SECRET_FILE_BYTES)
    if from_pem:
        value, remarks = user_secret_from_pem(raw)
        secrets = {from_pem: value}
        for remark in remarks:
            note(remark)
    else:
        secrets = parse_user_secrets(raw)
    connection = pinned(options, endpoint, person)
    with connection.client as client, progress("Setting secrets"):
        client.secrets_set(secrets)
    if output_format == "json":
        emit_json({"set": sorted(secrets)})
    else:
        emit("Secret successfully set")


def describe(name: str, value: Secret) -> str:
    """A secret for people: its name, then a line for each field that applies."""
    lines = [f"{name}:", _field("Type", value.type), _field("UserDefined", str(value.user_defined).lower())]
    if value.size:
        lines.append(_field("Size", str(value.size)))
    if value.valid_for:
        lines.append(_field("Valid For", str(value.valid_for)))
    if value.type.startswith("cert-"):
        lines.append(_block("Certificate", "CERTIFICATE", value.certificate))
        lines.append(_block("Public Key", "PUBLIC KEY", value.public))
        lines.append(_block("Private Key", "PRIVATE KEY", value.private))
    else:
        label = "Data" if value.type == "plain" else "Key"
        lines.append(_field(label, base64.b64encode(value.public).decode() or "<not set>"))
    return "\n".join(lines)


def _field(label: str, text: str) -> str:
    return f"\t{label + ':':<{_LABEL}}{text}"


def _block(label: str, kind: str, der: bytes) -> str:
    from marblerun.wire.pem import encode_pem

    if not der:
        return _field(label, "<not set>")
    lines = "".join(f"\n\t\t{line}" for line in encode_pem(der, kind).splitlines())
    return f"\t{label}:{lines}"
