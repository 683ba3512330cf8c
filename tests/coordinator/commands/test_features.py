"""Feature gates, signing of quotes, and monotonic counters: the pure part."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coordinator.manifests import encode, integration
from tests.coordinator.states import AT, INPUTS, NAMES, UUID_1, applicant, deployed, fresh
from tests.forge.evidence import forge

from marblerun.attestation.dcap.quote import add_oe_header, is_raw_sgx_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, TcbStatus, Tee, Unattested
from marblerun.client.signatures import verify_signed_quote
from marblerun.coordinator.commands.activate import activate
from marblerun.coordinator.commands.authority import renewed_authority
from marblerun.coordinator.commands.features import MONOTONIC_COUNTER, SIGN_QUOTE, FeatureDisabled, require_feature
from marblerun.coordinator.commands.monotonic_counter import (
    MAX_COUNTER,
    MAX_COUNTER_NAME_BYTES,
    MAX_COUNTERS,
    MarbleIdentity,
    UnauthorizedMarble,
    authorize_marble,
    counter_id,
    raise_counter,
    raised,
)
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.commands.sign_quote import evidence_to_verify, sign_quote
from marblerun.coordinator.commands.start import start_state
from marblerun.coordinator.state import Phase, State
from marblerun.coordinator.store.entries import decode_state, encode_state
from marblerun.errors import Conflict, Denied, Malformed, Untrusted, WrongPhase


def with_gates(*gates: str) -> bytes:
    return encode({**integration(), "Config": {"FeatureGates": list(gates)}})


BOTH = with_gates("signquoteendpoint", "MONOTONICCOUNTER")


def marble_certificate(state: State, marble: str = "backend", uuid: str = UUID_1) -> bytes:
    """DER of what an activated Marble holds."""
    reply = activate(state, applicant().request(marble, uuid), INPUTS).reply
    chain = x509.load_pem_x509_certificates(reply.env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
    return chain[0].public_bytes(Encoding.DER)


# -- gates -------------------------------------------------------------------------------------------------------


def test_f3_a_gate_is_on_where_the_manifest_lists_it_in_any_case_and_off_everywhere_else() -> None:
    """F3."""
    for gate in (SIGN_QUOTE, MONOTONIC_COUNTER, "monotoniccounter"):
        require_feature(deployed(BOTH), gate)
        for state in (deployed(), fresh()):
            with pytest.raises(FeatureDisabled):
                require_feature(state, gate)
    for unknown in ("", "Unknown", "SignQuote"):
        with pytest.raises(FeatureDisabled):
            require_feature(deployed(BOTH), unknown)


# -- sign-quote --------------------------------------------------------------------------------------------------


def sgx_claims(status: TcbStatus = TcbStatus.UP_TO_DATE) -> Claims:
    """Of a quote that was really verified; only the status is replaced."""
    forged = forge()
    claims = Verifier([forged.root]).verify(forged.quote, forged.collateral, forged.at)
    return replace(claims, tcb_status=status)


def test_f1_the_signature_is_over_the_base64_of_the_upload_followed_by_the_status() -> None:
    """F1, I9; the digest is the one of protocol, section 15."""
    state = deployed(BOTH)
    signed = sign_quote(state, b"quote", sgx_claims())
    digest = hashlib.sha256(b"cXVvdGU=UpToDate").digest()
    assert digest.hex() == "dbd273e560e3ebfc8d29e58eab34ccaa5ae721df0fb8b45c51caeb15d572fa02"
    state.authority.root_key.public_key().verify(signed.signature, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    verify_signed_quote(state.authority.root, b"quote", signed.signature, signed.tcb_status)
    for root, quote, status in (
        (fresh_root(), b"quote", "UpToDate"),
        (state.authority.root, b"quotf", "UpToDate"),
        (state.authority.root, b"quote", "OutOfDate"),
    ):
        with pytest.raises(Untrusted):
            verify_signed_quote(root, quote, signed.signature, status)


def fresh_root() -> x509.Certificate:
    return start_state(NAMES, INPUTS).authority.root


@pytest.mark.parametrize("status", list(TcbStatus))
def test_f1_every_status_that_verification_lets_through_is_signed(status: TcbStatus) -> None:
    """F1: also where the reference's library calls the TCB level invalid."""
    assert sign_quote(deployed(BOTH), b"q", sgx_claims(status)).tcb_status == status.value


def test_f2_nothing_is_signed_that_was_not_verified_as_an_sgx_quote() -> None:
    """F2."""
    with pytest.raises(Untrusted, match="without evidence"):
        sign_quote(deployed(BOTH), b"q", Unattested())
    with pytest.raises(Untrusted, match="not an SGX quote"):
        sign_quote(deployed(BOTH), b"q", replace(sgx_claims(), tee=Tee.TDX))
    with pytest.raises(FeatureDisabled):
        sign_quote(deployed(), b"q", sgx_claims())


def test_f9_only_what_looks_like_a_raw_sgx_quote_gets_the_header() -> None:
    """F9."""
    raw = (3).to_bytes(2, "little") + (2).to_bytes(2, "little") + bytes(4) + b"\x05\x00\x0d\x00" + bytes(36)
    state = deployed(BOTH)
    assert is_raw_sgx_quote(raw)
    assert evidence_to_verify(state, raw) == add_oe_header(raw)

    def spoilt(offset: int, value: bytes) -> bytes:
        return raw[:offset] + value + raw[offset + len(value) :]

    others = {
        "empty": b"",
        "short": raw[:47],
        "zeros": bytes(500),
        "with header": add_oe_header(raw),
        "version": spoilt(0, b"\x04\x00"),
        "key type": spoilt(2, b"\x04\x00"),
        "TEE type": spoilt(4, b"\x81\x00\x00\x00"),
        "QE SVN": spoilt(8, b"\x00\x00"),
        "PCE SVN": spoilt(10, b"\x00\x00"),
    }
    for name, data in others.items():
        assert not is_raw_sgx_quote(data), name
        assert evidence_to_verify(state, data) == data, name


# -- whose counter -----------------------------------------------------------------------------------------------


def test_f7_an_activated_marble_is_known_by_its_own_certificate() -> None:
    """F7."""
    state = deployed(BOTH)
    identity = authorize_marble(state, marble_certificate(state), AT)
    assert identity == MarbleIdentity(b"backend", UUID(UUID_1))


def forged_certificate(
    state: State, *, common_name: str = UUID_1, marble_type: bool = True, key: ec.EllipticCurvePrivateKey | None = None
) -> bytes:
    """A certificate that the Marble root (or somebody with its name) has issued."""
    authority = state.authority
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]))
        .issuer_name(authority.marble_root.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(7)
        .not_valid_before(AT - timedelta(days=1))
        .not_valid_after(AT + timedelta(days=1))
    )
    if marble_type:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.9903.2.1"), b"backend")
        builder = builder.add_extension(extension, critical=False)
    signed = builder.sign(key or authority.intermediate_key, hashes.SHA384())
    return signed.public_bytes(Encoding.DER)


def test_f7_the_forged_certificate_of_these_tests_is_good_as_long_as_nothing_is_wrong_with_it() -> None:
    state = deployed(BOTH)
    assert authorize_marble(state, forged_certificate(state), AT).marble_type == b"backend"


@pytest.mark.parametrize(
    "case",
    ["none", "empty", "junk", "other signer", "no UUID", "no type", "expired", "not yet", "root", "marble root",
     "self-signed", "secret"],
)  # fmt: skip
def test_f7_anything_else_is_an_unauthorized_marble(case: str) -> None:
    """F7. Nothing in the text says which part was wrong."""
    state = deployed(BOTH)
    authority = state.authority
    at = {"expired": AT + timedelta(days=2), "not yet": AT - timedelta(days=2)}.get(case, AT)
    deployment = state.deployment
    assert deployment is not None
    leaf = {
        "none": None,
        "empty": b"",
        "junk": b"\x30\x03\x02\x01\x00",
        "other signer": forged_certificate(state, key=ec.generate_private_key(ec.SECP384R1())),
        "no UUID": forged_certificate(state, common_name="backend"),
        "no type": forged_certificate(state, marble_type=False),
        "root": authority.root_der,
        "marble root": authority.marble_root_der,
        "self-signed": applicant().certificate,
        "secret": deployment.secrets["sharedCert"].certificate,
    }.get(case, forged_certificate(state))
    with pytest.raises(UnauthorizedMarble) as refused:
        authorize_marble(state, leaf, at)
    assert str(refused.value).startswith("unauthorized marble")
    assert str(refused.value) == str(UnauthorizedMarble())


def test_f7_gate_then_state_then_certificate() -> None:
    """F5, F7: wrong state."""
    state = deployed(BOTH)
    leaf = marble_certificate(state)
    with pytest.raises(FeatureDisabled):
        authorize_marble(deployed(), None, AT)
    for phase in (Phase.RECOVERY, Phase.ACCEPTING_MANIFEST):
        with pytest.raises(WrongPhase, match="server is not in expected state"):
            authorize_marble(replace(state, phase=phase), leaf, AT)


def test_a_certificate_from_before_an_update_no_longer_counts() -> None:
    """Protocol, section 7.9."""
    state = deployed(BOTH)
    leaf = marble_certificate(state)
    updated = replace(state, authority=renewed_authority(state.authority, INPUTS))
    with pytest.raises(UnauthorizedMarble):
        authorize_marble(updated, leaf, AT)
    assert authorize_marble(updated, marble_certificate(updated), AT).uuid == UUID(UUID_1)


# -- counters ----------------------------------------------------------------------------------------------------

IDENTITY = MarbleIdentity(b"backendFirst", UUID("02030400-0000-0000-0000-000000000000"))


def test_f4_key_and_value_in_the_store_are_the_references() -> None:
    """F4; vector of protocol, section 15."""
    name = counter_id(IDENTITY, "foo")
    state = raised(deployed(BOTH), name, 3)
    entries = encode_state(state)
    key = "monotonicCounter:YmFja2VuZEZpcnN0:AgMEAAAAAAAAAAAAAAAAAA==:Zm9v"
    assert entries[key] == bytes.fromhex("0300000000000000")
    assert decode_state(entries).counters == {name: 3}
    for broken in (b"", b"\x03", bytes(9)):
        with pytest.raises(Malformed):
            decode_state({**entries, key: broken})


def test_f4_smaller_and_equal_values_leave_the_very_same_state() -> None:
    """F4."""
    state = deployed(BOTH)
    assert raised(state, "c", 0) is state
    state = raised(state, "c", 5)
    assert state.counters == {"c": 5}
    assert raised(state, "c", 5) is state
    assert raised(state, "c", 4) is state
    assert raised(state, "c", MAX_COUNTER).counters == {"c": MAX_COUNTER}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, MAX_COUNTER)), max_size=12))
def test_f4_a_counter_is_the_highest_value_ever_asked_for(calls: list[tuple[str, int]]) -> None:
    """F4: the answers are what a running maximum gives."""
    base = state = deployed(BOTH)
    model: dict[str, int] = {}
    for name, value in calls:
        told: list[int] = []
        state = raise_counter(base, name, value, told.append)(state)
        assert told == [model.get(name, 0)]
        model[name] = max(model.get(name, 0), value)
    assert dict(state.counters) == {name: value for name, value in model.items() if value}


def test_different_marbles_types_and_names_have_different_counters() -> None:
    names = {
        counter_id(MarbleIdentity(marble_type, uuid), name)
        for marble_type in (b"a", b"b", b"a:b", "größe".encode())
        for uuid in (UUID(int=1), UUID(int=2))
        for name in ("", "a", "b", ":", "a:b", "größe")
    }
    assert len(names) == 4 * 2 * 6


def test_names_and_numbers_of_counters_have_an_end() -> None:
    with pytest.raises(Malformed):
        counter_id(IDENTITY, "x" * (MAX_COUNTER_NAME_BYTES + 1))
    counter_id(IDENTITY, "x" * MAX_COUNTER_NAME_BYTES)
    full = replace(deployed(BOTH), counters={str(n): 1 for n in range(MAX_COUNTERS)})
    with pytest.raises(Denied):
        raised(full, "one more", 1)
    assert raised(full, "7", 2).counters["7"] == 2


def test_an_update_in_between_means_that_the_caller_is_looked_at_again() -> None:
    base = deployed(BOTH)
    change = raise_counter(base, "c", 1, lambda _previous: None)
    for other in (
        replace(base, authority=renewed_authority(base.authority, INPUTS)),
        deployed(with_gates("MonotonicCounter")),
    ):
        with pytest.raises(Conflict):
            change(other)


def test_setting_a_new_manifest_forgets_counters() -> None:
    """As everything else of the deployment before (protocol, section 12.1, no. 3)."""
    lost = replace(fresh(), phase=Phase.RECOVERY, counters={"c": 1})
    assert set_manifest(lost, BOTH, INPUTS, {}).state.counters == {}
