"""What an update means is told by what it allows: a widening is a gain, a narrowing a loss, the rest neither."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.manifest import json_documents, keys

from marblerun.errors import Malformed
from marblerun.manifest.meaning import Effect, Kind, Meaning, Topic, meaning
from marblerun.manifest.parse import parse_manifest

ID, OTHER_ID = "ab" * 32, "cd" * 32
BASE: dict[str, Any] = {
    "Packages": {"p": {"SignerID": ID, "ProductID": 1, "SecurityVersion": 3}},
    "Infrastructures": {"i": {"QESVN": 2}},
    "Marbles": {
        "m": {
            "Package": "p",
            "MaxActivations": 5,
            "AllowedDNSNames": ["a"],
            "TLS": ["t"],
            "Parameters": {"Files": {"/f": "{{ raw .Secrets.key }}"}, "Env": {"E": "x"}, "Argv": ["a"]},
        }
    },
    "Secrets": {
        "key": {"Type": "symmetric-key", "Size": 128, "Shared": True},
        "up": {"Type": "plain", "UserDefined": True},
        "cert": {"Type": "cert-ed25519", "Shared": True},
    },
    "Users": {
        "alice": {"Certificate": keys.certificate_pem("alice"), "Roles": ["owner", "update"]},
        "bob": {"Certificate": keys.certificate_pem("bob"), "Roles": ["update"]},
    },
    "Roles": {
        "owner": {"ResourceType": "Secrets", "ResourceNames": ["up"], "Actions": ["WriteSecret"]},
        "update": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
    },
    "TLS": {"t": {"Incoming": [{"Port": "1"}]}},
    "RecoveryKeys": {"a": keys.rsa_pem(), "b": keys.rsa_pem(2056)},
    "Config": {"SealMode": "ProductKey", "UpdateThreshold": 2, "RecoveryThreshold": 2},
}


def compared(old: dict[str, Any], new: dict[str, Any]) -> Meaning:
    return meaning(*(parse_manifest(json.dumps(document).encode()) for document in (old, new)))


def changed(path: str, value: object) -> dict[str, Any]:
    document = copy.deepcopy(BASE)
    *above, last = path.split("|")
    place: Any = document
    for name in above:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


def told(found: Meaning) -> list[tuple[str, str, str]]:
    return [(statement.topic.value, statement.effect.value, statement.path) for statement in found.statements]


ROUNDTRIPS: list[tuple[str, object, str, str, str]] = [
    ("Packages|p|Debug", True, "join", "gain", "Packages.p.Debug"),
    ("Packages|p|SecurityVersion", 2, "join", "gain", "Packages.p.SecurityVersion"),
    ("Packages|p|SecurityVersion", 4, "join", "loss", "Packages.p.SecurityVersion"),
    ("Packages|p|AcceptedTCBStatuses", ["SWHardeningNeeded", "OutOfDate"], "join", "gain",
     "Packages.p.AcceptedTCBStatuses"),
    ("Packages|p|AcceptedTCBStatuses", ["UpToDate"], "join", "loss", "Packages.p.AcceptedTCBStatuses"),
    ("Packages|p|AcceptedAdvisories", ["INTEL-SA-1"], "join", "loss", "Packages.p.AcceptedAdvisories"),
    ("Packages|p|TDX", {"MRTD": "ee" * 48}, "join", "gain", "Packages.p.TDX"),
    ("Infrastructures", {}, "join", "gain", "Infrastructures"),
    ("Infrastructures|j", {"QESVN": 1}, "join", "gain", "Infrastructures.j"),
    ("Marbles|m|MaxActivations", 6, "join", "gain", "Marbles.m.MaxActivations"),
    ("Marbles|m|MaxActivations", 0, "join", "gain", "Marbles.m.MaxActivations"),
    ("Marbles|m|MaxActivations", 4, "join", "loss", "Marbles.m.MaxActivations"),
    ("Marbles|m|AllowedDNSNames", None, "join", "gain", "Marbles.m.AllowedDNSNames"),
    ("Marbles|m|AllowedDNSNames", ["a", "b"], "join", "gain", "Marbles.m.AllowedDNSNames"),
    ("Marbles|m|AllowedDNSNames", [], "join", "loss", "Marbles.m.AllowedDNSNames"),
    ("Marbles|m|AllowedIPs", [], "join", "loss", "Marbles.m.AllowedIPs"),
    ("Marbles|m|DisableSecretBinding", True, "read", "gain", "Marbles.m.DisableSecretBinding"),
    ("Roles|owner|Actions", ["WriteSecret", "readsecret"], "read", "gain", "Users.alice"),
    ("Roles|owner|Actions", [], "change", "loss", "Users.alice"),
    ("Roles|owner|ResourceNames", [], "change", "loss", "Users.alice"),
    ("Config|UpdateThreshold", 1, "change", "gain", "Config.UpdateThreshold"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "topic", "effect", "where"), ROUNDTRIPS, ids=lambda value: str(value)[:30])
def test_what_is_a_gain_one_way_is_a_loss_the_other_way(
    path: str, value: object, topic: str, effect: str, where: str
) -> None:
    new = changed(path, value)
    assert told(compared(BASE, new)) == [(topic, effect, where)]
    back = {"gain": "loss", "loss": "gain"}[effect]
    assert {(t, e) for t, e, _ in told(compared(new, BASE))} == {(topic, back)}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("Packages|p|SignerID", OTHER_ID, [("join", "gain", "Packages.p.SignerID")]),
        ("Packages|p|ProductID", 2, [("join", "gain", "Packages.p.ProductID")]),
        ("Infrastructures|i|QESVN", 1, [("join", "other", "Infrastructures.i")]),
        ("Users|alice|Certificate", keys.certificate_pem("mallory"), [("change", "gain", "Users.alice.Certificate")]),
        ("RecoveryKeys|b", keys.rsa_pem(2064), [("recover", "gain", "RecoveryKeys.b")]),
        ("Marbles|m|Parameters|Argv", [], [("run", "other", "Marbles.m.Parameters.Argv")]),
        ("Marbles|m|Parameters|Env|E", "y", [("run", "other", "Marbles.m.Parameters.Env.E")]),
        ("TLS|t|Incoming", [{"Port": "2"}], [("run", "other", "TLS.t")]),
        ("Secrets|key|Size", 256, [("secrets", "other", "Secrets.key")]),
        ("Secrets|cert|Cert", {"DNSNames": ["x"]}, [("secrets", "other", "Secrets.cert.Cert")]),
        ("Config|RotateRootSecret", True, [("secrets", "other", "Config.RotateRootSecret")]),
        ("Config|SealMode", "Disabled", [("coordinator", "other", "Config.SealMode")]),
        ("Config|FeatureGates", ["SignQuoteEndpoint"], [("coordinator", "other", "Config.FeatureGates")]),
        (
            "Marbles|m|Parameters|Env|K",
            "{{ string .Secrets.up }}",
            [("read", "gain", "Marbles.m.Parameters"), ("run", "other", "Marbles.m.Parameters.Env.K")],
        ),
        ("Users|bob|Roles", [], [("change", "loss", "Users")]),
        ("Config|RecoveryThreshold", 0, []),
    ],
    ids=lambda value: str(value)[:30],
)
def test_each_change_is_told_once_under_its_topic(
    path: str, value: object, expected: list[tuple[str, str, str]]
) -> None:
    assert told(compared(BASE, changed(path, value))) == expected


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("Packages|p|SignerID", ID.upper()),
        ("Packages|p|AcceptedTCBStatuses", ["SWHardeningNeeded", "UpToDate"]),
        ("Roles|owner|Actions", ["WRITESECRET"]),
        ("Users|alice|Certificate", keys.certificate_pem("alice") + "\n"),
        ("Config|FeatureGates", []),
        ("Packages|unused", {}),
        ("Marbles|m|AllowedDNSNames", ["a", "a"]),
        ("Comment", "hello"),
    ],
)
def test_what_means_the_same_is_not_told(path: str, value: object) -> None:
    assert compared(BASE, changed(path, value)).statements == ()


def test_a_marble_that_comes_and_one_that_goes() -> None:
    new = copy.deepcopy(BASE)
    new["Marbles"]["n"] = new["Marbles"].pop("m")
    found = compared(BASE, new)
    assert told(found)[:2] == [("join", "loss", "Marbles.m"), ("join", "gain", "Marbles.n")]
    texts = [statement.text for statement in found.statements]
    assert (
        f"enclaves signed by {ID}, product 1, security version 3 or higher (package p) may join as Marble n, "
        "at most 5 times" in texts
    )
    assert "Marble n reads the secret key" in texts
    assert found.restart_marbles == ()


def test_a_template_that_asks_for_computed_names_reads_everything() -> None:
    found = compared(BASE, changed("Marbles|m|Parameters|Env|K", "{{ range .Secrets }}{{ hex .Public }}{{ end }}"))
    gained = [s.text for s in found.statements if (s.topic, s.effect) == (Topic.READ, Effect.GAIN)]
    assert gained == ["Marble m reads the secret cert", "Marble m reads the secret up"]


def test_what_has_to_be_restarted() -> None:
    assert compared(BASE, changed("Marbles|m|Parameters|Argv", [])).restart_marbles == ("m",)
    assert compared(BASE, changed("Packages|p|SecurityVersion", 4)).restart_marbles == ()
    assert compared(BASE, changed("RecoveryKeys|c", keys.rsa_pem(2072))).new_recovery_data
    assert not compared(BASE, changed("Config|RecoveryThreshold", 0)).new_recovery_data


def test_a_package_update_raises_versions_and_touches_nothing_else() -> None:
    found = compared(BASE, {"Packages": {"p": {"SecurityVersion": 9}}})
    assert found.kind is Kind.PACKAGES
    assert told(found) == [("join", "loss", "Packages.p.SecurityVersion")]
    assert compared(BASE, BASE).kind is Kind.FULL


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(json_documents.documents, json_documents.documents)
def test_any_two_manifests_that_load_can_be_compared(one: bytes, other: bytes) -> None:
    try:
        old, new = parse_manifest(one), parse_manifest(other)
    except Malformed:
        return
    found = meaning(old, new)
    assert list(found.statements) == sorted(found.statements, key=lambda s: list(Topic).index(s.topic))
    assert meaning(old, old).statements == meaning(new, new).statements == () or (
        old.config.rotate_root_secret or new.config.rotate_root_secret
    )
