"""Settings (protocol, section 1.2), the evidence side they choose, and the log."""

from __future__ import annotations

import ipaddress
import json
import logging
from pathlib import Path

import pytest

from marblerun.attestation.model import Origin
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.coordinator.kubernetes.place import KubernetesPlace
from marblerun.coordinator.server.logs import ConsoleFormatter, JsonFormatter
from marblerun.coordinator.server.overload import Limits
from marblerun.coordinator.server.settings import VARIABLES, Settings, settings_from_environment, split_address
from marblerun.coordinator.server.trust import trust_from_settings
from marblerun.errors import MarbleRunError, Misconfigured
from marblerun.pki.profiles import SubjectNames

CWD = Path("/somewhere")


def read(**environment: str) -> Settings:
    return settings_from_environment(environment, CWD)


DEFAULTS = Settings(
    mesh_address=":2001",
    client_address=":4433",
    prometheus_address="",
    names=SubjectNames(("localhost",)),
    seal_directory=CWD / "marblerun-coordinator-data",
    dev_mode=False,
    debug_logging=False,
    http_error_log_level="error",
    startup_manifest=None,
)


def test_an_empty_environment_gives_the_defaults_of_the_reference() -> None:
    assert read() == DEFAULTS


def test_an_empty_value_counts_as_not_set_for_every_variable() -> None:
    assert read(**{variable.name: "" for variable in VARIABLES}) == DEFAULTS


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("EDG_COORDINATOR_MESH_ADDR", "1.2.3.4:5", "mesh_address", "1.2.3.4:5"),
        ("EDG_COORDINATOR_CLIENT_ADDR", "[::1]:0", "client_address", "[::1]:0"),
        ("EDG_COORDINATOR_PROMETHEUS_ADDR", "x:1", "prometheus_address", "x:1"),
        ("EDG_COORDINATOR_SEAL_DIR", "/s", "seal_directory", Path("/s")),
        ("EDG_COLLATERAL_DIR", "/c", "collateral_directory", Path("/c")),
        ("EDG_QCNL_CONFIG", "/q", "qcnl_config", Path("/q")),
        ("EDG_LIMIT_CONNECTIONS", "7", "limits", Limits(connections=7)),
        ("EDG_LIMIT_HANDSHAKES", "7", "limits", Limits(handshakes=7)),
        ("EDG_LIMIT_ACTIVATIONS", "7", "limits", Limits(activations=7)),
        ("EDG_LIMIT_REQUESTS", "7", "limits", Limits(requests=7)),
        ("EDG_LIMIT_WAIT", "7.5", "limits", Limits(wait_seconds=7.5)),
        ("EDG_LIMIT_KEY_THREADS", "7", "limits", Limits(key_threads=7)),
        ("EDG_COORDINATOR_DEV_MODE", "1", "dev_mode", True),
        ("EDG_COORDINATOR_DEV_MODE", "true", "dev_mode", False),
        ("EDG_DEBUG_LOGGING", "1", "debug_logging", True),
        ("EDG_DEBUG_LOGGING", "0", "debug_logging", False),
        ("EDG_HTTP_ERROR_LOG_LEVEL", "DEBUG", "http_error_log_level", "debug"),
        ("EDG_HTTP_ERROR_LOG_LEVEL", "loud", "http_error_log_level", "error"),
        ("EDG_STARTUP_MANIFEST", "/m.json", "startup_manifest", Path("/m.json")),
        ("EDG_CWD", "/elsewhere", "seal_directory", Path("/elsewhere/marblerun-coordinator-data")),
        ("EDG_PCCS_URL", "https://pccs", "pccs_url", "https://pccs"),
        ("EDG_PCCS_CA_FILE", "/ca", "pccs_ca_file", Path("/ca")),
        ("EDG_PCCS_TIMEOUT", "2.5", "pccs_timeout_seconds", 2.5),
        ("EDG_COLLATERAL_CACHE_DIR", "/c", "collateral_cache_directory", Path("/c")),
    ],
)
def test_every_variable_has_its_effect(name: str, value: str, field: str, expected: object) -> None:
    assert getattr(read(**{name: value}), field) == expected


def test_dns_names_are_split_at_commas_without_trimming_and_addresses_sorted_out() -> None:
    names = read(EDG_COORDINATOR_DNS_NAMES="a,10.0.0.1,b.c,::1").names
    assert names.dns_names == ("a", "b.c")
    assert names.ip_addresses == (ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("::1"))


@pytest.mark.parametrize("text", ["0", "-1", "abc", "nan", "inf", "3600", "1e9"])
def test_an_impossible_time_out_is_refused_with_the_variable_named(text: str) -> None:
    with pytest.raises(Misconfigured, match="EDG_PCCS_TIMEOUT"):
        read(EDG_PCCS_TIMEOUT=text)


def test_unknown_variables_are_warned_about_and_known_ones_are_not() -> None:
    warnings = read(EDG_COORDINATOR_MESH_ADR=":1", EDG_MARBLE_TYPE="x", PATH="/bin", EDG_K8S_NAMESPACE="n").warnings
    assert sorted(warnings) == [
        "unknown variable EDG_COORDINATOR_MESH_ADR has no effect",
        "variable EDG_K8S_NAMESPACE has no effect without EDG_DISTRIBUTED_COORDINATOR=1",
    ]
    known = {v.name: "1" for v in VARIABLES if v.name.startswith("EDG_COORD")}
    assert read(**known | {"EDG_COORDINATOR_ANCHOR": "file:/a"}).warnings == ()


@pytest.mark.parametrize(
    "environment",
    [{"EDG_DISTRIBUTED_COORDINATOR": "1"}, {"EDG_ENTERPRISE_LICENSED_FEATURES": "x,DistributedCoordinator"}],
)
def test_several_coordinators_share_a_state_in_kubernetes_and_nowhere_else(environment: dict[str, str]) -> None:
    with pytest.raises(Misconfigured, match="EDG_STORE_BACKEND is ''"):
        read(**environment)
    with pytest.raises(Misconfigured, match="EDG_STORE_BACKEND is 'file'"):
        read(**environment, EDG_STORE_BACKEND="file")
    found = read(**environment, EDG_STORE_BACKEND="k8s-secret", EDG_K8S_STATE_NAME="mine", EDG_K8S_NAMESPACE="ns")
    assert found.kubernetes == KubernetesPlace(state_name="mine", namespace="ns")
    assert found.warnings == ()
    alone = read(EDG_DISTRIBUTED_COORDINATOR="0", EDG_STORE_BACKEND="k8s-secret")
    assert (alone.kubernetes, len(alone.warnings)) == (None, 1)


@pytest.mark.parametrize("variable", ["EDG_K8S_STATE_NAME", "EDG_K8S_KEK_MAP", "EDG_K8S_SERVICE_NAME"])
@pytest.mark.parametrize("name", ["Upper", "a/b", "-a", "a..b", "x" * 254, "a b", "../secrets/other"])
def test_a_name_that_no_object_can_have_is_refused(variable: str, name: str) -> None:
    with pytest.raises(Misconfigured, match=variable):
        read(**SHARED | {variable: name})


@pytest.mark.parametrize("anchor", ["file:/anchor", "tpm:0x01500100"])
def test_an_anchor_of_one_machine_is_refused_where_several_write(anchor: str) -> None:
    with pytest.raises(Misconfigured, match="only an anchor in etcd can be right"):
        read(**SHARED, EDG_COORDINATOR_ANCHOR=anchor)
    assert read(**SHARED, EDG_COORDINATOR_ANCHOR="etcd:https://etcd:2379/key").kubernetes is not None


SHARED = {"EDG_DISTRIBUTED_COORDINATOR": "1", "EDG_STORE_BACKEND": "k8s-secret"}


@pytest.mark.parametrize(
    ("address", "expected"),
    [(":2001", (None, 2001)), ("h:0", ("h", 0)), ("[::1]:443", ("::1", 443)), ("1.2.3.4:65535", ("1.2.3.4", 65535))],
)
def test_addresses_are_split(address: str, expected: tuple[str | None, int]) -> None:
    assert split_address(address, "X") == expected


@pytest.mark.parametrize("address", ["", "2001", "h:", "h:x", "h:65536", "h:-1", "h:٣", "h: 1"])
def test_addresses_without_a_port_are_refused_with_the_variable_named(address: str) -> None:
    with pytest.raises(Misconfigured, match="EDG_X"):
        split_address(address, "EDG_X")


# -- trust -------------------------------------------------------------------------------------------------------


def test_without_a_tee_a_coordinator_refuses_to_start_and_says_what_to_do() -> None:
    """Holds where there is no TEE, which every machine that runs these tests is taken to be."""
    if Path("/dev/attestation").exists() or Path("/sys/kernel/config/tsm/report").exists():
        pytest.skip("this machine has a TEE")
    with pytest.raises(Misconfigured, match=r"OE_SIMULATION=1.*") as refused:
        trust_from_settings({}, read())
    assert "EDG_SIMULATED_PLATFORM" in str(refused.value)


def test_both_simulations_at_once_are_refused(platform: SimulatedPlatform) -> None:
    environment = {"OE_SIMULATION": "1", "EDG_SIMULATED_PLATFORM": str(platform.directory)}
    with pytest.raises(Misconfigured, match="exclude each other"):
        trust_from_settings(environment, read())


@pytest.mark.parametrize("value", ["0", "", "true", "yes"])
def test_only_the_value_1_turns_evidence_off(platform: SimulatedPlatform, value: str) -> None:
    environment = {"OE_SIMULATION": value, "EDG_SIMULATED_PLATFORM": str(platform.directory)}
    trust = trust_from_settings(environment, read())
    assert trust.admission.origins == {Origin.HARDWARE, Origin.SIMULATED}


def test_no_evidence_is_loud_and_admits_nothing_else() -> None:
    trust = trust_from_settings({"OE_SIMULATION": "1"}, read())
    assert trust.admission.origins == {Origin.NONE}
    assert trust.issuer.issue(bytes(64)) == b""
    assert "Never use this in production" in trust.warnings[0]


def test_a_simulated_platform_is_loud_and_does_not_admit_marbles_without_evidence(platform: SimulatedPlatform) -> None:
    trust = trust_from_settings({"EDG_SIMULATED_PLATFORM": str(platform.directory)}, read())
    assert Origin.NONE not in trust.admission.origins
    assert trust.issuer.origin is Origin.SIMULATED
    assert any("Never use this in production" in warning for warning in trust.warnings)


def test_development_mode_goes_on_without_own_evidence_but_still_demands_it_of_marbles() -> None:
    settings = read(EDG_COORDINATOR_DEV_MODE="1")
    trust = trust_from_settings({"EDG_COORDINATOR_DEV_MODE": "1"}, settings)
    assert trust.admission.origins == {Origin.HARDWARE}
    assert trust.warnings


def test_a_platform_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MarbleRunError):
        trust_from_settings({"EDG_SIMULATED_PLATFORM": str(tmp_path / "nothing")}, read())


# -- the log -----------------------------------------------------------------------------------------------------


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("name", logging.WARNING, "path", 7, message, (), None)
    made.fields = fields
    return made


def test_a_log_line_is_one_json_object_whatever_peers_send() -> None:
    line = JsonFormatter().format(record('x"\n', marbleType='a"\n{\u2028', bad="\udcff"))
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["msg"], entry["marbleType"]) == ("warn", 'x"\n', 'a"\n{\u2028')


def test_a_console_line_cannot_be_forged_by_a_peer() -> None:
    forged = "x\n14:00:00 INFO  all is well\r\x1b[2K"
    line = ConsoleFormatter().format(record("refused", marbleType=forged))
    assert "\n" not in line
    assert "\r" not in line
    assert "\x1b" not in line


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "10000000", "٣"])
@pytest.mark.parametrize("name", ["CONNECTIONS", "HANDSHAKES", "ACTIVATIONS", "REQUESTS", "KEY_THREADS"])
def test_a_limit_that_is_no_sensible_number_is_refused_with_its_name(name: str, value: str) -> None:
    with pytest.raises(Misconfigured, match=f"EDG_LIMIT_{name} is "):
        read(**{f"EDG_LIMIT_{name}": value})
