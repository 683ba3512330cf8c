"""What is wrong with a manifest, all of it at once, each finding with its place and what to do.

``check_manifest`` asks what the reference asks before it sets or updates a manifest; the order of the errors is the
reference's order, except that names are sorted where it takes them as they come. ``check_material`` (in
:mod:`marblerun.manifest.material`) asks what would only fail later.
Source: protocol, section 5.6; fixed texts: section 14.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Final

from marblerun.manifest.allowed import is_dns_pattern, parse_network
from marblerun.manifest.material import check_material
from marblerun.manifest.model import Manifest, Marble, Package, Role, TlsEntry
from marblerun.manifest.platforms import check_platforms
from marblerun.manifest.report import Problem, Report
from marblerun.secrets.model import SecretType
from marblerun.wire.gojson import lower

__all__ = ["check_manifest", "check_material", "is_update_role", "update_users"]

PACKAGES_ROLE: Final = "Packages"
SECRETS_ROLE: Final = "Secrets"
MANIFEST_ROLE: Final = "Manifest"

READ_SECRET: Final = "readsecret"  # noqa: S105 - a permission
WRITE_SECRET: Final = "writesecret"  # noqa: S105 - a permission
UPDATE_SECURITY_VERSION: Final = "updatesecurityversion"
UPDATE_MANIFEST: Final = "updatemanifest"

ACTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    PACKAGES_ROLE: {UPDATE_SECURITY_VERSION: "UpdateSecurityVersion"},
    SECRETS_ROLE: {READ_SECRET: "ReadSecret", WRITE_SECRET: "WriteSecret"},
    MANIFEST_ROLE: {UPDATE_MANIFEST: "UpdateManifest"},
}
"""By resource type: permission id to the action as it is usually written."""

SEAL_MODES: Final = ("", "ProductKey", "UniqueKey", "Disabled")
FEATURE_GATES: Final = ("SignQuoteEndpoint", "MonotonicCounter", "AzureHSMSealing")
AZURE_HSM_VARIABLES: Final = (
    "EDG_MAA_URL",
    "EDG_AZURE_HSM_VAULT_URL",
    "EDG_AZURE_HSM_KEY_NAME",
    "EDG_AZURE_CLIENT_ID",
    "EDG_AZURE_TENANT_ID",
)
_AZURE_SECRET: Final = "EDG_AZURE_CLIENT_SECRET"  # noqa: S105 - the name of a variable
_AZURE_FEDERATED: Final = ("EDG_AZURE_AUTHORITY_HOST", "EDG_AZURE_FEDERATED_TOKEN_FILE")


def check_manifest(manifest: Manifest, environment: Mapping[str, str]) -> Report:
    """Every error and warning; ``environment`` is asked only for the variables that HSM sealing needs.

    1. packages and Marbles exist  2. Marbles and the packages they use  3. TLS tags  4. users  5. roles  6. secrets
    7. update threshold  8. seal mode  9. feature gates  10. recovery threshold  11. TDs and platforms
    """
    steps = (
        _presence(manifest),  # 1
        _marbles(manifest),  # 2
        _tls_tags(manifest),  # 3
        _users(manifest),  # 4
        _roles(manifest),  # 5
        _secrets(manifest),  # 6
        _update_threshold(manifest),  # 7
        _seal_mode(manifest),  # 8
        _feature_gates(manifest, environment),  # 9
        _recovery(manifest),  # 10
        check_platforms(manifest),  # 11
    )
    return Report.of(problem for step in steps for problem in step)


def update_users(manifest: Manifest) -> tuple[str, ...]:
    """Names of the users who may update the manifest, sorted; each counts once however many roles say so."""
    return tuple(
        sorted(
            name
            for name, user in manifest.users.items()
            if any(_may_update(manifest.roles.get(role)) for role in user.roles)
        )
    )


def is_update_role(role: Role) -> bool:
    """Whether holders of this role may update the manifest: type ``Manifest``, first action ``UpdateManifest``."""
    return role.resource_type == MANIFEST_ROLE and lower("".join(role.actions[:1])) == UPDATE_MANIFEST


def _may_update(role: Role | None) -> bool:
    return role is not None and is_update_role(role)


def _presence(manifest: Manifest) -> Iterator[Problem]:
    if not manifest.packages:
        yield Problem(
            "Packages",
            "manifest contains no packages",
            expected="at least one package",
            hint="a package says which enclave may run; Marbles refer to it by name",
            code="packages-missing",
        )
    if not manifest.marbles:
        yield Problem(
            "Marbles",
            "manifest contains no marbles",
            expected="at least one Marble",
            hint="a Marble names the package it runs and the parameters it gets",
            code="marbles-missing",
        )


def _marbles(manifest: Manifest) -> Iterator[Problem]:
    seen: set[str] = set()
    for name, marble in sorted(manifest.marbles.items()):
        path = f"Marbles.{name}"
        package = manifest.packages.get(marble.package)
        if package is None:
            yield Problem(
                f"{path}.Package",
                f"manifest does not contain marble package {marble.package}",
                found=marble.package,
                expected=_one_of(manifest.packages),
                hint="define the package under Packages, or name an existing one",
                code="package-undefined",
            )
        elif marble.package not in seen:
            seen.add(marble.package)
            yield from _package(marble.package, package)
        yield from _marble_tags(path, marble, manifest)
        yield from _allowed_names(path, marble)


def _allowed_names(path: str, marble: Marble) -> Iterator[Problem]:
    for index, pattern in enumerate(marble.allowed_dns_names or ()):
        if not is_dns_pattern(pattern):
            yield Problem(
                f"{path}.AllowedDNSNames[{index}]",
                f"{pattern[:80]!r} is not a DNS name",
                expected="a name such as db.example.com, or *.example.com for one more label",
                hint="an asterisk stands for a whole first label; names outside ASCII are written as xn--...",
                code="allowed-dns-name",
            )
    for index, text in enumerate(marble.allowed_ips or ()):
        if parse_network(text) is None:
            yield Problem(
                f"{path}.AllowedIPs[{index}]",
                f"{text[:80]!r} is neither an IP address nor a network",
                expected="an address such as 10.0.0.1, or a network such as 10.0.0.0/8",
                hint="a network has no bits set beyond its prefix",
                code="allowed-ip",
            )


def _marble_tags(path: str, marble: Marble, manifest: Manifest) -> Iterator[Problem]:
    for index, tag in enumerate(marble.tls):
        if tag not in manifest.tls:
            yield Problem(
                f"{path}.TLS[{index}]",
                f"manifest does not contain TLS tag {tag}",
                found=tag,
                expected=_one_of(manifest.tls),
                hint="define the tag under TLS, or name an existing one",
                code="tls-tag-undefined",
            )


def _package(name: str, package: Package) -> Iterator[Problem]:
    path = f"Packages.{name}"
    if package.tdx is not None and not package.states_enclave:
        return
    stated = [
        key
        for key, present in (
            ("SignerID", bool(package.signer_id)),
            ("ProductID", package.product_id is not None),
            ("SecurityVersion", package.security_version is not None),
        )
        if present
    ]
    if package.unique_id:
        if stated:
            yield Problem(
                path,
                f"manifest specifies both UniqueID *and* SignerID/ProductID/SecurityVersion in package {name}",
                found=f"UniqueID with {', '.join(stated)}",
                expected="UniqueID alone, or SignerID, ProductID and SecurityVersion",
                hint="UniqueID admits exactly one build, the three others a family of builds; choose one way",
                code="package-ambiguous",
                warning=package.debug,
            )
        return
    for key in ("SignerID", "ProductID", "SecurityVersion"):
        if key not in stated:
            yield Problem(
                f"{path}.{key}",
                f"manifest misses value for {key} in package {name}",
                found="no value",
                expected=_PACKAGE_VALUES[key],
                hint="or state UniqueID instead of the three",
                code="package-incomplete",
                warning=package.debug,
            )


_PACKAGE_VALUES: Final = {
    "SignerID": "MRSIGNER in hex",
    "ProductID": "the enclave's product number",
    "SecurityVersion": "the lowest security version to admit",
}


def _tls_tags(manifest: Manifest) -> Iterator[Problem]:
    for name, tag in sorted(manifest.tls.items()):
        for index, entry in enumerate(tag.incoming):
            yield from _incoming(f"TLS.{name}.Incoming[{index}]", entry, manifest)
        for index, entry in enumerate(tag.outgoing):
            path = f"TLS.{name}.Outgoing[{index}]"
            for key, value in (("Addr", entry.addr), ("Port", entry.port)):
                if not value:
                    yield Problem(
                        f"{path}.{key}",
                        f"TLS tag {name} has an outgoing entry without {key}",
                        expected="the address and port of the peer",
                        hint="an entry without them would leave the connection unprotected",
                        code="tls-entry-incomplete",
                    )


def _incoming(path: str, entry: TlsEntry, manifest: Manifest) -> Iterator[Problem]:
    tag = path.split(".", 1)[1].rpartition(".Incoming")[0]
    if not entry.port:
        yield Problem(
            f"{path}.Port",
            f"TLS tag {tag} has an incoming entry without Port",
            expected="the port that the Marble listens on",
            code="tls-entry-incomplete",
        )
    if entry.cert and entry.cert not in manifest.secrets:
        yield Problem(
            f"{path}.Cert",
            f"TLS tag {tag} uses the undefined secret {entry.cert}",
            found=entry.cert,
            expected=_one_of(manifest.secrets),
            hint="define a certificate under Secrets, or drop Cert to use the Marble's own certificate",
            code="tls-cert-undefined",
        )
    if bool(entry.cert) != entry.disable_client_auth:
        yield Problem(
            f"{path}.DisableClientAuth",
            f"TLS tag {tag} has an incoming entry whose Cert and DisableClientAuth do not fit together",
            found=f"Cert {entry.cert or 'not set'}, DisableClientAuth {str(entry.disable_client_auth).lower()}",
            expected="Cert with DisableClientAuth: true, or neither",
            hint="clients outside the mesh have no certificate to show, clients inside must show theirs",
            code="tls-client-auth",
        )


def _users(manifest: Manifest) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    for name, user in sorted(manifest.users.items()):
        path = f"Users.{name}"
        if not user.certificate:
            yield Problem(
                f"{path}.Certificate",
                f"user {name} has no certificate",
                expected="a certificate in PEM",
                hint="a user is known by the certificate shown in the TLS handshake",
                code="user-certificate-missing",
            )
        for index, role in enumerate(user.roles):
            if role not in manifest.roles:
                yield Problem(
                    f"{path}.Roles[{index}]",
                    f"user {name} has the undefined role {role}",
                    found=role,
                    expected=_one_of(manifest.roles),
                    hint="define the role under Roles, or name an existing one",
                    code="role-undefined",
                )
        if user.certificate and (other := owners.setdefault(user.certificate, name)) != name:
            yield Problem(
                f"{path}.Certificate",
                f"users {other} and {name} have the same certificate",
                expected="a certificate of their own for each user",
                hint="otherwise nobody can tell who asked, and approvals would count twice",
                code="user-certificate-shared",
            )


def _roles(manifest: Manifest) -> Iterator[Problem]:
    for name, role in sorted(manifest.roles.items()):
        actions = ACTIONS.get(role.resource_type)
        if actions is None:
            yield Problem(
                f"Roles.{name}.ResourceType",
                f"role {name} has an unknown resource type {role.resource_type}",
                found=role.resource_type,
                expected=_one_of(ACTIONS),
                hint="upper and lower case count",
                code="role-type",
            )
            continue
        if role.resource_type == MANIFEST_ROLE and role.resource_names:
            yield Problem(
                f"Roles.{name}.ResourceNames",
                f"role {name} of type Manifest names resources",
                found=", ".join(role.resource_names),
                expected="no ResourceNames",
                hint="there is only one manifest",
                code="role-names",
            )
        for index, action in enumerate(role.actions):
            if lower(action) not in actions:
                yield Problem(
                    f"Roles.{name}.Actions[{index}]",
                    f"role {name} has an unknown action {action} for the resource type {role.resource_type}",
                    found=action,
                    expected=_one_of(tuple(actions.values())),
                    code="role-action",
                )
        yield from _role_names(name, role, manifest)


def _role_names(name: str, role: Role, manifest: Manifest) -> Iterator[Problem]:
    known: Mapping[str, object] = {PACKAGES_ROLE: manifest.packages, SECRETS_ROLE: manifest.secrets}.get(
        role.resource_type, {}
    )
    actions = {lower(action) for action in role.actions}
    for index, resource in enumerate(role.resource_names if role.resource_type != MANIFEST_ROLE else ()):
        path = f"Roles.{name}.ResourceNames[{index}]"
        secret = manifest.secrets.get(resource) if role.resource_type == SECRETS_ROLE else None
        if resource not in known:
            yield Problem(
                path,
                f"role {name} names the undefined resource {resource} of type {role.resource_type}",
                found=resource,
                expected=_one_of(known),
                code="role-resource-undefined",
            )
        if secret is not None and WRITE_SECRET in actions and not secret.user_defined:
            yield Problem(
                path,
                f"role {name} lets users write the secret {resource}, which is not user-defined",
                found="UserDefined: false",
                expected="UserDefined: true",
                hint="generated secrets have no value that could be uploaded",
                code="role-write",
            )
        if secret is not None and READ_SECRET in actions and not (secret.shared or secret.user_defined):
            yield Problem(
                path,
                f"role {name} lets users read the secret {resource}, which is private to each Marble",
                found="Shared: false, UserDefined: false",
                expected="Shared: true or UserDefined: true",
                hint="a private secret has as many values as there are instances, and is stored nowhere",
                code="role-read",
            )


def _secrets(manifest: Manifest) -> Iterator[Problem]:
    for name, secret in sorted(manifest.secrets.items()):
        if secret.type not in _SECRET_TYPES:
            yield Problem(
                f"Secrets.{name}.Type",
                f"secret {name} has an unknown type {secret.type}",
                found=secret.type,
                expected=_one_of(_SECRET_TYPES),
                code="secret-type",
            )
            continue
        has_expiry = secret.certificate is not None or (
            secret.template is not None and secret.template.not_after is not None
        )
        if SecretType(secret.type).is_certificate and has_expiry and secret.valid_for:
            yield Problem(
                f"Secrets.{name}.ValidFor",
                f"secret {name} has both NotAfter in Cert and ValidFor",
                found=f"ValidFor {secret.valid_for} beside a fixed end",
                expected="one of the two",
                hint="NotAfter is a date, ValidFor a number of days from the moment of issue",
                code="secret-validity",
            )


_SECRET_TYPES: Final = tuple(kind.value for kind in SecretType)


def _update_threshold(manifest: Manifest) -> Iterator[Problem]:
    threshold = manifest.config.update_threshold
    users = update_users(manifest)
    if len(users) < threshold:
        yield Problem(
            "Config.UpdateThreshold",
            f"manifest needs {threshold} users to acknowledge an update, but only {len(users)} may update it",
            found=str(threshold),
            expected=f"at most {len(users)}",
            hint="give more users a role of type Manifest with the action UpdateManifest, or lower the threshold",
            code="update-threshold",
        )


def _seal_mode(manifest: Manifest) -> Iterator[Problem]:
    mode = manifest.config.seal_mode
    if mode not in SEAL_MODES:
        yield Problem(
            "Config.SealMode",
            f"unknown seal mode {mode}",
            found=mode,
            expected=_one_of(SEAL_MODES[1:]) + ", or nothing for ProductKey",
            hint="upper and lower case count",
            code="seal-mode",
        )


def _feature_gates(manifest: Manifest, environment: Mapping[str, str]) -> Iterator[Problem]:
    known = {lower(gate) for gate in FEATURE_GATES}
    for index, gate in enumerate(manifest.config.feature_gates):
        if lower(gate) not in known:
            yield Problem(
                f"Config.FeatureGates[{index}]",
                f"unknown feature gate {gate}",
                found=gate,
                expected=_one_of(FEATURE_GATES),
                code="feature-gate",
            )
        elif lower(gate) == lower("AzureHSMSealing"):
            yield from _azure(f"Config.FeatureGates[{index}]", environment)


def _azure(path: str, environment: Mapping[str, str]) -> Iterator[Problem]:
    missing = [name for name in AZURE_HSM_VARIABLES if not environment.get(name)]
    if not environment.get(_AZURE_SECRET) and not all(environment.get(name) for name in _AZURE_FEDERATED):
        missing.append(f"{_AZURE_SECRET} (or {' and '.join(_AZURE_FEDERATED)})")
    if missing:
        yield Problem(
            path,
            f"feature gate AzureHSMSealing needs variables that the Coordinator does not have: {', '.join(missing)}",
            expected="all of them set in the Coordinator's environment",
            hint="set them where the Coordinator is started, or remove the gate",
            code="feature-gate-environment",
        )


def _recovery(manifest: Manifest) -> Iterator[Problem]:
    threshold, keys = manifest.config.recovery_threshold, len(manifest.recovery_keys)
    if keys < threshold:
        yield Problem(
            "Config.RecoveryThreshold",
            f"manifest needs {threshold} recovery keys to recover, but has only {keys}",
            found=str(threshold),
            expected=f"at most {keys}",
            hint="add RecoveryKeys, or lower the threshold",
            code="recovery-threshold",
        )
    if threshold == 1:
        yield Problem(
            "Config.RecoveryThreshold",
            "recovery threshold must not be 1",
            found="1",
            expected="0 (all keys are needed), or 2 and more",
            hint="with one key alone, leave RecoveryThreshold away and keep a single recovery key",
            code="recovery-threshold-one",
        )


def _one_of(names: Collection[str]) -> str:
    """The names that would have done; only some of many, because every finding of a hostile manifest asks for them."""
    if not names:
        return "one that exists; there is none"
    shown = sorted(names) if len(names) <= _NAMES_SORTED else list(islice(names, _NAMES_SHOWN))
    listed = ", ".join(shown[:_NAMES_SHOWN])
    return f"one of {listed}" + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")


_NAMES_SHOWN: Final = 10
_NAMES_SORTED: Final = 50
