"""From the global options to a Coordinator that was verified; every command that talks to one goes through here."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from marblerun.cli.options import GlobalOptions
from marblerun.cli.output import note, progress, show_collateral_warnings, warn, write_file
from marblerun.errors import Malformed, Misconfigured, NotFound

if TYPE_CHECKING:
    from marblerun.client import AttestedCoordinator, CertificateCache, Client, CoordinatorPolicy, Credentials, Demands
    from marblerun.client.deployment import Origin

LOCAL_POLICY: Final = Path("era-config.json")
_INSECURE: Final = "--insecure: nothing is verified; whoever answers is believed, secrets and manifest included"


@dataclass(frozen=True, slots=True)
class Connection:
    """A client, and how its peer was verified: ``attested``, ``pinned`` to the cached root, or ``insecure``."""

    client: Client
    how: str


def cache(options: GlobalOptions) -> CertificateCache:
    """The certificate cache."""
    from marblerun.client import CertificateCache

    return CertificateCache(options.cache_path)


def policy(options: GlobalOptions) -> CoordinatorPolicy:
    """The attestation policy: the given file, else ``./era-config.json``; nothing is ever downloaded.

    Raises:
        Misconfigured: there is no policy, or it would turn verification off.
        Malformed: the file is not a policy.
    """
    from marblerun.client import CoordinatorPolicy

    if options.insecure:
        return CoordinatorPolicy(insecure=True)
    found = _read_policy(options)
    if found.insecure:
        raise Misconfigured("the attestation policy says InsecureSkipVerify; that takes --insecure on the command line")
    if options.accepted_tcb_statuses is not None:
        found = replace(found, accepted_tcb_statuses=options.accepted_tcb_statuses)
    if options.accepted_advisories is not None:
        found = replace(found, accepted_advisories=options.accepted_advisories)
    found.verify_complete()
    return found


def _read_policy(options: GlobalOptions) -> CoordinatorPolicy:
    from marblerun.client.policy import MAX_POLICY_BYTES, parse_policy

    path = Path(options.era_config) if options.era_config else LOCAL_POLICY
    if not options.era_config:
        if not path.exists():
            raise Misconfigured(
                "no attestation policy says which Coordinator is meant; "
                f"give --era-config FILE, or put it into ./{LOCAL_POLICY}"
            )
        note(f"Using the attestation policy in ./{LOCAL_POLICY}")
    raw = read_file(path, MAX_POLICY_BYTES)
    try:
        return parse_policy(raw)
    except Malformed as error:
        raise Malformed(str(error), where=str(path)) from None


def attested(options: GlobalOptions, endpoint: str) -> AttestedCoordinator:
    """The Coordinator after attestation; tells the user about it, and keeps the quote if that was asked for."""
    return attested_for(options, endpoint, None).coordinator


def attested_for(options: GlobalOptions, endpoint: str, demands: Demands | None) -> Origin:
    """The same, ready to be asked where its CA comes from."""
    from marblerun.client import Demands, attest, trust_from_environment
    from marblerun.client.deployment import Origin
    from marblerun.client.policy import SIMULATED_EVIDENCE

    judge = policy(options)
    nonce = options.nonce.encode() if options.nonce else None
    show_collateral_warnings()
    if options.insecure:
        warn(_INSECURE)
        trust = None
    else:
        ca_file = Path(options.pccs_ca) if options.pccs_ca else None
        trust = trust_from_environment(os.environ, pccs_url=options.pccs_url or "", pccs_ca_file=ca_file)
        for warning in trust.warnings:
            warn(warning)
    with progress(f"Verifying the Coordinator at {endpoint}"):
        coordinator = attest(endpoint, judge, nonce=nonce, trust=trust)
    told = (*trust.warnings, SIMULATED_EVIDENCE) if trust and trust.warnings else ()
    for warning in coordinator.warnings:
        if warning not in told:
            warn(warning)
    if not options.insecure:
        note(f"Verified the Coordinator at {endpoint}")
    if options.save_sgx_quote:
        write_file(Path(options.save_sgx_quote), coordinator.quote)
    return Origin(coordinator, judge, demands or Demands(), trust)


def verify_origin(origin: Origin, client: Client, manifest: bytes) -> None:
    """Ask the enclave where its CA comes from, and tell the user what it does not say."""
    with progress("Verifying where the CA comes from"):
        warnings = origin.verify(client, manifest)
    for warning in warnings:
        warn(warning)


def known_root(options: GlobalOptions) -> bytes | None:
    """The cached root certificate (DER), which was verified earlier."""
    try:
        return cache(options).load().root_der
    except (NotFound, Malformed):
        return None


def pinned(options: GlobalOptions, endpoint: str, credentials: Credentials | None = None) -> Connection:
    """A client pinned to the cached root; with an explicit ``--era-config`` it attests instead, cache or not.

    Raises:
        Misconfigured: there is neither a cache nor a policy.
    """
    from marblerun.client import UNVERIFIED, Client

    if options.insecure:
        warn(_INSECURE)
        return Connection(Client(endpoint, UNVERIFIED, credentials=credentials), "insecure")
    if options.era_config:
        return Connection(attested(options, endpoint).client(credentials), "attested")
    try:
        pin = cache(options).load().pin
    except NotFound as error:
        raise Misconfigured(
            f"{error}; run 'marblerun manifest verify' first, or give --era-config FILE to verify the Coordinator now"
        ) from None
    return Connection(Client(endpoint, pin, credentials=credentials), "pinned")


def credentials(options: GlobalOptions) -> Credentials:
    """The user's certificate and key.

    Raises:
        click.UsageError: one of them is not given.
    """
    from marblerun.client import Credentials

    if not options.cert or not options.key:
        raise click.UsageError("this needs the user's certificate and key: give both -c/--cert and -k/--key")
    return Credentials.load(options.cert, options.key)


def read_file(path: Path, limit: int) -> bytes:
    """The content of a file that the user named; ``-`` is standard input.

    Raises:
        NotFound: there is none. Malformed: it is too large or cannot be read.
    """
    try:
        if str(path) == "-":
            content = sys.stdin.buffer.read(limit + 1)
        else:
            with path.open("rb") as file:
                content = file.read(limit + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        raise Malformed(f"cannot be read: {error.strerror}", where=str(path)) from None
    if len(content) > limit:
        raise Malformed(f"is larger than {limit} bytes", where=str(path))
    return content
