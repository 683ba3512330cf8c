"""Coordinators on different machines with one state in a real Kubernetes: how the key gets from one to the other."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.coordinator.manifests import many
from tests.coordinator.parties import manifest, names, share_of
from tests.coordinator.running import Running, World, new_platform, running
from tests.coordinator.states import ENTROPY
from tests.forge.kubernetes import ROLE, Pod, needs_kube
from tests.forge.machines import another_machine

from marblerun.attestation.issue import EvidenceIssuer, NoEvidenceIssuer
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.coordinator.kubernetes.api import EndpointSlice
from marblerun.coordinator.kubernetes.kek_map import ConfigMapKeks
from marblerun.coordinator.seal import MachineSealer
from marblerun.coordinator.seal.kek import KekSealer
from marblerun.coordinator.seal.none import PlainSealer
from marblerun.coordinator.seal.platform import EnclaveSealer, SimulatedKeys
from marblerun.coordinator.server.sharing.key_client import MAX_ADDRESSES, Address
from marblerun.coordinator.server.sharing.key_sharing import KeySharing, peers_of
from marblerun.coordinator.server.turns import Overload
from marblerun.coordinator.state import Phase
from marblerun.coordinator.store.kubernetes import SecretStore
from marblerun.errors import Misconfigured, Unavailable, Untrusted

pytestmark = needs_kube

SERVICE, KEK_MAP, STATE = "coordinator-key-api", "marblerun-sealed-kek", "marblerun-state"
LIMIT = 120.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that happens in other threads."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


@dataclass
class Cluster:
    """A namespace, and where its Coordinators serve the key as the Service's slices say."""

    pod: Pod
    served: dict[int, Address] = field(default_factory=dict)
    """By the port in the slices, where that really is: the API server takes no loopback addresses."""

    def publish(self, instance: Instance) -> None:
        """Put an instance into a slice of its own: the reference refuses more than one."""
        host, port = instance.sharing.address.rsplit(":", 1)
        self.served[int(port)] = (host, int(port))
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{self.pod.namespace}/endpointslices"
        labels = {"kubernetes.io/service-name": SERVICE}
        body = {
            "metadata": {"name": f"key-{port}", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.1.2.3"], "conditions": {"ready": True}}],
            "ports": [{"name": "key", "port": int(port)}],
        }
        self.pod.kube.ask("POST", slices, body)

    def entries(self) -> Sequence[str]:
        """The machines that keep a KEK."""
        found = self.pod.admin().config_map(KEK_MAP)
        return sorted(found.data or {}) if found is not None else ()


@dataclass
class Instance:
    """A Coordinator with its part in the key exchange."""

    up: Running
    sealer: KekSealer
    sharing: KeySharing
    failures: list[str]

    @property
    def phase(self) -> Phase:
        return self.up.coordinator.state.phase

    @property
    def root(self) -> bytes:
        return self.up.coordinator.state.authority.root_der

    def until_serving(self) -> None:
        until(lambda: bool(self.sharing.address), "the key is served")


@contextmanager
def instance(
    cluster: Cluster,
    machine: SimulatedPlatform | None,
    identity: EnclaveIdentity | None = None,
    *,
    peers: bool = True,
    pod: Pod | None = None,
    issuer: EvidenceIssuer | None = None,
) -> Iterator[Instance]:
    """One that runs on a simulated machine; without one, in simulation as the reference's."""
    who = identity or EnclaveIdentity()
    api = (pod or cluster.pod).api()
    inner: MachineSealer = PlainSealer()
    if machine is not None:
        inner = EnclaveSealer("simulated platform", SimulatedKeys(machine, who), ENTROPY)
    sealer = KekSealer(inner, ConfigMapKeks(api, KEK_MAP), ENTROPY)
    world = World(store=SecretStore(api, STATE), platform=machine, identity=who, sealer=sealer, issuer=issuer)  # type: ignore[arg-type]
    listed = peers_of(api, SERVICE)

    def reachable() -> Sequence[Address]:
        return [cluster.served[port] for _, port in listed() if port in cluster.served] if peers else []

    overload = Overload()
    failures: list[str] = []
    try:
        with running(world) as up:

            async def start() -> KeySharing:
                sharing = KeySharing(
                    up.coordinator, world.ports(), sealer, reachable, "127.0.0.1:0", overload, pause=0.05
                )
                sharing.start(lambda: failures.append("failed"))
                return sharing

            sharing = up.call(start())
            try:
                yield Instance(up, sealer, sharing, failures)
            finally:
                if not failures:
                    up.call(sharing.stop())
    finally:
        overload.close()
        api.close()


@pytest.fixture
def cluster(pod: Pod) -> Cluster:
    return Cluster(pod)


@pytest.fixture
def machines(platform: SimulatedPlatform, tmp_path: Path) -> Callable[[], SimulatedPlatform]:
    """Machines of one make, a new one with every call."""
    count = iter(range(1000))
    return lambda: another_machine(platform, tmp_path / f"machine-{next(count)}")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    return new_platform(tmp_path_factory.mktemp("simulated") / "platform")


def deployment(**config: Any) -> bytes:
    document = many(10)
    document["Config"] = config
    return json.dumps(document).encode()


def test_d1_an_instance_on_another_machine_gets_the_key_from_the_first_and_then_restarts_alone(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    one, two = machines(), machines()
    with instance(cluster, one) as first:
        first.up.set_manifest(deployment())
        first.until_serving()
        cluster.publish(first)
        assert len(cluster.entries()) == 1
        with instance(cluster, two) as second:
            second.until_serving()
            until(lambda: second.phase is Phase.ACCEPTING_MARBLES, "the state is loaded")
            assert second.root == first.root
            assert second.sealer.kek == first.sealer.kek
            until(lambda: len(cluster.entries()) == 2, "the key is kept for the second machine, too")
        root = first.root
    with instance(cluster, two, peers=False) as again:
        assert (again.phase, again.root) == (Phase.ACCEPTING_MARBLES, root)
        assert again.failures == []


def test_d1_one_recovered_instance_brings_all_others_up(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    with instance(cluster, machines()) as gone:
        reply = gone.up.call(gone.up.coordinator.set_manifest(manifest(1)))
        root = gone.root
    (party,) = names(1)
    share = share_of(party, reply[party])
    with ExitStack() as stack:
        lost = [stack.enter_context(instance(cluster, machines())) for _ in range(3)]
        assert {one.phase for one in lost} == {Phase.RECOVERY}
        assert {one.sealer.kek for one in lost} == {None}
        recovered, *others = lost
        recovered.up.call(recovered.up.coordinator.recover(share.secret, share.signature))
        recovered.until_serving()
        cluster.publish(recovered)
        for one in others:
            one.until_serving()
            until(lambda one=one: one.phase is Phase.ACCEPTING_MARBLES, "the state is loaded")  # type: ignore[misc]
            assert one.root == root
            assert one.sealer.kek == recovered.sealer.kek
        until(lambda: len(cluster.entries()) == 4, "every machine keeps the key")


def test_a_recovery_beside_a_running_instance_makes_another_key_and_both_end_with_one(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    """The running one goes on with the data key, asks for the other key, and so its machine can restart alone."""
    one, two = machines(), machines()
    with instance(cluster, two) as second, instance(cluster, one) as first:
        (party,) = names(1)
        reply = first.up.call(first.up.coordinator.set_manifest(manifest(1)))
        until(lambda: second.phase is Phase.RECOVERY, "the second cannot open it")
        share = share_of(party, reply[party])
        second.up.call(second.up.coordinator.recover(share.secret, share.signature))
        second.until_serving()
        cluster.publish(second)
        first.up.call(first.up.coordinator.catch_up())
        assert (first.phase, first.root) == (Phase.ACCEPTING_MARBLES, second.root)
        until(lambda: first.sealer.kek == second.sealer.kek, "the running one has the other's key")
        until(lambda: first.sealer.is_kept_as(first.sharing._mode()), "and keeps it")
    with instance(cluster, one, peers=False) as alone:
        assert alone.phase is Phase.ACCEPTING_MARBLES


def test_e18_a_state_that_was_copied_to_a_fresh_namespace_can_be_recovered_there(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    machine = machines()
    with instance(cluster, machine) as first:
        reply = first.up.call(first.up.coordinator.set_manifest(manifest(1)))
        root = first.root
    (party,) = names(1)
    share = share_of(party, reply[party])
    fresh = Cluster(cluster.pod.kube.namespace())
    secret = cluster.pod.admin().secret(STATE)
    assert secret is not None
    fresh.pod.admin().create_secret(STATE, secret.data or {})
    with instance(fresh, machine) as copy:
        assert (copy.phase, fresh.entries()) == (Phase.RECOVERY, ())
        copy.up.call(copy.up.coordinator.recover(share.secret, share.signature))
        assert (copy.phase, copy.root) == (Phase.ACCEPTING_MARBLES, root)
        copy.until_serving()
    with instance(fresh, machine, peers=False) as again:
        assert (again.phase, again.root) == (Phase.ACCEPTING_MARBLES, root)


def test_of_thousands_of_addresses_only_as_many_are_taken_as_anybody_would_ask() -> None:
    """Whoever may write EndpointSlices must not fill our memory."""

    class Api:
        def endpoint_slices(self, _service: str) -> tuple[EndpointSlice, ...]:
            addresses = tuple(f"10.0.{n // 256}.{n % 256}" for n in range(300))
            return (EndpointSlice("one", addresses[:2], (1, 2)), EndpointSlice("two", addresses, tuple(range(1, 11))))

    found = peers_of(Api(), SERVICE)()  # type: ignore[arg-type]
    assert len(found) == len(set(found)) == MAX_ADDRESSES
    assert found[:4] == (("10.0.0.0", 1), ("10.0.0.0", 2), ("10.0.0.1", 1), ("10.0.0.1", 2))


def test_e19_a_higher_version_joins_only_after_the_other_was_upgraded(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    """Versions of both are compared from both sides, so that only equal ones exchange keys."""
    one, two = machines(), machines()
    old, new = EnclaveIdentity(security_version=1), EnclaveIdentity(unique_id=b"n" * 32, security_version=2)
    with instance(cluster, one, old) as first:
        first.up.set_manifest(deployment())
        first.until_serving()
        cluster.publish(first)
        until(lambda: first.sealer.is_kept_as(first.sharing._mode()), "the key is kept as the manifest says")
        with instance(cluster, two, new) as ahead:
            with refusals() as refused:
                until(lambda: len(refused) >= 2, "the first was asked twice")
            assert "SecurityVersion" in refused[0]
            assert ahead.phase is Phase.RECOVERY
    with instance(cluster, two, new) as ahead:
        assert ahead.phase is Phase.RECOVERY
        with instance(cluster, one, new) as upgraded:
            assert upgraded.phase is Phase.ACCEPTING_MARBLES
            upgraded.until_serving()
            cluster.publish(upgraded)
            until(lambda: ahead.phase is Phase.ACCEPTING_MARBLES, "the state is loaded")


def test_a_running_instance_that_is_shown_an_old_state_under_another_key_goes_on(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    """It asks the others for that key, gets it, refuses the state that it opens, and ends nothing."""
    elsewhere = Cluster(cluster.pod.kube.namespace())
    with instance(cluster, machines()) as first, instance(elsewhere, machines()) as foreign:
        first.up.set_manifest(deployment())
        for one in (foreign, first):
            one.until_serving()
        cluster.publish(foreign)
        mine, secret, other = first.sealer.kek, cluster.pod.admin().secret(STATE), elsewhere.pod.admin().secret(STATE)
        assert secret is not None
        assert other is not None
        put = cluster.pod.admin().update_secret(secret, other.data or {})
        with pytest.raises(Untrusted):
            first.up.call(first.up.coordinator.catch_up())
        until(lambda: not first.sealer.outdated, "the foreign key was given and opened the foreign state")
        assert (first.failures, first.sealer.kek) == ([], mine)
        cluster.pod.admin().update_secret(put, secret.data or {})
        first.up.call(first.up.coordinator.catch_up())
        first.up.call(first.up.coordinator.reload())
        assert (first.phase, first.failures, first.sealer.kek) == (Phase.ACCEPTING_MARBLES, [], mine)


def test_the_key_is_given_by_the_mode_that_is_stored_and_not_by_the_last_one_seen(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the stored state is not known, nobody gets the key."""
    with instance(cluster, machines()) as first:
        first.up.set_manifest(deployment())
        first.until_serving()
        cluster.publish(first)
        secret = cluster.pod.admin().secret(STATE)
        assert secret is not None
        cluster.pod.admin().update_secret(secret, {})
        with pytest.raises(Unavailable, match="the present state is not known"):
            first.up.call(first.sharing._present_mode())


@contextmanager
def refusals() -> Iterator[list[str]]:
    """What instances are told meanwhile by those whom they ask."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "another Coordinator did not give its key":
                found.append(str(getattr(record, "fields", {})["reason"]))

    log, handler = logging.getLogger("marblerun.coordinator.server.sharing.key_client"), Handler()
    log.addHandler(handler)
    yield found
    log.removeHandler(handler)


def test_a_key_of_another_deployment_is_not_taken_and_the_next_one_is_asked(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    elsewhere = Cluster(cluster.pod.kube.namespace())
    with instance(cluster, machines()) as first, instance(elsewhere, machines()) as foreign:
        first.up.set_manifest(deployment())
        for one in (foreign, first):
            one.until_serving()
        cluster.publish(foreign)
        cluster.publish(first)
        assert foreign.sealer.kek != first.sealer.kek
        with instance(cluster, machines()) as second:
            until(lambda: second.phase is Phase.ACCEPTING_MARBLES, "the state is loaded")
            assert second.sealer.kek == first.sealer.kek


@pytest.mark.parametrize("mode", ["ProductKey", "UniqueKey", "Disabled"])
def test_k12_the_seal_mode_of_the_manifest_decides_which_enclaves_restart_alone(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform], mode: str
) -> None:
    """Until the manifest is set the key is kept for exactly this enclave."""
    machine = machines()
    newer = EnclaveIdentity(unique_id=b"n" * 32, security_version=2)
    with instance(cluster, machine) as first:
        first.until_serving()
        with instance(cluster, machine, newer, peers=False) as other:
            assert other.sealer.kek is None
        first.up.set_manifest(deployment(SealMode=mode))
        until(lambda: first.sealer.is_kept_as(first.sharing._mode()), "the key is kept as the manifest says")
    with instance(cluster, machine, peers=False) as again:
        assert again.phase is Phase.ACCEPTING_MARBLES
    with instance(cluster, machine, newer, peers=False) as other:
        assert other.phase is (Phase.ACCEPTING_MARBLES if mode == "ProductKey" else Phase.RECOVERY)


def test_d2_a_coordinator_that_may_not_keep_the_key_still_serves_it(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    kube = cluster.pod.kube
    without = kube.namespace([rule for rule in ROLE if "configmaps" not in rule["resources"]])
    limited = Cluster(without)
    with instance(limited, machines()) as first:
        first.up.set_manifest(deployment())
        first.until_serving()
        limited.publish(first)
        assert limited.entries() == ()
        with instance(limited, machines()) as second:
            until(lambda: second.phase is Phase.ACCEPTING_MARBLES, "the state is loaded")
        assert (first.failures, second.failures) == ([], [])


def test_d2_a_port_that_is_taken_ends_it(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken(*_: object) -> None:
        raise Misconfigured("the port is taken")

    monkeypatch.setattr("marblerun.coordinator.server.sharing.key_server.bind", taken)
    with instance(cluster, machines()) as first:
        until(lambda: first.failures == ["failed"], "the failure is told")
        with pytest.raises(Exception, match="taken"):
            first.up.call(first.sharing.stop())


def test_after_the_end_the_key_is_not_served_any_more(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    with instance(cluster, machines()) as first:
        first.until_serving()
        host, port = first.sharing.address.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=LIMIT).close()
        first.up.call(first.sharing.stop())
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=LIMIT)


def test_a_platform_that_gives_no_quote_for_a_while_delays_the_exchange_and_nothing_else(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    machine = machines()
    working = World(platform=machine).ports().issuer
    issuer = _Delayed(working)
    with instance(cluster, machine, issuer=issuer) as first:
        first.up.set_manifest(deployment())
        until(lambda: issuer.refused >= 2, "a quote was asked for twice")
        assert (first.sharing.address, first.failures) == ("", [])
        issuer.works = True
        first.until_serving()


class _Delayed:
    """An issuer that does not work at first."""

    name = "delayed"

    def __init__(self, inner: EvidenceIssuer) -> None:
        self._inner = inner
        self.origin = inner.origin
        self.works = False
        self.refused = 0

    def issue(self, report_data: bytes) -> bytes:
        if not self.works:
            self.refused += 1
            raise Unavailable("no quote now")
        return self._inner.issue(report_data)


def test_in_simulation_all_instances_share_one_entry_and_there_is_no_key_exchange(cluster: Cluster) -> None:
    """Protocol, section 11.4: no evidence, no exchange; every instance opens the all-zero entry."""
    with instance(cluster, None, issuer=NoEvidenceIssuer()) as first:
        first.up.set_manifest(deployment())
        assert cluster.entries() == ["00" * 16]
        with instance(cluster, None, issuer=NoEvidenceIssuer()) as second:
            assert (second.phase, second.root) == (Phase.ACCEPTING_MARBLES, first.root)
            assert (first.sharing.address, second.sharing.address) == ("", "")


def test_before_there_is_a_manifest_the_key_is_shared_too_and_each_may_set_one(
    cluster: Cluster, machines: Callable[[], SimulatedPlatform]
) -> None:
    with instance(cluster, machines()) as first:
        first.until_serving()
        cluster.publish(first)
        with instance(cluster, machines()) as second:
            until(lambda: second.sealer.kek == first.sealer.kek, "the second has the first one's key")
            second.up.set_manifest(deployment())
            until(lambda: first.phase is Phase.ACCEPTING_MARBLES, "the first follows")
            assert first.root == second.root
