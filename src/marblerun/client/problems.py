"""What a Coordinator's refusal becomes here: one error per HTTP status, each below the class of our tree that fits.

::

    ApiError (MarbleRunError)        status, method, url, message; any status that has no class of its own
    ├── BadRequest (Malformed)       400
    ├── Unauthorized (Denied)        401
    ├── Forbidden (Denied)           403, a feature that the manifest does not switch on
    ├── NothingThere (NotFound)      404, no update is pending
    ├── NotOffered                   405, an unknown path or method; the reason to try the older API
    ├── Gone                         410
    ├── NotInThisState (WrongPhase)  500 (or 400) with the fixed text for a wrong state
    │   └── NoManifest               500 with the text for a manifest that was asked for before one was set
    ├── AlreadyPending (Conflict)    500 (or 400) with the text for a second update
    ├── NotAllowed (Denied)          500 (or 400) with the text for a user without the permission
    ├── SecretRefused (Denied)       500 with a text for a recovery secret, or all of them, that do not recover
    └── Overloaded (Unavailable)     429, 502, 503, 504

Source: protocol, sections 7.3, 7.4 and 14.
"""

from __future__ import annotations

from typing import Final

from marblerun.errors import Conflict, Denied, Malformed, MarbleRunError, NotFound, Unavailable, WrongPhase

MAX_MESSAGE: Final = 2000
"""Characters of a server's message that are shown."""
WRONG_STATE: Final = "server is not in expected state"
WHAT_NEXT: Final = (
    "'marblerun status' shows whether the Coordinator waits for one ('marblerun manifest set') or for its recovery "
    "('marblerun recover')"
)
"""What to do where no manifest is in force."""


class ApiError(MarbleRunError):
    """The Coordinator answered, and the answer is no."""

    code = "api"

    def __init__(self, message: str, *, status: int, method: str, url: str, data: object = None) -> None:
        MarbleRunError.__init__(self, message)
        self.status = status
        self.method = method
        self.url = url
        self.data = data

    def __str__(self) -> str:
        return f"{self.method} {self.url}: {self.status} {self.message}".rstrip()


class BadRequest(ApiError, Malformed):
    """400: the Coordinator could not use what was sent."""

    where = ""


class Unauthorized(ApiError, Denied):
    """401: no user or Marble of this deployment stands behind the client certificate that was shown."""

    mismatches: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.url}: authorizing user: {self.message}"


class Forbidden(ApiError, Denied):
    """403: the manifest in force does not switch this feature on."""

    mismatches: tuple[str, ...] = ()


class NothingThere(ApiError, NotFound):
    """404: what was asked for does not exist, for example a pending update."""


class NotOffered(ApiError):
    """405: this Coordinator does not know the path or the method."""

    code = "not-offered"


class Gone(ApiError):
    """410: the Coordinator no longer offers this; its message names the successor."""

    code = "gone"


class NotInThisState(ApiError, WrongPhase):
    """The Coordinator has to be in another state for this call."""


class NoManifest(NotInThisState):
    """The manifest was asked for, and none is in force: none was set yet, or the Coordinator waits for its recovery."""

    def __str__(self) -> str:
        return f"{super().__str__()}; {WHAT_NEXT}"


class AlreadyPending(ApiError, Conflict):
    """Another update waits for acknowledgments; it has to be acknowledged or cancelled first."""


class NotAllowed(ApiError, Denied):
    """A user of the deployment, whose roles do not allow this."""

    mismatches: tuple[str, ...] = ()


class SecretRefused(ApiError, Denied):
    """A recovery secret that does not count, or secrets that together recover nothing; both leave the state alone."""

    mismatches: tuple[str, ...] = ()


class Overloaded(ApiError, Unavailable):
    """The Coordinator, or something in front of it, cannot serve the call now."""


_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NothingThere,
    405: NotOffered,
    410: Gone,
    429: Overloaded,
    502: Overloaded,
    503: Overloaded,
    504: Overloaded,
}


# Steps of the end of a recovery, with which the text of a Coordinator of this project begins.
_RECOVERY_STEPS: Final = (
    "recovery-key: ",
    "recovery-keys: ",
    "recovery-secrets: ",
    "recovery-signature: ",
    "recovered-state: ",
    "recovered-authority: ",
)
# The API has one status for nearly everything that fails; what it was only the text tells.
_BY_TEXT: Final[tuple[tuple[str, type[ApiError]], ...]] = (
    (WRONG_STATE, NotInThisState),
    ("no manifest is set", NoManifest),
    ("update already in progress", AlreadyPending),
    (" is not allowed to ", NotAllowed),
    ("invalid or already used", SecretRefused),
    ("a recovery secret has 16", SecretRefused),
    ("longer than that of any RSA key", SecretRefused),
    *((step, SecretRefused) for step in _RECOVERY_STEPS),
)


def from_status(status: int, message: str, *, method: str, url: str, data: object = None) -> ApiError:
    """The error for an HTTP status other than 200; the message is shortened and freed of control characters."""
    kind = _BY_STATUS.get(status, ApiError)
    if kind in (ApiError, BadRequest):
        kind = next((other for part, other in _BY_TEXT if part in message), kind)
    text = printable(message)
    if kind is NotOffered and not text:
        text = "this Coordinator does not offer that"
    return kind(text, status=status, method=method, url=url, data=data)


def printable(text: str) -> str:
    """Text of a peer, safe for a terminal: control characters become spaces, the length has an end."""
    clean = "".join(char if char.isprintable() else " " for char in text[:MAX_MESSAGE])
    return clean.strip()
