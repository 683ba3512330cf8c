"""``marblerun evidence check``: what a Coordinator with a given manifest would say to a quote, and every reason."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from marblerun.attestation.binding import verify_binding
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Origin
from marblerun.attestation.registry import DcapEvidence, Registry
from marblerun.cli.evidence_source import Service, obtain, service_options, trusted_roots
from marblerun.cli.evidence_view import (
    MAX_CERTIFICATE_BYTES,
    columns,
    moment,
    output_option,
    read_input,
    read_quote,
    refuse,
    root_option,
    show,
    time_option,
    time_text,
)
from marblerun.errors import Malformed, MarbleRunError, Untrusted
from marblerun.manifest.model import Manifest
from marblerun.manifest.parse import parse_manifest
from marblerun.policy.admission import Admission, Mismatch, judge
from marblerun.wire.limits import MAX_QUOTE_BYTES
from marblerun.wire.pem import decode_pem

EXIT_DENIED = 4


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--manifest", "manifest_file", required=True, metavar="FILE", help="The manifest, JSON or YAML.")
@click.option("--marble", required=True, metavar="NAME", help="Marble type that the quote wants to join as.")
@click.option("--collateral", "collateral_file", metavar="FILE.json", help="Recorded collateral; nothing is fetched.")
@click.option("--collateral-dir", metavar="DIR", help="Directory of recorded collateral; nothing is fetched.")
@service_options
@root_option
@click.option("--message", metavar="FILE", help="What the report data must cover, as it is.")
@click.option(
    "--report-data-of", "certificate", metavar="CERT", help="The same: a TLS certificate, DER or PEM (first block)."
)
@time_option
@output_option
def check(
    file: str,
    manifest_file: str,
    marble: str,
    collateral_file: str | None,
    collateral_dir: str | None,
    pccs_url: str | None,
    pccs_ca: str | None,
    root_ca: str | None,
    message: str | None,
    certificate: str | None,
    at: int | None,
    output: str,
) -> None:
    """Would a Coordinator with this manifest admit the quote in FILE as this Marble? Every reason if not.

    The very functions decide that decide in a Coordinator. Not looked at: how often the Marble may still start, and,
    without --message or --report-data-of, what the report data covers.
    Exits with 0 if it is admitted, 3 if the evidence is not genuine, 4 if it is genuine and not admitted.

    \b
    Example:
      marblerun evidence check quote.bin --manifest manifest.json --marble frontend
    """
    if collateral_file is not None and collateral_dir is not None:
        raise click.UsageError("--collateral and --collateral-dir exclude each other.")
    if message is not None and certificate is not None:
        raise click.UsageError("--message and --report-data-of exclude each other.")
    quote = read_quote(file)
    manifest, package = _package(manifest_file, marble)
    covered = _message(message, certificate)
    roots, time = trusted_roots(root_ca), moment(at)
    registry = Registry([DcapEvidence(Verifier(roots))])
    try:
        key = registry.collateral_key(quote)
        if key is None:
            raise RuntimeError("a quote needs collateral")
        service = Service(pccs_url, pccs_ca)
        found = obtain(key, time, roots, service, file=collateral_file, directory=collateral_dir)
        claims = registry.verify(quote, found, time)
        assert isinstance(claims, Claims)
        if covered is not None:
            verify_binding(claims.report_data, covered, strict=False)
    except (Malformed, Untrusted) as error:
        refuse(error, output, None, None)
    admission = Admission(frozenset({Origin.HARDWARE, *(root.origin for root in roots)}))
    mismatches = judge(claims, package, manifest.packages[package], manifest.infrastructures, admission)
    show(_result(claims, marble, package, mismatches, covered is not None, time), output, _text)
    if mismatches:
        raise SystemExit(EXIT_DENIED)


def _package(path: str, marble: str) -> tuple[Manifest, str]:
    """The manifest and the name of the package of ``marble``."""
    from marblerun.cli.manifest import load_manifest

    try:
        manifest = parse_manifest(load_manifest(path).json)
    except MarbleRunError as error:
        raise click.BadParameter(f"{path!r} is not a manifest: {error}.", param_hint="--manifest") from error
    if marble not in manifest.marbles:
        known = ", ".join(sorted(manifest.marbles)) or "none"
        raise click.BadParameter(
            f"there is no Marble {marble!r} in the manifest; there are: {known}.", param_hint="--marble"
        )
    package = manifest.marbles[marble].package
    if package not in manifest.packages:
        raise click.BadParameter(f"the manifest has no package {package!r} for it.", param_hint="--marble")
    return manifest, package


def _message(message: str | None, certificate: str | None) -> bytes | None:
    if message is not None:
        return read_input(message, MAX_QUOTE_BYTES, "--message")
    if certificate is None:
        return None
    data = read_input(certificate, MAX_CERTIFICATE_BYTES, "--report-data-of")
    if b"-----BEGIN" not in data:
        return data
    try:
        return decode_pem(data, "CERTIFICATE", max_blocks=8)[0]
    except Malformed as error:
        raise click.BadParameter(f"{certificate!r}: {error}.", param_hint="--report-data-of") from error


def _result(
    claims: Claims, marble: str, package: str, mismatches: tuple[Mismatch, ...], bound: bool, at: datetime
) -> dict[str, Any]:
    return {
        "admitted": not mismatches,
        "marble": marble,
        "package": package,
        "tee": claims.tee.value,
        "origin": claims.origin.value,
        "simulated": claims.origin is not Origin.HARDWARE,
        "root": claims.root,
        "verified_at": time_text(at),
        "tcb_status": claims.tcb_status.value,
        "advisories": list(claims.advisories),
        "report_data_checked": bound,
        "mismatches": [
            {"code": one.code, "path": one.path, "expected": one.expected, "actual": one.actual} for one in mismatches
        ],
    }


def _text(shown: Mapping[str, Any]) -> str:
    verdict = "ADMITTED" if shown["admitted"] else "NOT ADMITTED"
    simulated = ", BUT SIMULATED: no hardware stands behind it" if shown["simulated"] else ""
    hidden = ("admitted", "simulated", "mismatches")
    lines = [verdict + simulated, *columns({name: value for name, value in shown.items() if name not in hidden})]
    for one in shown["mismatches"]:
        lines.append(f"- {one['path']}: expected {one['expected']}, evidence says {one['actual']} [{one['code']}]")
    if not shown["report_data_checked"]:
        lines.append("Not checked: what the report data covers; give --message or --report-data-of.")
    return "\n".join(lines)
