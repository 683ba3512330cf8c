"""A state in a Secret of Kubernetes, which any number of Coordinators share (protocol, section 11.3).

Its ``resourceVersion`` is the version: an update carries the one that it builds on, and the API server refuses it if
another one is there. No older generations stay, as Kubernetes keeps none; what a new deployment replaces in the
recovery phase is copied to a Secret of its own, which nothing here ever writes again.
"""

from __future__ import annotations

import hashlib
from typing import Final

from marblerun.coordinator.kubernetes.api import KubernetesApi, StoredObject
from marblerun.coordinator.store import Sealed, Versioned
from marblerun.errors import Conflict, Misconfigured

DATA: Final = "sealed_data"
KEY: Final = "sealed_key"
ASIDE: Final = "aside"
_TYPE: Final = "Opaque"
ABSENT: Final = ""
"""The version of a Secret that does not exist."""


class SecretStore:
    """One Secret of the namespace that ``api`` is for."""

    def __init__(self, api: KubernetesApi, name: str) -> None:
        """Nothing is asked yet."""
        self._api = api
        self._name = name
        self._seen: StoredObject | None = None

    def version(self) -> str:
        """The ``resourceVersion`` of the Secret, empty if it does not exist."""
        return self._api.secret_version(self._name) or ABSENT

    def load(self) -> Sealed | None:
        """The state that is stored now; for whoever only looks, from any thread."""
        return _state_in(self._api.secret(self._name))

    def read(self) -> Versioned:
        """The state in the Secret; raises Misconfigured if the Secret is something else's."""
        self._seen = stored = self._api.secret(self._name)
        if stored is None:
            return Versioned(ABSENT, None)
        if stored.content.get("type", _TYPE) != _TYPE:
            raise Misconfigured(
                f"the Secret {self._api.namespace}/{self._name} is not of the type {_TYPE}, so it belongs to something "
                "else; set EDG_K8S_STATE_NAME to a name of this deployment's own"
            )
        return Versioned(stored.version, _state_in(stored))

    def replace(self, version: str, data: bytes, key: bytes) -> str:
        """Write the state; where there was no Secret, make it."""
        values = {DATA: data, KEY: key}
        if version == ABSENT:
            self._seen = self._api.create_secret(self._name, values)
        elif self._seen is None or self._seen.version != version:
            raise Conflict("a newer version of the state was read meanwhile; repeat the operation")
        else:
            self._seen = self._api.update_secret(self._seen, {**(self._seen.data or {}), **values})
        return self._seen.version

    def set_aside(self) -> None:
        """Copy the state to a Secret whose name ends with the beginning of its SHA-256."""
        sealed = self.read().sealed
        if sealed is None:
            return
        name = f"{self._name}-{ASIDE}-{hashlib.sha256(sealed.data).hexdigest()[:16]}"
        try:
            self._api.create_secret(name, {DATA: sealed.data, KEY: sealed.keys[0] if sealed.keys else b""})
        except Conflict:
            return  # this very state was set aside before


def _state_in(stored: StoredObject | None) -> Sealed | None:
    values = (stored.data if stored is not None else None) or {}
    data, key = values.get(DATA, b""), values.get(KEY, b"")
    return Sealed(data, (key,) if key else ()) if data else None
