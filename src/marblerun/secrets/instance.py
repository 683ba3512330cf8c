"""The secrets as one Marble instance sees them, each private one made when it is first looked at.

A Marble whose templates use one key does not pay for the RSA secrets of the others (issue of the reference: it makes
all of them on every activation, twice). Source: protocol, sections 6.1 and 6.7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from uuid import UUID

from marblerun.secrets.generate import Inputs, generate_secret
from marblerun.secrets.model import Secret, SecretType


class InstanceSecrets(Mapping[str, Secret]):
    """Stored secrets overlaid with this instance's private ones; the same object gives the same value each time.

    One object for the current secrets and one, with the previous root secret, for the previous ones. Looking up a
    private secret raises ``Malformed`` if it cannot be generated, ``KeyError`` for a name that is not stored.
    """

    __slots__ = ("_inputs", "_made", "_marble_name", "_stored", "_uuid")

    def __init__(self, stored: Mapping[str, Secret], *, uuid: UUID, marble_name: str, inputs: Inputs) -> None:
        self._stored = stored
        self._uuid = uuid
        self._marble_name = marble_name
        self._inputs = inputs
        self._made: dict[str, Secret] = {}

    def __getitem__(self, name: str) -> Secret:
        stored = self._stored[name]
        if stored.shared or stored.user_defined:
            return stored
        if name not in self._made:
            self._made[name] = generate_secret(
                name, stored, uuid=self._uuid, marble_name=self._marble_name, inputs=self._inputs
            )
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def needs_rsa(self, names: Iterable[str]) -> bool:
        """Whether looking up ``names`` would make an RSA key, which takes long enough to move to a worker thread."""
        return any(self._is_pending_rsa(name) for name in names if name in self._stored)

    def _is_pending_rsa(self, name: str) -> bool:
        stored = self._stored[name]
        private = not stored.shared and not stored.user_defined
        return private and stored.type == SecretType.CERT_RSA and name not in self._made
