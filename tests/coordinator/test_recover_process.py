"""A Coordinator as a real process through set-up, restart, loss of its key, and recovery."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.coordinator.parties import names, share_of
from tests.coordinator.people import ADMIN, ask, office, person, recovery_pem
from tests.coordinator.running import new_platform
from tests.coordinator.states import UUID_1
from tests.coordinator.test_process import Process, process

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.marble.credentials import make_credentials
from marblerun.marble.pins import AnyCoordinator
from marblerun.marble.rpc_client import call_unary
from marblerun.marble.settings import Endpoint
from marblerun.pki.profiles import SubjectNames
from marblerun.wire.rpc import ACTIVATE_PATH, ActivationResp, GrpcStatus, encode_activation_request

pytestmark = pytest.mark.e2e


def activate(up: Process, platform: SimulatedPlatform, marble: str, **identity: Any) -> tuple[int, ActivationResp]:
    """gRPC status and answer for a Marble that shows evidence of the platform."""
    own = make_credentials(SubjectNames())
    quote = platform.quote_as(EnclaveIdentity(**identity), report_data_for(own.certificate))
    request = encode_activation_request(quote=quote, csr=own.csr, marble_type=marble, uuid=UUID_1)
    answer = call_unary(Endpoint(*up.mesh), ACTIVATE_PATH, request, context=own.client_context(), pin=AnyCoordinator())
    return answer.status, ActivationResp.FromString(answer.body)


def status(up: Process) -> int:
    code: int = ask(up.client, "GET", "/api/v2/status").data["code"]
    return code


def document(mode: str, keys: int) -> dict[str, Any]:
    found = office({"admin": ADMIN}, SealMode=mode)
    found["RecoveryKeys"] = {name: recovery_pem(name) for name in names(keys)}
    return found


@pytest.mark.parametrize("mode", ["ProductKey", "UniqueKey", "Disabled"])
def test_i1_i3_i4_from_nothing_to_a_marble_that_uses_a_secret(tmp_path: Path, mode: str) -> None:
    """I1, I3, I4: nothing before the manifest; a wrong package never; an unset secret only after its upload."""
    platform = new_platform(tmp_path / "platform")
    with process(tmp_path, EDG_SIMULATED_PLATFORM=str(tmp_path / "platform")) as up:
        assert status(up) == 2
        assert activate(up, platform, "front")[0] == GrpcStatus.FAILED_PRECONDITION
        body = {"manifest": base64.b64encode(json.dumps(document(mode, 0)).encode()).decode()}
        assert ask(up.client, "POST", "/api/v2/manifest", body).status == 200
        assert status(up) == 3
        assert activate(up, platform, "front")[0] == GrpcStatus.OK
        assert activate(up, platform, "front", product_id=2)[0] == GrpcStatus.PERMISSION_DENIED
        secret = ask(up.client, "GET", "/api/v2/secrets?s=sharedKey", by=person("admin")).data["secrets"]["sharedKey"]
        _, found = activate(up, platform, "front")
        assert base64.b64decode(secret["Public"]).hex().encode() == found.Parameters.Env["SHARED"]
        assert activate(up, platform, "plain", debug=True)[0] == GrpcStatus.INTERNAL
        upload = {"secrets": {"userPlain": {"Key": base64.b64encode(b"value").decode()}}}
        assert ask(up.client, "POST", "/api/v2/secrets", upload, by=person("admin")).status == 200
        code, found = activate(up, platform, "plain", debug=True)
        assert (code, found.Parameters.Env["PLAIN"]) == (GrpcStatus.OK, b"value")
    assert (tmp_path / "state" / "sealed_data").exists() == (mode != "Disabled")


@pytest.mark.parametrize("mode", ["ProductKey", "UniqueKey"])
def test_i5_i11_without_its_key_file_the_parties_bring_it_back(tmp_path: Path, mode: str) -> None:
    """I5, I11: state 1 without the key, 3 after both parties; the same root, also after another restart."""
    platform = new_platform(tmp_path / "platform")
    environment = {"EDG_SIMULATED_PLATFORM": str(tmp_path / "platform")}
    with process(tmp_path, **environment) as up:
        body = {"manifest": base64.b64encode(json.dumps(document(mode, 2)).encode()).decode()}
        secrets = ask(up.client, "POST", "/api/v2/manifest", body).data["RecoverySecrets"]
        shares = [share_of(name, base64.b64decode(secrets[name])) for name in names(2)]
        chain = ask(up.client, "GET", "/api/v2/quote").data["cert"]
    (tmp_path / "state" / "sealed_key").unlink()
    before = (tmp_path / "state" / "sealed_data").read_bytes()
    with process(tmp_path, **environment) as up:
        assert status(up) == 1
        assert activate(up, platform, "front")[0] == GrpcStatus.FAILED_PRECONDITION
        assert (tmp_path / "state" / "sealed_data").read_bytes() == before
        for share, remaining in zip(shares, (1, 0), strict=True):
            body = {
                "recoverySecret": base64.b64encode(share.secret).decode(),
                "recoverySecretSignature": base64.b64encode(share.signature).decode(),
            }
            assert ask(up.client, "POST", "/api/v2/recover", body).data["remaining"] == remaining
        assert status(up) == 3
        assert activate(up, platform, "front")[0] == GrpcStatus.OK
    with process(tmp_path, **environment) as up:
        assert status(up) == 3
        assert ask(up.client, "GET", "/api/v2/quote").data["cert"] == chain
    for share in shares:
        assert share.secret.hex() not in (tmp_path / "log").read_text()
