"""A Marble gets a certificate only for names the manifest allows; a stock Marble's defaults always pass."""

from __future__ import annotations

import pytest
from cryptography import x509
from tests.coordinator.manifests import encode, integration
from tests.coordinator.states import INPUTS, applicant, deployed

from marblerun.coordinator.commands.activate import ActivationRefused, Stage, activate
from marblerun.coordinator.server.problems import grpc_problem
from marblerun.coordinator.store.entries import decode_state, encode_state
from marblerun.wire.rpc import GrpcStatus


def manifest(**keys: list[str]) -> bytes:
    document = integration()
    document["Marbles"]["bare"] |= keys
    return encode(document)


def names_given(state_of: bytes, asked: str) -> list[str]:
    reply = activate(deployed(state_of), applicant(asked).request("bare"), INPUTS).reply
    leaf = x509.load_pem_x509_certificates(reply.env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def refusal(state_of: bytes, asked: str) -> ActivationRefused:
    with pytest.raises(ActivationRefused) as refused:
        activate(deployed(state_of), applicant(asked).request("bare"), INPUTS)
    return refused.value


def test_names_on_the_list_are_given_and_so_are_those_of_the_local_host() -> None:
    allowed = manifest(AllowedDNSNames=["*.shop", "db"], AllowedIPs=["10.0.0.0/8"])
    asked = "localhost,web.shop,db,10.1.2.3"
    assert names_given(allowed, asked) == ["localhost", "web.shop", "db", "127.0.0.1", "::1", "10.1.2.3"]


def test_other_names_are_refused_all_at_once_as_a_lack_of_permission() -> None:
    error = refusal(manifest(AllowedDNSNames=["*.shop"], AllowedIPs=[]), "web.shop,bank,*.bank,8.8.8.8")
    assert error.stage is Stage.NAMES
    assert "Marbles.bare.AllowedDNSNames does not allow 'bank'" in str(error)
    assert "'*.bank'" in str(error)
    assert "Marbles.bare.AllowedIPs does not allow 8.8.8.8" in str(error)
    assert "web.shop" not in str(error)
    assert grpc_problem(error)[0] is GrpcStatus.PERMISSION_DENIED


def test_empty_lists_leave_a_stock_marble_its_defaults_and_nothing_else() -> None:
    empty = manifest(AllowedDNSNames=[], AllowedIPs=[])
    assert names_given(empty, "localhost") == ["localhost", "127.0.0.1", "::1"]
    assert refusal(empty, "a").stage is Stage.NAMES


def test_each_list_stands_alone_and_without_any_everything_is_given() -> None:
    assert "8.8.8.8" in names_given(manifest(AllowedDNSNames=[]), "8.8.8.8")
    assert "bank" in names_given(manifest(AllowedIPs=[]), "bank")
    assert "bank" in names_given(manifest(), "bank,8.8.8.8")


def test_the_rule_is_kept_in_the_stored_state() -> None:
    state = deployed(manifest(AllowedDNSNames=["a"], AllowedIPs=[]))
    again = decode_state(encode_state(state))
    assert state.deployment is not None
    assert again.deployment is not None
    assert again.deployment.marbles["bare"] == state.deployment.marbles["bare"]
    assert again.deployment.marbles["bare"].allowed_dns_names == ("a",)
    with pytest.raises(ActivationRefused):
        activate(again, applicant("b").request("bare"), INPUTS)
