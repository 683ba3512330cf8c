"""The collateral source that a process's settings ask for, the same for Coordinators and commands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from marblerun.attestation.collect.cache import CachedSource, require_usable
from marblerun.attestation.collect.directory import DirectorySource
from marblerun.attestation.collect.disk import DiskShelf
from marblerun.attestation.collect.fallback import FallbackSource
from marblerun.attestation.collect.pccs import PccsSource
from marblerun.attestation.collect.qcnl import DEFAULT_PATH, QcnlSettings, load_qcnl
from marblerun.attestation.collect.settings import INTEL_PCS, CollateralSettings
from marblerun.attestation.collect.source import CollateralSource
from marblerun.attestation.dcap.collateral import verify_collateral
from marblerun.attestation.dcap.pck import platform_of_chain
from marblerun.attestation.model import Collateral, CollateralKey, TrustRoot
from marblerun.errors import Malformed, Misconfigured

_log = logging.getLogger("marblerun.collateral")

MAX_SERVICES: Final = 8
_MAX_API_KEY_BYTES: Final = 256


def collateral_source(
    *,
    url: str = "",
    ca_file: Path | None = None,
    timeout_seconds: float = 10.0,
    cache_directory: Path | None = None,
    simulated_platform: Path | None = None,
    roots: Sequence[TrustRoot] = (),
    directory: Path | None = None,
    qcnl: Path | None = None,
    api_key_file: Path | None = None,
) -> CachedSource:
    """A cache before everything that is named; asked in this order, the first that has good collateral counts:

    1. the services in ``url``, separated by commas;
    2. the recordings in ``directory``, which need no network;
    3. if neither is named: the simulated platform itself; else the service in the file ``qcnl`` (without it, in
       ``/etc/sgx_default_qcnl.conf`` if that is there); else Intel's service.

    With ``roots``, what does not verify under them does not count. ``api_key_file`` holds a subscription key, which
    goes to Intel's service only, and only when a PCK certificate is asked for. Raises Misconfigured for what cannot be
    used.
    """
    api_key = _api_key(api_key_file)

    def check(collateral: Collateral) -> object:
        return verify_collateral(collateral, roots)

    def accept(key: CollateralKey, collateral: Collateral) -> object:
        return require_usable(key, collateral, _now(), check if roots else None)

    def check_pck(chain: str) -> object:
        return platform_of_chain(chain, roots)

    def service(settings: CollateralSettings) -> PccsSource:
        # A PCCS has its own key for Intel's service and needs none of ours.
        return PccsSource(replace(settings, api_key=api_key) if settings.base == INTEL_PCS else settings)

    sources: list[CollateralSource] = [
        service(CollateralSettings(url=one, ca_file=ca_file, timeout=timeout_seconds)) for one in service_urls(url)
    ]
    if directory is not None:
        if not directory.is_dir():
            raise Misconfigured(f"there is no directory {directory} to take collateral from")
        sources.append(DirectorySource(directory, _now))
    if not sources and simulated_platform is not None:
        sources.append(DirectorySource(simulated_platform, _now))
    if not sources:
        sources.append(service(_default_service(qcnl, ca_file, timeout_seconds)))
    return CachedSource(
        sources[0] if len(sources) == 1 else FallbackSource(sources, accept, check_pck),
        _now,
        check=check if roots else None,
        shelf=DiskShelf(cache_directory) if cache_directory else None,
        check_pck=check_pck,
    )


def _api_key(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            key = file.read(_MAX_API_KEY_BYTES + 1).decode("ascii").strip()
    except OSError as error:
        raise Misconfigured(f"{path} (EDG_PCS_API_KEY_FILE) cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        key = ""
    if not 0 < len(key) <= _MAX_API_KEY_BYTES:
        raise Misconfigured(f"{path} (EDG_PCS_API_KEY_FILE) holds no subscription key")
    return key


def service_urls(text: str) -> tuple[str, ...]:
    """The URLs in ``text``, separated by commas or white space; Misconfigured for too many."""
    urls = tuple(text.replace(",", " ").split())
    if len(urls) > MAX_SERVICES:
        raise Misconfigured(f"{len(urls)} collateral services are named, at most {MAX_SERVICES} are asked")
    return urls


def _default_service(qcnl: Path | None, ca_file: Path | None, timeout_seconds: float) -> CollateralSettings:
    found = _named_qcnl(qcnl) if qcnl is not None else _usual_qcnl()
    url = (found.collateral_service or found.pccs_url) if found is not None else None
    if found is None or url is None:
        return CollateralSettings(url=INTEL_PCS, ca_file=ca_file, timeout=timeout_seconds)
    _log.info("collateral comes from %s, as the quote provider's configuration says", url)
    if not found.use_secure_cert:
        _log.warning("the TLS certificate of %s is not verified, as the quote provider's configuration says", url)
    return CollateralSettings(url=url, ca_file=ca_file, timeout=timeout_seconds, use_secure_cert=found.use_secure_cert)


def _named_qcnl(path: Path) -> QcnlSettings:
    try:
        return load_qcnl(path)
    except OSError as error:
        raise Misconfigured(f"{path} (EDG_QCNL_CONFIG) cannot be read: {error.strerror}") from error
    except Malformed as error:
        raise Misconfigured(f"EDG_QCNL_CONFIG: {error}") from error


def _usual_qcnl() -> QcnlSettings | None:
    """What the file of the quote provider library says, if it says something we can use; it may be there for others."""
    try:
        found = load_qcnl(DEFAULT_PATH)
        # The other URL is the quote provider's own, often one that we could not use.
        url = found.collateral_service or found.pccs_url
        if url is not None:
            CollateralSettings(url=url)
    except FileNotFoundError:
        return None
    except (OSError, Malformed, Misconfigured) as error:
        _log.warning("%s is not used: %s", DEFAULT_PATH, error)
        return None
    return found


def _now() -> datetime:
    return datetime.now(UTC)
