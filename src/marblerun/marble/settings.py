"""The settings of a Marble: the ``EDG_MARBLE_*`` variables as one checked value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marblerun.errors import Misconfigured
from marblerun.pki.profiles import SubjectNames

DEFAULT_COORDINATOR: Final = "localhost:2001"
DEFAULT_TIMEOUT_SECONDS: Final = 300.0

_DURATION: Final = re.compile(r"(\d{1,7}(?:\.\d{1,3})?)(s|m|h|)", re.ASCII)
_UNIT_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class MarbleSettings:
    """What a Marble needs to know before it can ask for its identity. Source: cli-marble-k8s, section 3.1."""

    marble_type: str
    coordinator: Endpoint
    names: SubjectNames
    """Names and addresses under which this service can be reached; the loopback addresses come on top."""
    uuid_file: Path
    timeout: float = DEFAULT_TIMEOUT_SECONDS
    """Seconds to wait for a Coordinator that is not ready, over all attempts."""
    log_json: bool = False


def load_settings(environment: Mapping[str, str], working_directory: Path) -> MarbleSettings:
    """Return the settings that ``environment`` holds; an empty value counts as unset.

    Raises:
        Misconfigured: ``EDG_MARBLE_TYPE`` is missing, or a value is not what its variable takes.
    """
    marble_type = environment.get("EDG_MARBLE_TYPE", "")
    if not marble_type:
        raise Misconfigured("EDG_MARBLE_TYPE is not set: it must name the Marble of the manifest that this process is")
    uuid_file = environment.get("EDG_MARBLE_UUID_FILE") or "uuid"
    base = environment.get("EDG_CWD") or working_directory
    names = environment.get("EDG_MARBLE_DNS_NAMES") or "localhost"
    timeout = environment.get("EDG_MARBLE_ACTIVATION_TIMEOUT", "")
    return MarbleSettings(
        marble_type=marble_type,
        coordinator=parse_endpoint(
            environment.get("EDG_MARBLE_COORDINATOR_ADDR") or DEFAULT_COORDINATOR, "EDG_MARBLE_COORDINATOR_ADDR"
        ),
        names=SubjectNames.parse(",".join(name.strip() for name in names.split(",") if name.strip())),
        uuid_file=Path(base, uuid_file),
        timeout=parse_duration(timeout, "EDG_MARBLE_ACTIVATION_TIMEOUT") if timeout else DEFAULT_TIMEOUT_SECONDS,
        log_json=environment.get("EDG_LOG_FORMAT") == "json",
    )


def parse_endpoint(text: str, name: str) -> Endpoint:
    """Return the host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; raises Misconfigured, naming the setting."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise Misconfigured(f"{name}: {text!r} is not HOST:PORT; put brackets around an IPv6 address")
    if not (colon and host and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535):
        raise Misconfigured(f"{name}: {text!r} is not HOST:PORT")
    return Endpoint(host, int(port))


def parse_duration(text: str, name: str) -> float:
    """Return the seconds in ``90``, ``90s``, ``1.5m`` or ``2h``; raises Misconfigured, naming the setting."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise Misconfigured(f"{name}: {text!r} is not a duration such as 90s, 5m or 1h")
    return float(found[1]) * _UNIT_SECONDS[found[2]]
