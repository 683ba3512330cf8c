"""Starting, setting the manifest, its log line, and trying its templates."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.coordinator.manifests import INTEGRATION, encode, integration
from tests.coordinator.states import AT, INPUTS, NAMES, deployed, fresh

from marblerun.coordinator.commands.dry_run import try_templates
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.commands.start import recovery_state, start_state
from marblerun.coordinator.commands.ttls import MarbleCredentials, ttls_config
from marblerun.coordinator.commands.update_log import log_line
from marblerun.coordinator.state import Phase
from marblerun.errors import Denied, Malformed, NotFound, WrongPhase
from marblerun.manifest.model import TlsEntry, TlsTag
from marblerun.secrets.model import Secret


def test_c1_a_fresh_coordinator_waits_for_a_manifest_with_a_ca_of_its_own() -> None:
    """C1."""
    state = start_state(NAMES, INPUTS)
    assert state.phase is Phase.ACCEPTING_MANIFEST
    assert state.authority.root.subject.rfc4514_string() == "CN=MarbleRun Coordinator"
    assert state.authority.intermediate.subject.rfc4514_string() == "CN=MarbleRun Coordinator - Intermediate CA"
    assert state.authority.marble_root.issuer == state.authority.intermediate.subject
    state.authority.intermediate.verify_directly_issued_by(state.authority.root)
    state.authority.marble_root.verify_directly_issued_by(state.authority.intermediate)
    assert (len(state.root_secret), state.deployment) == (32, None)
    assert state.data_key is not None
    assert (len(state.data_key.key), state.data_key.recovery_data) == (32, b"null")


def test_c4_every_fresh_start_has_another_root_and_another_secret() -> None:
    """C4."""
    first, second = start_state(NAMES, INPUTS), start_state(NAMES, INPUTS)
    assert first.authority.root_der != second.authority.root_der
    assert first.root_secret != second.root_secret


def test_a_recovery_state_keeps_the_recovery_data_and_has_no_data_key() -> None:
    state = recovery_state(NAMES, b'{"a":1}', INPUTS)
    assert state.phase is Phase.RECOVERY
    assert state.data_key is not None
    assert (state.data_key.key, state.data_key.recovery_data) == (b"", b'{"a":1}')


def test_sm1_a_manifest_is_set_once_and_the_first_one_stays() -> None:
    """SM1."""
    state = deployed()
    assert state.phase is Phase.ACCEPTING_MARBLES
    with pytest.raises(WrongPhase, match="server is not in expected state"):
        set_manifest(state, INTEGRATION, INPUTS, {})


@pytest.mark.parametrize("broken", [b"", b"{", b"[]x", b'{"Packages":', b"\xff", INTEGRATION + b"x"])
def test_sm1_broken_manifests_are_refused(broken: bytes) -> None:
    """SM1."""
    with pytest.raises(Malformed):
        set_manifest(fresh(), broken, INPUTS, {})


def test_sm2_no_other_phase_takes_a_manifest() -> None:
    """SM2."""
    for phase in (Phase.UNINITIALIZED, Phase.ACCEPTING_MARBLES):
        with pytest.raises(WrongPhase):
            set_manifest(replace(fresh(), phase=phase), INTEGRATION, INPUTS, {})


def test_sm3_the_signature_is_the_root_keys_over_the_exact_bytes() -> None:
    """SM3."""
    raw = b" " + INTEGRATION + b"\n"
    deployment = set_manifest(fresh(), raw, INPUTS, {}).state.deployment
    assert deployment is not None
    assert deployment.manifest == raw
    key = fresh().authority.root_key.public_key()
    key.verify(deployment.signature, raw, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        key.verify(deployment.signature, INTEGRATION, ec.ECDSA(hashes.SHA256()))


def test_sm5_a_recovery_secret_can_be_decrypted_with_the_private_key_and_is_the_data_key() -> None:
    """SM5."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    document = integration()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    document["RecoveryKeys"] = {"alice": pem}
    outcome = set_manifest(fresh(), encode(document), INPUTS, {})
    assert list(outcome.reply) == ["alice"]
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    assert outcome.state.data_key is not None
    assert key.decrypt(outcome.reply["alice"], oaep) == outcome.state.data_key.key


def test_setting_keeps_ca_and_root_secret_and_starts_the_log() -> None:
    """Protocol, section 3.2."""
    outcome = set_manifest(fresh(), INTEGRATION, INPUTS, {})
    assert outcome.state.authority is fresh().authority
    assert outcome.state.root_secret == fresh().root_secret
    assert outcome.reply == {}
    assert json.loads(outcome.state.update_log) == {
        "time": "2026-06-01T12:30:15.123Z",
        "update": "initial manifest set",
    }
    assert outcome.events[0].fields["fingerprint"] == hashlib.sha256(INTEGRATION).hexdigest()


def test_of_a_state_that_was_stored_before_the_manifest_only_the_root_is_kept() -> None:
    """Whoever brings that state back has nothing secret of the deployment, and no CA that its Marbles trust."""
    before, after = fresh(), set_manifest(fresh(), INTEGRATION, INPUTS, {}, was_stored=True).state
    assert before.data_key is not None
    assert after.data_key is not None
    assert after.data_key.key != before.data_key.key
    assert after.root_secret != before.root_secret
    assert after.authority.root is before.authority.root
    assert after.authority.intermediate_key is not before.authority.intermediate_key
    assert after.authority.marble_root.public_key() != before.authority.marble_root.public_key()
    after.authority.intermediate.verify_directly_issued_by(before.authority.root)


def test_in_recovery_a_new_manifest_starts_over() -> None:
    lost = replace(recovery_state(NAMES, b"null", INPUTS), activations={"once": 1}, other_entries={"x": b"y"})
    state = set_manifest(lost, INTEGRATION, INPUTS, {}).state
    assert state.phase is Phase.ACCEPTING_MARBLES
    assert (state.activations, state.other_entries) == ({}, {})
    assert state.data_key is not None
    assert len(state.data_key.key) == 32


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("{{ hex .Secrets.missing }}", "no such secret"),
        ("{{ pem .Secrets.sharedKey }}", "pem"),
        ("{{ raw .Secrets.sharedKey }}", "NUL|raw"),
        ("{{ hex .MarbleRun.RootCA.Private }}", "Private|value"),
        ("{{ .Secrets", "template"),
    ],
)
def test_templates_are_tried_before_anything_is_kept(env: str, message: str) -> None:
    document = integration()
    document["Marbles"]["bare"]["Parameters"] = {"Env": {"X": env}}
    with pytest.raises((Malformed, Denied), match=message) as refused:
        set_manifest(fresh(), encode(document), INPUTS, {})
    assert "bare" in str(refused.value)


def test_a_plain_environment_value_must_not_hold_a_nul_byte() -> None:
    document = integration()
    document["Marbles"]["bare"]["Parameters"] = {"Env": {"X": {"Encoding": "hex", "Data": "00", "NoTemplates": True}}}
    with pytest.raises(Malformed, match="NUL"):
        set_manifest(fresh(), encode(document), INPUTS, {})


def test_all_broken_templates_are_told_at_once_each_with_its_place() -> None:
    document = integration()
    document["Marbles"]["bare"]["Parameters"] = {
        "Files": {"/a": "{{ .Secrets", "/b": "fine", "/c": "{{ hex .Secrets.missing }}"},
        "Env": {"X": "{{ end }}"},
    }
    with pytest.raises(Malformed) as refused:
        set_manifest(fresh(), encode(document), INPUTS, {})
    message = str(refused.value)
    assert message.startswith("Marbles.bare.Parameters.Files[/a]: a template cannot be read: ")
    assert "; Marbles.bare.Parameters.Files[/c]: " in message
    assert "; Marbles.bare.Parameters.Env[X]: a template cannot be read: " in message
    assert "[/b]" not in message


def test_no_more_than_fifty_broken_templates_are_told() -> None:
    document = integration()
    document["Marbles"]["bare"]["Parameters"] = {"Files": {f"/{number}": "{{ no }}" for number in range(1000)}}
    with pytest.raises(Malformed) as refused:
        set_manifest(fresh(), encode(document), INPUTS, {})
    assert str(refused.value).count("Marbles.bare.Parameters.Files[") == 50
    assert str(refused.value).endswith("; and more")


def test_the_dry_run_accepts_what_was_accepted() -> None:
    deployment = deployed().deployment
    assert deployment is not None
    before = dict(deployment.compiled)
    try_templates(deployment)
    assert deployment.compiled == before


# -- small pieces ------------------------------------------------------------------------------------------------


def test_a_log_line_is_utc_with_milliseconds_and_escapes_as_go_does() -> None:
    """Protocol, section 7.10."""
    at = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    line = log_line(at, "a<b", {"user": "x", "new version": 3})
    assert line == '{"time":"2026-06-01T12:30:15.123Z","update":"a\\u003cb","user":"x","new version":3}\n'
    assert log_line(datetime(2026, 1, 2, 3, 4, 5, 999999, tzinfo=UTC), "u").startswith(
        '{"time":"2026-01-02T03:04:05.999Z"'
    )


CREDENTIALS = MarbleCredentials("ROOT", "CERT", "KEY")


def test_a_later_tls_entry_replaces_an_earlier_one_for_the_same_port() -> None:
    secrets = {"s": Secret(type="cert-ecdsa", certificate=b"c", private=b"p")}
    tags = {
        "a": TlsTag(incoming=(TlsEntry(port="1", cert="s", disable_client_auth=True),)),
        "b": TlsTag(incoming=(TlsEntry(port="1"),)),
    }
    one = json.loads(ttls_config(("a", "b"), tags, secrets, CREDENTIALS))["tls"]["Incoming"]["*:1"]
    two = json.loads(ttls_config(("b", "a"), tags, secrets, CREDENTIALS))["tls"]["Incoming"]["*:1"]
    assert (one["clientAuth"], one["clicrt"]) == (True, "CERT")
    assert (two["clientAuth"], two["cacrt"]) == (False, "ROOT")


def test_both_sides_of_the_ttls_configuration_are_always_there() -> None:
    assert ttls_config((), {}, {}, CREDENTIALS) == '{"tls":{"Incoming":{},"Outgoing":{}}}'


def test_an_unset_certificate_gives_an_empty_pem_block() -> None:
    tags = {"a": TlsTag(incoming=(TlsEntry(port="1", cert="s"),))}
    config = json.loads(ttls_config(("a",), tags, {"s": Secret(type="cert-rsa")}, CREDENTIALS))
    entry = config["tls"]["Incoming"]["*:1"]
    assert entry["clicrt"] == "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"


def test_an_undefined_tag_or_secret_is_named() -> None:
    with pytest.raises(NotFound, match="nope"):
        ttls_config(("nope",), {}, {}, CREDENTIALS)
    with pytest.raises(NotFound, match="lost"):
        ttls_config(("a",), {"a": TlsTag(incoming=(TlsEntry(port="1", cert="lost"),))}, {}, CREDENTIALS)
