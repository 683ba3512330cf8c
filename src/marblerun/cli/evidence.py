"""``marblerun evidence``: verify a quote offline against recorded collateral, or look into one without trusting it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import click

from marblerun.attestation.dcap.collateral import MAX_COLLATERAL_JSON_BYTES, parse_collateral_json
from marblerun.attestation.dcap.pck import CertificationSummary, summarise_certification
from marblerun.attestation.dcap.quote import OE_HEADER_BYTES, Quote, is_oe_report, parse_quote_prefix
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Collateral, Origin, SgxReport, TdReport, TrustRoot
from marblerun.attestation.roots import INTEL, root_from_certificate
from marblerun.errors import Malformed, MarbleRunError, Untrusted
from marblerun.wire.limits import MAX_QUOTE_BYTES
from marblerun.wire.pem import decode_pem

EXIT_REFUSED: Final = 3
_MAX_CERTIFICATE_BYTES: Final = 64 * 1024
_LAST_SECOND: Final = 253_402_300_799  # 9999-12-31T23:59:59Z

_output = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)


@click.group()
def evidence() -> None:
    """Verify or inspect attestation evidence (SGX and TDX quotes)."""


@evidence.command()
@click.argument("file", metavar="FILE")
@click.option("--collateral", required=True, metavar="FILE.json", help="Collateral: a JSON object of nine fields.")
@click.option(
    "--root-ca",
    metavar="FILE",
    help="Trust only this root certificate (DER or PEM) instead of Intel's. For simulated platforms.",
)
@click.option(
    "--at",
    type=click.IntRange(0, _LAST_SECOND),
    metavar="UNIXTIME",
    help="Verify as of this time; now if not given.",
)
@_output
def verify(file: str, collateral: str, root_ca: str | None, at: int | None, output: str) -> None:
    """Verify the quote in FILE, raw or with the Open Enclave header; `-` is standard input.

    Nothing is fetched. A genuine quote is shown with what it says; whether that is acceptable is yours to judge.
    Exits with 0 if the quote is genuine, 3 if it is refused, 2 if the command cannot be carried out.

    \b
    Example:
      marblerun evidence verify quote.bin --collateral collateral.json --at 1738752180
    """
    if file == "-" and collateral == "-":
        raise click.UsageError("FILE and --collateral cannot both be standard input.")
    quote = _read(file, MAX_QUOTE_BYTES + OE_HEADER_BYTES, "FILE")
    collateral_text = _read(collateral, MAX_COLLATERAL_JSON_BYTES, "--collateral")
    root = INTEL if root_ca is None else _read_root(root_ca)
    time = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    if root.origin is not Origin.HARDWARE:
        click.echo(f"Warning: trusting only {root.name}. This is not evidence of any hardware.", err=True)
    try:
        claims = Verifier([root]).verify(quote, _parse_collateral(collateral_text), time)
    except MarbleRunError as error:
        _refuse(error, output, root, time)
    _print(_verified(claims, time), output, _verified_text)


@evidence.command()
@click.argument("file", metavar="FILE")
@_output
def inspect(file: str, output: str) -> None:
    """Show what the quote in FILE says; `-` is standard input. Nothing is verified, all of it may be forged.

    Bytes behind the quote, such as the padding of configfs-tsm, are counted and ignored here; `verify` refuses them.
    Exits with 0 if FILE holds a quote, 3 if not, 2 if the command cannot be carried out.

    \b
    Example:
      marblerun evidence inspect quote.bin
    """
    data = _read(file, MAX_QUOTE_BYTES + OE_HEADER_BYTES, "FILE")
    try:
        quote, trailing = parse_quote_prefix(data)
    except MarbleRunError as error:
        _refuse(error, output, None, None)
    _print(_inspected(quote, len(trailing), is_oe_report(data)), output, _inspected_text)


def _read(path: str, limit: int, param: str) -> bytes:
    """At most ``limit + 1`` bytes, so that what is too large is refused as such and not cut."""
    try:
        if path == "-":
            return sys.stdin.buffer.read(limit + 1)
        with open(path, "rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise click.BadParameter(
            f"cannot read {path!r}: {reason}. Give the path of a readable file, or - for standard input.",
            param_hint=param,
        ) from error


def _read_root(path: str) -> TrustRoot:
    data = _read(path, _MAX_CERTIFICATE_BYTES, "--root-ca")
    try:
        if b"-----BEGIN" in data:
            (data,) = decode_pem(data, "CERTIFICATE", max_blocks=1, max_bytes=_MAX_CERTIFICATE_BYTES)
        root = root_from_certificate(data, f"the root in {path}", Origin.SIMULATED)
    except (MarbleRunError, ValueError) as error:
        raise click.BadParameter(
            f"{path!r} is not one CA certificate in DER or PEM: {error}.", param_hint="--root-ca"
        ) from error
    return INTEL if root.spki_sha256 == INTEL.spki_sha256 else root


def _parse_collateral(text: bytes) -> Collateral:
    try:
        return parse_collateral_json(text)
    except Malformed as error:
        raise Untrusted(str(error), step="collateral", reason="malformed") from error


def _refuse(error: MarbleRunError, output: str, root: TrustRoot | None, at: datetime | None) -> NoReturn:
    step = error.step if isinstance(error, Untrusted) else "parse"
    reason = error.reason if isinstance(error, Untrusted) else "malformed"
    message = error.message if isinstance(error, Untrusted) else str(error)
    shown: dict[str, Any] = {
        "ok": False,
        "error": {"code": error.code, "step": step, "reason": reason, "message": message},
    }
    if root is not None and at is not None:
        shown |= {
            "trusted_root": root.name,
            "simulated": root.origin is not Origin.HARDWARE,
            "verified_at": _time(at),
        }
    _print(shown, output, _refused_text)
    raise SystemExit(EXIT_REFUSED)


def _verified(claims: Claims, at: datetime) -> dict[str, Any]:
    """The claims under the names of the recorded vectors' index."""
    platform = claims.platform
    return {
        "ok": True,
        "tee": claims.tee.value,
        "origin": claims.origin.value,
        "simulated": claims.origin is not Origin.HARDWARE,
        "root": claims.root,
        "verified_at": _time(at),
        "tcb_status": claims.tcb_status.value,
        "advisories": list(claims.advisories),
        "qe_status": claims.parts["qe"].status.value,
        "tcb_date": _time(claims.tcb_date),
        "tcb_evaluation_number": claims.tcb_evaluation_number,
        "collateral_expires": _time(claims.collateral_expires),
        "parts": {
            name: {
                "status": part.status.value,
                "tcb_date": _time(part.tcb_date),
                "advisories": list(part.advisories),
            }
            for name, part in claims.parts.items()
        },
        "platform": {
            "fmspc": platform.fmspc.hex().upper(),
            "pck_ca": platform.ca,
            "pce_id": platform.pce_id.hex(),
            "pck_cpusvn": platform.cpu_svns.hex(),
            "pck_pcesvn": platform.pce_svn,
            "ppid": platform.ppid.hex(),
            "platform_instance_id": None
            if platform.platform_instance_id is None
            else platform.platform_instance_id.hex(),
            "qe_svn": claims.qe_svn,
        },
        **_report(claims.report),
    }


def _report(report: SgxReport | TdReport) -> dict[str, Any]:
    return _sgx_report(report) if isinstance(report, SgxReport) else _td_report(report)


def _sgx_report(report: SgxReport) -> dict[str, Any]:
    return {
        "debug": report.debug,
        "mrenclave": report.mrenclave.hex(),
        "mrsigner": report.mrsigner.hex(),
        "isv_prod_id": report.isv_prod_id,
        "isv_svn": report.isv_svn,
        "attributes": report.attributes.hex(),
        "miscselect": report.miscselect.hex(),
        "cpusvn": report.cpusvn.hex(),
        "config_id": report.config_id.hex(),
        "config_svn": report.config_svn,
        "isv_ext_prod_id": report.isv_ext_prod_id.hex(),
        "isv_family_id": report.isv_family_id.hex(),
        "report_data": report.report_data.hex(),
    }


def _td_report(report: TdReport) -> dict[str, Any]:
    return {
        "debug": report.debug,
        "mrtd": report.mrtd.hex(),
        "rtmr": [rtmr.hex() for rtmr in report.rtmrs],
        "mrseam": report.mrseam.hex(),
        "mrsignerseam": report.mrsignerseam.hex(),
        "seam_attributes": report.seam_attributes.hex(),
        "tee_tcb_svn": report.tee_tcb_svn.hex(),
        "tee_tcb_svn2": None if report.tee_tcb_svn2 is None else report.tee_tcb_svn2.hex(),
        "td_attributes": report.td_attributes.hex(),
        "xfam": report.xfam.hex(),
        "mrconfigid": report.mrconfigid.hex(),
        "mrowner": report.mrowner.hex(),
        "mrownerconfig": report.mrownerconfig.hex(),
        "mrservicetd": None if report.mrservicetd is None else report.mrservicetd.hex(),
        "report_data": report.report_data.hex(),
    }


def _inspected(quote: Quote, trailing: int, wrapped: bool) -> dict[str, Any]:
    certification = summarise_certification(quote.certification)
    return {
        "ok": None,
        "verified": False,
        "note": "Nothing here is verified; all of it may be forged.",
        "tee": quote.tee.value,
        "quote_version": quote.header.version,
        "open_enclave_header": wrapped,
        "trailing_bytes": trailing,
        "qe_id": quote.header.user_data[:16].hex(),
        "cert_data_type": quote.certification.type,
        **_certification(certification),
        **_report(quote.report),
    }


def _certification(summary: CertificationSummary) -> dict[str, Any]:
    platform = summary.platform
    return {
        "certification": summary.description,
        "fmspc": None if platform is None else platform.fmspc.hex().upper(),
        "pck_ca": None if platform is None else platform.ca,
        "pck_cpusvn": None if platform is None else platform.cpu_svns.hex(),
        "pck_pcesvn": None if platform is None else platform.pce_svn,
        "pck_valid": None if summary.valid is None else [_time(end) for end in summary.valid],
    }


def _time(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _print(shown: Mapping[str, Any], output: str, text: Any) -> None:
    click.echo(json.dumps(shown, indent=2) if output == "json" else text(shown))


def _refused_text(shown: Mapping[str, Any]) -> str:
    error = shown["error"]
    lines = [f"REFUSED at step {error['step']} ({error['reason']}): {error['message']}"]
    if "trusted_root" in shown:
        kind = "simulated, no hardware" if shown["simulated"] else "hardware"
        lines.append(f"Trusted root: {shown['trusted_root']} ({kind}); time: {shown['verified_at']}")
    return "\n".join(lines)


def _verified_text(shown: Mapping[str, Any]) -> str:
    head = "GENUINE, BUT SIMULATED: no hardware stands behind this quote" if shown["simulated"] else "GENUINE"
    lead = ("tee", "root", "origin", "verified_at", "tcb_status", "advisories")
    rows = {name: shown[name] for name in lead}
    rows |= {f"  {name}": _part(part) for name, part in shown["parts"].items()}
    rest = {
        name: value
        for name, value in shown.items()
        if name not in (*lead, "ok", "simulated", "parts", "platform", "qe_status")
    }
    rows |= rest | {f"platform {name}": value for name, value in shown["platform"].items()}
    return "\n".join(
        [
            head,
            *_rows(rows),
            "",
            "Verified: the quote, its quoting enclave and its platform are the vendor's, at the time given.",
            "Not judged: TCB status, advisories, debug mode, measurements, report data. That is up to you.",
        ]
    )


def _part(part: Mapping[str, Any]) -> str:
    return f"{part['status']} (TCB of {part['tcb_date'][:10]})"


def _inspected_text(shown: Mapping[str, Any]) -> str:
    hidden = ("ok", "verified", "note")
    rows = {name: value for name, value in shown.items() if name not in hidden}
    return "\n".join([f"NOT VERIFIED. {shown['note']}", *_rows(rows)])


def _rows(rows: Mapping[str, Any]) -> list[str]:
    width = max(map(len, rows))
    lines: list[str] = []
    for name, value in rows.items():
        values = value if isinstance(value, list) and value else [_cell(value)]
        lines += [f"{name if i == 0 else '':<{width}}  {one}" for i, one in enumerate(values)]
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == [] else str(value)
