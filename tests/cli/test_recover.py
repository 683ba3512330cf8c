"""``recover`` and ``recover-with-signature``: what is sent, to whom, and when not."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.cli.session import MANIFEST, Session, recovery_key
from tests.client.coordinators import Call, FakeCoordinator, failure, manifest_routes, mint, success

OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
SECRETS = {16: bytes(range(16)), 32: bytes(range(32)), 33: bytes(range(33))}
ERA = ("--era-config", "era.json")


def encrypted(secret: bytes) -> bytes:
    return recovery_key().public_key().encrypt(secret, OAEP)


def recovering(fake: FakeCoordinator, remaining: int = 0, message: str = "text") -> None:
    """The Coordinator is in recovery mode and takes any secret."""
    fake.routes["GET /api/v2/status"] = lambda _: success({"code": 1, "message": message})
    answer = {"remaining": remaining, "message": "from the Coordinator"}
    fake.routes["POST /api/v2/recover"] = lambda _: success(answer)


def handed_in(fake: FakeCoordinator) -> tuple[bytes, bytes]:
    """Secret and signature of the only recovery request."""
    (call,) = [call for call in fake.calls if call.path == "/api/v2/recover"]
    body = call.json()
    assert set(body) == {"recoverySecret", "recoverySecretSignature"}
    return tuple(base64.b64decode(str(value)) for value in body.values())  # type: ignore[return-value]


def verify(secret: bytes, signature: bytes) -> None:
    recovery_key().public_key().verify(signature, secret, padding.PKCS1v15(), hashes.SHA256())


def recovery_data(folder: Path, **secrets: bytes) -> None:
    document = {"RecoverySecrets": {name: base64.b64encode(value).decode() for name, value in secrets.items()}}
    (folder / "rec.json").write_text(json.dumps(document))


@pytest.mark.parametrize("size", [16, 32, 33])
@pytest.mark.parametrize("form", ["encrypted", "encrypted base64", "plain", "plain base64", "json", "json of several"])
def test_every_form_of_a_secret_is_sent_plain_with_its_signature(
    session: Session, honest: FakeCoordinator, size: int, form: str
) -> None:
    """Also Shamir shares that are decrypted already: the reference would decrypt them again (quirk)."""
    recovering(honest)
    secret = SECRETS[size]
    content = encrypted(secret) if form.startswith(("encrypted", "json")) else secret
    if "base64" in form:
        content = base64.b64encode(content) + b"\n"
    (session.folder / "rec.json").write_bytes(content)
    if form == "json":
        recovery_data(session.folder, alice=content)
    if form == "json of several":
        other = rsa.generate_private_key(65537, 2048).public_key().encrypt(secret, OAEP)
        recovery_data(session.folder, bob=other, alice=content)
    result = session.run("recover", "rec.json", honest.endpoint, "-k", "recovery.pem", *ERA)
    assert (result.exit_code, result.stdout) == (0, "Successfully recovered the Coordinator\n")
    sent, signature = handed_in(honest)
    assert sent == secret
    verify(secret, signature)


def test_how_many_are_missing_is_told_and_is_no_failure(session: Session, honest: FakeCoordinator) -> None:
    recovering(honest, remaining=2)
    result = session.run("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA)
    assert (result.exit_code, result.stdout) == (0, "The secret was accepted; 2 more secrets are needed\n")
    assert "from the Coordinator" in result.stderr
    result = session.run("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA, "--json")
    assert json.loads(result.stdout) == {"remaining": 2, "message": "from the Coordinator"}


def test_how_many_are_missing_is_said_once(session: Session, honest: FakeCoordinator) -> None:
    recovering(honest, remaining=2)
    answer = {"remaining": 2, "message": "Secret 1 of 3 accepted. 2 more are needed."}
    honest.routes["POST /api/v2/recover"] = lambda _: success(answer)
    result = session.run("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA)
    assert (result.exit_code, result.stdout) == (0, "Secret 1 of 3 accepted. 2 more are needed.\n")
    assert "needed" not in result.stderr


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_what_went_wrong_although_the_state_is_back_is_a_warning(
    session: Session, honest: FakeCoordinator, form: tuple[str, ...]
) -> None:
    recovering(honest)
    answer = {"remaining": 0, "message": "Recovery successful.\nThe state is not sealed for this machine: no TPM."}
    honest.routes["POST /api/v2/recover"] = lambda _: success(answer)
    result = session.run("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA, *form)
    assert result.exit_code == 0
    assert "Warning: The state is not sealed for this machine: no TPM." in result.stderr


def test_a_coordinator_that_waits_for_no_secret_gets_none(session: Session, honest: FakeCoordinator) -> None:
    recovering(honest)
    honest.routes["GET /api/v2/status"] = lambda _: success({"code": 3, "message": "running"})
    result = session.run("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA)
    assert result.exit_code == 5
    assert "nothing was sent" in result.stderr
    assert "POST /api/v2/recover" not in honest.sent_requests


def test_what_the_coordinator_says_about_its_state_is_shown_before_the_secret_is_sent(
    session: Session, honest: FakeCoordinator
) -> None:
    recovering(honest, message="Coordinator is in recovery mode\nthe state is OLDER than the anchor")
    result = session.run("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA)
    assert "Warning: the state is OLDER than the anchor" in result.stderr


def test_a_refused_secret_fails_with_the_coordinators_reason(session: Session, honest: FakeCoordinator) -> None:
    recovering(honest)
    honest.routes["POST /api/v2/recover"] = lambda _: failure(500, "the secret is invalid or already used")
    result = session.run("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA)
    assert result.exit_code != 0
    assert "invalid or already used" in result.stderr


@pytest.mark.parametrize(
    ("content", "arguments", "code", "text"),
    [
        (b"x" * 256, (), 7, "was not encrypted for this recovery key"),
        (b"", (), 7, "was not encrypted for this recovery key"),
        (b'{"RecoverySecrets": {}}', (), 7, "holds no RecoverySecrets"),
        (b"{", (), 7, "is not JSON"),
        (b'{"RecoverySecrets": {"a": "AAAA"}}', (), 7, "none of its secrets"),
        (b'{"RecoverySecrets": {"a": "AAAA"}}', ("--name", "b"), 8, "there are: a"),
        (b"[" * 9999, (), 7, "was not encrypted"),
        (b"{" * 9999, (), 7, "is not JSON"),
    ],
)
def test_a_bad_recovery_file_fails_before_anything_is_connected(
    session: Session, honest: FakeCoordinator, content: bytes, arguments: tuple[str, ...], code: int, text: str
) -> None:
    (session.folder / "rec").write_bytes(content)
    result = session.run("recover", "rec", honest.endpoint, "-k", "recovery.pem", *ERA, *arguments)
    assert (result.exit_code, text in result.stderr) == (code, True), result.stderr
    assert honest.certificates_seen == []


def test_after_the_last_secret_manifest_and_root_are_compared_if_that_is_asked_for(
    session: Session, honest: FakeCoordinator
) -> None:
    """A Coordinator that recovered somebody else's state is told apart."""
    recovering(honest)
    honest.routes |= manifest_routes(MANIFEST)
    run = ("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA, "--manifest")
    assert session.run(*run, "m.json").exit_code == 0
    session.cache(honest.root)
    assert session.run(*run, "m.json").exit_code == 0
    result = session.run(*run, "new.json")
    assert (result.exit_code, "another manifest" in result.stderr) == (4, True)
    session.cache(mint("MarbleRun Coordinator"))
    result = session.run(*run, "m.json")
    assert (result.exit_code, "another deployment" in result.stderr) == (3, True)
    honest.calls.clear()
    assert session.run(*run, "abc").exit_code == 7
    assert honest.calls == []


# -- with signature ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32, 33])
def test_the_way_with_the_key_offline_ends_in_the_same_request(
    session: Session, honest: FakeCoordinator, size: int
) -> None:
    """public-key, encrypt-secret, sign-secret, send: the Coordinator can decrypt, and the signature fits."""
    ephemeral = rsa.generate_private_key(65537, 2048)
    der = ephemeral.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    recovering(honest)
    public = {"algorithm": "RSA", "ephemeralPublicKey": base64.b64encode(der).decode()}
    honest.routes["GET /api/v2/recover/public-key"] = lambda _: success(public)
    recovery_data(session.folder, alice=encrypted(SECRETS[size]))
    command = "recover-with-signature"
    key = ("-k", "recovery.pem")
    steps: tuple[tuple[str, ...], ...] = (
        (command, "public-key", honest.endpoint, "-o", "c.pub", *ERA),
        (command, "encrypt-secret", "rec.json", *key, "--coordinator-pub-key", "c.pub", "-o", "s.enc"),
        (command, "sign-secret", "rec.json", *key, "-o", "s.sig"),
        (command, "s.enc", honest.endpoint, "-s", "s.sig", *ERA),
    )
    for step in steps:
        result = session.run(*step)
        assert result.exit_code == 0, result.stderr
    pem = (session.folder / "c.pub").read_bytes()
    assert pem == ephemeral.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert (session.folder / "s.enc").stat().st_mode & 0o777 == 0o600
    secret, signature = handed_in(honest)
    assert ephemeral.decrypt(secret, OAEP) == SECRETS[size]
    verify(SECRETS[size], signature)
    for step in steps[:3]:  # the files are there
        assert session.run(*step).exit_code == 5


def test_options_may_come_first_and_the_word_send_may_be_said(session: Session, honest: FakeCoordinator) -> None:
    recovering(honest)
    (session.folder / "sig").write_bytes(b"signature")
    for arguments in (
        ("-s", "sig", *ERA, "secret.bin", honest.endpoint),
        (*ERA, "secret.bin", honest.endpoint, "--signature", "sig"),
        ("send", "secret.bin", honest.endpoint, "-s", "sig", *ERA),
    ):
        honest.calls.clear()
        result = session.run("recover-with-signature", *arguments)
        assert result.exit_code == 0, result.stderr
        assert handed_in(honest)[1] == b"signature"
    assert session.run("recover-with-signature", "secret.bin", honest.endpoint, *ERA).exit_code == 2


def test_a_public_key_that_is_none_is_not_written(session: Session, honest: FakeCoordinator) -> None:
    def answer(_: Call) -> tuple[int, bytes]:
        return success({"algorithm": "RSA", "ephemeralPublicKey": "AAAA"})

    honest.routes["GET /api/v2/recover/public-key"] = answer
    result = session.run("recover-with-signature", "public-key", honest.endpoint, "-o", "c.pub", *ERA)
    assert (result.exit_code, (session.folder / "c.pub").exists()) == (7, False)


def test_the_signature_is_over_the_plain_secret(session: Session) -> None:
    recovery_data(session.folder, alice=encrypted(SECRETS[32]))
    assert (
        session.run("recover-with-signature", "sign-secret", "rec.json", "-k", "recovery.pem", "-o", "s").exit_code == 0
    )
    signature = (session.folder / "s").read_bytes()
    verify(SECRETS[32], signature)
    with pytest.raises(InvalidSignature):
        verify(SECRETS[33], signature)


# -- rehearsing --------------------------------------------------------------------------------------------------


def rehearsing(fake: FakeCoordinator, recoverable: bool | None, given: int = 1) -> None:
    """The Coordinator is running and takes any secret."""
    fake.routes |= manifest_routes(MANIFEST)
    fake.routes["GET /api/v2/status"] = lambda _: success({"code": 3, "message": "running"})
    answer = {"holder": "alice", "given": given, "needed": 3, "recoverable": recoverable, "message": "text"}
    fake.routes["POST /api/v2/recover/rehearse"] = lambda _: success(answer)


REHEARSE = "POST /api/v2/recover/rehearse"


def test_a_rehearsal_shows_who_is_meant_sends_to_the_running_coordinator_and_tells_how_far_it_is(
    session: Session, honest: FakeCoordinator
) -> None:
    rehearsing(honest, None, given=2)
    session.cache(honest.root)
    run = ("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA, "--rehearse", "--manifest", "m.json")
    result = session.run(*run)
    assert (result.exit_code, result.stdout) == (0, "The secret of alice is a right one: 2 of 3\n")
    before = result.stderr.index("Root certificate: SHA-256 " + sha256(honest.root.der).hexdigest())
    assert before < result.stderr.index("Manifest in force: SHA-256 " + sha256(MANIFEST).hexdigest())
    assert "1 more is needed" in result.stderr
    assert honest.sent_requests.count(REHEARSE) == 1
    assert "POST /api/v2/recover" not in honest.sent_requests
    rehearsing(honest, True, given=3)
    result = session.run(*run, "--json")
    assert json.loads(result.stdout) == {
        "holder": "alice",
        "given": 3,
        "needed": 3,
        "recoverable": True,
        "message": "text",
    }
    assert "would recover the Coordinator; nothing was changed" in session.run(*run).stdout


def test_a_rehearsal_that_fails_is_an_error(session: Session, honest: FakeCoordinator) -> None:
    rehearsing(honest, False, given=3)
    run = ("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA, "--rehearse")
    result = session.run(*run)
    assert (result.exit_code, "would NOT recover" in result.stderr) == (4, True)
    honest.routes[REHEARSE] = lambda _: failure(403, "the secret of alice is none of this deployment")
    result = session.run(*run)
    assert (result.exit_code, "the secret of alice is none" in result.stderr) == (4, True)
    honest.routes[REHEARSE] = lambda _: success({"holder": "a", "given": 1, "needed": 1, "recoverable": "yes"})
    assert session.run(*run).exit_code == 7


@pytest.mark.parametrize(
    ("change", "code"),
    [("recovery mode", 5), ("another manifest", 4), ("another root", 3), ("no such endpoint", 1)],
)
def test_a_rehearsal_sends_nothing_to_a_coordinator_that_is_not_the_expected_one(
    session: Session, honest: FakeCoordinator, change: str, code: int
) -> None:
    rehearsing(honest, True)
    if change == "recovery mode":
        recovering(honest)
    session.cache(mint("MarbleRun Coordinator") if change == "another root" else honest.root)
    manifest = "new.json" if change == "another manifest" else "m.json"
    if change == "no such endpoint":
        del honest.routes[REHEARSE]
    run = ("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA, "--rehearse", "--manifest", manifest)
    result = session.run(*run)
    assert result.exit_code == code, result.stderr
    assert (REHEARSE in honest.sent_requests) is (change == "no such endpoint")


def test_a_rehearsal_with_the_key_offline_uses_the_key_for_rehearsals(
    session: Session, honest: FakeCoordinator
) -> None:
    rehearsing(honest, None)
    ephemeral = rsa.generate_private_key(65537, 2048)
    der = ephemeral.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    public = {"algorithm": "RSA", "ephemeralPublicKey": base64.b64encode(der).decode()}
    honest.routes["GET /api/v2/recover/rehearse/public-key"] = lambda _: success(public)
    command = "recover-with-signature"
    for step in (
        (command, "public-key", honest.endpoint, "-o", "c.pub", "--rehearse", *ERA),
        (
            command,
            "encrypt-secret",
            "secret.bin",
            "-k",
            "recovery.pem",
            "--coordinator-pub-key",
            "c.pub",
            "-o",
            "s.enc",
        ),
        (command, "sign-secret", "secret.bin", "-k", "recovery.pem", "-o", "s.sig"),
        (command, "s.enc", honest.endpoint, "-s", "s.sig", "--rehearse", *ERA),
    ):
        result = session.run(*step)
        assert result.exit_code == 0, result.stderr
    (call,) = [call for call in honest.calls if call.path == "/api/v2/recover/rehearse"]
    secret, signature = (base64.b64decode(str(value)) for value in call.json().values())
    assert ephemeral.decrypt(secret, OAEP) == (session.folder / "secret.bin").read_bytes()
    verify((session.folder / "secret.bin").read_bytes(), signature)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--pkcs11-config", "p.json"),
        ("--pkcs11-key-id", "x"),
        ("-k", "recovery.pem", "--pkcs11-key-label", "x"),
        ("-k", "recovery.pem", "--pkcs11-config", "p.json", "--pkcs11-key-id", "x"),
    ],
)
def test_exactly_one_recovery_key_has_to_be_named(
    session: Session, honest: FakeCoordinator, options: tuple[str, ...]
) -> None:
    result = session.run("recover", "secret.bin", honest.endpoint, *ERA, *options)
    assert (result.exit_code, honest.certificates_seen) == (2, [])


@pytest.mark.parametrize("size", [16, 32, 33])
def test_a_secret_that_begins_like_json_is_still_a_secret(session: Session, honest: FakeCoordinator, size: int) -> None:
    """One of 256 random secrets begins with a brace; so does one of 256 encrypted ones."""
    recovering(honest)
    (session.folder / "plain").write_bytes(b"{" + bytes(size - 1))
    result = session.run("recover", "plain", honest.endpoint, "-k", "recovery.pem", *ERA)
    assert (result.exit_code, result.stdout) == (0, "Successfully recovered the Coordinator\n")
    secret = SECRETS[size]
    while (content := encrypted(secret))[:1] != b"{":
        pass
    (session.folder / "encrypted").write_bytes(content)
    result = session.run("recover", "encrypted", honest.endpoint, "-k", "recovery.pem", *ERA)
    assert (result.exit_code, result.stdout) == (0, "Successfully recovered the Coordinator\n")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("the secret 0123456789abcdef is invalid or already used: it is none of the 3 of this state", 4),
        ("a recovery secret has 16, 32 or 33 bytes, this one has 5", 4),
        ("a signature of 4000 bytes is longer than that of any RSA key", 4),
        ("recovery-signature: the signature of the secret 0123 is by none of the recovery keys", 4),
        ("recovery-key: all secrets of this state were given, and together they do not open it", 4),
        ("recovery-secrets: 3 secrets were given where exactly 1 are needed", 4),
        ("recovered-state: the recovered state is damaged: manifest: the entry is missing", 4),
        ("recovered-authority: the root certificate is not that of the stored key", 4),
        ("server is not in expected state: there is nothing to recover", 5),
        ("the state could not be written to state: No space left on device", 1),
    ],
)
def test_secrets_that_do_not_count_have_one_exit_code_in_a_recovery_and_in_a_rehearsal(
    session: Session, honest: FakeCoordinator, text: str, code: int
) -> None:
    recovering(honest)
    honest.routes["POST /api/v2/recover"] = lambda _: failure(500, text)
    result = session.run("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", *ERA)
    assert (result.exit_code, text in result.stderr) == (code, True)


def test_a_manifest_that_is_neither_a_file_nor_a_signature_is_told_before_anything_is_sent(
    session: Session, honest: FakeCoordinator
) -> None:
    recovering(honest)
    arguments = ("recover", "secret.bin", honest.endpoint, "-k", "recovery.pem", "--manifest", "nowhere.json", *ERA)
    result = session.run(*arguments)
    assert (result.exit_code, honest.sent_requests) == (8, [])
    assert "there is no file nowhere.json" in result.stderr


def test_a_wrong_file_for_the_coordinators_public_key_is_named(session: Session) -> None:
    result = session.run(
        *("recover-with-signature", "encrypt-secret", "secret.bin", "-k", "recovery.pem"),
        *("--coordinator-pub-key", "recovery.pem", "-o", "s.enc"),
    )
    assert (result.exit_code, (session.folder / "s.enc").exists()) == (7, False)
    assert "recovery.pem: is not what 'public-key' wrote" in result.stderr
