"""The whole comparison, and what has to be restarted afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from marblerun.manifest.changes import is_package_update, is_recovery_changed
from marblerun.manifest.meaning import governing, joining, reading, running
from marblerun.manifest.meaning.statement import Statement, Topic
from marblerun.manifest.model import Manifest


class Kind(StrEnum):
    """Which kind of update the new manifest is (protocol, section 9.1)."""

    PACKAGES = "packages"
    """It holds packages only and raises their security versions; everything else stays."""
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an update changes. Nothing of it needs a restart of the Coordinator."""

    kind: Kind
    statements: tuple[Statement, ...]
    """By topic, then as in the manifest."""
    restart_marbles: tuple[str, ...]
    """Marbles of both manifests that get something new, which takes effect when they are started again."""
    new_recovery_data: bool
    """Whether everybody gets a new recovery secret, and old ones become useless."""


_PARTS: Final[tuple[Callable[[Manifest, Manifest], Iterator[Statement]], ...]] = (
    joining.joining,
    reading.reading,
    governing.users,
    governing.updates,
    governing.recovery,
    reading.secrets,
    running.running,
    governing.coordinator,
)


def meaning(old: Manifest, new: Manifest) -> Meaning:
    """What changes if ``new`` is sent as an update while ``old`` is in force. Both have passed the checks.

    Versions raised by earlier package updates are not in ``old`` and so are not considered.
    """
    kind = Kind.PACKAGES if is_package_update(new) else Kind.FULL
    if kind is Kind.PACKAGES:
        new = _with_versions(old, new)
    order = list(Topic)
    statements = sorted((s for part in _PARTS for s in part(old, new)), key=lambda s: order.index(s.topic))
    return Meaning(
        kind=kind,
        statements=tuple(statements),
        restart_marbles=tuple(sorted({name for statement in statements for name in statement.marbles})),
        new_recovery_data=is_recovery_changed(old, new),
    )


def _with_versions(old: Manifest, update: Manifest) -> Manifest:
    raised = {
        name: replace(old.packages[name], security_version=package.security_version)
        for name, package in update.packages.items()
        if name in old.packages
    }
    return replace(old, packages={**old.packages, **raised}, config=replace(old.config, rotate_root_secret=False))
