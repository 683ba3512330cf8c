"""The sealed formats are those of the reference, and a changed byte never opens (protocol, sections 10.1, 10.2, 15)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from marblerun.errors import Malformed, Untrusted
from marblerun.secrets import box

DEK = b"\x01" * 32
KEK = b"\x02" * 32
NONCE = bytes(range(12))
ENTRIES = {"state": b"3", "manifest": b"{}"}
DATA = bytes.fromhex(
    "040000006e756c6c000102030405060708090a0bc084f8474e97601c8d1ec5fe020cfb9393e4472886e5247414e802a2ecf0008f70ae9ddae7"
    "17311ba9f56c90be8414904def"
)
ADDITIONAL = bytes.fromhex("1c05bf2a90ac90cca4fc0eafd8020b811d053559efb7ab83e4932bbf605faad6")
KEY = bytes.fromhex(
    "000102030405060708090a0b4809e3fbd0488d452a8941179fbf64fa523fc1cd121b95d87b716e8e91101394bc79fb9e3aae96973938cbe8"
    "cf88b1ac"
)


class Platform:
    """Sealing keys that are a hash of a secret and the key information, as EGETKEY's."""

    def __init__(self, secret: bytes = b"cpu") -> None:
        self._secret = secret
        self._made = 0

    def new_key(self) -> tuple[bytes, bytes]:
        self._made += 1
        info = bytes([self._made]) * box.KEY_INFO_BYTES
        return info, self.key_for(info)

    def key_for(self, info: bytes) -> bytes:
        return hashlib.sha256(self._secret + info).digest()[:16]


def test_the_published_sealed_data_is_written_and_read() -> None:
    assert box.build_sealed_data(DEK, b"null", ENTRIES, NONCE) == DATA
    assert box.open_sealed_data(DEK, DATA) == ENTRIES
    assert box.parse_sealed_data(DATA).recovery_data == b"null"
    assert box.additional_data(DATA) == ADDITIONAL


def test_the_published_sealed_key_is_written_and_read() -> None:
    """K13: under a key encryption key that is given."""
    assert box.seal_key(KEK, DEK, ADDITIONAL, NONCE) == KEY
    assert box.open_key(KEK, KEY, ADDITIONAL) == DEK


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.binary()), st.binary(max_size=200))
def test_a_state_is_read_back_with_its_recovery_data(entries: Mapping[str, bytes], recovery_data: bytes) -> None:
    data = box.build_sealed_data(DEK, recovery_data, entries, NONCE)
    assert box.parse_sealed_data(data).recovery_data == recovery_data
    assert box.open_sealed_data(DEK, data) == entries


def test_keys_of_16_bytes_from_old_releases_still_open() -> None:
    old = b"\x07" * 16
    data = b"\x00" * 4 + NONCE + AESGCM(old).encrypt(NONCE, b'{"a":"Yg=="}', None)
    assert box.open_sealed_data(old, data) == {"a": b"b"}


def test_an_empty_plaintext_means_no_state() -> None:
    assert box.open_sealed_data(DEK, b"\x00" * 4 + NONCE + AESGCM(DEK).encrypt(NONCE, b"", None)) == {}


def test_recovery_data_can_be_replaced_without_the_key() -> None:
    data = box.replace_recovery_data(DATA, b'{"aa":true}')
    assert box.parse_sealed_data(data).recovery_data == b'{"aa":true}'
    assert box.open_sealed_data(DEK, data) == ENTRIES
    assert box.replace_recovery_data(data, b"null") == DATA


@pytest.mark.parametrize(
    "data", [b"", b"\x00", bytes(4), b"\x05\x00\x00\x00null", b"\xff\xff\xff\xff" + bytes(40), b"\x00\x00\x00\x80null"]
)
def test_data_that_is_too_short_for_its_header_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        box.parse_sealed_data(data)


def test_a_state_that_could_not_be_read_again_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = len(box.build_sealed_data(DEK, b"null", {"a": bytes(3000)}, bytes(12)))
    monkeypatch.setattr(box, "MAX_SEALED_STATE_BYTES", largest)
    data = box.build_sealed_data(DEK, b"null", {"a": bytes(3000)}, bytes(12))
    assert box.open_sealed_data(DEK, data) == {"a": bytes(3000)}
    with pytest.raises(Malformed):
        box.build_sealed_data(DEK, b"null", {"a": bytes(3001)}, bytes(12))


def test_a_state_above_the_ceiling_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "MAX_SEALED_STATE_BYTES", len(DATA))
    assert box.parse_sealed_data(DATA).recovery_data == b"null"
    with pytest.raises(Malformed):
        box.parse_sealed_data(DATA + b"\x00")


def test_recovery_data_may_reach_to_the_end_and_then_nothing_is_sealed() -> None:
    assert box.parse_sealed_data(b"\x04\x00\x00\x00null") == box.SealedData(b"null", b"")
    assert not box.is_data_key(DEK, b"\x04\x00\x00\x00null")


def test_every_truncation_of_both_files_is_refused() -> None:
    for size in range(len(DATA)):
        with pytest.raises((Malformed, Untrusted)):
            box.open_sealed_data(DEK, DATA[:size])
    for size in range(len(KEY)):
        with pytest.raises((Malformed, Untrusted)):
            box.open_key(KEK, KEY[:size], ADDITIONAL)


def test_every_changed_byte_of_both_files_is_refused() -> None:
    """The recovery data is not authenticated by its own layer, but by the sealed key's additional data."""
    for at in range(len(DATA)):
        changed = DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]
        with pytest.raises((Malformed, Untrusted)):
            box.open_key(KEK, KEY, box.additional_data(changed))
        if not 4 <= at < 8:
            with pytest.raises((Malformed, Untrusted)):
                box.open_sealed_data(DEK, changed)
    for at in range(len(KEY)):
        with pytest.raises(Untrusted):
            box.open_key(KEK, KEY[:at] + bytes([KEY[at] ^ 1]) + KEY[at + 1 :], ADDITIONAL)


@pytest.mark.parametrize("key", [b"", b"\x01" * 31, b"\x01" * 24, b"\x02" * 32, b"\x01" * 16])
def test_another_key_is_untrusted(key: bytes) -> None:
    with pytest.raises(Untrusted) as caught:
        box.open_sealed_data(key, DATA)
    assert caught.value.step == "sealed-data"


@settings(max_examples=300)
@given(st.binary(max_size=2000))
def test_random_bytes_raise_only_our_errors(data: bytes) -> None:
    for attempt in (
        lambda: box.open_sealed_data(DEK, data),
        lambda: box.open_key(KEK, data, ADDITIONAL),
        lambda: box.open_key_enclave(Platform(), data, ADDITIONAL),
        lambda: box.unwrap_hsm(KEK, data),
        lambda: box.unwrap_hsm(KEK, box.HSM_PREFIX + data),
    ):
        with pytest.raises((Malformed, Untrusted)):
            attempt()


@pytest.mark.parametrize("plaintext", [b"[]", b"{", b'{"a":1}', b'{"a":"x"}', b"{}{}"])
def test_a_state_that_is_no_map_of_bytes_is_malformed(plaintext: bytes) -> None:
    with pytest.raises(Malformed):
        box.open_sealed_data(DEK, b"\x00" * 4 + NONCE + AESGCM(DEK).encrypt(NONCE, plaintext, None))


def test_the_enclave_form_has_two_key_informations_in_front() -> None:
    sealed = box.seal_key_enclave(Platform(), DEK, ADDITIONAL, NONCE)
    assert sealed[:4] == b"\x00\x04\x00\x00"
    assert sealed[4:1028] == b"\x01" * 512 + b"\x02" * 512
    platform = Platform()
    kek = platform.key_for(b"\x01" * 512) + platform.key_for(b"\x02" * 512)
    assert sealed[1028:] == box.seal_key(kek, DEK, ADDITIONAL, NONCE)
    assert box.open_key_enclave(Platform(), sealed, ADDITIONAL) == DEK


def test_the_enclave_form_of_older_releases_has_one_key_information() -> None:
    info, kek = Platform().new_key()
    sealed = b"\x00\x02\x00\x00" + info + NONCE + AESGCM(kek).encrypt(NONCE, b"\x09" * 16, ADDITIONAL)
    assert box.open_key_enclave(Platform(), sealed, ADDITIONAL) == b"\x09" * 16


def test_the_enclave_form_opens_only_on_its_platform_and_with_its_state() -> None:
    """K13: under keys that are made for it; the additional data is bound."""
    sealed = box.seal_key_enclave(Platform(), DEK, ADDITIONAL, NONCE)
    for platform, additional in ((Platform(b"other"), ADDITIONAL), (Platform(), bytes(32))):
        with pytest.raises(Untrusted) as caught:
            box.open_key_enclave(platform, sealed, additional)
        assert (caught.value.step, caught.value.reason) == ("sealed-key", "bad-seal")


@pytest.mark.parametrize("size", [0, 511, 513, 1023, 1536, 2**32 - 1])
def test_key_information_of_another_size_is_malformed(size: int) -> None:
    with pytest.raises(Malformed):
        box.open_key_enclave(Platform(), size.to_bytes(4, "little") + bytes(3000), ADDITIONAL)


def test_a_sealed_key_holds_a_key() -> None:
    with pytest.raises(Malformed):
        box.open_key(KEK, box.seal_key(KEK, b"\x01" * 31, ADDITIONAL, NONCE), ADDITIONAL)


def test_hsm_sealing_is_a_prefix_around_any_form() -> None:
    """I16: the key file has the prefix while HSM sealing is on."""
    wrapped = box.wrap_hsm(KEK, KEY, NONCE)
    assert wrapped.startswith(b"HSM_SEALED" + NONCE)
    assert (box.is_hsm_sealed(wrapped), box.is_hsm_sealed(KEY)) == (True, False)
    assert box.unwrap_hsm(KEK, wrapped) == KEY
    with pytest.raises(Untrusted) as caught:
        box.unwrap_hsm(DEK, wrapped)
    assert caught.value.step == "hsm-seal"


def test_what_no_hsm_has_sealed_is_not_taken_for_it() -> None:
    """Not even if it would open without the prefix."""
    wrapped = box.wrap_hsm(KEK, KEY, NONCE)
    for sealed in (b"hsm_sealed" + wrapped[10:], b"HSM_SEALE_" + wrapped[10:], KEY):
        with pytest.raises(Malformed, match="not sealed by an HSM"):
            box.unwrap_hsm(KEK, sealed)


def test_a_key_file_that_ends_within_or_right_behind_its_key_information_is_malformed() -> None:
    """The platform is not even asked for keys then."""
    sealed = box.seal_key_enclave(Platform(), DEK, ADDITIONAL, NONCE)
    for size in (0, 3, 4, 516, 1027):
        with pytest.raises(Malformed, match="key information is missing"):
            box.open_key_enclave(Platform(), sealed[:size], ADDITIONAL)
    for size in (1028, 1028 + 27):
        with pytest.raises(Malformed, match="truncated"):
            box.open_key_enclave(Platform(), sealed[:size], ADDITIONAL)


def test_only_the_data_key_is_the_data_key() -> None:
    """Also for a state without entries, whose plaintext does not begin as JSON does, and for old releases' keys."""
    data = box.build_sealed_data(DEK, b"null", ENTRIES, NONCE)
    empty = (4).to_bytes(4, "little") + b"null" + NONCE + AESGCM(DEK).encrypt(NONCE, b"", None)
    for sealed in (data, empty):
        assert box.is_data_key(DEK, sealed)
        others = (KEK, bytes(32), DEK[:16], DEK[:31], DEK + b"\0", b"")
        assert [key for key in others if box.is_data_key(key, sealed)] == []
        damaged = sealed[:-1] + bytes([sealed[-1] ^ 1])
        assert not box.is_data_key(DEK, damaged)
    short = (0).to_bytes(4, "little")
    assert [size for size in (1, 11, 12, 27, 28) if box.is_data_key(DEK, short + bytes(size))] == []


class Strange(Platform):
    """A platform whose key information has these sizes."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self._sizes = iter(sizes)

    def new_key(self) -> tuple[bytes, bytes]:
        return bytes(next(self._sizes)), bytes(16)


def test_key_information_that_the_platform_makes_in_another_size_is_our_own_error() -> None:
    for sizes in ((511, 512), (512, 513), (0, 0)):
        with pytest.raises(ValueError, match="key information"):
            box.seal_key_enclave(Strange(sizes), DEK, ADDITIONAL, NONCE)


def test_a_nonce_of_another_size_is_our_own_error() -> None:
    with pytest.raises(ValueError, match="nonce"):
        box.build_sealed_data(DEK, b"null", ENTRIES, NONCE[:11])


def test_a_state_with_more_entries_than_any_manifest_has_values_opens_again() -> None:
    entries = {f"monotonicCounter:{number}": bytes(8) for number in range(100_500)}
    assert box.open_sealed_data(bytes(32), box.build_sealed_data(bytes(32), b"null", entries, bytes(12))) == entries
