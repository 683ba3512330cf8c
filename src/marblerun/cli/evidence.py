"""``marblerun evidence``: verify a quote, look into one without trusting it, ask what a manifest would say to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from marblerun.attestation.dcap.collateral import MAX_COLLATERAL_JSON_BYTES
from marblerun.attestation.dcap.pck import CertificationSummary, summarise_certification
from marblerun.attestation.dcap.quote import Quote, is_oe_report, parse_quote_prefix
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Origin
from marblerun.attestation.roots import INTEL
from marblerun.cli.collateral import collateral
from marblerun.cli.evidence_check import check
from marblerun.cli.evidence_view import (
    columns,
    moment,
    output_option,
    parse_recorded,
    read_input,
    read_quote,
    read_root,
    refuse,
    report_fields,
    root_option,
    show,
    time_option,
    time_text,
    verified,
    verified_text,
)
from marblerun.errors import MarbleRunError


@click.group()
def evidence() -> None:
    """Verify or inspect attestation evidence (SGX and TDX quotes).

    \b
    Example:
      marblerun evidence inspect quote.bin
      marblerun evidence verify quote.bin --collateral collateral.json
    """


@evidence.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--collateral",
    "collateral_file",
    required=True,
    metavar="FILE.json",
    help="Collateral: a JSON object of nine fields.",
)
@root_option
@time_option
@output_option
def verify(file: str, collateral_file: str, root_ca: str | None, at: int | None, output: str) -> None:
    """Verify the quote in FILE, bare or with the Open Enclave header, as bytes, hex or base64; `-` is standard input.

    Nothing is fetched. A genuine quote is shown with what it says; whether that is acceptable is yours to judge.
    Exits with 0 if the quote is genuine, 3 if it is refused, 2 if the command cannot be carried out.

    \b
    Example:
      marblerun evidence verify quote.bin --collateral collateral.json --at 1738752180
    """
    if file == "-" and collateral_file == "-":
        raise click.UsageError("FILE and --collateral cannot both be standard input.")
    quote = read_quote(file)
    collateral_text = read_input(collateral_file, MAX_COLLATERAL_JSON_BYTES, "--collateral")
    root = INTEL if root_ca is None else read_root(root_ca)
    time = moment(at)
    if root.origin is not Origin.HARDWARE:
        click.echo(f"Warning: trusting only {root.name}. This is not evidence of any hardware.", err=True)
    try:
        claims = Verifier([root]).verify(quote, parse_recorded(collateral_text), time)
    except MarbleRunError as error:
        refuse(error, output, root, time)
    show(verified(claims, time), output, verified_text)


@evidence.command()
@click.argument("file", metavar="FILE")
@output_option
def inspect(file: str, output: str) -> None:
    """Show what the quote in FILE says (bytes, hex or base64; `-` is standard input). Nothing is verified, all of it
    may be forged.

    Bytes behind the quote, such as the padding of configfs-tsm, are counted and ignored here; `verify` refuses them.
    Cut them off at quote_bytes, as in the last example.
    Exits with 0 if FILE holds a quote, 3 if not, 2 if the command cannot be carried out.

    \b
    Example:
      marblerun evidence inspect quote.bin
      curl -sk https://coordinator:4433/quote | jq -r .data.Quote | marblerun evidence inspect -
      head -c 4936 padded.bin | marblerun evidence inspect -
    """
    data = read_quote(file)
    try:
        quote, trailing = parse_quote_prefix(data)
    except MarbleRunError as error:
        refuse(error, output, None, None)
    show(_inspected(quote, data, trailing), output, _inspected_text)


def _inspected(quote: Quote, data: bytes, trailing: bytes) -> dict[str, Any]:
    certification = summarise_certification(quote.certification)
    return {
        "ok": None,
        "verified": False,
        "note": "Nothing here is verified; all of it may be forged.",
        "tee": quote.tee.value,
        "quote_version": quote.header.version,
        "open_enclave_header": is_oe_report(data),
        "quote_bytes": len(data) - len(trailing),
        "trailing_bytes": len(trailing),
        # The rest of a buffer, as configfs-tsm and quoting services leave it.
        "trailing_zeros_only": not any(trailing) if trailing else None,
        "qe_id": quote.header.user_data[:16].hex(),
        "cert_data_type": quote.certification.type,
        **_certification(certification),
        **report_fields(quote.report),
    }


def _certification(summary: CertificationSummary) -> dict[str, Any]:
    platform = summary.platform
    return {
        "certification": summary.description,
        "fmspc": None if platform is None else platform.fmspc.hex().upper(),
        "pck_ca": None if platform is None else platform.ca,
        "pck_cpusvn": None if platform is None else platform.cpu_svns.hex(),
        "pck_pcesvn": None if platform is None else platform.pce_svn,
        "pck_valid": None if summary.valid is None else [time_text(end) for end in summary.valid],
    }


def _inspected_text(shown: Mapping[str, Any]) -> str:
    hidden = ("ok", "verified", "note")
    rows = {name: value for name, value in shown.items() if name not in hidden}
    return "\n".join([f"NOT VERIFIED. {shown['note']}", *columns(rows)])


evidence.add_command(check)
evidence.add_command(collateral)
