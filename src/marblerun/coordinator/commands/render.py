"""What a Marble would get under a manifest, tried out with a throw-away CA and made-up secrets; nothing is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.coordinator.commands import Inputs
from marblerun.coordinator.commands.activate import Activated, ActivationRefused, ActivationRequest, activate
from marblerun.coordinator.commands.set_manifest import make_deployment
from marblerun.coordinator.commands.start import start_state
from marblerun.coordinator.state import Phase
from marblerun.errors import Malformed, NotFound
from marblerun.manifest.check import check_manifest, check_material
from marblerun.manifest.parse import parse_manifest
from marblerun.manifest.report import Report
from marblerun.pki.csr import build_csr
from marblerun.pki.profiles import SubjectNames
from marblerun.secrets import generate
from marblerun.secrets.model import Secret, SecretDefinition, SecretType

NAMES: Final = SubjectNames()
"""A Marble's names as it has them without settings."""
_USUAL_SIZES: Final[Mapping[str, int]] = {SecretType.CERT_RSA: 2048, SecretType.CERT_ECDSA: 256}


def render_marble(raw: bytes, marble_type: str, uuid: str, inputs: Inputs) -> Activated:
    """Files, environment and arguments of one instance of ``marble_type``; secrets are placeholders.

    The manifest is checked and tried as a Coordinator does before it keeps one, then the Marble is activated as there,
    except for the evidence. Raises Malformed for whatever either would refuse, NotFound for an unknown Marble.
    """
    manifest = parse_manifest(raw)
    # What depends on the Coordinator's environment cannot be asked here.
    errors = (check_manifest(manifest, {}) + check_material(manifest)).errors
    Report(tuple(error for error in errors if error.code != "feature-gate-environment")).raise_if_bad()
    if marble_type not in manifest.marbles:
        raise NotFound(f"the manifest has no Marble {marble_type!r}; it has {', '.join(sorted(manifest.marbles))}")
    state = start_state(NAMES, inputs)
    deployment = make_deployment(state, manifest, raw, inputs)
    generation = generate.Inputs(state.root_secret, state.authority.marble_issuer, inputs.at, inputs.entropy)
    uploaded = {
        name: placeholder(name, definition, generation)
        for name, definition in manifest.secrets.items()
        if definition.user_defined
    }
    deployment = replace(deployment, secrets={**deployment.secrets, **uploaded})
    request = ActivationRequest(b"", build_csr(NAMES, inputs.entropy.ec_key(ec.SECP384R1())), marble_type, uuid)
    try:
        return activate(replace(state, phase=Phase.ACCEPTING_MARBLES, deployment=deployment), request, inputs).reply
    except ActivationRefused as error:
        raise Malformed(error.message, where=f"Marbles.{marble_type}") from error


def placeholder(name: str, definition: SecretDefinition, inputs: generate.Inputs) -> Secret:
    """A value such as a user could upload for a secret: a text that says what it is, or a certificate just made."""
    if SecretType(definition.type).is_certificate:
        size = _USUAL_SIZES.get(definition.type, 0)
        made = replace(definition, user_defined=False, shared=True, size=size, template=None, certificate=None)
        value = generate.generate_secret(name, made, uuid=None, marble_name="", inputs=inputs)
        return replace(value, user_defined=True, shared=definition.shared, size=definition.size)
    data = f"<placeholder for {name}>".encode()
    if definition.type == SecretType.SYMMETRIC_KEY:
        length = min(max(definition.size // 8, 1), generate.MAX_SHARED_KEY_BYTES)
        data = (data * (length // len(data) + 1))[:length]
    return replace(generate.unset_secrets({name: definition})[name], private=data, public=data)
