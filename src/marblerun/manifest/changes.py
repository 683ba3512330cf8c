"""What differs between two manifests, by the reference's own notion of equality, and what kind of update one is.

Source: protocol, sections 4.4 (packages, infrastructures), 9.1 and 9.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from marblerun.manifest.model import File, Infrastructure, Manifest, Marble, Package, Parameters, TlsEntry, TlsTag, User
from marblerun.secrets.model import Secret, SecretDefinition

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Difference:
    """Names of one section, sorted, by what happens to them."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a full update changes, section by section. Users are compared here as written; see :mod:`policy.access`."""

    packages: Difference
    infrastructures: Difference
    marbles: Difference
    tls: Difference
    users: Difference
    secrets: Difference
    recovery_keys: bool
    """Whether new recovery data is needed."""
    rotates_root_secret: bool


def changes(old: Manifest, new: Manifest) -> Changes:
    """The differences between two manifests.

    A package update may have raised versions since ``old`` was set; compare stored packages with :func:`difference`.
    """
    return Changes(
        packages=difference(old.packages, new.packages, packages_equal),
        infrastructures=difference(old.infrastructures, new.infrastructures, infrastructures_equal),
        marbles=difference(old.marbles, new.marbles, marbles_equal),
        tls=difference(old.tls, new.tls, tls_tags_equal),
        users=difference(
            {name: _user_with_roles(user, old) for name, user in old.users.items()},
            {name: _user_with_roles(user, new) for name, user in new.users.items()},
            lambda one, other: one == other,
        ),
        secrets=difference(old.secrets, new.secrets, definitions_equal),
        recovery_keys=is_recovery_changed(old, new),
        rotates_root_secret=new.config.rotate_root_secret,
    )


def difference(old: Mapping[str, T], new: Mapping[str, T], equal: Callable[[T, T], bool]) -> Difference:
    """Which names come, go, change and stay."""
    common = sorted(old.keys() & new.keys())
    same = [name for name in common if equal(old[name], new[name])]
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(name for name in common if name not in set(same)),
        unchanged=tuple(same),
    )


def is_package_update(manifest: Manifest) -> bool:
    """Whether a manifest sent as an update only raises packages; ``Config`` does not count (protocol, section 9.1)."""
    return not any(
        (
            manifest.infrastructures,
            manifest.marbles,
            manifest.users,
            manifest.recovery_keys,
            manifest.roles,
            manifest.secrets,
            manifest.tls,
        )
    )


def packages_equal(one: Package, other: Package) -> bool:
    """All fields equal; the two lists as multisets."""
    return _package_key(one) == _package_key(other)


def infrastructures_equal(one: Infrastructure, other: Infrastructure) -> bool:
    """All fields equal."""
    return one == other


def files_equal(one: File, other: File) -> bool:
    """Data, spelling of the encoding and template flag equal."""
    return one == other


def parameters_equal(one: Parameters, other: Parameters) -> bool:
    """Arguments with their order, files and environment equal."""
    return one.argv == other.argv and dict(one.files) == dict(other.files) and dict(one.env) == dict(other.env)


def marbles_equal(one: Marble, other: Marble) -> bool:
    """Package, limit, parameters and secret binding equal; tags as a multiset, allowed names as sets."""
    return (
        one.package == other.package
        and one.max_activations == other.max_activations
        and one.disable_secret_binding == other.disable_secret_binding
        and Counter(one.tls) == Counter(other.tls)
        and _allowed(one) == _allowed(other)
        and parameters_equal(one.parameters, other.parameters)
    )


def tls_tags_equal(one: TlsTag, other: TlsTag) -> bool:
    """The same entries in both directions, in any order (each list is sorted by address, then port)."""
    return _sorted_entries(one.incoming) == _sorted_entries(other.incoming) and _sorted_entries(
        one.outgoing
    ) == _sorted_entries(other.outgoing)


def definitions_equal(one: SecretDefinition | Secret, other: SecretDefinition | Secret) -> bool:
    """Type, size, sharing, origin and validity equal; ``Cert`` and values are not compared (protocol, section 9.5).

    Either may be a stored secret; a certificate without ``ValidFor`` is stored with 365 and so differs from the
    manifest it came from. That is the reference's behaviour too.
    """
    return _definition_key(one) == _definition_key(other)


def is_recovery_changed(old: Manifest, new: Manifest) -> bool:
    """Whether recovery keys or their threshold differ, so that everybody needs a new share (protocol, section 9.5)."""
    return dict(old.recovery_keys) != dict(new.recovery_keys) or _shares_needed(old) != _shares_needed(new)


def _shares_needed(manifest: Manifest) -> int:
    # 0 stands for all keys.
    return manifest.config.recovery_threshold or len(manifest.recovery_keys)


def _package_key(package: Package) -> tuple[object, ...]:
    return (
        package.debug,
        package.unique_id,
        package.signer_id,
        package.product_id,
        package.security_version,
        Counter(package.accepted_tcb_statuses),
        Counter(package.accepted_advisories),
        package.tdx,
    )


def _definition_key(secret: SecretDefinition | Secret) -> tuple[object, ...]:
    return (secret.type, secret.size, secret.shared, secret.user_defined, secret.valid_for)


def _allowed(marble: Marble) -> tuple[frozenset[str] | None, ...]:
    lists = (marble.allowed_dns_names, marble.allowed_ips)
    return tuple(None if names is None else frozenset(names) for names in lists)


def _sorted_entries(entries: tuple[TlsEntry, ...]) -> list[tuple[str, str, str, bool]]:
    return sorted((entry.addr, entry.port, entry.cert, entry.disable_client_auth) for entry in entries)


def _user_with_roles(user: User, manifest: Manifest) -> tuple[object, ...]:
    """A user as far as it counts: certificate text and what the roles allow."""
    allowed = set()
    for role in (manifest.roles[name] for name in user.roles if name in manifest.roles):
        for action in role.actions:
            allowed.add((role.resource_type, action.lower(), ""))
            allowed.update((role.resource_type, action.lower(), name) for name in role.resource_names)
    return user.certificate, frozenset(allowed)
