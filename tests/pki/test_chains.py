"""Chain checks name the step that failed and end in bounded time (their verdicts are compared with Go elsewhere)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pki.authority import AT, CountingEntropy, der, intermediate, key, marble_issuer, marble_root, root

from marblerun.errors import Malformed, Untrusted
from marblerun.pki import chains
from marblerun.pki.chains import CLIENT_AUTH, verify_chain, verify_host
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
