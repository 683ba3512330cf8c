"""The pure side of activation (protocol, section 2)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from tests.coordinator.manifests import encode, integration, many
from tests.coordinator.states import AT, INPUTS, UUID_1, UUID_2, applicant, deployed, fresh

from marblerun.attestation.model import Origin, Unattested
from marblerun.coordinator.commands.activate import (
    Activated,
    ActivationRefused,
    ActivationRequest,
    Stage,
    activate,
    admit,
    check_request,
    count_activation,
    parse_uuid,
)
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.state import Phase, State
from marblerun.errors import Conflict
from marblerun.policy.admission import Admission

ANYBODY = Admission(frozenset({Origin.NONE}))


def run(state: State, marble: str, uuid: str = UUID_1) -> Activated:
    return activate(state, applicant().request(marble, uuid), INPUTS).reply


def text(activated: Activated, name: str) -> str:
    return activated.env[name].decode()


def chain(activated: Activated) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(activated.env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])


def ttls(activated: Activated) -> dict[str, dict[str, dict[str, object]]]:
    config: dict[str, dict[str, dict[str, object]]] = json.loads(activated.env["MARBLE_TTLS_CONFIG"])["tls"]
    return config


def refusal(state: State, request: ActivationRequest, certificate: bytes | None = b"der") -> Stage:
    with pytest.raises(ActivationRefused) as refused:
        admit(state, request, check_request(state, request, certificate), Unattested(), ANYBODY)
    return refused.value.stage


def test_a1_before_a_manifest_nobody_is_activated() -> None:
    """A1."""
    assert refusal(fresh(), applicant().request("frontend")) is Stage.PHASE


@pytest.mark.parametrize("phase", [Phase.UNINITIALIZED, Phase.RECOVERY, Phase.ACCEPTING_MANIFEST])
def test_other_phases_are_named_in_the_refusal(phase: Phase) -> None:
    state = replace(deployed(), phase=phase)
    with pytest.raises(ActivationRefused, match=phase.name.split("_", maxsplit=1)[0].lower()) as refused:
        check_request(state, applicant().request("frontend"), b"der")
    assert refused.value.stage is Stage.PHASE


def test_the_checks_come_in_the_order_of_the_protocol() -> None:
    """Phase before certificate before type (protocol, section 2.4)."""
    unknown = applicant().request("nobody", uuid="no uuid")
    assert refusal(fresh(), unknown, None) is Stage.PHASE
    assert refusal(deployed(), unknown, None) is Stage.CLIENT_CERTIFICATE
    assert refusal(deployed(), unknown) is Stage.MARBLE
    exhausted = replace(deployed(), activations={"once": 1})
    assert refusal(exhausted, applicant().request("once", uuid="no uuid")) is Stage.BUDGET


def test_an_undefined_package_is_refused_even_in_a_state_that_has_lost_it() -> None:
    state = deployed()
    assert state.deployment is not None
    lost = replace(state, deployment=replace(state.deployment, packages={}))
    assert refusal(lost, applicant().request("frontend")) is Stage.PACKAGE


def test_a_long_marble_type_is_cut_in_the_refusal() -> None:
    with pytest.raises(ActivationRefused) as refused:
        check_request(deployed(), applicant().request("x" * 100_000), b"der")
    assert len(str(refused.value)) < 400


def test_a2_the_budget_counts_only_limited_marbles_and_ends_at_its_limit() -> None:
    """A2."""
    state = activate(deployed(), applicant().request("once"), INPUTS).state
    assert state.activations == {"once": 1}
    assert refusal(state, applicant().request("once")) is Stage.BUDGET
    unlimited = deployed()
    assert activate(unlimited, applicant().request("backend"), INPUTS).state is unlimited


def test_the_count_is_made_on_whatever_state_is_current_unless_the_rules_changed() -> None:
    base = deployed(encode(many(2)))
    transition = count_activation(base, "m")
    once = transition(base)
    twice = transition(once)
    assert twice.activations == {"m": 2}
    with pytest.raises(ActivationRefused) as refused:
        transition(twice)
    assert refused.value.stage is Stage.BUDGET
    assert base.deployment is not None
    with pytest.raises(Conflict):
        transition(replace(base, deployment=replace(base.deployment)))


def test_a4_files_and_arguments_are_those_of_the_manifest() -> None:
    """A4."""
    activated = run(deployed(), "frontend")
    shared = activated.files.pop("/shared.key") if isinstance(activated.files, dict) else b""
    assert activated.files == {
        "/plain": b"text",
        "/base64": b"foo\0bar",
        "/hex": b"foo",
        "/raw": b"{{ not a template }}",
    }
    assert shared.hex() == text(activated, "SHARED")
    assert activated.argv == ("./shop", "--fast")


def test_a5_key_and_chain_have_the_promised_form() -> None:
    """A5."""
    activated = run(deployed(), "bare")
    assert activated.env["MARBLE_PREDEFINED_PRIVATE_KEY"].startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert activated.env["MARBLE_PREDEFINED_PRIVATE_KEY"].endswith(b"-----END PRIVATE KEY-----\n")
    assert activated.env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"].count(b"BEGIN CERTIFICATE") == 2
    assert chain(activated)[1] == deployed().authority.intermediate


def test_a6_a7_names_of_the_chain_are_those_of_the_coordinator_and_of_the_instance() -> None:
    """A6, A7."""
    leaf, intermediate = chain(run(deployed(), "bare", f"URN:UUID:{UUID_1.upper()}"))
    assert intermediate.issuer.rfc4514_string() == "CN=MarbleRun Coordinator"
    assert leaf.issuer == intermediate.subject
    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == UUID_1


def test_a8_the_leaf_is_signed_by_intermediate_and_marble_root_alike() -> None:
    """A8."""
    activated = run(deployed(), "bare")
    leaf, intermediate = chain(activated)
    root = x509.load_pem_x509_certificate(activated.env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"])
    marble_root = x509.load_pem_x509_certificate(activated.env["MARBLE_PREDEFINED_ROOT_CA"])
    leaf.verify_directly_issued_by(intermediate)
    leaf.verify_directly_issued_by(marble_root)
    intermediate.verify_directly_issued_by(root)
    assert root == deployed().authority.root


def test_a10_the_leaf_certifies_the_returned_key_and_not_the_one_of_the_request() -> None:
    """A10."""
    activated = run(deployed(), "bare")
    key = load_pem_private_key(activated.env["MARBLE_PREDEFINED_PRIVATE_KEY"], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    leaf = chain(activated)[0]
    assert leaf.public_key() == key.public_key()
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    requested = x509.load_der_x509_csr(applicant().csr).public_key()
    assert leaf.public_key().public_bytes(*form) != requested.public_bytes(*form)


def test_a11_a_hex_template_gives_hex_and_only_to_marbles_that_ask() -> None:
    """A11."""
    assert len(text(run(deployed(), "frontend"), "SHARED")) == 32
    assert "SHARED" not in run(deployed(), "backend").env


def test_a12_shared_certificates_are_the_same_and_private_ones_differ() -> None:
    """A12."""
    frontend, backend = run(deployed(), "frontend", UUID_1), run(deployed(), "backend", UUID_2)
    assert text(frontend, "SHARED_CERT") == text(backend, "SHARED_CERT")
    assert text(frontend, "PRIVATE_CERT") != text(backend, "PRIVATE_CERT")


@pytest.mark.parametrize("name", ["SHARED_CERT", "PRIVATE_CERT"])
def test_a13_secret_certificates_come_from_the_marble_root_and_live_as_long_as_the_manifest_says(name: str) -> None:
    """A13."""
    activated = run(deployed(), "frontend")
    certificate = x509.load_pem_x509_certificate(activated.env[name])
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(activated.env["MARBLE_PREDEFINED_ROOT_CA"]))
    expected = AT + timedelta(days=7)
    assert abs(certificate.not_valid_after_utc - expected) < timedelta(hours=2)


def test_a14_a15_the_ttls_configuration_names_every_connection() -> None:
    """A14, A15."""
    activated = run(deployed(), "frontend")
    config = ttls(activated)
    own = {
        "cacrt": text(activated, "MARBLE_PREDEFINED_ROOT_CA"),
        "clicrt": chain(activated)[0].public_bytes(Encoding.PEM).decode(),
        "clikey": text(activated, "MARBLE_PREDEFINED_PRIVATE_KEY"),
    }
    assert config["Outgoing"] == {"service.namespace:8080": own}
    assert sorted(config["Incoming"]) == ["*:8443", "*:9443"]
    assert config["Incoming"]["*:9443"] == {**own, "clientAuth": True}
    replaced = config["Incoming"]["*:8443"]
    assert replaced["clientAuth"] is False
    assert replaced["clicrt"] == text(activated, "SHARED_CERT")
    assert replaced["cacrt"] == own["cacrt"]


def test_a16_a17_a_tag_is_what_makes_the_ttls_variable() -> None:
    """A16, A17."""
    assert "MARBLE_TTLS_CONFIG" not in run(deployed(), "backend").env
    expected = '{"tls":{"Incoming":{"*:8443":{"cacrt":"-----BEGIN CERTIFICATE-----'
    assert text(run(deployed(), "tlsOnly"), "MARBLE_TTLS_CONFIG").startswith(expected)


def test_a_manifests_own_ttls_configuration_is_replaced_before_it_is_executed() -> None:
    """Protocol, section 2.8: else a secret that nobody has uploaded would keep a Marble from starting."""
    document = integration()
    document["Secrets"]["unset"] = {"Type": "plain", "UserDefined": True}
    for name in ("tlsOnly", "bare"):
        document["Marbles"][name]["Parameters"] = {"Env": {"MARBLE_TTLS_CONFIG": "{{ string .Secrets.unset }}"}}
    state = deployed(encode(document))
    assert ttls(run(state, "tlsOnly")).keys() == {"Incoming", "Outgoing"}
    with pytest.raises(ActivationRefused, match="MARBLE_TTLS_CONFIG"):
        run(state, "bare")


def test_a18_a_marble_without_parameters_gets_only_what_every_marble_gets() -> None:
    """A18."""
    activated = run(deployed(), "bare")
    assert (activated.files, activated.argv) == ({}, ())
    assert sorted(activated.env) == [
        "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA",
        "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN",
        "MARBLE_PREDEFINED_PRIVATE_KEY",
        "MARBLE_PREDEFINED_ROOT_CA",
    ]


def private_keys(uuid: str, state: State) -> dict[str, str]:
    names = ("frontend", "backend", "unbound", "unboundToo")
    return {name: text(run(state, name, uuid), "PRIVATE") for name in names}


def test_a19_a20_private_keys_depend_on_instance_and_type_unless_unbound() -> None:
    """A19, A20."""
    first, second = private_keys(UUID_1, deployed()), private_keys(UUID_2, deployed())
    assert first["unbound"] == first["unboundToo"]
    assert len({first["unbound"], first["frontend"], first["backend"]}) == 3
    assert not set(first.values()) & set(second.values())
    assert first == private_keys(f"{{{UUID_1.upper()}}}", deployed())


def test_the_predefined_variables_cannot_be_overridden_by_the_manifest() -> None:
    document = integration()
    names = sorted(run(deployed(), "tlsOnly").env)
    document["Marbles"]["tlsOnly"]["Parameters"] = {"Env": dict.fromkeys(names, "mine")}
    env = run(deployed(encode(document)), "tlsOnly").env
    assert sorted(env) == names
    assert b"mine" not in env.values()


def test_a_user_secret_that_was_never_set_ends_the_activation() -> None:
    """Step 14 of protocol, section 2.4."""
    document = integration()
    document["Secrets"]["token"] = {"Type": "plain", "UserDefined": True}
    document["Marbles"]["bare"]["Parameters"] = {"Env": {"TOKEN": "{{ string .Secrets.token }}"}}
    with pytest.raises(ActivationRefused) as refused:
        run(deployed(encode(document)), "bare")
    assert refused.value.stage is Stage.TEMPLATES
    assert "Env[TOKEN]" in str(refused.value)


def test_a_bad_request_for_a_certificate_is_refused_and_a_bad_uuid_comes_first() -> None:
    request = replace(applicant().request("bare"), csr=b"\x30\x00")
    with pytest.raises(ActivationRefused) as refused:
        activate(deployed(), request, INPUTS)
    assert refused.value.stage is Stage.CREDENTIALS
    with pytest.raises(ActivationRefused) as refused:
        activate(deployed(), replace(request, uuid="no"), INPUTS)
    assert refused.value.stage is Stage.UUID


def test_a_request_with_a_forged_signature_is_refused() -> None:
    csr = bytearray(applicant().csr)
    csr[-1] ^= 1
    with pytest.raises(ActivationRefused) as refused:
        activate(deployed(), replace(applicant().request("bare"), csr=bytes(csr)), INPUTS)
    assert refused.value.stage is Stage.CREDENTIALS


SPELLINGS: Mapping[str, str] = {
    "plain": UUID_1,
    "upper": UUID_1.upper(),
    "urn": f"urn:uuid:{UUID_1}",
    "urn upper": f"URN:UUID:{UUID_1}",
    "braces": f"{{{UUID_1}}}",
    "any 38": f"x{UUID_1}y",
    "hex": UUID_1.replace("-", ""),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_uuids_are_read_in_four_spellings(spelling: str) -> None:
    assert parse_uuid(spelling) == UUID(UUID_1)


@pytest.mark.parametrize(
    "spelling",
    ["", "x", UUID_1[:-1], UUID_1 + "0", f"urn:uuix:{UUID_1}", UUID_1.replace("-", "_"), "g" * 32, "٣" * 32,
     f"{{{UUID_1.replace('-', '')}}}", f"{UUID_1}\n", "d3b07384d-113-4ec6-8f2a-1c2d3e4f5a6b", "0x" + "1" * 30],
)  # fmt: skip
def test_other_spellings_are_refused(spelling: str) -> None:
    with pytest.raises(ActivationRefused) as refused:
        parse_uuid(spelling)
    assert refused.value.stage is Stage.UUID


def test_nothing_of_an_activation_shows_in_its_repr() -> None:
    activated = run(deployed(), "frontend")
    shown = repr(activated) + repr(deployed()) + repr(deployed().data_key)
    for value in (*activated.env.values(), *activated.files.values()):
        assert value.hex() not in shown
        assert base64.b64encode(value).decode() not in shown or not value
    assert deployed().root_secret.hex() not in shown


def test_a_manifest_update_in_the_middle_is_judged_by_the_new_rules() -> None:
    """Admission reads the state it is given, so a repeated decision uses the newer package."""
    document = integration()
    document["Marbles"].pop("frontend")
    newer = set_manifest(fresh(), encode(document), INPUTS, {}).state
    assert refusal(newer, applicant().request("frontend")) is Stage.MARBLE
