"""The linter says what is wrong, where, and what to do; and nothing about a manifest that is right."""

from __future__ import annotations

import copy
import inspect
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.manifest import golden, json_documents, keys

from marblerun.manifest import check, hazards, material
from marblerun.manifest.lint import MAX_FINDINGS, Finding, lint
from marblerun.manifest.rules import RULES, Severity

ID = "ab" * 32
ENV_K = "Marbles.n.Parameters.Env.K"


def clean() -> dict[str, Any]:
    """A manifest about which there is nothing to say."""
    return {
        "Packages": {"p": {"SignerID": ID, "ProductID": 1, "SecurityVersion": 2}, "q": {"UniqueID": "cd" * 32}},
        "Marbles": {
            "m": {
                "Package": "p",
                "MaxActivations": 1,
                "AllowedDNSNames": ["m.mesh"],
                "AllowedIPs": ["10.0.0.0/8"],
                "TLS": ["t"],
                "Parameters": {
                    "Files": {"/key": "{{ raw .Secrets.key }}", "/data": {"Data": "{{", "NoTemplates": True}},
                    "Env": {"UP": '{{ index .Secrets "up" | string }}', "CA": "{{ pem .MarbleRun.RootCA.Cert }}"},
                },
            },
            "n": {"Package": "q", "AllowedDNSNames": [], "AllowedIPs": []},
        },
        "Secrets": {
            "key": {"Type": "symmetric-key", "Size": 128, "Shared": True},
            "up": {"Type": "plain", "UserDefined": True},
            "cert": {"Type": "cert-rsa", "Size": 3072, "Shared": True, "Cert": {"DNSNames": ["a.b"]}},
        },
        "Users": {name: {"Certificate": keys.certificate_pem(name), "Roles": ["up"]} for name in ("alice", "bob")},
        "Roles": {"up": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}},
        "TLS": {"t": {"Incoming": [{"Port": "1", "Cert": "cert", "DisableClientAuth": True}]}},
        "RecoveryKeys": {"a": keys.rsa_pem(), "b": keys.rsa_pem(2056)},
        "Config": {"UpdateThreshold": 2, "RecoveryThreshold": 2},
    }


def findings(document: object) -> tuple[Finding, ...]:
    return lint(json.dumps(document, indent=1).encode())


def changed(path: str, value: object) -> tuple[Finding, ...]:
    document = copy.deepcopy(clean())
    *above, last = path.split("|")
    place: Any = document
    for name in above:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return findings(document)


def test_a_good_manifest_has_no_findings() -> None:
    assert findings(clean()) == ()


@pytest.mark.parametrize(
    ("path", "value", "rule", "where"),
    [
        ("Packages|p|SecurityVersoin", 1, "key-unknown", "Packages.p.SecurityVersoin"),
        ("Packages|p|Argv", [], "key-misplaced", "Packages.p.Argv"),
        ("Secrets|key|size", 128, "key-case", "Secrets.key.Size"),
        ("Secrets|key|size", 128, "key-duplicate", "Secrets.key.size"),
        ("Secrets|cert|Cert", {"SerialNumber": 1}, "key-ignored", "Secrets.cert.Cert.SerialNumber"),
        ("Secrets|cert|Cert", "not base64", "cert-ignored", "Secrets.cert.Cert"),
        ("Packages|p|SignerID", "<signer>", "placeholder", "Packages.p.SignerID"),
        ("Packages|p|SignerID", "REPLACE_ME", "placeholder", "Packages.p.SignerID"),
        ("Packages|p|SignerID", "replace-me", "placeholder", "Packages.p.SignerID"),
        ("Marbles|n|Parameters", {"Env": {"K": "redis://<redis-host>:6379"}}, "placeholder", ENV_K),
        ("Marbles|n|Parameters", {"Env": {"K": "user=<your user name> x=1"}}, "placeholder", ENV_K),
        ("Marbles|n|Parameters", {"Env": {"K": "password=CHANGEME"}}, "placeholder", ENV_K),
        ("Marbles|n|Parameters", {"Env": {"K": "a: REPLACE_ME\nb: 1"}}, "placeholder", ENV_K),
        ("Marbles|n|Parameters", {"Env": {"K": "port = TODO"}}, "placeholder", ENV_K),
        ("Packages|p|SignerID", "abcd", "identity-not-hex", "Packages.p.SignerID"),
        ("Packages|p|Debug", True, "debug-package", "Packages.p.Debug"),
        ("Packages|p|SecurityVersion", 0, "no-minimum-version", "Packages.p.SecurityVersion"),
        ("Packages|r", {"UniqueID": ID}, "package-unused", "Packages.r"),
        ("Secrets|x", {"Type": "plain", "UserDefined": True}, "secret-unused", "Secrets.x"),
        ("Secrets|key|Size", 64, "weak-key", "Secrets.key.Size"),
        ("Secrets|cert|Cert", {"DNSNames": ["*.b"]}, "wildcard-name", "Secrets.cert.Cert.DNSNames[0]"),
        ("Roles|r", {"ResourceType": "Manifest"}, "role-unused", "Roles.r"),
        ("TLS|u", {}, "tls-unused", "TLS.u"),
        ("Users|bob|Roles", [], "user-idle", "Users.bob"),
        ("Users", {}, "no-updater", "Users"),
        ("Config|UpdateThreshold", 1, "single-updater", "Config.UpdateThreshold"),
        ("RecoveryKeys", {}, "no-recovery-key", "RecoveryKeys"),
        ("RecoveryKeys|b", None, "recovery-threshold", "Config.RecoveryThreshold"),
        ("Config", {"UpdateThreshold": 2, "SealMode": "Disabled"}, "sealing-disabled", "Config.SealMode"),
        ("Marbles|m|MaxActivations", 0, "unlimited-reader", "Marbles.m"),
        ("Marbles|m|AllowedDNSNames", None, "names-unrestricted", "Marbles.m"),
        ("Marbles|m|AllowedIPs", None, "names-unrestricted", "Marbles.m"),
        ("Marbles|m|AllowedDNSNames", ["a", "*.b"], "wildcard-name", "Marbles.m.AllowedDNSNames[1]"),
        ("Marbles|m|AllowedIPs", ["::/0"], "wildcard-name", "Marbles.m.AllowedIPs[0]"),
        ("Marbles|m|AllowedDNSNames", ["a.*"], "allowed-dns-name", "Marbles.m.AllowedDNSNames[0]"),
        ("Marbles|m|AllowedIPs", ["10.0.0.1/8"], "allowed-ip", "Marbles.m.AllowedIPs[0]"),
        ("Marbles|m|DisableSecretBinding", True, "binding-disabled", "Marbles.m.DisableSecretBinding"),
        ("Marbles|n|Parameters", {"Env": {"K": "{{ hex .Secrets.key }}"}}, "secret-across-signers", "Secrets.key"),
        ("Marbles|n|Parameters", {"Env": {"K": "{{ hex .Secrets.no }}"}}, "reference-undefined", ENV_K),
        ("Marbles|n|Parameters", {"Env": {"K": "{{ pem .MarbleRun.No.Cert }}"}}, "reference-undefined", ENV_K),
        ("Marbles|n|Parameters", {"Env": {"K": "{{ raw 1 }}"}}, "template-invalid", ENV_K),
        ("Marbles|n|Package", "no", "package-undefined", "Marbles.n.Package"),
        ("Secrets|key|Size", "128", "json", "Secrets.key.Size"),
    ],
)  # fmt: skip
def test_each_rule_fires_at_its_place(path: str, value: object, rule: str, where: str) -> None:
    found = [(finding.rule, finding.path) for finding in changed(path, value)]
    assert (rule, where) in found


@pytest.mark.parametrize(
    "text",
    [
        'x={{ "TODO" }}',
        "{{ /* CHANGEME <your host> */ }}",
        "-----BEGIN CERTIFICATE-----\nAA/TODO/AA\n-----END CERTIFICATE-----\n",
        "<VirtualHost *:80>\n</VirtualHost>",
        "mail Ann <ann@host>",
        "TODOS and a method",
    ],
)
def test_templates_keys_and_markup_are_no_placeholders(text: str) -> None:
    found = changed("Marbles|n|Parameters", {"Env": {"K": text}})
    assert "placeholder" not in [finding.rule for finding in found]


def test_a_secret_shared_by_tds_of_different_identities_is_found_and_one_of_equal_tds_is_not() -> None:
    def rules(first: dict[str, str], second: dict[str, str]) -> list[str]:
        document = clean()
        document["Packages"] = {"p": {"TDX": first}, "q": {"TDX": second}}
        document["Marbles"]["n"]["Parameters"] = {"Env": {"K": "{{ hex .Secrets.key }}"}}
        return [finding.path for finding in findings(document) if finding.rule == "secret-across-signers"]

    one = {"MRTD": "ab" * 48, "RTMR1": "01" * 48, "MRSEAM": "05" * 48}
    assert rules(one, {**one, "MRTD": "cd" * 48}) == ["Secrets.key"]
    assert rules(one, {**one, "RTMR1": "02" * 48}) == ["Secrets.key"]
    assert rules(one, {**one, "MRTD": "AB" * 48, "MRSEAM": "06" * 48}) == []


def test_a_single_recovery_key_is_one_person_s_power() -> None:
    document = clean()
    document["RecoveryKeys"].pop("b")
    document["Config"].pop("RecoveryThreshold")
    assert [finding.rule for finding in findings(document)] == ["recovery-alone"]


def test_a_misspelt_key_gets_a_suggestion_and_its_line_and_column() -> None:
    text = b'{"Config": {},\n  "Packagse": {}}'
    (finding,) = [found for found in lint(text) if found.rule == "key-unknown"]
    assert (finding.line, finding.column) == (2, 3)
    assert finding.hint == "did you mean Packages?"


def test_a_misplaced_key_is_told_where_it_belongs() -> None:
    (finding,) = [found for found in changed("MaxActivations", 1) if found.rule == "key-misplaced"]
    assert finding.hint == "it belongs to Marbles.*.MaxActivations"


def test_text_that_is_no_json_is_one_finding_with_its_place() -> None:
    (finding,) = lint(b'{"Packages": \n  oops}')
    assert (finding.rule, finding.line, finding.column) == ("json", 2, 3)


def test_bytes_that_are_not_utf8_are_told_with_their_place() -> None:
    text = '{"Packages":\n {"é": {"SignerID": "\udcff\udcfe"}}}'.encode(errors="surrogateescape")
    (finding,) = [found for found in lint(text) if found.rule == "not-utf8"]
    assert (finding.severity, finding.line, finding.column) == (Severity.WARNING, 2, 22)


def test_every_rule_that_can_fire_is_documented() -> None:
    sources = "".join(inspect.getsource(module) for module in (check, material, hazards))
    codes = set(re.findall(r'code="([a-z-]+)"', sources))
    assert len(codes) > 30
    assert codes - set(RULES) == set()


def test_warnings_of_the_checks_stay_warnings() -> None:
    found = changed("Packages|p", {"Debug": True})
    assert {finding.severity for finding in found if finding.rule == "package-incomplete"} == {Severity.WARNING}


def test_findings_are_in_the_order_of_the_text_and_bounded() -> None:
    found = findings({"Packages": {str(number): {"nope": 1} for number in range(MAX_FINDINGS)}})
    assert len(found) == MAX_FINDINGS
    assert [finding.line for finding in found] == sorted(finding.line for finding in found)


@settings(max_examples=60, deadline=None)
@given(json_documents.documents)
def test_any_text_is_linted_without_a_crash_and_an_error_is_found_where_reading_fails(document: bytes) -> None:
    read = golden.ours("manifest", document).ok
    assert any(finding.rule == "json" for finding in lint(document)) is not read


@given(st.binary(max_size=30))
def test_random_bytes_always_give_findings(raw: bytes) -> None:
    assert lint(raw)
