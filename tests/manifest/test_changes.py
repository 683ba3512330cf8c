"""Two manifests are compared as the reference compares them (protocol, sections 4.4, 9.1 and 9.5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from marblerun.manifest import changes as c
from marblerun.manifest.model import (
    Config,
    File,
    Infrastructure,
    Manifest,
    Marble,
    Package,
    Parameters,
    Role,
    TlsEntry,
    TlsTag,
    User,
)
from marblerun.pki.profiles import CertificateTemplate
from marblerun.secrets.model import Secret, SecretDefinition

MARBLE = Marble("p", 1, Parameters({"/f": File(b"x")}, {"E": File(b"y")}, ("a", "b")), ("t", "u"))


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("marbles", {"m": MARBLE}),
        ("secrets", {"s": SecretDefinition()}),
        ("users", {"u": User()}),
        ("roles", {"r": Role()}),
        ("recovery_keys", {"k": ""}),
        ("tls", {"t": TlsTag()}),
        ("infrastructures", {"i": Infrastructure()}),
    ],
)
def test_m8_any_section_but_packages_and_config_makes_a_full_update(section: str, value: object) -> None:
    packages = Manifest(packages={"p": Package()}, config=Config(seal_mode="Disabled"))
    assert c.is_package_update(packages)
    assert c.is_package_update(Manifest())
    assert not c.is_package_update(replace(packages, **{section: value}))  # type: ignore[arg-type]


def test_m9_tls_tags_ignore_the_order_of_entries_and_see_everything_else() -> None:
    first, second = TlsEntry("1", "a"), TlsEntry("2", "a", "c", True)
    tag = TlsTag((first, second), (first,))
    assert c.tls_tags_equal(tag, TlsTag((second, first), (first,)))
    for other in (
        TlsTag((first,), (first,)),
        TlsTag((first, second, second), (first,)),
        TlsTag((first, replace(second, port="3")), (first,)),
        TlsTag((first, replace(second, addr="b")), (first,)),
        TlsTag((first, replace(second, cert="d")), (first,)),
        TlsTag((first, replace(second, disable_client_auth=False)), (first,)),
        TlsTag((first,), (first, second)),
    ):
        assert not c.tls_tags_equal(tag, other)


def test_m10_files_differ_in_data_spelling_and_flag() -> None:
    file = File(b"x", "hex", False)
    assert c.files_equal(file, File(b"x", "hex", False))
    for other in (File(b"y", "hex"), File(b"x", "HEX"), File(b"x", "hex", True)):
        assert not c.files_equal(file, other)


def test_m11_parameters_see_the_order_of_arguments() -> None:
    one = MARBLE.parameters
    assert c.parameters_equal(one, replace(one))
    for other in (
        replace(one, argv=("b", "a")),
        replace(one, argv=("a",)),
        replace(one, env={}),
        replace(one, env={"F": File(b"y")}),
        replace(one, files={**one.files, "/g": File()}),
    ):
        assert not c.parameters_equal(one, other)


def test_m12_marbles_ignore_the_order_of_tags() -> None:
    assert c.marbles_equal(MARBLE, replace(MARBLE, tls=("u", "t")))
    named = replace(MARBLE, allowed_dns_names=("a", "b"))
    assert c.marbles_equal(named, replace(named, allowed_dns_names=("b", "a", "a")))
    assert not c.marbles_equal(named, replace(named, allowed_dns_names=("a",)))
    for other in (
        replace(MARBLE, tls=("t", "u", "u")),
        replace(MARBLE, package="q"),
        replace(MARBLE, max_activations=2),
        replace(MARBLE, disable_secret_binding=True),
        replace(MARBLE, parameters=Parameters()),
        replace(MARBLE, allowed_dns_names=()),
        replace(MARBLE, allowed_ips=("10.0.0.1",)),
    ):
        assert not c.marbles_equal(MARBLE, other)


def test_m13_definitions_ignore_certificate_and_values() -> None:
    one = SecretDefinition("cert-rsa", 2048, True, False, 7)
    assert c.definitions_equal(one, replace(one, template=CertificateTemplate(is_ca=True), private=b"x"))
    assert c.definitions_equal(one, Secret("cert-rsa", 2048, True, False, 7, b"x", b"y", b"z"))
    for other in (
        replace(one, type="cert-ecdsa"),
        replace(one, size=1024),
        replace(one, shared=False),
        replace(one, user_defined=True),
        replace(one, valid_for=8),
    ):
        assert not c.definitions_equal(one, other)


def test_m13_secrets_themselves_see_certificate_and_values_too() -> None:
    one = Secret("cert-rsa", 2048, True, False, 7, b"c", b"k", b"p")
    assert one == replace(one)
    for other in (
        replace(one, certificate=b"d"),
        replace(one, private=b"l"),
        replace(one, public=b"q"),
        replace(one, type="cert-ecdsa"),
        replace(one, size=1024),
        replace(one, valid_for=8),
    ):
        assert one != other


def test_packages_ignore_the_order_of_lists_and_tell_unset_from_zero() -> None:
    one = Package(signer_id="a", product_id=0, accepted_tcb_statuses=("x", "y"))
    assert c.packages_equal(one, replace(one, accepted_tcb_statuses=("y", "x")))
    for other in (
        replace(one, product_id=None),
        replace(one, accepted_tcb_statuses=("x", "y", "y")),
        replace(one, accepted_advisories=("z",)),
        replace(one, debug=True),
        replace(one, signer_id="A"),
    ):
        assert not c.packages_equal(one, other)
    assert not c.infrastructures_equal(Infrastructure(b"", 0), Infrastructure(b"", None))


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ((0, {"a": "x"}), (0, {"a": "x"}), False),
        ((0, {"a": "x", "b": "y"}), (2, {"a": "x", "b": "y"}), False),
        ((2, {"a": "x", "b": "y", "c": "z"}), (3, {"a": "x", "b": "y", "c": "z"}), True),
        ((2, {"a": "x", "b": "y", "c": "z"}), (2, {"a": "x", "b": "y"}), True),
        ((0, {"a": "x"}), (0, {"b": "x"}), True),
        ((0, {"a": "x"}), (0, {"a": "y"}), True),
        ((0, {}), (0, {}), False),
    ],
)
def test_recovery_data_is_renewed_when_keys_or_an_effective_threshold_change(
    old: tuple[int, dict[str, str]], new: tuple[int, dict[str, str]], changed: bool
) -> None:
    one, other = (
        Manifest(recovery_keys=recovery, config=Config(recovery_threshold=threshold))
        for threshold, recovery in (old, new)
    )
    assert c.is_recovery_changed(one, other) is changed


def test_changes_tell_by_name_what_comes_goes_changes_and_stays() -> None:
    old = Manifest(
        packages={"a": Package(), "b": Package(), "c": Package()},
        users={"u": User("X", ("r",)), "v": User("Y", ("r",))},
        roles={"r": Role("Secrets", ("s",), ("ReadSecret",)), "q": Role("Secrets", ("s",), ("readsecret",))},
    )
    new = replace(
        old,
        packages={"b": Package(), "c": Package(debug=True), "d": Package()},
        users={"u": User("X", ("q",)), "v": User("Y", ("r", "r"))},
        config=Config(rotate_root_secret=True),
    )
    found = c.changes(old, new)
    assert found.packages == c.Difference(added=("d",), removed=("a",), changed=("c",), unchanged=("b",))
    assert found.users == c.Difference(unchanged=("u", "v"))
    assert found.rotates_root_secret
    assert not found.marbles
    assert found.packages
