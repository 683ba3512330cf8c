"""Activations: how many a second, and how much CPU of the Coordinator each costs.

Every call is a new TLS connection with a P-384 client certificate, as stock Marbles make it; evidence comes from the
simulated platform and is verified in full, collateral warm. CPU is user and system time of the Coordinator's process
from /proc, so the client does not count. The floor is what no Coordinator on this path can avoid, measured in the same
run on the same libraries: the handshake, the CSR's signature, the Marble's key and its certificate's signature, the
quote's signatures.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from marblerun.attestation.issue import detect_issuer
from marblerun.cli.demo.manifest import enclave
from marblerun.cli.demo.world import World, clean_environment, free_port
from marblerun.marble.activation import ActivationRequest, prepare_request, send_request
from marblerun.marble.pins import AnyCoordinator
from marblerun.marble.settings import MarbleSettings, load_settings
from marblerun.wire.rpc import GrpcStatus

PRODUCT = 21


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    name: str
    calls: int
    per_second: float
    cpu_ms: float


def bench_manifest(unused_secrets: int = 0, max_activations: int = 0) -> dict[str, object]:
    """A Marble as they usually are: variables and files, two symmetric secrets, one ECDSA certificate."""
    secrets: dict[str, object] = {
        "key_a": {"Type": "symmetric-key", "Size": 256},
        "key_b": {"Type": "symmetric-key", "Size": 128, "Shared": True},
        "cert": {"Type": "cert-ecdsa", "Size": 256},
    }
    secrets |= {f"unused_{n}": {"Type": "symmetric-key", "Size": 256} for n in range(unused_secrets)}
    parameters = {
        "Env": {"KEY_A": "{{ hex .Secrets.key_a }}", "MODE": "production", "KEY_B": "{{ base64 .Secrets.key_b }}"},
        "Files": {
            "/tls/cert.pem": "{{ pem .Secrets.cert.Cert }}",
            "/tls/key.pem": "{{ pem .Secrets.cert.Private }}",
            "/config.json": '{"listen": "0.0.0.0:8080"}',
        },
        "Argv": ["./service"],
    }
    identity = enclave(PRODUCT)
    return {
        "Packages": {
            "service": {
                "SignerID": identity["EDG_SIMULATED_SIGNER_ID"],
                "ProductID": PRODUCT,
                "SecurityVersion": int(identity["EDG_SIMULATED_SECURITY_VERSION"]),
            }
        },
        "Marbles": {"service": {"Package": "service", "MaxActivations": max_activations, "Parameters": parameters}},
        "Secrets": secrets,
    }


class Bench:
    """A Coordinator in a process of its own, ready to be measured."""

    def __init__(self, world: World, mesh: str, pid: int) -> None:
        self._world = world
        self._mesh = mesh
        self._pid = pid

    def request(self) -> tuple[MarbleSettings, ActivationRequest]:
        """A genuine request with a P-384 key; it may be sent on many connections."""
        variables = {**self._world.environment, **enclave(PRODUCT)}
        settings = load_settings(
            {**variables, "EDG_MARBLE_TYPE": "service", "EDG_MARBLE_COORDINATOR_ADDR": self._mesh},
            self._world.directory,
        )
        return settings, prepare_request(settings, detect_issuer(variables), curve=ec.SECP384R1())

    def measure(self, name: str, calls: int, threads: int = 4) -> Row:
        """Activate ``calls`` times, each on a connection of its own."""
        settings, request = self.request()
        _activate(settings, request)  # collateral and caches are warm from here on
        left = iter(range(calls))
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    if next(left, None) is None:
                        return
                _activate(settings, request)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        cpu, began = cpu_seconds(self._pid), time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds, used = time.perf_counter() - began, cpu_seconds(self._pid) - cpu
        return Row(name, calls, calls / seconds, used / calls * 1000)


def _activate(settings: MarbleSettings, request: ActivationRequest) -> None:
    answer = send_request(settings.coordinator, request, pin=AnyCoordinator())
    if answer.status is not GrpcStatus.OK:
        raise RuntimeError(f"activation failed: {answer.status.name} {answer.reason}")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def coordinator(manifest: dict[str, object]) -> Iterator[Bench]:
    """A Coordinator on a simulated platform with this manifest."""
    with tempfile.TemporaryDirectory() as place:
        world = World(Path(place), clean_environment(os.environ))
        world.run(["simulator", "init", "platform"])
        (world.directory / "manifest.json").write_text(json.dumps(manifest))
        mesh_port, client_port = free_port(), free_port()
        world.environment |= {
            "EDG_SIMULATED_PLATFORM": str(world.directory / "platform"),
            "EDG_COORDINATOR_MESH_ADDR": f"127.0.0.1:{mesh_port}",
            "EDG_COORDINATOR_CLIENT_ADDR": f"127.0.0.1:{client_port}",
            "EDG_COORDINATOR_SEAL_DIR": str(world.directory / "state"),
            "EDG_STARTUP_MANIFEST": str(world.directory / "manifest.json"),
        }
        running = world.start("coordinator", ["coordinator"])
        try:
            world.wait_for_port(mesh_port, running)
            yield Bench(world, f"127.0.0.1:{mesh_port}", running.process.pid)
        finally:
            world.stop_all()


def floor_ms(rounds: int = 60) -> float:
    """CPU that an activation cannot avoid, in milliseconds: cryptography alone, server side only for the handshake."""
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = _self_signed(key)
    server, client = _contexts(key, certificate)
    p256 = ec.generate_private_key(ec.SECP256R1())
    message = bytes(432)
    quote_signature = p256.sign(message, ec.ECDSA(hashes.SHA256()))
    csr_signature = key.sign(message, ec.ECDSA(hashes.SHA384()))
    spent = 0.0
    for _ in range(rounds):
        spent += _handshake(server, client)
        began = time.thread_time()
        key.public_key().verify(csr_signature, message, ec.ECDSA(hashes.SHA384()))
        ec.generate_private_key(ec.SECP384R1())
        key.sign(message, ec.ECDSA(hashes.SHA384()))
        p256.public_key().verify(quote_signature, message, ec.ECDSA(hashes.SHA256()))
        spent += time.thread_time() - began
    return spent / rounds * 1000


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "floor")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return builder.sign(key, hashes.SHA384())


def _contexts(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> tuple[SSL.Context, SSL.Context]:
    contexts = []
    for method in (SSL.TLS_SERVER_METHOD, SSL.TLS_CLIENT_METHOD):
        context = SSL.Context(method)
        context.use_privatekey(key)
        context.use_certificate(certificate)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        contexts.append(context)
    return contexts[0], contexts[1]


def _handshake(server_context: SSL.Context, client_context: SSL.Context) -> float:
    """CPU of the server's side of one handshake in memory."""
    server, client = SSL.Connection(server_context, None), SSL.Connection(client_context, None)
    server.set_accept_state()
    client.set_connect_state()
    spent, done = 0.0, [False, False]
    while not all(done):
        for index, (side, other) in enumerate(((client, server), (server, client))):
            began = time.thread_time()
            try:
                side.do_handshake()
                done[index] = True
            except SSL.WantReadError:
                pass
            while True:
                try:
                    data = side.bio_read(65536)
                except SSL.WantReadError:
                    break
                if side is server:
                    spent += time.thread_time() - began
                other.bio_write(data)
                began = time.thread_time()
            if side is server:
                spent += time.thread_time() - began
    return spent


def run(calls: int = 400) -> list[Row]:
    """All rows."""
    rows = []
    with coordinator(bench_manifest()) as bench:
        rows.append(bench.measure("typical", calls))
    with coordinator(bench_manifest(unused_secrets=200)) as bench:
        rows.append(bench.measure("200 secrets not used by this Marble", calls))
    with coordinator(bench_manifest(max_activations=10**9)) as bench:
        rows.append(bench.measure("with MaxActivations, 16 in flight", calls, threads=16))
    return rows


def show(floor: float, rows: list[Row]) -> str:
    """The table."""
    lines = [
        f"{'activation':40} {'calls/s':>9} {'CPU ms/call':>12} {'x floor':>8}",
        f"{'floor (cryptography alone)':40} {'':>9} {floor:12.2f} {1:8.2f}",
    ]
    lines += [f"{row.name:40} {row.per_second:9.0f} {row.cpu_ms:12.2f} {row.cpu_ms / floor:8.2f}" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    print(show(floor_ms(), run()))
