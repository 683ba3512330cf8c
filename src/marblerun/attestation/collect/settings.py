"""How collateral is to be had: which service, how it is authenticated, how long to wait, what to keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from marblerun.errors import Misconfigured

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
"""Intel's provisioning certification service. Source: formats, section 4."""
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
"""Intel's service does not serve the root CRL; this host does."""

_API_PATHS: Final = ("/sgx/certification/v4", "/tdx/certification/v4")
_OLD_API_PATH: Final = "/sgx/certification/v3"


@dataclass(frozen=True, slots=True)
class CollateralSettings:
    """Settings of the collateral client; every time is in seconds."""

    url: str = INTEL_PCS
    """Base URL of a PCCS or of Intel's service. The path ``/sgx/certification/v4/``, as in ``pccs_url``, may follow."""
    ca_file: Path | None = None
    """PEM file with the CAs for the service's TLS certificate, instead of the usual ones."""
    use_secure_cert: bool = True
    """Whether the service's TLS certificate is verified. The collateral is signed by the vendor either way."""
    timeout: float = 5.0
    """For one request, from connecting to the last byte."""
    attempts: int = 3
    """How often a request is made in all before the service counts as unavailable."""
    first_pause: float = 0.25
    """Before the second attempt; doubled before every further one."""
    root_crl_url: str | None = None
    """Where the root CRL is, if not where the kind of service has it."""
    update: str = "standard"
    """``standard`` or ``early``: whether TCB recoveries count before they are enforced."""
    cache_dir: Path | None = None
    """Where collateral is kept across restarts; None keeps it in memory only."""
    proxy: str | None = None
    api_key: str = field(default="", repr=False)
    """Subscription key for PCK certificates, which Intel's service asks for; sent with nothing else."""

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.attempts < 1 or self.first_pause < 0:
            raise Misconfigured("the collateral client's time-out and attempts must be positive")
        if self.update not in ("standard", "early"):
            raise Misconfigured("the update channel for collateral must be standard or early")
        base_url(self.url)
        if self.api_key and not self.base.startswith("https:"):
            raise Misconfigured("a subscription key is sent over https only; the collateral service is named with http")
        if not (self.api_key.isascii() and all(character.isprintable() for character in self.api_key)):
            raise Misconfigured("the subscription key has characters that no such key has")

    @property
    def base(self) -> str:
        """The base URL without API path and final slash."""
        return base_url(self.url)

    @property
    def root_crl(self) -> str:
        """URL of the root CRL: Intel's certificate host for Intel's service, the service itself for a PCCS."""
        if self.root_crl_url:
            return self.root_crl_url
        return INTEL_ROOT_CRL if self.base == INTEL_PCS else f"{self.base}/sgx/certification/v4/rootcacrl"


def base_url(url: str) -> str:
    """The base of a service's URL, in whichever of the usual forms it is written.

    Raises:
        Misconfigured: it is not an http or https URL, carries credentials or a query, or names API version 3.
    """
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError:
        raise Misconfigured(f"the URL of the collateral service cannot be read: {url!r}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Misconfigured(f"the URL of the collateral service must begin with https:// or http://: {url!r}")
    if parts.query or parts.fragment or parts.username is not None:
        raise Misconfigured("the URL of the collateral service must have no user, query or fragment")
    path = parts.path.rstrip("/")
    if path.endswith(_OLD_API_PATH):
        raise Misconfigured("API version 3 of the collateral service is at its end of life; use /sgx/certification/v4/")
    for api_path in _API_PATHS:
        path = path.removesuffix(api_path)
    return urlunsplit((parts.scheme, parts.netloc, path.rstrip("/"), "", ""))
