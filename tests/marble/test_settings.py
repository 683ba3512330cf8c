"""The variables of a Marble."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from marblerun.errors import Misconfigured
from marblerun.marble.settings import Endpoint, MarbleSettings, load_settings, parse_duration, parse_endpoint
from marblerun.pki.profiles import SubjectNames


def test_only_the_type_is_mandatory_and_empty_means_unset() -> None:
    expected = MarbleSettings(
        "shop", Endpoint("localhost", 2001), SubjectNames(("localhost",), ()), Path("/app/uuid"), 300.0, False
    )
    environment = {"EDG_MARBLE_TYPE": "shop"}
    assert load_settings(environment, Path("/app")) == expected
    names = ("COORDINATOR_ADDR", "DNS_NAMES", "UUID_FILE", "ACTIVATION_TIMEOUT")
    empty = {f"EDG_MARBLE_{name}": "" for name in names} | {"EDG_LOG_FORMAT": "", "EDG_CWD": ""}
    assert load_settings(environment | empty, Path("/app")) == expected


def test_a_missing_type_says_what_to_set() -> None:
    with pytest.raises(Misconfigured, match="EDG_MARBLE_TYPE is not set"):
        load_settings({"EDG_MARBLE_TYPE": ""}, Path("/"))


def test_every_variable_counts() -> None:
    environment = {
        "EDG_MARBLE_TYPE": "shop",
        "EDG_MARBLE_COORDINATOR_ADDR": "coordinator-mesh-api.marblerun:2001",
        "EDG_MARBLE_DNS_NAMES": "shop, shop.svc,10.0.0.1,::2",
        "EDG_MARBLE_UUID_FILE": "data/id",
        "EDG_MARBLE_ACTIVATION_TIMEOUT": "90s",
        "EDG_LOG_FORMAT": "json",
        "EDG_CWD": "/cwd",
    }
    assert load_settings(environment, Path("/app")) == MarbleSettings(
        "shop",
        Endpoint("coordinator-mesh-api.marblerun", 2001),
        SubjectNames(("shop", "shop.svc"), (ip_address("10.0.0.1"), ip_address("::2"))),
        Path("/cwd/data/id"),
        90.0,
        True,
    )


def test_an_absolute_uuid_file_stays_where_it_is() -> None:
    environment = {"EDG_MARBLE_TYPE": "t", "EDG_MARBLE_UUID_FILE": "/data/uuid"}
    assert load_settings(environment, Path("/app")).uuid_file == Path("/data/uuid")


def test_an_ipv6_endpoint_is_read_and_written_in_brackets() -> None:
    endpoint = parse_endpoint("[::1]:2001", "X")
    assert endpoint == Endpoint("::1", 2001)
    assert str(endpoint) == "[::1]:2001"


@pytest.mark.parametrize(
    "text", ["host", "host:", ":2001", "::1:2001", "host:0", "host:65536", "host:２", "h:-1", "[]:1"]
)
def test_what_is_no_endpoint_names_the_variable(text: str) -> None:
    with pytest.raises(Misconfigured, match="EDG_X"):
        parse_endpoint(text, "EDG_X")


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("90", 90.0), ("1.5m", 90.0), ("2h", 7200.0), ("3s", 3.0)])
def test_durations_have_a_unit_or_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text, "X") == seconds


@pytest.mark.parametrize("text", ["-1", "s", "1d", "1 s", "inf", "nan", "1e9", "٣", "12345678"])
def test_what_is_no_duration_names_the_variable(text: str) -> None:
    with pytest.raises(Misconfigured, match="EDG_X"):
        parse_duration(text, "EDG_X")
