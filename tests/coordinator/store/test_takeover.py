"""A state directory of the reference is taken over by its own recovery secrets, and handed back."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.coordinator.parties import Share, estate, manifest, names, share_of
from tests.coordinator.people import recovery_key
from tests.coordinator.running import World
from tests.coordinator.states import UUID_1, applicant

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.client.recovery import sign_recovery_secret
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.state import Phase
from marblerun.coordinator.store.entries import encode_state
from marblerun.coordinator.store.file import FileStore

T = TypeVar("T")


# Section 10.1 once more, in as few words as possible: nothing here is shared with the code under test.
def written(key: bytes, recovery_data: bytes, entries: dict[str, bytes]) -> bytes:
    document = {name: base64.b64encode(value).decode() for name, value in sorted(entries.items())}
    plain = json.dumps(document, separators=(",", ":")).encode()
    return (
        len(recovery_data).to_bytes(4, "little")
        + recovery_data
        + bytes(12)
        + AESGCM(key).encrypt(bytes(12), plain, None)
    )


def read(key: bytes, data: bytes) -> tuple[bytes, dict[str, bytes]]:
    start = 4 + int.from_bytes(data[:4], "little")
    plain = AESGCM(key).decrypt(data[start : start + 12], data[start + 12 :], None)
    return data[4:start], {name: base64.b64decode(value) for name, value in json.loads(plain).items()}


def on(directory: Path, platform: SimulatedPlatform, scenario: Callable[[Coordinator], Coroutine[Any, Any, T]]) -> T:
    async def main(store: FileStore) -> T:
        coordinator = World(store=store, platform=platform).coordinator()
        await coordinator.start()
        try:
            return await scenario(coordinator)
        finally:
            await coordinator.stop()

    store = FileStore(directory)
    try:
        return asyncio.run(main(store))
    finally:
        store.close()


@pytest.mark.parametrize("key_size", [16, 32])
@pytest.mark.parametrize("old", [False, True])
def test_a_directory_of_the_reference_is_recovered_and_handed_back_unharmed(
    tmp_path: Path, platform: SimulatedPlatform, key_size: int, old: bool
) -> None:
    """Old releases: a 16-byte key, no root secret, no update log (protocol, sections 6.2 and 10.1)."""
    entries = encode_state(estate(1).state) | {"somethingNew": b"kept"}
    if old:
        del entries["rootSecret"], entries["updateLog"]
    key = b"0123456789abcdef" * (key_size // 16)
    (tmp_path / "sealed_data").write_bytes(written(key, b"null", entries))
    (tmp_path / "sealed_key").write_bytes(b"sealed by another machine, in a way that only it understands")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    async def recover(coordinator: Coordinator) -> None:
        assert coordinator.state.phase is Phase.RECOVERY
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
        assert (await coordinator.recover(key, sign_recovery_secret(recovery_key("party0"), key))).remaining == 0

    async def use(coordinator: Coordinator) -> None:
        assert coordinator.state.phase is Phase.ACCEPTING_MARBLES

    on(tmp_path, platform, recover)
    on(tmp_path, platform, use)
    recovery_data, back = read(key, (tmp_path / "sealed_data").read_bytes())
    assert recovery_data == b"null"
    assert b"state recovered" in back["updateLog"]
    added = {"stateSequence", "statePrevious", "stateProvenance", "updateLog"} | ({"rootSecret"} if old else set())
    assert {name: value for name, value in back.items() if name not in added} == {
        name: value for name, value in entries.items() if name not in added
    }
    assert (tmp_path / "sealed_data.old").exists()


@pytest.mark.parametrize(("count", "threshold"), [(1, 0), (2, 0), (3, 2)])
def test_what_we_wrote_opens_by_the_rules_with_what_the_parties_were_given(
    tmp_path: Path, platform: SimulatedPlatform, count: int, threshold: int
) -> None:
    async def deploy(coordinator: Coordinator) -> tuple[Share, ...]:
        secrets = await coordinator.set_manifest(manifest(count, threshold))
        return tuple(share_of(name, secrets[name]) for name in names(count))

    shares = on(tmp_path, platform, deploy)
    used = shares[: threshold or count]
    if threshold:  # two points of a line over GF(2^8), the slow way
        key = bytes(interpolated([(s.secret[-1], s.secret[at]) for s in used]) for at in range(32))
    else:
        key = bytes(32)
        for share in used:
            key = bytes(a ^ b for a, b in zip(key, share.secret, strict=True))
    _, entries = read(key, (tmp_path / "sealed_data").read_bytes())
    assert entries["manifest"] == manifest(count, threshold)
    assert entries["state"] == b"3"


def times(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a, b = (a << 1) ^ (0x11B if a & 0x80 else 0), b >> 1
    return product


def interpolated(points: list[tuple[int, int]]) -> int:
    """The value at 0 of the line through two points."""
    (x, y), (u, v) = points
    inverse = next(n for n in range(256) if times(n, x ^ u) == 1)
    slope = times(y ^ v, inverse)
    return y ^ times(slope, x)


def test_a_plain_key_of_the_reference_in_simulation_opens_without_recovery(tmp_path: Path) -> None:
    """Protocol, section 10.2, "noenclave"."""
    key = bytes(range(32))
    (tmp_path / "sealed_data").write_bytes(written(key, b"null", encode_state(estate(1).state)))
    (tmp_path / "sealed_key").write_bytes(key)

    async def activate(coordinator: Coordinator) -> Phase:
        await coordinator.activate(applicant().request("m", UUID_1), applicant().certificate)
        return coordinator.state.phase

    async def main() -> Phase:
        coordinator = World(store=store).coordinator()
        await coordinator.start()
        return await activate(coordinator)

    store = FileStore(tmp_path)
    assert asyncio.run(main()) is Phase.ACCEPTING_MARBLES
    store.close()
    assert (tmp_path / "sealed_key").read_bytes() == key
    assert read(key, (tmp_path / "sealed_data").read_bytes())[1]["activations:m"] == b"1"
