"""``marblerun version``."""

from __future__ import annotations

import json
import platform
from importlib import metadata

import click

from marblerun.cli.options import Command, with_global_options
from marblerun.cli.output import emit, emit_json, format_option
from marblerun.version import __version__


@click.command("version", cls=Command)
@format_option(short=True)
@with_global_options
def version(output_format: str) -> None:
    """Show the version of this program and of what its cryptography rests on.

    \b
    Example:
      marblerun version -o json
    """
    from cryptography.hazmat.backends.openssl import backend

    facts = {
        "CLI Version": f"v{__version__}",
        "Commit": _commit() or "unknown",
        "Python": platform.python_version(),
        "OpenSSL": backend.openssl_version_text(),
    }
    if output_format == "json":
        emit_json({"version": __version__, "commit": _commit(), "python": facts["Python"], "openssl": facts["OpenSSL"]})
        return
    for name, value in facts.items():
        emit(f"{name}: {value}")


def _commit() -> str:
    """The commit this was installed from, if the installer wrote it down (PEP 610)."""
    try:
        text = metadata.distribution("marblerun").read_text("direct_url.json") or "{}"
        commit = json.loads(text).get("vcs_info", {}).get("commit_id", "")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return ""
    return commit if isinstance(commit, str) else ""
