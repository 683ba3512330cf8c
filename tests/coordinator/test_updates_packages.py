"""A package update raises versions, renews the CA and re-issues shared certificates; nothing else changes."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from tests.coordinator.manifests import encode
from tests.coordinator.people import ADMIN, ask, office, person
from tests.coordinator.running import World, running
from tests.coordinator.states import INPUTS, applicant, deployed

from marblerun.coordinator.commands.activate import activate
from marblerun.coordinator.commands.caller import Unauthorized
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.commands.start import start_state
from marblerun.coordinator.commands.update_manifest import update_manifest
from marblerun.coordinator.commands.update_packages import DOWNGRADE
from marblerun.coordinator.state import Deployment, State
from marblerun.coordinator.store.entries import decode_state, encode_state
from marblerun.errors import Denied, Malformed, MarbleRunError
from marblerun.pki.issue import names_of_ca
from marblerun.pki.profiles import SubjectNames

PATCHER = {"ResourceType": "Packages", "ResourceNames": ["frontend", "debugger"], "Actions": ["UpdateSecurityVersion"]}


def _office() -> bytes:
    document = office({"admin": (*ADMIN, "patcher"), "patcher": ("patcher",)})
    document["Roles"] = {**document["Roles"], "patcher": PATCHER}
    return encode(document)


MANIFEST = _office()


def _update(state: State, packages: dict[str, Any], who: str = "patcher", **more: Any) -> State:
    raw = encode({"Packages": packages, **more})
    outcome = update_manifest(state, person(who).der, raw, INPUTS, {})
    assert (outcome.reply.missing, outcome.reply.missing_users, outcome.reply.recovery_secrets) == (0, (), None)
    return outcome.state


def _deployment(state: State) -> Deployment:
    assert state.deployment is not None
    return state.deployment


def _issued_by(certificate: bytes, ca: x509.Certificate) -> bool:
    try:
        x509.load_der_x509_certificate(certificate).verify_directly_issued_by(ca)
    except Exception:
        return False
    return True


def test_p1_the_root_stays_and_intermediate_and_marble_root_are_new() -> None:
    """P1."""
    old = deployed(MANIFEST)
    new = _update(old, {"frontend": {"SecurityVersion": 5}})
    assert new.authority.root_der == old.authority.root_der
    assert new.authority.intermediate_der != old.authority.intermediate_der
    assert new.authority.marble_root_der != old.authority.marble_root_der
    new.authority.intermediate.verify_directly_issued_by(new.authority.root)
    new.authority.marble_root.verify_directly_issued_by(new.authority.marble_root)


def test_configured_names_and_addresses_stay_in_the_new_certificates() -> None:
    """Protocol, section 12.3, no. 30: the reference loses the addresses."""
    names = SubjectNames(("marble.example", "localhost"), (ip_address("192.0.2.7"),))
    old = set_manifest(start_state(names, INPUTS), MANIFEST, INPUTS, {}).state
    new = _update(old, {"frontend": {"SecurityVersion": 5}})
    assert names_of_ca(new.authority.intermediate) == names
    assert names_of_ca(new.authority.marble_root) == names


def test_p2_keys_stay_and_shared_certificates_are_issued_anew_under_the_new_ca() -> None:
    """P2; lifetimes are those of the first issue, and previous values are not touched."""
    old = deployed(MANIFEST)
    new = _update(old, {"frontend": {"SecurityVersion": 5}})
    before, after = _deployment(old).secrets, _deployment(new).secrets
    assert {n for n in before if before[n] != after[n]} == {"sharedCert", "defaultCert"}
    assert _deployment(new).previous_secrets == _deployment(old).previous_secrets
    for name in ("sharedCert", "defaultCert"):
        was, now = before[name].certificate, after[name].certificate
        for ca in (new.authority.intermediate, new.authority.marble_root):
            assert _issued_by(now, ca)
            assert not _issued_by(was, ca)
        end = x509.load_der_x509_certificate(was).not_valid_after_utc
        assert x509.load_der_x509_certificate(now).not_valid_after_utc == end
        assert after[name].valid_for == before[name].valid_for


def test_p3_the_log_gains_one_line_a_package() -> None:
    """P3, E3: names and order of the fields are fixed."""
    state = _update(deployed(MANIFEST), {"frontend": {"SecurityVersion": 5}, "debugger": {"SecurityVersion": 2}})
    lines = [json.loads(line) for line in state.update_log.splitlines()]
    assert len(lines) == 3
    assert [list(line) for line in lines[1:]] == [["time", "update", "user", "package", "new version"]] * 2
    assert [(line["user"], line["package"], line["new version"]) for line in lines[1:]] == [
        ("patcher", "debugger", 2),
        ("patcher", "frontend", 5),
    ]


def test_p4_an_unknown_user_is_refused_and_the_version_rises_in_the_store() -> None:
    """P4, A22."""
    with pytest.raises(Unauthorized):
        _update(deployed(MANIFEST), {"frontend": {"SecurityVersion": 5}}, "stranger")
    new = _update(deployed(MANIFEST), {"frontend": {"SecurityVersion": 5}})
    entries = encode_state(new)
    assert json.loads(entries["package:frontend"])["SecurityVersion"] == 5
    assert _deployment(decode_state(entries)).packages["frontend"].security_version == 5


def test_manifest_fingerprint_signature_and_root_secret_stay() -> None:
    """Protocol, section 9.2."""
    old = deployed(MANIFEST)
    new = _update(old, {"frontend": {"SecurityVersion": 5}})
    assert (_deployment(new).manifest, _deployment(new).signature) == (MANIFEST, _deployment(old).signature)
    assert (new.root_secret, new.previous_root_secret) == (old.root_secret, old.previous_root_secret)
    assert new.data_key is old.data_key


@pytest.mark.parametrize(
    ("packages", "text"),
    [
        ({"frontend": {"SecurityVersion": 5, "Debug": True}}, "Debug"),
        ({"frontend": {"SecurityVersion": 5, "UniqueID": "00"}}, "UniqueID"),
        ({"frontend": {"SecurityVersion": 5, "SignerID": "00"}}, "SignerID"),
        ({"frontend": {"SecurityVersion": 5, "ProductID": 0}}, "ProductID"),
        ({"frontend": {}}, "SecurityVersion"),
        ({"frontend": {"SecurityVersion": 0}}, DOWNGRADE),
        ({"frontend": {"SecurityVersion": 2}}, DOWNGRADE),
        ({}, "no packages"),
    ],
)
def test_p5_everything_but_a_higher_version_is_refused(packages: dict[str, Any], text: str) -> None:
    """P5: also lower than the current version while higher than the original one; the text for that is fixed."""
    state = _update(deployed(MANIFEST), {"frontend": {"SecurityVersion": 3}})
    with pytest.raises(Malformed) as caught:
        _update(state, packages)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "packages", [{"backend": {"SecurityVersion": 5}}, {"frontend": {"SecurityVersion": 5}, "x": {}}]
)
def test_p5_packages_that_the_user_may_not_update_are_refused(packages: dict[str, Any]) -> None:
    """P5: one of them spoils the update, whether it exists or not."""
    with pytest.raises(Denied):
        _update(deployed(MANIFEST), packages)


def test_p5_a_package_that_does_not_exist_is_refused() -> None:
    """P5: a state whose roles name a package that it does not have."""
    entries = encode_state(deployed(MANIFEST))
    del entries["package:frontend"]
    with pytest.raises(Malformed, match=r"Packages\.frontend"):
        _update(decode_state(entries), {"frontend": {"SecurityVersion": 5}})


def test_p5_all_problems_are_told_at_once() -> None:
    with pytest.raises(Malformed) as caught:
        _update(deployed(MANIFEST), {"frontend": {"SecurityVersion": 0, "Debug": True}, "debugger": {"UniqueID": "0"}})
    for text in (DOWNGRADE, "Packages.frontend.Debug", "Packages.debugger.UniqueID", "debugger.SecurityVersion"):
        assert text in str(caught.value)


def test_a_package_for_tds_cannot_be_made_one_for_enclaves() -> None:
    """A version alone would let in any debug enclave; and what TDs have to be takes a full update."""
    document = json.loads(MANIFEST)
    document["Packages"]["debugger"] = {"Debug": True, "TDX": {"MRTD": "00" * 48}}
    state = deployed(encode(document))
    for packages in ({"debugger": {"SecurityVersion": 1}}, {"frontend": {"SecurityVersion": 5, "TDX": {}}}):
        with pytest.raises(Malformed, match="TD"):
            _update(state, packages)


def test_p6_a_debug_package_without_a_version_gets_one() -> None:
    """P6."""
    new = _update(deployed(MANIFEST), {"debugger": {"SecurityVersion": 7}})
    package = _deployment(new).packages["debugger"]
    assert (package.debug, package.security_version) == (True, 7)


def test_an_equal_version_is_fine_and_renews_the_certificates() -> None:
    """Protocol, section 9.2, step 3."""
    old = deployed(MANIFEST)
    new = _update(old, {"frontend": {"SecurityVersion": 1}})
    assert _deployment(new).packages == _deployment(old).packages
    assert new.authority.intermediate_der != old.authority.intermediate_der


def test_config_and_tcb_lists_of_a_package_update_are_ignored() -> None:
    """Protocol, sections 9.1 and 9.2."""
    packages = {"frontend": {"SecurityVersion": 5, "AcceptedTCBStatuses": ["OutOfDate"], "AcceptedAdvisories": ["x"]}}
    old = deployed(MANIFEST)
    new = _update(old, packages, Config={"RotateRootSecret": True, "SealMode": "nonsense", "UpdateThreshold": 9})
    assert _deployment(new).config == _deployment(old).config
    assert _deployment(new).packages["frontend"].accepted_tcb_statuses == ()


@pytest.mark.parametrize("who", ["stranger", "patcher"])
def test_an_update_that_is_no_json_is_refused_only_after_the_caller_is_known(who: str) -> None:
    expected: type[MarbleRunError] = Unauthorized if who == "stranger" else Malformed
    with pytest.raises(expected):
        update_manifest(deployed(MANIFEST), person(who).der, b"{", INPUTS, {})


def test_a_marble_gets_the_new_chain_and_the_reissued_certificate() -> None:
    """P2 as a Marble sees it; its private keys stay what they were."""
    old = deployed(MANIFEST)
    new = _update(old, {"frontend": {"SecurityVersion": 5}})
    before, after = (activate(state, applicant().request("front"), INPUTS).reply.env for state in (old, new))
    for name in ("SHARED", "PRIVATE", "SHARED_BEFORE", "PRIVATE_BEFORE"):
        assert before[name] == after[name]
    root = x509.load_pem_x509_certificate(after["MARBLE_PREDEFINED_ROOT_CA"])
    x509.load_pem_x509_certificate(after["CERT"]).verify_directly_issued_by(root)
    x509.load_pem_x509_certificate(before["CERT"]).verify_directly_issued_by(old.authority.marble_root)


def test_e3_versions_rise_over_http_and_stay_over_restarts() -> None:
    """E3: the log grows by one line each; a downgrade is refused with the fixed text, also after a restart."""
    world, patcher = World(), person("patcher")

    def update(version: int) -> bytes:
        return encode({"Packages": {"frontend": {"SecurityVersion": version}}})

    with running(world, manifest=MANIFEST) as up:
        assert ask(up.client, "POST", "/update", update(3), by=patcher).body == b'{"status":"success","data":null}\n'
        assert ask(up.client, "POST", "/update", update(4), by=patcher).status == 200
        assert len(ask(up.client, "GET", "/api/v2/update").data["updateLog"]) == 3
    with running(world) as up:
        answer = ask(up.client, "POST", "/update", update(3), by=patcher)
        assert (answer.status, answer.envelope["status"]) == (400, "error")
        assert DOWNGRADE in answer.message
        assert len(ask(up.client, "GET", "/api/v2/update").data["updateLog"]) == 3
