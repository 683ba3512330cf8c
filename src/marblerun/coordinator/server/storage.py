"""Where this process keeps the state: in a directory of its own, or in Kubernetes with other Coordinators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from marblerun.coordinator.seal import KeySealer, MachineSealer
from marblerun.coordinator.server.settings import Settings
from marblerun.coordinator.server.turns import Overload
from marblerun.coordinator.service import Coordinator, Ports
from marblerun.coordinator.store import SharedStore, Store
from marblerun.coordinator.store.file import FileStore
from marblerun.errors import Misconfigured
from marblerun.pki.issue import Entropy

if TYPE_CHECKING:
    from marblerun.coordinator.kubernetes.place import KubernetesPlace
    from marblerun.coordinator.server.sharing.key_sharing import KeySharing


class Storage(Protocol):
    """A store with what belongs to it."""

    @property
    def store(self) -> Store | SharedStore:
        """Where the state lies."""
        ...

    def sealer(self, machine: MachineSealer, entropy: Entropy) -> KeySealer:
        """What seals the data key: ``machine``'s own key, or one that is kept under it."""
        ...

    async def share(
        self, coordinator: Coordinator, ports: Ports, overload: Overload, failed: Callable[[], None]
    ) -> None:
        """Begin to give others what they need, once the Coordinator listens; ``failed`` is told of a failure."""
        ...

    async def unshare(self) -> None:
        """End that; raises the failure, if there was one."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def open_storage(environment: Mapping[str, str], settings: Settings) -> Storage:
    """What the settings name; raises Misconfigured. Libraries that only Kubernetes needs are loaded only for it."""
    if settings.kubernetes is None:
        return OwnDirectory(FileStore(settings.seal_directory))
    return InKubernetes(environment, settings.kubernetes, settings.key_address)


class OwnDirectory:
    """The state of one Coordinator, sealed by its machine."""

    def __init__(self, store: FileStore) -> None:
        self.store = store

    def sealer(self, machine: MachineSealer, _entropy: Entropy) -> KeySealer:
        """The machine's."""
        return machine

    async def share(
        self, _coordinator: Coordinator, _ports: Ports, _overload: Overload, _failed: Callable[[], None]
    ) -> None:
        """Nobody else is there."""

    async def unshare(self) -> None:
        """Nothing was begun."""

    def close(self) -> None:
        """Give the directory free."""
        self.store.close()


class InKubernetes:
    """The state of several Coordinators, in a Secret, under a key that they hand on to each other."""

    def __init__(self, environment: Mapping[str, str], place: KubernetesPlace, key_address: str) -> None:
        """Nothing is asked yet; raises Misconfigured outside a cluster."""
        from marblerun.coordinator.kubernetes.api import KubernetesApi
        from marblerun.coordinator.kubernetes.cluster import in_cluster, namespace_of
        from marblerun.coordinator.store.kubernetes import SecretStore

        namespace = place.namespace or namespace_of(place.account_directory)
        if not namespace:
            raise Misconfigured("nothing says in which namespace the state is; set EDG_K8S_NAMESPACE")
        self._place = place
        self._key_address = key_address
        self._api = KubernetesApi(in_cluster(environment, place.account_directory), namespace)
        self._sharing: KeySharing | None = None
        self.store = SecretStore(self._api, place.state_name)

    def sealer(self, machine: MachineSealer, entropy: Entropy) -> KeySealer:
        """One whose key the machine keeps in the ConfigMap, under its own."""
        from marblerun.coordinator.kubernetes.kek_map import ConfigMapKeks
        from marblerun.coordinator.seal.kek import KekSealer

        self._sealer = KekSealer(machine, ConfigMapKeks(self._api, self._place.kek_map), entropy)
        return self._sealer

    async def share(
        self, coordinator: Coordinator, ports: Ports, overload: Overload, failed: Callable[[], None]
    ) -> None:
        """Ask the others for the key, or serve it to them."""
        from marblerun.coordinator.server.sharing.key_sharing import KeySharing, peers_of

        peers = peers_of(self._api, self._place.service_name)
        self._sharing = KeySharing(coordinator, ports, self._sealer, peers, self._key_address, overload)
        self._sharing.start(failed)

    async def unshare(self) -> None:
        """No longer."""
        if self._sharing is not None:
            await self._sharing.stop()

    def close(self) -> None:
        """End the connections to the API server."""
        self._api.close()
