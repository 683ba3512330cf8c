"""Full updates: who has to agree, what they do to secrets and certificates, and what a failure leaves behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from tests.coordinator.manifests import encode
from tests.coordinator.people import ADMIN, UPDATERS, office, person, recovery_key, recovery_pem
from tests.coordinator.states import INPUTS, applicant, deployed, fresh, restarted

from marblerun.coordinator.commands.acknowledge_update import acknowledge_update
from marblerun.coordinator.commands.activate import activate
from marblerun.coordinator.commands.caller import Unauthorized
from marblerun.coordinator.commands.cancel_update import cancel_update
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.commands.start import start_state
from marblerun.coordinator.commands.update_manifest import update_manifest
from marblerun.coordinator.commands.update_reply import NoUpdateInProgress, UpdateReply
from marblerun.coordinator.commands.write_secrets import write_secrets
from marblerun.coordinator.entropy import SystemEntropy
from marblerun.coordinator.state import Deployment, PendingUpdate, State
from marblerun.coordinator.store.entries import (
    decode_pending_update,
    decode_state,
    encode_pending_update,
    encode_state,
)
from marblerun.errors import Conflict, Denied, Malformed, MarbleRunError, Misconfigured, Unavailable
from marblerun.pki.issue import names_of_ca
from marblerun.pki.profiles import SubjectNames
from marblerun.secrets.model import Secret
from marblerun.secrets.upload import SecretUpload

MANIFEST = encode(office())
SHARED = encode(office(UPDATERS))


def _start(state: State, raw: bytes, who: str = "admin") -> tuple[State, UpdateReply]:
    outcome = update_manifest(state, person(who).der, raw, INPUTS, {})
    return outcome.state, outcome.reply


def _acknowledge(state: State, raw: bytes, who: str) -> tuple[State, UpdateReply]:
    outcome = acknowledge_update(state, person(who).der, raw, INPUTS, {})
    return outcome.state, outcome.reply


def _cancel(state: State, who: str) -> State:
    return cancel_update(state, person(who).der, INPUTS).state


def _update(state: State, raw: bytes, who: str = "admin") -> State:
    """An update that one user may do alone."""
    new, reply = _start(state, raw, who)
    assert (reply.missing, reply.missing_users, new.pending_update) == (0, (), None)
    return new


def _in_force(state: State) -> Deployment:
    assert state.deployment is not None
    return state.deployment


def _changed(change: Callable[[dict[str, Any]], object], **config: object) -> bytes:
    document = deepcopy(office(None, **config))
    change(document)
    return encode(document)


def _log(state: State) -> list[dict[str, Any]]:
    return [json.loads(line) for line in state.update_log.splitlines()]


# -- one user ----------------------------------------------------------------------------------------------------


def test_x1_with_one_update_user_the_manifest_is_replaced_at_once() -> None:
    """X1; protocol, section 7.10: two lines of the log, with their fields in order."""
    raw = _changed(lambda m: m["Secrets"].update(newKey={"Type": "symmetric-key", "Size": 128, "Shared": True}))
    old = deployed(MANIFEST)
    new = _update(old, raw)
    assert _in_force(new).manifest == raw
    new.authority.root_key.public_key().verify(_in_force(new).signature, raw, ec.ECDSA(hashes.SHA256()))
    assert _in_force(new).secrets.keys() == json.loads(raw)["Secrets"].keys()
    fingerprint = hashlib.sha256(raw).hexdigest()
    lines = _log(new)[1:]
    assert [list(line) for line in lines] == [
        ["time", "update", "user", "manifestFingerprint"],
        ["time", "update", "manifestFingerprint"],
    ]
    assert [line["manifestFingerprint"] for line in lines] == [fingerprint] * 2
    assert (new.update_log.startswith(old.update_log), new.phase) == (True, old.phase)


def test_x3_users_without_the_permission_and_strangers_are_refused() -> None:
    """X3."""
    state = deployed(encode(office({"admin": ADMIN, "patcher": ("frontend",)})))
    with pytest.raises(Denied):
        _start(state, MANIFEST, "patcher")
    with pytest.raises(Unauthorized):
        _start(state, MANIFEST, "stranger")
    with pytest.raises(Unauthorized):
        _start(fresh(), MANIFEST)


def _bad(section: str, **entries: object) -> bytes:
    return _changed(lambda m: m[section].update(entries))


BAD_MANIFESTS = {
    "missing secret": _bad(
        "Marbles", x={"Package": "frontend", "Parameters": {"Env": {"A": "{{ hex .Secrets.missing }}"}}}
    ),
    "no such package": _bad("Marbles", x={"Package": "missing"}),
    "template syntax": _bad("Marbles", x={"Package": "frontend", "Parameters": {"Env": {"A": "{{ nonsense"}}}),
    "secret that cannot be made": _bad("Secrets", x={"Type": "cert-rsa", "Size": 512, "Shared": True}),
    "user certificate": _bad("Users", x={"Certificate": "nonsense", "Roles": []}),
    "recovery key": _changed(lambda m: m.update(RecoveryKeys={"x": "nonsense"})),
    "threshold": _changed(lambda m: m["Config"].update(UpdateThreshold=2)),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_x3_what_cannot_work_is_refused_at_the_start_and_nothing_is_pending(name: str) -> None:
    """X3: also where others would have to acknowledge it, so that nobody does in vain."""
    for state, who in ((deployed(MANIFEST), "admin"), (deployed(SHARED), "alice")):
        with pytest.raises(Malformed):
            _start(state, BAD_MANIFESTS[name], who)


class _NoKeys(SystemEntropy):
    """Randomness that runs out when a key is asked for."""

    def ec_key(self, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        raise Unavailable("no randomness")


def test_x19_an_update_whose_keys_or_secrets_cannot_be_made_changes_nothing() -> None:
    """X19; a missing root certificate is no state at all: see R9."""
    broken = replace(INPUTS, entropy=_NoKeys())
    for state, who in ((deployed(MANIFEST), "admin"), (deployed(SHARED), "alice")):
        with pytest.raises(Unavailable):
            update_manifest(state, person(who).der, encode(office()), broken, {})
        assert state.pending_update is None


def test_hsm_sealing_is_refused_before_anything_is_pending() -> None:
    variables = ["EDG_MAA_URL", "EDG_AZURE_HSM_VAULT_URL", "EDG_AZURE_HSM_KEY_NAME", "EDG_AZURE_CLIENT_ID"]
    environment = dict.fromkeys([*variables, "EDG_AZURE_TENANT_ID", "EDG_AZURE_CLIENT_SECRET"], "x")
    raw = encode(office(FeatureGates=["AzureHSMSealing"]))
    with pytest.raises(Misconfigured):
        update_manifest(deployed(MANIFEST), person("admin").der, raw, INPUTS, environment)


def test_a_template_may_take_a_part_of_a_symmetric_key_and_name_its_certificate() -> None:
    """Protocol, section 5.8: in the dry run of an update symmetric keys are stand-ins; nothing that passes there fails
    here, and nothing fails here that would work."""
    templates = {"A": "{{ hex (slice .Secrets.sharedKey.Private 0 8) }}", "B": "{{ hex .Secrets.sharedKey.Cert }}"}
    marble = {"Package": "frontend", "Parameters": {"Env": templates}}
    _update(deployed(MANIFEST), _changed(lambda m: m["Marbles"].update(x=marble)))


# -- several users -----------------------------------------------------------------------------------------------


def test_x2_with_several_update_users_the_update_waits() -> None:
    """X2, X6, E6: roles with different names and spellings form one group of users."""
    raw = encode(office(UPDATERS, RotateRootSecret=True))
    old = deployed(SHARED)
    state, reply = _start(old, raw, "alice")
    assert (reply.missing, reply.missing_users, reply.recovery_secrets) == (2, ("bob", "carol"), None)
    assert state.pending_update == PendingUpdate(raw, {"alice": True, "bob": False, "carol": False}, 2)
    assert (state.deployment, state.authority, state.root_secret) == (old.deployment, old.authority, old.root_secret)
    assert [list(line) for line in _log(state)[1:]] == [
        ["time", "update", "user", "missingAcknowledgments", "missingUsers", "manifestFingerprint"]
    ]


def test_x6_a_second_acknowledgment_by_the_same_user_changes_nothing() -> None:
    """X6; threats: one person counts once, and cannot make the log grow by repeating it."""
    raw = encode(office(UPDATERS, RotateRootSecret=True))
    state, _ = _start(deployed(SHARED), raw, "alice")
    again, reply = _acknowledge(state, raw, "alice")
    assert (again.pending_update, reply.missing) == (state.pending_update, 2)
    assert again is state


def test_x8_the_last_acknowledgment_applies_the_update() -> None:
    """X8."""
    raw = encode(office(UPDATERS, RotateRootSecret=True))
    state, _ = _start(deployed(SHARED), raw, "alice")
    state, reply = _acknowledge(state, raw, "carol")
    assert (reply.missing, reply.missing_users) == (1, ("bob",))
    assert reply.message.split()[0] == "1"
    state, reply = _acknowledge(state, raw, "bob")
    assert (reply.missing, reply.missing_users, reply.recovery_secrets) == (0, (), None)
    assert reply.message.split()[0] == "All"
    assert (state.pending_update, _in_force(state).manifest) == (None, raw)
    assert [line.get("missingAcknowledgments") for line in _log(state)] == [None, 2, 1, 0, None]
    assert [line.get("missingUsers") for line in _log(state)[1:4]] == [["bob", "carol"], ["bob"], []]


def test_x7_while_an_update_is_pending_no_other_one_is_started() -> None:
    """X7: whatever the body is."""
    state, _ = _start(deployed(SHARED), SHARED, "alice")
    for raw in (SHARED, encode(office()), b'{"Packages":{"frontend":{"SecurityVersion":9}}}'):
        with pytest.raises(Conflict, match="update already in progress"):
            _start(state, raw, "alice")


def test_x7_acknowledging_anything_but_the_very_bytes_is_refused() -> None:
    """X7; threats: approval of A is not approval of B, not even of A with a space more."""
    state, _ = _start(deployed(SHARED), SHARED, "alice")
    for raw in (SHARED + b" ", SHARED[:-1], b"", encode(office())):
        with pytest.raises(Conflict):
            _acknowledge(state, raw, "bob")


def test_x11_only_the_users_fixed_at_the_start_may_acknowledge() -> None:
    """X11: somebody who is only in the new manifest cannot agree to it."""
    users = {**UPDATERS, "reader": ("reader",)}
    raw = encode(office({**users, "dave": ADMIN}))
    state, _ = _start(deployed(encode(office(users))), raw, "alice")
    with pytest.raises(Denied):
        _acknowledge(state, raw, "reader")
    with pytest.raises(Unauthorized):
        _acknowledge(state, raw, "dave")


@pytest.mark.parametrize(("acknowledged", "missing"), [({}, 0), ({"a": False}, 1), ({"a": True, "b": False}, 1)])
def test_x11_missing_users_are_those_who_have_not_acknowledged(acknowledged: dict[str, bool], missing: int) -> None:
    """X11."""
    pending = PendingUpdate(b"", acknowledged, missing)
    assert len(pending.missing_users) == missing
    assert decode_pending_update(encode_pending_update(pending)) == pending


def test_x5_with_nothing_pending_there_is_nothing_to_acknowledge_or_cancel() -> None:
    """X5: the text is fixed."""
    state = deployed(SHARED)
    for attempt in (lambda: _acknowledge(state, SHARED, "bob"), lambda: _cancel(state, "bob")):
        with pytest.raises(NoUpdateInProgress, match="no update in progress"):
            attempt()


def test_x9_one_user_cancels_and_another_update_can_start() -> None:
    """X9."""
    old = deployed(SHARED)
    state, _ = _start(old, SHARED, "alice")
    state = _cancel(state, "carol")
    assert (state.pending_update, state.deployment) == (None, old.deployment)
    assert list(_log(state)[-1]) == ["time", "update", "user", "manifestFingerprint"]
    assert _log(state)[-1]["user"] == "carol"
    _, reply = _start(state, SHARED, "bob")
    assert (reply.missing, reply.missing_users) == (2, ("alice", "carol"))


def test_cancelling_needs_the_permission_to_update() -> None:
    """Threats: no unauthenticated cancel (OpenBao, CVE-2025-52894)."""
    users = {**UPDATERS, "reader": ("reader",)}
    state, _ = _start(deployed(encode(office(users))), SHARED, "alice")
    with pytest.raises(Denied):
        _cancel(state, "reader")
    with pytest.raises(Unauthorized):
        _cancel(state, "stranger")


def test_x10_the_stored_form_is_the_references() -> None:
    """X10: field names, base64, and a missing count means everybody who has not acknowledged."""
    state, _ = _start(deployed(SHARED), SHARED, "alice")
    entry = json.loads(encode_state(state)["pendingUpdate"])
    assert list(entry) == ["manifestRaw", "requiredUsers", "missingAcknowledgments"]
    assert entry["requiredUsers"] == {"alice": True, "bob": False, "carol": False}
    assert decode_pending_update(
        b'{"manifestRaw":"e30=","requiredUsers":{"a":true,"b":false,"c":false}}'
    ) == PendingUpdate(b"{}", {"a": True, "b": False, "c": False}, 2)
    with pytest.raises(Malformed):
        decode_state({**encode_state(state), "pendingUpdate": b"{"})


def test_a_state_that_stopped_after_the_last_acknowledgment_is_applied_by_the_next_one() -> None:
    """The reference commits the acknowledgment before it applies; a crash in between leaves a count of 0."""
    state, _ = _start(deployed(SHARED), SHARED, "alice")
    pending = PendingUpdate(SHARED, dict.fromkeys(UPDATERS, True), 0)
    new, reply = _acknowledge(replace(state, pending_update=pending), SHARED, "bob")
    assert (reply.missing, new.pending_update, _in_force(new).manifest) == (0, None, SHARED)


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_x3_an_update_that_cannot_be_applied_in_the_end_is_dropped_and_the_old_state_stays(name: str) -> None:
    """X3; protocol, section 9.5, last part: a pending update of the reference, which looks at it only then."""
    raw = BAD_MANIFESTS[name]
    old = deployed(SHARED)
    pending = PendingUpdate(raw, {"alice": True, "bob": False, "carol": True}, 1)
    state, reply = _acknowledge(replace(old, pending_update=pending), raw, "bob")
    assert isinstance(reply.failure, Malformed)
    assert replace(state, update_log=old.update_log) == old
    assert [list(line) for line in _log(state)[1:]] == [
        ["time", "update", "user", "missingAcknowledgments", "missingUsers", "manifestFingerprint"],
        ["time", "update", "manifestFingerprint"],
    ]


@pytest.mark.parametrize(("threshold", "missing"), [(0, 2), (1, 0), (2, 1), (3, 2)])
def test_e13_the_threshold_in_force_says_how_many_have_to_agree(threshold: int, missing: int) -> None:
    """E13; threats: one less than enough is not enough."""
    raw = encode(office(UPDATERS, UpdateThreshold=1, RotateRootSecret=True))
    state, reply = _start(deployed(encode(office(UPDATERS, UpdateThreshold=threshold))), raw, "alice")
    assert reply.missing == missing
    for left, who in zip(reversed(range(missing)), ("bob", "carol"), strict=False):
        assert _in_force(state).manifest != raw
        state, reply = _acknowledge(state, raw, who)
        assert reply.missing == left
    assert (_in_force(state).manifest, state.pending_update) == (raw, None)


def test_e13_consecutive_updates_follow_the_manifest_in_force() -> None:
    """E13: thresholds 1, 2, 0 one after the other."""
    one, two, every = (encode(office(UPDATERS, UpdateThreshold=n)) for n in (1, 2, 0))
    state = _update(deployed(one), two, "alice")
    state, reply = _start(state, every, "alice")
    assert (reply.missing, reply.missing_users) == (1, ("bob", "carol"))
    state, reply = _acknowledge(state, every, "carol")
    assert reply.missing == 0
    assert _start(state, one, "bob")[1].missing == 2


def test_e5_a_user_who_was_added_has_to_agree_to_being_the_only_one() -> None:
    """E5: add a user, who must acknowledge; then the first one is gone and cannot do anything."""
    both, only = encode(office({"alice": ADMIN, "bob": ADMIN})), encode(office({"bob": ADMIN}))
    state = _update(deployed(encode(office({"alice": ADMIN}))), both, "alice")
    state, reply = _start(state, only, "alice")
    assert (reply.missing, reply.missing_users) == (1, ("bob",))
    state, reply = _acknowledge(state, only, "bob")
    assert reply.missing == 0
    with pytest.raises(Unauthorized):
        _start(state, both, "alice")
    assert _in_force(_update(state, only, "bob")).users.keys() == {"bob"}


# -- what it does ------------------------------------------------------------------------------------------------


def test_x12_entities_are_added_removed_replaced_and_kept() -> None:
    """X12, E4: what is equal stays in its stored form, spelling and order included."""
    old = deployed(MANIFEST)

    def change(m: dict[str, Any]) -> None:
        m["Packages"]["new"] = {"Debug": True}
        m["Packages"]["frontend"] = {**m["Packages"]["frontend"], "SecurityVersion": 3}
        m["Marbles"]["front"]["Parameters"]["Argv"] = ["x"]
        m["Marbles"]["new"] = {"Package": "new"}
        del m["Marbles"]["plain"], m["Packages"]["debugger"]
        m["TLS"] = {"web": {"Incoming": [{"Port": "1"}]}}
        m["Infrastructures"] = {"azure": {"QESVN": 2}}
        m["Users"]["dave"] = {"Certificate": person("dave").pem, "Roles": ["reader"]}

    new = _in_force(_update(old, _changed(change)))
    assert new.packages.keys() == {"frontend", "backend", "new"}
    assert new.packages["frontend"].security_version == 3
    assert new.marbles.keys() == {"front", "back", "new"}
    assert new.marbles["front"].parameters.argv == ("x",)
    assert new.marbles["back"] is _in_force(old).marbles["back"]
    assert [set(section) for section in (new.tls, new.infrastructures, new.users)] == [
        {"web"},
        {"azure"},
        {"admin", "dave"},
    ]
    entries = encode_state(_update(old, _changed(change)))
    assert not {"package:debugger", "marble:plain"} & entries.keys()


def test_x12_tags_in_another_order_leave_the_stored_marble_alone() -> None:
    """Protocol, section 9.5: equality ignores the order of tags, so the stored order stays in force."""

    def tags(*names: str) -> bytes:
        def change(m: dict[str, Any]) -> None:
            m["TLS"] = {"a": {"Incoming": [{"Port": "1"}]}, "b": {"Outgoing": [{"Port": "1", "Addr": "x"}]}}
            m["Marbles"]["front"]["TLS"] = list(names)

        return _changed(change)

    new = _update(deployed(tags("a", "b")), tags("b", "a"))
    assert _in_force(new).marbles["front"].tls == ("a", "b")


def test_x13_the_root_stays_and_the_intermediate_is_new_under_the_same_names() -> None:
    """X13."""
    names = SubjectNames(("marble.example",), (ip_address("192.0.2.7"),))
    old = set_manifest(start_state(names, INPUTS), MANIFEST, INPUTS, {}).state
    new = _update(old, MANIFEST)
    assert (new.authority.root_der, new.authority.root_key) == (old.authority.root_der, old.authority.root_key)
    for one, other in (
        (new.authority.intermediate_der, old.authority.intermediate_der),
        (new.authority.marble_root_der, old.authority.marble_root_der),
    ):
        assert one != other
        assert names_of_ca(one) == names_of_ca(other) == names
    new.authority.intermediate.verify_directly_issued_by(new.authority.root)


def test_x14_the_root_secret_changes_only_with_rotation() -> None:
    """X14, I15: previous = current at first; rotation shifts, an update without it keeps both, again shifts."""
    state = deployed(MANIFEST)
    assert state.previous_root_secret is None
    rotated = _update(state, encode(office(RotateRootSecret=True)))
    assert rotated.previous_root_secret == state.root_secret != rotated.root_secret
    kept = _update(rotated, MANIFEST)
    assert (kept.root_secret, kept.previous_root_secret) == (rotated.root_secret, rotated.previous_root_secret)
    again = _update(kept, encode(office(RotateRootSecret=True)))
    assert again.previous_root_secret == rotated.root_secret != again.root_secret


def _secret(state: State, name: str) -> tuple[Secret, Secret]:
    return _in_force(state).secrets[name], _in_force(state).previous_secrets[name]


def test_x15_removed_secrets_vanish_and_all_current_ones_have_a_previous_one() -> None:
    """X15, E4."""

    def change(m: dict[str, Any]) -> None:
        del m["Secrets"]["defaultCert"]
        m["Secrets"]["new"] = {"Type": "symmetric-key", "Size": 128, "Shared": True}

    new = _update(deployed(MANIFEST), _changed(change))
    assert "defaultCert" not in _in_force(new).secrets
    assert _in_force(new).previous_secrets.keys() == _in_force(new).secrets.keys()
    assert _secret(new, "new")[0] == _secret(new, "new")[1]
    assert not {"secret:defaultCert", "previousSecret:defaultCert"} & encode_state(new).keys()


def test_x16_rotation_changes_a_shared_key_and_keeps_the_old_one_as_previous() -> None:
    """X16; with the next update without rotation both stay."""
    old = deployed(MANIFEST)
    new = _update(old, encode(office(RotateRootSecret=True)))
    current, previous = _secret(new, "sharedKey")
    assert previous == _secret(old, "sharedKey")[0]
    assert current.private != previous.private
    assert _secret(_update(new, MANIFEST), "sharedKey") == (current, previous)


def test_x16_a_marble_reads_both_keys_after_rotation() -> None:
    """X16, threats: after a rotation the previous value is readable, the private one too."""
    old = deployed(MANIFEST)
    new = _update(old, encode(office(RotateRootSecret=True)))
    before, after = (activate(state, applicant().request("front"), INPUTS).reply.env for state in (old, new))
    assert (before["SHARED"], before["PRIVATE"]) == (before["SHARED_BEFORE"], before["PRIVATE_BEFORE"])
    assert (after["SHARED_BEFORE"], after["PRIVATE_BEFORE"]) == (before["SHARED"], before["PRIVATE"])
    assert after["SHARED"] != before["SHARED"]
    assert after["PRIVATE"] != before["PRIVATE"]


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("sharedKey", {"Type": "symmetric-key", "Size": 256, "Shared": True}),
        ("sharedKey", {"Type": "cert-ed25519", "Shared": True}),
        ("sharedCert", {"Type": "cert-ecdsa", "Size": 384, "Shared": True, "ValidFor": 7}),
        ("sharedCert", {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "ValidFor": 8}),
        ("userKey", {"Type": "symmetric-key", "Size": 256, "UserDefined": True}),
        ("userKey", {"Type": "symmetric-key", "Size": 128, "Shared": True}),
        ("defaultCert", {"Type": "cert-ed25519", "Shared": True}),
    ],
)
def test_x17_another_definition_is_another_secret(name: str, definition: dict[str, object]) -> None:
    """X17; a certificate without ValidFor counts as changed, because 365 is what is stored (the reference's quirk)."""

    def change(m: dict[str, Any]) -> None:
        m["Marbles"]["front"].pop("Parameters")
        m["Secrets"][name] = definition
        if name == "userKey":
            m["Roles"] = {"updater": m["Roles"]["updater"]}
            m["Users"]["admin"]["Roles"] = ["updater"]

    old = _write(deployed(MANIFEST), userKey=bytes(16))
    new = _update(old, _changed(change))
    current, previous = _secret(new, name)
    assert current == previous
    assert current.private != _secret(old, name)[0].private
    assert bool(current.private) != bool(definition.get("UserDefined"))


def _write(state: State, **values: bytes) -> State:
    uploads = {name: SecretUpload(key=value) for name, value in values.items()}
    return write_secrets(state, person("admin").der, uploads, INPUTS).state


def test_x18_unchanged_user_defined_and_symmetric_secrets_keep_their_value() -> None:
    """X18, E4: also with rotation, as far as users have set them."""
    old = _write(deployed(MANIFEST), userKey=bytes(range(16)), userPlain=b"text")
    for raw in (MANIFEST, encode(office(RotateRootSecret=True))):
        new = _update(old, raw)
        for name in ("userKey", "userPlain", "userCert"):
            assert _secret(new, name) == _secret(old, name)
    assert _secret(_update(old, MANIFEST), "sharedKey") == _secret(old, "sharedKey")


def test_an_unchanged_certificate_is_made_anew_and_the_old_one_becomes_the_previous_one() -> None:
    """Protocol, section 9.5, step 2; a lifetime in days begins again."""
    old = deployed(MANIFEST)
    later = replace(INPUTS, at=INPUTS.at + timedelta(days=3))
    new = update_manifest(old, person("admin").der, MANIFEST, later, {}).state
    for name in ("sharedCert", "privateCert"):
        current, previous = _secret(new, name)
        assert previous == _secret(old, name)[0]
        assert (current.private, current.certificate) != (previous.private, previous.certificate)


def test_versions_of_packages_are_what_the_new_manifest_says() -> None:
    """Protocol, section 9.5, end: no protection against a downgrade, but the operator is told."""
    raised = _update(deployed(MANIFEST), b'{"Packages":{"frontend":{"SecurityVersion":9}}}')
    outcome = update_manifest(raised, person("admin").der, MANIFEST, INPUTS, {})
    assert _in_force(outcome.state).packages["frontend"].security_version == 1
    assert [event.fields for event in outcome.events if event.warning] == [{"packages": "frontend"}]


def test_counters_and_the_log_of_the_past_are_kept() -> None:
    """Protocol, section 9.5, "Kept"."""
    old = replace(
        deployed(MANIFEST), activations={"back": 2}, counters={"YQ==:YQ==:YQ==": 7}, other_entries={"x": b"y"}
    )
    new = _update(old, MANIFEST)
    assert (new.activations, new.counters, new.other_entries) == (old.activations, old.counters, old.other_entries)


# -- recovery keys -----------------------------------------------------------------------------------------------


def _with_keys(*names: str, threshold: int = 0) -> bytes:
    return _changed(
        lambda m: m.update(RecoveryKeys={name: recovery_pem(name) for name in names}), RecoveryThreshold=threshold
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("a",), ("a", "b")),
        ((), ("a",)),
        (("a", "b"), ("b",)),
        (("a", "b"), ("a", "c")),
        (("a", "b", "c"), ("d", "e")),
        (("a", "b"), ()),
    ],
)
def test_x4_other_recovery_keys_mean_a_new_data_key_and_new_secrets_for_their_holders(
    before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    """X4, E15, E16, I13: the shares lead to the key that seals from now on; the recovery data is never empty."""
    old = deployed(_with_keys(*before))
    new, reply = _start(old, _with_keys(*after))
    assert (reply.recovery_secrets or {}).keys() == set(after)
    assert reply.recovery_secrets is not None
    assert old.data_key is not None
    assert new.data_key is not None
    assert new.data_key.key != old.data_key.key
    assert new.data_key.recovery_data
    shares = [_decrypt(name, share) for name, share in reply.recovery_secrets.items()]
    if shares:
        key = bytes(32)
        for share in shares:
            key = bytes(a ^ b for a, b in zip(key, share, strict=True))
        assert key == new.data_key.key


def _decrypt(name: str, share: bytes) -> bytes:
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    return recovery_key(name).decrypt(share, oaep)


def test_x4_a_threshold_that_means_the_same_keeps_the_data_key_and_another_one_does_not() -> None:
    """X4; protocol, section 9.5, step 4: 0 is "all"."""
    old = deployed(_with_keys("a", "b", "c"))
    same, reply = _start(old, _with_keys("a", "b", "c", threshold=3))
    assert (reply.recovery_secrets, same.data_key) == (None, old.data_key)
    other, reply = _start(old, _with_keys("a", "b", "c", threshold=2))
    assert other.data_key != old.data_key
    assert {len(_decrypt(name, share)) for name, share in (reply.recovery_secrets or {}).items()} == {33}


def test_x4_the_new_secrets_go_to_whoever_acknowledges_last() -> None:
    """Protocol, section 9.4."""
    document = office(UPDATERS, UpdateThreshold=2)
    raw = encode({**document, "RecoveryKeys": {"a": recovery_pem("a")}})
    state, reply = _start(deployed(encode(document)), raw, "alice")
    assert (reply.recovery_secrets, state.data_key) == (None, deployed(encode(document)).data_key)
    state, reply = _acknowledge(state, raw, "bob")
    assert state.data_key is not None
    assert _decrypt("a", (reply.recovery_secrets or {})["a"]) == state.data_key.key


# -- stored ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [SHARED, encode(office(UPDATERS, RotateRootSecret=True, UpdateThreshold=1))])
def test_a_restart_gives_back_the_very_state_before_and_after_an_update(raw: bytes) -> None:
    """E9: a pending update survives."""
    state, _ = _start(deployed(SHARED), raw, "alice")
    for who in ("bob", "carol"):
        assert restarted(state) == state
        state, _ = _acknowledge(state, raw, who)
    assert state.pending_update is None
    assert restarted(state) == state


def test_nothing_but_errors_of_our_tree_comes_out_for_any_body() -> None:
    for raw in (
        b"",
        b"null",
        b"[]",
        b"\xff",
        b'{"Packages":null}',
        b'{"Marbles":{}}',
        b'{"Users":{"a":{}}}',
        SHARED[:-9],
    ):
        with pytest.raises(MarbleRunError):
            _start(deployed(SHARED), raw, "alice")
