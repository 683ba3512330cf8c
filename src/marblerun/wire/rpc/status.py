"""The seventeen gRPC status codes. Source: gRPC documentation, ``statuscodes``; used as in protocol, section 2.4."""

from __future__ import annotations

from enum import IntEnum


class GrpcStatus(IntEnum):
    """What ``grpc-status`` may say, as a decimal number on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


def parse_status(text: str) -> GrpcStatus:
    """Return the code that a ``grpc-status`` header names; anything that is not one of them is ``UNKNOWN``.

    Source: gRPC over HTTP/2, "Responses" (an unparsable status is to be treated as unknown).
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 2):
        return GrpcStatus.UNKNOWN
    try:
        return GrpcStatus(int(text))
    except ValueError:
        return GrpcStatus.UNKNOWN


def status_of_http(status: int) -> GrpcStatus:
    """Return the code for an answer that carries an HTTP status but no ``grpc-status``.

    Source: gRPC documentation, ``http-grpc-status-mapping``.
    """
    return {
        400: GrpcStatus.INTERNAL,
        401: GrpcStatus.UNAUTHENTICATED,
        403: GrpcStatus.PERMISSION_DENIED,
        404: GrpcStatus.UNIMPLEMENTED,
        429: GrpcStatus.UNAVAILABLE,
        502: GrpcStatus.UNAVAILABLE,
        503: GrpcStatus.UNAVAILABLE,
        504: GrpcStatus.UNAVAILABLE,
    }.get(status, GrpcStatus.UNKNOWN)
