"""``sgx_default_qcnl.conf``, the file in which Intel's quote provider library finds its PCCS.

Two forms exist: JSON in which comments are allowed, and the older ``KEY=value`` lines with ``#`` comments.
Source: Intel SGX DCAP, ``QuoteGeneration/qcnl/linux/sgx_default_qcnl.conf``, releases 1.11 and before, 1.12 and later.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from marblerun.errors import Malformed

DEFAULT_PATH: Final = Path("/etc/sgx_default_qcnl.conf")
MAX_QCNL_BYTES: Final = 64 * 1024

# A string, or a comment: strings are matched so that what looks like a comment inside them stays. Whatever begins
# matches, ended or not, so that nothing is scanned twice.
_STRING_OR_COMMENT: Final = re.compile(r'("(?:[^"\\\n]|\\.)*+"?)|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class QcnlSettings:
    """What the file says about the collateral service."""

    pccs_url: str | None = None
    """As written, usually with ``/sgx/certification/v4/`` at the end."""
    use_secure_cert: bool = True
    collateral_service: str | None = None
    """A service of its own for verification collateral; it goes before ``pccs_url``."""


def load_qcnl(path: Path) -> QcnlSettings:
    """The settings in the file at ``path``; OSError if it cannot be read, Malformed, naming it, if it is wrong."""
    with path.open("rb") as file:
        data = file.read(MAX_QCNL_BYTES + 1)
    try:
        return parse_qcnl(data)
    except Malformed as error:
        raise Malformed(str(error), where=str(path)) from error


def parse_qcnl(data: bytes) -> QcnlSettings:
    """The settings in the file's bytes; keys that do not concern collateral are ignored.

    Raises:
        Malformed: it is in neither form, or a value has the wrong type.
    """
    if len(data) > MAX_QCNL_BYTES:
        raise Malformed(f"larger than {MAX_QCNL_BYTES} bytes", where="qcnl")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("not UTF-8", where="qcnl") from None
    without_comments = _STRING_OR_COMMENT.sub(lambda match: match[1] or " ", text)
    if without_comments.lstrip().startswith("{"):
        return _from_json(without_comments)
    return _from_lines(text)


def _from_json(text: str) -> QcnlSettings:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}", where="qcnl") from None
    return QcnlSettings(
        pccs_url=_url(document, "pccs_url"),
        use_secure_cert=_boolean(document.get("use_secure_cert", True), "use_secure_cert"),
        collateral_service=_url(document, "collateral_service"),
    )


def _from_lines(text: str) -> QcnlSettings:
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        name, equals, value = content.partition("=")
        if not equals:
            raise Malformed("neither a comment nor KEY=value", where=f"qcnl, line {number}")
        values[name.strip().upper()] = value.strip()
    secure = values.get("USE_SECURE_CERT", "TRUE").upper()
    if secure not in ("TRUE", "FALSE"):
        raise Malformed("must be TRUE or FALSE", where="qcnl, USE_SECURE_CERT")
    return QcnlSettings(pccs_url=values.get("PCCS_URL") or None, use_secure_cert=secure == "TRUE")


def _url(document: dict[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is not None and not isinstance(value, str):
        raise Malformed("must be a string", where=f"qcnl, {name}")
    return value or None


def _boolean(value: object, name: str) -> bool:
    # The library takes the word as well as the JSON value.
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise Malformed("must be true or false", where=f"qcnl, {name}")
    return value
