"""Sealed KEKs in a ConfigMap of a real API server, with exactly the rights that are documented."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.coordinator.states import ENTROPY
from tests.forge.kubernetes import ROLE, Kube, Pod, needs_kube

from marblerun.coordinator.kubernetes.api import KubernetesApi
from marblerun.coordinator.kubernetes.kek_map import ConfigMapKeks
from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.kek import KekSealer
from marblerun.coordinator.seal.none import PlainSealer
from marblerun.errors import Unavailable

pytestmark = needs_kube

NAME = "marblerun-sealed-kek"
ONE, TWO = "0" * 32, "ab" * 16


@pytest.fixture
def api(pod: Pod) -> Iterator[KubernetesApi]:
    api = pod.api()
    yield api
    api.close()


def entries(pod: Pod) -> dict[str, bytes]:
    """As somebody else reads them."""
    found = pod.admin().config_map(NAME)
    assert found is not None
    return dict(found.data or {})


def test_k14_a_missing_map_and_a_missing_entry_are_nothing(pod: Pod, api: KubernetesApi) -> None:
    keks = ConfigMapKeks(api, NAME)
    assert keks.load(ONE) is None
    pod.admin().create_config_map(NAME, {})
    assert keks.load(ONE) is None
    pod.admin().patch_config_map(NAME, [{"op": "add", "path": "/binaryData", "value": {TWO: "AAAA"}}])
    assert keks.load(ONE) is None
    assert keks.load(TWO) == bytes(3)


def test_k14_the_map_is_created_if_there_is_none(pod: Pod, api: KubernetesApi) -> None:
    keks = ConfigMapKeks(api, NAME)
    keks.save(ONE, b"sealed")
    assert entries(pod) == {ONE: b"sealed"}
    assert keks.load(ONE) == b"sealed"


def test_k14_a_map_without_binary_data_gets_some_and_keeps_what_else_it_has(pod: Pod, api: KubernetesApi) -> None:
    pod.admin().create_config_map(NAME, {})
    pod.admin().patch_config_map(NAME, [{"op": "add", "path": "/data", "value": {"note": "hands off"}}])
    ConfigMapKeks(api, NAME).save(ONE, b"sealed")
    found = pod.admin().config_map(NAME)
    assert found is not None
    assert found.data == {ONE: b"sealed"}
    assert found.content["data"] == {"note": "hands off"}


def test_k14_other_machines_entries_stay_and_the_own_one_is_replaced(pod: Pod, api: KubernetesApi) -> None:
    keks = ConfigMapKeks(api, NAME)
    for entry, value in ((ONE, b"first"), (TWO, b"other"), (ONE, b"second")):
        keks.save(entry, value)
    assert entries(pod) == {ONE: b"second", TWO: b"other"}


@pytest.mark.parametrize("there", ["no map", "an empty map"])
def test_k14_machines_that_write_at_once_lose_nothing(pod: Pod, there: str) -> None:
    if there == "an empty map":
        pod.admin().create_config_map(NAME, {})
    names = [f"{number:032x}" for number in range(6)]
    barrier = threading.Barrier(len(names))
    failures: list[Exception] = []

    def write(name: str) -> None:
        api = pod.api()
        try:
            barrier.wait(60)
            ConfigMapKeks(api, NAME).save(name, name.encode())
        except Exception as error:
            failures.append(error)
        finally:
            api.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert entries(pod) == {name: name.encode() for name in names}


def test_k14_without_the_rights_the_reason_is_told_and_the_coordinator_goes_on(kube: Kube) -> None:
    without = kube.namespace([rule for rule in ROLE if "configmaps" not in rule["resources"]])
    api = without.api()
    keks = ConfigMapKeks(api, NAME)
    with pytest.raises(Unavailable, match="configmaps"):
        keks.load(ONE)
    with pytest.raises(Unavailable, match="configmaps"):
        keks.save(ONE, b"sealed")
    sealer = KekSealer(PlainSealer(), keks, ENTROPY)
    sealed = sealer.seal(bytes(32), SealMode.PRODUCT_KEY, b"")
    sealer.settled(SealMode.PRODUCT_KEY)
    assert sealer.unseal(sealed, b"") == bytes(32)
    api.close()


def test_k12_a_kek_kept_in_a_config_map_is_there_for_the_next_start(pod: Pod, api: KubernetesApi) -> None:
    first = KekSealer(PlainSealer(), ConfigMapKeks(api, NAME), ENTROPY)
    sealed = first.seal(bytes(32), SealMode.PRODUCT_KEY, b"a")
    first.settled(SealMode.PRODUCT_KEY)
    assert entries(pod) == {ONE: first.kek}
    second = KekSealer(PlainSealer(), ConfigMapKeks(api, NAME), ENTROPY)
    assert second.unseal(sealed, b"a") == bytes(32)
    assert second.kek == first.kek
