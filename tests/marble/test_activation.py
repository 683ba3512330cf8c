"""A Marble asks until it is activated or refused."""

from __future__ import annotations

import ssl
import threading
import time
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from tests.forge.mesh import Mesh
from tests.marble.stub import http2_answer, mesh_listener, tls_server

from marblerun.attestation.issue import GramineIssuer, NoEvidenceIssuer
from marblerun.attestation.model import Origin
from marblerun.cli.demo.world import free_port
from marblerun.coordinator.commands.activate import Activated, ActivationRefused, ActivationRequest, Stage
from marblerun.errors import Busy, Denied, Malformed, MarbleRunError, Misconfigured, Unavailable, Untrusted, WrongPhase
from marblerun.marble.activation import Activation, Backoff, activate, prepare_request, refusal_of, send_request
from marblerun.marble.credentials import make_credentials
from marblerun.marble.pins import AnyCoordinator, PinnedKey
from marblerun.marble.rpc_client import Answer
from marblerun.marble.settings import Endpoint, MarbleSettings
from marblerun.pki.csr import parse_csr
from marblerun.pki.profiles import SubjectNames
from marblerun.wire.rpc.status import GrpcStatus

MESH = Mesh.mint()
GIVEN = Activated({"/a": b"\x00\xff"}, {"SECRET": b"canary"}, ("shop", "-x"))
QUICK = Backoff(first=0.02, ceiling=0.05)


class Steep(Backoff):
    """Three short waits, and the next one is longer than any time limit here."""

    def delay_after(self, attempt: int, hint: float | None) -> float:
        return self.first if attempt < 3 else self.ceiling


class EchoIssuer:
    """Evidence that is the report data itself, so that a test can see what was asked for."""

    name = "echo"
    origin = Origin.HARDWARE

    def issue(self, report_data: bytes) -> bytes:
        return report_data


class Coordinator:
    """Answers activations from a list; the last answer stays."""

    def __init__(self, *answers: Activated | Exception) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[ActivationRequest, bytes | None]] = []

    async def __call__(self, request: ActivationRequest, leaf: bytes | None) -> Activated:
        self.seen.append((request, leaf))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def settings_for(endpoint: Endpoint, tmp_path: Path, timeout: float = 60.0) -> MarbleSettings:
    names = SubjectNames(("shop",), (ip_address("10.0.0.1"),))
    return MarbleSettings("shop", endpoint, names, tmp_path / "uuid", timeout)


def test_evidence_covers_the_certificate_of_the_very_connection(tmp_path: Path) -> None:
    coordinator = Coordinator(GIVEN)
    with mesh_listener(MESH, coordinator) as endpoint:
        given = activate(settings_for(endpoint, tmp_path), EchoIssuer())
    request, leaf = coordinator.seen[0]
    assert leaf is not None
    assert request.quote == sha256(leaf).digest() + bytes(32)
    assert request.marble_type == "shop"
    assert request.uuid == str(given.uuid) == (tmp_path / "uuid").read_text()
    names = parse_csr(request.csr)
    assert names.dns_names == ("shop",)
    assert names.ip_addresses == tuple(map(ip_address, ("127.0.0.1", "::1", "10.0.0.1")))


def test_everything_the_coordinator_gives_arrives(tmp_path: Path) -> None:
    with mesh_listener(MESH, Coordinator(GIVEN)) as endpoint:
        given = activate(settings_for(endpoint, tmp_path), NoEvidenceIssuer())
    assert (given.files, given.env, given.argv) == (GIVEN.files, GIVEN.env, GIVEN.argv)
    assert (given.marble_type, given.origin) == ("shop", Origin.NONE)


def test_a_restart_is_the_same_instance_with_another_key(tmp_path: Path) -> None:
    coordinator = Coordinator(GIVEN)
    with mesh_listener(MESH, coordinator) as endpoint:
        first, second = (activate(settings_for(endpoint, tmp_path), EchoIssuer()) for _ in range(2))
    assert first.uuid == second.uuid
    assert coordinator.seen[0][1] != coordinator.seen[1][1]


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_the_certificate_is_what_stock_marbles_show_on_either_curve(curve: ec.EllipticCurve) -> None:
    credentials = make_credentials(SubjectNames(("shop",)), curve)
    certificate = x509.load_der_x509_certificate(credentials.certificate)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == curve.name
    assert certificate.subject.rfc4514_string() == certificate.issuer.rfc4514_string() == "CN=MarbleRun Marble"
    certificate.verify_directly_issued_by(certificate)
    years = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days / 365.25
    assert 292 < years < 293
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["shop"]


def test_a_name_that_no_certificate_can_carry_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    settings = MarbleSettings("shop", Endpoint("127.0.0.1", 1), SubjectNames(("müller",)), tmp_path / "uuid")
    with pytest.raises(Malformed):
        activate(settings, NoEvidenceIssuer())


def test_a_coordinator_without_manifest_is_waited_for(tmp_path: Path) -> None:
    not_yet = ActivationRefused(Stage.PHASE, "no manifest yet")
    coordinator = Coordinator(not_yet, not_yet, Unavailable("collateral service is down"), GIVEN)
    lines: list[str] = []
    with mesh_listener(MESH, coordinator) as endpoint:
        given = activate(settings_for(endpoint, tmp_path), EchoIssuer(), backoff=QUICK, narrate=lines.append)
    assert given.argv == GIVEN.argv
    assert len(coordinator.seen) == 4
    assert len({leaf for _, leaf in coordinator.seen}) == 1
    assert len([line for line in lines if "no manifest yet" in line and "trying again" in line]) == 2


def test_a_coordinator_that_is_not_up_yet_is_waited_for(tmp_path: Path) -> None:
    port, refused = free_port(), threading.Event()
    result: list[Activation] = []
    settings = settings_for(Endpoint("127.0.0.1", port), tmp_path)

    def wait() -> None:
        result.append(activate(settings, EchoIssuer(), backoff=QUICK, narrate=lambda _line: refused.set()))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert refused.wait(60)
    with mesh_listener(MESH, Coordinator(GIVEN), port):
        waiting.join(60)
    assert [given.argv for given in result] == [GIVEN.argv]


def test_a_coordinator_with_too_much_to_do_is_not_asked_again_before_it_says(tmp_path: Path) -> None:
    coordinator = Coordinator(Busy("come later", retry_after=0.4), GIVEN)
    lines: list[str] = []
    started = time.monotonic()
    with mesh_listener(MESH, coordinator) as endpoint:
        given = activate(settings_for(endpoint, tmp_path), EchoIssuer(), backoff=QUICK, narrate=lines.append)
    assert given.argv == GIVEN.argv
    assert time.monotonic() - started >= 0.4
    assert len([line for line in lines if "RESOURCE_EXHAUSTED" in line and "trying again" in line]) == 1


def test_a_hint_beyond_the_time_limit_ends_it_at_once_and_says_so(tmp_path: Path) -> None:
    coordinator = Coordinator(Busy("come later", retry_after=100.0))
    started = time.monotonic()
    with mesh_listener(MESH, coordinator) as endpoint, pytest.raises(Unavailable) as refusal:
        activate(settings_for(endpoint, tmp_path, timeout=30), EchoIssuer(), backoff=QUICK)
    assert time.monotonic() - started < 60  # and not the hundred seconds of the hint
    assert len(coordinator.seen) == 1
    assert "gave up after 1 attempts in 30 s" in str(refusal.value)
    assert "left alone for 100 s more (EDG_MARBLE_ACTIVATION_TIMEOUT)" in str(refusal.value)


def test_hints_are_waited_for_in_full_and_not_in_step() -> None:
    backoff = Backoff(first=1.0, ceiling=8.0)
    delays = {backoff.delay_after(0, 3.0) for _ in range(50)}
    assert 3.0 <= min(delays) <= max(delays) <= 3.75
    assert len(delays) > 1
    assert max(backoff.delay_after(0, 0.0) for _ in range(50)) <= 1.0
    assert min(backoff.delay_after(5, 0.1) for _ in range(50)) >= 4.0
    assert backoff.delay_after(3, float("inf")) == float("inf")


@pytest.mark.parametrize("status", [one for one in GrpcStatus if one is not GrpcStatus.OK])
def test_only_what_says_come_again_is_asked_again(status: GrpcStatus, tmp_path: Path) -> None:
    again = {"FAILED_PRECONDITION", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    calls: list[int] = []

    def answer(connection: Any) -> None:
        """The status at first; who comes again is told to stay away."""
        said = GrpcStatus.PERMISSION_DENIED if calls else status
        calls.append(1)
        http2_answer([(":status", "200"), ("grpc-status", str(int(said))), ("grpc-message", "x")])(connection)

    with tls_server(answer) as endpoint, pytest.raises(MarbleRunError):
        activate(settings_for(endpoint, tmp_path), EchoIssuer(), backoff=QUICK)
    assert len(calls) == (2 if status.name in again else 1)


def test_waiting_ends_with_the_last_reason(tmp_path: Path) -> None:
    coordinator = Coordinator(ActivationRefused(Stage.PHASE, "still in recovery"))
    with mesh_listener(MESH, coordinator) as endpoint, pytest.raises(WrongPhase) as refusal:
        activate(settings_for(endpoint, tmp_path), EchoIssuer(), backoff=Steep(first=0.02, ceiling=1000.0))
    assert len(coordinator.seen) == 4
    assert "still in recovery" in str(refusal.value)
    assert str(refusal.value).startswith(f"gave up after {len(coordinator.seen)} attempts")


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        (Stage.EVIDENCE, Denied),
        (Stage.BUDGET, Denied),
        (Stage.CLIENT_CERTIFICATE, Denied),
        (Stage.UUID, Malformed),
        (Stage.TEMPLATES, Unavailable),
    ],
)
def test_a_refusal_ends_it_at_once_with_the_coordinators_reason(
    stage: Stage, error: type[Exception], tmp_path: Path
) -> None:
    coordinator = Coordinator(ActivationRefused(stage, "UniqueID does not match"))
    with mesh_listener(MESH, coordinator) as endpoint, pytest.raises(error, match="UniqueID does not match"):
        activate(settings_for(endpoint, tmp_path), EchoIssuer(), backoff=QUICK)
    assert len(coordinator.seen) == 1


def test_every_status_but_ok_is_an_error_with_its_name() -> None:
    for status in GrpcStatus:
        if status is not GrpcStatus.OK:
            assert status.name in str(refusal_of(Answer(status, "why")))


def test_a_failing_quote_is_an_error_and_nobody_is_asked(tmp_path: Path) -> None:
    coordinator = Coordinator(GIVEN)
    with mesh_listener(MESH, coordinator) as endpoint, pytest.raises(Unavailable):
        activate(settings_for(endpoint, tmp_path), GramineIssuer(tmp_path))
    assert coordinator.seen == []


def test_a_pinned_key_admits_the_coordinator_and_an_impostor_is_told_nothing(tmp_path: Path) -> None:
    own = PinnedKey.of_certificate(MESH.intermediate.public_bytes(Encoding.DER))
    with mesh_listener(MESH, Coordinator(GIVEN)) as endpoint:
        assert activate(settings_for(endpoint, tmp_path), EchoIssuer(), pin=own).argv == GIVEN.argv
    impostor = Coordinator(GIVEN)
    with mesh_listener(Mesh.mint(), impostor) as endpoint, pytest.raises(Untrusted):
        activate(settings_for(endpoint, tmp_path), EchoIssuer(), pin=own)
    assert impostor.seen == []


class NotYet:
    """A pin that can only tell at the second look."""

    def __init__(self) -> None:
        self.looks = 0

    def check(self, server_certificate: bytes) -> None:
        self.looks += 1
        if self.looks == 1:
            raise WrongPhase("no manifest is in force")


def test_a_pin_that_cannot_tell_yet_is_asked_again_before_anything_is_sent(tmp_path: Path) -> None:
    coordinator, pin = Coordinator(GIVEN), NotYet()
    with mesh_listener(MESH, coordinator) as endpoint:
        activate(settings_for(endpoint, tmp_path), EchoIssuer(), pin=pin, backoff=QUICK)
    assert (pin.looks, len(coordinator.seen)) == (2, 1)


def test_evidence_sent_over_another_connection_covers_another_certificate(tmp_path: Path) -> None:
    """What an attacker with a stolen quote can do; the Coordinator compares the two."""
    coordinator = Coordinator(GIVEN)
    with mesh_listener(MESH, coordinator) as endpoint:
        request = prepare_request(settings_for(endpoint, tmp_path), EchoIssuer())
        attacker = make_credentials(SubjectNames()).client_context()
        send_request(endpoint, request, pin=AnyCoordinator(), context=attacker)
    sent, leaf = coordinator.seen[0]
    assert leaf is not None
    assert sent.quote[:32] != sha256(leaf).digest()


def test_nothing_secret_is_narrated_or_shown(tmp_path: Path) -> None:
    lines: list[str] = []
    with mesh_listener(MESH, Coordinator(GIVEN)) as endpoint:
        given = activate(settings_for(endpoint, tmp_path), EchoIssuer(), narrate=lines.append)
    assert "canary" not in repr(given) + "".join(lines)
    steps = ["TLS credentials", "UUID", "UUID not found, generated", "quote: echo", "activating marble of type shop"]
    assert [step for step, line in zip(steps, lines, strict=True) if step not in line] == []


def test_the_client_address_is_recognised_as_the_wrong_one(tmp_path: Path) -> None:
    with tls_server(lambda connection: None, alpn="http/1.1") as endpoint, pytest.raises(Misconfigured):
        activate(settings_for(endpoint, tmp_path), EchoIssuer())


def test_waiting_times_double_up_to_the_ceiling_and_differ() -> None:
    backoff = Backoff(first=1.0, ceiling=8.0)
    for attempt, longest in enumerate([1, 2, 4, 8, 8, 8]):
        delays = {backoff.delay(attempt) for _ in range(20)}
        assert longest / 2 <= min(delays) <= max(delays) <= longest
        assert len(delays) > 1
    assert backoff.delay(10_000) <= 8.0


def test_the_activation_connection_is_tls_12_or_newer_with_aead_suites() -> None:
    context = make_credentials(SubjectNames()).client_context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert [s["name"] for s in context.get_ciphers() if "GCM" not in s["name"] and "CHACHA20" not in s["name"]] == []
