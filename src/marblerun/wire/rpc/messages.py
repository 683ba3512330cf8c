"""Protobuf messages from bytes and back, with this project's errors."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from marblerun.errors import Malformed
from marblerun.wire.rpc.coordinator_pb2 import ActivationReq, ActivationResp
from marblerun.wire.rpc.key_pb2 import KeyRequest, KeyResponse


def encode_activation_request(*, quote: bytes, csr: bytes, marble_type: str, uuid: str) -> bytes:
    """Return the protobuf bytes of an ``ActivationReq`` (protocol, section 2.1)."""
    return ActivationReq(Quote=quote, CSR=csr, MarbleType=marble_type, UUID=uuid).SerializeToString()


def parse_activation_request(data: bytes) -> ActivationReq:
    """Return the request in ``data``; unknown fields are ignored, broken bytes or invalid UTF-8 raise Malformed."""
    try:
        return ActivationReq.FromString(data)
    except DecodeError as error:
        raise Malformed("not an ActivationReq", where="grpc message") from error


def parse_activation_response(data: bytes) -> ActivationResp:
    """Return the answer in ``data``; unknown fields are ignored, broken bytes or invalid UTF-8 raise Malformed."""
    try:
        return ActivationResp.FromString(data)
    except DecodeError as error:
        raise Malformed("not an ActivationResp", where="grpc message") from error


def parse_key_request(data: bytes) -> KeyRequest:
    """Return the request in ``data`` (protocol, section 11.4); broken bytes raise Malformed."""
    try:
        return KeyRequest.FromString(data)
    except DecodeError as error:
        raise Malformed("not a KeyRequest", where="grpc message") from error


def parse_key_response(data: bytes) -> KeyResponse:
    """Return the answer in ``data`` (protocol, section 11.4); broken bytes raise Malformed."""
    try:
        return KeyResponse.FromString(data)
    except DecodeError as error:
        raise Malformed("not a KeyResponse", where="grpc message") from error
