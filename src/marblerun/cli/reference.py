"""Writes ``docs/cli.md`` from the commands themselves: ``python -m marblerun.cli.reference > docs/cli.md``."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from typing import Final

import click

from marblerun.cli.exit_codes import TABLE
from marblerun.cli.main import cli
from marblerun.cli.options import GlobalOption
from marblerun.cli.pipe import until_reader_leaves

_INTRODUCTION: Final = """\
# The command line

<!-- Made by `python -m marblerun.cli.reference`; a test compares. Edit the commands, not this page. -->

`marblerun NOUN VERB [OPTIONS] ARGUMENTS`. A Coordinator's address is `IP:PORT` and always the last argument. Results go
to standard output; notes, warnings and errors (`Error: ...`) go to standard error. Files are written with mode 0600 and
replaced in one step.

## What is verified, and when

Every command that talks to a Coordinator verifies it first. Nothing but the request for a quote is sent before that.

* `manifest set`, `get` and `verify`, and `certificate` attest: they fetch the quote over a connection that is not
  trusted yet, verify it with the vendor's collateral, check that it covers the Coordinator's root certificate and a
  fresh nonce, and judge it by the attestation policy. From then on the connection must present exactly that root.
* `manifest log`, `manifest update`, `secret` and `status` pin the root that `manifest set` or `manifest verify` left in
  the certificate cache. With an explicit `--era-config` they attest instead, cache or not. With neither they refuse.
* `--insecure` skips all of this and says so. The policy file cannot switch verification off.

The attestation policy (`--era-config`) is a JSON object: `UniqueID` (MRENCLAVE), or `SignerID` (MRSIGNER) with
`ProductID` and `SecurityVersion` (the lowest accepted); optional are `Debug`, `AcceptedTCBStatuses` and
`AcceptedAdvisories`, and `TDX`, an object with the keys that packages have in a manifest, for a Coordinator that runs
in a TD. Without the option `./era-config.json` is used. Nothing is ever downloaded.

Collateral comes from `--pccs-url` or `EDG_PCCS_URL`, else from Intel; `EDG_PCCS_CA_FILE`, `EDG_PCCS_TIMEOUT` and
`EDG_COLLATERAL_CACHE_DIR` as for the Coordinator. `EDG_SIMULATED_PLATFORM=DIR` adds the root of a simulated platform,
loudly.

## Machine-readable output

`-o/--output FILE` means a file on `manifest get`, `manifest log`, `manifest update get`, `certificate` and `secret
get`, as it does in the reference. JSON is `--format json` or `--json` on every command whose result is not a document
anyway; commands without an output file take `-o json` too.

## Exit codes

| code | when |
|---|---|
"""

_AFTER_CODES: Final = """
## Global options

Accepted before and after the names of the commands; what stands nearest to the verb wins.

"""


def render() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, *(f"| {row.code} | {row.meaning} |\n" for row in TABLE), _AFTER_CODES]
    context = click.Context(cli, info_name="marblerun")
    parts.append(_options(cli, context, shared=True))
    parts.append("\n## Commands\n")
    for child in _below(cli, context):
        parts.extend(_sections(child, 3))
    return "".join(parts)


def _sections(context: click.Context, depth: int) -> Iterator[str]:
    command = context.command
    pieces = [piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
    yield f"\n{'#' * min(depth, 5)} {context.command_path}\n\n"
    yield f"`{' '.join([context.command_path, '[OPTIONS]', *pieces])}`\n\n"
    yield f"{_help(command)}\n"
    yield _options(command, context, shared=False)
    for child in _below(command, context):
        yield from _sections(child, depth + 1)


def _below(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield click.Context(child, info_name=name, parent=context)


def _help(command: click.Command) -> str:
    """The docstring and epilog as paragraphs; what click keeps as it is becomes a code block."""
    parts = []
    text = "\n\n".join(inspect.cleandoc(part) for part in (command.help, command.epilog) if part)
    for paragraph in text.split("\n\n"):
        if not paragraph.startswith("\b"):
            parts.append(f"{paragraph}\n")
            continue
        title, _, rest = paragraph.removeprefix("\b").strip("\n").partition("\n")
        if rest.startswith("  "):
            parts.append(f"{title}\n\n```\n{inspect.cleandoc(rest)}\n```\n")
        else:
            parts.append(f"{title}\n{rest}\n")
    return "\n".join(parts)


def _options(command: click.Command, context: click.Context, *, shared: bool) -> str:
    rows = []
    for param in command.params:
        if isinstance(param, click.Option) and isinstance(param, GlobalOption) == shared and not param.hidden:
            record = param.get_help_record(context)
            if record is not None:
                name, meaning = (text.replace("|", "\\|") for text in record)
                rows.append(f"| `{name}` | {meaning.replace('<', '&lt;')} |")
    if not rows:
        return ""
    return "\n".join(["| option | meaning |", "|---|---|", *rows, ""])


if __name__ == "__main__":
    # What click shows depends on the terminal's width; the page does not.
    os.environ["COLUMNS"] = "120"
    sys.exit(until_reader_leaves(lambda: print(render(), end="")))
