"""The data that all template tests run over; the Go program beside them reads the same file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marblerun.errors import Malformed
from marblerun.manifest.templates import (
    ENV_FUNCTIONS,
    FILE_FUNCTIONS,
    FunctionSet,
    ReservedSecrets,
    TemplateData,
    compile_template,
)
from marblerun.secrets.model import Secret

FUNCTIONS: Mapping[str, FunctionSet] = {"files": FILE_FUNCTIONS, "env": ENV_FUNCTIONS}
_FILE = Path(__file__).parents[2] / "go" / "tmpldiff" / "manifest" / "data.json"


def _secret(entry: Mapping[str, Any]) -> Secret:
    return Secret(
        type=entry.get("Type", ""),
        size=entry.get("Size", 0),
        shared=entry.get("Shared", False),
        user_defined=entry.get("UserDefined", False),
        valid_for=entry.get("ValidFor", 0),
        certificate=base64.b64decode(entry.get("Cert", "")),
        private=base64.b64decode(entry.get("Private", "")),
        public=base64.b64decode(entry.get("Public", "")),
    )


def _load() -> TemplateData:
    stored = json.loads(_FILE.read_bytes())
    reserved = stored["MarbleRun"]
    return TemplateData(
        marblerun=ReservedSecrets(
            root_ca=_secret(reserved["RootCA"]),
            marble_cert=_secret(reserved["MarbleCert"]),
            coordinator_root=_secret(reserved["CoordinatorRoot"]),
            coordinator_intermediate=_secret(reserved["CoordinatorIntermediate"]),
        ),
        secrets={name: _secret(entry) for name, entry in stored["Secrets"].items()},
        previous={name: _secret(entry) for name, entry in stored["Previous"].items()},
    )


SAMPLE = _load()
KEY = bytes(range(0xF0, 0x100))
"""The bytes of ``.Secrets.key``."""


def render(text: bytes | str, functions: str = "files", data: TemplateData = SAMPLE) -> bytes:
    """What our engine prints."""
    return compile_template(text, FUNCTIONS[functions]).execute(data)


def refusal(text: bytes | str, functions: str = "files", data: TemplateData = SAMPLE) -> str:
    """The message of our engine's refusal; empty if it does not refuse."""
    try:
        render(text, functions, data)
    except Malformed as error:
        return str(error)
    return ""
