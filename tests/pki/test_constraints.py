"""Which names a CA's constraints let through: each kind, permitted and excluded, and what is no constraint at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from ipaddress import ip_address, ip_network

import pytest
from tests.pki.authority import der as encoded
from tests.pki.authority import root

from marblerun.errors import Malformed, Untrusted
from marblerun.pki import der
from marblerun.pki import extensions as ext
from marblerun.pki.constraints import verify_name_constraints
from marblerun.pki.extensions import AltNames, Extension
from marblerun.pki.parsed import ParsedCertificate, parse_certificate

PERMITTED, EXCLUDED = 0, 1
EMAIL, DNS, X400, DIRECTORY, URI, IP, REGISTERED = 1, 2, 3, 4, 6, 7, 8


@cache
def _plain() -> ParsedCertificate:
    return replace(parse_certificate(encoded(root())), extensions={})


def leaf(*names: str, emails: tuple[str, ...] = (), uris: tuple[str, ...] = ()) -> ParsedCertificate:
    """A certificate for these names, those that are numbers being addresses."""
    addresses = [name for name in names if name[0].isdigit() or ":" in name]
    domains = tuple(name for name in names if name not in addresses)
    found = ext.subject_alt_name(AltNames(domains, emails, tuple(ip_address(name) for name in addresses), uris))
    return replace(_plain(), extensions={found.oid: found})


def base(kind: int, content: bytes | str) -> bytes:
    """GeneralSubtree DER of one base."""
    body = content.encode() if isinstance(content, str) else content
    return der.sequence(der.tlv(der.context(kind, constructed=kind in (X400, DIRECTORY)), body))


def network(text: str) -> bytes:
    found = ip_network(text)
    return base(IP, found.network_address.packed + found.netmask.packed)


def group(number: int, *entries: bytes) -> bytes:
    return der.tlv(der.context(number, constructed=True), b"".join(entries))


def constrained(*groups: bytes, critical: bool = True) -> ParsedCertificate:
    return replace(
        _plain(),
        extensions={ext.NAME_CONSTRAINTS: Extension(ext.NAME_CONSTRAINTS, critical, der.sequence(*groups))},
    )


def is_allowed(names: ParsedCertificate, *authorities: ParsedCertificate) -> bool:
    try:
        verify_name_constraints([names, *authorities])
    except Untrusted as error:
        if (error.step, error.reason) != ("name-constraints", "mismatch"):
            raise
        return False
    return True


@pytest.mark.parametrize(
    ("domain", "name", "expected"),
    [
        ("example", "example", True),
        ("example", "a.example", True),
        ("example", "a.b.example", True),
        ("example", "A.ExAmPlE", True),
        ("ExAmPlE", "a.example", True),
        ("example", "*.example", True),
        ("example", "*.a.example", True),
        ("example", "notexample", False),
        ("example", "example.org", False),
        ("example", "other", False),
        ("example", "*.other", False),
        ("a.example", "example", False),
        ("a.example", "*.example", False),
        ("a.example", "b.a.example", True),
        (".example", "a.example", True),
        (".example", "a.b.example", True),
        (".example", "example", False),
        (".example", ".example", False),
        (".example", "notexample", False),
        (".example", "longer.than.it", False),
        ("", "anything.example", True),
        ("", "localhost", True),
    ],
)
def test_a_permitted_domain_permits_itself_and_what_is_below_it(domain: str, name: str, expected: bool) -> None:
    """RFC 5280, section 4.2.1.10; with a leading dot, only what is below it; empty, everything."""
    assert is_allowed(leaf(name), constrained(group(PERMITTED, base(DNS, domain)))) is expected


@pytest.mark.parametrize(
    ("domain", "name", "expected"),
    [
        ("example", "example", False),
        ("example", "a.example", False),
        ("example", "A.ExAmPlE", False),
        ("EXAMPLE", "a.example", False),
        ("example", "*.example", False),
        ("example", "notexample", True),
        ("example", "example.org", True),
        ("example", "*.other", True),
        (".example", "example", True),
        (".example", "a.example", False),
        (".example", "*.example", False),
        (".example", "notexample", True),
        (".example", "*.notexample", True),
        (".example", "*.a.example", False),
        ("a.example", "example", True),
        ("a.example", "b.example", True),
        ("a.example", "*.example", False),
        ("A.EXAMPLE", "*.Example", False),
        ("a.example", "*.a.example", False),
        ("a.example", "*.other", True),
        ("", "anything.example", False),
    ],
)
def test_an_excluded_domain_excludes_itself_and_what_is_below_it(domain: str, name: str, expected: bool) -> None:
    """A wildcard is excluded as soon as one of the names it stands for is."""
    assert is_allowed(leaf(name), constrained(group(EXCLUDED, base(DNS, domain)))) is expected


@pytest.mark.parametrize(
    ("text", "address", "expected"),
    [
        ("10.1.0.0/16", "10.1.2.3", True),
        ("10.1.0.0/16", "10.1.0.0", True),
        ("10.1.0.0/16", "10.1.255.255", True),
        ("10.1.0.0/16", "10.2.0.0", False),
        ("10.1.2.3/32", "10.1.2.3", True),
        ("10.1.2.3/32", "10.1.2.2", False),
        ("0.0.0.0/0", "192.0.2.1", True),
        ("0.0.0.0/0", "fd00::7", False),
        ("::/0", "192.0.2.1", False),
        ("::/0", "fd00::7", True),
        ("fd00::/8", "fd12::7", True),
        ("fd00::/8", "fe00::7", False),
        ("fd00::7/128", "fd00::7", True),
        ("fd00::7/128", "fd00::6", False),
    ],
)
def test_a_network_is_about_the_addresses_in_it_and_only_of_its_family(text: str, address: str, expected: bool) -> None:
    assert is_allowed(leaf(address), constrained(group(PERMITTED, network(text)))) is expected
    assert is_allowed(leaf(address), constrained(group(EXCLUDED, network(text)))) is not expected


def test_the_bits_that_the_mask_leaves_out_do_not_count_in_the_network() -> None:
    loose = base(IP, bytes((10, 1, 2, 3, 255, 255, 0, 0)))
    assert is_allowed(leaf("10.1.9.9"), constrained(group(PERMITTED, loose)))
    assert not is_allowed(leaf("10.2.2.3"), constrained(group(PERMITTED, loose)))


@pytest.mark.parametrize("size", [0, 4, 5, 7, 9, 16, 31, 33, 64])
@pytest.mark.parametrize("number", [PERMITTED, EXCLUDED])
def test_a_network_of_another_length_than_address_and_mask_is_malformed(number: int, size: int) -> None:
    for address in ("10.1.2.3", "fd00::7"):
        with pytest.raises(Malformed):
            verify_name_constraints([leaf(address), constrained(group(number, base(IP, bytes(size))))])


def test_a_constraint_of_one_kind_says_nothing_about_names_of_another() -> None:
    assert is_allowed(leaf("10.1.2.3"), constrained(group(PERMITTED, base(DNS, "example"))))
    assert is_allowed(leaf("a.other"), constrained(group(PERMITTED, network("10.0.0.0/8"))))
    assert is_allowed(leaf("10.1.2.3"), constrained(group(EXCLUDED, base(DNS, ""))))
    assert is_allowed(leaf("a.other"), constrained(group(EXCLUDED, network("0.0.0.0/0"))))


def test_every_name_must_be_permitted_by_one_of_the_bases_and_excluded_by_none() -> None:
    both = constrained(
        group(PERMITTED, base(DNS, "one"), base(DNS, "two"), network("10.0.0.0/8"), network("fd00::/8")),
        group(EXCLUDED, base(DNS, "secret.two"), network("10.9.0.0/16")),
    )
    assert is_allowed(leaf("a.one", "two", "10.1.2.3", "fd00::1"), both)
    assert not is_allowed(leaf("a.one", "three"), both)
    assert not is_allowed(leaf("a.one", "x.secret.two"), both)
    assert not is_allowed(leaf("a.one", "10.9.0.1"), both)
    assert not is_allowed(leaf("10.1.2.3", "11.1.2.3"), both)


def test_the_constraints_of_every_authority_above_count_and_those_of_the_leaf_do_not() -> None:
    one, two = (constrained(group(PERMITTED, base(DNS, name))) for name in ("example", "a.example"))
    assert is_allowed(leaf("a.example"), one, _plain(), two)
    assert not is_allowed(leaf("b.example"), one, _plain(), two)
    assert not is_allowed(leaf("b.example"), two, one)
    own = leaf("other")
    own = replace(own, extensions={**own.extensions, **two.extensions})
    assert is_allowed(own, _plain())


KINDS: dict[str, tuple[int, Sequence[ParsedCertificate]]] = {
    "e-mail": (EMAIL, (leaf("a.example", emails=("a@example",)),)),
    "URI": (URI, (leaf("a.example", uris=("https://example",)),)),
}


@pytest.mark.parametrize("critical", [True, False])
@pytest.mark.parametrize("number", [PERMITTED, EXCLUDED])
@pytest.mark.parametrize("kind", KINDS)
def test_a_constraint_on_mail_or_uris_refuses_exactly_the_leaves_with_such_names(
    kind: str, number: int, critical: bool
) -> None:
    tag, affected = KINDS[kind]
    authority = constrained(group(number, base(tag, "example")), critical=critical)
    for names in affected:
        assert not is_allowed(names, authority)
    for other in KINDS:
        if other != kind:
            for names in KINDS[other][1]:
                assert is_allowed(names, authority)
    assert is_allowed(leaf("a.example", "10.1.2.3"), authority)


def test_names_of_kinds_that_nobody_constrains_are_let_through() -> None:
    names = leaf("a.example", emails=("a@other",), uris=("https://other",))
    assert is_allowed(names, constrained(group(PERMITTED, base(DNS, "example"))))


@pytest.mark.parametrize("number", [PERMITTED, EXCLUDED])
@pytest.mark.parametrize("kind", [0, X400, DIRECTORY, 5, REGISTERED])
def test_a_constraint_of_an_unknown_kind_refuses_only_if_the_extension_is_critical(kind: int, number: int) -> None:
    entry = base(kind, der.NULL)
    assert not is_allowed(leaf("a.example"), constrained(group(number, entry), critical=True))
    assert is_allowed(leaf("a.example"), constrained(group(number, entry), critical=False))


@pytest.mark.parametrize("critical", [True, False])
def test_an_uncritical_constraint_on_names_counts_like_a_critical_one(critical: bool) -> None:
    authority = constrained(group(PERMITTED, base(DNS, "example")), critical=critical)
    assert is_allowed(leaf("a.example"), authority)
    assert not is_allowed(leaf("a.other"), authority)


EXAMPLE = base(DNS, "example")
MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "no sequence": der.NULL,
    "no groups": der.sequence(),
    "empty groups": der.sequence(group(PERMITTED), group(EXCLUDED)),
    "an empty subtree": der.sequence(group(PERMITTED, der.sequence())),
    "permitted twice": der.sequence(group(PERMITTED, EXAMPLE), group(PERMITTED, EXAMPLE)),
    "excluded twice": der.sequence(group(EXCLUDED, base(DNS, "other")), group(EXCLUDED, base(DNS, "other"))),
    "three groups": der.sequence(group(PERMITTED, EXAMPLE), group(EXCLUDED, base(DNS, "x")), group(2, EXAMPLE)),
    "unknown group": der.sequence(group(2, EXAMPLE)),
    "unknown group beside a known one": der.sequence(group(PERMITTED, EXAMPLE), group(2, EXAMPLE)),
    "primitive group": der.sequence(der.tlv(der.context(PERMITTED, constructed=False), EXAMPLE)),
    "a base without its subtree": der.sequence(group(PERMITTED, der.tlv(der.context(DNS, constructed=False), b"x"))),
    "bytes behind it": der.sequence(group(PERMITTED, EXAMPLE)) + b"\x00",
    "too many subtrees": der.sequence(group(PERMITTED, *[EXAMPLE] * 513)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_are_no_name_constraints_is_malformed(case: str) -> None:
    found = Extension(ext.NAME_CONSTRAINTS, True, MALFORMED[case])
    with pytest.raises(Malformed):
        verify_name_constraints([leaf("a.example"), replace(_plain(), extensions={found.oid: found})])


def test_as_many_subtrees_as_allowed_are_compared() -> None:
    many = [base(DNS, f"n{number}") for number in range(511)]
    assert is_allowed(leaf("a.example"), constrained(group(PERMITTED, *many, EXAMPLE)))
    assert not is_allowed(leaf("a.other"), constrained(group(PERMITTED, *many, EXAMPLE)))


@pytest.mark.parametrize(("domains", "addresses"), [(512, 0), (0, 512), (256, 256)])
def test_a_leaf_may_have_as_many_names_as_allowed_in_all(domains: int, addresses: int) -> None:
    authority = constrained(group(PERMITTED, EXAMPLE, network("10.0.0.0/8")))

    def named(more: int) -> ParsedCertificate:
        names = [f"n{number}.example" for number in range(domains + more)]
        return leaf(*names, *(f"10.0.{number // 256}.{number % 256}" for number in range(addresses)))

    assert is_allowed(named(0), authority)
    assert not is_allowed(named(1), authority)


def test_without_constraints_any_number_of_names_is_fine() -> None:
    assert is_allowed(leaf(*(f"n{number}.example" for number in range(600))), _plain())
