"""From what a user knows about a Coordinator to a pin on the connection over which a Marble activates.

The mesh listener shows a certificate that says nothing by itself (protocol, section 2.2). So each pin here asks the
client API for root and intermediate, decides whether that root is the right one, and then demands that the mesh
listener proved possession of the intermediate's key, all before the Marble's request leaves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from marblerun.cli.output import for_terminal
from marblerun.client import (
    AttestedCoordinator,
    CoordinatorChain,
    CoordinatorPolicy,
    PinnedRoot,
    attest,
    calls,
    parse_chain,
    parse_policy,
)
from marblerun.client.api import Client, converse
from marblerun.client.deployment import Demands, Origin, fingerprint_of, verify_manifest
from marblerun.client.transport import Endpoint, Transport
from marblerun.client.trust import Trust, trust_from_environment
from marblerun.errors import Malformed, Misconfigured, Untrusted, WrongPhase
from marblerun.marble.pins import CoordinatorPin, PinnedKey
from marblerun.wire.pem import decode_pem

_log = logging.getLogger(__name__)

ROOT_CERT_VARIABLE: Final = "EDG_MARBLE_COORDINATOR_ROOT_CERT"
POLICY_VARIABLE: Final = "EDG_MARBLE_COORDINATOR_POLICY"
FINGERPRINT_VARIABLE: Final = "EDG_MARBLE_MANIFEST_FINGERPRINT"
CLIENT_ADDRESS_VARIABLE: Final = "EDG_MARBLE_COORDINATOR_CLIENT_ADDR"

_MAX_FILE_BYTES: Final = 256 * 1024
_CLIENT_PORT: Final = 4433
# Source: protocol, section 1.4.
_ACCEPTING_MARBLES: Final = 3


@dataclass(frozen=True, slots=True)
class ClientApiPin:
    """Accepts the mesh listener of the Coordinator whose client API passes every check that is set."""

    endpoint: str
    """``HOST:PORT`` of the client API."""
    root: bytes | None = None
    """DER of the Coordinator root certificate that it must have."""
    policy: CoordinatorPolicy | None = None
    """What its evidence must say."""
    trust: Trust | None = None
    """Whose word about evidence counts; needed with a policy."""
    fingerprint: str = ""
    """Of the manifest that must be in force; empty if any will do."""

    def __post_init__(self) -> None:
        if self.root is None and self.policy is None:
            raise ValueError("a pin that checks nothing")

    def check(self, server_certificate: bytes) -> None:
        """Judge the certificate of the mesh listener.

        1. Root and intermediate are fetched, over TLS with the pinned root, or with evidence that the policy admits.
        2. With both, they must be of the same root. 3. The manifest in force is the expected one; where evidence alone
        says which root it is, the enclave itself has to say so, and that nobody can have brought that root's keys
        along. 4. The mesh listener has the intermediate's key.

        Raises:
            Untrusted: 1, 2 or 4; Denied: the policy or the manifest (3) does not fit.
            Unavailable, WrongPhase: the client API cannot be asked yet, or there is no manifest yet.
        """
        attested = self._attested() if self.policy is not None else None  # 1
        chain = self._chain_under_root() if attested is None or self.root is not None else attested.chain
        if attested is not None and attested.chain.root_der != chain.root_der:  # 2
            raise Untrusted("the attested Coordinator has another root", step="coordinator-pin", reason="mismatch")
        if self.fingerprint:  # 3
            self._verify_manifest(chain, attested)
        PinnedKey.of_certificate(chain.intermediate.public_bytes(Encoding.DER)).check(server_certificate)  # 4

    def _chain_under_root(self) -> CoordinatorChain:
        assert self.root is not None
        with Transport(Endpoint.parse(self.endpoint), PinnedRoot(self.root)) as transport:
            reply, _ = converse(transport, calls.quote(b"", nonce_required=False))
        chain = parse_chain(reply.chain)
        if chain.root_der != self.root:
            raise Untrusted("the Coordinator names another root", step="coordinator-pin", reason="mismatch")
        chain.verify_intermediate()
        return chain

    def _verify_manifest(self, chain: CoordinatorChain, attested: AttestedCoordinator | None) -> None:
        with Client(self.endpoint, chain.pin) as client:
            status = client.status()
            if status.code != _ACCEPTING_MARBLES:
                # Asked for its manifest now, a Coordinator answers with an error that says no more than "no".
                raise WrongPhase(f"the Coordinator has no manifest in force yet: {for_terminal(status.message)}")
            view = client.manifest_get()
            verify_manifest(view, self.fingerprint)
            if attested is not None and self.policy is not None:
                origin = Origin(attested, self.policy, Demands(known_root=self.root), self.trust)
                for warning in origin.verify(client, view.manifest):
                    _log.warning(warning)

    def _attested(self) -> AttestedCoordinator:
        assert self.policy is not None
        return attest(self.endpoint, self.policy, trust=self.trust)


def pin_from_environment(environment: Mapping[str, str], mesh_host: str) -> CoordinatorPin | None:
    """Return the pin that the variables ask for, None if none is set; an empty value counts as unset.

    ``mesh_host`` is where the client API is looked for, on its usual port, if its own variable is not set.

    Raises:
        Misconfigured: a fingerprint without anything that says whose it is, an unreadable file, or a policy that
            would admit anybody.
        Malformed: the certificate, the policy or the fingerprint is none.
    """
    root_text, policy_file = environment.get(ROOT_CERT_VARIABLE, ""), environment.get(POLICY_VARIABLE, "")
    fingerprint = environment.get(FINGERPRINT_VARIABLE, "")
    if not root_text and not policy_file:
        if fingerprint:
            raise Misconfigured(
                f"{FINGERPRINT_VARIABLE} says which manifest, but not whose word to take for it: set "
                f"{POLICY_VARIABLE} (attestation policy file) or {ROOT_CERT_VARIABLE}, too"
            )
        return None
    host = f"[{mesh_host}]" if ":" in mesh_host else mesh_host
    return ClientApiPin(
        endpoint=environment.get(CLIENT_ADDRESS_VARIABLE) or f"{host}:{_CLIENT_PORT}",
        root=_root(root_text) if root_text else None,
        policy=_policy(policy_file) if policy_file else None,
        trust=trust_from_environment(environment) if policy_file else None,
        fingerprint=fingerprint_of(fingerprint) if fingerprint else "",
    )


def _root(text: str) -> bytes:
    """Return the certificate (DER) in ``text``, or in the file it names; of several the last one, as in a chain."""
    pem = text.encode() if "-----BEGIN" in text else _read(text, ROOT_CERT_VARIABLE)
    blocks = decode_pem(pem, "CERTIFICATE", max_blocks=2, max_bytes=_MAX_FILE_BYTES)
    if not blocks:
        raise Malformed("holds no certificate", where=ROOT_CERT_VARIABLE)
    return blocks[-1]


def _policy(path: str) -> CoordinatorPolicy:
    policy = parse_policy(_read(path, POLICY_VARIABLE))
    if policy.insecure:
        raise Misconfigured(f"{POLICY_VARIABLE}: InsecureSkipVerify checks nothing; leave the variable out instead")
    policy.verify_complete()
    return policy


def _read(path: str, name: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{name}: cannot read {path!r}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise Misconfigured(f"{name}: {path!r} is larger than {_MAX_FILE_BYTES} bytes")
    return content
