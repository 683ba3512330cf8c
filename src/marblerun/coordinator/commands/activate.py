"""Activating a Marble: is it admitted, and what does it get (protocol, section 2).

The steps of section 2.4 are here as functions in that order; the service calls them and does the I/O in between:
``check_request`` (2, 3, 5, 6), then evidence is verified, then ``admit`` (7, 8), then ``activate`` (9 to 14), then,
where there is a limit, ``count_activation`` (15) is committed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import ClassVar, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.attestation.binding import verify_binding
from marblerun.attestation.model import Claims, Verdict
from marblerun.coordinator.commands import Event, Inputs, Outcome
from marblerun.coordinator.commands.ttls import MarbleCredentials, ttls_config
from marblerun.coordinator.state import Deployment, Phase, State
from marblerun.errors import Conflict, Denied, Malformed, MarbleRunError, Untrusted
from marblerun.manifest.model import File, Marble
from marblerun.manifest.templates import (
    ENV_FUNCTIONS,
    FILE_FUNCTIONS,
    Budget,
    FunctionSet,
    ReservedSecrets,
    Template,
    TemplateData,
    compile_template,
)
from marblerun.pki.csr import parse_csr
from marblerun.pki.encodings import certificate_pem, private_key_pem
from marblerun.pki.issue import issue_marble_certificate
from marblerun.policy.admission import Admission, require_admitted
from marblerun.policy.names import require_names
from marblerun.secrets import generate
from marblerun.secrets.instance import InstanceSecrets
from marblerun.secrets.model import Secret, SecretType

ROOT_CA_VARIABLE: Final = "MARBLE_PREDEFINED_ROOT_CA"
CHAIN_VARIABLE: Final = "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"
PRIVATE_KEY_VARIABLE: Final = "MARBLE_PREDEFINED_PRIVATE_KEY"
COORDINATOR_ROOT_VARIABLE: Final = "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"
TTLS_VARIABLE: Final = "MARBLE_TTLS_CONFIG"

_UUID_36: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_UUID_32: Final = re.compile(r"[0-9a-fA-F]{32}", re.ASCII)
# What fits into a log line of a name that anybody may send.
_SHOWN_NAME: Final = 200


class Stage(StrEnum):
    """Where an activation failed; decides the gRPC code (protocol, section 2.4)."""

    PHASE = "phase"
    CLIENT_CERTIFICATE = "client-certificate"
    MARBLE = "marble"
    PACKAGE = "package"
    EVIDENCE = "evidence"
    BUDGET = "budget"
    UUID = "uuid"
    NAMES = "names"
    """Not the reference's: the request for a certificate asks for names that the manifest does not allow."""
    CREDENTIALS = "credentials"
    SECRETS = "secrets"
    TTLS = "ttls"
    TEMPLATES = "templates"
    COMMIT = "commit"


class ActivationRefused(MarbleRunError):
    """The activation ends at ``stage``; the message is what the Marble gets to know."""

    code: ClassVar[str] = "activation-refused"

    def __init__(self, stage: Stage, message: str) -> None:
        super().__init__(message)
        self.stage = stage


@dataclass(frozen=True, slots=True)
class ActivationRequest:
    """What a Marble sends; nothing in it is trusted."""

    quote: bytes
    csr: bytes
    marble_type: str
    uuid: str


@dataclass(frozen=True, slots=True, repr=False)
class Activated:
    """Everything a Marble runs with."""

    files: Mapping[str, bytes]
    env: Mapping[str, bytes]
    argv: tuple[str, ...]


# -- steps 2 to 6: before evidence is looked at ------------------------------------------------------------------


def check_request(state: State, request: ActivationRequest, client_certificate: bytes | None) -> bytes:
    """Steps 2, 3, 5, 6: may this request be looked at? Returns what its evidence must cover: the client certificate."""
    if state.phase is not Phase.ACCEPTING_MARBLES or state.deployment is None:
        raise ActivationRefused(
            Stage.PHASE, f"cannot accept marbles in current state: {state.phase.name.replace('_', ' ').lower()}"
        )
    if client_certificate is None:
        raise ActivationRefused(Stage.CLIENT_CERTIFICATE, "the connection has no TLS client certificate")
    _marble_of(state.deployment, request.marble_type)
    return client_certificate


def _marble_of(deployment: Deployment, marble_type: str) -> Marble:
    marble = deployment.marbles.get(marble_type)
    if marble is None:
        name = marble_type[:_SHOWN_NAME]
        raise ActivationRefused(Stage.MARBLE, f"marble verification failed: unknown marble type {name!r}")
    if marble.package not in deployment.packages:
        raise ActivationRefused(Stage.PACKAGE, f"marble verification failed: unknown package {marble.package!r}")
    return marble


# -- steps 7 and 8: the verdict is judged ------------------------------------------------------------------------


def admit(
    state: State, request: ActivationRequest, client_certificate: bytes, verdict: Verdict, admission: Admission
) -> None:
    """Steps 7 and 8: does the evidence cover this connection, and may it join as this Marble once more?"""
    check_request(state, request, client_certificate)
    assert state.deployment is not None
    deployment = state.deployment
    marble = _marble_of(deployment, request.marble_type)
    try:
        if isinstance(verdict, Claims):
            verify_binding(verdict.report_data, client_certificate, strict=False)
        require_admitted(
            verdict, marble.package, deployment.packages[marble.package], deployment.infrastructures, admission
        )
    except Untrusted as error:
        raise ActivationRefused(Stage.EVIDENCE, f"marble verification failed: {error}") from error
    except Denied as error:
        raise ActivationRefused(Stage.EVIDENCE, str(error)) from error
    _check_budget(state, marble, request.marble_type)


def _check_budget(state: State, marble: Marble, marble_type: str) -> None:
    if 0 < marble.max_activations <= state.activations.get(marble_type, 0):
        raise ActivationRefused(
            Stage.BUDGET, f"reached max activations count for marble type {marble_type!r} ({marble.max_activations})"
        )


# -- steps 9 to 14: what it gets ---------------------------------------------------------------------------------


def activate(state: State, request: ActivationRequest, inputs: Inputs) -> Outcome[Activated]:
    """Steps 9 to 14 for an admitted Marble. Where activations are limited, the new state has one more of them."""
    deployment = state.deployment
    if deployment is None:
        raise RuntimeError("activate() needs an admitted request")
    marble = deployment.marbles[request.marble_type]
    uuid = parse_uuid(request.uuid)
    instance = _Instance(state, deployment, request, uuid, inputs)
    reply = _parameters(deployment, marble, request.marble_type, instance)
    event = Event("marble activated", {"marbleType": request.marble_type, "uuid": str(uuid)})
    if marble.max_activations:
        state = count_activation(state, request.marble_type)(state)
    return Outcome(state, reply, (event,))


def count_activation(base: State, marble_type: str) -> Callable[[State], State]:
    """Step 15: one more activation, on whatever state is current then, unless the rules have changed since ``base``."""

    def transition(current: State) -> State:
        if current.deployment is not base.deployment or current.authority is not base.authority:
            raise Conflict("the deployment changed during the activation")
        assert current.deployment is not None
        _check_budget(current, current.deployment.marbles[marble_type], marble_type)
        count = current.activations.get(marble_type, 0) + 1
        return replace(current, activations={**current.activations, marble_type: count})

    return transition


def parse_uuid(text: str) -> UUID:
    """The UUID in any of the four spellings that Go's google/uuid reads (protocol, section 2.4)."""
    spelling = text
    if len(text) == 45 and text[:9].lower() == "urn:uuid:":
        spelling = text[9:]
    elif len(text) == 38:
        spelling = text[1:-1]  # meant for braces, which nobody checks
    if not (_UUID_36.fullmatch(spelling) or (len(text) == 32 and _UUID_32.fullmatch(text))):
        raise ActivationRefused(Stage.UUID, "the UUID cannot be parsed")
    return UUID(spelling)


def _check_names(marble: Marble, request: ActivationRequest) -> None:
    if marble.allowed_dns_names is None and marble.allowed_ips is None:
        return
    try:
        asked = parse_csr(request.csr)
        require_names(f"Marbles.{request.marble_type}", marble, asked.dns_names, asked.ip_addresses)
    except Denied as error:
        raise ActivationRefused(Stage.NAMES, str(error)) from error
    except (Malformed, Untrusted) as error:
        raise ActivationRefused(Stage.CREDENTIALS, f"the marble's certificate cannot be issued: {error}") from error


class _Instance:
    """One Marble instance in the making: its credentials, and its secrets as they are looked at."""

    def __init__(
        self, state: State, deployment: Deployment, request: ActivationRequest, uuid: UUID, inputs: Inputs
    ) -> None:
        authority = state.authority
        issuer = authority.marble_issuer
        marble = deployment.marbles[request.marble_type]
        self.authority = authority
        self.budget = Budget()  # for all its templates together
        _check_names(marble, request)
        self.private_key, self.public_key = inputs.entropy.ec_pair(ec.SECP384R1())
        """PKCS#8 and PKIX DER."""
        try:
            self.certificate = issue_marble_certificate(
                request.csr,
                marble_type=request.marble_type,
                uuid=uuid,
                issuer=issuer,
                public_key=self.public_key,
                at=inputs.at,
                entropy=inputs.entropy,
            )
        except (Malformed, Untrusted) as error:
            raise ActivationRefused(Stage.CREDENTIALS, f"the marble's certificate cannot be issued: {error}") from error
        name = "" if marble.disable_secret_binding else request.marble_type
        shared = generate.Inputs(state.root_secret, issuer, inputs.at, inputs.entropy)
        earlier = replace(shared, root_secret=state.previous_root_secret or state.root_secret)
        self.secrets = InstanceSecrets(deployment.secrets, uuid=uuid, marble_name=name, inputs=shared)
        self.previous = InstanceSecrets(deployment.previous_secrets, uuid=uuid, marble_name=name, inputs=earlier)

    @cached_property
    def certificate_pem(self) -> str:
        """The leaf alone."""
        return certificate_pem(self.certificate)

    @cached_property
    def private_key_pem(self) -> str:
        """PKCS#8 in PEM."""
        return private_key_pem(self.private_key)

    @cached_property
    def data(self) -> TemplateData:
        """What templates may read."""
        authority = self.authority
        own = Secret(type="", certificate=self.certificate, private=self.private_key, public=self.public_key)
        return TemplateData(
            marblerun=ReservedSecrets(
                root_ca=Secret(type="", certificate=authority.marble_root_der),
                marble_cert=own,
                coordinator_root=Secret(type="", certificate=authority.root_der),
                coordinator_intermediate=Secret(type="", certificate=authority.intermediate_der),
            ),
            secrets=self.secrets,
            previous=self.previous,
        )


def _parameters(deployment: Deployment, marble: Marble, marble_type: str, instance: _Instance) -> Activated:
    templates = templates_of(deployment, marble_type)
    files = {path: _render(f"Files[{path}]", content, instance) for path, content in templates.files.items()}
    # What the manifest says of the configuration for TTLS is replaced before it is executed, as in the reference.
    env = {
        name: _render(f"Env[{name}]", content, instance)
        for name, content in templates.env.items()
        if not marble.tls or name != TTLS_VARIABLE
    }
    if marble.tls:
        config = _ttls(deployment, marble, instance)
        env[TTLS_VARIABLE] = _render(f"Env[{TTLS_VARIABLE}]", _compiled(config.encode(), ENV_FUNCTIONS), instance)
    chain = instance.certificate_pem.encode() + instance.authority.intermediate_pem
    env[ROOT_CA_VARIABLE] = instance.authority.marble_root_pem
    env[CHAIN_VARIABLE] = chain
    env[PRIVATE_KEY_VARIABLE] = instance.private_key_pem.encode()
    env[COORDINATOR_ROOT_VARIABLE] = instance.authority.root_pem
    return Activated(files, env, marble.parameters.argv)


def _ttls(deployment: Deployment, marble: Marble, instance: _Instance) -> str:
    credentials = MarbleCredentials(
        marble_root=instance.authority.marble_root_pem.decode(),
        certificate=instance.certificate_pem,
        private_key=instance.private_key_pem,
    )
    try:
        return ttls_config(marble.tls, deployment.tls, instance.secrets, credentials)
    except MarbleRunError as error:
        raise ActivationRefused(Stage.TTLS, f"the TTLS configuration cannot be made: {error}") from error


def _render(name: str, content: bytes | Template, instance: _Instance) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return content.execute(instance.data, budget=instance.budget)
    except Malformed as error:
        raise ActivationRefused(Stage.TEMPLATES, f"{name} cannot be made: {error}") from error


# -- templates, compiled once a deployment -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MarbleTemplates:
    """A Marble's files and variables: finished bytes, or templates to execute for each instance."""

    files: Mapping[str, bytes | Template]
    env: Mapping[str, bytes | Template]
    needs_rsa: bool
    """Whether making them may need a new RSA key."""


def templates_of(
    deployment: Deployment, marble_type: str, unreadable: list[Malformed] | None = None
) -> MarbleTemplates:
    """The compiled templates of a Marble type; compiled when first asked for and kept with the deployment.

    Templates that cannot be compiled are added to ``unreadable`` and left out, and then nothing is kept; without such
    a list the first of them raises ActivationRefused.
    """
    found = deployment.compiled.get(marble_type)
    if isinstance(found, MarbleTemplates):
        return found
    failures: list[Malformed] = []
    found = _compile(deployment, deployment.marbles[marble_type], failures)
    if not failures:
        deployment.compiled[marble_type] = found
    elif unreadable is None:
        raise ActivationRefused(Stage.TEMPLATES, str(failures[0]))
    else:
        unreadable += failures
    return found


def needs_rsa(state: State, marble_type: str) -> bool:
    """Whether this Marble's parameters may need a new RSA key, which takes long: then run ``activate`` in a thread."""
    deployment = state.deployment
    return deployment is not None and templates_of(deployment, marble_type).needs_rsa


def _compile(deployment: Deployment, marble: Marble, failures: list[Malformed]) -> MarbleTemplates:
    files = _compile_files("Files", marble.parameters.files, FILE_FUNCTIONS, failures)
    env = _compile_files("Env", marble.parameters.env, ENV_FUNCTIONS, failures)
    templates = [content for content in (*files.values(), *env.values()) if isinstance(content, Template)]
    return MarbleTemplates(files, env, _reaches_rsa(deployment, marble, templates))


def _compile_files(
    kind: str, files: Mapping[str, File], functions: FunctionSet, failures: list[Malformed]
) -> dict[str, bytes | Template]:
    compiled: dict[str, bytes | Template] = {}
    for name, file in files.items():
        try:
            compiled[name] = file.data if file.no_templates else _compiled(file.data, functions)
        except ActivationRefused as error:
            failures.append(Malformed(error.message, where=f"{kind}[{name}]"))
    return compiled


def _compiled(data: bytes, functions: FunctionSet) -> bytes | Template:
    if b"{{" not in data:
        return data
    try:
        return compile_template(data.decode("utf-8", "surrogateescape"), functions)
    except Malformed as error:
        raise ActivationRefused(Stage.TEMPLATES, f"a template cannot be read: {error}") from error


def _reaches_rsa(deployment: Deployment, marble: Marble, templates: Sequence[Template]) -> bool:
    current, previous = _private_rsa(deployment.secrets), _private_rsa(deployment.previous_secrets)
    if not current and not previous:
        return False
    tags = [deployment.tls[tag] for tag in marble.tls if tag in deployment.tls]
    if any(entry.cert in current for tag in tags for entry in tag.incoming):
        return True
    reached = [template.references() for template in templates]
    return any(r.dynamic or r.secrets & current or r.previous & previous for r in reached)


def _private_rsa(secrets: Mapping[str, Secret]) -> frozenset[str]:
    return frozenset(
        name
        for name, secret in secrets.items()
        if secret.type == SecretType.CERT_RSA and not secret.shared and not secret.user_defined
    )
