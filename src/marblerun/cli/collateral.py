"""``marblerun evidence collateral``: fetch what vouches for platforms, for use without a network, and look into it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from marblerun.attestation.collect.contents import read_details
from marblerun.attestation.collect.directory import load_recording, pck_file
from marblerun.attestation.collect.source import describe_key
from marblerun.attestation.dcap.collateral import collateral_to_json, verify_collateral
from marblerun.attestation.dcap.pck import CA_NAMES, collateral_key
from marblerun.attestation.dcap.quote import parse_quote_prefix
from marblerun.attestation.model import CollateralKey, Tee, TrustRoot
from marblerun.cli.evidence_source import Service, service_options, trusted_roots
from marblerun.cli.evidence_view import (
    columns,
    moment,
    output_option,
    read_quote,
    root_option,
    show,
    time_option,
    time_text,
)
from marblerun.cli.output import emit, note, write_file
from marblerun.errors import MarbleRunError, NotFound, Unavailable

_FMSPC_BYTES: Final = 6


@click.group()
def collateral() -> None:
    """Fetch or show collateral: what Intel publishes about its platforms.

    \b
    Example:
      marblerun evidence collateral fetch quote.bin --out collateral.json
      marblerun evidence collateral show collateral.json
    """


@collateral.command()
@click.argument("quote", metavar="[QUOTE]", required=False)
@click.option("--fmspc", metavar="HEX", help="Platform family, 12 hex digits, instead of a quote.")
@click.option("--ca", type=click.Choice(sorted(CA_NAMES)), help="PCK CA of the platform, with --fmspc.")
@click.option("--tee", type=click.Choice(["sgx", "tdx"]), help="Technology; that of the quote if there is one.")
@service_options
@root_option
@click.option("--out", metavar="FILE", help="Write there; `-` or nothing means standard output.")
@click.option("--dir", "directory", metavar="DIR", help="Write into this directory, named by platform.")
def fetch(
    quote: str | None,
    fmspc: str | None,
    ca: str | None,
    tee: str | None,
    pccs_url: str | None,
    pccs_ca: str | None,
    root_ca: str | None,
    out: str | None,
    directory: str | None,
) -> None:
    """Fetch the collateral for the platform of QUOTE, or for --fmspc, --ca and --tee.

    What is not signed under a trusted root, expired, or for another platform is refused. The file is a JSON object of
    nine fields; a directory of such files is a source of collateral for a Coordinator without a network
    (EDG_COLLATERAL_DIR). It is valid for some 30 days: fetch anew in time.

    \b
    Example:
      marblerun evidence collateral fetch quote.bin --dir /var/lib/marblerun/collateral
    """
    key = _wanted(quote, fmspc, ca, tee)
    found = asyncio.run(Service(pccs_url, pccs_ca).fetch(key, trusted_roots(root_ca)))
    text = collateral_to_json(found)
    family = read_details(found).contents.key
    if directory is not None:
        _make(Path(directory))
        if key.pck is not None:
            # The certificate is one machine's, the rest is for all of its family.
            write_file(Path(directory) / pck_file(key.pck), found.pck_certificate_chain.encode(), mode=0o644)
            text = collateral_to_json(replace(found, pck_certificate_chain=""))
        out = str(Path(directory) / f"{family.tee.value}-{family.fmspc.hex()}-{family.ca}.json")
    if out is None or out == "-":
        emit(text)
        return
    write_file(Path(out), text.encode() + b"\n", mode=0o644)
    note(f"{out}: collateral for {describe_key(family)}, good until {time_text(read_details(found).contents.expires)}")


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"cannot make the directory {directory}: {error.strerror}") from error


def _wanted(quote: str | None, fmspc: str | None, ca: str | None, tee: str | None) -> CollateralKey:
    if (quote is None) == (fmspc is None):
        raise click.UsageError("Give either a QUOTE, or --fmspc with --ca and --tee.")
    if quote is not None:
        parsed, _ = parse_quote_prefix(read_quote(quote, "QUOTE"))
        key = collateral_key(parsed)
        return CollateralKey(Tee(tee) if tee else key.tee, key.fmspc, ca or key.ca, key.pck)
    if ca is None or tee is None:
        raise click.UsageError("--fmspc needs --ca and --tee beside it.")
    try:
        family = bytes.fromhex(fmspc or "")
    except ValueError:
        family = b""
    if len(family) != _FMSPC_BYTES:
        raise click.BadParameter(f"{fmspc!r} is not 12 hex digits.", param_hint="--fmspc")
    return CollateralKey(Tee(tee), family, ca)


@collateral.command("show")
@click.argument("path", metavar="FILE|DIR")
@root_option
@time_option
@output_option
def show_command(path: str, root_ca: str | None, at: int | None, output: str) -> None:
    """Show what collateral is about: platform, dates, TCB evaluation numbers, and whether it is authentic and in time.

    Exits with 0 if all of it is good to use, 3 if any is not.

    \b
    Example:
      marblerun evidence collateral show /var/lib/marblerun/collateral
    """
    time, roots = moment(at), trusted_roots(root_ca)
    files = sorted(Path(path).glob("*.json")) if Path(path).is_dir() else [Path(path)]
    shown = [_shown(file, roots, time) for file in files]
    if not shown:
        raise NotFound(f"{path} holds no *.json files")
    show({"at": time_text(time), "collateral": shown}, output, _text)
    if not all(one["usable"] for one in shown):
        raise SystemExit(3)


def _shown(file: Path, roots: tuple[TrustRoot, ...], at: datetime) -> dict[str, Any]:
    try:
        recording = load_recording(file)
        details = read_details(recording.collateral)
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}") from None
    except OSError as error:
        raise click.BadParameter(f"cannot read {str(file)!r}: {error.strerror}.", param_hint="FILE") from error
    except MarbleRunError as error:
        return {"file": str(file), "usable": False, "problem": str(error)}
    problem = _problem(recording.contents.issued, recording.contents.expires, at)
    try:
        root: str | None = verify_collateral(recording.collateral, roots).trusted.name
    except MarbleRunError as error:
        root, problem = None, f"not authentic: {error}"
    key = recording.contents.key
    return {
        "file": str(file),
        "usable": problem is None,
        "problem": problem,
        "tee": key.tee.value,
        "fmspc": key.fmspc.hex().upper(),
        "pck_ca": key.ca,
        "root": root,
        "valid_from": time_text(recording.contents.issued),
        "valid_until": time_text(recording.contents.expires),
        "parts": {
            name: {"issued": time_text(part.issued), "next_update": time_text(part.next_update)}
            | ({} if part.evaluation_number is None else {"tcb_evaluation_number": part.evaluation_number})
            for name, part in details.parts.items()
        },
    }


def _problem(issued: datetime, expires: datetime, at: datetime) -> str | None:
    if at < issued:
        return "not valid yet"
    return "expired" if at > expires else None


def _text(shown: Mapping[str, Any]) -> str:
    return "\n\n".join("\n".join(columns(_flat(one))) for one in shown["collateral"])


def _flat(one: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in one.items() if name != "parts"}
    for name, part in one.get("parts", {}).items():
        number = part.get("tcb_evaluation_number")
        text = f"{part['issued']} to {part['next_update']}"
        flat[f"  {name}"] = text if number is None else f"{text}, evaluation number {number}"
    return flat
