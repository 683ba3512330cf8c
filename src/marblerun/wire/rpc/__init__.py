"""The messages of Marble API and key exchange, and gRPC framing: bytes to values and back, with limits. Pure.

``coordinator_pb2.py`` and ``key_pb2.py``, each with its ``.pyi``, are generated; to regenerate them, run in ``src/``,
with grpcio-tools and mypy-protobuf, whose protoc must not be newer than the floor of the protobuf dependency::

    python -m grpc_tools.protoc -I. --python_out=. --mypy_out=. \\
        marblerun/wire/rpc/coordinator.proto marblerun/wire/rpc/key.proto
"""

from __future__ import annotations

from typing import Final

from marblerun.wire.rpc.coordinator_pb2 import ActivationReq, ActivationResp, Parameters
from marblerun.wire.rpc.framing import (
    MessageReader,
    decode_grpc_message,
    encode_grpc_message,
    encode_message,
    parse_timeout,
)
from marblerun.wire.rpc.key_pb2 import KeyRequest, KeyResponse
from marblerun.wire.rpc.messages import (
    encode_activation_request,
    parse_activation_request,
    parse_activation_response,
    parse_key_request,
    parse_key_response,
)
from marblerun.wire.rpc.status import GrpcStatus, parse_status

ACTIVATE_PATH: Final = "/rpc.Marble/Activate"
"""The one method of the Marble API. Source: protocol, section 2.1."""
KEY_PATH: Final = "/keypb.API/GetKeyEncryptionKey"
"""The one method of the key exchange between Coordinators. Source: protocol, section 11.4."""

__all__ = [
    "ACTIVATE_PATH",
    "KEY_PATH",
    "ActivationReq",
    "ActivationResp",
    "GrpcStatus",
    "KeyRequest",
    "KeyResponse",
    "MessageReader",
    "Parameters",
    "decode_grpc_message",
    "encode_activation_request",
    "encode_grpc_message",
    "encode_message",
    "parse_activation_request",
    "parse_activation_response",
    "parse_key_request",
    "parse_key_response",
    "parse_status",
    "parse_timeout",
]
