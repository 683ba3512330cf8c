"""Requests whose answer holds what is told only once: sent again, by name, if the connection breaks before it is here.

The Coordinator remembers the answer for whoever has the request's name, a secret of ours, as long as its process lives
(``Idempotency-Key``). Coordinators of the reference do not, and refuse the second request; the user then has to know
that the first one may have been done.
"""

from __future__ import annotations

import secrets
from typing import Final

import httpx

from marblerun.client.problems import ApiError
from marblerun.errors import MarbleRunError, Unavailable

_BROKEN: Final = (httpx.ReadError, httpx.ReadTimeout, httpx.WriteError, httpx.WriteTimeout, httpx.RemoteProtocolError)
LOST: Final = (
    "the connection broke before the answer came, and asking again gave no answer to the first request; "
    "it may have been done, and then its recovery secrets are lost (docs/recovery.md)"
)


def new_key() -> str:
    """A name that nobody guesses."""
    return secrets.token_hex(32)


def is_lost(error: MarbleRunError) -> bool:
    """Whether the request may have arrived although no answer came."""
    return not isinstance(error, ApiError) and isinstance(error.__cause__, _BROKEN)


def lost(error: MarbleRunError) -> Unavailable:
    """What the user is told if the second attempt failed too."""
    return Unavailable(f"{LOST}: {error}")
