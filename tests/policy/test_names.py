"""Which names a Marble's certificate may state: literal, label by label, anchored, every offender named."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from marblerun.errors import Denied
from marblerun.manifest.allowed import is_dns_pattern, parse_network
from marblerun.manifest.model import Marble
from marblerun.pki.profiles import LOOPBACK, IpAddress
from marblerun.policy.names import dns_patterns, is_dns_name_allowed, is_ip_allowed, require_names

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
labels = st.text(_LETTERS + "_", min_size=1, max_size=8)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
anything = st.one_of(names, st.text(max_size=20), st.text("ab.*-", max_size=10))


def allowed(name: str, *patterns: str) -> bool:
    return is_dns_name_allowed(name, dns_patterns(patterns))


@given(names)
def test_a_listed_name_is_allowed_in_upper_and_lower_case(name: str) -> None:
    assert allowed(name, name)
    assert allowed(name.upper(), name)
    assert allowed(name, name.upper())


@given(anything, names)
def test_without_an_asterisk_only_the_very_name_fits(asked: str, pattern: str) -> None:
    assume(asked.isascii())
    assert allowed(asked, pattern) is (asked.lower() in (pattern, "localhost"))


@given(names, labels)
def test_an_asterisk_is_exactly_one_label(base: str, label: str) -> None:
    pattern = f"*.{base}"
    assert allowed(f"{label}.{base}", pattern)
    for other in (base, f".{base}", f"a.{label}.{base}", f"{label}.{base}.", f"{label}.{base}.evil", f"{label}{base}"):
        assume(other != "localhost")
        assert not allowed(other, pattern), other


@given(names, st.text(_LETTERS + "-.", min_size=1, max_size=8))
def test_the_match_is_anchored_at_both_ends(base: str, more: str) -> None:
    assume("localhost" not in (f"{more}{base}", f"{base}{more}"))
    assert not allowed(f"{more}{base}", base)
    assert not allowed(f"{base}{more}", base)


@given(names, st.characters())
def test_a_dot_is_a_dot(base: str, other: str) -> None:
    assume(other != ".")
    assert not allowed(f"db{other}{base}", f"db.{base}")
    assert not allowed(f"x.db{other}{base}", f"*.db.{base}")


@given(anything)
def test_an_empty_list_allows_the_local_host_only(asked: str) -> None:
    assert allowed(asked) is (asked.isascii() and asked.lower() == "localhost")


@pytest.mark.parametrize(
    "asked",
    ["*.a.b", "x*.a.b", "a\0.a.b", " .a.b", "-x.a.b", "x-.a.b", "\u212a.a.b", "x" * 64 + ".a.b", "a b.a.b", "é.a.b",
     "a.b", ".a.b", "x..a.b", "x.a.b.", "x.a.b\n", "%2a.a.b"],
)  # fmt: skip
def test_what_is_no_plain_label_does_not_fit_an_asterisk(asked: str) -> None:
    assert allowed(asked, "*.a.b") is (asked == "*.a.b")
    assert not allowed(asked, "*.c.d", "a.b.c")


@given(st.text(max_size=12))
def test_a_pattern_that_is_none_allows_nothing(pattern: str) -> None:
    assume(not is_dns_pattern(pattern))
    assert not allowed(pattern, pattern) or pattern.lower() == "localhost"


@pytest.mark.parametrize("text", ["a", "a.b", "A.b", "*.b", "*.a.b", "_srv.a", "xn--e1a.b", "a-b", "1.2", "x" * 63])
def test_patterns(text: str) -> None:
    assert is_dns_pattern(text)


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.", "**.a", "a.*", "a.*.b", "*.*.a", "*a.b", "a*", ".a", "a.", "a..b", "-a", "a-", "é.a", "a b", "a\n",
     "a/b", "x" * 64, ".".join(["x" * 60] * 5), "*.*"],
)  # fmt: skip
def test_what_is_no_pattern(text: str) -> None:
    assert not is_dns_pattern(text)


def plain(address: IpAddress) -> IpAddress:
    """IPv4 where it is written as IPv6."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


@given(st.ip_addresses(), st.ip_addresses())
def test_an_address_allows_itself_and_nothing_else(address: object, other: object) -> None:
    first, second = (plain(ip_address(str(one))) for one in (address, other))
    network = parse_network(str(first))
    assert network is not None
    assert is_ip_allowed(first, [network])
    assert is_ip_allowed(second, [network]) is (second == first or second in LOOPBACK)
    assert is_ip_allowed(second, []) is (second in LOOPBACK)


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
        ("fd00::/8", "fd00::1", "fe00::1"),
        ("::ffff:10.0.0.0/104", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
        ("0.0.0.0/0", "8.8.8.8", "2001:db8::1"),
        ("::/0", "2001:db8::1", "::ffff:8.8.8.8"),
    ],
)
def test_networks(network: str, inside: str, outside: str) -> None:
    parsed = parse_network(network)
    assert parsed is not None
    assert is_ip_allowed(ip_address(inside), [parsed])
    assert not is_ip_allowed(ip_address(outside), [parsed])


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "::1%lo", "a", "10.0.0.0/", "1.2.3.4 "]
)
def test_what_is_no_network(text: str) -> None:
    assert parse_network(text) is None


def test_every_offending_name_is_told_and_nothing_else() -> None:
    marble = Marble(allowed_dns_names=("*.shop.internal",), allowed_ips=("10.0.0.0/8",))
    with pytest.raises(Denied) as refused:
        require_names(
            "Marbles.m",
            marble,
            ("localhost", "a.shop.internal", "bank.internal", "*.shop.internal.evil"),
            (*LOOPBACK, ip_address("10.1.1.1"), ip_address("192.168.0.1")),
        )
    assert refused.value.mismatches == (
        "Marbles.m.AllowedDNSNames does not allow 'bank.internal'",
        "Marbles.m.AllowedDNSNames does not allow '*.shop.internal.evil'",
        "Marbles.m.AllowedIPs does not allow 192.168.0.1",
    )


def test_thousands_of_names_are_refused_in_few_words() -> None:
    with pytest.raises(Denied) as refused:
        require_names("m", Marble(allowed_dns_names=()), [f"{number}.x" for number in range(5000)], ())
    assert refused.value.mismatches[-1] == "and 4980 more"
    with pytest.raises(Denied) as refused:
        require_names("m", Marble(allowed_dns_names=()), [f"{number}.x" for number in range(20)], ())
    assert refused.value.mismatches[-1] == "m.AllowedDNSNames does not allow '19.x'"


@given(st.lists(anything, max_size=3))
def test_a_list_that_is_not_there_allows_everything(asked: list[str]) -> None:
    addresses = (ip_address("8.8.8.8"),)
    require_names("m", Marble(), asked, addresses)
    require_names("m", Marble(allowed_dns_names=()), (), addresses)
    require_names("m", Marble(allowed_ips=()), asked, LOOPBACK)
