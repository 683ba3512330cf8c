"""What comes back from starting or acknowledging an update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from marblerun.coordinator.state import PendingUpdate
from marblerun.errors import MarbleRunError, NotFound

# The first word is how clients of API version 1 know that nothing is missing (protocol, section 7.5).
IN_FORCE: Final = "All required users have acknowledged the update; it is in force"


@dataclass(frozen=True, slots=True, repr=False)
class UpdateReply:
    """What is left to do: nothing if the update is in force."""

    missing: int = 0
    """Acknowledgments still needed."""
    missing_users: tuple[str, ...] = ()
    """Who may give them; can be more than are needed."""
    recovery_secrets: Mapping[str, bytes] | None = None
    """By recovery key name, encrypted to it; ``None`` if there are no new ones, empty if there are no more keys."""
    message: str = ""
    """For people; begins with ``All`` or with the number missing (protocol, section 7.5)."""
    failure: MarbleRunError | None = None
    """Why the update could not be applied; then it is dropped, which is a change to be stored too."""

    @classmethod
    def waiting(cls, pending: PendingUpdate) -> UpdateReply:
        """The answer while acknowledgments are missing."""
        return cls(pending.missing, pending.missing_users, message=waiting_text(pending))


class NoUpdateInProgress(NotFound):
    """Nothing is pending; the text is fixed (protocol, section 14)."""

    def __init__(self) -> None:
        super().__init__("no update in progress")


def waiting_text(pending: PendingUpdate) -> str:
    """How many acknowledgments are missing, for people; the number comes first (protocol, section 7.5)."""
    noun = "acknowledgment is" if pending.missing == 1 else "acknowledgments are"
    return f"{pending.missing} {noun} missing before the update is in force"
