"""Every error this project raises on purpose, as one tree.

::

    MarbleRunError
    ├── Malformed        bytes that are not what they claim to be (their fault, before any rule is applied)
    ├── Untrusted        evidence or a certificate failed a verification step; names the step
    ├── Denied           authentic, but a policy or permission does not admit it; carries every mismatch
    ├── WrongPhase       a valid request at the wrong time of the Coordinator's life
    ├── Conflict         the state moved while the request was being decided
    ├── NotFound         a name that does not exist
    ├── Unavailable      something outside (store, collateral service, Coordinator) did not do its part
    │   └── Busy         more is asked than can be done at once; says when to ask again
    └── Misconfigured    settings with which we refuse to run; the message says what to do

Wrong use of a function by our own code is not in this tree: that is a plain ``RuntimeError`` or ``ValueError``.
Messages never contain secrets; they may reach logs and callers.
"""

from __future__ import annotations

from typing import ClassVar


class MarbleRunError(Exception):
    """Base of the tree; ``code`` is stable and safe to match on, the message is for people."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Malformed(MarbleRunError):
    """Input that cannot be parsed within its limits. ``where`` is a path or byte offset, empty if there is none."""

    code = "malformed"

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(message)
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class Untrusted(MarbleRunError):
    """A verification step failed.

    ``step`` names the step in the verifier's own numbered order (for example ``qe-report-signature``) and
    ``reason`` the class of failure (``expired``, ``revoked``, ``bad-signature``, ``mismatch``, ...).
    """

    code = "untrusted"

    def __init__(self, message: str, *, step: str, reason: str = "invalid") -> None:
        super().__init__(message)
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.step}: {self.message}"


class Denied(MarbleRunError):
    """Authentic but not admitted. ``mismatches`` lists everything that did not fit, never only the first."""

    code = "denied"

    def __init__(self, message: str, *, mismatches: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.mismatches = mismatches

    def __str__(self) -> str:
        return f"{self.message}: {'; '.join(self.mismatches)}" if self.mismatches else self.message


class WrongPhase(MarbleRunError):
    """The Coordinator is not in a state in which this can be done."""

    code = "wrong-phase"


class Conflict(MarbleRunError):
    """Someone else changed the state first; deciding again on the new state is safe."""

    code = "conflict"


class NotFound(MarbleRunError):
    """The named thing does not exist."""

    code = "not-found"


class Unavailable(MarbleRunError):
    """A service or device that is needed did not answer as it should; trying again later may help."""

    code = "unavailable"


class Busy(Unavailable):
    """More is asked than can be done now, and nothing was begun. ``retry_after``: seconds after which to ask again."""

    code = "busy"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Misconfigured(MarbleRunError):
    """The settings do not allow safe operation."""

    code = "misconfigured"
