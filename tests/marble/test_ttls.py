"""A manifest that wants transparent TLS is never run without it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.errors import Malformed, Misconfigured
from marblerun.marble.ttls import TtlsAddresses, parse_ttls_addresses, verify_no_ttls_needed

ENTRY = {"cacrt": "", "clicrt": "", "clikey": "canary", "clientAuth": True}


def test_addresses_are_read_and_keys_left_out() -> None:
    config = {"tls": {"Incoming": {"*:443": ENTRY}, "Outgoing": {"ledger:80": ENTRY}}}
    addresses = parse_ttls_addresses(json.dumps(config).encode())
    assert addresses == TtlsAddresses(("*:443",), ("ledger:80",))
    with pytest.raises(Misconfigured) as refusal:
        verify_no_ttls_needed(addresses)
    assert "*:443, ledger:80" in str(refusal.value)
    assert "canary" not in str(refusal.value)


@pytest.mark.parametrize(
    "tls", [{"Incoming": {}, "Outgoing": {}}, {"Incoming": {}}, {"Outgoing": None, "Incoming": {}}]
)
def test_empty_sections_need_nothing(tls: object) -> None:
    verify_no_ttls_needed(parse_ttls_addresses(json.dumps({"tls": tls}).encode()))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"tls": {}}',
        '{"tls": {"incoming": {"*:1": {}}}}',
        '{"tls": {"Incoming": []}}',
        '{"tls": {"Incoming": {}, "Middle": {}}}',
        '{"TLS": {"Incoming": {}}}',
        '{"tls": {"Incoming": {}}, "more": 1}',
        "[" * 100_000,
    ],
)
def test_unknown_forms_are_refused(text: str) -> None:
    with pytest.raises(Malformed):
        parse_ttls_addresses(text.encode())


@given(st.dictionaries(st.text(), st.just({})), st.dictionaries(st.text(), st.just({})))
def test_every_section_that_names_an_address_is_refused(incoming: object, outgoing: object) -> None:
    addresses = parse_ttls_addresses(json.dumps({"tls": {"Incoming": incoming, "Outgoing": outgoing}}).encode())
    if not incoming and not outgoing:
        verify_no_ttls_needed(addresses)
    else:
        with pytest.raises(Misconfigured):
            verify_no_ttls_needed(addresses)
