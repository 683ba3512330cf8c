"""A user is known by one exact certificate and may do what their roles say, nothing else (protocol, section 8)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.manifest import keys

from marblerun.errors import Malformed
from marblerun.manifest.model import Manifest, Role
from marblerun.manifest.model import User as ManifestUser
from marblerun.policy import access
from marblerun.policy.access import User


def _manifest(*roles: str) -> Manifest:
    return Manifest(
        users={"alice": ManifestUser(keys.certificate_pem("alice"), roles)},
        roles={
            "read": Role("Secrets", ("a", "b"), ("ReadSecret",)),
            "write": Role("Secrets", ("b", "c"), ("READSECRET", "WriteSecret")),
            "patch": Role("Packages", ("p",), ("UpdateSecurityVersion",)),
            "update": Role("Manifest", (), ("UpdateManifest",)),
        },
    )


def test_m7_a_user_has_the_union_of_all_roles_and_the_case_of_actions_does_not_matter() -> None:
    users = access.users_from_manifest(_manifest("read", "write", "patch", "update", "unknown"))
    assert users == {
        "alice": User(
            "alice",
            keys.certificate_der("alice"),
            {
                "readsecret": frozenset({"a", "b", "c"}),
                "writesecret": frozenset({"b", "c"}),
                "updatesecurityversion": frozenset({"p"}),
                "updatemanifest": frozenset(),
            },
        )
    }


@pytest.mark.parametrize("certificate", ["", "x", "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n"])
def test_m7_a_missing_or_broken_certificate_is_refused_with_the_path(certificate: str) -> None:
    with pytest.raises(Malformed) as caught:
        access.users_from_manifest(Manifest(users={"bob": ManifestUser(certificate)}))
    assert caught.value.where == "Users.bob.Certificate"


def test_u4_a_user_is_found_by_the_whole_certificate_only() -> None:
    alice, bob = (User(name, keys.certificate_der(name)) for name in ("alice", "bob"))
    users = {"alice": alice, "bob": bob}
    der = keys.certificate_der("bob")
    assert access.find_user(users, der) == bob
    for other in (keys.certificate_der("eve"), der[:-1], der + b"\0", b"", der[:-1] + bytes([der[-1] ^ 1])):
        assert access.find_user(users, other) is None


def test_nobody_is_found_by_an_empty_certificate_even_if_one_is_stored() -> None:
    assert access.find_user({"ghost": User("ghost", b"")}, b"") is None


def test_of_two_users_with_one_certificate_the_first_by_name_is_taken() -> None:
    der = keys.certificate_der("alice")
    assert access.find_user({"z": User("z", der), "a": User("a", der)}, der) == User("a", der)


def test_u8_a_subset_is_granted_and_anything_more_refused() -> None:
    user = User("u", b"x", {"readsecret": frozenset({"a", "b"}), "updatemanifest": frozenset()})
    assert access.is_granted(user, access.READ_SECRET, ["a"])
    assert access.is_granted(user, access.READ_SECRET, ["a", "b"])
    assert access.is_granted(user, access.READ_SECRET)
    assert access.is_granted(user, access.UPDATE_MANIFEST)
    assert not access.is_granted(user, access.READ_SECRET, ["a", "c"])
    assert not access.is_granted(user, access.UPDATE_MANIFEST, ["a"])
    assert not access.is_granted(user, access.WRITE_SECRET)
    assert not access.is_granted(user, "", [])


def test_update_users_are_those_with_the_permission() -> None:
    users = {
        name: User(name, b"x", permissions)
        for name, permissions in (
            ("b", {"updatemanifest": frozenset[str]()}),
            ("a", {"updatemanifest": frozenset()}),
            ("c", {}),
        )
    }
    assert access.update_users(users) == ("a", "b")


_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(
    st.builds(
        User, _names, st.binary(max_size=9), st.dictionaries(_names, st.frozensets(_names, max_size=3), max_size=3)
    )
)
def test_u8_a_user_reads_back_from_the_stored_form(user: User) -> None:
    assert access.parse_user(access.encode_user(user)) == user


def test_the_stored_form_is_the_reference_s() -> None:
    user = User("u", b"\x01", {"readsecret": frozenset({"b", "a"}), "updatemanifest": frozenset()})
    assert access.encode_user(user) == (
        b'{"Name":"u","Certificate":"AQ==","Permissions":{'
        b'"readsecret":{"PermissionID":"readsecret","ResourceID":{"a":true,"b":true}},'
        b'"updatemanifest":{"PermissionID":"updatemanifest","ResourceID":{}}}}'
    )


def test_a_resource_stored_as_false_is_not_granted() -> None:
    user = access.parse_user(b'{"Permissions":{"readsecret":{"ResourceID":{"a":false,"b":true}}}}')
    assert user.permissions == {"readsecret": frozenset({"b"})}


def test_u9_equality_sees_name_certificate_and_permissions_both_ways() -> None:
    user = User("u", b"x", {"readsecret": frozenset({"a"})})
    assert access.users_equal(user, replace(user))
    for other in (
        replace(user, name="v"),
        replace(user, certificate_der=b"y"),
        replace(user, permissions={}),
        replace(user, permissions={"readsecret": frozenset({"a", "b"})}),
        replace(user, permissions={"readsecret": frozenset()}),
        replace(user, permissions={**user.permissions, "writesecret": frozenset()}),
    ):
        assert not access.users_equal(user, other)
        assert not access.users_equal(other, user)
