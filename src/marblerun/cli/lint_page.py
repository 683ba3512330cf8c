"""Writes ``docs/lint-rules.md`` from the table of rules: ``python -m marblerun.cli.lint_page > docs/lint-rules.md``."""

from __future__ import annotations

import sys
from typing import Final

from marblerun.cli.pipe import until_reader_leaves
from marblerun.manifest.rules import RULES, Severity

_INTRODUCTION: Final = """\
# What the linter says

<!-- Made by `python -m marblerun.cli.lint_page`; a test compares. Edit manifest/rules.py, not this page. -->

`marblerun manifest lint FILE` reads a manifest (JSON or YAML) and tells everything worth saying about it: what a
Coordinator would refuse, what is probably not meant, and what is dangerous. It needs no Coordinator.

Each finding has its place in the file, a severity, the rule's name, the path in the manifest, and what to do:

```
manifest.json:7:4: warning: unknown key SecurityVersoin [key-unknown] (Packages.web.SecurityVersoin)
    did you mean SecurityVersion?
```

`-o json` prints the same for programs, `-o sarif` in the form that code hosts and editors read (SARIF 2.1.0).

| exit code | when |
|---|---|
| 0 | nothing at or above the severity of `--fail-on`, which is `warning` unless given |
| 10 | warnings (or notes, with `--fail-on note`), and no error |
| 7 | at least one error, or the file cannot be read as a manifest |

"""

_TITLES: Final = {
    Severity.ERROR: ("Errors", "A Coordinator refuses the manifest."),
    Severity.WARNING: ("Warnings", "Accepted, and probably not what was meant, or dangerous."),
    Severity.NOTE: ("Notes", "Worth knowing."),
}


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for severity, (title, meaning) in _TITLES.items():
        rows = [f"| `{name}` | {rule.why} |" for name, rule in RULES.items() if rule.severity is severity]
        parts.append("\n".join([f"## {title}", "", meaning, "", "| rule | why |", "|---|---|", *rows, "", ""]))
    return "".join(parts).rstrip("\n") + "\n"


if __name__ == "__main__":
    sys.exit(until_reader_leaves(lambda: print(render(), end="")))
