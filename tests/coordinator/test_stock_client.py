"""The client API as a stock user's library sees it: verified TLS in FIPS mode, typed answers, version fallback.

Source: cli-marble-k8s, sections 1.4 to 1.10 and 2; protocol, sections 3.3 to 3.6, 7, 9 and 14. The client is the Go
program of ``tests/go/restclient``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.coordinator.manifests import INTEGRATION, encode, integration
from tests.coordinator.marbles import GoClient
from tests.coordinator.parties import manifest as party_manifest
from tests.coordinator.people import UPDATERS, Person, office, person, recovery_key
from tests.coordinator.running import Running, World, running
from tests.coordinator.states import UUID_1, UUID_2
from tests.coordinator.stock import OLD_API, Refused, Reply, StockClient, stock_client

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.dcap.quote import add_oe_header
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.pki.profiles import SubjectNames

TLS_1_2, TLS_1_3 = 0x303, 0x304
P256, P384, X25519, X25519_MLKEM768 = 23, 24, 29, 4588

NEW = encode(office(UPDATERS, RotateRootSecret=True))


@pytest.fixture(scope="session")
def optional_stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockClient | None]:
    with stock_client(tmp_path_factory.mktemp("stock")) as client:
        yield client


@pytest.fixture
def stock(optional_stock: StockClient | None) -> StockClient:
    """A client of its time: version 2 of the API, HTTP/1.1."""
    if optional_stock is None:
        pytest.skip("Go is not installed: nothing was compared with a stock client of the API")
    return optional_stock


@pytest.fixture(params=["HTTP/1.1", "HTTP/2.0"])
def either(stock: StockClient, request: pytest.FixtureRequest) -> StockClient:
    """The same in both versions of HTTP."""
    return stock.having(http2=request.param == "HTTP/2.0")


@pytest.fixture(params=[2, 1], ids=["v2", "v1"])
def versions(stock: StockClient, request: pytest.FixtureRequest) -> StockClient:
    """One that finds version 2, and one that has to fall back to version 1 because what it knows is not there."""
    return stock if request.param == 2 else stock.having(newest=OLD_API)


def is_v2(client: StockClient) -> bool:
    return client.settings.get("newest") != OLD_API


@pytest.fixture(params=["without evidence", "simulated platform"])
def world(request: pytest.FixtureRequest, platform: SimulatedPlatform) -> World:
    return World(platform=platform if request.param == "simulated platform" else None)


def names_of(reply: Reply) -> set[str]:
    """The fields in the case in which they were sent, without what we tell beyond the reference's."""
    return set(reply["names"]) - {"evidence"}


def raw(text: str) -> bytes:
    return base64.b64decode(text)


# -- TLS ---------------------------------------------------------------------------------------------------------


def test_the_client_is_one_in_fips_mode(stock: StockClient, unattested: Running) -> None:
    """What the other tests here are worth: its groups are the limited ones, and X25519 alone is none (section 3.6)."""
    assert stock.ask("mode") == {"fips": True}
    with pytest.raises(Refused) as refused:
        stock.attested(unattested).ask("status", curves=[X25519])
    assert "curve" in refused.value.text.lower() or "CurvePreferences" in refused.value.text


@pytest.mark.parametrize(
    ("version", "curves"),
    [(0, []), (TLS_1_2, [P256, P384]), (TLS_1_2, [P384]), (TLS_1_3, [P256]), (TLS_1_3, [P384]),
     (TLS_1_3, [X25519_MLKEM768])],
)  # fmt: skip
def test_every_group_and_version_of_fips_reaches_a_verified_answer(
    either: StockClient, unattested: Running, version: int, curves: list[int]
) -> None:
    """Protocol, section 3.6; as host name and as address."""
    expected = "HTTP/2.0" if either.settings["http2"] else "HTTP/1.1"
    for host in ("localhost", "127.0.0.1"):
        client = either.attested(unattested, host)
        status = client.ask("status", min=version, max=version, curves=curves)
        assert (status["code"], status["api"], status["protocol"]) == (3, 2, expected)


def test_another_coordinators_root_and_another_hosts_name_end_the_connection(
    stock: StockClient, unattested: Running, waiting: Running
) -> None:
    """Go verifies chain and host; a pinned root vouches for one Coordinator only."""
    client = stock.attested(unattested)
    with pytest.raises(Refused, match="unknown authority"):
        stock.attested(waiting).ask("status", endpoint=client.settings["endpoint"])
    with running(World(names=SubjectNames(dns_names=("coordinator.svc",)))) as elsewhere:
        with pytest.raises(Refused, match=r"certificate is valid for coordinator\.svc, not localhost"):
            stock.attested(elsewhere).ask("status")
        assert stock.attested(elsewhere, "127.0.0.1").ask("status")["code"] == 2


UserKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Holder:
    """A user's certificate with a key of any kind."""

    pem: str
    key_pem: str


def holder(key: UserKey) -> Holder:
    """A self-signed certificate that expired long ago: nothing about it counts but its bytes (section 8.1)."""
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2021, 1, 1, tzinfo=UTC))
        .sign(key, digest)
    )
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Holder(certificate.public_bytes(Encoding.PEM).decode(), key_pem.decode())


@pytest.fixture(scope="module")
def holders() -> dict[str, Holder]:
    return {
        "P-256": holder(ec.generate_private_key(ec.SECP256R1())),
        "P-384": holder(ec.generate_private_key(ec.SECP384R1())),
        "P-521": holder(ec.generate_private_key(ec.SECP521R1())),
        "RSA": holder(rsa.generate_private_key(65537, 2048)),
        "Ed25519": holder(ed25519.Ed25519PrivateKey.generate()),
    }


def test_users_are_known_by_any_kind_of_key_in_both_versions_of_tls(
    either: StockClient, holders: dict[str, Holder]
) -> None:
    """Protocol, sections 3.3, 3.6 and 8.1."""
    document = office({})
    document["Users"] = {name: {"Certificate": who.pem, "Roles": ["reader"]} for name, who in holders.items()}
    with running(manifest=encode(document)) as up:
        client = either.attested(up)
        for version in (TLS_1_2, TLS_1_3):
            for name, who in holders.items():
                found = client.as_user(who).ask("secrets", names=["sharedKey"], min=version, max=version)
                assert set(found["secrets"]) == {"sharedKey"}, (name, version)


# -- attestation -------------------------------------------------------------------------------------------------


def test_the_quote_with_its_chain_pins_the_root(versions: StockClient, world: World) -> None:
    """Protocol, sections 3.4, 4.2 and 7.7: two blocks, root last; without evidence the quote is null."""
    with running(world) as up:
        client = versions.having(endpoint=f"localhost:{up.client[1]}")
        shown = client.ask("attest")
        assert names_of(shown) == ({"cert", "quote"} if is_v2(versions) else {"Cert", "Quote"})
        assert shown["root"].encode().split() == up.coordinator.state.authority.root_pem.split()
        assert shown["bound"] is (world.platform is not None)
        if world.platform is None:
            assert shown["quote"] is None
        assert client.having(root=shown["root"]).ask("status")["code"] == 2


def test_a_nonce_of_any_bytes_is_in_the_quote_and_has_no_version_1(stock: StockClient, attested: Running) -> None:
    """Protocol, section 7.7: base64url with padding, so that `-`, `_` and `=` arrive."""
    client = stock.having(endpoint=f"localhost:{attested.client[1]}")
    for nonce in (b"\xfb\xff\xfe\x00", bytes(32), b"\xff" * 31, b"n" * 64):
        assert client.ask("attest", nonce=nonce)["bound"] is True
    with pytest.raises(Refused) as refused:
        client.ask("attest", nonce=b"nonce", newest=OLD_API)
    assert refused.value.code == 405


def test_gos_verifier_accepts_the_certificates_of_the_client_api(stock: StockClient, attested: Running) -> None:
    """Protocol, sections 3.1 and 3.4."""
    shown = stock.ask("attest", endpoint=f"localhost:{attested.client[1]}")
    root, intermediate = shown["root"], shown["intermediate"]
    for name in ("localhost", "127.0.0.1", "::1", ""):
        assert stock.ask("x509", leaf=root, roots=root, name=name) == {"length": 1}
        assert stock.ask("x509", leaf=intermediate, roots=root, name=name) == {"length": 2}
    with pytest.raises(Refused, match="certificate is valid for localhost, not example"):
        stock.ask("x509", leaf=root, roots=root, name="example.com")


# -- status and manifest -----------------------------------------------------------------------------------------


def test_the_status_is_told_in_both_versions(versions: StockClient, waiting: Running, unattested: Running) -> None:
    """Protocol, sections 1.4, 7.4, 7.5 and 14."""
    for up, code, begin in (
        (waiting, 2, "Coordinator is ready to accept a manifest"),
        (unattested, 3, "Coordinator is running correctly and ready to accept marbles"),
    ):
        status = versions.attested(up).ask("status")
        assert names_of(status) == ({"code", "message"} if is_v2(versions) else {"StatusCode", "StatusMessage"})
        assert (status["code"], status["api"]) == (code, 2 if is_v2(versions) else 1)
        assert status["message"].startswith(begin)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_setting_a_manifest_gives_a_map_of_recovery_secrets(versions: StockClient, world: World, count: int) -> None:
    """Protocol, section 7.4: in version 2 an object, never null, as null would be no JSON at all to the library."""
    document = party_manifest(count)
    with running(world) as up:
        client = versions.attested(up)
        done = client.ask("set", manifest=document)
        if is_v2(versions):
            assert (done["is_object"], names_of(done)) == (True, {"RecoverySecrets"})
        assert {name: len(raw(secret)) for name, secret in (done.get("recovery") or {}).items()} == {
            f"party{number}": 256 for number in range(count)
        }
        got = client.ask("get")
        assert raw(got["manifest"]) == document
        assert (got["is_signed"], got["is_fingerprint"]) == (True, True)
        with pytest.raises(Refused, match="server is not in expected state") as refused:
            client.ask("set", manifest=document)
        assert (refused.value.code, refused.value.status) == (500 if is_v2(versions) else 400, "error")


def test_the_manifest_has_the_fields_of_its_version(versions: StockClient, unattested: Running) -> None:
    """Protocol, sections 5.9, 7.4 and 7.5."""
    got = versions.attested(unattested).ask("get")
    assert raw(got["manifest"]) == INTEGRATION
    assert (got["is_signed"], got["is_fingerprint"]) == (True, True)
    assert names_of(got) == (
        {"manifestSignatureRootECDSA", "manifestFingerprint", "manifest"}
        if is_v2(versions)
        else {"ManifestSignatureRootECDSA", "ManifestSignature", "Manifest"}
    )


def test_a_manifest_that_is_none_is_refused_in_the_manner_of_its_version(
    versions: StockClient, waiting: Running
) -> None:
    """Protocol, sections 7.1, 7.4 and 7.5: an error envelope both times; and there is nothing to get."""
    client = versions.attested(waiting)
    with pytest.raises(Refused) as refused:
        client.ask("set", manifest=b"{")
    assert (refused.value.code, refused.value.status) == (500 if is_v2(versions) else 400, "error")
    assert refused.value.message
    if is_v2(versions):
        with pytest.raises(Refused) as refused:
            client.ask("get")
        assert (refused.value.code, refused.value.status) == (500, "error")
    else:
        assert client.ask("get")["manifest"] is None


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2.0"])
def test_a_manifest_of_megabytes_gets_through_the_fallback_and_back(
    versions: StockClient, large_manifest: bytes, http2: bool
) -> None:
    """An answer before the end of an upload, such as 405 or 401, must reach a client that is still sending."""
    with running() as up:
        client = versions.having(http2=http2).attested(up)
        client.ask("set", manifest=large_manifest)
        assert raw(client.ask("get")["manifest"]) == large_manifest
        for op in ("update", "acknowledge"):
            with pytest.raises(Refused, match="authorizing user: unauthorized user"):
                client.ask(op, manifest=large_manifest)


# -- updates -----------------------------------------------------------------------------------------------------


def lines_of(client: StockClient) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.ask("log")["lines"]]


def test_a_package_update_changes_the_log_and_not_the_manifest(versions: StockClient, world: World) -> None:
    """Protocol, sections 7.10, 9.2 and 14."""
    manifest = encode(office())
    with running(world, manifest=manifest) as up:
        client = versions.attested(up).as_user(person("admin"))
        before = client.ask("attest")
        assert len(lines_of(client)) == 1
        done = client.ask("update", manifest=b'{"Packages": {"frontend": {"SecurityVersion": 5}}}')
        if is_v2(versions):
            assert (done["missing"], done["users"], done["recovery"]) == (0, None, None)
            assert names_of(done) == {"missingAcknowledgments", "missingUsers"}
        else:
            assert done["data"] == ""
        after = client.ask("attest")
        assert (after["root"], after["intermediate"] == before["intermediate"]) == (before["root"], False)
        last = lines_of(client)[-1]
        assert len(lines_of(client)) == 2
        assert (last["user"], last["package"], last["new version"]) == ("admin", "frontend", 5)
        with pytest.raises(Refused) as refused:
            client.ask("update", manifest=b'{"Packages": {"frontend": {"SecurityVersion": 4}}}')
        assert refused.value.code == (500 if is_v2(versions) else 400)
        downgrade = "update manifest tries to downgrade SecurityVersion of the original manifest"
        assert downgrade in refused.value.message
        assert raw(client.ask("get")["manifest"]) == manifest


def test_an_update_by_one_user_tells_new_recovery_secrets(versions: StockClient) -> None:
    """Protocol, sections 7.4, 7.10 and 9.5: a map in version 2, also when the keys are gone; two lines in the log."""
    keys = json.loads(party_manifest(2))["RecoveryKeys"]
    with running(manifest=encode(office())) as up:
        client = versions.attested(up).as_user(person("updater"))
        with pytest.raises(Refused, match="unauthorized user"):
            client.ask("update", manifest=NEW)
        client = client.as_user(person("admin"))
        for number, (more, sizes) in enumerate((({"RecoveryKeys": keys}, {"party0": 256, "party1": 256}), ({}, {}))):
            done = client.ask("update", manifest=encode({**office(), **more}))
            if is_v2(versions):
                assert names_of(done) == {"missingAcknowledgments", "missingUsers", "recoverySecrets"}
                assert (done["missing"], done["users"]) == (0, None)
                assert {name: len(raw(secret)) for name, secret in done["recovery"].items()} == sizes
            else:
                assert done["data"] == ""
            lines = lines_of(client)
            assert len(lines) == 3 + 2 * number
            assert lines[-2]["user"] == "admin"
            assert lines[-1]["manifestFingerprint"] == lines[-2]["manifestFingerprint"]


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2.0"])
def test_two_parties_update_look_and_cancel(versions: StockClient, http2: bool) -> None:
    """Protocol, sections 7.4, 7.5, 9.3, 9.4 and 14."""
    before = encode(office(UPDATERS, UpdateThreshold=2))
    v2 = is_v2(versions)
    with running(manifest=before) as up:
        anyone = versions.having(http2=http2).attested(up)
        alice, bob = anyone.as_user(person("alice")), anyone.as_user(person("bob"))

        def nothing_pending() -> None:
            for op, who in (("pending", anyone), ("acknowledge", bob), ("cancel", bob)):
                with pytest.raises(Refused, match="no update in progress") as refused:
                    who.ask(op, manifest=NEW)
                assert (refused.value.code, refused.value.status) == (404, "error"), op

        nothing_pending()
        done: Reply = {}
        for last in ("cancel", "acknowledge"):
            started = alice.ask("update", manifest=NEW)
            if v2:
                assert (started["missing"], sorted(started["users"])) == (1, ["bob", "carol"])
            else:
                assert started["data"] == ""
            pending = anyone.ask("pending")
            assert (raw(pending["manifest"]), sorted(pending["users"])) == (NEW, ["bob", "carol"])
            assert names_of(pending) == {"manifest", "message", "missingUsers"}
            assert alice.ask("acknowledge", manifest=NEW)["missing"] == 1
            with pytest.raises(Refused) as refused:
                alice.ask("update", manifest=NEW)
            assert refused.value.code == (500 if v2 else 400)
            assert "update already in progress" in refused.value.message
            done = bob.ask(last, manifest=NEW)
            assert raw(anyone.ask("get")["manifest"]) == (before if last == "cancel" else NEW)
        assert done["missing"] == 0
        if v2:
            assert names_of(done) == {"message", "missingAcknowledgments", "missingUsers"}
            assert done["message"].startswith("All ")
        nothing_pending()
        assert anyone.ask("status")["code"] == 3


# -- secrets -----------------------------------------------------------------------------------------------------

SECRET_FIELDS = {"Type", "Size", "Shared", "UserDefined", "Cert", "ValidFor", "Private", "Public"}


@pytest.mark.parametrize("bare", [False, True], ids=["null for what is not there", "left out"])
def test_secrets_go_up_and_come_down(versions: StockClient, bare: bool) -> None:
    """Protocol, sections 6.6, 7.6; Go parses what is a certificate, and its key belongs to it."""
    own = holder(ec.generate_private_key(ec.SECP256R1()))
    der = x509.load_pem_x509_certificate(own.pem.encode()).public_bytes(Encoding.DER)
    key = raw("".join(own.key_pem.splitlines()[1:-1]))
    names = ["sharedKey", "sharedCert", "userKey", "userPlain", "userCert"]
    with running(manifest=encode(office())) as up:
        client = versions.attested(up).as_user(person("admin"))
        unset = client.ask("secrets", names=names)["secrets"]
        assert [unset[name]["private"] for name in names[2:]] == [None] * 3
        uploads = {"userKey": {"Key": b"0" * 16}, "userPlain": {"Key": b"plain"}}
        secrets = {**uploads, "userCert": {"Cert": der, "Private": key}}
        assert client.ask("upload", secrets=secrets, bare=bare)["data"] == ""
        reply = client.ask("secrets", names=names)
        found = reply["secrets"]
        assert {name: set(fields) for name, fields in reply["fields"].items()} == dict.fromkeys(names, SECRET_FIELDS)
        assert [raw(found[name]["private"]) for name in names[2:]] == [b"0" * 16, b"plain", key]
        assert found["userCert"]["cert"].split() == own.pem.split()
        for name in ("sharedCert", "userCert"):
            assert (found[name]["is_pair"], found[name]["is_public"]) == (True, True)
        assert (found["sharedKey"]["type"], found["sharedKey"]["size"]) == ("symmetric-key", 128)
        assert found["sharedKey"]["cert"] == ""
        shared, intermediate = found["sharedCert"]["cert"], client.ask("attest")["intermediate"]
        through = client.ask("x509", leaf=shared, intermediates=intermediate, roots=client.settings["root"])
        assert through == {"length": 3}
        with pytest.raises(Refused, match="declared size and actual size don't match"):
            client.ask("upload", secrets={"userKey": {"Key": b"0" * 15}}, bare=bare)


def test_names_with_any_character_survive_the_query(stock: StockClient) -> None:
    """Escaped by Go's net/url, unescaped here."""
    odd = "a b+c/d&e=f%;ü"
    document = office()
    document["Secrets"] = {odd: {"Type": "symmetric-key", "Size": 128, "Shared": True}}
    document["Roles"] = {"reader": {"ResourceType": "Secrets", "ResourceNames": [odd], "Actions": ["ReadSecret"]}}
    document["Users"] = {"admin": {"Certificate": person("admin").pem, "Roles": ["reader"]}}
    document["Marbles"] = {"front": {"Package": "frontend"}}
    with running(manifest=encode(document)) as up:
        found = stock.attested(up).as_user(person("admin")).ask("secrets", names=[odd])
        assert set(found["secrets"]) == {odd}


# -- recovery ----------------------------------------------------------------------------------------------------


def lost(world: World) -> World:
    """The same disk on a machine that cannot open it."""
    sealed = world.store.load()
    assert sealed is not None
    return replace(world, store=MemoryStore(Sealed(sealed.data, ())))


def key_of(party: str) -> str:
    pem = recovery_key(party).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem.decode()


@pytest.mark.parametrize(
    ("count", "threshold", "givers", "remaining", "ephemeral"),
    [(1, 0, (0,), [0], False), (3, 2, (2, 0), [2, 0], True)],
    ids=["one party, plain", "two of three, encrypted for the Coordinator"],
)
def test_parties_recover_the_coordinator_and_its_root(
    stock: StockClient, world: World, count: int, threshold: int, givers: tuple[int, ...], remaining: list[int],
    ephemeral: bool,
) -> None:  # fmt: skip
    """Protocol, sections 7.4 and 10.7: afterwards the old root is what the listener shows."""
    with running(world) as up:
        old = stock.attested(up)
        secrets = old.ask("set", manifest=party_manifest(count, threshold))["recovery"]
    with running(lost(world)) as up:
        throw_away = stock.attested(up)
        status = throw_away.ask("status")
        assert (status["code"], status["message"].startswith("Coordinator is in recovery mode")) == (1, True)
        answers = []
        for number in givers:
            party = f"party{number}"
            answer = throw_away.ask(
                "recover", recovery_key=key_of(party), encrypted=raw(secrets[party]), ephemeral=ephemeral
            )
            assert names_of(answer) == {"remaining", "message"}
            answers.append(answer["remaining"])
        assert answers == remaining
        again = old.having(endpoint=throw_away.settings["endpoint"])
        assert again.ask("status")["code"] == 3
        got = again.ask("get")
        assert (got["is_signed"], got["is_fingerprint"]) == (True, True)
        with pytest.raises(Refused, match="unknown authority"):
            throw_away.ask("status")


def test_wrong_recovery_secrets_are_told_apart(stock: StockClient) -> None:
    """Protocol, sections 10.7 and 10.8: what cannot be decrypted is 400, a secret of none of the two parties 500."""
    with running() as up:
        secrets = stock.attested(up).ask("set", manifest=party_manifest(2))["recovery"]
        world = lost(up.world)
    signature = base64.b64encode(bytes(256)).decode()
    with running(world) as up:
        client = stock.attested(up)
        for secret, code, status in ((bytes(512), 400, "fail"), (bytes(16), 500, "error"), (bytes(32), 500, "error")):
            body = {"recoverySecret": base64.b64encode(secret).decode(), "recoverySecretSignature": signature}
            with pytest.raises(Refused) as refused:
                client.ask("ask", method="POST", path="/api/v2/recover", body=json.dumps(body).encode())
            assert (refused.value.code, refused.value.status) == (code, status)
            assert refused.value.message
        with pytest.raises(Refused) as refused:
            client.ask("recover", recovery_key=key_of("party0"), encrypted=raw(secrets["party0"]), newest=OLD_API)
        assert refused.value.code == 405
        assert client.ask("status")["code"] == 1
        with pytest.raises(Refused, match="unauthorized user"):
            client.as_user(person("admin")).ask("secrets", names=["sharedKey"])


def test_recovery_is_gone_from_version_1_and_out_of_place_elsewhere(stock: StockClient, unattested: Running) -> None:
    """Protocol, sections 7.4 and 7.5."""
    client = stock.attested(unattested)
    with pytest.raises(Refused) as refused:
        client.ask("ask", method="POST", path="/recover", body=b"secret")
    assert (refused.value.code, refused.value.status) == (410, "error")
    with pytest.raises(Refused, match="server is not in expected state") as refused:
        client.ask("ask", method="GET", path="/api/v2/recover/public-key")
    assert (refused.value.code, refused.value.status) == (500, "error")


# -- features ----------------------------------------------------------------------------------------------------

BOTH = encode({**integration(), "Config": {"FeatureGates": ["SignQuoteEndpoint", "MonotonicCounter"]}})


@pytest.fixture(scope="module")
def features(platform: SimulatedPlatform) -> Iterator[Running]:
    with running(World(platform=platform), manifest=BOTH) as up:
        yield up


def test_signed_quotes_verify_with_the_root_key(
    either: StockClient, features: Running, platform: SimulatedPlatform
) -> None:
    """Protocol, section 7.8; raw and with the header."""
    client = either.attested(features)
    quote = platform.quote_as(EnclaveIdentity(), bytes(64))
    for uploaded in (quote, add_oe_header(quote)):
        signed = client.ask("sign", quote=uploaded)
        assert (signed["tcb"], signed["is_signed"]) == ("UpToDate", True)
        assert names_of(signed) == {"tcbStatus", "verificationSignature"}
    with pytest.raises(Refused) as refused:
        client.ask("sign", quote=quote[:-1])
    assert (refused.value.code, refused.value.status) == (400, "fail")
    assert set(json.loads(refused.value.data)) == {"sgxQuote"}


@dataclass(frozen=True)
class Marble:
    """What an activation gave to a Marble; its chain is sent whole."""

    pem: str
    key_pem: str
    coordinator: str


def activated(go: GoClient, up: Running, uuid: str) -> Marble:
    """A Marble that a stock Marble's stack has activated."""
    identity, certificate = go.identity()
    quote = ""
    if up.world.platform is not None:
        quote = up.world.platform.quote_as(EnclaveIdentity(), report_data_for(certificate)).hex()
    answer = go.activate(up.mesh, identity, "bare", uuid, quote=quote)
    assert answer["code"] == "OK", answer["message"]
    env = {name: bytes.fromhex(value).decode() for name, value in answer["env"].items()}
    return Marble(
        env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"],
        env["MARBLE_PREDEFINED_PRIVATE_KEY"],
        env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"],
    )


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2.0"])
def test_a_marble_counts_with_the_credentials_it_was_given(
    go: GoClient, stock: StockClient, world: World, http2: bool
) -> None:
    """Protocol, section 7.9: chain, key and trust anchor come from the activation, the values are 64 bits wide."""
    with running(world, manifest=BOTH) as up:
        first, second = (activated(go, up, uuid) for uuid in (UUID_1, UUID_2))
        base = stock.having(endpoint=f"localhost:{up.client[1]}", http2=http2)
        client = base.as_user(first).having(root=first.coordinator)
        calls = [(2, 0), (1, 2), (2**53 + 1, 2), (2**64 - 1, 2**53 + 1), (0, 2**64 - 1)]
        for value, before in calls:
            counted = client.ask("count", name="tickets", value=value)
            assert (counted["value"], names_of(counted)) == (str(before), {"value"})
        assert (
            base.as_user(second).having(root=second.coordinator).ask("count", name="tickets", value=1)["value"] == "0"
        )
        with pytest.raises(Refused, match="authorizing user: unauthorized marble") as refused:
            client.as_user(person("admin")).ask("count", name="tickets", value=1)
        assert (refused.value.code, refused.value.status) == (401, "fail")


def test_gos_verifier_accepts_a_marble_through_the_intermediate(
    go: GoClient, stock: StockClient, attested: Running
) -> None:
    """Protocol, section 3.1: against the client API's root with the chain's intermediate, and against the latter."""
    marble = activated(go, attested, UUID_1)
    shown = stock.ask("attest", endpoint=f"localhost:{attested.client[1]}")
    asked = {"leaf": marble.pem, "name": "localhost"}
    assert marble.coordinator.split() == shown["root"].split()
    through = stock.ask("x509", **asked, roots=shown["root"], intermediates=shown["intermediate"])
    assert through == {"length": 3}
    assert stock.ask("x509", **asked, roots=shown["intermediate"]) == {"length": 2}


def test_without_their_gates_the_features_are_forbidden(stock: StockClient, unattested: Running) -> None:
    """Protocol, section 7.4."""
    client = stock.attested(unattested)
    for op, fields in (("sign", {"quote": b"quote"}), ("count", {"name": "n", "value": 1})):
        with pytest.raises(Refused) as refused:
            client.ask(op, **fields)
        assert (refused.value.code, refused.value.status) == (403, "error")


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [None, person("stranger")], ids=["nobody", "a stranger"])
def test_whoever_is_no_user_reads_that_authorizing_failed(versions: StockClient, who: Person | None) -> None:
    """Protocol, sections 7.3 and 14; before body and query are looked at."""
    v2 = is_v2(versions)
    with running(manifest=encode(office())) as up:
        client = versions.attested(up)
        client = client if who is None else client.as_user(who)
        for op in ("secrets", "upload", "update", "acknowledge", "cancel"):
            with pytest.raises(Refused, match="authorizing user: unauthorized user") as refused:
                client.ask(op)
            assert (refused.value.code, refused.value.status) == (401, "fail" if v2 else "error"), op


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v9/status"), ("GET", "/"), ("GET", "/api/v2"), ("GET", "/api/v2/status/"), ("POST", "/status"),
        ("GET", "/api/v2/recover"), ("PUT", "/manifest"), ("DELETE", "/api/v2/manifest"), ("POST", "/sign-quote"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_405_with_an_envelope_without_message(
    either: StockClient, unattested: Running, method: str, path: str
) -> None:
    """Protocol, section 7.2: the code on which a client falls back."""
    with pytest.raises(Refused) as refused:
        either.attested(unattested).ask("ask", method=method, path=path)
    assert (refused.value.code, refused.value.status, refused.value.message) == (405, "error", "")


def test_a_missing_permission_is_no_missing_user(versions: StockClient) -> None:
    """Protocol, sections 7.4 and 7.5: 500 or 400, as whoever may not is somebody nevertheless."""
    with running(manifest=encode(office({"admin": ("frontend",)}))) as up:
        client = versions.attested(up).as_user(person("admin"))
        code = 500 if is_v2(versions) else 400
        for op, fields in (
            ("secrets", {"names": ["sharedKey"]}), ("upload", {"secrets": {"userPlain": {"Key": b"x"}}}),
            ("update", {"manifest": NEW}),
        ):  # fmt: skip
            with pytest.raises(Refused) as refused:
                client.ask(op, **fields)
            assert (refused.value.code, refused.value.status) == (code, "error"), op


def test_secrets_without_a_name_are_a_bad_request(versions: StockClient) -> None:
    """Protocol, sections 7.4 and 7.5."""
    with running(manifest=encode(office())) as up:
        client = versions.attested(up).as_user(person("admin"))
        for names in ([], [""], ["sharedKey", ""]):
            with pytest.raises(Refused) as refused:
                client.ask("secrets", names=names)
            assert (refused.value.code, refused.value.status) == (400, "fail" if is_v2(versions) else "error")
