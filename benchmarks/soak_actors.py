"""Who keeps a Coordinator busy in a soak: Marbles, impostors, careless peers, readers, and an office with plans."""

from __future__ import annotations

import base64
import json
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks import users
from benchmarks.coordinators import Target
from benchmarks.manifests import package, typical
from benchmarks.marbles import OK, REFUSED, CallFailed, Maker, call, quote_spoiler
from marblerun.cli.demo.manifest import enclave
from marblerun.marble.keyfile import load_key_pair

SECONDS = 60.0
"""Longest that one call of a soak may take."""
MAX_FAILURES = 50
"""That are kept as text."""


@dataclass(slots=True)
class Findings:
    """What all actors saw; every method may be called from any thread."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """Of activations: seconds since the soak began, seconds it took."""
    began: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    share: float = 1.0
    """Of the latencies, that are kept: hours of them would fill the memory."""
    life: int = 0
    """Which process of the Coordinator it is; odd while it is being restarted."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str) -> None:
        """Count it."""
        with self._lock:
            self.counts[what] += 1

    def fail(self, what: str) -> None:
        """Something that must not happen."""
        with self._lock:
            self.counts["failures"] += 1
            if len(self.failures) < MAX_FAILURES:
                self.failures.append(f"{time.monotonic() - self.began:.1f} s: {what}")

    def took(self, seconds: float) -> None:
        """An activation took so long."""
        if random.random() >= self.share:
            return
        with self._lock:
            self.latencies.append((time.monotonic() - self.began, seconds))

    def attempt(self, what: str, action: Callable[[], bool]) -> bool:
        """Do it once and count it; a broken connection is a failure unless the Coordinator was restarted meanwhile."""
        life = self.life
        try:
            is_right = action()
        except (OSError, CallFailed, ValueError) as error:
            if life % 2 or self.life != life:
                self.note("cut off by a restart")
                self.stop.wait(0.1)
            else:
                self.fail(f"{what}: {type(error).__name__}: {error}")
            return False
        self.note(what)
        return is_right


@dataclass(frozen=True, slots=True)
class Person:
    """A user of the manifest."""

    certificate: str
    """PEM."""
    context: ssl.SSLContext

    @classmethod
    def create(cls, name: str) -> Person:
        """With a new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            subject, subject, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=30)
        )
        pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        context = users.user_context()
        load_key_pair(context, pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cls(pem.decode(), context)


class Office:
    """Two owners of the deployment, who write secrets, update a package, and agree on new manifests."""

    def __init__(self) -> None:
        self.people = {name: Person.create(name) for name in ("anna", "ben")}
        self._version = 1  # of the package ``tool``, which no Marble here runs
        self._edition = 0
        self.written: bytes | None = None

    def manifest(self) -> dict[str, Any]:
        """The present edition."""
        document = typical()
        document["Packages"]["tool"] = {**package(), "ProductID": 77, "SecurityVersion": self._version}
        document["Marbles"]["counted"] = {"Package": "service", "MaxActivations": 10**9}
        document["Marbles"]["service"]["Parameters"]["Env"]["EDITION"] = str(self._edition)
        document["Secrets"]["note"] = {"Type": "plain", "UserDefined": True}
        notes = {"ResourceType": "Secrets", "ResourceNames": ["note"], "Actions": ["ReadSecret", "WriteSecret"]}
        tools = {"ResourceType": "Packages", "ResourceNames": ["tool"], "Actions": ["UpdateSecurityVersion"]}
        document["Roles"] = {
            "owner": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
            "notes": notes,
            "tools": tools,
        }
        document["Users"] = {
            "anna": {"Certificate": self.people["anna"].certificate, "Roles": ["owner", "notes", "tools"]},
            "ben": {"Certificate": self.people["ben"].certificate, "Roles": ["owner"]},
        }
        return document

    def _ask(self, target: Target, who: str, request: bytes) -> Any:
        reply = users.ask(target.client, self.people[who].context, request, SECONDS)
        if reply.status != 200:
            raise ValueError(f"{request.split(b' HTTP')[0].decode()}: {reply.status} {reply.body[:300]!r}")
        return json.loads(reply.body)["data"]

    def _post(self, target: Target, who: str, path: str, body: Mapping[str, object]) -> Any:
        return self._ask(target, who, users.post_request(path, json.dumps(body).encode()))

    def write_note(self, target: Target) -> bool:
        """Set the secret."""
        value = random.randbytes(32)
        self._post(target, "anna", "/api/v2/secrets", {"secrets": {"note": {"Key": _base64(value)}}})
        self.written = value
        return True

    def read_note(self, target: Target) -> bool:
        """Whether the secret is what was written last."""
        if self.written is None:
            return True
        data = self._ask(target, "anna", users.get_request("/api/v2/secrets?s=note"))
        if _base64(self.written) not in json.dumps(data):
            raise ValueError("the secret is not the one that was written")
        return True

    def update_package(self, target: Target) -> bool:
        """Raise a security version: one user, at once."""
        change = {"Packages": {"tool": {"SecurityVersion": self._version + 1}}}
        self._post(target, "anna", "/api/v2/update", {"manifest": _base64(json.dumps(change).encode())})
        self._version += 1
        return True

    def update_manifest(self, target: Target) -> bool:
        """A new edition: one proposes, the other agrees."""
        self._edition += 1
        raw = json.dumps(self.manifest()).encode()
        self._post(target, "anna", "/api/v2/update", {"manifest": _base64(raw)})
        self._post(target, "ben", "/api/v2/update-manifest", {"manifest": _base64(raw)})
        data = self._ask(target, "ben", users.get_request("/api/v2/manifest"))
        if base64.b64decode(data["manifest"]) != raw:
            raise ValueError("the agreed manifest is not in force")
        self.written = None  # an update may begin the secrets anew
        return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def marbles(target: Target, findings: Findings, marble_type: str, pause: float) -> None:
    """New Marbles of one type, one after the other."""
    maker = target.maker(marble_type=marble_type)

    def one() -> bool:
        marble, began = maker.make(), time.monotonic()
        answer = call(target.mesh, marble, SECONDS)
        if answer.status != OK:
            raise CallFailed(f"status {answer.status}: {answer.reason}")
        findings.took(time.monotonic() - began)
        return True

    while not findings.stop.wait(pause):
        findings.attempt(f"activations of {marble_type}", one)


def impostors(target: Target, findings: Findings, pause: float) -> None:
    """Marbles that must be refused: a spoiled quote, an unknown type, another enclave."""
    makers = (
        target.maker(change_quote=quote_spoiler),
        target.maker(marble_type="nobody"),
        Maker.from_environment({**target.evidence, **enclave(99)}),
    )
    number = 0

    def one() -> bool:
        answer = call(target.mesh, makers[number % len(makers)].make(), SECONDS)
        if answer.status != REFUSED:
            raise CallFailed(f"status {answer.status} instead of {REFUSED}: {answer.reason}")
        return True

    while not findings.stop.wait(pause):
        number += 1
        findings.attempt("refused Marbles", one)


def careless(target: Target, findings: Findings, pause: float) -> None:
    """Connections that come to nothing: silence, noise, half a handshake, half a request; all are dropped."""
    number = 0
    maker = target.maker()
    ready = maker.make()

    def one() -> bool:
        endpoint = target.mesh if number % 2 else target.client
        plain = socket.create_connection((endpoint.host, endpoint.port), SECONDS)
        with plain:
            match number % 4:
                case 0:
                    plain.sendall(random.randbytes(200))
                case 1:
                    with ready.context.wrap_socket(plain, server_hostname="localhost") as connection:
                        connection.sendall(ready.request[: len(ready.request) // 2])
                case 2:
                    plain.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
                case _:
                    pass
        return True

    while not findings.stop.wait(pause):
        number += 1
        findings.attempt("connections dropped", one)


def readers(target: Target, findings: Findings, pause: float) -> None:
    """Users who look at status, quote and manifest, on new connections and on kept ones."""
    context = users.user_context()
    paths = ("/status", "/api/v2/quote?nonce=c29haw==", "/manifest", "/api/v2/status")

    def one() -> bool:
        with users.Kept(target.client, context, SECONDS) as connection:
            for path in paths:
                reply = connection.ask(users.get_request(path))
                if reply.status != 200:
                    raise CallFailed(f"{path}: status {reply.status}")
                findings.note("requests of users")
        return True

    while not findings.stop.wait(pause):
        findings.attempt("connections of users", one)
