"""From an error to what the wire says about it, in one place: gRPC codes here, HTTP statuses with the routes.

Anything that is not of our error tree becomes "internal" without its text: it is our bug, and its text may hold
anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from marblerun.coordinator.commands.activate import ActivationRefused, Stage
from marblerun.errors import MarbleRunError, Unavailable
from marblerun.wire.rpc import GrpcStatus

STAGE_CODES: Final[Mapping[Stage, GrpcStatus]] = {
    Stage.PHASE: GrpcStatus.FAILED_PRECONDITION,
    Stage.CLIENT_CERTIFICATE: GrpcStatus.UNAUTHENTICATED,
    Stage.MARBLE: GrpcStatus.PERMISSION_DENIED,
    Stage.PACKAGE: GrpcStatus.PERMISSION_DENIED,
    Stage.EVIDENCE: GrpcStatus.PERMISSION_DENIED,
    Stage.BUDGET: GrpcStatus.PERMISSION_DENIED,
    Stage.UUID: GrpcStatus.INVALID_ARGUMENT,
    Stage.NAMES: GrpcStatus.PERMISSION_DENIED,
    Stage.CREDENTIALS: GrpcStatus.INTERNAL,
    Stage.SECRETS: GrpcStatus.INTERNAL,
    Stage.TTLS: GrpcStatus.INTERNAL,
    Stage.TEMPLATES: GrpcStatus.INTERNAL,
    Stage.COMMIT: GrpcStatus.INTERNAL,
}
"""Source: protocol, section 2.4."""

INTERNAL_TEXT: Final = "internal error; the Coordinator's log says more"


def grpc_problem(error: Exception) -> tuple[GrpcStatus, str]:
    """The status and message that an activation's failure is answered with."""
    if isinstance(error, ActivationRefused):
        if isinstance(error.__cause__, Unavailable):
            # Not the Marble's fault: it may come again (docs/divergences.md).
            return GrpcStatus.UNAVAILABLE, str(error)
        return STAGE_CODES[error.stage], str(error)
    if isinstance(error, Unavailable):
        return GrpcStatus.UNAVAILABLE, str(error)
    if isinstance(error, MarbleRunError):
        return GrpcStatus.INTERNAL, str(error)
    return GrpcStatus.INTERNAL, INTERNAL_TEXT
