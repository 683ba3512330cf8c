"""How the commands about evidence read their files and show what came out."""

from __future__ import annotations

import base64
import binascii
import json
import string
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import click

from marblerun.attestation.dcap.collateral import parse_collateral_json
from marblerun.attestation.dcap.quote import OE_HEADER_BYTES
from marblerun.attestation.model import Claims, Collateral, Origin, SgxReport, TdExtension, TdReport, TrustRoot
from marblerun.attestation.roots import INTEL, root_from_certificate
from marblerun.errors import Malformed, MarbleRunError, NotFound, Untrusted
from marblerun.wire.limits import MAX_QUOTE_BYTES
from marblerun.wire.pem import decode_pem

EXIT_REFUSED: Final = 3
MAX_CERTIFICATE_BYTES: Final = 64 * 1024
# The largest quote in hex, with a line end behind every second digit.
_MAX_QUOTE_TEXT_BYTES: Final = 3 * (MAX_QUOTE_BYTES + OE_HEADER_BYTES)
_TEXT: Final = frozenset(string.printable.encode())
LAST_SECOND: Final = 253_402_300_799  # 9999-12-31T23:59:59Z

output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)
root_option = click.option(
    "--root-ca",
    metavar="FILE",
    help="Trust only this root certificate (DER or PEM) instead of Intel's. For simulated platforms.",
)
time_option = click.option(
    "--at",
    type=click.IntRange(0, LAST_SECOND),
    metavar="UNIXTIME",
    help="Verify as of this time; now if not given.",
)


def read_input(path: str, limit: int, param: str) -> bytes:
    """At most ``limit + 1`` bytes, so that what is too large is refused as such and not cut."""
    try:
        if path == "-":
            return sys.stdin.buffer.read(limit + 1)
        with open(path, "rb") as file:
            return file.read(limit + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise click.BadParameter(
            f"cannot read {path!r}: {reason}. Give the path of a readable file, or - for standard input.",
            param_hint=param,
        ) from error


def read_quote(path: str, param: str = "FILE") -> bytes:
    """The quote in a file: its bytes, or hex or base64 of them, as services and logs show quotes.

    A quote has bytes that no text has, so there is no doubt. What is neither comes back as it is, for the parser to
    refuse.
    """
    data = read_input(path, _MAX_QUOTE_TEXT_BYTES, param)
    if not data or not _TEXT.issuperset(data):
        return data
    text = b"".join(data.split())
    try:
        return bytes.fromhex(text.decode("ascii").removeprefix("0x"))
    except ValueError:
        pass
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return data


def read_root(path: str) -> TrustRoot:
    """The root in a file, DER or PEM; Intel's if it has that key, otherwise one of origin ``simulated``."""
    data = read_input(path, MAX_CERTIFICATE_BYTES, "--root-ca")
    try:
        if b"-----BEGIN" in data:
            (data,) = decode_pem(data, "CERTIFICATE", max_blocks=1, max_bytes=MAX_CERTIFICATE_BYTES)
        root = root_from_certificate(data, f"the root in {path}", Origin.SIMULATED)
    except (MarbleRunError, ValueError) as error:
        raise click.BadParameter(
            f"{path!r} is not one CA certificate in DER or PEM: {error}.", param_hint="--root-ca"
        ) from error
    return INTEL if root.spki_sha256 == INTEL.spki_sha256 else root


def parse_recorded(text: bytes) -> Collateral:
    """The nine-field JSON object; Untrusted of step ``collateral`` if it is something else."""
    try:
        return parse_collateral_json(text)
    except Malformed as error:
        raise Untrusted(str(error), step="collateral", reason="malformed") from error


def refuse(error: MarbleRunError, output: str, root: TrustRoot | None, at: datetime | None) -> NoReturn:
    """Show why the evidence is refused, and end with exit code 3."""
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
            "verified_at": time_text(at),
        }
    show(shown, output, refused_text)
    raise SystemExit(EXIT_REFUSED)


def moment(at: int | None) -> datetime:
    """The time that ``--at`` names, or now."""
    return datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)


def verified(claims: Claims, at: datetime) -> dict[str, Any]:
    """The claims under the names of the recorded vectors' index."""
    platform = claims.platform
    return {
        "ok": True,
        "tee": claims.tee.value,
        "origin": claims.origin.value,
        "simulated": claims.origin is not Origin.HARDWARE,
        "root": claims.root,
        "verified_at": time_text(at),
        "tcb_status": claims.tcb_status.value,
        "advisories": list(claims.advisories),
        "qe_status": claims.parts["qe"].status.value,
        "tcb_date": time_text(claims.tcb_date),
        "tcb_evaluation_number": claims.tcb_evaluation_number,
        "collateral_expires": time_text(claims.collateral_expires),
        "parts": {
            name: {
                "status": part.status.value,
                "tcb_date": time_text(part.tcb_date),
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
        **report_fields(claims.report),
    }


def report_fields(report: SgxReport | TdReport) -> dict[str, Any]:
    """The report under the names of the recorded vectors' index."""
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
        **({} if report.extended is None else _td_extension(report.extended)),
        "report_data": report.report_data.hex(),
    }


def _td_extension(extended: TdExtension) -> dict[str, Any]:
    return {
        "vm_id": extended.vm_id,
        "td_id": extended.td_id.hex(),
        "device_info_hash": extended.device_info_hash.hex(),
        "initial_service_td_hash": extended.initial_service_td_hash.hex(),
        "initial_service_td_attributes": extended.initial_service_td_attributes.hex(),
        "initial_cpusvn": extended.initial_cpusvn.hex(),
        "initial_tee_tcb_svn": extended.initial_tee_tcb_svn.hex(),
        "initial_fmspc": extended.initial_fmspc.hex(),
        "service_td_hash": extended.service_td_hash.hex(),
        "service_td_attributes": extended.service_td_attributes.hex(),
    }


def time_text(value: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def show(shown: Mapping[str, Any], output: str, text: Callable[[Mapping[str, Any]], str]) -> None:
    """Print ``shown`` as JSON or, through ``text``, for people."""
    click.echo(json.dumps(shown, indent=2) if output == "json" else text(shown))


def refused_text(shown: Mapping[str, Any]) -> str:
    """A refusal for people."""
    error = shown["error"]
    lines = [f"REFUSED at step {error['step']} ({error['reason']}): {error['message']}"]
    if "trusted_root" in shown:
        kind = "simulated, no hardware" if shown["simulated"] else "hardware"
        lines.append(f"Trusted root: {shown['trusted_root']} ({kind}); time: {shown['verified_at']}")
    return "\n".join(lines)


def verified_text(shown: Mapping[str, Any]) -> str:
    """Claims for people."""
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
            *columns(rows),
            "",
            "Verified: the quote, its quoting enclave and its platform are the vendor's, at the time given.",
            "Not judged: TCB status, advisories, debug mode, measurements, report data. That is up to you.",
        ]
    )


def _part(part: Mapping[str, Any]) -> str:
    return f"{part['status']} (TCB of {part['tcb_date'][:10]})"


def columns(rows: Mapping[str, Any]) -> list[str]:
    """Names and values below each other, a line for each value of a list."""
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
