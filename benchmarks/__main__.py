"""``python -m benchmarks``: every row of the speed goals with its floor or peer, in one run on this machine.

Absolute times depend on the machine and its neighbours; the ratios of one run do not. docs/performance.md says how
each row is measured, and how to point this at another server.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.effort import FULL, SHORT, Effort
from benchmarks.elsewhere import ELSEWHERE, rows_elsewhere, target_from_options
from benchmarks.manifests import typical
from benchmarks.marbles import CallFailed
from benchmarks.rows_activation import activation_rows
from benchmarks.rows_evidence import verification_row
from benchmarks.rows_serving import serving_rows
from benchmarks.rows_waiting import waiting_rows
from benchmarks.table import Row, as_markdown, as_text, text_header
from marblerun.cli.pipe import until_reader_leaves
from marblerun.errors import MarbleRunError

Measure = Callable[[Effort, Sequence[str]], Sequence[Row]]

FAMILIES: tuple[tuple[tuple[str, ...], Measure], ...] = (
    (("typical", "p256", "durable", "large-mesh", "rsa-mesh"), activation_rows),
    (("latency", "crowd"), waiting_rows),
    (("requests", "start"), serving_rows),
    (("verification",), lambda effort, _keys: [verification_row(effort)]),
    (("memory",), serving_rows),
)
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
KEYS = tuple(key for keys, _ in FAMILIES for key in keys)


def measure(effort: Effort, wanted: Sequence[str]) -> Iterator[Sequence[Row]]:
    """The rows that are wanted, one by one."""
    for keys, family in FAMILIES:
        for key in keys:
            if key in wanted:
                yield family(effort, [key])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", metavar="ROW", action="append", choices=KEYS, help="measure this row; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--output", choices=("text", "markdown", "json"), default="text", help="default %(default)s")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything that was measured there, too")
    parser.add_argument("--into", metavar="FILE", type=Path, help="put the Markdown between the marks of a document")
    parser.add_argument("--short", action="store_true", help="a few calls a row: does it work; no numbers to believe")
    parser.add_argument("--rounds", type=int, help=f"paired rounds of a ratio (default {FULL.rounds})")
    parser.add_argument("--calls", type=int, help=f"calls a round (default {FULL.calls})")
    parser.add_argument(
        "--memory-calls",
        type=int,
        metavar="N",
        help=f"activations, and refused ones, of the row 'memory' (default {FULL.memory_calls})",
    )
    parser.add_argument("--crowd", type=int, metavar="N", help=f"Marbles of the row 'crowd' (default {FULL.crowd})")
    other = parser.add_argument_group(
        "another server", f"Measure a server that somebody else started: the rows {', '.join(ELSEWHERE)}."
    )
    other.add_argument("--mesh", metavar="HOST:PORT", help="its Marble API")
    other.add_argument("--client", metavar="HOST:PORT", help="its client API")
    other.add_argument("--pid", type=int, help="its process on this machine; without it there is no CPU, only time")
    other.add_argument("--marble", metavar="TYPE", default="service", help="activated (default %(default)s)")
    other.add_argument("--set-manifest", metavar="FILE", help="set this manifest first; '-' for the one of 'typical'")
    other.add_argument("--print-manifest", action="store_true", help="print the manifest of 'typical' and end")
    options = parser.parse_args(arguments)
    if problem := _problem_of(options):
        parser.error(problem)
    return options


def _problem_of(options: argparse.Namespace) -> str:
    """What about the other server cannot be meant; nothing of it may be passed over in silence."""
    if not (options.mesh or options.client):
        about_it = ("pid", "set_manifest")
        given = [f"--{name.replace('_', '-')}" for name in about_it if getattr(options, name) is not None]
        return f"{given[0]} is about another server: name it with --mesh, --client or both" if given else ""
    if options.pid is not None and not Path(f"/proc/{options.pid}").is_dir():
        return f"--pid: there is no process {options.pid} on this machine"
    possible = [key for key in ELSEWHERE if (options.client if key == "requests" else options.mesh)]
    missing = [key for key in options.only or () if key not in possible]
    return f"--only {missing[0]}: of that server these can be measured: {', '.join(possible)}" if missing else ""


def effort_of(options: argparse.Namespace) -> Effort:
    """How much is measured."""
    effort = SHORT if options.short else FULL
    given = {name: getattr(options, name) for name in ("rounds", "calls", "memory_calls", "crowd")}
    return replace(effort, **{name: value for name, value in given.items() if value is not None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 even if goals are missed: a benchmark is not a test. 1: another server does not answer."""
    options = parse(arguments)
    if options.list or options.print_manifest:
        print("\n".join(KEYS) if options.list else json.dumps(typical(), indent=2))
        return 0
    facts, began, effort = machine.facts(), time.monotonic(), effort_of(options)
    is_text = options.output == "text"
    if is_text:
        print("\n".join(f"{name}: {value}" for name, value in facts.items()), end="\n\n")
        print(text_header(), flush=True)
    elsewhere = bool(options.mesh or options.client)
    rows: list[Row] = []
    try:
        for family in _families(options, effort, elsewhere):
            rows += family
            if is_text:
                print(as_text(family), flush=True)
    except (MarbleRunError, CallFailed, OSError, RuntimeError) as error:
        if not elsewhere:
            raise
        print(f"error: that server cannot be measured: {error}", file=sys.stderr)
        return 1
    facts["seconds"] = f"{time.monotonic() - began:.0f}"
    document = {"machine": facts, "rows": [row.as_json() for row in rows]}
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.into is not None:
        options.into.write_text(put_between_marks(options.into.read_text(), as_page(rows, facts)))
    _show(options.output, rows, facts, document)
    return 0


def _families(options: argparse.Namespace, effort: Effort, elsewhere: bool) -> Iterator[Sequence[Row]]:
    if elsewhere:
        return rows_elsewhere(effort, target_from_options(options), options.only or KEYS)
    return measure(effort, options.only or KEYS)


def put_between_marks(document: str, table: str) -> str:
    """The document with the table in place of the one that it has; ValueError if it has no place for one."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def as_page(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """The Markdown of facts and table."""
    return "; ".join(f"{name} {value}" for name, value in facts.items()) + "\n\n" + as_markdown(rows)


def _show(output: str, rows: Sequence[Row], facts: dict[str, str], document: dict[str, Any]) -> None:
    if output == "json":
        print(json.dumps(document, indent=1))
    elif output == "markdown":
        print(as_page(rows, facts))
    else:
        checks = [check for row in rows for check in row.checks if check.limit is not None]
        met = sum(check.is_met for check in checks)
        print(f"\n{met} of {len(checks)} goals met, {facts['seconds']} s" if checks else f"\n{facts['seconds']} s")
        if met < len(checks):
            print('what is missed, and why it cannot be had: docs/performance.md, "The budget of one activation"')


if __name__ == "__main__":
    sys.exit(until_reader_leaves(main))
