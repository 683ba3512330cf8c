"""Findings as SARIF, the form in which code hosts and editors take the results of linters.

Source: OASIS SARIF 2.1.0, sections 3.13, 3.19, 3.27, 3.29, 3.30.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

from marblerun.manifest.lint import Finding
from marblerun.manifest.rules import RULES
from marblerun.version import __version__

SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"


def sarif_log(file: str, findings: Iterable[Finding]) -> dict[str, Any]:
    """One run over one file, with the rules in the order of their table."""
    numbers = {rule: index for index, rule in enumerate(RULES)}
    rules = [
        {"id": name, "shortDescription": {"text": rule.why}, "defaultConfiguration": {"level": rule.severity.value}}
        for name, rule in RULES.items()
    ]
    driver = {"name": "marblerun-manifest-lint", "version": __version__, "rules": rules}
    results = [_result(quote(file), numbers[finding.rule], finding) for finding in findings]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(uri: str, number: int, finding: Finding) -> dict[str, Any]:
    region = {"startLine": finding.line, "startColumn": finding.column}
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": region}}
    if finding.path:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.path}]
    text = f"{finding.message}; {finding.hint}" if finding.hint else finding.message
    return {
        "ruleId": finding.rule,
        "ruleIndex": number,
        "level": finding.severity.value,
        "message": {"text": text},
        "locations": [location],
    }
