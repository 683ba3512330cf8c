"""Recovery through the client API: a Coordinator loses its key, and its parties bring the state back."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from tests.coordinator.manifests import encode, integration, many
from tests.coordinator.parties import OAEP, Share, manifest, names, share_of
from tests.coordinator.people import Answer, ask, office, person, recovery_pem
from tests.coordinator.running import Running, World, running
from tests.coordinator.states import UUID_1, applicant

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.issue import EvidenceIssuer
from marblerun.attestation.model import Origin
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.coordinator.commands.activate import Activated, ActivationRefused
from marblerun.coordinator.entropy import SystemEntropy
from marblerun.coordinator.recovering import EPHEMERAL_KEY_BITS, MAX_WAITING, CannotDecrypt
from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.platform import EnclaveSealer, SimulatedKeys
from marblerun.coordinator.service import Coordinator, Ports
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.entries import encode_state
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import Unavailable
from marblerun.secrets.box import parse_sealed_data


class OneRsaKey(SystemEntropy):
    """The ephemeral key is made once for all tests of this file: 4096 bits take a second."""

    made: rsa.RSAPrivateKey | None = None
    lock = threading.Lock()

    def rsa_key(self, bits: int) -> rsa.RSAPrivateKey:
        with OneRsaKey.lock:
            if bits != EPHEMERAL_KEY_BITS:
                return super().rsa_key(bits)
            if OneRsaKey.made is None:
                OneRsaKey.made = super().rsa_key(bits)
            return OneRsaKey.made


@dataclass
class Place(World):
    """A world whose RSA keys cost nothing."""

    entropy: SystemEntropy = field(default_factory=OneRsaKey)

    def ports(self) -> Ports:
        return replace(super().ports(), entropy=self.entropy)


@pytest.fixture
def place(platform: SimulatedPlatform) -> Place:
    return Place(platform=platform)


def stored(world: World) -> Sealed:
    sealed = world.store.load()
    assert sealed is not None
    return sealed


def lose_key(world: World, *, cut_list: bool = False) -> Sealed:
    """The machine is another one now; with ``cut_list`` the list of secrets is gone too (E7)."""
    sealed = stored(world)
    data = sealed.data
    if cut_list:
        data = bytes(4) + data[4 + int.from_bytes(data[:4], "little") :]
    world.store = MemoryStore(Sealed(data, ()))
    return Sealed(data, ())


def set_up(world: World, document: bytes) -> tuple[Share, ...]:
    """Sets the manifest over the API; what the parties hold afterwards."""
    with running(world) as up:
        answer = ask(up.client, "POST", "/api/v2/manifest", {"manifest": base64.b64encode(document).decode()})
        assert answer.status == 200, answer.message
        return shares_of(answer.data["RecoverySecrets"])


def shares_of(secrets: dict[str, str]) -> tuple[Share, ...]:
    return tuple(share_of(name, base64.b64decode(secrets[name])) for name in sorted(secrets))


def send(up: Running, secret: bytes, signature: bytes) -> Answer:
    body = {"recoverySecret": b64(secret), "recoverySecretSignature": b64(signature)}
    return ask(up.client, "POST", "/api/v2/recover", body)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def give(up: Running, *shares: Share) -> list[int]:
    """The remaining counts."""
    answers = [send(up, share.secret, share.signature) for share in shares]
    assert [answer.status for answer in answers] == [200] * len(answers), [answer.message for answer in answers]
    return [answer.data["remaining"] for answer in answers]


def give_encrypted(up: Running, *shares: Share) -> list[int]:
    answer = ask(up.client, "GET", "/api/v2/recover/public-key")
    assert answer.data["algorithm"] == "RSA"
    key = load_der_public_key(base64.b64decode(answer.data["ephemeralPublicKey"]))
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 4096
    return give(up, *(replace(share, secret=key.encrypt(share.secret, OAEP)) for share in shares))


def code(up: Running) -> int:
    status: int = ask(up.client, "GET", "/api/v2/status").data["code"]
    return status


def activate(up: Running, marble: str, uuid: str = UUID_1) -> Activated:
    identity = up.world.identity
    assert up.world.platform is not None
    quote = up.world.platform.quote_as(identity, report_data_for(applicant().certificate))
    return up.call(up.coordinator.activate(applicant().request(marble, uuid, quote), applicant().certificate))


def entries(up: Running) -> dict[str, bytes]:
    """The state without what a recovery adds to it."""
    found = encode_state(up.coordinator.state)
    del found["stateProvenance"]
    log = found["updateLog"].splitlines(keepends=True)
    return {**found, "updateLog": b"".join(line for line in log if b"state recovered" not in line)}


# -- the way through ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ProductKey", "UniqueKey", ""])
@pytest.mark.parametrize("encrypted", [False, True])
def test_c6_i5_r8_recovery_brings_everything_back_and_it_stays(place: Place, mode: str, encrypted: bool) -> None:
    """C6, I5, R8, E7: state 1 to 3 in every seal mode; certificates as before; sealed for here; twice in a row."""
    (share,) = set_up(place, manifest(1, SealMode=mode))
    with running(place) as up:
        before, root = entries(up), up.coordinator.state.authority.root_der
    for _ in range(2):
        lost = lose_key(place)
        with running(place) as up:
            assert code(up) == 1
            assert up.coordinator.state.authority.root_der != root
            assert stored(place) == lost
            assert (give_encrypted if encrypted else give)(up, share) == [0]
            assert code(up) == 3
            assert entries(up) == before
            own = up.call(up.coordinator.own_evidence(b""))
            assert own.chain_pem.encode() == up.coordinator.state.authority.chain_pem.encode()
            assert up.coordinator.state.authority.root_der == root
        with running(place) as up:
            assert code(up) == 3
            assert entries(up) == before


def test_the_client_listener_shows_the_recovered_identity_at_once(place: Place) -> None:
    """As after an update: new connections see the real root."""
    (share,) = set_up(place, manifest(1))
    lose_key(place)
    with running(place) as up:
        throw_away = ssl.get_server_certificate(up.client)
        assert give(up, share) == [0]
        assert ssl.get_server_certificate(up.client) != throw_away
        root = up.coordinator.state.authority.root_pem.decode()
        assert ssl.get_server_certificate(up.client).split() == root.split()


@pytest.mark.parametrize("encrypted", [False, True])
def test_i11_two_parties(place: Place, encrypted: bool) -> None:
    """I11: remaining 1, then 0; state 1 after the first."""
    shares = set_up(place, manifest(2))
    assert len(parse_sealed_data(stored(place).data).recovery_data) == 145
    lose_key(place)
    with running(place) as up:
        offer = give_encrypted if encrypted else give
        assert offer(up, shares[1]) == [1]
        assert code(up) == 1
        assert offer(up, shares[0]) == [0]
        assert code(up) == 3


@pytest.mark.parametrize("encrypted", [False, True])
def test_i12_shamir_two_of_three(place: Place, encrypted: bool) -> None:
    """I12: remaining 2 (the most that may be needed), then 0."""
    shares = set_up(place, manifest(3, 2))
    lose_key(place)
    with running(place) as up:
        assert (give_encrypted if encrypted else give)(up, shares[2], shares[0]) == [2, 0]
        assert code(up) == 3


def is_held(root: object, secret: bytes) -> bool:
    """Whether a byte string with the secret inside can be reached from ``root``; modules and types are not entered."""
    seen, waiting = set(), [root]
    while waiting:
        one = waiting.pop()
        if isinstance(one, bytes | bytearray) and secret in one:
            return True
        if id(one) not in seen and not isinstance(one, ModuleType | type):
            seen.add(id(one))
            waiting.extend(gc.get_referents(one))
    return False


@pytest.mark.parametrize(("count", "threshold"), [(2, 0), (3, 2)])
def test_the_coordinator_holds_no_share_after_its_use_nor_after_a_recovery_that_failed(
    place: Place, count: int, threshold: int
) -> None:
    """Python cannot overwrite a byte string; what it can is to let go of every one of them."""
    shares = set_up(place, manifest(count, threshold))[:2]
    lose_key(place)
    with running(place) as up:
        give(up, shares[0])
        assert is_held(up.coordinator, shares[0].secret)
        assert send(up, shares[1].secret, b"not a signature").status == 500
        assert not any(is_held(up.coordinator, share.secret) for share in shares)
        assert give(up, *shares)[-1] == 0
        assert not any(is_held(up.coordinator, share.secret) for share in shares)


@pytest.mark.parametrize(("count", "threshold"), [(1, 0), (2, 0), (3, 2)])
def test_e7_e16_with_a_lost_list_of_secrets(place: Place, count: int, threshold: int) -> None:
    """E7, E16, R5: what is written afterwards has recovery data again, and recovers once more."""
    shares = set_up(place, manifest(count, threshold))[: threshold or count]
    for _ in range(2):
        lose_key(place, cut_list=True)
        with running(place) as up:
            assert give(up, *shares) == [1] * (len(shares) - 1) + [0]
            assert code(up) == 3
        assert parse_sealed_data(stored(place).data).recovery_data != b""
        lose_key(place)
        with running(place) as up:
            assert give(up, *shares)[-1] == 0


def test_e8_e9_marbles_and_a_pending_update_wait_for_the_end_of_the_recovery(place: Place) -> None:
    """E8, E9: refused in recovery mode; afterwards secrets, updates and the pending update are as they were."""
    document = office({"alice": ("updater", "frontend"), "bob": ("updaterToo",)})
    document["RecoveryKeys"] = {"party0": recovery_pem("party0")}
    (share,) = set_up(place, encode(document))
    with running(place) as up:
        body = {"manifest": b64(encode({**document, "Secrets": {**document["Secrets"], "new": {"Type": "plain",
                "UserDefined": True}}}))}  # fmt: skip
        answer = ask(up.client, "POST", "/api/v2/update", body, by=person("alice"))
        assert answer.data["missingUsers"] == ["bob"]
        first = activate(up, "front")
        before = entries(up)
    lose_key(place)
    with running(place) as up:
        with pytest.raises(ActivationRefused, match="recovery"):
            activate(up, "front")
        assert ask(up.client, "GET", "/api/v2/secrets?s=sharedKey", by=person("alice")).status != 200
        assert give(up, share) == [0]
        assert entries(up) == before
        assert ask(up.client, "GET", "/api/v2/update-manifest").data["missingUsers"] == ["bob"]
        again = activate(up, "front")
        for name in ("SHARED", "PRIVATE", "CERT", "MARBLE_PREDEFINED_ROOT_CA"):
            assert first.env[name] == again.env[name]
        assert ask(up.client, "POST", "/api/v2/update-manifest", body, by=person("bob")).data["missingUsers"] is None


def test_i13_e15_an_update_that_changes_recovery_keys_hands_out_new_secrets(place: Place) -> None:
    """I13, E15: from one key to two to Shamir to another one to none; old secrets are of no use."""
    document = office({"alice": ("updater",)})
    document["RecoveryKeys"] = {"party0": recovery_pem("party0")}
    shares = set_up(place, encode(document))
    for keys, threshold in ((2, 0), (3, 2), (1, 0), (2, 0)):
        document["RecoveryKeys"] = {name: recovery_pem(name) for name in names(keys)}
        document["Config"] = {"RecoveryThreshold": threshold}
        with running(place) as up:
            assert code(up) == 3
            body = {"manifest": b64(encode(document))}
            answer = ask(up.client, "POST", "/api/v2/update", body, by=person("alice"))
            assert answer.status == 200, answer.message
            new = shares_of(answer.data["recoverySecrets"])
        lose_key(place)
        with running(place) as up:
            old = [send(up, share.secret, share.signature) for share in shares]
            assert all(answer.status != 200 or answer.data["remaining"] for answer in old)
            assert give(up, *new[: threshold or keys])[-1] == 0
            assert parse_sealed_data(stored(place).data).recovery_data != b""
        shares = new
    document["RecoveryKeys"], document["Config"] = {}, {}
    with running(place) as up:
        body = {"manifest": b64(encode(document))}
        answer = ask(up.client, "POST", "/api/v2/update", body, by=person("alice"))
        assert answer.data["recoverySecrets"] == {}
    assert parse_sealed_data(stored(place).data).recovery_data == b"null"
    lose_key(place)
    with running(place) as up:
        assert [send(up, share.secret, share.signature).status for share in shares] == [200, 200]
        assert code(up) == 1


# -- what is refused ---------------------------------------------------------------------------------------------


def test_c5_r7_r9_outside_the_recovery_phase_there_is_no_recovery(place: Place) -> None:
    """C5, R7, R9: refused on a fresh Coordinator and after a manifest is set; an encrypted-looking secret gets 400."""
    with running(place) as up:
        for _ in range(2):
            for secret, status in ((bytes(16), 500), (bytes(32), 500), (bytes(33), 500), (bytes(512), 400), (b"", 400)):
                answer = send(up, secret, b"")
                assert (answer.status, "server is not in expected state" in answer.message) == (status, True)
                assert answer.envelope["status"] == ("fail" if status == 400 else "error")
            answer = ask(up.client, "GET", "/api/v2/recover/public-key")
            assert (answer.status, answer.envelope["status"]) == (500, "error")
            assert "server is not in expected state" in answer.message
            if up.coordinator.state.deployment is None:
                up.set_manifest(manifest(1))


def test_r7_what_cannot_be_decrypted_is_the_callers_mistake(place: Place) -> None:
    """R7: no key asked for yet, encrypted for another key, of a length that nothing has, broken JSON."""
    shares = set_up(place, manifest(2))
    lose_key(place)
    with running(place) as up:
        for secret in (bytes(512), bytes(12), b"", bytes(256)):
            answer = send(up, secret, b"")
            assert (answer.status, answer.envelope["status"]) == (400, "fail")
        assert give_encrypted(up, shares[0]) == [1]
        for secret in (bytes(512), b"\xff" * 512, bytes(511), bytes(12)):
            assert send(up, secret, b"").status == 400
        for body in (b"", b"{", b"[]", b'{"recoverySecret": "!"}', b'{"recoverySecret": "' + b"A" * 30000 + b'"}'):
            answer = ask(up.client, "POST", "/api/v2/recover", body)
            assert (answer.status, answer.envelope["status"]) == (400, "fail")
        assert give(up, shares[1]) == [0]


def test_version_1_has_no_recovery(place: Place) -> None:
    """Protocol, section 7.5."""
    with running(place) as up:
        answer = ask(up.client, "POST", "/recover", b"0123456789abcdef")
        assert (answer.status, answer.envelope["status"]) == (410, "error")
        assert "/api/v2/recover" in answer.message


def test_r9_after_a_failure_at_the_end_nothing_is_changed_and_all_start_again(place: Place) -> None:
    """R9: a wrong signature; the disk is untouched, the counts begin anew, the right round then succeeds."""
    first, second = set_up(place, manifest(2))
    lost = lose_key(place)
    with running(place) as up:
        root = up.coordinator.state.authority.root_der
        assert give(up, first) == [1]
        answer = send(up, second.secret, first.signature)
        assert (answer.status, answer.envelope["status"]) == (500, "error")
        assert "signature" in answer.message
        assert second.secret.hex()[:10] not in answer.message
        assert (code(up), stored(place)) == (1, lost)
        assert up.coordinator.state.authority.root_der == root
        assert give(up, second, first) == [1, 0]


@dataclass
class Faulty:
    """A platform and a disk that fail on demand."""

    failing: bool = False


class FaultyIssuer(EvidenceIssuer):
    name = "faulty"
    origin = Origin.SIMULATED

    def __init__(self, inner: EvidenceIssuer, fault: Faulty) -> None:
        self._inner, self._fault = inner, fault

    def issue(self, report_data: bytes) -> bytes:
        if self._fault.failing:
            raise Unavailable("the platform gives no quote")
        return self._inner.issue(report_data)


class FaultyStore(MemoryStore):
    failing = False

    def save(self, data: bytes, key: bytes) -> None:
        if self.failing:
            raise Unavailable("the disk is full")
        super().save(data, key)


class FaultySealer(EnclaveSealer):
    failing = False

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        if self.failing:
            raise Unavailable("the platform gives no sealing key")
        return super().seal(key, mode, additional)


@contextmanager
def lost_and_running(place: Place, store: MemoryStore | None = None) -> Iterator[tuple[Running, Share]]:
    (share,) = set_up(place, manifest(1))
    lost = lose_key(place)
    if store is not None:
        store.save(lost.data, b"")
        place.store = store
    with running(place) as up:
        yield up, share


def test_r9_a_failing_quote_fails_the_recovery_and_leaves_no_wrong_quote_behind(place: Place) -> None:
    """R9; protocol, 12.3 no. 42."""
    fault = Faulty()
    place.issuer = FaultyIssuer(place.ports().issuer, fault)
    with lost_and_running(place) as (up, share):
        before = up.call(up.coordinator.own_evidence(b"")).quote
        fault.failing = True
        assert send(up, share.secret, share.signature).status == 500
        assert code(up) == 1
        assert up.call(up.coordinator.own_evidence(b"")).quote == before
        fault.failing = False
        assert give(up, share) == [0]
        assert up.call(up.coordinator.own_evidence(b"")).quote != before


def test_a_full_disk_fails_the_recovery_and_the_next_one_succeeds(place: Place) -> None:
    store = FaultyStore()
    with lost_and_running(place, store) as (up, share):
        store.failing = True
        answer = send(up, share.secret, share.signature)
        assert (answer.status, "disk is full" in answer.message) == (500, True)
        assert code(up) == 1
        store.failing = False
        assert give(up, share) == [0]


def test_r8_a_key_that_cannot_be_sealed_does_not_fail_the_recovery(place: Place) -> None:
    """R8: the state is back and written; the next start needs recovery again."""
    assert place.platform is not None
    sealer = FaultySealer("faulty", SimulatedKeys(place.platform, place.identity), SystemEntropy())
    place.sealer = sealer
    with lost_and_running(place) as (up, share):
        sealer.failing = True
        answer = send(up, share.secret, share.signature)
        assert (answer.status, answer.data["remaining"]) == (200, 0)
        for told in (str(answer.data["message"]), up.coordinator.status().message):
            assert "the platform gives no sealing key" in told.partition("\n")[2]
        assert code(up) == 3
        assert stored(place).keys == (b"",)
    with running(place) as up:
        assert code(up) == 1
        sealer.failing = False
        answer = send(up, share.secret, share.signature)
        assert answer.data == {"remaining": 0, "message": "Recovery successful."}
        assert "\n" not in up.coordinator.status().message
    with running(place) as up:
        assert code(up) == 3


def test_many_at_once_are_answered_one_after_the_other_and_a_flood_is_turned_away(place: Place) -> None:
    """Protocol, 12.1 no. 4: whoever sends garbage takes one thread and bounded memory."""
    shares = set_up(place, manifest(5))
    lose_key(place)
    with running(place) as up:

        async def flood(coordinator: Coordinator) -> list[object]:
            calls = [coordinator.recover(number.to_bytes(32), b"") for number in range(100)]
            return list(await asyncio.gather(*calls, return_exceptions=True))

        answers = up.call(flood(up.coordinator))
        assert sum(isinstance(answer, Unavailable) for answer in answers) >= 80

        async def parties(coordinator: Coordinator) -> list[int]:
            progress = await asyncio.gather(*(coordinator.recover(s.secret, s.signature) for s in shares))
            return sorted(one.remaining for one in progress)

        assert up.call(parties(up.coordinator)) == [0, 1, 2, 3, 4]
        assert code(up) == 3


def test_a_flood_of_what_has_to_be_decrypted_is_turned_away_too(place: Place) -> None:
    """Each costs an operation with a private key of 4096 bits, and anybody may send it."""
    set_up(place, manifest(5))
    lose_key(place)
    with running(place) as up:

        async def flood(coordinator: Coordinator) -> list[object]:
            await coordinator.recovery_public_key()
            calls = [coordinator.recover(number.to_bytes(512), b"") for number in range(100)]
            return list(await asyncio.gather(*calls, return_exceptions=True))

        answers = up.call(flood(up.coordinator))
        assert sum(isinstance(answer, CannotDecrypt) for answer in answers) == MAX_WAITING
        assert sum(isinstance(answer, Unavailable) for answer in answers) == 100 - MAX_WAITING


def test_the_ephemeral_key_is_made_once_and_on_demand(place: Place) -> None:
    class Counting(OneRsaKey):
        calls = 0

        def rsa_key(self, bits: int) -> rsa.RSAPrivateKey:
            Counting.calls += 1
            if Counting.calls == 1:
                raise RuntimeError("no entropy")
            return super().rsa_key(bits)

    set_up(place, manifest(2))
    lose_key(place)
    place.entropy = Counting()
    with running(place) as up:
        assert Counting.calls == 0
        assert ask(up.client, "GET", "/api/v2/recover/public-key").status == 500

        async def several(coordinator: Coordinator) -> set[bytes]:
            return set(await asyncio.gather(*(coordinator.recovery_public_key() for _ in range(5))))

        assert len(up.call(several(up.coordinator))) == 1
        assert Counting.calls == 2


# -- starting over -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parties", [1, 2])
def test_i7_e10_e17_a_new_manifest_in_recovery_starts_over_and_the_old_state_is_kept(
    place: Place, parties: int
) -> None:
    """I7, E10, E17: a new deployment that survives a restart; former users are nobody; nothing is destroyed."""
    document = office({"admin": ("updater", "reader")})
    document["RecoveryKeys"] = {name: recovery_pem(name) for name in names(parties)}
    old_shares = set_up(place, encode(document))
    lost = lose_key(place)
    with running(place) as up:
        assert give(up, *old_shares[1:]) == [1] * (parties - 1)
        answer = ask(up.client, "POST", "/api/v2/manifest", {"manifest": b64(manifest(parties))})
        new_shares = shares_of(answer.data["RecoverySecrets"])
        assert code(up) == 3
        assert "unauthorized user" in ask(up.client, "GET", "/api/v2/secrets?s=sharedKey", by=person("admin")).message
        assert send(up, old_shares[0].secret, old_shares[0].signature).status == 500
        assert isinstance(place.store, MemoryStore)
        assert place.store.aside == [lost]
    with running(place) as up:
        assert code(up) == 3
    lose_key(place)
    with running(place) as up:
        assert give(up, *new_shares)[-1] == 0
    # The kept state is still recoverable by the old holders.
    place.store = MemoryStore(lost)
    with running(place) as up:
        assert give(up, *old_shares)[-1] == 0
        assert json.loads(up.coordinator.signed_manifest().manifest)["Users"]


def test_with_sealing_disabled_the_old_state_is_back_after_a_restart(place: Place) -> None:
    """Protocol, section 10.6."""
    (share,) = set_up(place, manifest(1))
    lost = lose_key(place)
    with running(place) as up:
        up.set_manifest(encode({**many(1), "Config": {"SealMode": "Disabled"}}))
        assert code(up) == 3
    assert stored(place) == lost
    with running(place) as up:
        assert code(up) == 1
        assert give(up, share) == [0]


def test_i6_e14_an_older_key_beside_a_newer_state_means_recovery(place: Place) -> None:
    """I6, E14: the key is bound to the state."""
    (share,) = set_up(place, manifest(1))
    older = stored(place)
    with running(place) as up:
        assert code(up) == 3
    newer = stored(place)
    assert newer.data != older.data
    place.store = MemoryStore(Sealed(newer.data, older.keys))
    with running(place) as up:
        assert code(up) == 1
        assert give(up, share) == [0]


def test_a_failed_manifest_in_recovery_leaves_the_recovery_as_it_was(place: Place) -> None:
    first, second = set_up(place, manifest(2))
    lost = lose_key(place)
    with running(place) as up:
        assert give(up, first) == [1]
        assert ask(up.client, "POST", "/api/v2/manifest", {"manifest": b64(b"{")}).status == 500
        assert stored(place) == lost
        assert give(up, second) == [0]


def test_what_waits_while_somebody_sets_a_manifest_is_told_so(place: Place) -> None:
    """A recovery and a new manifest at the same time: exactly one of them wins."""
    (share,) = set_up(place, manifest(1))
    lose_key(place)
    with running(place) as up:

        async def both(coordinator: Coordinator) -> list[object]:
            document = encode(integration())
            return list(
                await asyncio.gather(
                    coordinator.recover(share.secret, share.signature),
                    coordinator.set_manifest(document),
                    return_exceptions=True,
                )
            )

        results = up.call(both(up.coordinator))
        failed = [result for result in results if isinstance(result, Exception)]
        assert len(failed) == 1
        assert "server is not in expected state" in str(failed[0])
        assert code(up) == 3


def test_secrets_never_show_in_log_or_answer(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    first, second = set_up(place, manifest(2))
    lose_key(place)
    with running(place) as up:
        bodies = [
            send(up, first.secret, b"x").body,
            send(up, second.secret, b"x").body,
            send(up, first.secret, first.signature).body,
            send(up, bytes(31) + b"x", b"").body,
            send(up, second.secret, second.signature).body,
        ]
    logged = "".join(f"{record.getMessage()} {record.__dict__.get('fields')}" for record in caplog.records)
    for share in (first, second):
        for text in (share.secret.hex(), b64(share.secret), repr(share.secret)):
            assert text not in logged
            assert not any(text.encode() in body for body in bodies)
