"""grpcio, as far as it can go: it has to be told the server's certificate, and then activates like any Marble."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.coordinator.running import Running
from tests.coordinator.states import AT, ENTROPY, NAMES, UUID_1

from marblerun.pki.csr import build_csr
from marblerun.pki.issue import issue_self_signed_marble
from marblerun.wire.rpc import ACTIVATE_PATH, ActivationReq, ActivationResp


@pytest.fixture
def channel(unattested: Running) -> Iterator[grpc.Channel]:
    key = ENTROPY.ec_key(ec.SECP384R1())
    certificate = x509.load_der_x509_certificate(issue_self_signed_marble(NAMES, key, AT, ENTROPY))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=unattested.coordinator.state.authority.marble_root_pem,
        private_key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate_chain=certificate.public_bytes(Encoding.PEM),
    )
    address = f"localhost:{unattested.mesh[1]}"
    with grpc.secure_channel(address, credentials) as made:
        yield made


def call(channel: grpc.Channel, path: str = ACTIVATE_PATH) -> grpc.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        path, request_serializer=ActivationReq.SerializeToString, response_deserializer=ActivationResp.FromString
    )


def request(marble: str = "frontend", uuid: str = UUID_1) -> ActivationReq:
    csr = build_csr(NAMES, ENTROPY.ec_key(ec.SECP384R1()))
    return ActivationReq(Quote=b"", CSR=csr, MarbleType=marble, UUID=uuid)


def test_grpcio_activates_again_and_again_on_one_connection(channel: grpc.Channel) -> None:
    answers = [call(channel)(request(), timeout=60) for _ in range(20)]
    assert {tuple(answer.Parameters.Argv) for answer in answers} == {("./shop", "--fast")}
    assert len({answer.Parameters.Env["MARBLE_PREDEFINED_PRIVATE_KEY"] for answer in answers}) == 20


def test_grpcio_runs_many_calls_at_once(channel: grpc.Channel) -> None:
    futures = [call(channel).future(request(), timeout=60) for _ in range(60)]
    assert {future.code() for future in futures} == {grpc.StatusCode.OK}


@pytest.mark.parametrize(
    ("path", "marble", "uuid", "code"),
    [
        (ACTIVATE_PATH, "nobody", UUID_1, grpc.StatusCode.PERMISSION_DENIED),
        (ACTIVATE_PATH, "frontend", "bad", grpc.StatusCode.INVALID_ARGUMENT),
        ("/rpc.Marble/Other", "frontend", UUID_1, grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_grpcio_gets_code_and_reason(
    channel: grpc.Channel, path: str, marble: str, uuid: str, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, path)(request(marble, uuid), timeout=60)
    assert refused.value.code() == code
    assert refused.value.details()


def test_grpcio_sends_large_messages_and_is_told_when_they_are_too_large(channel: grpc.Channel) -> None:
    large = request()
    large.Quote = bytes(4_000_000)
    assert call(channel)(large, timeout=60).Parameters.Argv
    large.Quote = bytes(5 << 20)
    with pytest.raises(grpc.RpcError) as refused:
        call(channel)(large, timeout=60)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_caller_that_cancels_does_not_disturb_the_next(channel: grpc.Channel) -> None:
    for _ in range(20):
        call(channel).future(request(), timeout=60).cancel()
    assert call(channel)(request(), timeout=60).Parameters.Argv
