"""Where in a cluster a deployment has its parts: names of objects and their namespace. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marblerun.errors import Misconfigured

ACCOUNT_DIRECTORY: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Source: Kubernetes, "Accessing the Kubernetes API from a Pod"."""
# Source: Kubernetes, "Object Names and IDs": DNS subdomain names.
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class KubernetesPlace:
    """The objects of one deployment (protocol, section 1.2)."""

    state_name: str = "marblerun-state"
    """The Secret with the state."""
    kek_map: str = "marblerun-sealed-kek"
    """The ConfigMap with the key encryption key, sealed for each machine."""
    service_name: str = "coordinator-key-api"
    """The Service by which Coordinators find each other."""
    namespace: str = ""
    """Of all three; empty: that of the service account."""
    account_directory: Path = ACCOUNT_DIRECTORY


def place_from_variables(value: Mapping[str, str]) -> KubernetesPlace:
    """The place that the settings name; raises Misconfigured for a name that no object can have."""
    usual = KubernetesPlace()
    return KubernetesPlace(
        state_name=_name(value, "EDG_K8S_STATE_NAME", usual.state_name),
        kek_map=_name(value, "EDG_K8S_KEK_MAP", usual.kek_map),
        service_name=_name(value, "EDG_K8S_SERVICE_NAME", usual.service_name),
        namespace=_name(value, "EDG_K8S_NAMESPACE", usual.namespace),
        account_directory=Path(value.get("EDG_K8S_ACCOUNT_DIR", str(usual.account_directory))),
    )


def _name(value: Mapping[str, str], variable: str, default: str) -> str:
    name = value.get(variable, default)
    if name and not _NAME.fullmatch(name):
        raise Misconfigured(f"{variable} is {name[:80]!r}; names in Kubernetes have small letters, digits, '-' and '.'")
    return name
