"""The Coordinator's settings: environment variables (and options over them) as one frozen value.

An empty value counts as not set, as in the reference (protocol, section 1.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from marblerun.coordinator.kubernetes.place import KubernetesPlace, place_from_variables
from marblerun.coordinator.server.overload import Limits
from marblerun.coordinator.store.anchors import AnchorPlace, EtcdPlace, TlsFiles, parse_anchor
from marblerun.errors import Misconfigured
from marblerun.pki.profiles import SubjectNames

DEFAULT_DATA_DIRECTORY: Final = "marblerun-coordinator-data"
LOG_LEVELS: Final = ("debug", "info", "warn", "error")


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable: its name, what it does, and its default as shown in help."""

    name: str
    meaning: str
    default: str = ""


VARIABLES: Final = (
    Variable("EDG_COORDINATOR_MESH_ADDR", "listener for Marbles (gRPC)", ":2001"),
    Variable("EDG_COORDINATOR_CLIENT_ADDR", "listener for users (HTTPS)", ":4433"),
    Variable(
        "EDG_COORDINATOR_PROMETHEUS_ADDR",
        "listener for metrics, events and health (plain HTTP); loopback if no host is given; unset = off",
    ),
    Variable("EDG_COORDINATOR_METRICS_UUID", "1: metrics of activations have the Marble's UUID as a label", "0"),
    Variable(
        "EDG_COORDINATOR_DNS_NAMES", "names and IP addresses in the CA certificates, comma separated", "localhost"
    ),
    Variable("EDG_COORDINATOR_SEAL_DIR", "state directory", f"<cwd>/{DEFAULT_DATA_DIRECTORY}"),
    Variable(
        "EDG_COORDINATOR_TPM",
        "seal the state to a TPM 2.0: 1 for device:/dev/tpmrm0, or where it is (device:PATH, swtpm:OPTIONS); unset = "
        "the sealing key of the TEE",
    ),
    Variable(
        "EDG_COORDINATOR_TPM_PCRS",
        "bank and PCRs that the TPM seals to; SealMode UniqueKey adds 8, 9 and 12",
        "sha256:0,2,4,7",
    ),
    Variable(
        "EDG_COORDINATOR_ANCHOR",
        "what remembers the latest state outside the state directory: file:PATH, tpm:INDEX or etcd:URL/KEY; unset = "
        "nothing",
    ),
    Variable("EDG_COORDINATOR_ANCHOR_CA_FILE", "CA certificates (PEM) that vouch for the anchor's etcd"),
    Variable("EDG_COORDINATOR_ANCHOR_CERT_FILE", "this Coordinator's certificate for the anchor's etcd (PEM)"),
    Variable("EDG_COORDINATOR_ANCHOR_KEY_FILE", "its private key (PEM)"),
    Variable("EDG_DISTRIBUTED_COORDINATOR", "1: several Coordinators share one state, in Kubernetes", "0"),
    Variable(
        "EDG_ENTERPRISE_LICENSED_FEATURES", "a list with distributedcoordinator in it: the same, by its earlier name"
    ),
    Variable("EDG_STORE_BACKEND", "k8s-secret: where several Coordinators have their state; nothing else is possible"),
    Variable("EDG_K8S_STATE_NAME", "name of the Secret that holds the state", "marblerun-state"),
    Variable("EDG_K8S_KEK_MAP", "name of the ConfigMap that holds the sealed keys", "marblerun-sealed-kek"),
    Variable(
        "EDG_K8S_SERVICE_NAME", "name of the Service by which Coordinators find each other", "coordinator-key-api"
    ),
    Variable("EDG_K8S_NAMESPACE", "namespace of all three", "that of the service account"),
    Variable(
        "EDG_K8S_ACCOUNT_DIR",
        "directory of the service account: token, ca.crt, namespace",
        "/var/run/secrets/kubernetes.io/serviceaccount",
    ),
    Variable("EDG_KUBERNETES_SERVICE_HOST", "the cluster's API server", "KUBERNETES_SERVICE_HOST"),
    Variable("EDG_KUBERNETES_SERVICE_PORT", "its port", "KUBERNETES_SERVICE_PORT"),
    Variable("EDG_COORDINATOR_KEY_ADDR", "listener for other Coordinators of the same state (gRPC)", ":5433"),
    Variable("EDG_COORDINATOR_DEV_MODE", "1: console log; go on if the first quote cannot be issued", "0"),
    Variable("EDG_DEBUG_LOGGING", "1: debug level", "0"),
    Variable("EDG_HTTP_ERROR_LOG_LEVEL", "level of handshake and connection errors in the log", "error"),
    Variable(
        "EDG_LIMIT_CONNECTIONS", "open connections of one listener; more are closed at once", str(Limits().connections)
    ),
    Variable(
        "EDG_LIMIT_HANDSHAKES", "connections of one listener with an unfinished handshake", str(Limits().handshakes)
    ),
    Variable(
        "EDG_LIMIT_ACTIVATIONS",
        "activations that wait or are under way; more are refused with RESOURCE_EXHAUSTED",
        str(Limits().activations),
    ),
    Variable(
        "EDG_LIMIT_REQUESTS",
        "requests of the client API that wait or are under way; more are refused with 503",
        str(Limits().requests),
    ),
    Variable(
        "EDG_LIMIT_WAIT", "seconds: who is expected to wait longer for a turn is refused", f"{Limits().wait_seconds:g}"
    ),
    Variable("EDG_LIMIT_KEY_THREADS", "threads that make RSA keys for Marbles", "processors less one, at least 1"),
    Variable("EDG_STARTUP_MANIFEST", "path of a manifest to set at start"),
    Variable("EDG_CWD", "directory that stands for the working directory"),
    Variable(
        "EDG_SIMULATED_PLATFORM", "directory of a simulated platform: own evidence and a trusted root; not hardware"
    ),
    Variable("EDG_SIMULATED_UNIQUE_ID", "MRENCLAVE that the simulated platform reports for this process (hex)"),
    Variable("EDG_SIMULATED_SIGNER_ID", "MRSIGNER that the simulated platform reports for this process (hex)"),
    Variable("EDG_SIMULATED_PRODUCT_ID", "ISVPRODID that the simulated platform reports for this process"),
    Variable("EDG_SIMULATED_SECURITY_VERSION", "ISVSVN that the simulated platform reports for this process"),
    Variable("EDG_SIMULATED_DEBUG", "1: the simulated platform reports this process as a debug enclave", "0"),
    Variable(
        "EDG_PCCS_URL",
        "base URL of the collateral service; several, separated by commas, are asked in turn",
        "https://api.trustedservices.intel.com",
    ),
    Variable("EDG_PCCS_CA_FILE", "CA certificates (PEM) that vouch for the collateral service"),
    Variable("EDG_PCCS_TIMEOUT", "seconds for one request to the collateral service", "10"),
    Variable(
        "EDG_PCS_API_KEY_FILE",
        "file with a subscription key for Intel's service, which asks for one when PCK certificates are fetched",
    ),
    Variable("EDG_COLLATERAL_CACHE_DIR", "directory that keeps collateral over restarts"),
    Variable(
        "EDG_COLLATERAL_DIR",
        "directory of collateral files ('marblerun evidence collateral fetch'): used without a network, or after "
        "EDG_PCCS_URL",
    ),
    Variable(
        "EDG_QCNL_CONFIG",
        "the quote provider's configuration; names the collateral service if neither EDG_PCCS_URL nor "
        "EDG_COLLATERAL_DIR does",
        "/etc/sgx_default_qcnl.conf",
    ),
    Variable(
        "OE_SIMULATION", "1: no evidence at all, as the reference's switch of that name; never in production", "0"
    ),
)

# Known to the reference, for what cannot be had here yet; the manifest gate or the mode that needs them is refused.
_NOT_BUILT: Final = ("EDG_AZURE_", "EDG_MAA_")
# What has an effect only where several Coordinators share a state.
_SHARED: Final = ("EDG_K8S_", "EDG_STORE_BACKEND")
_BACKEND: Final = "k8s-secret"
_MARBLE_PREFIX: Final = "EDG_MARBLE_"


@dataclass(frozen=True, slots=True)
class Settings:
    """How this Coordinator runs."""

    mesh_address: str = ":2001"
    client_address: str = ":4433"
    prometheus_address: str = ""
    metrics_uuid: bool = False
    names: SubjectNames = field(default_factory=SubjectNames)
    """In the CA certificates, beside the loopback addresses."""
    seal_directory: Path = Path(DEFAULT_DATA_DIRECTORY)
    kubernetes: KubernetesPlace | None = None
    """Where the state is shared with other Coordinators; ``None``: it is this one's own, in ``seal_directory``."""
    key_address: str = ":5433"
    anchor: AnchorPlace | None = None
    anchor_tls: TlsFiles = field(default_factory=TlsFiles)
    dev_mode: bool = False
    debug_logging: bool = False
    http_error_log_level: str = "error"
    limits: Limits = field(default_factory=Limits)
    startup_manifest: Path | None = None
    pccs_url: str = ""
    pccs_ca_file: Path | None = None
    pccs_timeout_seconds: float = 10.0
    pcs_api_key_file: Path | None = None
    collateral_cache_directory: Path | None = None
    collateral_directory: Path | None = None
    qcnl_config: Path | None = None
    warnings: tuple[str, ...] = ()


def settings_from_environment(environment: Mapping[str, str], working_directory: Path) -> Settings:
    """Read the settings; raises Misconfigured with what to do about a value that cannot be used."""
    value = {name: text for name, text in environment.items() if text}
    _refuse_renamed(value)
    anchor = parse_anchor(value["EDG_COORDINATOR_ANCHOR"]) if "EDG_COORDINATOR_ANCHOR" in value else None
    cwd = Path(value.get("EDG_CWD", str(working_directory)))
    level = value.get("EDG_HTTP_ERROR_LOG_LEVEL", "error").lower()
    return Settings(
        mesh_address=value.get("EDG_COORDINATOR_MESH_ADDR", ":2001"),
        client_address=value.get("EDG_COORDINATOR_CLIENT_ADDR", ":4433"),
        prometheus_address=value.get("EDG_COORDINATOR_PROMETHEUS_ADDR", ""),
        metrics_uuid=value.get("EDG_COORDINATOR_METRICS_UUID") == "1",
        names=SubjectNames.parse(value.get("EDG_COORDINATOR_DNS_NAMES", "localhost")),
        seal_directory=Path(value.get("EDG_COORDINATOR_SEAL_DIR", str(cwd / DEFAULT_DATA_DIRECTORY))),
        kubernetes=_kubernetes(value, anchor),
        key_address=value.get("EDG_COORDINATOR_KEY_ADDR", ":5433"),
        anchor=anchor,
        anchor_tls=TlsFiles(
            _path(value, "EDG_COORDINATOR_ANCHOR_CA_FILE"),
            _path(value, "EDG_COORDINATOR_ANCHOR_CERT_FILE"),
            _path(value, "EDG_COORDINATOR_ANCHOR_KEY_FILE"),
        ),
        dev_mode=value.get("EDG_COORDINATOR_DEV_MODE") == "1",
        debug_logging=value.get("EDG_DEBUG_LOGGING") == "1",
        http_error_log_level=level if level in LOG_LEVELS else "error",
        limits=_limits(value),
        startup_manifest=_path(value, "EDG_STARTUP_MANIFEST"),
        pccs_url=value.get("EDG_PCCS_URL", ""),
        pccs_ca_file=_path(value, "EDG_PCCS_CA_FILE"),
        pccs_timeout_seconds=_seconds(value, "EDG_PCCS_TIMEOUT", 10.0),
        pcs_api_key_file=_path(value, "EDG_PCS_API_KEY_FILE"),
        collateral_cache_directory=_path(value, "EDG_COLLATERAL_CACHE_DIR"),
        collateral_directory=_path(value, "EDG_COLLATERAL_DIR"),
        qcnl_config=_path(value, "EDG_QCNL_CONFIG"),
        warnings=_unknown_variables(value),
    )


def _limits(value: Mapping[str, str]) -> Limits:
    usual = Limits()
    return Limits(
        connections=_count(value, "EDG_LIMIT_CONNECTIONS", usual.connections),
        handshakes=_count(value, "EDG_LIMIT_HANDSHAKES", usual.handshakes),
        activations=_count(value, "EDG_LIMIT_ACTIVATIONS", usual.activations),
        requests=_count(value, "EDG_LIMIT_REQUESTS", usual.requests),
        key_threads=_count(value, "EDG_LIMIT_KEY_THREADS", usual.key_threads, most=64),
        wait_seconds=_seconds(value, "EDG_LIMIT_WAIT", usual.wait_seconds),
    )


def _count(value: Mapping[str, str], name: str, default: int, most: int = 1_000_000) -> int:
    text = value.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 0 < int(text) <= most:
        raise Misconfigured(f"{name} is {text!r}; give a whole number from 1 to {most}")
    return int(text)


def _path(value: Mapping[str, str], name: str) -> Path | None:
    return Path(value[name]) if name in value else None


def _seconds(value: Mapping[str, str], name: str, default: float) -> float:
    text = value.get(name)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 3600:
        raise Misconfigured(f"{name} is {text!r}; give a number of seconds above 0 and below 3600")
    return seconds


def _refuse_renamed(value: Mapping[str, str]) -> None:
    if "EDG_COORDINATOR_ANCHOR_FILE" in value:  # its earlier name; without effect, going back would not be noticed
        raise Misconfigured("EDG_COORDINATOR_ANCHOR_FILE is now EDG_COORDINATOR_ANCHOR=file:PATH")


def _is_distributed(value: Mapping[str, str]) -> bool:
    licensed = "distributedcoordinator" in value.get("EDG_ENTERPRISE_LICENSED_FEATURES", "").lower()
    return licensed or value.get("EDG_DISTRIBUTED_COORDINATOR") == "1"


def _kubernetes(value: Mapping[str, str], anchor: AnchorPlace | None) -> KubernetesPlace | None:
    """Where several Coordinators keep their state, if this is one of several; refuses what cannot be right then."""
    if not _is_distributed(value):
        return None
    backend = value.get("EDG_STORE_BACKEND", "")
    if backend != _BACKEND:
        raise Misconfigured(
            f"EDG_STORE_BACKEND is {backend!r}, but several Coordinators can share a state only in Kubernetes: set "
            f"it to {_BACKEND}, or unset EDG_DISTRIBUTED_COORDINATOR and run one Coordinator"
        )
    if anchor is not None and not isinstance(anchor, EtcdPlace):
        raise Misconfigured(
            "EDG_COORDINATOR_ANCHOR names a memory of one machine, which does not know what Coordinators on other "
            "machines write; with several of them only an anchor in etcd can be right: etcd:https://HOST:2379/KEY"
        )
    return place_from_variables(value)


def _unknown_variables(value: Mapping[str, str]) -> tuple[str, ...]:
    known = {variable.name for variable in VARIABLES}
    strange = [name for name in sorted(value) if name.startswith("EDG_") and name not in known]
    idle = [] if _is_distributed(value) else [name for name in sorted(value) if name.startswith(_SHARED)]
    without = tuple(f"variable {name} has no effect without EDG_DISTRIBUTED_COORDINATOR=1" for name in idle)
    return without + tuple(
        f"variable {name} has no effect: what it belongs to is not built here yet"
        if name.startswith(_NOT_BUILT)
        else f"unknown variable {name} has no effect"
        for name in strange
        if not name.startswith((_MARBLE_PREFIX, *_SHARED))
    )


def split_address(address: str, variable: str) -> tuple[str | None, int]:
    """Split ``host:port``; an empty host means every interface (None). Raises Misconfigured."""
    host, separator, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Misconfigured(f"{variable} is {address!r}; give host:port, for example 0.0.0.0:4433, or :4433")
    return host or None, int(port)
