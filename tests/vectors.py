"""The recorded evidence in ``index.json``: found, loaded, and the negative ones derived from their base.

Found in ``../shared/vectors`` from the project's root or where ``MARBLERUN_VECTORS`` says; a clone without them skips
the tests that need them, loudly.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest

from marblerun.attestation.dcap.collateral import parse_collateral_json
from marblerun.attestation.model import Collateral, Origin, TrustRoot
from marblerun.attestation.roots import INTEL, root_from_certificate

# How many entries the recorded index has for the technologies tested here; shown when they have to be skipped.
EXPECTED_DCAP_VECTORS = 78

_TEXT_FIELDS = {"tcb_info": "tcb_info_signature", "qe_identity": "qe_identity_signature"}


def vectors_directory() -> Path | None:
    """Where the vectors are, or ``None``."""
    default = Path(__file__).resolve().parents[1] / "../shared/vectors"
    directory = Path(os.environ.get("MARBLERUN_VECTORS", default))
    return directory if (directory / "index.json").is_file() else None


@dataclass(frozen=True)
class Vector:
    """One entry: evidence and collateral in hand, and what verification must give."""

    name: str
    quote: bytes
    collateral: Collateral | None
    collateral_json: str | None
    at: datetime | None
    root: TrustRoot
    root_certificate: bytes | None
    expected: dict[str, Any]
    identity: dict[str, Any]
    dcap_qvl: Any

    @property
    def ok(self) -> bool | None:
        """Whether it is genuine; ``None`` for entries without collateral, which can only be parsed."""
        value = self.expected["ok"]
        assert value is None or isinstance(value, bool)
        return value

    def verifiable(self) -> tuple[Collateral, datetime]:
        """Collateral and time; only for entries that have them."""
        assert self.collateral is not None
        assert self.at is not None
        return self.collateral, self.at


@lru_cache(maxsize=1)
def _index() -> dict[str, dict[str, Any]]:
    directory = vectors_directory()
    if directory is None:
        return {}
    entries = json.loads((directory / "index.json").read_text())["vectors"]
    return {entry["name"]: entry for entry in entries}


def names(*prefixes: str) -> list[str]:
    """The names of all entries under ``prefixes`` (``sgx``, ``tdx``, ``sim``, ``negative``) that can be built."""
    return [name for name in _index() if name.split("/")[0] in prefixes]


def parameters(*prefixes: str) -> list[Any]:
    """The names as pytest parameters; one skipped parameter that says how many are missing if there are none."""
    if vectors_directory() is None:
        reason = f"no vectors: about {EXPECTED_DCAP_VECTORS} recorded quotes are not tested; set MARBLERUN_VECTORS"
        return [pytest.param("missing", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(name, id=name) for name in names(*prefixes)]


def load(name: str) -> Vector:
    """The entry called ``name``; a negative one is derived from its base. Skips if a file it needs is not there."""
    if name not in _index():
        pytest.skip(f"vector {name} is not there")
    entry = _index()[name]
    return _derive(entry) if "derive" in entry else _recorded(entry)


@cache
def _read(path: str) -> bytes:
    directory = vectors_directory()
    assert directory is not None
    return (directory / path).read_bytes()


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _recorded(entry: dict[str, Any]) -> Vector:
    files = entry["files"]
    text = _read(files["collateral"]).decode() if "collateral" in files else None
    certificate = _read(files["root_ca"]) if "root_ca" in files else None
    return Vector(
        name=entry["name"],
        quote=_read(files["quote"]),
        collateral=None if text is None else parse_collateral_json(text),
        collateral_json=text,
        at=_time(entry["verify_at"]),
        root=root_from_certificate(certificate, entry["name"], Origin.SIMULATED) if certificate else INTEL,
        root_certificate=certificate,
        expected=entry["expected"],
        identity=entry.get("identity", {}),
        dcap_qvl=entry.get("dcap_qvl_0_7_0"),
    )


def _derive(entry: dict[str, Any]) -> Vector:
    base = load(entry["base"])
    assert base.collateral_json is not None
    quote, members = base.quote, json.loads(base.collateral_json)
    at: int = entry["verify_at"]
    for recipe in entry["derive"]:
        if recipe.get("set") == "verify_at":
            at = recipe["value"]
        elif _target(recipe) == "quote":
            quote = _change_quote(quote, recipe)
        else:
            _change_collateral(members, recipe)
    text = json.dumps(members)
    return replace(
        base,
        name=entry["name"],
        quote=quote,
        collateral=parse_collateral_json(text),
        collateral_json=text,
        at=_time(at),
        expected=entry["expected"],
        dcap_qvl=entry.get("dcap_qvl_0_7_0"),
    )


def _target(recipe: dict[str, Any]) -> str:
    operations = ("xor", "truncate", "append", "set_u32", "replace_in", "flip_first_nibble", "take", "set")
    return str(next(recipe[operation] for operation in operations if operation in recipe))


def _change_quote(quote: bytes, recipe: dict[str, Any]) -> bytes:
    changed = bytearray(quote)
    if "xor" in recipe:
        changed[recipe["offset"]] ^= recipe["value"]
    elif "truncate" in recipe:
        del changed[recipe["to"] :]
    elif "append" in recipe:
        changed += bytes.fromhex(recipe["bytes"])
    elif "set_u32" in recipe:
        changed[recipe["offset"] : recipe["offset"] + 4] = int(recipe["value"]).to_bytes(4, "little")
    else:
        raise NotImplementedError(recipe)
    return bytes(changed)


def _change_collateral(members: dict[str, str], recipe: dict[str, Any]) -> None:
    field = _target(recipe)
    if "set" in recipe:
        members[field] = recipe["value"]
    elif "xor" in recipe:
        changed = bytearray.fromhex(members[field])
        changed[recipe["offset"]] ^= recipe["value"]
        members[field] = changed.hex()
    elif "flip_first_nibble" in recipe:
        members[field] = f"{int(members[field][0], 16) ^ 1:x}{members[field][1:]}"
    elif "replace_in" in recipe:
        before, after = recipe["what"].removeprefix("first ").split(" -> ")
        assert before in members[field]
        members[field] = members[field].replace(before, after, 1)
    elif "take" in recipe:
        _take(members, field, recipe)
    else:
        raise NotImplementedError(recipe)


def _take(members: dict[str, str], field: str, recipe: dict[str, Any]) -> None:
    source = members
    if "from" in recipe:
        text = load(recipe["from"]).collateral_json
        assert text is not None
        source = json.loads(text)
    members[recipe.get("as", field)] = source[field]
    if field in _TEXT_FIELDS:
        # A signed text comes with its signature, or the signature would be what fails.
        members[_TEXT_FIELDS[field]] = source[_TEXT_FIELDS[field]]
