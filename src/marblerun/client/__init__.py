"""The SDK for relying parties: fetch a Coordinator's statement, verify it, pin it, and talk to nobody else.

>>> from marblerun.client import CoordinatorPolicy, verify_deployment
>>> policy = CoordinatorPolicy(signer_id="43361aff...2b7a", product_id=3, security_version=1)
>>> deployment = verify_deployment("localhost:4433", policy, manifest_bytes)  # doctest: +SKIP
>>> with deployment.coordinator.client() as client:  # doctest: +SKIP
...     print(client.status())

Every name has an asynchronous twin: :func:`attest_async`, :func:`verify_deployment_async`, :class:`AsyncClient`.
"""

from marblerun.client.api import AsyncClient, Client
from marblerun.client.attest import AttestedCoordinator, attest, attest_async
from marblerun.client.certcache import CertificateCache
from marblerun.client.chain import CoordinatorChain, parse_chain
from marblerun.client.counter import set_monotonic_counter
from marblerun.client.deployment import Demands, VerifiedDeployment, verify_deployment, verify_deployment_async
from marblerun.client.pinning import UNVERIFIED, Credentials, PinnedRoot, Unverified
from marblerun.client.policy import CoordinatorPolicy, parse_policy
from marblerun.client.problems import ApiError
from marblerun.client.provenance import Provenance
from marblerun.client.replies import (
    ManifestView,
    PendingUpdate,
    RecoveryKey,
    RecoveryReply,
    RehearsalReply,
    Secrets,
    SignedQuote,
    Status,
    UpdateReply,
    UserSecret,
)
from marblerun.client.signatures import verify_manifest_signature, verify_signed_quote
from marblerun.client.statement import SequenceMemory, Statement, parse_statement
from marblerun.client.transport import TimeOuts
from marblerun.client.trust import Trust, trust_from_environment

__all__ = [
    "UNVERIFIED",
    "ApiError",
    "AsyncClient",
    "AttestedCoordinator",
    "CertificateCache",
    "Client",
    "CoordinatorChain",
    "CoordinatorPolicy",
    "Credentials",
    "Demands",
    "ManifestView",
    "PendingUpdate",
    "PinnedRoot",
    "Provenance",
    "RecoveryKey",
    "RecoveryReply",
    "RehearsalReply",
    "Secrets",
    "SequenceMemory",
    "SignedQuote",
    "Statement",
    "Status",
    "TimeOuts",
    "Trust",
    "Unverified",
    "UpdateReply",
    "UserSecret",
    "VerifiedDeployment",
    "attest",
    "attest_async",
    "parse_chain",
    "parse_policy",
    "parse_statement",
    "set_monotonic_counter",
    "trust_from_environment",
    "verify_deployment",
    "verify_deployment_async",
    "verify_manifest_signature",
    "verify_signed_quote",
]
