"""Keys that seal the data key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.coordinator.running import new_platform
from tests.coordinator.states import ENTROPY

from marblerun.attestation.issue import GramineIssuer, NoEvidenceIssuer
from marblerun.attestation.issue.simulated import SimulatedIssuer
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.coordinator.seal import KeySealer, SealMode, seal_mode
from marblerun.coordinator.seal.detect import detect_sealer, verify_sealing
from marblerun.coordinator.seal.gramine import GramineKeys
from marblerun.coordinator.seal.none import AbsentSealer, PlainSealer
from marblerun.coordinator.seal.platform import EnclaveSealer, KeyRequest, SimulatedKeys, parse_key_request
from marblerun.errors import Malformed, MarbleRunError, Misconfigured, Unavailable, Untrusted

KEY = bytes(range(32))
AAD = b"a" * 32


def sealer(platform: SimulatedPlatform, identity: EnclaveIdentity | None = None) -> EnclaveSealer:
    return EnclaveSealer("test", SimulatedKeys(platform, identity or EnclaveIdentity()), ENTROPY)


@pytest.mark.parametrize("mode", [SealMode.PRODUCT_KEY, SealMode.UNIQUE_KEY])
def test_an_enclave_opens_what_it_sealed_and_nothing_is_sealed_twice_alike(
    platform: SimulatedPlatform, mode: SealMode
) -> None:
    own = sealer(platform)
    sealed = own.seal(KEY, mode, AAD)
    assert own.unseal(sealed, AAD) == KEY
    assert own.seal(KEY, mode, AAD) != sealed
    assert KEY not in sealed


@pytest.mark.parametrize(
    ("mode", "other", "opens"),
    [
        (SealMode.PRODUCT_KEY, EnclaveIdentity(unique_id=b"u" * 32), True),
        (SealMode.UNIQUE_KEY, EnclaveIdentity(unique_id=b"u" * 32), False),
        (SealMode.PRODUCT_KEY, EnclaveIdentity(signer_id=b"s" * 32), False),
        (SealMode.PRODUCT_KEY, EnclaveIdentity(product_id=2), False),
        (SealMode.PRODUCT_KEY, EnclaveIdentity(debug=True), False),
        (SealMode.UNIQUE_KEY, EnclaveIdentity(debug=True), False),
        (SealMode.PRODUCT_KEY, EnclaveIdentity(security_version=2), True),
        (SealMode.PRODUCT_KEY, EnclaveIdentity(security_version=0), False),
    ],
)
def test_who_opens_a_sealed_key_depends_on_the_mode(
    platform: SimulatedPlatform, mode: SealMode, other: EnclaveIdentity, opens: bool
) -> None:
    sealed = sealer(platform).seal(KEY, mode, AAD)
    if opens:
        assert sealer(platform, other).unseal(sealed, AAD) == KEY
    else:
        with pytest.raises(Untrusted):
            sealer(platform, other).unseal(sealed, AAD)


def test_a_sealed_key_opens_only_with_its_own_state(platform: SimulatedPlatform) -> None:
    own = sealer(platform)
    with pytest.raises(Untrusted):
        own.unseal(own.seal(KEY, SealMode.PRODUCT_KEY, AAD), b"b" * 32)


def test_another_machine_cannot_open_it(platform: SimulatedPlatform, tmp_path: Path) -> None:
    sealed = sealer(platform).seal(KEY, SealMode.PRODUCT_KEY, AAD)
    with pytest.raises(Untrusted):
        sealer(new_platform(tmp_path / "other")).unseal(sealed, AAD)


def test_every_flipped_byte_and_every_truncation_is_refused(platform: SimulatedPlatform) -> None:
    """Also of the parts of the key information that lead to no other key."""
    own = sealer(platform)
    sealed = own.seal(KEY, SealMode.UNIQUE_KEY, AAD)
    for position in (*range(80), *range(500, 600), *range(len(sealed) - 64, len(sealed))):
        broken = bytearray(sealed)
        broken[position] ^= 0x40
        refused(own, bytes(broken))
    for size in range(0, len(sealed), 7):
        refused(own, sealed[:size])


def refused(own: KeySealer, sealed: bytes) -> None:
    with pytest.raises((Untrusted, Malformed)):
        own.unseal(sealed, AAD)


def test_disabled_sealing_never_asks_an_enclave(platform: SimulatedPlatform) -> None:
    with pytest.raises(ValueError, match="disabled"):
        sealer(platform).seal(KEY, SealMode.DISABLED, AAD)


def test_key_requests_round_trip_and_others_are_refused() -> None:
    request = KeyRequest(SealMode.UNIQUE_KEY, 7, b"i" * 32)
    assert len(request.encode()) == 512
    assert parse_key_request(request.encode()) == request
    for name in (b"\x00", b"\x01\x00", b"\x04\x00\x03\x00"):
        with pytest.raises(Malformed):
            parse_key_request(name.ljust(512, b"\0"))


def test_m16_seal_modes_by_name() -> None:
    """M16."""
    named = {"": SealMode.PRODUCT_KEY, "ProductKey": SealMode.PRODUCT_KEY, "UniqueKey": SealMode.UNIQUE_KEY}
    assert {text: seal_mode(text) for text in named} == named
    assert seal_mode("Disabled") is SealMode.DISABLED
    for text in ("productkey", "None", " "):
        with pytest.raises(Malformed):
            seal_mode(text)


def test_without_sealing_the_key_is_its_own_sealed_form_and_other_sizes_are_refused() -> None:
    """Protocol, section 10.2, "noenclave"."""
    plain = PlainSealer()
    assert plain.unseal(plain.seal(KEY, SealMode.PRODUCT_KEY, AAD), AAD) == KEY
    assert plain.unseal(KEY[:16], b"") == KEY[:16]
    for size in (0, 15, 17, 31, 33):
        with pytest.raises(Untrusted):
            plain.unseal(bytes(size), AAD)


def test_k2_a_missing_key_a_wrong_length_and_a_wrong_key_are_told_apart(platform: SimulatedPlatform) -> None:
    """K2: and what was sealed is unsealed."""
    own = sealer(platform)
    assert own.unseal(own.seal(KEY, SealMode.PRODUCT_KEY, AAD), AAD) == KEY
    with pytest.raises(Unavailable):
        AbsentSealer().unseal(b"", AAD)
    for wrong in (b"", KEY[:12]):
        with pytest.raises((Malformed, Untrusted)):
            PlainSealer().unseal(wrong, AAD)
    with pytest.raises(Untrusted):
        own.unseal(own.seal(KEY, SealMode.PRODUCT_KEY, AAD), AAD + b"x")


def test_a_key_of_another_kind_is_told_with_what_is_missing(platform: SimulatedPlatform) -> None:
    with pytest.raises(Malformed, match="EDG_COORDINATOR_TPM has to name it"):
        sealer(platform).unseal(b"TPM2SEAL and more", AAD)
    with pytest.raises(Malformed, match="it is empty"):
        sealer(platform).unseal(b"", AAD)


def test_a_machine_without_sealing_keys_needs_recovery() -> None:
    absent = AbsentSealer()
    assert absent.seal(KEY, SealMode.PRODUCT_KEY, AAD) == b""
    with pytest.raises(Unavailable):
        absent.unseal(b"", AAD)


def gramine(directory: Path, content: bytes) -> GramineKeys:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "_sgx_mrsigner").write_bytes(content)
    return GramineKeys(directory)


def test_gramine_gives_one_key_an_id(tmp_path: Path) -> None:
    keys = gramine(tmp_path, b"k" * 16)
    one = keys.derive(KeyRequest(SealMode.PRODUCT_KEY, 0, b"1" * 32))
    two = keys.derive(KeyRequest(SealMode.PRODUCT_KEY, 0, b"2" * 32))
    assert (len(one), one == two) == (16, False)
    assert b"k" * 16 not in (one, two)


@pytest.mark.parametrize("content", [b"", b"\0" * 16, b"k" * 15, b"k" * 17])
def test_an_unusable_gramine_key_is_never_used(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Unavailable):
        gramine(tmp_path, content).derive(KeyRequest(SealMode.PRODUCT_KEY, 0, bytes(32)))
    with pytest.raises(Unavailable):
        gramine(tmp_path, content).derive(KeyRequest(SealMode.UNIQUE_KEY, 0, bytes(32)))


def no_quote(_data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda p, r: detect_sealer({"OE_SIMULATION": "1"}, NoEvidenceIssuer(), None, ENTROPY, r), PlainSealer),
        (lambda p, r: detect_sealer({}, SimulatedIssuer(no_quote), p.directory, ENTROPY, r), EnclaveSealer),
        (lambda p, r: detect_sealer({}, NoEvidenceIssuer(), None, ENTROPY, r), AbsentSealer),
        (lambda p, r: detect_sealer({}, GramineIssuer(r), None, ENTROPY, r), AbsentSealer),
    ],
)
def test_the_sealer_is_that_of_the_tee(
    platform: SimulatedPlatform,
    tmp_path: Path,
    prepare: Callable[[SimulatedPlatform, Path], KeySealer],
    expected: type[KeySealer],
) -> None:
    assert isinstance(prepare(platform, tmp_path), expected)


def test_gramine_with_keys_seals(tmp_path: Path) -> None:
    gramine(tmp_path / "dev/attestation/keys", b"k" * 16)
    found = detect_sealer({}, GramineIssuer(tmp_path), None, ENTROPY, tmp_path)
    assert found.unseal(found.seal(KEY, SealMode.PRODUCT_KEY, AAD), AAD) == KEY


# -- found out at the start ------------------------------------------------------------------------------------------


class Broken(PlainSealer):
    """Seals and opens as told."""

    def __init__(self, sealing: MarbleRunError | None = None, opening: MarbleRunError | None = None) -> None:
        self.sealing, self.opening = sealing, opening

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        if self.sealing is not None:
            raise self.sealing
        return bytes(len(key)) if self.opening is None else key

    def unseal(self, sealed: bytes, additional: bytes) -> bytes:
        if self.opening is not None:
            raise self.opening
        return sealed


@pytest.mark.parametrize(
    ("sealer", "error", "text"),
    [
        (Broken(sealing=Unavailable("no answer")), Unavailable, "no answer"),
        (Broken(sealing=Misconfigured("set a bank")), Misconfigured, "set a bank"),
        (Broken(opening=Untrusted("not mine", step="sealed-key")), Unavailable, "not mine"),
        (Broken(), Unavailable, "something else"),
    ],
)
def test_a_sealing_key_that_cannot_be_used_is_found_out(sealer: Broken, error: type[MarbleRunError], text: str) -> None:
    with pytest.raises(error, match=f"nothing could be sealed on this machine.*{text}"):
        verify_sealing(sealer, ENTROPY)


def test_sealers_that_can_be_used_pass_and_a_machine_without_any_is_warned_of(
    platform: SimulatedPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    verify_sealing(PlainSealer(), ENTROPY)
    verify_sealing(EnclaveSealer("simulated", SimulatedKeys(platform, EnclaveIdentity()), ENTROPY), ENTROPY)
    assert caplog.records == []
    verify_sealing(AbsentSealer(), ENTROPY)
    assert ["every restart will need recovery" in record.getMessage() for record in caplog.records] == [True]
