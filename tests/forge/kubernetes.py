"""A real kube-apiserver on a real etcd, with RBAC on: what Coordinators that share a state are tried on.

Nothing else of a cluster runs: no controllers, no scheduler, no kubelet. So what the kubelet would give a pod (token,
CA, namespace) is put into a folder here.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tests.coordinator.store.etcd import BINARY as ETCD
from tests.coordinator.store.etcd import Etcd, etcd
from tests.forge.front import Front

from marblerun.coordinator.kubernetes.api import KubernetesApi
from marblerun.coordinator.kubernetes.cluster import Cluster

START_SECONDS: Final = 180.0
_STARTS: Final = 3
_ADMIN_TOKEN: Final = "administrator-of-the-tests"
ROLE: Final[Sequence[Mapping[str, Sequence[str]]]] = (
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "create", "update"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create", "patch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]},
)
"""Exactly what a Coordinator's service account is allowed (protocol, section 11.3)."""


def _binary() -> str | None:
    kept = Path.home() / ".cache/marblerun/kube-apiserver"
    named = os.environ.get("MARBLERUN_KUBE_APISERVER")
    return named or shutil.which("kube-apiserver") or (str(kept) if kept.is_file() else None)


BINARY: Final = _binary()
needs_kube = pytest.mark.skipif(
    BINARY is None or ETCD is None,
    reason="SKIPPED: there is no kube-apiserver ('make kubernetes' builds it) or no etcd (Debian: etcd-server) here",
)


@dataclass
class Kube:
    """An API server that can be stopped and started again with what it knew."""

    folder: Path
    etcd: Etcd
    front: Front = field(default_factory=Front)
    process: subprocess.Popen[bytes] | None = None
    _namespaces: int = field(default=0)

    @property
    def port(self) -> int:
        """The same for its whole life."""
        return self.front.port

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it and wait until it says that it is ready; on another port behind its own if somebody was faster."""
        for _ in range(_STARTS):
            port = _free_port()
            if self._start(port):
                self.front.target = port
                return
        raise AssertionError((self.folder / "log").read_text()[-4000:])

    def _start(self, port: int) -> bool:
        arguments = [
            *(str(BINARY), "--etcd-servers", self.etcd.url, "--bind-address", "127.0.0.1", "--secure-port", str(port)),
            *("--tls-cert-file", str(self.folder / "server.crt"), "--tls-private-key-file"),
            *(str(self.folder / "server.key"), "--cert-dir", str(self.folder), "--authorization-mode", "RBAC"),
            *("--token-auth-file", str(self.folder / "tokens.csv"), "--service-account-issuer"),
            *("https://kubernetes.default.svc", "--service-account-key-file", str(self.folder / "accounts.key")),
            *("--service-account-signing-key-file", str(self.folder / "accounts.key"), "--service-cluster-ip-range"),
            *("10.0.0.0/24", "--endpoint-reconciler-type", "none", "--profiling=false", "-v", "0"),
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                arguments, stdout=log, stderr=log, env={"PATH": "/usr/bin", "HOME": str(self.folder)}
            )
        deadline = time.monotonic() + START_SECONDS
        with self._http(port) as http:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    return False
                try:
                    if http.get("/readyz").status_code == httpx.codes.OK:
                        return True
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)
        self.stop()
        return False

    def stop(self) -> None:
        """Kill it: connections break, nothing is ended cleanly."""
        self.front.cut()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    # -- as administrator ----------------------------------------------------------------------------------------

    def admin(self, namespace: str) -> KubernetesApi:
        """With all rights."""
        return KubernetesApi(Cluster(self.url, self.folder / "admin.token", self.folder / "ca.crt"), namespace)

    def ask(self, method: str, path: str, body: object = None, content_type: str = "application/json") -> Any:
        """Whatever else is to be done to the cluster; the answer, which must be a success."""
        with self._http(self.port) as http:
            answer = http.request(method, path, json=body, headers={"Content-Type": content_type})
        assert answer.is_success, answer.text
        return answer.json()

    def namespace(self, role: Sequence[Mapping[str, Sequence[str]]] = ROLE) -> Pod:
        """A new namespace with a service account that may do what ``role`` lists; what its pods see."""
        self._namespaces += 1
        name = f"test-{self._namespaces}"
        self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        account = "marblerun-coordinator"
        self.ask("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": account}})
        rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{name}"
        self.ask("POST", f"{rbac}/roles", {"metadata": {"name": account}, "rules": role})
        binding = {
            "metadata": {"name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": name}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        }
        self.ask("POST", f"{rbac}/rolebindings", binding)
        token = self.ask(
            "POST",
            f"/api/v1/namespaces/{name}/serviceaccounts/{account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}},
        )["status"]["token"]
        folder = self.folder / name
        folder.mkdir()
        (folder / "token").write_text(token)
        (folder / "namespace").write_text(name)
        shutil.copy(self.folder / "ca.crt", folder)
        return Pod(self, name, folder)

    def _http(self, port: int) -> httpx.Client:
        return httpx.Client(
            base_url=f"https://127.0.0.1:{port}",
            verify=ssl.create_default_context(cafile=str(self.folder / "ca.crt")),
            headers={"Authorization": f"Bearer {_ADMIN_TOKEN}"},
            timeout=30,
            trust_env=False,
        )


@dataclass(frozen=True)
class Pod:
    """What a pod of a Coordinator has: a namespace, and a folder with token, CA and namespace."""

    kube: Kube
    namespace: str
    account: Path

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.kube.url, self.account / "token", self.account / "ca.crt")

    def api(self) -> KubernetesApi:
        """As the service account."""
        return KubernetesApi(self.cluster, self.namespace)

    def admin(self) -> KubernetesApi:
        """The same namespace with all rights."""
        return self.kube.admin(self.namespace)

    @property
    def environment(self) -> dict[str, str]:
        """For a Coordinator process in distributed mode."""
        return {
            "EDG_DISTRIBUTED_COORDINATOR": "1",
            "EDG_STORE_BACKEND": "k8s-secret",
            "EDG_KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "EDG_KUBERNETES_SERVICE_PORT": str(self.kube.port),
            "EDG_K8S_ACCOUNT_DIR": str(self.account),
            "EDG_K8S_STATE_NAME": "marblerun-state",
            "EDG_K8S_SERVICE_NAME": "coordinator-key-api",
            "EDG_K8S_KEK_MAP": "marblerun-sealed-kek",
            "EDG_K8S_NAMESPACE": self.namespace,
        }


@contextmanager
def kube_apiserver(folder: Path) -> Iterator[Kube]:
    """A running one; it and its etcd are gone at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    mint_certificates(folder)
    (folder / "tokens.csv").write_text(f'{_ADMIN_TOKEN},admin,admin,"system:masters"\n')
    (folder / "admin.token").write_text(_ADMIN_TOKEN)
    with etcd(folder / "etcd") as storage:
        kube = Kube(folder, storage)
        try:
            kube.start()
            yield kube
        finally:
            kube.stop()
            kube.front.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def mint_certificates(folder: Path) -> None:
    """A CA, the server's certificate, and the key that signs the tokens of service accounts."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("cluster", authority_key, "cluster", authority_key, is_authority=True)
    server = _certificate("kube-apiserver", key, "cluster", authority_key, is_authority=False)
    (folder / "ca.crt").write_bytes(authority.public_bytes(Encoding.PEM))
    (folder / "server.crt").write_bytes(server.public_bytes(Encoding.PEM))
    for name, private in (("server.key", key), ("accounts.key", ec.generate_private_key(ec.SECP256R1()))):
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        (folder / name).write_bytes(pem)


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if is_authority:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    else:
        names = [x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
