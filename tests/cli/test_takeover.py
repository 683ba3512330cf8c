"""``marblerun state takeover``: states in the format of the reference, written here by its rules, opened offline."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.cli.test_recover_state import coordinator
from tests.coordinator.parties import OAEP, Estate, estate, manifest, names
from tests.coordinator.people import recovery_key
from tests.coordinator.store.test_takeover import written

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.cli.main import cli
from marblerun.client.recovery import sign_recovery_secret
from marblerun.coordinator.state import Phase
from marblerun.coordinator.store.entries import encode_state


def run(*arguments: str | Path) -> Result:
    command = ["state", "takeover", *map(str, arguments)]
    return CliRunner().invoke(cli, command, prog_name="marblerun", catch_exceptions=False)


def reference(folder: Path, found: Estate) -> Path:
    """A directory as the reference leaves it: its format byte for byte, a key that only its enclave opens."""
    assert found.state.data_key is not None
    directory = folder / "state"
    directory.mkdir()
    data = written(found.state.data_key.key, found.state.data_key.recovery_data, encode_state(found.state))
    (directory / "sealed_data").write_bytes(data)
    (directory / "sealed_key").write_bytes((1024).to_bytes(4, "little") + bytes(1024 + 12 + 32 + 16))
    return directory


def party_files(folder: Path, found: Estate) -> tuple[list[Path], Path]:
    """Each party's key, and the recovery data that the reference gave when the manifest was set."""
    keys, secrets = [], {}
    for share in found.shares:
        key = recovery_key(share.party)
        keys.append(folder / f"{share.party}.pem")
        keys[-1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        secrets[share.party] = base64.b64encode(key.public_key().encrypt(share.secret, OAEP)).decode()
    (folder / "recovery.json").write_text(json.dumps({"RecoverySecrets": secrets}))
    return keys, folder / "recovery.json"


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def with_keys(keys: list[Path]) -> list[str | Path]:
    return [part for key in keys for part in ("--recovery-key", key)]


def test_without_a_key_every_step_is_told_with_its_command(tmp_path: Path) -> None:
    directory = reference(tmp_path, estate(3, 2))
    before = content(directory)
    result = run(directory)
    assert result.exit_code == 0, result.stderr
    assert "the holders of 3 recovery secrets" in result.stdout
    assert "sealed to an enclave on one machine" in result.stdout
    for command in ("state backup", "state takeover", "coordinator --seal-dir", "recover recovery.json"):
        assert f"marblerun {command}" in result.stdout
    document = json.loads(run(directory, "-o", "json").stdout)
    assert [step["done"] for step in document["steps"]] == [None, None, False, False, None, None, None]
    assert (document["inside"], document["problem"], document["recoverySecrets"]) == (None, None, 3)
    back = json.loads(run(directory, "--back", "--json").stdout)
    assert "opens for this implementation only" in back["steps"][4]["text"]
    assert content(directory) == before


@pytest.mark.parametrize(("count", "threshold"), [(1, 0), (2, 0), (3, 0), (3, 2)])
def test_the_parties_secrets_are_verified_offline_and_what_is_inside_is_shown(
    tmp_path: Path, count: int, threshold: int
) -> None:
    found = estate(count, threshold)
    directory = reference(tmp_path, found)
    keys, data = party_files(tmp_path, found)
    before, needed = content(directory), threshold or count
    document = json.loads(run(directory, "--secret", data, *with_keys(keys[:needed]), "--json").stdout)
    assert document["inside"] == {
        "rootCertificate": hashlib.sha256(found.state.authority.root_der).hexdigest(),
        "manifestFingerprint": hashlib.sha256(manifest(count, threshold)).hexdigest(),
        "sealMode": "ProductKey",
        "recoveryKeys": list(names(count)),
        "needed": needed,
        "signaturesVerified": True,
        "writtenByReference": True,
    }
    assert [step["done"] for step in document["steps"]] == [None, None, True, False, None, None, None]
    text = run(directory, "--secret", data, *with_keys(keys[:needed])).stdout
    assert document["inside"]["rootCertificate"] in text
    if needed > 1:
        result = run(directory, "--secret", data, *with_keys(keys[: needed - 1]), "--json")
        assert (result.exit_code, json.loads(result.stdout)["inside"]) == (4, None)
        assert "more" in json.loads(result.stdout)["problem"]
    assert content(directory) == before
    for share in found.shares:
        assert share.secret.hex() not in text
        assert base64.b64encode(share.secret).decode() not in text


def test_plain_secrets_open_it_too_and_what_was_not_verified_is_said(tmp_path: Path) -> None:
    found = estate(2)
    directory = reference(tmp_path, found)
    files: list[str | Path] = []
    for number, share in enumerate(found.shares):
        path = tmp_path / f"{number}"
        path.write_bytes(base64.b64encode(share.secret) if number else share.secret)
        files += ["--secret", path]
    result = run(directory, *files)
    assert result.exit_code == 0, result.stderr
    assert "needs signatures" in result.stderr
    assert json.loads(run(directory, *files, "--json").stdout)["inside"]["signaturesVerified"] is False


def test_secrets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    found = estate(2)
    directory = reference(tmp_path, found)
    keys, data = party_files(tmp_path, found)
    (tmp_path / "plain").write_bytes(bytes(32))
    result = run(directory, "--secret", tmp_path / "plain")
    assert (result.exit_code, "none of the 2 of this state" in result.stderr) == (4, True)
    assert run(directory, *with_keys(keys)).exit_code == 2
    assert run(directory, "--secret", data).exit_code == 7
    assert run(directory, "--secret", tmp_path / "plain", *with_keys(keys)).exit_code == 7
    assert run(directory, "--secret", data, "--secret", data, *with_keys(keys)).exit_code == 7
    assert run(directory, "--secret", data, "--recovery-key", tmp_path / "plain").exit_code == 7
    assert run(directory, "--secret", tmp_path / "missing").exit_code == 8
    assert run(tmp_path / "nowhere").exit_code == 8
    single = estate(1)
    (directory / "sealed_data").write_bytes(single.data)
    result = run(directory, "--secret", tmp_path / "plain")
    assert (result.exit_code, "does not open the state" in result.stderr) == (4, True)


def test_a_state_around_somebody_elses_manifest_is_told_apart_before_any_coordinator_sees_it(tmp_path: Path) -> None:
    """Whoever builds one cannot have the holders' signatures (GHSA-w7wm-2425-7p2h)."""
    found = estate(1)
    key = bytes(range(32))
    directory = tmp_path / "state"
    directory.mkdir()
    (directory / "sealed_data").write_bytes(written(key, b"null", encode_state(found.state)))
    (tmp_path / "secret").write_bytes(key)
    attacker = recovery_key("attacker").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(attacker)
    result = run(directory, "--secret", tmp_path / "secret", "--recovery-key", tmp_path / "key.pem")
    assert (result.exit_code, "a recovery would fail" in result.stderr) == (4, True)


def test_the_box_of_the_protocol_opens_and_holds_no_deployment(tmp_path: Path) -> None:
    """The vector of protocol, section 15."""
    vector = (
        "040000006e756c6c000102030405060708090a0bc084f8474e97601c8d1ec5fe020cfb9393e4472886e5247414e802a2ecf0"
        "008f70ae9ddae717311ba9f56c90be8414904def"
    )
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "sealed_data").write_bytes(bytes.fromhex(vector))
    (tmp_path / "dek").write_bytes(b"\1" * 32)
    result = run(tmp_path / "state", "--secret", tmp_path / "dek")
    assert (result.exit_code, "the secrets open the state, but" in result.stderr) == (4, True)


def test_the_whole_way_over_and_where_it_stands_meanwhile(tmp_path: Path, platform: SimulatedPlatform) -> None:
    """By the steps: verify, start, recover, and then it is ours; and back by the secrets that were there before."""
    found = estate(2)
    directory = reference(tmp_path, found)
    keys, data = party_files(tmp_path, found)
    arguments = [directory, "--secret", data, *with_keys(keys), "--json"]

    def stands() -> list[bool | None]:
        return [step["done"] for step in json.loads(run(*arguments).stdout)["steps"]][:5]

    assert stands() == [None, None, True, False, None]
    with coordinator(directory, platform) as up:
        assert stands() == [True, None, True, True, None]
        for share in found.shares:
            signature = sign_recovery_secret(recovery_key(share.party), share.secret)
            up.call(up.coordinator.recover(share.secret, signature))
        assert up.coordinator.state.phase is Phase.ACCEPTING_MARBLES
        assert stands() == [True, None, True, True, True]
    assert stands() == [True, None, True, False, None]  # started elsewhere it may need a recovery again
    inside = json.loads(run(*arguments, "--back").stdout)["inside"]
    assert inside["rootCertificate"] == hashlib.sha256(found.state.authority.root_der).hexdigest()
    assert inside["writtenByReference"] is False
