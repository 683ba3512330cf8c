"""Which cluster this process is in, and as whom it comes: what Kubernetes puts into every pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marblerun.coordinator.kubernetes.place import ACCOUNT_DIRECTORY
from marblerun.errors import Misconfigured

ANSWER_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """An API server with the service account that this process has there."""

    url: str
    token_file: Path
    """Read for every request: it is replaced while we run."""
    ca_file: Path
    """The only CA that the server's certificate may come from (PEM)."""
    answer_seconds: float = ANSWER_SECONDS
    """How long one answer may take."""


def in_cluster(environment: Mapping[str, str], account: Path = ACCOUNT_DIRECTORY) -> Cluster:
    """The cluster of the pod that this is; raises Misconfigured outside one (protocol, section 1.2).

    An enclave may see only variables with the prefix ``EDG_``, so these come first.
    """
    host, port = _variable(environment, "HOST"), _variable(environment, "PORT")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise Misconfigured(
            "the state is to be kept in Kubernetes, but this is not a pod: EDG_KUBERNETES_SERVICE_HOST and "
            "EDG_KUBERNETES_SERVICE_PORT (or the names without EDG_) say where its API server is"
        )
    authority = f"[{host}]" if ":" in host else host
    return Cluster(f"https://{authority}:{port}", account / "token", account / "ca.crt")


def _variable(environment: Mapping[str, str], name: str) -> str:
    plain = f"KUBERNETES_SERVICE_{name}"
    return environment.get(f"EDG_{plain}") or environment.get(plain, "")


def namespace_of(account: Path = ACCOUNT_DIRECTORY) -> str:
    """The namespace of the pod, empty if it cannot be known."""
    try:
        return (account / "namespace").read_text("ascii").strip()
    except (OSError, ValueError):
        return ""
