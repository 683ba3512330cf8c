"""What a manifest allows that its author may not want: undefined and unused things, and dangers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from marblerun.errors import Malformed
from marblerun.manifest.allowed import parse_network
from marblerun.manifest.check import update_users
from marblerun.manifest.model import File, Manifest, Marble, Package, TdxIdentity
from marblerun.manifest.platforms import measurements, platform_hazards
from marblerun.manifest.report import Problem
from marblerun.manifest.templates import ENV_FUNCTIONS, FILE_FUNCTIONS, FunctionSet, compile_template
from marblerun.secrets.model import SecretType

RESERVED: Final = ("RootCA", "MarbleCert", "CoordinatorRoot", "CoordinatorIntermediate")
_IDENTITY = re.compile("[0-9a-fA-F]{64}")
MIN_RSA_BITS: Final = 2048
MIN_KEY_BITS: Final = 128


def hazards(manifest: Manifest) -> Iterator[Problem]:
    """Every finding that goes beyond what a Coordinator checks."""
    uses: dict[str, set[str]] = {name: set() for name in manifest.secrets}
    for name, marble in sorted(manifest.marbles.items()):
        yield from _templates(name, marble, manifest, uses)
        for tag in (manifest.tls[tag] for tag in marble.tls if tag in manifest.tls):
            for entry in (*tag.incoming, *tag.outgoing):
                if entry.cert in uses:
                    uses[entry.cert].add(name)
    yield from _unused(manifest, uses)
    yield from _packages(manifest)
    yield from platform_hazards(manifest)
    yield from _marbles(manifest, uses)
    yield from _secrets(manifest, uses)
    yield from _governance(manifest)


def _templates(name: str, marble: Marble, manifest: Manifest, uses: dict[str, set[str]]) -> Iterator[Problem]:
    kinds: tuple[tuple[str, Mapping[str, File], FunctionSet], ...] = (
        ("Files", marble.parameters.files, FILE_FUNCTIONS),
        ("Env", marble.parameters.env, ENV_FUNCTIONS),
    )
    for kind, files, functions in kinds:
        for path, file in sorted(files.items()):
            where = f"Marbles.{name}.Parameters.{kind}.{path}"
            if file.no_templates or b"{{" not in file.data:
                continue
            try:
                found = compile_template(file.data, functions).references()
            except Malformed as error:
                yield Problem(where, f"template cannot be compiled: {error}", code="template-invalid")
                continue
            for secret in sorted(found.secrets | found.previous):
                if secret in uses:
                    uses[secret].add(name)
                else:
                    yield Problem(
                        where,
                        f"template refers to the undefined secret {secret}",
                        hint="define it under Secrets",
                        code="reference-undefined",
                    )
            for reserved in sorted(found.marblerun - set(RESERVED)):
                yield Problem(
                    where,
                    f"template refers to .MarbleRun.{reserved}, which does not exist",
                    hint=f"there are {', '.join(RESERVED)}",
                    code="reference-undefined",
                )
            if found.dynamic:
                for users in uses.values():
                    users.add(name)


def _unused(manifest: Manifest, uses: Mapping[str, set[str]]) -> Iterator[Problem]:
    packages = {marble.package for marble in manifest.marbles.values()}
    roles = {role for user in manifest.users.values() for role in user.roles}
    tags = {tag for marble in manifest.marbles.values() for tag in marble.tls}
    named = {secret for role in manifest.roles.values() for secret in role.resource_names}
    named |= {entry.cert for tag in manifest.tls.values() for entry in (*tag.incoming, *tag.outgoing)}
    secrets = {name for name, users in uses.items() if users} | named
    sections: tuple[tuple[str, str, Mapping[str, object], set[str]], ...] = (
        ("Packages", "package", manifest.packages, packages),
        ("Secrets", "secret", manifest.secrets, secrets),
        ("Roles", "role", manifest.roles, roles),
        ("TLS", "tls", manifest.tls, tags),
    )
    for section, kind, entries, used in sections:
        for name in sorted(entries.keys() - used):
            what = "TLS tag" if kind == "tls" else kind
            yield Problem(f"{section}.{name}", f"{what} {name} is not used", code=f"{kind}-unused")
    for name, user in sorted(manifest.users.items()):
        if not user.roles:
            yield Problem(f"Users.{name}", f"user {name} has no role", code="user-idle")


def _packages(manifest: Manifest) -> Iterator[Problem]:
    for name, package in sorted(manifest.packages.items()):
        path = f"Packages.{name}"
        if package.debug:
            yield Problem(
                f"{path}.Debug",
                f"package {name} admits debug enclaves",
                hint="for production build the enclave without debug and drop Debug",
                code="debug-package",
            )
        for key, value in (("UniqueID", package.unique_id), ("SignerID", package.signer_id)):
            if value and not _IDENTITY.fullmatch(value):
                yield Problem(
                    f"{path}.{key}",
                    f"{key} of package {name} is not 64 hex digits and matches no enclave",
                    hint="take it from the signed enclave, for example with gramine-sgx-sigstruct-view",
                    code="identity-not-hex",
                )
        if not package.unique_id and package.security_version == 0:
            yield Problem(
                f"{path}.SecurityVersion",
                f"package {name} admits every security version",
                hint="state the version of the build you trust",
                code="no-minimum-version",
            )


def _marbles(manifest: Manifest, uses: Mapping[str, set[str]]) -> Iterator[Problem]:
    uploaded = {name for name, secret in manifest.secrets.items() if secret.user_defined}
    for name, marble in sorted(manifest.marbles.items()):
        read = sorted(secret for secret in uploaded if name in uses[secret])
        if not marble.max_activations and read:
            yield Problem(
                f"Marbles.{name}",
                f"Marble {name} may start any number of times and reads secrets of users: {', '.join(read)}",
                hint="set MaxActivations to the number of instances you expect",
                code="unlimited-reader",
            )
        yield from _names(name, marble)
        if marble.disable_secret_binding:
            yield Problem(
                f"Marbles.{name}.DisableSecretBinding",
                f"private secrets of Marble {name} are not bound to its type",
                code="binding-disabled",
            )


def _names(name: str, marble: Marble) -> Iterator[Problem]:
    keys = (("AllowedDNSNames", marble.allowed_dns_names), ("AllowedIPs", marble.allowed_ips))
    absent = [key for key, names in keys if names is None]
    if absent:
        yield Problem(
            f"Marbles.{name}",
            f"Marble {name} may ask for a certificate for any {' and '.join(_KINDS[key] for key in absent)}",
            hint=f"list what it may be reached by in {' and '.join(absent)}; an empty list allows the local host only",
            code="names-unrestricted",
        )
    for index, pattern in enumerate(marble.allowed_dns_names or ()):
        if "*" in pattern:
            yield Problem(
                f"Marbles.{name}.AllowedDNSNames[{index}]",
                f"Marble {name} may ask for a certificate for any name that fits {pattern}",
                hint="list the names that are served",
                code="wildcard-name",
            )
    for index, text in enumerate(marble.allowed_ips or ()):
        network = parse_network(text)
        if network is not None and not network.prefixlen:
            yield Problem(
                f"Marbles.{name}.AllowedIPs[{index}]",
                f"{text} is every address",
                hint="name the network that the Marble runs in",
                code="wildcard-name",
            )


_KINDS: Final = {"AllowedDNSNames": "DNS name", "AllowedIPs": "IP address"}


def _secrets(manifest: Manifest, uses: Mapping[str, set[str]]) -> Iterator[Problem]:
    for name, secret in sorted(manifest.secrets.items()):
        path = f"Secrets.{name}"
        signers = {_signer(manifest.packages.get(manifest.marbles[marble].package)) for marble in uses[name]} - {""}
        if (secret.shared or secret.user_defined) and len(signers) > 1:
            yield Problem(
                path,
                f"secret {name} goes to enclaves of {len(signers)} different signers",
                hint="use one secret per signer unless they must share it",
                code="secret-across-signers",
            )
        template = secret.template
        for index, host in enumerate((template.dns_names or ()) if template is not None else ()):
            if "*" in host:
                yield Problem(
                    f"{path}.Cert.DNSNames[{index}]",
                    f"certificate {name} is for the wildcard name {host}",
                    hint="list the names that are served",
                    code="wildcard-name",
                )
        smallest = {SecretType.CERT_RSA: MIN_RSA_BITS, SecretType.SYMMETRIC_KEY: MIN_KEY_BITS}.get(
            SecretType(secret.type) if secret.type in set(SecretType) else SecretType.PLAIN, 0
        )
        if 0 < secret.size < smallest:
            yield Problem(
                f"{path}.Size", f"{secret.size} bits are weak for {secret.type}, use {smallest}", code="weak-key"
            )


def _signer(package: Package | None) -> str:
    if package is None:
        return ""
    return package.signer_id.lower() or package.unique_id.lower() or _td(package.tdx)


def _td(tdx: TdxIdentity | None) -> str:
    """What the TD is built from. It has no signer, so another kernel is another identity."""
    if tdx is None:
        return ""
    # The TDX module and service TDs are the platform's, not the package's.
    stated = [f"{key}={value.lower()}" for key, value in measurements(tdx) if value and key not in _PLATFORM_S]
    return " ".join(stated)


_PLATFORM_S: Final = ("MRSEAM", "MRSERVICETD")


def _governance(manifest: Manifest) -> Iterator[Problem]:
    updaters = update_users(manifest)
    needed = manifest.config.update_threshold or len(updaters)
    if not updaters:
        yield Problem(
            "Users",
            "nobody may update this manifest",
            hint="give a user a role of type Manifest with the action UpdateManifest, if it should change one day",
            code="no-updater",
        )
    elif needed == 1:
        yield Problem(
            "Config.UpdateThreshold",
            f"one person alone can replace the manifest: {', '.join(updaters)}",
            hint="have two or more users with that permission, and UpdateThreshold of at least 2",
            code="single-updater",
        )
    if not manifest.recovery_keys:
        yield Problem(
            "RecoveryKeys",
            "there is no recovery key",
            hint="add the RSA public key of at least one person",
            code="no-recovery-key",
        )
    elif (manifest.config.recovery_threshold or len(manifest.recovery_keys)) == 1:
        yield Problem(
            "RecoveryKeys",
            f"one person alone can recover the state: {', '.join(sorted(manifest.recovery_keys))}",
            hint="add more keys and a RecoveryThreshold of at least 2",
            code="recovery-alone",
        )
    if manifest.config.seal_mode == "Disabled":
        yield Problem(
            "Config.SealMode", "the state is not kept: a restart loses manifest and secrets", code="sealing-disabled"
        )
