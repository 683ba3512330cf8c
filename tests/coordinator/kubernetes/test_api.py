"""The few calls to Kubernetes, against a real API server with exactly the rights that are documented."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.forge.kubernetes import ROLE, Kube, Pod, mint_certificates, needs_kube

from marblerun.coordinator.kubernetes.api import MAX_OBJECT_BYTES, EndpointSlice, KubernetesApi, Refused
from marblerun.coordinator.kubernetes.cluster import in_cluster, namespace_of
from marblerun.errors import Conflict, Misconfigured, Unavailable


@pytest.fixture
def api(pod: Pod) -> Iterator[KubernetesApi]:
    api = pod.api()
    yield api
    api.close()


@needs_kube
def test_a_secret_is_made_read_and_changed_with_the_rights_of_the_role(api: KubernetesApi) -> None:
    assert (api.secret("state"), api.secret_version("state")) == (None, None)
    made = api.create_secret("state", {})
    assert not made.data
    assert made.content["type"] == "Opaque"
    assert api.secret_version("state") == made.version
    changed = api.update_secret(made, {"sealed_data": b"\x00\xff"})
    found = api.secret("state")
    assert found is not None
    assert (found.data, found.version) == ({"sealed_data": b"\x00\xff"}, changed.version)
    assert changed.version != made.version == made.content["metadata"]["resourceVersion"]


@needs_kube
def test_whoever_comes_second_is_told_so_and_changes_nothing(api: KubernetesApi) -> None:
    made = api.create_secret("state", {})
    api.update_secret(made, {"a": b"1"})
    with pytest.raises(Conflict, match="another Coordinator"):
        api.update_secret(made, {"a": b"2"})
    with pytest.raises(Conflict):
        api.create_secret("state", {"a": b"3"})
    found = api.secret("state")
    assert found is not None
    assert found.data == {"a": b"1"}


@needs_kube
def test_what_others_wrote_over_a_secret_stays(api: KubernetesApi, pod: Pod) -> None:
    api.create_secret("state", {})
    path = f"/api/v1/namespaces/{pod.namespace}/secrets/state"
    label = {"metadata": {"labels": {"owner": "somebody"}}}
    pod.kube.ask("PATCH", path, label, "application/merge-patch+json")
    stored = api.secret("state")
    assert stored is not None
    assert api.update_secret(stored, {"a": b""}).content["metadata"]["labels"] == {"owner": "somebody"}


@needs_kube
def test_what_is_too_large_is_refused_before_it_is_sent_and_the_largest_is_kept(api: KubernetesApi) -> None:
    made = api.create_secret("state", {})
    with pytest.raises(Unavailable, match=f"{MAX_OBJECT_BYTES} at most"):
        api.update_secret(made, {"a": bytes(MAX_OBJECT_BYTES), "b": b"1"})
    assert api.secret_version("state") == made.version
    assert api.update_secret(made, {"a": bytes(MAX_OBJECT_BYTES)}).data == {"a": bytes(MAX_OBJECT_BYTES)}


@needs_kube
def test_a_config_map_is_made_and_patched(api: KubernetesApi) -> None:
    assert api.config_map("keks") is None
    made = api.create_config_map("keks", {"a": b"1"})
    assert made.data == {"a": b"1"}
    changed = api.patch_config_map("keks", [{"op": "add", "path": "/binaryData/b", "value": "Mg=="}])
    assert changed.data == {"a": b"1", "b": b"2"}
    with pytest.raises(Conflict):
        api.create_config_map("keks", {})


@needs_kube
def test_a_patch_that_does_not_fit_is_told_apart(api: KubernetesApi, pod: Pod) -> None:
    body = {"metadata": {"name": "keks"}, "data": {"x": "y"}}
    pod.kube.ask("POST", f"/api/v1/namespaces/{pod.namespace}/configmaps", body)
    found = api.config_map("keks")
    assert found is not None
    assert found.data is None
    with pytest.raises(Refused) as refused:
        api.patch_config_map("keks", [{"op": "add", "path": "/binaryData/b", "value": "Mg=="}])
    assert refused.value.status == 422
    both: list[dict[str, object]] = [
        {"op": "add", "path": "/binaryData", "value": {}},
        {"op": "add", "path": "/binaryData/b", "value": "Mg=="},
    ]
    assert api.patch_config_map("keks", both).data == {"b": b"2"}


@needs_kube
def test_endpoint_slices_of_one_service_are_found_without_the_endpoints_that_are_away(
    api: KubernetesApi, pod: Pod
) -> None:
    def slice_of(name: str, service: str) -> dict[str, object]:
        return {
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.1.0.1"], "conditions": {"ready": True}},
                {"addresses": ["10.1.0.2"], "conditions": {"ready": False}},
                {"addresses": ["10.1.0.3"]},
            ],
            "ports": [{"name": "key", "port": 5433}],
        }

    assert api.endpoint_slices("coordinator-key-api") == ()
    path = f"/apis/discovery.k8s.io/v1/namespaces/{pod.namespace}/endpointslices"
    for name, service in (("one", "coordinator-key-api"), ("two", "coordinator-key-api"), ("other", "other")):
        pod.kube.ask("POST", path, slice_of(name, service))
    found = sorted(api.endpoint_slices("coordinator-key-api"), key=lambda s: s.name)
    assert found == [EndpointSlice(name, ("10.1.0.1", "10.1.0.3"), (5433,)) for name in ("one", "two")]


@needs_kube
def test_more_slices_than_fit_on_a_page_are_all_found(
    api: KubernetesApi, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marblerun.coordinator.kubernetes.api._SLICES_A_PAGE", 2)
    path = f"/apis/discovery.k8s.io/v1/namespaces/{pod.namespace}/endpointslices"
    for number in range(5):
        metadata = {"name": f"s{number}", "labels": {"kubernetes.io/service-name": "k"}}
        pod.kube.ask("POST", path, {"metadata": metadata, "addressType": "IPv4", "endpoints": [], "ports": []})
    assert {found.name for found in api.endpoint_slices("k")} == {f"s{number}" for number in range(5)}


@needs_kube
@pytest.mark.parametrize("verb", ["get", "create", "update"])
def test_a_right_that_is_missing_is_named(kube: Kube, verb: str) -> None:
    verbs = [other for other in ROLE[0]["verbs"] if other != verb]
    pod = kube.namespace([{**ROLE[0], "verbs": verbs}])
    made = pod.admin().create_secret("state", {})
    api = pod.api()
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: api.secret("state"),
        "create": lambda: api.create_secret("other", {}),
        "update": lambda: api.update_secret(made, {}),
    }
    with pytest.raises(Refused, match=f"may not {verb} secrets in the namespace {pod.namespace}"):
        calls[verb]()


@needs_kube
def test_a_namespace_that_is_not_there_is_named(kube: Kube) -> None:
    with pytest.raises(Unavailable, match="namespace nowhere does not exist"):
        kube.admin("nowhere").create_secret("state", {})


@needs_kube
def test_a_token_is_read_again_for_every_request_and_a_bad_one_is_named(pod: Pod) -> None:
    api, token = pod.api(), pod.account / "token"
    good = token.read_text()
    assert api.secret("state") is None
    token.write_text("nonsense")
    with pytest.raises(Unavailable, match="does not accept the service account's token"):
        api.secret("state")
    token.write_text(good)
    assert api.secret("state") is None
    token.unlink()
    with pytest.raises(Unavailable, match="cannot be read: No such file"):
        api.secret("state")


@needs_kube
def test_a_server_of_another_ca_gets_no_token(pod: Pod, pod_files: Path) -> None:
    with pytest.raises(Misconfigured, match="automountServiceAccountToken"):
        KubernetesApi(replace(pod.cluster, ca_file=pod.account / "token"), pod.namespace)
    with pytest.raises(Unavailable, match="certificate verify failed"):
        KubernetesApi(replace(pod.cluster, ca_file=pod_files / "ca.crt"), pod.namespace).secret("state")


def test_a_server_that_never_answers_is_given_up(pod_files: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        cluster = replace(in_cluster(_PLACE, pod_files), url=url, answer_seconds=0.5)
        with pytest.raises(Unavailable, match=r"did not answer within 0\.5 seconds"):
            KubernetesApi(cluster, "ns").secret("state")


def test_a_server_that_hangs_up_cannot_be_reached(pod_files: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unavailable, match="cannot be reached"):
            KubernetesApi(replace(in_cluster(_PLACE, pod_files), url=url), "ns").secret("state")
        thread.join()


_PLACE = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}


@pytest.fixture
def pod_files(tmp_path: Path) -> Path:
    mint_certificates(tmp_path)
    (tmp_path / "token").write_text("token")
    return tmp_path


def test_where_the_cluster_is_tell_the_variables_that_an_enclave_sees_before_the_others(tmp_path: Path) -> None:
    assert in_cluster(_PLACE, tmp_path).url == "https://127.0.0.1:1"
    seen = {**_PLACE, "EDG_KUBERNETES_SERVICE_HOST": "fd00::1", "EDG_KUBERNETES_SERVICE_PORT": "443"}
    assert in_cluster(seen, tmp_path).url == "https://[fd00::1]:443"
    for bad in ({}, {"KUBERNETES_SERVICE_HOST": "h"}, {**_PLACE, "KUBERNETES_SERVICE_PORT": "0"}):
        with pytest.raises(Misconfigured, match="this is not a pod"):
            in_cluster(bad, tmp_path)
    assert namespace_of(tmp_path) == ""
    (tmp_path / "namespace").write_text("mine\n")
    assert namespace_of(tmp_path) == "mine"


def test_a_question_is_asked_again_where_the_connection_was_closed_and_a_write_is_not(pod_files: Path) -> None:
    """An idle connection may end at any moment; of a write nobody knows whether it was done."""
    body = b'{"kind":"Secret","metadata":{"name":"s","namespace":"ns","resourceVersion":"1"}}'
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pod_files / "server.crt", pod_files / "server.key")
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for answers in (False, True, False):
            with listener.accept()[0] as raw, context.wrap_socket(raw, server_side=True) as connection:
                asked.append(connection.recv(65536).partition(b" ")[0])
                if answers:
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
                    )
                    connection.sendall(body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        api = KubernetesApi(replace(in_cluster(_PLACE, pod_files), url=url), "ns")
        found = api.secret("s")
        assert found is not None
        with pytest.raises(Unavailable, match="cannot be reached"):
            api.update_secret(found, {})
        thread.join()
    assert asked == [b"GET", b"GET", b"PUT"]


def answered(files: Path, status: int, body: bytes, ask: Callable[[KubernetesApi], object]) -> object:
    """What comes of a question that a server of ours answers like this."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files / "server.crt", files / "server.key")

    def serve(listener: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),  # it hangs up in the middle of what is too long
            listener.accept()[0] as raw,
            context.wrap_socket(raw, server_side=True) as connection,
        ):
            connection.recv(65536)
            head = b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            connection.sendall(head + body)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            return ask(KubernetesApi(replace(in_cluster(_PLACE, files), url=url), "ns"))
        finally:
            thread.join()


_HEAD = '"kind":"Secret","metadata":{"name":"s","namespace":"ns","resourceVersion":"1"}'


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"[" * 100_000),
        (200, b'{"kind":"ConfigMap","metadata":{"name":"s","namespace":"ns","resourceVersion":"1"}}'),
        (200, b'{"kind":"Secret","metadata":{"name":"other","namespace":"ns","resourceVersion":"1"}}'),
        (200, b'{"kind":"Secret","metadata":{"name":"s","namespace":"other","resourceVersion":"1"}}'),
        (200, b'{"kind":"Secret","metadata":{"name":"s","namespace":"ns","resourceVersion":1}}'),
        (200, b'{"kind":"Secret","metadata":[]}'),
        *(
            (200, f'{{{_HEAD},"data":{data}}}'.encode())
            for data in ('"x"', "[1]", '{"a":1}', '{"a":"*"}', '{"a":"\\u00e9"}')
        ),
        (200, b" " * (4 * 1024 * 1024 + 1)),
        (201, b"{}"),
        (302, b"{}"),
        (404, b"not here"),
        (429, b'{"kind":"Status","reason":"TooManyRequests"}'),
        (500, b'{"kind":"Status","reason":"the value is sesame","message":"sesame"}'),
    ],
)
def test_an_answer_that_is_none_is_refused_without_a_word_of_it(pod_files: Path, status: int, body: bytes) -> None:
    with pytest.raises(Unavailable) as refused:
        answered(pod_files, status, body, lambda api: api.secret("s"))
    assert "sesame" not in str(refused.value)
    with pytest.raises(Unavailable):
        answered(pod_files, status, body, lambda api: api.endpoint_slices("s"))


@pytest.mark.parametrize(
    "item",
    [
        "{}",
        '{"metadata":1,"endpoints":1,"ports":1}',
        '{"metadata":{"name":1},"endpoints":[1,{"addresses":1},{"addresses":[1]}],"ports":[1,{"port":"x"},{"port":0}]}',
    ],
)
def test_a_slice_whose_parts_are_none_is_empty(pod_files: Path, item: str) -> None:
    body = f'{{"kind":"EndpointSliceList","metadata":{{}},"items":[{item}]}}'.encode()
    found = answered(pod_files, 200, body, lambda api: api.endpoint_slices("s"))
    assert found == (EndpointSlice("", (), ()),)
