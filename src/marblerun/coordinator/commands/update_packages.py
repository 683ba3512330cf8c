"""Raising security versions of packages, which one user may do alone (protocol, section 9.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from marblerun.coordinator.commands import Event, Inputs, Outcome
from marblerun.coordinator.commands.authority import renewed_authority
from marblerun.coordinator.commands.caller import Operation, require_deployment, require_granted
from marblerun.coordinator.commands.update_log import MAX_BY_PACKAGES, log_line, logged
from marblerun.coordinator.commands.update_reply import IN_FORCE, UpdateReply
from marblerun.coordinator.state import State
from marblerun.manifest.model import Manifest, Package
from marblerun.manifest.report import Problem, Report
from marblerun.policy.access import UPDATE_SECURITY_VERSION, User
from marblerun.secrets import generate

# The reference's clients and tests look for exactly this text (protocol, section 14).
DOWNGRADE: Final = "update manifest tries to downgrade SecurityVersion of the original manifest"


def update_packages(state: State, user: User, manifest: Manifest, inputs: Inputs) -> Outcome[UpdateReply]:
    """Admit only the given or higher versions of the named packages from now on.

    1. the user may raise every one of them (Denied)  2. a manifest is in force (WrongPhase)  3. the packages exist and
    only their versions rise (Malformed, with everything that is wrong)  4. new intermediate CA  5. shared certificates
    are issued under it, from the stored ones  6. a line of the update log for each

    The manifest that clients see, its fingerprint and its signature stay as they are.
    """
    require_granted(user, Operation.UPDATE, UPDATE_SECURITY_VERSION, manifest.packages)  # 1
    deployment = require_deployment(state)  # 2
    Report.of(_problems(deployment.packages, manifest.packages)).raise_if_bad()  # 3
    versions = {name: package.security_version for name, package in sorted(manifest.packages.items())}
    raised = {name: replace(deployment.packages[name], security_version=version) for name, version in versions.items()}
    authority = renewed_authority(state.authority, inputs)  # 4
    generation = generate.Inputs(state.root_secret, authority.marble_issuer, inputs.at, inputs.entropy)
    lines = "".join(_line(inputs, user, *item) for item in versions.items())  # 6
    certificates = generate.regenerated_certificates(deployment.secrets, generation)  # 5
    new = replace(
        state,
        authority=authority,
        deployment=replace(
            deployment,
            packages={**deployment.packages, **raised},
            secrets={**deployment.secrets, **certificates},
            compiled={},
        ),
        update_log=logged(state, lines, MAX_BY_PACKAGES),
    )
    event = Event("packages updated", {"user": user.name, "packages": ", ".join(versions)})
    return Outcome(new, UpdateReply(message=IN_FORCE), (event,))


def _line(inputs: Inputs, user: User, name: str, version: int | None) -> str:
    return log_line(
        inputs.at, "SecurityVersion increased", {"user": user.name, "package": name, "new version": version}
    )


def _problems(stored: Mapping[str, Package], wanted: Mapping[str, Package]) -> Iterator[Problem]:
    if not wanted:
        yield Problem(
            "Packages",
            "no packages defined",
            expected="at least one package with a SecurityVersion",
            hint="for a full update send the whole manifest",
            code="packages-missing",
        )
    for name, package in sorted(wanted.items()):
        path = f"Packages.{name}"
        if name not in stored:
            yield Problem(
                path,
                f"update manifest names the package {name}, which the original manifest does not have",
                hint="new packages take a full update",
                code="package-undefined",
            )
            continue
        yield from _fixed_values(path, package)
        yield from _version(path, stored[name], package)


def _fixed_values(path: str, package: Package) -> Iterator[Problem]:
    given = {
        "Debug": package.debug,
        "UniqueID": bool(package.unique_id),
        "SignerID": bool(package.signer_id),
        "ProductID": package.product_id is not None,
        "TDX": package.tdx is not None,
    }
    for key, present in given.items():
        if present:
            yield Problem(
                f"{path}.{key}",
                f"update manifest sets {key}, which a package update cannot change",
                expected="SecurityVersion alone",
                hint="to change it send the whole manifest",
                code="package-update-key",
            )


def _version(path: str, stored: Package, package: Package) -> Iterator[Problem]:
    if stored.tdx is not None and not stored.states_enclave:
        # With a version the package would admit enclaves too.
        yield Problem(
            f"{path}.SecurityVersion",
            "update manifest sets the SecurityVersion of a package that admits TDs only",
            hint="it is about SGX enclaves; to change what TDs have to be send the whole manifest",
            code="package-update-tdx",
        )
    elif package.security_version is None:
        yield Problem(
            f"{path}.SecurityVersion",
            "update manifest does not say which SecurityVersion the package shall have",
            expected="the lowest version to admit",
            code="package-version-missing",
        )
    elif stored.security_version is not None and package.security_version < stored.security_version:
        yield Problem(
            f"{path}.SecurityVersion",
            DOWNGRADE,
            found=str(package.security_version),
            expected=f"at least {stored.security_version}",
            hint="versions only rise, so that nobody can bring a weakness back",
            code="package-downgrade",
        )
