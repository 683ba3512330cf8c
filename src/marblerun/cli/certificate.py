"""``marblerun certificate``: root, intermediate, chain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from marblerun.cli.connection import attested, cache
from marblerun.cli.options import Group, endpoint_argument, global_options, with_global_options
from marblerun.cli.output import emit, emit_json, format_option, write_file
from marblerun.errors import Misconfigured, NotFound, Untrusted

if TYPE_CHECKING:
    from marblerun.cli.options import GlobalOptions
    from marblerun.client import CoordinatorChain


@click.group("certificate", cls=Group)
@with_global_options
def certificate() -> None:
    """Get the Coordinator's certificates, after verifying that they are still the known ones.

    \b
    Example:
      marblerun certificate root localhost:4433 -o marblerun-root.crt
    """


def _output(default: str) -> click.Option:
    return click.Option(
        ["-o", "--output"],
        metavar="FILE",
        default=default,
        show_default=True,
        help="File to write (PEM).",
    )


@certificate.command("root", params=[_output("marblerunRootCA.crt")])
@endpoint_argument
@format_option()
@with_global_options
def root(endpoint: str, output: str, output_format: str) -> None:
    """Get the root certificate, the trust anchor of the deployment.

    \b
    Example:
      marblerun certificate root localhost:4433
    """
    chain = _known_chain(global_options(), endpoint)
    _save(output, chain.root_pem, "root certificate", output_format)


@certificate.command("intermediate", params=[_output("marblerunIntermediateCA.crt")])
@endpoint_argument
@format_option()
@with_global_options
def intermediate(endpoint: str, output: str, output_format: str) -> None:
    """Get the intermediate certificate; it changes with every update of the manifest.

    \b
    Example:
      marblerun certificate intermediate localhost:4433
    """
    chain = _known_chain(global_options(), endpoint)
    _save(output, chain.intermediate_pem, "intermediate certificate", output_format)


@certificate.command("chain", params=[_output("marblerunChainCA.crt")])
@endpoint_argument
@format_option()
@with_global_options
def chain(endpoint: str, output: str, output_format: str) -> None:
    """Get both certificates, intermediate first.

    \b
    Example:
      marblerun certificate chain localhost:4433
    """
    known = _known_chain(global_options(), endpoint)
    _save(output, known.pem, "certificate chain", output_format)


def _known_chain(options: GlobalOptions, endpoint: str) -> CoordinatorChain:
    """The chain of the attested Coordinator, whose root has to be the cached one unless nothing is verified."""
    if options.insecure:
        return attested(options, endpoint).chain
    try:
        cached = cache(options).load()
    except NotFound as error:
        raise Misconfigured(f"{error}; run 'marblerun manifest verify' first") from None
    found = attested(options, endpoint).chain
    if found.root_der != cached.root_der:
        raise Untrusted(
            "the root certificate of the Coordinator has changed; if that is expected, run 'marblerun manifest verify'",
            step="certificate-cache",
            reason="mismatch",
        )
    return found


def _save(output: str, pem: bytes, what: str, output_format: str) -> None:
    if not output:
        raise click.UsageError("-o/--output must name a file")
    write_file(Path(output), pem)
    if output_format == "json":
        emit_json({"file": output, "pem": pem.decode("ascii")})
    else:
        emit(f"The {what} was written to {output}")
