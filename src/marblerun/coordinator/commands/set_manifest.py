"""Setting the manifest: from bytes to a deployment, everything tried before anything is kept (protocol, 5.10)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.coordinator.commands import Event, Inputs, Outcome
from marblerun.coordinator.commands.authority import renewed_authority
from marblerun.coordinator.commands.dry_run import try_templates
from marblerun.coordinator.commands.start import ROOT_SECRET_BYTES
from marblerun.coordinator.commands.update_log import log_line
from marblerun.coordinator.state import DataKey, Deployment, Phase, State
from marblerun.errors import Misconfigured, WrongPhase
from marblerun.manifest.check import check_manifest
from marblerun.manifest.material import check_material, recovery_key
from marblerun.manifest.model import Manifest
from marblerun.manifest.parse import parse_manifest
from marblerun.pki.issue import Entropy
from marblerun.policy.access import users_from_manifest
from marblerun.secrets import generate
from marblerun.secrets.model import Secret
from marblerun.secrets.recovery import RecoveryMaterial, make_recovery
from marblerun.wire.gojson import lower

HSM_GATE: Final = "azurehsmsealing"


def set_manifest(
    state: State, raw: bytes, inputs: Inputs, environment: Mapping[str, str], *, was_stored: bool = False
) -> Outcome[Mapping[str, bytes]]:
    """Make ``raw`` the manifest of a Coordinator that has none, or whose state is lost.

    ``was_stored`` says that the state without a manifest was durable, as several Coordinators share it. The reply
    holds, by recovery key name, what the key's holder needs for a recovery, encrypted to that key. Raises WrongPhase,
    and Malformed or Denied for a manifest that cannot be used; then nothing has changed.
    """
    require_no_manifest(state)
    manifest = parse_manifest(raw)
    verify_usable(manifest, environment)
    if was_stored:
        state = _with_fresh_secrets(state, inputs)
    deployment = make_deployment(state, manifest, raw, inputs)
    recovery = new_recovery(manifest, inputs.entropy)
    fingerprint = hashlib.sha256(raw).hexdigest()
    new = replace(
        state,
        phase=Phase.ACCEPTING_MARBLES,
        deployment=deployment,
        data_key=DataKey(recovery.key, recovery.recovery_data),
        update_log=log_line(inputs.at, "initial manifest set"),
        pending_update=None,
        activations={},
        counters={},
        provenance=replace(state.provenance, first_manifest=fingerprint),
        other_entries={},
    )
    event = Event("manifest set", {"fingerprint": fingerprint, "marbles": len(manifest.marbles)})
    return Outcome(new, recovery.shares, (event,))


def _with_fresh_secrets(state: State, inputs: Inputs) -> State:
    """Nothing secret that was stored but the root key, by which clients know us already.

    Whoever brings that state back and sets a manifest of their own must get neither the secrets of this deployment nor
    a CA whose Marbles its Marbles trust.
    """
    authority = renewed_authority(state.authority, inputs)
    return replace(state, root_secret=inputs.entropy.token(ROOT_SECRET_BYTES), authority=authority)


def require_no_manifest(state: State) -> None:
    """Return where a manifest may be set; else raise WrongPhase."""
    if state.phase not in (Phase.ACCEPTING_MANIFEST, Phase.RECOVERY):
        raise WrongPhase("server is not in expected state: a manifest is already set; change it with a manifest update")


def verify_usable(manifest: Manifest, environment: Mapping[str, str]) -> None:
    """Raise Malformed with everything that is wrong with a manifest, and Misconfigured for what is not built yet."""
    (check_manifest(manifest, environment) + check_material(manifest)).raise_if_bad()
    if any(lower(gate) == HSM_GATE for gate in manifest.config.feature_gates):
        raise Misconfigured("Config.FeatureGates: AzureHSMSealing is not supported by this Coordinator yet; remove it")


def new_recovery(manifest: Manifest, entropy: Entropy) -> RecoveryMaterial:
    """A new data key, recoverable by the holders of the manifest's recovery keys (protocol, section 10.3)."""
    keys = {name: recovery_key(text) for name, text in manifest.recovery_keys.items()}
    return make_recovery(keys, manifest.config.recovery_threshold, entropy)


def make_deployment(state: State, manifest: Manifest, raw: bytes, inputs: Inputs) -> Deployment:
    """What the manifest becomes under the state's CA and root secret; its templates have been tried."""
    generation = generate.Inputs(state.root_secret, state.authority.marble_issuer, inputs.at, inputs.entropy)
    secrets: dict[str, Secret] = {
        **generate.shared_secrets(manifest.secrets, generation),
        **generate.placeholder_secrets(manifest.secrets, generation),
        **generate.unset_secrets(manifest.secrets),
    }
    deployment = Deployment(
        manifest=raw,
        signature=sign_manifest(state.authority.root_key, raw),
        config=manifest.config,
        packages=manifest.packages,
        infrastructures=manifest.infrastructures,
        marbles=manifest.marbles,
        tls=manifest.tls,
        users=users_from_manifest(manifest),
        secrets=secrets,
        previous_secrets=secrets,
    )
    try_templates(deployment)
    return deployment


def sign_manifest(root_key: ec.EllipticCurvePrivateKey, raw: bytes) -> bytes:
    """ECDSA by the root key over the SHA-256 of the manifest's bytes, ASN.1 DER (protocol, section 5.9)."""
    return root_key.sign(raw, ec.ECDSA(hashes.SHA256()))
