"""Any sequence of updates, acknowledgments, uploads and activations does what a small model says it does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.coordinator.manifests import encode
from tests.coordinator.people import office, person
from tests.coordinator.states import INPUTS, applicant, deployed, restarted

from marblerun.coordinator.commands.acknowledge_update import acknowledge_update
from marblerun.coordinator.commands.activate import ActivationRefused, activate, count_activation
from marblerun.coordinator.commands.cancel_update import cancel_update
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.commands.update_manifest import update_manifest
from marblerun.coordinator.commands.write_secrets import write_secrets
from marblerun.coordinator.state import Deployment, State
from marblerun.errors import MarbleRunError, WrongPhase
from marblerun.secrets.upload import SecretUpload

ROLES = {
    "alice": ("updater", "frontend", "writer"),
    "bob": ("updaterToo",),
    "carol": ("updater", "writer"),
    "dave": ("frontend", "reader"),
}
NAMES = st.sampled_from([*ROLES, "stranger"])


@dataclass(frozen=True)
class Variant:
    """A manifest of the family that the machine moves in."""

    users: tuple[str, ...]
    threshold: int
    rotates: bool
    bits: int

    @property
    def updaters(self) -> frozenset[str]:
        return frozenset(self.users) - {"dave"}

    @property
    def needed(self) -> int:
        return self.threshold or len(self.updaters)

    def may(self, who: str, role: str) -> bool:
        return who in self.users and role in ROLES[who]


@cache
def manifest_of(variant: Variant) -> bytes:
    """Its bytes."""
    users = {name: ROLES[name] for name in variant.users}
    document = office(users, UpdateThreshold=variant.threshold, RotateRootSecret=variant.rotates)
    document["Secrets"]["sharedKey"]["Size"] = variant.bits
    return encode(document)


VARIANTS = st.builds(
    Variant,
    st.sampled_from([("alice",), ("alice", "bob", "dave"), ("alice", "bob", "carol"), ("bob", "carol", "dave")]),
    st.sampled_from([0, 1]),
    st.booleans(),
    st.sampled_from([128, 256]),
)


@dataclass
class Model:
    """What has to be true."""

    variant: Variant
    version: int = 1
    log_lines: int = 1
    activations: int = 0
    value: bytes = b""
    """Of the user-defined key."""
    pending: Variant | None = None
    acknowledged: set[str] = field(default_factory=set)

    @property
    def missing(self) -> int:
        return self.variant.needed - len(self.acknowledged)


class Updates(RuleBasedStateMachine):
    """The pure commands against the model; the state is written to entries and read back after every step."""

    def __init__(self) -> None:
        super().__init__()
        first = Variant(("alice", "bob", "carol"), 0, False, 128)
        self.model = Model(first)
        self.state: State = deployed(manifest_of(first))

    @property
    def deployment(self) -> Deployment:
        assert self.state.deployment is not None
        return self.state.deployment

    def _refused(self, is_allowed: bool, attempt: Any) -> bool:
        """Run ``attempt`` where it is allowed; where it is not, it has to raise and to change nothing."""
        if is_allowed:
            self.state = attempt().state
            return False
        with pytest.raises(MarbleRunError):
            attempt()
        return True

    @rule()
    def setting_a_manifest_again_is_refused(self) -> None:
        with pytest.raises(WrongPhase):
            set_manifest(self.state, manifest_of(self.model.variant), INPUTS, {})

    @rule(who=NAMES, variant=VARIANTS)
    def start(self, who: str, variant: Variant) -> None:
        model, before = self.model, self.state
        allowed = who in model.variant.updaters and model.pending is None
        if self._refused(
            allowed, lambda: update_manifest(self.state, person(who).der, manifest_of(variant), INPUTS, {})
        ):
            return
        model.pending, model.acknowledged = variant, {who}
        model.log_lines += 1
        self._apply_if_complete(before)

    @rule(who=NAMES, right=st.booleans(), other=VARIANTS)
    def acknowledge(self, who: str, right: bool, other: Variant) -> None:
        model, before = self.model, self.state
        variant = model.pending if right and model.pending else other
        allowed = who in model.variant.updaters and model.pending == variant
        if self._refused(
            allowed, lambda: acknowledge_update(self.state, person(who).der, manifest_of(variant), INPUTS, {})
        ):
            return
        again = who in model.acknowledged
        model.acknowledged.add(who)
        if again and model.missing > 0:
            assert self.state is before  # nothing grows by saying it twice
            return
        model.log_lines += 1
        self._apply_if_complete(before)

    @precondition(lambda self: self.model.pending is not None)
    @rule(data=st.data())
    def acknowledge_as_wanted(self, data: st.DataObject) -> None:
        """Left to chance an update would hardly ever get through."""
        left = sorted(self.model.variant.updaters - self.model.acknowledged)
        assert self.model.pending is not None
        self.acknowledge(data.draw(st.sampled_from(left)), True, self.model.pending)

    @precondition(lambda self: self.model.pending is None)
    @rule(data=st.data(), variant=VARIANTS)
    def start_as_allowed(self, data: st.DataObject, variant: Variant) -> None:
        self.start(data.draw(st.sampled_from(sorted(self.model.variant.updaters))), variant)

    def _apply_if_complete(self, before: State) -> None:
        model = self.model
        if model.pending is None or model.missing > 0:
            assert (self.state.deployment, self.state.authority) == (before.deployment, before.authority)
            return
        old, model.variant = model.variant, model.pending
        model.pending, model.acknowledged, model.version = None, set(), 1
        model.log_lines += 1
        assert before.deployment is not None
        was, now = before.deployment.secrets["sharedKey"], self.deployment.secrets["sharedKey"]
        earlier = self.deployment.previous_secrets["sharedKey"]
        if old.bits != model.variant.bits:
            assert (earlier, now.private == was.private) == (now, False)
        elif model.variant.rotates:
            assert (earlier, now.private == was.private) == (was, False)
        else:
            assert (now, earlier) == (was, before.deployment.previous_secrets["sharedKey"])
        assert (self.state.previous_root_secret == before.root_secret) == model.variant.rotates
        assert (self.state.root_secret == before.root_secret) != model.variant.rotates
        assert self.state.authority.root_der == before.authority.root_der
        assert self.state.authority.marble_root_der != before.authority.marble_root_der

    @rule(who=NAMES, version=st.integers(0, 9))
    def package(self, who: str, version: int) -> None:
        model = self.model
        raw = json.dumps({"Packages": {"frontend": {"SecurityVersion": version}}}).encode()
        allowed = model.variant.may(who, "frontend") and model.pending is None and version >= model.version
        if not self._refused(allowed, lambda: update_manifest(self.state, person(who).der, raw, INPUTS, {})):
            model.version = version
            model.log_lines += 1

    @rule(who=NAMES)
    def cancel(self, who: str) -> None:
        model = self.model
        allowed = who in model.variant.updaters and model.pending is not None
        if not self._refused(allowed, lambda: cancel_update(self.state, person(who).der, INPUTS)):
            model.pending, model.acknowledged = None, set()
            model.log_lines += 1

    @rule(who=NAMES, value=st.binary(min_size=15, max_size=16))
    def upload(self, who: str, value: bytes) -> None:
        model = self.model
        allowed = model.variant.may(who, "writer") and len(value) == 16
        uploads = {"userKey": SecretUpload(key=value)}
        if not self._refused(allowed, lambda: write_secrets(self.state, person(who).der, uploads, INPUTS)):
            model.value = value
            model.log_lines += 1

    @rule()
    def activate_one(self) -> None:
        reply = activate(self.state, applicant().request("front"), INPUTS).reply
        secrets, previous = self.deployment.secrets, self.deployment.previous_secrets
        assert reply.env["SHARED"].decode() == secrets["sharedKey"].private.hex()
        assert reply.env["SHARED_BEFORE"].decode() == previous["sharedKey"].private.hex()
        rotated = self.state.previous_root_secret not in (None, self.state.root_secret)
        assert (reply.env["PRIVATE"] != reply.env["PRIVATE_BEFORE"]) == rotated
        assert reply.env["MARBLE_PREDEFINED_ROOT_CA"] == self.state.authority.marble_root_pem

    @precondition(lambda self: self.model.activations < 3)
    @rule()
    def activate_limited(self) -> None:
        if self.model.activations < 2:
            self.state = count_activation(self.state, "back")(self.state)
            self.model.activations += 1
        else:
            with pytest.raises(ActivationRefused):
                count_activation(self.state, "back")(self.state)

    @invariant()
    def the_model_is_right(self) -> None:
        model, state = self.model, self.state
        assert self.deployment.manifest == manifest_of(model.variant)
        assert self.deployment.users.keys() == set(model.variant.users)
        assert self.deployment.packages["frontend"].security_version == model.version
        assert self.deployment.secrets["userKey"].private == model.value
        assert self.deployment.secrets.keys() == self.deployment.previous_secrets.keys()
        assert state.update_log.count("\n") == model.log_lines
        assert state.activations.get("back", 0) == model.activations
        if model.pending is None:
            assert state.pending_update is None
        else:
            assert state.pending_update is not None
            assert state.pending_update.manifest == manifest_of(model.pending)
            assert set(state.pending_update.missing_users) == model.variant.updaters - model.acknowledged
            assert state.pending_update.missing == model.missing

    @invariant()
    def a_restart_changes_nothing(self) -> None:
        again = restarted(self.state)
        assert again == self.state
        self.state = again


TestUpdates = Updates.TestCase
TestUpdates.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
