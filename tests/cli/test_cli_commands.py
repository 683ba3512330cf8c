"""What the commands do with an honest Coordinator: requests, outputs, files, cache; the reference minus its quirks."""

from __future__ import annotations

import base64
import json
import stat
from hashlib import sha256
from pathlib import Path

import pytest
from tests.cli.session import MANIFEST, PENDING, Session
from tests.client.coordinators import Call, FakeCoordinator, failure, manifest_routes, mint, success
from tests.client.fixtures import PRODUCT

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.wire.pem import encode_pem

FINGERPRINT = sha256(MANIFEST).hexdigest()
ERA = ("--era-config", "era.json")
USER = ("--cert", "c.pem", "--key", "k.pem")
RECOVERY = {"RecoverySecrets": {"alice": base64.b64encode(b"encrypted").decode()}}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def accept_manifest(fake: FakeCoordinator, data: object) -> None:
    fake.routes["POST /api/v2/manifest"] = lambda _: success(data)


def chain(fake: FakeCoordinator) -> bytes:
    return fake.intermediate.pem + fake.root.pem


def posted(fake: FakeCoordinator) -> dict[str, object]:
    """The latest body."""
    return next(call for call in reversed(fake.calls) if call.method == "POST").json()


# -- manifest ----------------------------------------------------------------------------------------------------


def test_set_sends_the_file_as_it_is_and_caches_the_certificate(session: Session, honest: FakeCoordinator) -> None:
    accept_manifest(honest, {"RecoverySecrets": {}})
    result = session.run("manifest", "set", "m.json", honest.endpoint, *ERA)
    assert (result.exit_code, result.stdout) == (0, f"Manifest signature: {FINGERPRINT}\n{{}}\n".replace("{}\n", ""))
    assert base64.b64decode(str(posted(honest)["manifest"])) == MANIFEST
    assert session.cached == chain(honest)
    assert "SIMULATED" in result.stderr
    assert "does not say where its CA comes from" in result.stderr


def test_set_converts_yaml(session: Session, honest: FakeCoordinator) -> None:
    accept_manifest(honest, {"RecoverySecrets": {}})
    (session.folder / "m.yaml").write_text("Packages:\n  b: {Debug: no}\n  a: {}\n")
    assert session.run("manifest", "set", "m.yaml", honest.endpoint, *ERA).exit_code == 0
    sent = base64.b64decode(str(posted(honest)["manifest"]))
    assert sent == b'{"Packages":{"a":{},"b":{"Debug":false}}}'


def test_recovery_data_goes_to_a_private_file(session: Session, honest: FakeCoordinator) -> None:
    accept_manifest(honest, RECOVERY)
    result = session.run("manifest", "set", "m.json", honest.endpoint, *ERA, "-r", "rec.json")
    path = session.folder / "rec.json"
    assert "Recovery data saved to: rec.json" in result.stdout
    assert json.loads(path.read_bytes()) == RECOVERY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_recovery_data_without_a_file_is_printed(session: Session, honest: FakeCoordinator) -> None:
    accept_manifest(honest, RECOVERY)
    result = session.run("manifest", "set", "m.json", honest.endpoint, *ERA)
    assert json.loads(result.stdout.splitlines()[0]) == RECOVERY
    result = session.run("manifest", "set", "m.json", honest.endpoint, *ERA, "--json")
    assert json.loads(result.stdout) == {"manifestSignature": FINGERPRINT, **RECOVERY}


def test_an_existing_recovery_file_stops_set_before_anything_is_sent(session: Session, honest: FakeCoordinator) -> None:
    """In the reference the recovery data of the earlier deployment is lost."""
    accept_manifest(honest, RECOVERY)
    (session.folder / "rec.json").write_text("earlier")
    result = session.run("manifest", "set", "m.json", honest.endpoint, *ERA, "-r", "rec.json")
    assert (result.exit_code, honest.calls) == (5, [])
    assert (session.folder / "rec.json").read_text() == "earlier"
    assert session.run("manifest", "set", "m.json", honest.endpoint, *ERA, "-r", "rec.json", "--force").exit_code == 0
    assert json.loads((session.folder / "rec.json").read_bytes()) == RECOVERY


def test_a_missing_folder_for_recovery_data_stops_set_before_anything_is_sent(
    session: Session, honest: FakeCoordinator
) -> None:
    accept_manifest(honest, RECOVERY)
    result = session.run("manifest", "set", "m.json", honest.endpoint, *ERA, "-r", "no/such/rec.json")
    assert (result.exit_code, honest.calls) == (6, [])


def test_a_refused_manifest_leaves_no_empty_recovery_file(session: Session, honest: FakeCoordinator) -> None:
    honest.routes["POST /api/v2/manifest"] = lambda _: failure(500, "server is not in expected state: 3")
    result = session.run("manifest", "set", "m.json", honest.endpoint, *ERA, "-r", "rec.json")
    assert (result.exit_code, (session.folder / "rec.json").exists()) == (5, False)
    assert "Error: " in result.stderr
    assert session.cached is None


def test_a_refused_manifest_with_force_keeps_the_earlier_recovery_data(
    session: Session, honest: FakeCoordinator
) -> None:
    honest.routes["POST /api/v2/manifest"] = lambda _: failure(500, "no")
    (session.folder / "rec.json").write_text("earlier")
    session.run("manifest", "set", "m.json", honest.endpoint, *ERA, "-r", "rec.json", "--force")
    assert (session.folder / "rec.json").read_text() == "earlier"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_recovery_data_that_cannot_be_written_is_printed(session: Session, honest: FakeCoordinator) -> None:
    """The disk is full at the worst moment: the manifest is set, and the data would be lost for good."""
    accept_manifest(honest, RECOVERY)
    result = session.run("manifest", "set", "m.json", honest.endpoint, *ERA, "-r", "/dev/full", "--force")
    assert result.exit_code == 6
    assert json.loads(result.stdout) == RECOVERY


def test_recovery_data_survives_a_cache_that_cannot_be_written(session: Session, honest: FakeCoordinator) -> None:
    accept_manifest(honest, RECOVERY)
    (session.folder / "config").write_text("a file where the folder should be")
    result = session.run("manifest", "set", "m.json", honest.endpoint, *ERA, "-r", "rec.json")
    assert result.exit_code == 6
    assert json.loads((session.folder / "rec.json").read_bytes()) == RECOVERY


def test_get_gives_the_manifest_byte_for_byte(session: Session, honest: FakeCoordinator) -> None:
    honest.routes |= manifest_routes(MANIFEST)
    assert session.run("manifest", "get", honest.endpoint, *ERA).stdout_bytes == MANIFEST
    assert session.run("manifest", "get", honest.endpoint, *ERA, "-o", "out.json").exit_code == 0
    assert (session.folder / "out.json").read_bytes() == MANIFEST
    assert session.cached is None
    session.run("manifest", "get", honest.endpoint, *ERA, "--keep-cert")
    assert session.cached == chain(honest)


def test_get_merges_raised_versions_and_wraps(session: Session, honest: FakeCoordinator) -> None:
    honest.routes |= manifest_routes(b'{"Packages": {"p": {"SecurityVersion": 1}}}')
    log = ['{"package": "p", "new version": 7}']
    honest.routes["GET /api/v2/update"] = lambda _: success({"updateLog": log})
    result = session.run("manifest", "get", honest.endpoint, *ERA, "-u", "-s")
    found = json.loads(result.stdout)
    assert found["Manifest"] == {"Packages": {"p": {"SecurityVersion": 7}}}
    assert len(found["ManifestSignature"]) == 64


def test_verify_by_file_and_by_signature(session: Session, honest: FakeCoordinator) -> None:
    honest.routes |= manifest_routes(MANIFEST)
    for expected in ("m.json", FINGERPRINT, FINGERPRINT.upper()):
        result = session.run("manifest", "verify", expected, honest.endpoint, *ERA)
        assert (result.exit_code, result.stdout) == (0, "OK\n")
    assert session.cached == chain(honest)


def test_verify_warns_of_a_coordinator_that_does_not_say_where_its_ca_comes_from_unless_its_root_is_known(
    session: Session, honest: FakeCoordinator
) -> None:
    honest.routes |= manifest_routes(MANIFEST)
    verify = ("manifest", "verify", "m.json", honest.endpoint, *ERA)
    result = session.run(*verify, "--require-provenance")
    assert (result.exit_code, session.cached) == (3, None)
    assert "does not say where its CA comes from" in session.run(*verify).stderr
    result = session.run(*verify, "--require-provenance")  # the root is in the cache now
    assert (result.exit_code, "where its CA" in result.stderr) == (0, False)


def test_verify_refuses_a_recovered_state_unless_it_is_allowed(
    session: Session, honest: FakeCoordinator, platform: SimulatedPlatform
) -> None:
    honest.routes |= manifest_routes(MANIFEST)

    def statement(call: Call) -> tuple[int, bytes]:
        group = {"recoveryKeys": ["ab" * 32], "needed": 1, "times": 1, "first": "2026", "last": "2026"}
        fields = {
            "statement": 1,
            "rootCertificate": honest.root.pem.decode(),
            "manifestFingerprint": FINGERPRINT,
            "provenance": {"complete": True, "firstManifest": "", "recoveries": 1, "recoveredBy": [group]},
            "nonce": base64.b64encode(base64.urlsafe_b64decode(dict(call.query)["nonce"])).decode(),
        }
        text = json.dumps(fields)
        quote = platform.quote(sha256(text.encode()).digest(), product_id=PRODUCT)
        return success({"statement": text, "quote": base64.b64encode(quote).decode()})

    honest.routes["GET /api/v2/statement"] = statement
    result = session.run("manifest", "verify", "m.json", honest.endpoint, *ERA)
    assert (result.exit_code, session.cached) == (3, None)
    assert "recovered 1 times" in result.stderr
    assert "--allow-recovered" in result.stderr
    assert session.run("manifest", "verify", "m.json", honest.endpoint, *ERA, "--allow-recovered").stdout == "OK\n"


@pytest.mark.parametrize(("expected", "code", "text"), [
    ("new.json", 4, FINGERPRINT), ("0" * 64, 4, FINGERPRINT), ("0" * 63, 7, "not 63"), ("x" * 64, 7, "hex"),
])  # fmt: skip
def test_verify_refuses_and_leaves_the_cache_alone(
    session: Session, honest: FakeCoordinator, expected: str, code: int, text: str
) -> None:
    honest.routes |= manifest_routes(MANIFEST)
    result = session.run("manifest", "verify", expected, honest.endpoint, *ERA)
    assert (result.exit_code, session.cached) == (code, None)
    assert text in result.stderr


def test_signature_is_the_hash_of_the_json_form_offline(session: Session) -> None:
    assert session.run("manifest", "signature", "m.json").stdout == f"{FINGERPRINT}\n"
    (session.folder / "y.yaml").write_text("Packages: {}\n")
    expected = sha256(b'{"Packages":{}}').hexdigest()
    assert json.loads(session.run("manifest", "signature", "y.yaml", "--json").stdout) == {
        "manifestSignature": expected
    }
    assert session.run("manifest", "signature", "none.json").exit_code == 8


def test_log_prints_a_line_per_record(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    honest.routes["GET /api/v2/update"] = lambda _: success({"updateLog": ['{"a":1}', '{"b":2}']})
    assert session.run("manifest", "log", honest.endpoint).stdout == 'Update log:\n{"a":1}\n{"b":2}\n'
    assert json.loads(session.run("manifest", "log", honest.endpoint, "--json").stdout)["updateLog"][1] == '{"b":2}'
    session.run("manifest", "log", honest.endpoint, "-o", "log.txt")
    assert (session.folder / "log.txt").read_text() == '{"a":1}\n{"b":2}\n'


# -- updates -----------------------------------------------------------------------------------------------------


def test_apply_goes_out_as_the_user_and_tells_what_is_missing(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    data = {"missingAcknowledgments": 1, "missingUsers": ["bob", "carol"]}
    honest.routes["POST /api/v2/update"] = lambda _: success(data)
    result = session.run("manifest", "update", "apply", "new.json", honest.endpoint, *USER)
    assert result.exit_code == 0
    assert "1 more user(s) must acknowledge" in result.stdout
    assert "bob, carol" in result.stdout
    call = honest.calls[-1]
    assert (call.client_certificate, base64.b64decode(str(call.json()["manifest"]))) == (session.user.der, PENDING)


def test_apply_saves_new_recovery_data(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    data = {"missingAcknowledgments": 0, "recoverySecrets": {"alice": b64(b"encrypted")}}
    honest.routes["POST /api/v2/update"] = lambda _: success(data)
    result = session.run("manifest", "update", "apply", "new.json", honest.endpoint, *USER, "-r", "rec.json")
    assert "Update manifest set successfully" in result.stdout
    assert json.loads((session.folder / "rec.json").read_bytes()) == RECOVERY


def test_acknowledge_cancel_and_get(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    pending = {"manifest": b64(PENDING), "missingUsers": ["alice", "bob"], "message": "m"}
    honest.routes |= {
        "POST /api/v2/update-manifest": lambda _: success({"missingAcknowledgments": 0, "message": "all"}),
        "POST /api/v2/update-cancel": lambda _: success({"message": "cancelled"}),
        "GET /api/v2/update-manifest": lambda _: success(pending),
    }
    update = ("manifest", "update")
    assert "in force" in session.run(*update, "acknowledge", "new.json", honest.endpoint, *USER).stdout
    assert "successful" in session.run(*update, "cancel", honest.endpoint, *USER).stdout
    assert session.run(*update, "get", honest.endpoint).stdout_bytes == PENDING + b"\n"
    assert session.run(*update, "get", honest.endpoint, "--missing").stdout == "[alice bob]\n"
    assert session.run(*update, "get", honest.endpoint, "-o", "p.json").exit_code == 0
    assert (session.folder / "p.json").read_bytes() == PENDING


def test_nothing_pending_is_not_found(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    honest.routes["GET /api/v2/update-manifest"] = lambda _: failure(404, "no update in progress")
    result = session.run("manifest", "update", "get", honest.endpoint)
    assert result.exit_code == 8
    assert "no update in progress" in result.stderr


def test_an_unknown_user_is_denied_in_the_references_words(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    honest.routes["POST /api/v2/update"] = lambda _: failure(401, "unauthorized user: not in the manifest")
    result = session.run("manifest", "update", "apply", "new.json", honest.endpoint, *USER)
    assert result.exit_code == 4
    assert "unauthorized user" in result.stderr


@pytest.mark.parametrize("given", [(), ("--cert", "c.pem"), ("--key", "k.pem")])
def test_certificate_and_key_belong_together(session: Session, honest: FakeCoordinator, given: tuple[str, ...]) -> None:
    session.cache(honest.root)
    result = session.run("manifest", "update", "cancel", honest.endpoint, *given)
    assert (result.exit_code, honest.certificates_seen) == (2, [])


# -- secrets -----------------------------------------------------------------------------------------------------


def secret(kind: str, **parts: object) -> dict[str, object]:
    empty = {
        "Size": 0,
        "Shared": True,
        "UserDefined": True,
        "Cert": None,
        "ValidFor": 0,
        "Private": None,
        "Public": None,
    }
    return {"Type": kind, **empty, **parts}


def test_get_prints_base64_and_pem(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    tls = mint("tls")
    secrets = {
        "key": secret("symmetric-key", Size=128, Private=b64(b"k" * 16), Public=b64(b"k" * 16)),
        "text": secret("plain", Private=b64(b"hello"), Public=b64(b"hello")),
        "tls": secret("cert-ecdsa", Size=384, ValidFor=7, Cert=b64(tls.der), Private=b64(b"p"), Public=b64(b"q")),
        "unset": secret("cert-rsa"),
    }
    honest.routes["GET /api/v2/secrets"] = lambda call: success(
        {"secrets": {name: secrets[name] for name in call.names}}
    )
    result = session.run("secret", "get", "key", "text", "tls", "unset", honest.endpoint, *USER)
    assert result.exit_code == 0
    assert f"\tKey:          {b64(b'k' * 16)}\n" in result.stdout
    assert f"\tData:         {b64(b'hello')}\n" in result.stdout
    assert "\tValid For:    7\n" in result.stdout
    shown = "".join(f"\t\t{line}\n" for line in encode_pem(tls.der, "CERTIFICATE").splitlines())
    assert f"\tCertificate:\n{shown}" in result.stdout
    assert "\tPrivate Key:  <not set>" in result.stdout
    assert honest.calls[-1].client_certificate == session.user.der


def test_get_writes_the_json_of_the_api_to_a_private_file(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    document = {"text": secret("plain", Private=b64(b"hello"), Public=b64(b"hello"))}
    honest.routes["GET /api/v2/secrets"] = lambda _: success({"secrets": document})
    result = session.run("secret", *USER, "get", "text", honest.endpoint, "-o", "s.json")
    path = session.folder / "s.json"
    assert (json.loads(path.read_bytes()), stat.S_IMODE(path.stat().st_mode)) == (document, 0o600)
    assert b64(b"hello") not in result.output


def test_set_sends_json_and_pem(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    honest.routes["POST /api/v2/secrets"] = lambda _: success(None)
    assert session.run("secret", "set", "secrets.json", honest.endpoint, *USER).exit_code == 0
    assert honest.calls[-1].json() == {"secrets": {"s": {"Key": "canary+canary+canary+aaa"}}}
    tls = mint("tls")
    (session.folder / "tls.pem").write_bytes(tls.pem + tls.key_pem)
    assert session.run("secret", "set", "tls.pem", honest.endpoint, "--from-pem", "tls", *USER).exit_code == 0
    sent = honest.calls[-1].json()["secrets"]
    assert isinstance(sent, dict)
    assert sent["tls"]["Cert"] == b64(tls.der)


def test_secrets_never_show_in_errors(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    (session.folder / "bad.json").write_bytes(b'{"s": {"Key": "canary canary"}}')
    for arguments in (("secret", "set", "bad.json"), ("--debug", "secret", "set", "bad.json")):
        result = session.run(*arguments, honest.endpoint, *USER)
        assert result.exit_code == 7
        assert "canary" not in result.output


# -- certificate and status --------------------------------------------------------------------------------------


def test_certificates_are_written_under_the_references_names(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    for verb, name, pem in (
        ("root", "marblerunRootCA.crt", honest.root.pem),
        ("intermediate", "marblerunIntermediateCA.crt", honest.intermediate.pem),
        ("chain", "marblerunChainCA.crt", chain(honest)),
    ):
        assert session.run("certificate", verb, honest.endpoint, *ERA).exit_code == 0
        assert (session.folder / name).read_bytes() == pem
        assert session.run("certificate", verb, honest.endpoint, *ERA, "-o", "").exit_code == 2


def test_a_changed_root_is_refused(session: Session, honest: FakeCoordinator) -> None:
    session.cache(mint("MarbleRun Coordinator"))
    result = session.run("certificate", "root", honest.endpoint, *ERA)
    assert (result.exit_code, (session.folder / "marblerunRootCA.crt").exists()) == (3, False)
    assert "manifest verify" in result.stderr


def test_status_in_text_and_json(session: Session, honest: FakeCoordinator) -> None:
    session.cache(honest.root)
    honest.routes["GET /api/v2/status"] = lambda _: success({"code": 2, "message": "Coordinator is ready"})
    assert session.run("status", honest.endpoint).stdout == "2: Coordinator is ready\n"
    for option in (("-o", "json"), ("--output", "json"), ("--format", "json"), ("--json",)):
        found = json.loads(session.run("status", honest.endpoint, *option).stdout)
        assert found == {"code": 2, "message": "Coordinator is ready", "connection": "pinned"}


def test_status_of_a_simulated_coordinator_says_so(session: Session, honest: FakeCoordinator) -> None:
    answer = {"code": 3, "message": "Coordinator is running", "evidence": "simulated"}
    honest.routes["GET /api/v2/status"] = lambda _: success(answer)
    result = session.run("status", honest.endpoint, *ERA)
    assert result.stdout == "3: Coordinator is running\nevidence: SIMULATED\n"


def test_status_shows_number_and_origin_of_the_state_where_the_coordinator_tells_them(
    session: Session, honest: FakeCoordinator
) -> None:
    session.cache(honest.root)
    group = {"recoveryKeys": ["ab" * 32], "needed": 1, "times": 2, "first": "2025", "last": "2026"}
    provenance: dict[str, object] = {"complete": True, "firstManifest": "cd" * 32, "recoveries": 2}
    provenance["recoveredBy"] = [group]
    text = json.dumps({"statement": 1, "sequence": 7, "head": "ef" * 32, "provenance": provenance})
    honest.routes["GET /api/v2/statement"] = lambda _: success({"statement": text})
    honest.routes["GET /api/v2/status"] = lambda _: success({"code": 3, "message": "Coordinator is running"})
    assert session.run("status", honest.endpoint).stdout.splitlines() == [
        "3: Coordinator is running",
        f"state: number 7, SHA-256 {'ef' * 32}",
        "origin: recovered 2 times, last 2026",
    ]
    found = json.loads(session.run("status", honest.endpoint, "-o", "json").stdout)
    assert (found["sequence"], found["head"], found["provenance"]) == (7, "ef" * 32, provenance)
    honest.routes["GET /api/v2/status"] = lambda _: success({"code": 2, "message": "Coordinator is ready"})
    lines = session.run("status", honest.endpoint).stdout.splitlines()
    assert lines == ["2: Coordinator is ready", "state: number 7 was reached, and is not what runs"]


def test_a_statement_that_is_none_does_not_keep_the_status_from_being_shown(
    session: Session, honest: FakeCoordinator
) -> None:
    session.cache(honest.root)
    honest.routes["GET /api/v2/statement"] = lambda _: success({"statement": "{}"})
    honest.routes["GET /api/v2/status"] = lambda _: success({"code": 3, "message": "Coordinator is running"})
    result = session.run("status", honest.endpoint)
    assert (result.exit_code, result.stdout) == (0, "3: Coordinator is running\n")
    assert "the Coordinator's statement cannot be shown" in result.stderr


def test_another_certificate_than_the_cached_one_is_told_with_what_it_can_mean(
    session: Session, honest: FakeCoordinator
) -> None:
    session.cache(mint("MarbleRun Coordinator"))
    for command in (("status",), ("state", "verify")):
        result = session.run(*command, honest.endpoint)
        assert (result.exit_code, honest.sent_requests) == (3, [])
        assert "in recovery mode, where it has another certificate: --era-config FILE" in result.stderr


def test_an_explicit_policy_is_never_ignored_for_a_cached_certificate(
    session: Session, honest: FakeCoordinator
) -> None:
    session.cache(honest.root)
    (session.folder / "strict.json").write_text(json.dumps({"UniqueID": "ab" * 32}))
    result = session.run("status", honest.endpoint, "--era-config", "strict.json")
    assert (result.exit_code, honest.sent_requests) == (4, ["GET /api/v2/quote"])


# -- global options ----------------------------------------------------------------------------------------------


def test_the_nonce_is_the_bytes_of_the_text(session: Session, honest: FakeCoordinator) -> None:
    honest.routes |= manifest_routes(MANIFEST)
    assert session.run("manifest", "get", honest.endpoint, *ERA, "--nonce", "héllo").exit_code == 0
    assert base64.urlsafe_b64decode(dict(honest.calls[0].query)["nonce"]) == "héllo".encode()


def test_the_saved_quote_is_the_verified_one(session: Session, honest: FakeCoordinator) -> None:
    """In the reference the file is empty on the verified path."""
    honest.routes |= manifest_routes(MANIFEST)
    session.run("manifest", "get", honest.endpoint, *ERA, "--nonce", "x", "--save-sgx-quote", "q.bin")
    saved = (session.folder / "q.bin").read_bytes()
    assert sha256(honest.root.der + b"x").digest() in saved


PLACES = [
    ("--era-config", "era.json", "manifest", "get", "@"),
    ("manifest", "--era-config", "era.json", "get", "@"),
    ("manifest", "get", "--era-config", "era.json", "@"),
    ("manifest", "get", "@", "--era-config", "era.json"),
    ("--era-config", "missing.json", "manifest", "get", "@", "--era-config", "era.json"),
]


@pytest.mark.parametrize("arguments", PLACES)
def test_global_options_stand_anywhere(session: Session, honest: FakeCoordinator, arguments: tuple[str, ...]) -> None:
    """As with the reference's persistent flags; what is nearest to the verb wins."""
    honest.routes |= manifest_routes(MANIFEST)
    result = session.run(*(honest.endpoint if text == "@" else text for text in arguments))
    assert result.exit_code == 0, result.output


def test_the_policy_in_the_working_directory_is_used_and_told(session: Session, honest: FakeCoordinator) -> None:
    honest.routes |= manifest_routes(MANIFEST)
    (session.folder / "era-config.json").write_bytes((session.folder / "era.json").read_bytes())
    result = session.run("manifest", "get", honest.endpoint)
    assert result.exit_code == 0
    assert "./era-config.json" in result.stderr


def test_a_policy_file_cannot_switch_verification_off(session: Session, honest: FakeCoordinator) -> None:
    (session.folder / "era-config.json").write_text('{"InsecureSkipVerify": true}')
    result = session.run("manifest", "get", honest.endpoint)
    assert (result.exit_code, honest.calls) == (9, [])


def test_tcb_statuses_are_a_list_and_misspelt_ones_a_usage_error(session: Session, honest: FakeCoordinator) -> None:
    honest.routes |= manifest_routes(MANIFEST)
    good = ("--accepted-tcb-statuses", "UpToDate,OutOfDate", "--accepted-tcb-statuses", "ConfigurationNeeded")
    assert session.run("manifest", "get", honest.endpoint, *ERA, *good).exit_code == 0
    result = session.run("manifest", "get", honest.endpoint, *ERA, "--accepted-tcb-statuses", "uptodate")
    assert (result.exit_code, "OutOfDate" in result.stderr) == (2, True)


def test_without_the_variable_the_simulated_platform_is_not_trusted(
    session: Session, honest: FakeCoordinator, monkeypatch: pytest.MonkeyPatch, platform: object
) -> None:
    honest.routes |= manifest_routes(MANIFEST)
    monkeypatch.delenv("EDG_SIMULATED_PLATFORM")
    result = session.run("manifest", "get", honest.endpoint, *ERA, "--pccs-url", "http://127.0.0.1:9")
    assert result.exit_code in (3, 6)
    assert honest.sent_requests == ["GET /api/v2/quote"]


def test_an_old_coordinator_is_served_by_the_first_api_version(session: Session, honest: FakeCoordinator) -> None:
    honest.routes = {"GET /quote": honest.quote_route_v1, **manifest_routes(MANIFEST, version=1)}
    assert session.run("manifest", "verify", "m.json", honest.endpoint, *ERA).stdout == "OK\n"


def test_a_hostile_message_cannot_command_the_terminal(session: Session, honest: FakeCoordinator) -> None:
    def shout(_call: Call) -> tuple[int, bytes]:
        return failure(500, "\x1b[31mowned\x1b]0;title\x07")

    honest.routes["GET /api/v2/quote"] = shout
    result = session.run("manifest", "get", honest.endpoint, *ERA)
    assert "\x1b" not in result.output
