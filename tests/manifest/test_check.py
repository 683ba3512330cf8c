"""Everything wrong with a manifest is found at once, the reference's first finding first (protocol, section 5.6)."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.manifest.keys import certificate_der

from marblerun.errors import Malformed
from marblerun.manifest.check import AZURE_HSM_VARIABLES, check_manifest, is_update_role, update_users
from marblerun.manifest.model import Role
from marblerun.manifest.parse import parse_manifest
from marblerun.manifest.report import BadManifest, Report

Edit = Callable[[dict[str, Any]], object]

GOOD: dict[str, Any] = {
    "Packages": {
        "backend": {"SignerID": "ab", "ProductID": 3, "SecurityVersion": 2},
        "exact": {"UniqueID": "cd"},
        "unused": {},
    },
    "Marbles": {"first": {"Package": "backend", "TLS": ["web"]}, "second": {"Package": "exact"}},
    "Users": {
        "admin": {"Certificate": "A", "Roles": ["writer", "updater"]},
        "boss": {"Certificate": "B", "Roles": ["updater", "updater2"]},
    },
    "Secrets": {
        "shared": {"Type": "symmetric-key", "Size": 128, "Shared": True},
        "own": {"Type": "cert-rsa", "Size": 2048, "ValidFor": 7},
        "upload": {"Type": "plain", "UserDefined": True},
    },
    "Roles": {
        "writer": {
            "ResourceType": "Secrets", "ResourceNames": ["upload"], "Actions": ["readsecret", "WriteSecret"],
        },
        "reader": {"ResourceType": "Secrets", "ResourceNames": ["shared"], "Actions": ["READSECRET"]},
        "patcher": {"ResourceType": "Packages", "ResourceNames": ["backend"], "Actions": ["UpdateSecurityVersion"]},
        "updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
        "updater2": {"ResourceType": "Manifest", "Actions": ["updatemanifest"]},
    },
    "TLS": {
        "web": {
            "Incoming": [{"Port": "443", "Cert": "own", "DisableClientAuth": True}, {"Port": "8080"}],
            "Outgoing": [{"Addr": "db", "Port": "3306"}],
        }
    },
    "RecoveryKeys": {"a": "x", "b": "y"},
    "Config": {"SealMode": "ProductKey", "UpdateThreshold": 2, "RecoveryThreshold": 2,
               "FeatureGates": ["signquoteendpoint"]},
}  # fmt: skip


def report(*edits: Edit, environment: dict[str, str] | None = None) -> Report:
    document = copy.deepcopy(GOOD)
    for edit in edits:
        edit(document)
    return check_manifest(parse_manifest(json.dumps(document).encode()), environment or {})


def put(path: str, value: object) -> Edit:
    """Set a value by its path."""
    *above, last = path.split(".")

    def edit(document: dict[str, Any]) -> None:
        place: Any = document
        for name in above:
            place = place[int(name)] if isinstance(place, list) else place[name]
        place[last] = value

    return edit


def test_m2_a_good_manifest_has_no_findings() -> None:
    assert report() == Report()
    report().raise_if_bad()


def test_m2_a_debug_package_may_miss_every_value_with_a_warning_each() -> None:
    found = report(put("Packages.backend", {"Debug": True}))
    assert found.errors == ()
    assert [problem.path for problem in found.warnings] == [
        "Packages.backend.SignerID",
        "Packages.backend.ProductID",
        "Packages.backend.SecurityVersion",
    ]


CASES: list[tuple[Edit, str, str]] = [
    (put("Packages", {}), "Packages", "packages-missing"),
    (put("Marbles", {}), "Marbles", "marbles-missing"),
    (put("Marbles.first.Package", "nope"), "Marbles.first.Package", "package-undefined"),
    (put("Packages.backend.UniqueID", "ef"), "Packages.backend", "package-ambiguous"),
    (put("Packages.exact.ProductID", 0), "Packages.exact", "package-ambiguous"),
    (put("Packages.exact.SecurityVersion", 0), "Packages.exact", "package-ambiguous"),
    (put("Packages.backend.SignerID", ""), "Packages.backend.SignerID", "package-incomplete"),
    (put("Packages.backend.ProductID", None), "Packages.backend.ProductID", "package-incomplete"),
    (put("Packages.backend.SecurityVersion", None), "Packages.backend.SecurityVersion", "package-incomplete"),
    (put("Marbles.first.TLS", ["web", "nope"]), "Marbles.first.TLS[1]", "tls-tag-undefined"),
    (put("Marbles.first.AllowedDNSNames", ["a.b", "a.*"]), "Marbles.first.AllowedDNSNames[1]", "allowed-dns-name"),
    (put("Marbles.first.AllowedDNSNames", [None]), "Marbles.first.AllowedDNSNames[0]", "allowed-dns-name"),
    (put("Marbles.first.AllowedIPs", ["10.0.0.0/8", "10.0.0.1/8"]), "Marbles.first.AllowedIPs[1]", "allowed-ip"),
    (put("TLS.web.Incoming.0.Port", ""), "TLS.web.Incoming[0].Port", "tls-entry-incomplete"),
    (put("TLS.web.Incoming.0.Cert", "nope"), "TLS.web.Incoming[0].Cert", "tls-cert-undefined"),
    (put("TLS.web.Incoming.0.DisableClientAuth", False), "TLS.web.Incoming[0].DisableClientAuth", "tls-client-auth"),
    (put("TLS.web.Incoming.1.DisableClientAuth", True), "TLS.web.Incoming[1].DisableClientAuth", "tls-client-auth"),
    (put("TLS.web.Outgoing.0.Addr", ""), "TLS.web.Outgoing[0].Addr", "tls-entry-incomplete"),
    (put("TLS.web.Outgoing.0.Port", None), "TLS.web.Outgoing[0].Port", "tls-entry-incomplete"),
    (put("Users.admin.Certificate", ""), "Users.admin.Certificate", "user-certificate-missing"),
    (put("Users.admin.Roles", ["updater", "nope"]), "Users.admin.Roles[1]", "role-undefined"),
    (put("Users.boss.Certificate", "A"), "Users.boss.Certificate", "user-certificate-shared"),
    (put("Roles.reader.ResourceType", "secrets"), "Roles.reader.ResourceType", "role-type"),
    (put("Roles.patcher.ResourceNames", ["nope"]), "Roles.patcher.ResourceNames[0]", "role-resource-undefined"),
    (put("Roles.patcher.Actions", ["ReadSecret"]), "Roles.patcher.Actions[0]", "role-action"),
    (put("Roles.reader.Actions", ["UpdateManifest"]), "Roles.reader.Actions[0]", "role-action"),
    (put("Roles.reader.ResourceNames", ["nope"]), "Roles.reader.ResourceNames[0]", "role-resource-undefined"),
    (put("Roles.reader.ResourceNames", ["own"]), "Roles.reader.ResourceNames[0]", "role-read"),
    (put("Roles.writer.ResourceNames", ["shared"]), "Roles.writer.ResourceNames[0]", "role-write"),
    (put("Roles.updater.ResourceNames", ["x"]), "Roles.updater.ResourceNames", "role-names"),
    (put("Roles.updater2.Actions", ["UpdateManifest", "x"]), "Roles.updater2.Actions[1]", "role-action"),
    (put("Secrets.own.Type", "Cert-RSA"), "Secrets.own.Type", "secret-type"),
    (put("Secrets.own.Cert", {"NotAfter": "2030-01-01T00:00:00Z"}), "Secrets.own.ValidFor", "secret-validity"),
    (put("Config.UpdateThreshold", 3), "Config.UpdateThreshold", "update-threshold"),
    (put("Config.SealMode", "productkey"), "Config.SealMode", "seal-mode"),
    (put("Config.FeatureGates", ["MonotonicCounter", "x"]), "Config.FeatureGates[1]", "feature-gate"),
    (put("Config.FeatureGates", ["AzureHSMSealing"]), "Config.FeatureGates[0]", "feature-gate-environment"),
    (put("Config.RecoveryThreshold", 3), "Config.RecoveryThreshold", "recovery-threshold"),
    (put("Config.RecoveryThreshold", 1), "Config.RecoveryThreshold", "recovery-threshold-one"),
]


@pytest.mark.parametrize(("edit", "path", "code"), CASES, ids=[f"{path} {code}" for _, path, code in CASES])
def test_each_rule_finds_its_fault_and_names_the_place(edit: Edit, path: str, code: str) -> None:
    assert (path, code) in [(problem.path, problem.code) for problem in report(edit).errors]


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (put("Marbles.first.Package", "nope"), "manifest does not contain marble package nope"),
        (put("Packages.backend", {}), "manifest misses value for SignerID in package backend"),
        (put("Packages.backend", {"SignerID": "a"}), "manifest misses value for ProductID in package backend"),
        (
            put("Packages.backend", {"SignerID": "a", "ProductID": 1}),
            "manifest misses value for SecurityVersion in package backend",
        ),
        (
            put("Packages.exact.ProductID", 1),
            "manifest specifies both UniqueID *and* SignerID/ProductID/SecurityVersion in package exact",
        ),
    ],
)
def test_m14_m15_texts_that_clients_match_come_first(edit: Edit, text: str) -> None:
    assert report(edit).errors[0].message == text
    with pytest.raises(Malformed) as caught:
        report(edit).raise_if_bad()
    assert str(caught.value).startswith(text)


def test_m15_unique_id_with_other_values_is_only_a_warning_for_debug() -> None:
    found = report(put("Packages.exact", {"UniqueID": "a", "SignerID": "b", "Debug": True}))
    assert found.errors == ()
    assert [problem.code for problem in found.warnings] == ["package-ambiguous"]


@pytest.mark.parametrize(("threshold", "errors"), [(0, 0), (1, 0), (2, 0), (3, 1)])
def test_m3_the_update_threshold_is_at_most_the_number_of_update_users(threshold: int, errors: int) -> None:
    assert len(report(put("Config.UpdateThreshold", threshold)).errors) == errors


def test_m4_a_user_with_several_update_roles_counts_once() -> None:
    assert update_users(parse_manifest(json.dumps(GOOD).encode())) == ("admin", "boss")


def test_only_the_first_action_makes_an_update_role() -> None:
    assert is_update_role(Role("Manifest", (), ("updateManifest", "x")))
    assert not is_update_role(Role("Manifest", (), ("", "UpdateManifest")))
    assert not is_update_role(Role("manifest", (), ("UpdateManifest",)))
    found = report(put("Roles.updater.Actions", []), put("Roles.updater2.Actions", ["x", "UpdateManifest"]))
    assert "update-threshold" in [problem.code for problem in found.errors]


def test_m5_the_same_certificate_text_twice_is_refused() -> None:
    assert "users admin and boss" in report(put("Users.boss.Certificate", "A")).errors[0].message


@pytest.mark.parametrize("mode", ["", "ProductKey", "UniqueKey", "Disabled"])
def test_m16_seal_modes(mode: str) -> None:
    assert report(put("Config.SealMode", mode)).errors == ()


def test_hsm_sealing_needs_its_variables_with_either_way_to_log_in() -> None:
    gate = put("Config.FeatureGates", ["azurehsmsealing"])
    base = dict.fromkeys(AZURE_HSM_VARIABLES, "x")
    federated = {"EDG_AZURE_AUTHORITY_HOST": "x", "EDG_AZURE_FEDERATED_TOKEN_FILE": "x"}
    assert report(gate, environment=base | {"EDG_AZURE_CLIENT_SECRET": "x"}).errors == ()
    assert report(gate, environment=base | federated).errors == ()
    assert len(report(gate, environment=base).errors) == 1
    assert len(report(gate, environment=base | {"EDG_MAA_URL": "", "EDG_AZURE_CLIENT_SECRET": "x"}).errors) == 1
    assert (
        "EDG_AZURE_FEDERATED_TOKEN_FILE"
        in report(gate, environment=base | {"EDG_AZURE_AUTHORITY_HOST": "x"}).errors[0].message
    )


def test_a_certificate_given_whole_has_an_end_of_its_own() -> None:
    found = report(put("Secrets.own.Cert", base64.b64encode(certificate_der("x")).decode()))
    assert [problem.code for problem in found.errors] == ["secret-validity"]


def test_all_errors_are_told_at_once_in_the_order_of_the_reference() -> None:
    found = report(
        put("Config.SealMode", "x"),
        put("Users.admin.Certificate", ""),
        put("Marbles.second.Package", "nope"),
        put("Packages.backend.SignerID", ""),
        put("TLS.web.Outgoing.0.Addr", ""),
        put("Config.RecoveryThreshold", 1),
    )
    assert [problem.code for problem in found.errors] == [
        "package-incomplete",
        "package-undefined",
        "tls-entry-incomplete",
        "user-certificate-missing",
        "seal-mode",
        "recovery-threshold-one",
    ]
    with pytest.raises(BadManifest) as caught:
        found.raise_if_bad()
    assert caught.value.problems == found.errors
    assert all(problem.message in str(caught.value) for problem in found.errors)


def test_a_package_is_reported_once_however_many_marbles_use_it() -> None:
    found = report(put("Packages.backend.SignerID", ""), put("Marbles.second.Package", "backend"))
    assert len(found.errors) == 1


def test_a_manifest_with_tens_of_thousands_of_faults_is_judged_in_bounded_time_and_words() -> None:
    packages: dict[str, object] = {f"p{number}": {} for number in range(30_000)}
    marbles: dict[str, object] = {f"m{number}": {} for number in range(30_000)}
    found = check_manifest(parse_manifest(json.dumps({"Packages": packages, "Marbles": marbles}).encode()), {})
    assert len(found.errors) == 30_000
    with pytest.raises(BadManifest) as caught:
        found.raise_if_bad()
    assert len(str(caught.value)) < 20_000
