"""Sealed key encryption keys in a ConfigMap, one entry of ``binaryData`` for each machine (protocol, section 11.3)."""

from __future__ import annotations

from base64 import b64encode
from http import HTTPStatus
from typing import Final

from marblerun.coordinator.kubernetes.api import KubernetesApi, Refused, StoredObject
from marblerun.errors import Conflict, Unavailable

# All instances of a deployment may start at once, and each writes a few times at most.
_TRIES: Final = 16


class ConfigMapKeks:
    """The ConfigMap ``name``; a :class:`marblerun.coordinator.seal.kek.KekMap`."""

    def __init__(self, api: KubernetesApi, name: str) -> None:
        self._api = api
        self._name = name

    def load(self, entry: str) -> bytes | None:
        """What the entry holds, ``None`` if it or the map does not exist."""
        found = self._api.config_map(self._name)
        return None if found is None or found.data is None else found.data.get(entry)

    def save(self, entry: str, value: bytes) -> None:
        """Write the entry: the map is created if there is none, else patched, so that others' entries stay."""
        for _ in range(_TRIES):
            found = self._api.config_map(self._name)
            try:
                if found is None:
                    self._api.create_config_map(self._name, {entry: value})
                else:
                    self._api.patch_config_map(self._name, _patch(found, entry, value))
                return
            except Conflict:
                continue
            except Refused as error:
                # Somebody wrote meanwhile, and adding an empty map would take away what.
                if error.status != HTTPStatus.UNPROCESSABLE_ENTITY or found is None or found.data is not None:
                    raise
        raise Unavailable(f"the ConfigMap {self._api.namespace}/{self._name} keeps changing; try again")


def _patch(found: StoredObject, entry: str, value: bytes) -> list[dict[str, object]]:
    """The operations of RFC 6902; ``binaryData`` is added only to the very version that has none."""
    add: dict[str, object] = {"op": "add", "path": f"/binaryData/{entry}", "value": b64encode(value).decode("ascii")}
    if found.data is not None:
        return [add]
    return [
        {"op": "test", "path": "/metadata/resourceVersion", "value": found.version},
        {"op": "add", "path": "/binaryData", "value": {}},
        add,
    ]
