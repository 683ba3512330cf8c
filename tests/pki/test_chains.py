"""Chain checks name the step that failed and end in bounded time (their verdicts are compared with Go elsewhere)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pki.authority import AT, CountingEntropy, der, intermediate, key, marble_issuer, marble_root, root

from marblerun.errors import Malformed, Untrusted
from marblerun.pki import chains
from marblerun.pki.chains import ANY_USAGE, CLIENT_AUTH, SERVER_AUTH, verify_chain, verify_host
from marblerun.pki.issue import Issuer, issue_secret_certificate, issue_self_signed_marble
from marblerun.pki.profiles import CertificateTemplate, Name, SubjectNames

WEEK = timedelta(days=7)


def issued(
    template: CertificateTemplate, name: str = "leaf", issuer: Issuer | None = None, *, not_before: timedelta = -WEEK
) -> bytes:
    return issue_secret_certificate(
        template,
        public_key=key(name).public_key(),
        issuer=issuer or marble_issuer(),
        not_after=AT + WEEK,
        at=AT + not_before,
        entropy=CountingEntropy(),
    )


def authority(name: str, issuer: Issuer | None = None, **fields: object) -> bytes:
    subject = Name(common_name=name)
    return issued(CertificateTemplate(subject=subject, is_ca=True, **fields), name, issuer)  # type: ignore[arg-type]


def below(name: str, **fields: object) -> tuple[bytes, bytes]:
    ca = authority(name, None, **fields)
    return issued(CertificateTemplate(), issuer=Issuer.of(ca, key(name))), ca


def test_a_default_secret_certificate_chains_to_each_authority() -> None:
    """A non-CA that asserts keyCertSign, below CAs with usages and lifetimes of centuries (protocol, section 16)."""
    leaf = issued(CertificateTemplate())
    assert verify_chain(leaf, [], [der(marble_root())], at=AT) == (leaf, der(marble_root()))
    path = (leaf, der(intermediate()), der(root()))
    assert verify_chain(leaf, [der(intermediate())], [der(root())], at=AT, usage=CLIENT_AUTH) == path


def test_a_leaf_that_is_a_root_is_its_own_chain() -> None:
    own = issue_self_signed_marble(SubjectNames(), key("marble"), AT, CountingEntropy())
    assert verify_chain(own, [], [own], at=AT) == (own,)


EXPECTED: dict[str, tuple[str, str, Callable[[], tuple[bytes, list[bytes], list[bytes]]]]] = {
    "no roots": ("issuer", "unknown-issuer", lambda: (issued(CertificateTemplate()), [], [])),
    "other root": ("issuer", "unknown-issuer", lambda: (issued(CertificateTemplate()), [], [der(root())])),
    "same name, other key": (
        "chain-signature",
        "bad-signature",
        lambda: (issued(CertificateTemplate()), [], [der(marble_root("other"))]),
    ),
    "issuer is no authority": (
        "issuer",
        "not-a-ca",
        lambda: _leaf_below_leaf(CertificateTemplate(subject=Name(common_name="x"), subject_key_id=b"x")),
    ),
    "issuer may not sign": (
        "issuer",
        "bad-usage",
        lambda: _with_roots(below("ca-1", key_usage=1)),
    ),
    "path too long": ("issuer", "path-too-long", lambda: _two_below_zero()),
    "usage": (
        "chain-usage",
        "bad-usage",
        lambda: (issued(CertificateTemplate(ext_key_usage=(3,))), [], [der(marble_root())]),
    ),
    "usage of an authority": ("chain-usage", "bad-usage", lambda: _with_roots(below("ca-2", ext_key_usage=(2,)))),
    "unknown critical extension": (
        "leaf-validity",
        "unknown-extension",
        lambda: (
            issued(CertificateTemplate(extra_extensions=(("1.2.3", True, b"\x05\x00"),))),
            [],
            [der(marble_root())],
        ),
    ),
    "constraint": (
        "name-constraints",
        "mismatch",
        lambda: _with_roots(below("ca-3", permitted_dns_domains=("example",))),
    ),
    "too many intermediates": (
        "issuer",
        "too-many",
        lambda: (issued(CertificateTemplate()), [der(intermediate())] * 17, [der(root())]),
    ),
}


def _with_roots(pair: tuple[bytes, bytes]) -> tuple[bytes, list[bytes], list[bytes]]:
    return pair[0], [pair[1]], [der(marble_root())]


def _leaf_below_leaf(template: CertificateTemplate) -> tuple[bytes, list[bytes], list[bytes]]:
    middle = issued(template, "middle")
    return _with_roots((issued(CertificateTemplate(), issuer=Issuer.of(middle, key("middle"))), middle))


def _two_below_zero() -> tuple[bytes, list[bytes], list[bytes]]:
    outer = authority("outer", max_path_len_zero=True)
    inner = authority("inner", Issuer.of(outer, key("outer")))
    return issued(CertificateTemplate(), issuer=Issuer.of(inner, key("inner"))), [outer, inner], [der(marble_root())]


@pytest.mark.parametrize("case", EXPECTED)
def test_each_failure_names_its_step_and_reason(case: str) -> None:
    step, reason, make = EXPECTED[case]
    leaf, between, roots = make()
    with pytest.raises(Untrusted) as caught:
        verify_chain(leaf, between, roots, at=AT)
    assert (caught.value.step, caught.value.reason) == (step, reason)


@pytest.mark.parametrize(("offset", "reason"), [(WEEK * 2, "expired"), (-WEEK * 2, "not-yet-valid")])
def test_a_leaf_outside_its_lifetime_is_refused(offset: timedelta, reason: str) -> None:
    with pytest.raises(Untrusted) as caught:
        verify_chain(issued(CertificateTemplate()), [], [der(marble_root())], at=AT + offset)
    assert (caught.value.step, caught.value.reason) == ("leaf-validity", reason)


def test_an_authority_before_its_lifetime_is_refused() -> None:
    leaf = issued(CertificateTemplate())
    with pytest.raises(Untrusted) as caught:
        verify_chain(leaf, [], [der(marble_root())], at=AT - timedelta(hours=1))
    assert (caught.value.step, caught.value.reason) == ("issuer", "not-yet-valid")


def test_crafted_intermediates_do_not_make_the_search_long() -> None:
    """Many CAs of one name and key, each issuing the others: without a budget the paths would be 16!."""
    first = authority("loop")
    issuer = Issuer.of(first, key("loop"))
    mesh = [
        authority("loop", Issuer(first, issuer.name, issuer.key_id, issuer.key), dns_names=(f"n{number}",))
        for number in range(16)
    ]
    leaf = issued(CertificateTemplate(), issuer=issuer)
    with pytest.raises(Untrusted) as caught:
        verify_chain(leaf, mesh, [der(root())], at=AT)
    assert (caught.value.step, caught.value.reason) == ("issuer", "too-many")
    assert chains.MAX_SIGNATURE_CHECKS == 100


def test_as_many_intermediates_as_allowed_are_looked_at() -> None:
    leaf = issued(CertificateTemplate())
    assert verify_chain(leaf, [der(intermediate())] * chains.MAX_INTERMEDIATES, [der(root())], at=AT)[0] == leaf


def test_a_self_signed_intermediate_is_tried_once_and_leads_nowhere() -> None:
    with pytest.raises(Untrusted) as caught:
        verify_chain(issued(CertificateTemplate()), [der(marble_root())], [der(root())], at=AT)
    assert (caught.value.step, caught.value.reason) == ("issuer", "unknown-issuer")


@pytest.mark.parametrize("host", ["other", "x.localhost", "127.0.0.2", "", ".", "localhost.."])
def test_another_host_is_refused(host: str) -> None:
    with pytest.raises(Untrusted) as caught:
        verify_host(issued(CertificateTemplate()), host)
    assert (caught.value.step, caught.value.reason) == ("host", "mismatch")


def test_a_host_that_only_folds_to_a_name_is_refused() -> None:
    """U+212A is lower-cased to k by Unicode; in a host name it is another letter."""
    leaf = issued(CertificateTemplate(dns_names=("kelvin.example",)))
    verify_host(leaf, "KELVIN.example")
    with pytest.raises(Untrusted):
        verify_host(leaf, "\u212aelvin.example")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 255))
def test_a_changed_leaf_is_refused_with_our_errors(position: int, change: int) -> None:
    leaf = bytearray(issued(CertificateTemplate(), not_before=-WEEK))
    leaf[position % len(leaf)] ^= change
    with pytest.raises((Malformed, Untrusted)):
        verify_chain(bytes(leaf), [], [der(marble_root())], at=AT)


def test_every_truncation_is_malformed() -> None:
    leaf = issued(CertificateTemplate())
    for size in range(0, len(leaf), 7):
        with pytest.raises(Malformed):
            verify_chain(leaf[:size], [], [der(marble_root())], at=AT)


def bare(name: str, issuer: str, *extensions: x509.ExtensionType, of: str = "") -> bytes:
    """A certificate with these extensions and no others; the keys are those of the names, the subject's that ``of``."""
    subject, above = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer))
    builder = x509.CertificateBuilder(above, subject, key(of or name).public_key(), 1, AT - WEEK, AT + WEEK)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return der(builder.sign(key(issuer), hashes.SHA384()))


CA = x509.BasicConstraints(ca=True, path_length=None)
AS_SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
AS_CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
AS_ANYTHING = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
CODE_SIGNING = "1.3.6.1.5.5.7.3.3"


@pytest.mark.parametrize(
    ("on_leaf", "on_root", "fits"),
    [
        ((), (), {SERVER_AUTH, CLIENT_AUTH, CODE_SIGNING}),
        ((AS_SERVER,), (), {SERVER_AUTH}),
        ((AS_CLIENT,), (), {CLIENT_AUTH}),
        ((), (AS_CLIENT,), {CLIENT_AUTH}),
        ((AS_ANYTHING,), (), {SERVER_AUTH, CLIENT_AUTH, CODE_SIGNING}),
        ((), (AS_ANYTHING,), {SERVER_AUTH, CLIENT_AUTH, CODE_SIGNING}),
        ((AS_ANYTHING,), (AS_SERVER,), {SERVER_AUTH}),
        ((AS_SERVER,), (AS_CLIENT,), set()),
    ],
)
def test_a_chain_is_for_the_uses_that_none_of_its_certificates_leaves_out(
    on_leaf: tuple[x509.ExtensionType, ...], on_root: tuple[x509.ExtensionType, ...], fits: set[str]
) -> None:
    """No extension limits nothing, nor does anyExtendedKeyUsage; whoever asks for any use gets the chain."""
    leaf, above = bare("leaf", "above", *on_leaf), bare("above", "above", CA, *on_root)
    for usage in (SERVER_AUTH, CLIENT_AUTH, CODE_SIGNING):
        if usage in fits:
            assert verify_chain(leaf, [], [above], at=AT, usage=usage) == (leaf, above)
        else:
            with pytest.raises(Untrusted) as caught:
                verify_chain(leaf, [], [above], at=AT, usage=usage)
            assert (caught.value.step, caught.value.reason) == ("chain-usage", "bad-usage")
    assert verify_chain(leaf, [], [above], at=AT, usage=ANY_USAGE) == (leaf, above)


def _signs(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, certificates, False, False, False)


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ((CA,), None),
        ((CA, _signs(certificates=True)), None),
        ((CA, _signs(certificates=False)), "bad-usage"),
        ((), "not-a-ca"),
        ((_signs(certificates=True),), "not-a-ca"),
        ((x509.BasicConstraints(ca=False, path_length=None),), "not-a-ca"),
        ((x509.BasicConstraints(ca=True, path_length=0),), None),
    ],
)
def test_an_issuer_is_a_ca_whose_key_usage_if_it_has_one_lets_it_sign(
    extensions: tuple[x509.ExtensionType, ...], reason: str | None
) -> None:
    leaf, above = bare("leaf", "above"), bare("above", "above", *extensions)
    if reason is None:
        assert verify_chain(leaf, [], [above], at=AT) == (leaf, above)
    else:
        with pytest.raises(Untrusted) as caught:
            verify_chain(leaf, [], [above], at=AT)
        assert (caught.value.step, caught.value.reason) == ("issuer", reason)


def test_an_extension_that_is_not_understood_is_fine_unless_it_is_critical() -> None:
    """On the leaf and above it; that a critical one refuses a leaf is among the failures above."""
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00")
    leaf, above = bare("leaf", "above", unknown), bare("above", "above", CA, unknown)
    assert verify_chain(leaf, [], [above], at=AT) == (leaf, above)
    critical = authority("ca-4", extra_extensions=(("1.2.3", True, b"\x05\x00"),))
    below_it = issued(CertificateTemplate(), issuer=Issuer.of(critical, key("ca-4")))
    with pytest.raises(Untrusted) as caught:
        verify_chain(below_it, [critical], [der(marble_root())], at=AT)
    assert (caught.value.step, caught.value.reason) == ("issuer", "unknown-extension")


SECOND = timedelta(seconds=1)
# Of the certificates of bare(); the seconds are whole.
FIRST, LAST = (AT - WEEK).replace(microsecond=0), (AT + WEEK).replace(microsecond=0)


def test_a_chain_holds_at_the_first_and_at_the_last_moment_of_its_lifetime() -> None:
    leaf, above = bare("leaf", "above"), bare("above", "above", CA)
    for at in (FIRST, LAST):
        assert verify_chain(leaf, [], [above], at=at) == (leaf, above)


@pytest.mark.parametrize(("at", "reason"), [(FIRST - SECOND, "not-yet-valid"), (LAST + SECOND, "expired")])
def test_a_chain_does_not_hold_a_second_outside_its_lifetime(at: datetime, reason: str) -> None:
    with pytest.raises(Untrusted) as caught:
        verify_chain(bare("leaf", "above"), [], [bare("above", "above", CA)], at=at)
    assert (caught.value.step, caught.value.reason) == ("leaf-validity", reason)


@pytest.mark.parametrize(
    ("at", "reason"), [(LAST - SECOND, "not-yet-valid"), (LAST, "not-yet-valid"), (LAST + SECOND, "expired")]
)
def test_a_lifetime_that_ends_before_it_begins_never_holds(at: datetime, reason: str) -> None:
    leaf = issued(CertificateTemplate(), not_before=WEEK * 2)
    with pytest.raises(Untrusted) as caught:
        verify_chain(leaf, [], [der(marble_root())], at=at)
    assert (caught.value.step, caught.value.reason) == ("leaf-validity", reason)


def test_as_many_signatures_as_allowed_are_checked_and_no_more() -> None:
    """The issuer is found as the hundredth of its name, but not after a hundred others."""
    leaf, above = bare("leaf", "above"), bare("above", "above", CA)
    other = bare("above", "above", CA, of="other")
    others = [other] * (chains.MAX_SIGNATURE_CHECKS - 1)
    assert verify_chain(leaf, [], [*others, above], at=AT) == (leaf, above)
    with pytest.raises(Untrusted) as caught:
        verify_chain(leaf, [], [*others, other, above], at=AT)
    assert (caught.value.step, caught.value.reason) == ("issuer", "too-many")


@pytest.mark.parametrize(
    ("name", "host", "fits"),
    [
        ("a.example", "a.example", True),
        ("a.example", "A.EXAMPLE", True),
        ("A.EXAMPLE", "a.example", True),
        ("a.example", "a.example.", True),
        ("a.example", "a.example..", False),
        ("a.example", "b.example", False),
        ("a.example", "a.other", False),
        ("a.example", "example", False),
        ("example", "a.example", False),
        ("a.example", "b.a.example", False),
        ("a.example", "*.example", False),
        ("*.example", "a.example", True),
        ("*.example", "a.example.", True),
        ("*.example", "A.Example", True),
        ("*.example", "example", False),
        ("*.example", ".example", False),
        ("*.example", "a.b.example", False),
        ("*.example", "a.other", False),
        ("*", "localhost", False),
        ("a*.example", "ab.example", False),
        ("b.*.example", "b.a.example", False),
        ("*.*.example", "a.b.example", False),
        ("", "", False),
        ("", ".", False),
        ("[localhost]", "localhost", False),
        ("localhost", "[localhost]", False),
        ("127.0.0.1", "127.0.0.1", False),
        ("*.0.0.1", "127.0.0.1", False),
    ],
)
def test_a_name_matches_a_host_label_by_label(name: str, host: str, fits: bool) -> None:
    """One asterisk, alone as the first label, stands for one label; a name is never an address."""
    assert is_for(bare("leaf", "above", x509.SubjectAlternativeName([x509.DNSName(name)])), host) is fits


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        ("127.0.0.1", True),
        ("[127.0.0.1]", True),
        ("::ffff:127.0.0.1", True),
        ("fd00::7", True),
        ("[fd00::7]", True),
        ("fd00:0:0:0:0:0:0:7", True),
        ("127.0.0.2", False),
        ("[127.0.0.1", False),
        ("127.0.0.1]", False),
        ("[127.0.0.1x", False),
        ("x127.0.0.1]", False),
        ("[fd00::7x", False),
        ("xfd00::7]", False),
        ("[[fd00::7]]", False),
        ("fd00::8", False),
        ("fd00::7%eth0", False),
        ("127.0.0.1.", False),
        ("", False),
        ("[]", False),
    ],
)
def test_an_address_matches_only_itself_with_both_brackets_or_none(host: str, fits: bool) -> None:
    addresses = [x509.IPAddress(IPv4Address("127.0.0.1")), x509.IPAddress(IPv6Address("fd00::7"))]
    assert is_for(bare("leaf", "above", x509.SubjectAlternativeName(addresses)), host) is fits


def test_the_common_name_is_no_name_of_a_host() -> None:
    assert not is_for(bare("localhost", "above"), "localhost")


def is_for(leaf: bytes, host: str) -> bool:
    try:
        verify_host(leaf, host)
    except Untrusted as error:
        if (error.step, error.reason) != ("host", "mismatch"):
            raise
        return False
    return True
