"""Anchors outside the state directory: the setting, etcd (a real one), and failures between state and anchor."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.coordinator.store.etcd import Etcd, etcd, needs_etcd
from tests.coordinator.store.histories import Anchored, History
from tests.coordinator.store.test_lineage import MemoryAnchor, _status, activate, deploy, phase, run

from marblerun.coordinator.server.settings import settings_from_environment
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.state import Phase
from marblerun.coordinator.store.anchors import (
    ClosingAnchor,
    EtcdPlace,
    FilePlace,
    TlsFiles,
    TpmPlace,
    encode_mark,
    open_anchor,
    parse_anchor,
)
from marblerun.coordinator.store.anchors.file import FileAnchor
from marblerun.coordinator.store.lineage import Mark
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import MarbleRunError, Misconfigured, Unavailable, Untrusted

ONE, TWO, THREE = (Mark(number, bytes([number]) * 32) for number in (1, 2, 3))


# -- the setting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("file:/other/volume/anchor", FilePlace(Path("/other/volume/anchor"))),
        ("tpm:0x01500100", TpmPlace(0x01500100)),
        ("tpm:0x1500100?tcti=swtpm:host=a,port=1", TpmPlace(0x01500100, "swtpm:host=a,port=1")),
        ("etcd:https://a:2379/k", EtcdPlace(("https://a:2379",), "k")),
        ("etcd:https://a.b:1,https://[::1]/x/y", EtcdPlace(("https://a.b:1", "https://[::1]"), "x/y")),
        ("etcd:http://127.0.0.1:2379/k", EtcdPlace(("http://127.0.0.1:2379",), "k")),
        ("etcd:http://[::1]:2379/k", EtcdPlace(("http://[::1]:2379",), "k")),
    ],
)
def test_the_setting_names_a_place(text: str, place: object) -> None:
    assert parse_anchor(text) == place


@pytest.mark.parametrize(
    "text",
    [
        *(
            "/a/path",
            "file:",
            "nfs:/x",
            "tpm:",
            "tpm:1",
            "tpm:0x81000000",
            "tpm:0x01500100?pcr=1",
            "tpm:0x01500100?tcti=",
        ),
        *("etcd:", "etcd:https://a:2379", "etcd:https://a:2379/", "etcd:http://a:2379/k", "etcd:http://10.0.0.1/k"),
        *(
            "etcd:https://a:99999/k",
            "etcd:https://a/k?x=y",
            "etcd:https://u:p@a/k",
            "etcd:" + "https://a," * 9 + "https://a/k",
        ),
        *("etcd:http://127.0.0.1.evil.org/k", "etcd:https://a/k k", "etcd:ftp://a/k"),
    ],
)
def test_a_setting_that_names_none_is_refused(text: str) -> None:
    with pytest.raises(Misconfigured):
        parse_anchor(text)


def test_the_variables_become_a_place_and_the_old_name_is_refused(tmp_path: Path) -> None:
    """Without effect it would leave a Coordinator that does not notice going back."""
    settings = settings_from_environment(
        {"EDG_COORDINATOR_ANCHOR": "file:/a", "EDG_COORDINATOR_ANCHOR_CA_FILE": "/c"}, tmp_path
    )
    assert (settings.anchor, settings.anchor_tls, settings.warnings) == (
        FilePlace(Path("/a")),
        TlsFiles(Path("/c")),
        (),
    )
    assert settings_from_environment({}, tmp_path).anchor is None
    with pytest.raises(Misconfigured, match="file:PATH"):
        settings_from_environment({"EDG_COORDINATOR_ANCHOR_FILE": "/a"}, tmp_path)


def test_a_file_place_opens_a_file_anchor(tmp_path: Path) -> None:
    anchor = open_anchor(FilePlace(tmp_path / "a"), TlsFiles())
    anchor.advance(ONE)
    assert FileAnchor(tmp_path / "a").load() == ONE


def test_tls_files_that_cannot_be_used_are_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("x")
    for files in (TlsFiles(ca=tmp_path / "bad.pem"), TlsFiles(certificate=tmp_path / "missing")):
        with pytest.raises(Misconfigured, match="TLS files"):
            open_anchor(EtcdPlace(("https://a",), "k"), files)


def test_an_anchor_that_holds_connections_can_be_closed_and_then_asks_nobody() -> None:
    anchor = open_anchor(EtcdPlace(("http://127.0.0.1:9",), "k"), TlsFiles())
    assert isinstance(anchor, ClosingAnchor)
    anchor.close()
    with pytest.raises(RuntimeError, match="closed"):
        anchor.load()


# -- between state and anchor ------------------------------------------------------------------------------------


class Forgetful(MemoryAnchor):
    """Takes a mark and loses the answer, or loses both, or has no answer at all."""

    answer_lost = down = unwritable = False

    def load(self) -> Mark | None:
        if self.down:
            raise Unavailable("the anchor is gone")
        return super().load()

    def advance(self, mark: Mark) -> None:
        if self.down or self.unwritable:
            raise Unavailable("the anchor is gone")
        super().advance(mark)
        if self.answer_lost:
            raise Unavailable("the answer was lost")


def test_a_mark_whose_answer_was_lost_is_what_the_next_state_builds_on() -> None:
    """Otherwise a crash before the next mark would look like another history, and somebody would have to recover."""
    store, anchor = History(), Forgetful()
    world = Anchored(store=store, anchor=anchor)

    async def lose_and_go_on(coordinator: Coordinator) -> None:
        await deploy(coordinator)
        anchor.answer_lost = True
        with pytest.raises(MarbleRunError, match="answer was lost"):
            await activate(coordinator)
        assert coordinator.state.activations["m"] == 2
        anchor.answer_lost, anchor.unwritable = False, True
        with pytest.raises(MarbleRunError, match="anchor is gone"):
            await activate(coordinator)  # stored on top of the one that the anchor took, and not marked

    run(world, lose_and_go_on)
    anchor.unwritable = False
    assert run(world, phase) is Phase.ACCEPTING_MARBLES


def test_while_the_anchor_is_away_the_directory_moves_once_and_memory_not_at_all() -> None:
    store, anchor = History(), Forgetful()
    world = Anchored(store=store, anchor=anchor)

    async def without(coordinator: Coordinator) -> None:
        await deploy(coordinator)
        anchor.down, saved = True, len(store.all)
        for _ in range(4):
            with pytest.raises(MarbleRunError, match="anchor is gone"):
                await activate(coordinator)
        assert (len(store.all), coordinator.state.activations["m"]) == (saved + 1, 2)
        anchor.down = False
        await activate(coordinator)
        assert coordinator.state.activations["m"] == 3

    run(world, without)
    assert run(world, phase) is Phase.ACCEPTING_MARBLES


def test_two_crashes_between_state_and_anchor_need_nobody_either() -> None:
    store, anchor = History(), Forgetful()
    world = Anchored(store=store, anchor=anchor)

    async def fail(coordinator: Coordinator) -> None:
        await deploy(coordinator)
        anchor.unwritable = True
        with pytest.raises(MarbleRunError):
            await activate(coordinator)

    run(world, fail)
    for _ in range(2):
        with pytest.raises(Unavailable):
            run(world, phase)
    anchor.unwritable = False
    assert run(world, phase) is Phase.ACCEPTING_MARBLES


def test_an_anchor_that_somebody_else_moved_is_not_moved_on() -> None:
    store, anchor = History(), Forgetful()

    async def overtaken(coordinator: Coordinator) -> None:
        await deploy(coordinator)
        anchor.unwritable = True
        with pytest.raises(MarbleRunError):
            await activate(coordinator)
        anchor.unwritable, anchor.mark, saved = False, Mark(99, b"x" * 32), len(store.all)
        for _ in range(2):
            with pytest.raises(MarbleRunError, match="another one may use"):
                await activate(coordinator)
        assert (anchor.mark.sequence, len(store.all)) == (99, saved)

    run(Anchored(store=store, anchor=anchor), overtaken)


# -- etcd --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as one:
        yield one


def place(server: Etcd, key: str) -> EtcdPlace:
    found = parse_anchor(f"etcd:{server.url}/{key}")
    assert isinstance(found, EtcdPlace)
    return found


def anchor_of(server: Etcd, key: str, tls: TlsFiles | None = None) -> Any:
    return closed_in_the_end(open_anchor(place(server, key), tls or TlsFiles()))


_OPEN: list[Any] = []


def closed_in_the_end(anchor: Any) -> Any:
    """The anchor, whose connections are not left to the garbage collector."""
    _OPEN.append(anchor)
    return anchor


@pytest.fixture(autouse=True)
def _closing() -> Iterator[None]:
    yield
    while _OPEN:
        _OPEN.pop()._http.close()


def put(server: Etcd, key: str, value: bytes) -> None:
    body = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}
    httpx.post(f"{server.url}/v3/kv/put", json=body, trust_env=False).raise_for_status()


def remove(server: Etcd, key: str) -> None:
    body = {"key": base64.b64encode(key.encode()).decode()}
    httpx.post(f"{server.url}/v3/kv/deleterange", json=body, trust_env=False).raise_for_status()


@needs_etcd
def test_etcd_remembers_and_only_whoever_saw_the_latest_mark_moves_it(server: Etcd) -> None:
    one, other = anchor_of(server, "dir/cas"), anchor_of(server, "dir/cas")
    assert (one.load(), other.load()) == (None, None)
    one.advance(ONE)
    with pytest.raises(Untrusted, match="number 1 by somebody else") as refused:
        other.advance(TWO)
    assert (refused.value.step, refused.value.reason) == ("anchor", "overtaken")
    one.advance(TWO)
    with pytest.raises(Untrusted):
        other.advance(ONE)
    assert anchor_of(server, "dir/cas").load() == TWO
    other.load()
    other.advance(THREE)
    with pytest.raises(Untrusted):
        one.advance(Mark(4, bytes(32)))
    one.advance(THREE)  # this very mark is there: an answer that was lost on the way
    one.advance(Mark(4, bytes(32)))


@needs_etcd
def test_a_removed_key_is_not_made_anew_behind_a_running_coordinator(server: Etcd) -> None:
    anchor = anchor_of(server, "removed")
    anchor.advance(ONE)
    remove(server, "removed")
    with pytest.raises(Untrusted, match="was removed"):
        anchor.advance(TWO)
    assert anchor_of(server, "removed").load() is None


@needs_etcd
@pytest.mark.parametrize("value", [b"", b"x", b"1 ab\n", encode_mark(ONE).encode()[:-1], b"\xff" * 40, b"1" * 40000])
def test_a_value_that_was_tampered_with_stops_the_start_and_the_next_commit(server: Etcd, value: bytes) -> None:
    put(server, "damaged", value)
    with pytest.raises(Misconfigured, match="damaged"):
        run(Anchored(anchor=anchor_of(server, "damaged")), phase)
    put(server, "damaged", encode_mark(ONE).encode())
    anchor = anchor_of(server, "damaged")
    assert anchor.load() == ONE
    put(server, "damaged", value)
    with pytest.raises(Misconfigured, match="damaged"):
        anchor.advance(TWO)
    put(server, "damaged", b"1" * 200000)
    with pytest.raises(Unavailable, match="too long"):
        anchor.load()


@needs_etcd
def test_an_older_directory_is_noticed_by_etcd_and_the_latest_one_is_not(server: Etcd) -> None:
    store = History()
    run(Anchored(store=store, anchor=anchor_of(server, "older")), deploy)
    turned_back = Anchored(store=MemoryStore(store.all[0]), anchor=anchor_of(server, "older"))
    assert "OLDER than the latest one" in run(turned_back, _status)
    latest = Anchored(store=MemoryStore(store.all[-1]), anchor=anchor_of(server, "older"))
    assert run(latest, phase) is Phase.ACCEPTING_MARBLES


@needs_etcd
def test_an_old_coordinator_that_comes_back_cannot_go_on(server: Etcd) -> None:
    """Two processes on copies of one directory: the second one's start moves the mark, and the first one is out."""
    store = History()
    first = Anchored(store=store, anchor=anchor_of(server, "two"))

    async def be_overtaken(coordinator: Coordinator) -> None:
        await deploy(coordinator)
        copy = Anchored(store=MemoryStore(store.all[-1]), anchor=anchor_of(server, "two")).coordinator()
        await copy.start()
        assert copy.state.phase is Phase.ACCEPTING_MARBLES
        for _ in range(2):
            with pytest.raises(MarbleRunError, match="anchor"):
                await activate(coordinator)
        await activate(copy)
        await copy.stop()
        assert (coordinator.state.activations["m"], copy.state.activations["m"]) == (2, 3)

    run(first, be_overtaken)
    assert "OLDER" in run(first, _status)


@needs_etcd
def test_a_coordinator_goes_on_when_etcd_does(tmp_path: Path) -> None:
    """Stopped in the middle and started again with its data; also a start without it fails and says so."""
    store = History()
    with etcd(tmp_path / "etcd") as server:
        world = Anchored(store=store, anchor=anchor_of(server, "k"))

        async def without_it(coordinator: Coordinator) -> None:
            await deploy(coordinator)
            server.stop()
            for _ in range(2):
                with pytest.raises(MarbleRunError, match="cannot be reached"):
                    await activate(coordinator)
            assert coordinator.state.activations["m"] == 2
            server.start()
            await activate(coordinator)
            assert coordinator.state.activations["m"] == 3

        run(world, without_it)
        server.stop()
        with pytest.raises(Unavailable, match="cannot be reached"):
            run(world, phase)
        server.start()
        assert run(world, phase) is Phase.ACCEPTING_MARBLES


@needs_etcd
def test_an_etcd_that_does_not_answer_costs_a_bounded_time_and_the_next_member_is_asked(
    tmp_path: Path, server: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "marblerun.coordinator.store.anchors.etcd.ANSWER_SECONDS", 2.0
    )  # the other one writes to a disk
    with etcd(tmp_path / "etcd") as hanging:
        anchor_of(server, "next").advance(ONE)
        alone = anchor_of(hanging, "next")
        both = closed_in_the_end(open_anchor(EtcdPlace((hanging.url, server.url), "next"), TlsFiles()))
        assert hanging.process is not None
        hanging.process.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable, match="cannot be reached"):
            alone.load()
        assert both.load() == ONE
        both.advance(TWO)
        hanging.process.send_signal(signal.SIGCONT)


def mint(folder: Path, name: str, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None) -> Any:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(issuer is None, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer[1] if issuer else key).public_key()), False
        )
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / f"{name}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, key


@needs_etcd
def test_etcd_with_tls_on_both_sides_and_nothing_less(tmp_path: Path) -> None:
    authority = mint(tmp_path, "ca", None)
    for name in ("server", "client"):
        mint(tmp_path, name, authority)
    mint(tmp_path, "stranger", None)
    options = ("--cert-file", "server.pem", "--key-file", "server.key", "--trusted-ca-file", "ca.pem")
    paths = [str(tmp_path / text) if "." in text else text for text in options]
    good = TlsFiles(tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key")
    with etcd(tmp_path / "etcd", "https", *paths, "--client-cert-auth") as server:
        anchor_of(server, "tls", good).advance(ONE)
        assert anchor_of(server, "tls", good).load() == ONE
        for bad in (
            TlsFiles(good.ca),
            TlsFiles(None, good.certificate, good.key),
            TlsFiles(good.ca, tmp_path / "stranger.pem", tmp_path / "stranger.key"),
        ):
            with pytest.raises(Unavailable):
                anchor_of(server, "tls", bad).load()


class Answering(httpx.BaseTransport):
    """A server that answers anything at all."""

    def __init__(self, status: int, content: bytes) -> None:
        self.status, self.content = status, content

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self.status, content=self.content)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        *((200, b""), (200, b"null"), (200, b"[]"), (200, b"[" * 60000), (200, b"\xff"), (503, b"{}"), (301, b"{}")),
        (400, json.dumps({"message": "etcdserver: no space"}).encode()),
        *((200, b"{}"), (200, b'{"header": 1}'), (200, b'{"header": {}, "responses": 3}')),
        *((200, b'{"header": {}, "kvs": [%s]}' % pairs) for pairs in (b"1", b'{"value": 7}', b'{"value": "%"}')),
        *((200, b'{"header": {}, "kvs": %s}' % pairs) for pairs in (b"1", b'{"a": 1}', b'"x"')),
    ],
)
def test_an_answer_that_is_none_is_not_taken_for_an_empty_memory(status: int, content: bytes) -> None:
    anchor = anchor_of(Etcd(Path(), port=1), "k")
    anchor._http = httpx.Client(transport=Answering(status, content))
    with pytest.raises(Unavailable):
        anchor.advance(ONE)
