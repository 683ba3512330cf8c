"""The mesh API: the one gRPC method that a Marble needs (protocol, section 2.1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from marblerun.coordinator.commands.activate import Activated, ActivationRequest
from marblerun.coordinator.server.exchange import Peer, Service
from marblerun.coordinator.server.problems import grpc_problem
from marblerun.coordinator.server.turns import Desk, Overload
from marblerun.coordinator.server.unary import Method, unary_service
from marblerun.wire.limits import MAX_GRPC_MESSAGE_BYTES
from marblerun.wire.rpc import ACTIVATE_PATH, ActivationResp, parse_activation_request

Activate = Callable[[ActivationRequest, bytes | None], Awaitable[Activated]]
"""What answers an activation: the request and the client's leaf certificate (DER)."""

# Longest that one activation may take, whatever the caller's patience.
MAX_ACTIVATION_SECONDS: Final = 120.0


def mesh_service(activate: Activate, desk: Desk | None = None) -> Service:
    """The mesh listener's requests, answered by ``activate`` in the turns that ``desk`` gives."""

    async def answer(message: bytes, peer: Peer) -> bytes:
        return _encode(await activate(_parse(message), peer.leaf))

    method = Method(ACTIVATE_PATH, answer, grpc_problem, MAX_GRPC_MESSAGE_BYTES, MAX_ACTIVATION_SECONDS, "activations")
    return unary_service(method, desk or Overload().activations)


def _parse(data: bytes) -> ActivationRequest:
    message = parse_activation_request(data)
    return ActivationRequest(quote=message.Quote, csr=message.CSR, marble_type=message.MarbleType, uuid=message.UUID)


def _encode(activated: Activated) -> bytes:
    response = ActivationResp()
    parameters = response.Parameters
    parameters.SetInParent()  # also where all of it is empty
    parameters.Files.update(activated.files)
    parameters.Env.update(activated.env)
    parameters.Argv.extend(activated.argv)
    return response.SerializeToString()
