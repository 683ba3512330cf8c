"""The pin: one exact certificate, before the first request byte."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding
from tests.client.coordinators import Call, FakeCoordinator, Identity, mint, serving, success

from marblerun.client import UNVERIFIED, AsyncClient, Client, Credentials, PinnedRoot, Status
from marblerun.client.pinning import tls_context
from marblerun.errors import Malformed, NotFound, Unavailable, Untrusted


def _status(_call: Call) -> tuple[int, bytes]:
    return success({"code": 3, "message": "running"})


@pytest.fixture(scope="module")
def root() -> Identity:
    return mint("MarbleRun Coordinator")


@pytest.fixture(scope="module")
def fake(root: Identity) -> FakeCoordinator:
    return FakeCoordinator(root, mint("i", root), lambda _: b"", root, routes={"GET /api/v2/status": _status})


def _fresh(fake: FakeCoordinator, tls: Identity) -> FakeCoordinator:
    return replace(fake, tls=tls, calls=[], received=[], certificates_seen=[])


async def _status_async(endpoint: str, pin: bytes) -> Status:
    async with AsyncClient(endpoint, PinnedRoot(pin)) as client:
        return await client.status()


def test_the_pinned_certificate_is_accepted(fake: FakeCoordinator) -> None:
    with serving(_fresh(fake, fake.root)) as server:
        with Client(server.endpoint, PinnedRoot(fake.root.der)) as client:
            assert client.status() == Status(3, "running")
        assert asyncio.run(_status_async(server.endpoint, fake.root.der)) == Status(3, "running")


IMPOSTORS = ("a stranger", "a Marble that the root signed", "a Marble that the intermediate signed", "the intermediate")


@pytest.mark.parametrize("who", IMPOSTORS)
def test_nobody_else_gets_a_request_byte(fake: FakeCoordinator, who: str) -> None:
    """Also not those whose certificates chain to the pinned root, as every Marble's does."""
    impostor = {
        "a stranger": lambda: mint("MarbleRun Coordinator"),
        "a Marble that the root signed": lambda: mint("marble", fake.root, ca=False),
        "a Marble that the intermediate signed": lambda: mint("marble", fake.intermediate, ca=False),
        "the intermediate": lambda: fake.intermediate,
    }[who]()
    with serving(_fresh(fake, impostor)) as server:
        with Client(server.endpoint, PinnedRoot(fake.root.der)) as client, pytest.raises(Untrusted) as refusal:
            client.status()
        assert refusal.value.step == "tls-pin"
        with pytest.raises(Untrusted):
            asyncio.run(_status_async(server.endpoint, fake.root.der))
        assert server.received == []


def test_a_stranger_does_not_even_see_the_client_certificate(fake: FakeCoordinator) -> None:
    """OpenSSL checks the peer before the client answers the request for a certificate."""
    user = mint("alice").credentials
    with serving(_fresh(fake, mint("MarbleRun Coordinator"))) as server:
        client = Client(server.endpoint, PinnedRoot(fake.root.der), credentials=user)
        with client, pytest.raises(Untrusted):
            client.status()
        assert server.certificates_seen == []


def test_the_coordinator_sees_the_client_certificate(fake: FakeCoordinator) -> None:
    user = mint("alice")
    with serving(_fresh(fake, fake.root)) as server:
        with Client(server.endpoint, PinnedRoot(fake.root.der), credentials=user.credentials) as client:
            client.status()
        assert server.certificates_seen == [user.der]


def test_an_expired_pin_is_refused(fake: FakeCoordinator) -> None:
    from tests.client.coordinators import NOW

    old = mint("MarbleRun Coordinator", not_after=NOW)
    with serving(_fresh(fake, old)) as server, Client(server.endpoint, PinnedRoot(old.der)) as client:
        with pytest.raises(Untrusted):
            client.status()
        assert server.received == []


def test_unverified_talks_to_anybody(fake: FakeCoordinator) -> None:
    with serving(_fresh(fake, mint("x"))) as server, Client(server.endpoint, UNVERIFIED) as client:
        assert client.status() == Status(3, "running")


def test_tls_1_1_is_not_spoken() -> None:
    assert tls_context(PinnedRoot(mint("x").der)).minimum_version is ssl.TLSVersion.TLSv1_2
    assert tls_context(UNVERIFIED).minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_pin_that_is_no_certificate_is_malformed() -> None:
    with pytest.raises(Malformed):
        tls_context(PinnedRoot(b"garbage"))


def test_a_silent_port_is_unavailable_not_untrusted_and_the_error_says_what_to_look_at() -> None:
    client = Client("127.0.0.1:9", PinnedRoot(mint("x").der))
    with client, pytest.raises(Unavailable, match=r"is a Coordinator running.*EDG_COORDINATOR_CLIENT_ADDR"):
        client.status()


def test_credentials_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one, two = mint("one"), mint("two")
    (tmp_path / "c").write_bytes(one.pem)
    (tmp_path / "k").write_bytes(two.key_pem)
    with pytest.raises(Malformed, match=f"client key {tmp_path}/k: does not belong"):
        Credentials.load(tmp_path / "c", tmp_path / "k")
    with pytest.raises(Malformed, match=f"client certificate {tmp_path}/k: is not a PEM"):
        Credentials.load(tmp_path / "k", tmp_path / "k")
    with pytest.raises(NotFound, match=f"there is no file {tmp_path}/none"):
        Credentials.load(tmp_path / "c", tmp_path / "none")
    (tmp_path / "k").write_bytes(one.key_pem)
    assert Credentials.load(tmp_path / "c", tmp_path / "k") == one.credentials


def test_an_encrypted_key_is_an_error_and_not_a_prompt() -> None:
    one = mint("one")
    locked = one.key.private_bytes(
        Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    with pytest.raises(Malformed, match="encrypted"):
        tls_context(UNVERIFIED, Credentials(one.pem, locked))


def test_credentials_do_not_show_the_key() -> None:
    assert b"PRIVATE" not in repr(mint("one").credentials).encode()
