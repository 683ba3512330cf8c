"""The outside of sealed state, as ``marblerun state`` shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from marblerun.cli.output import emit

if TYPE_CHECKING:
    from marblerun.coordinator.store import Sealed

DATA: Final = "sealed_data"


def suffixes(folder: Path) -> list[str]:
    """Of the older states that are there, the latest first."""
    from marblerun.coordinator.store.file import ASIDE, GENERATIONS

    there = {path.name.removeprefix(f"{DATA}.") for path in folder.glob(f"{DATA}.*")}
    return [name for name in GENERATIONS if name in there] + sorted(name for name in there if name.startswith(ASIDE))


def described(sealed: Sealed) -> dict[str, object]:
    """The outside of a state, ready for JSON; raises Malformed where it has none."""
    from marblerun.coordinator.store.description import describe_data, describe_key

    data = describe_data(sealed.data)
    keys = [describe_key(key, sealed.data) for key in sealed.keys]
    return {
        "sha256": data.sha256,
        "bytes": data.size,
        "stateBytes": data.state_size,
        "recovery": data.recovery,
        "recoverySecrets": data.recovery_secrets,
        "keys": [{"form": key.form, "bytes": key.size, "opens": key.opens} for key in keys],
    }


def show(found: dict[str, object]) -> None:
    """Prints what :func:`described` found."""
    if "problem" in found:
        emit(f"  {found['problem']}")
        return
    emit(f"  state     {found['bytes']} bytes, SHA-256 {found['sha256']}")
    emit(f"  recovery  {found['recovery']}")
    keys = found["keys"]
    if not isinstance(keys, list) or not keys:
        emit("  key       none: a start needs recovery")
        return
    for key in keys:
        opens = {True: "; it opens the state", False: "; it does not open the state", None: ""}[key["opens"]]
        emit(f"  key       {key['form']}{opens}")
