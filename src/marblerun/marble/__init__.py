"""The SDK for services: become a member of the mesh, and talk TLS to the other members.

A program that ``marblerun run`` started finds its identity in its environment::

    from marblerun.marble import Identity

    identity = Identity.from_environment()
    server_tls = identity.server_context(marble_types={"frontend"})
    client_tls = identity.client_context(marble_types={"ledger"})

A Python program can also do without the runner and keep its key out of its environment::

    from marblerun.marble import activate, detect_issuer, load_settings

    activation = activate(load_settings(os.environ, Path.cwd()), detect_issuer(os.environ))
    identity = Identity.from_variables(activation.env)
"""

from __future__ import annotations

from marblerun.attestation.issue import EvidenceIssuer, detect_issuer
from marblerun.marble.activation import Activation, Backoff, activate
from marblerun.marble.peer import PeerIdentity, UnexpectedPeer, peer_identity
from marblerun.marble.pins import AnyCoordinator, CoordinatorPin, PinnedKey
from marblerun.marble.rpc_client import Timeouts
from marblerun.marble.settings import MarbleSettings, load_settings
from marblerun.marble.tls import Identity

__all__ = [
    "Activation",
    "AnyCoordinator",
    "Backoff",
    "CoordinatorPin",
    "EvidenceIssuer",
    "Identity",
    "MarbleSettings",
    "PeerIdentity",
    "PinnedKey",
    "Timeouts",
    "UnexpectedPeer",
    "activate",
    "detect_issuer",
    "load_settings",
    "peer_identity",
]
