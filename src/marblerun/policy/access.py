"""Who is asking and what may they do: users, found by their certificate, and the union of their roles.

There are no deny rules and no wildcards; what is not granted is refused.
Source: protocol, section 8.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from marblerun.errors import Malformed
from marblerun.manifest.check import (
    READ_SECRET,
    UPDATE_MANIFEST,
    UPDATE_SECURITY_VERSION,
    WRITE_SECRET,
)
from marblerun.manifest.material import certificate_der
from marblerun.manifest.model import Manifest, Role
from marblerun.manifest.model import User as ManifestUser
from marblerun.wire.gojson import Struct, boolean, byte_string, lower, mapping, marshal, record, string, unmarshal

__all__ = [
    "READ_SECRET",
    "UPDATE_MANIFEST",
    "UPDATE_SECURITY_VERSION",
    "WRITE_SECRET",
    "User",
    "encode_user",
    "find_user",
    "is_granted",
    "parse_user",
    "update_users",
    "users_equal",
    "users_from_manifest",
]


@dataclass(frozen=True, slots=True)
class User:
    """A person with what they may do: permission id (a lower-case action) to the names it holds for."""

    name: str
    certificate_der: bytes
    permissions: Mapping[str, frozenset[str]] = field(default_factory=dict)


def users_from_manifest(manifest: Manifest) -> dict[str, User]:
    """Every user with the union of their roles' permissions, sorted by name.

    Roles that do not exist give nothing. Raises Malformed for a certificate that is missing or cannot be read.
    """
    return {name: _user(name, user, manifest.roles) for name, user in sorted(manifest.users.items())}


def find_user(users: Mapping[str, User], leaf_der: bytes) -> User | None:
    """The user whose certificate is byte for byte the one shown; ``None`` if there is none.

    Give only the *first* certificate of the TLS handshake: possession of the key is proven for that one alone. Every
    user is compared, so that the time does not tell whose certificate is close. Of two users with the same certificate
    it is the first by name.
    """
    found = None
    for _, user in sorted(users.items(), reverse=True):
        if hmac.compare_digest(user.certificate_der, leaf_der):
            found = user
    return found if leaf_der else None


def is_granted(user: User, permission: str, names: Iterable[str] = ()) -> bool:
    """Whether the user has the permission, and has it for every one of these names."""
    held = user.permissions.get(permission)
    return held is not None and all(name in held for name in names)


def update_users(users: Mapping[str, User]) -> tuple[str, ...]:
    """Names of the users who may update the manifest, sorted: those whose acknowledgment an update needs."""
    return tuple(name for name, user in sorted(users.items()) if is_granted(user, UPDATE_MANIFEST))


def users_equal(one: User, other: User) -> bool:
    """Same name, same certificate, same permissions in both directions."""
    return (
        one.name == other.name
        and one.certificate_der == other.certificate_der
        and dict(one.permissions) == dict(other.permissions)
    )


def encode_user(user: User) -> bytes:
    """The stored form (protocol, section 8.2)."""
    permissions = {
        permission: Struct((("PermissionID", permission), ("ResourceID", dict.fromkeys(names, True))))
        for permission, names in user.permissions.items()
    }
    return marshal(
        Struct((("Name", user.name), ("Certificate", user.certificate_der), ("Permissions", permissions))),
    )


def parse_user(raw: bytes) -> User:
    """A user from the stored form; names whose value is false are not granted. Raises Malformed."""
    stored: dict[str, Any] = unmarshal(raw, _STORED)
    return User(
        name=stored["Name"],
        certificate_der=stored["Certificate"],
        permissions={
            permission: frozenset(name for name, granted in held["ResourceID"].items() if granted)
            for permission, held in stored["Permissions"].items()
        },
    )


_STORED: Final = record(
    Name=string,
    Certificate=byte_string,
    Permissions=mapping(record(PermissionID=string, ResourceID=mapping(boolean))),
)


def _user(name: str, user: ManifestUser, roles: Mapping[str, Role]) -> User:
    try:
        der = certificate_der(user.certificate)
    except Malformed as error:
        raise Malformed(error.message, where=f"Users.{name}.Certificate") from error
    permissions: dict[str, frozenset[str]] = {}
    for role in (roles[role] for role in user.roles if role in roles):
        for action in role.actions:
            permission = lower(action)
            permissions[permission] = permissions.get(permission, frozenset()) | frozenset(role.resource_names)
    return User(name, der, permissions)
