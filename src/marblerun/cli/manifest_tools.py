"""``marblerun manifest lint|schema|diff|render``: for people who write manifests. All of them work offline."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import click

from marblerun.cli import exit_codes
from marblerun.cli.connection import read_file
from marblerun.cli.manifest import load_manifest
from marblerun.cli.options import Command, with_global_options
from marblerun.cli.output import emit, emit_json, for_terminal, format_option, note
from marblerun.errors import Malformed
from marblerun.wire.limits import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from marblerun.coordinator.commands.activate import Activated
    from marblerun.manifest.lint import Finding
    from marblerun.manifest.meaning import Meaning
    from marblerun.manifest.model import Manifest

SEVERITIES: Final = ("error", "warning", "note")


@click.command("lint", cls=Command)
@click.argument("file", metavar="FILE", type=click.Path())
@click.option(
    "-o",
    "--output",
    "--format",
    "output_format",
    type=click.Choice(("text", "json", "sarif")),
    default="text",
    help="Form of the result.",
)
@click.option("--json", "output_format", flag_value="json", type=str, help="The same as --format json.")
@click.option(
    "--fail-on",
    type=click.Choice(SEVERITIES),
    default="warning",
    help="Lowest severity that gives an exit code other than 0. Default: warning.",
)
@with_global_options
def lint(file: str, output_format: str, fail_on: str) -> int:
    """Find mistakes and dangers in a manifest: what a Coordinator would refuse, and what you may not want.

    Each finding has a severity, a rule, its place in the file (JSON or YAML) and what to do. An error means that a
    Coordinator refuses the manifest, a warning that it is probably wrong or dangerous, a note that it is worth knowing.
    docs/lint-rules.md explains the rules. Exit code: 7 if there is an error, 10 if there is a warning (or a note with
    --fail-on note) and no error, 0 otherwise.

    \b
    Example:
      marblerun manifest lint manifest.yaml -o sarif
    """
    findings = _lint(read_file(Path(file), MAX_MANIFEST_BYTES))
    if output_format == "sarif":
        from marblerun.cli.sarif import sarif_log

        emit_json(sarif_log("stdin" if file == "-" else file, findings))
    elif output_format == "json":
        emit_json({"findings": [_finding_fields(finding) for finding in findings], **_counts(findings)})
    else:
        for finding in findings:
            emit(for_terminal(_finding_line(file, finding)))
        note(_summary(findings))
    worst = min((SEVERITIES.index(finding.severity) for finding in findings), default=len(SEVERITIES))
    if worst > SEVERITIES.index(fail_on):
        return exit_codes.OK
    return exit_codes.exit_code(Malformed("")) if worst == 0 else exit_codes.FINDINGS


def _lint(raw: bytes) -> tuple[Finding, ...]:
    from marblerun.client.yaml_json import BadYaml, manifest_document
    from marblerun.manifest.lint import lint_document, undecodable, unreadable
    from marblerun.wire.gojson import BadJson

    try:
        return (*undecodable(raw), *lint_document(manifest_document(raw)))
    except BadJson as error:
        return tuple(unreadable(fault.message, fault.line, fault.column) for fault in error.faults)
    except BadYaml as error:
        return (unreadable(error.reason, error.line, error.column),)
    except Malformed as error:
        return (unreadable(error.message),)


def _finding_line(file: str, finding: Finding) -> str:
    place = f"{file}:{finding.line}:{finding.column}"
    path = f" ({finding.path})" if finding.path else ""
    hint = f"\n    {finding.hint}" if finding.hint else ""
    return f"{place}: {finding.severity.value}: {finding.message} [{finding.rule}]{path}{hint}"


def _finding_fields(finding: Finding) -> dict[str, object]:
    return {
        "severity": finding.severity.value,
        "rule": finding.rule,
        "path": finding.path,
        "line": finding.line,
        "column": finding.column,
        "message": finding.message,
        "hint": finding.hint,
    }


def _counts(findings: tuple[Finding, ...]) -> dict[str, int]:
    return {f"{name}s": sum(finding.severity == name for finding in findings) for name in SEVERITIES}


def _summary(findings: tuple[Finding, ...]) -> str:
    counts = [
        f"{count} {name.removesuffix('s') if count == 1 else name}"
        for name, count in _counts(findings).items()
        if count
    ]
    return ", ".join(counts) or "No findings"


@click.command("schema", cls=Command)
@with_global_options
def schema() -> None:
    """Print a JSON Schema (2020-12) of manifests, for editors.

    It accepts every valid manifest and rejects what a schema can tell: wrong types, numbers out of range, unknown
    words. Whether names that refer to each other exist is for 'marblerun manifest lint'.

    \b
    Example:
      marblerun manifest schema > manifest.schema.json
    """
    from marblerun.manifest.schema import manifest_schema

    emit_json(manifest_schema())


@click.command("diff", cls=Command)
@click.argument("old", metavar="OLD", type=click.Path())
@click.argument("new", metavar="NEW", type=click.Path())
@format_option(short=True)
@with_global_options
def diff(old: str, new: str, output_format: str) -> None:
    """Show what a new manifest means, not which lines differ: who may join, read and change what could not before.

    '+' marks what somebody may do now, '-' what nobody or fewer may do, '~' other changes. At the end: what must be
    restarted. NEW may be a package update, which holds nothing but packages with higher security versions.

    \b
    Example:
      marblerun manifest diff manifest.json new-manifest.json
    """
    from marblerun.manifest.meaning import meaning

    before, after = _parsed(old), _parsed(new)
    _require_usable(before, after, new)
    found = meaning(before, after)
    if output_format == "json":
        emit_json(_meaning_fields(found))
    else:
        emit(for_terminal(_meaning_text(found)))


def _parsed(file: str) -> Manifest:
    from marblerun.manifest.parse import parse_manifest

    return parse_manifest(load_manifest(file).json)


def _require_usable(old: Manifest, new: Manifest, file: str) -> None:
    from marblerun.manifest.changes import is_package_update
    from marblerun.manifest.check import check_manifest, check_material
    from marblerun.manifest.report import Report

    if not is_package_update(new):
        errors = (check_manifest(new, {}) + check_material(new)).errors
        Report(tuple(error for error in errors if error.code != "feature-gate-environment")).raise_if_bad()
        return
    for name, package in sorted(new.packages.items()):
        if name not in old.packages:
            raise Malformed(f"package update: package {name} is not in the old manifest", where=file)
        if package.security_version is None:
            raise Malformed(f"package update: package {name} has no SecurityVersion", where=file)


_TITLES: Final = {
    "join": "Who may join",
    "read": "Who may read secrets",
    "change": "Who may change what",
    "recover": "Who can recover the state",
    "secrets": "Secrets",
    "run": "What Marbles run with",
    "coordinator": "The Coordinator",
}
_MARKS: Final = {"gain": "+", "loss": "-", "other": "~"}


def _meaning_text(found: Meaning) -> str:
    if not found.statements:
        return "No difference in meaning"
    lines: list[str] = []
    title = ""
    for statement in found.statements:
        if _TITLES[statement.topic] != title:
            title = _TITLES[statement.topic]
            lines.append(title)
        lines.append(f"  {_MARKS[statement.effect]} {statement.text}")
    return "\n".join([*lines, "After the update", *(f"  {line}" for line in _afterwards(found))])


def _afterwards(found: Meaning) -> list[str]:
    lines = []
    if found.restart_marbles:
        lines.append(f"restart {', '.join(found.restart_marbles)}: they go on as before until then")
    lines.append("running Marbles and those started later trust each other only after the running ones are restarted,")
    lines.append("because every update makes a new intermediate CA")
    if found.new_recovery_data:
        lines.append("keep the new recovery data: the old recovery secrets become useless")
    return lines


def _meaning_fields(found: Meaning) -> dict[str, object]:
    changes = [
        {"topic": s.topic.value, "effect": s.effect.value, "path": s.path, "text": s.text} for s in found.statements
    ]
    return {
        "update": found.kind.value,
        "changes": changes,
        "restart": {"marbles": list(found.restart_marbles), "coordinator": False},
        "newIntermediateCA": bool(found.statements),
        "newRecoveryData": found.new_recovery_data,
    }


def _uuid(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if value and not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value, re.ASCII):
        raise click.BadParameter("not a UUID such as d3b07384-d113-4ec6-8f2a-1c2d3e4f5a6b")
    return value


@click.command("render", cls=Command)
@click.argument("file", metavar="FILE", type=click.Path())
@click.option("--marble", metavar="NAME", required=True, help="Which Marble.")
@click.option("--uuid", metavar="UUID", default="", callback=_uuid, help="Of which instance. Default: a random one.")
@format_option(short=True)
@with_global_options
def render(file: str, marble: str, uuid: str, output_format: str) -> None:
    """Show what a Marble would get: files, environment and arguments, with placeholders for all secrets.

    The manifest is checked, its templates are tried and the Marble is activated by the Coordinator's own code, with a
    CA and secrets that are made up now and forgotten at once. Values that are not text are shown in base64, and what
    is inside of PEM blocks only with -o json.

    \b
    Example:
      marblerun manifest render manifest.json --marble frontend
    """
    from marblerun.coordinator.commands import Inputs
    from marblerun.coordinator.commands.render import render_marble
    from marblerun.coordinator.entropy import SystemEntropy

    raw = load_manifest(file).json
    activated = render_marble(raw, marble, uuid or str(uuid4()), Inputs(datetime.now(UTC), SystemEntropy()))
    if output_format == "json":
        emit_json(_rendered_fields(activated))
    else:
        note("All secrets are placeholders")
        emit(_rendered_text(activated))


def _readable(value: bytes) -> tuple[str, str]:
    """A value as text, and how it is written."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode(), "base64"
    return (text, "string") if for_terminal(text) == text else (base64.b64encode(value).decode(), "base64")


def _rendered_fields(activated: Activated) -> dict[str, Any]:
    def written(values: Mapping[str, bytes]) -> dict[str, dict[str, str]]:
        pairs = {name: _readable(value) for name, value in sorted(values.items())}
        return {name: {"Data": text, "Encoding": encoding} for name, (text, encoding) in pairs.items()}

    return {"Argv": list(activated.argv), "Env": written(activated.env), "Files": written(activated.files)}


_PEM: Final = re.compile(r"(-----BEGIN ([A-Z ]+)-----).*?(-----END \2-----)", re.DOTALL)


def _rendered_text(activated: Activated) -> str:
    lines = ["Arguments", *(f"  {for_terminal(argument)!r}" for argument in activated.argv)]
    for title, values in (("Environment", activated.env), ("Files", activated.files)):
        lines.append(title)
        for name, value in sorted(values.items()):
            text, encoding = _readable(value)
            lines.append(f"  {for_terminal(name)}{' (base64)' if encoding == 'base64' else ''}")
            lines += (f"    {line}" for line in _PEM.sub(r"\1...\3", text).splitlines() or [""])
    return "\n".join(lines)
