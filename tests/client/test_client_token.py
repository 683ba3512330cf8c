"""Recovery keys in PKCS#11 tokens: SoftHSM decrypts and signs, in the program and on the command line."""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from tests.cli.conftest import session
from tests.cli.session import Session
from tests.cli.test_recover import ERA, OAEP, handed_in, recovering, recovery_data
from tests.client.coordinators import FakeCoordinator
from tests.client.softhsm import SoftHsm, needs_softhsm, start

from marblerun.client.recovery import recovery_secret, sign_recovery_secret
from marblerun.client.token import KeyName, TokenConfig, TokenKey, _without_oaep, open_token_key, parse_token_config
from marblerun.errors import Malformed, MarbleRunError, Misconfigured, NotFound
from marblerun.wire.pem import encode_pem

__all__ = ["session"]
SECRETS = [bytes(range(16)), bytes(range(32)), bytes(range(33))]


@cache
def key(size: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, size)


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    one = start(tmp_path / "hsm", monkeypatch)
    one.add_token("parties")
    one.add_token("others")
    one.add_key("parties", "alice", "a1", key())
    one.add_key("parties", "bob", "b1", key(3072))
    return one


@needs_softhsm
@pytest.mark.parametrize("secret", SECRETS)
def test_a_token_decrypts_and_signs_as_the_key_in_a_file_does(hsm: SoftHsm, secret: bytes) -> None:
    for name, private in (("alice", key()), ("bob", key(3072))):
        with open_token_key(parse_token_config(hsm.config()), KeyName(label=name)) as token:
            found = recovery_secret(private.public_key().encrypt(secret, OAEP), token)
            assert found == secret
            assert sign_recovery_secret(token, found) == sign_recovery_secret(private, secret)


@needs_softhsm
def test_what_was_encrypted_for_another_key_is_refused(hsm: SoftHsm) -> None:
    with open_token_key(parse_token_config(hsm.config()), KeyName(label="alice")) as token:
        other = rsa.generate_private_key(65537, 2048).public_key().encrypt(bytes(32), OAEP)
        sha1 = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
        for data in (other, key().public_key().encrypt(bytes(32), sha1), b"x" * 255, b"", b"\xff" * 256, b"x" * 384):
            with pytest.raises(Malformed, match="not encrypted for this recovery key"):
                token.decrypt(data)


@needs_softhsm
@pytest.mark.parametrize(
    ("changes", "name", "error", "told"),
    [
        ({"Pin": "0000"}, KeyName(label="alice"), Misconfigured, "refuses the PIN"),
        ({"Pin": None}, KeyName(label="alice"), Misconfigured, "refuses the PIN"),
        ({"TokenLabel": "missing"}, KeyName(label="alice"), NotFound, "0 PKCS#11 tokens"),
        ({"TokenLabel": "others"}, KeyName(label="alice"), NotFound, "0 RSA private keys"),
        ({}, KeyName(label="alice", id="b1"), NotFound, "0 RSA private keys"),
        ({}, KeyName(), NotFound, "2 RSA private keys"),
        ({"Path": "/nowhere/module.so"}, KeyName(label="alice"), Misconfigured, "cannot be loaded"),
    ],
)
def test_a_token_or_key_that_is_not_there_is_named(
    hsm: SoftHsm, changes: dict[str, Any], name: KeyName, error: type[MarbleRunError], told: str
) -> None:
    with pytest.raises(error, match=told), open_token_key(parse_token_config(hsm.config(**changes)), name):
        pass


@needs_softhsm
def test_tokens_are_found_by_serial_and_slot_and_keys_by_id(hsm: SoftHsm) -> None:
    import pkcs11

    with open_token_key(parse_token_config(hsm.config()), KeyName(id="a1")):
        slots = pkcs11.lib(json.loads(hsm.config())["Path"]).get_slots(token_present=True)
        (slot,) = [slot for slot in slots if slot.get_token().label == "parties"]
        serial = slot.get_token().serial
    text = serial.decode() if isinstance(serial, bytes) else str(serial)
    for changes in ({"TokenSerial": text}, {"SlotNumber": slot.slot_id}):
        config = parse_token_config(hsm.config(TokenLabel=None, **changes))
        with open_token_key(config, KeyName(id="b1")) as token:
            assert token.decrypt(key(3072).public_key().encrypt(b"x" * 32, OAEP)) == b"x" * 32


@needs_softhsm
def test_recover_with_a_token_sends_what_recover_with_a_file_sends(
    hsm: SoftHsm, session: Session, honest: FakeCoordinator
) -> None:
    recovering(honest)
    recovery_data(session.folder, bob=key(3072).public_key().encrypt(SECRETS[1], OAEP))
    (session.folder / "p.json").write_bytes(hsm.config())
    token = ("--pkcs11-config", "p.json", "--pkcs11-key-label", "bob", "--pkcs11-key-id", "b1")
    result = session.run("recover", "rec.json", honest.endpoint, *token, *ERA)
    assert result.exit_code == 0, result.stderr
    assert handed_in(honest) == (SECRETS[1], sign_recovery_secret(key(3072), SECRETS[1]))
    der = key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    (session.folder / "c.pub").write_text(encode_pem(der, "PUBLIC KEY"))
    for command, output in (("encrypt-secret", "s.enc"), ("sign-secret", "s.sig")):
        more = ("--coordinator-pub-key", "c.pub") if command == "encrypt-secret" else ()
        result = session.run("recover-with-signature", command, "rec.json", *token, "-o", output, *more)
        assert result.exit_code == 0, result.stderr
    assert key().decrypt((session.folder / "s.enc").read_bytes(), OAEP) == SECRETS[1]
    assert (session.folder / "s.sig").read_bytes() == sign_recovery_secret(key(3072), SECRETS[1])
    (session.folder / "p.json").write_bytes(hsm.config(Pin="0000"))
    result = session.run("recover", "rec.json", honest.endpoint, *token, *ERA)
    assert (result.exit_code, "0000" in result.stderr) == (9, False)


@pytest.mark.parametrize("option", ["config", "key-id", "key-label", "cert-id", "cert-label"])
def test_users_keys_in_tokens_are_refused_with_the_reason(session: Session, option: str) -> None:
    result = session.run("secret", "get", "name", "localhost:1", f"--pkcs11-{option}", "x")
    assert (result.exit_code, "cannot stay in a PKCS#11 token" in result.stderr) == (2, True)
    assert "pkcs11" not in session.run("secret", "get", "--help").stdout


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    config = TokenConfig("/module.so", "1", label="x")
    with pytest.raises(Misconfigured, match=r"marblerun\[pkcs11\]"), open_token_key(config, KeyName("x")):
        pass


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "null", "[" * 9999, '{"Path": "/m"}', '{"TokenLabel": "t"}', '{"Path": 1, "TokenLabel": "t"}'),
        *('{"Path": "/m", "TokenLabel": "t", "SlotNumber": 1}', '{"Path": "/m", "SlotNumber": "1"}'),
        *(
            '{"Path": "/m", "SlotNumber": -1}',
            '{"Path": "/m", "SlotNumber": true}',
            '{"Path": "/m\\u0000", "SlotNumber": 1}',
        ),
    ],
)
def test_a_configuration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        parse_token_config(text.encode())


def test_a_configuration_is_read_as_the_reference_reads_it() -> None:
    text = '{"path": "/m", "PIN": "1", "SlotNumber": 0, "MaxSessions": 3, "PoolWaitTimeout": 1, "TokenLabel": ""}'
    assert parse_token_config(text.encode()) == TokenConfig("/m", "1", slot=0)
    text = '{"Path": "/m", "Pin": "1", "TokenLabel": "t", "LoginNotSupported": true}'
    assert parse_token_config(text.encode()) == TokenConfig("/m", None, label="t")


@given(st.binary(max_size=100))
def test_the_padding_is_taken_off_as_the_standard_says(message: bytes) -> None:
    numbers = key().private_numbers()
    modulus = numbers.public_numbers.n
    encrypted = int.from_bytes(key().public_key().encrypt(message, OAEP), "big")
    assert _without_oaep(pow(encrypted, numbers.d, modulus).to_bytes(256, "big")) == message


@given(st.binary(max_size=300))
def test_bytes_that_are_no_padded_message_are_malformed(padded: bytes) -> None:
    with pytest.raises(Malformed):
        _without_oaep(padded)


class Refusing:
    """A token without any of the mechanisms."""

    def __getitem__(self, name: object) -> bytes:
        return b"\xff" * 256

    def decrypt(self, *_: object, **__: object) -> bytes:
        failure: Exception = import_module("pkcs11.exceptions").MechanismInvalid("no")
        raise failure

    sign = decrypt


@needs_softhsm
def test_a_token_that_cannot_is_named(hsm: SoftHsm) -> None:
    token = TokenKey(Refusing())
    with pytest.raises(MarbleRunError, match="MechanismInvalid"):
        token.decrypt(bytes(256))
    with pytest.raises(MarbleRunError, match="MechanismInvalid"):
        token.sign(b"x")
