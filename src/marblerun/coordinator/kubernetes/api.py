"""The seven calls to a Kubernetes API server that several Coordinators on one state need, and no more.

Blocks, so it is called in a thread; any number of threads may share one object. Every answer is bounded in size and in
time (its head only in the time between two of its bytes), the server is verified by the cluster's CA, and no text of an
error holds what a Secret holds.
Source: Kubernetes 1.34, API reference ("Secret v1", "ConfigMap v1", "EndpointSlice v1") and "API concepts".
"""

from __future__ import annotations

import base64
import binascii
import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import httpx

from marblerun.coordinator.kubernetes.cluster import Cluster
from marblerun.errors import Conflict, Misconfigured, Unavailable

CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 15.0
MAX_OBJECT_BYTES: Final = 1024 * 1024
"""What the values of one Secret or ConfigMap may have together. Source: Kubernetes, "Secret: restriction on size"."""
# Values in base64 with annotations (256 KiB at most) and what servers note about who wrote which field.
_MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_MAX_TOKEN_BYTES: Final = 64 * 1024
_KEEP_ALIVE_SECONDS: Final = 60.0
_MAX_CONNECTIONS: Final = 8
_SLICES_A_PAGE: Final = 100
_MAX_PAGES: Final = 20
_JSON: Final = "application/json"
# Of an object only what stands over it; Secrets have up to a megabyte.
_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_JSON_PATCH: Final = "application/json-patch+json"
_SECRETS: Final = ("v1", "Secret", "secrets")
_CONFIG_MAPS: Final = ("v1", "ConfigMap", "configmaps")
_SLICES: Final = ("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
_DOCS: Final = "docs/kubernetes.md lists what the Role has to allow"


class Refused(Unavailable):
    """The API server understood and did not do it; ``status`` is the HTTP status, 422 for a patch that does not fit."""

    code = "refused"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, repr=False)
class StoredObject:
    """A Secret or ConfigMap as it was at one moment."""

    name: str
    version: str
    """Changes with every write; equal versions are the same object."""
    data: Mapping[str, bytes] | None
    """The values; of a ConfigMap its ``binaryData``. ``None`` if there is not even an empty map of them."""
    content: Mapping[str, Any]
    """All that the server told, to send back what is not ours."""

    def __repr__(self) -> str:
        return f"StoredObject({self.name!r}, version={self.version!r})"


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Where a Service is served: every address answers on every port."""

    name: str
    addresses: tuple[str, ...]
    """Of endpoints that are ready, or of which that is not known."""
    ports: tuple[int, ...]


class KubernetesApi:
    """One namespace of one cluster.

    Every method raises Unavailable, with what to do, where the server cannot be reached, does not let us, or answers
    with something else than it was asked for.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        """Nothing is asked yet; raises Misconfigured for a CA file that cannot be used."""
        self._cluster = cluster
        self.namespace = namespace
        self._http = httpx.Client(
            base_url=cluster.url,
            verify=_tls_context(cluster),
            timeout=httpx.Timeout(cluster.answer_seconds, connect=min(CONNECT_SECONDS, cluster.answer_seconds)),
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, keepalive_expiry=_KEEP_ALIVE_SECONDS),
            headers={"User-Agent": "marblerun", "Accept-Encoding": "identity"},
            trust_env=False,
            follow_redirects=False,
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    # -- Secrets -------------------------------------------------------------------------------------------------

    def secret(self, name: str) -> StoredObject | None:
        """The Secret as it is now, ``None`` if there is none."""
        return self._get(_SECRETS, name, "data")

    def secret_version(self, name: str) -> str | None:
        """Its version alone, which costs the same however much it holds; ``None`` if there is none."""
        answer = self._ask("GET", _SECRETS, name, accept=_METADATA)
        return None if answer is None else _version(self._metadata(answer, _SECRETS, name, "PartialObjectMetadata"))

    def create_secret(self, name: str, data: Mapping[str, bytes]) -> StoredObject:
        """A new Secret (type Opaque); raises Conflict if there is one by now."""
        body = {**self._head(_SECRETS, name), "type": "Opaque", "data": _encoded(data, name)}
        return self._stored(self._made("POST", _SECRETS, name, body), _SECRETS, name, "data")

    def update_secret(self, stored: StoredObject, data: Mapping[str, bytes]) -> StoredObject:
        """Put ``data`` in the place of all values, if nobody wrote since ``stored`` was read; else raises Conflict.

        After any other error it is not known whether it was written: the version tells.
        """
        body = {**stored.content, "data": _encoded(data, stored.name)}
        return self._stored(self._made("PUT", _SECRETS, stored.name, body), _SECRETS, stored.name, "data")

    # -- ConfigMaps ----------------------------------------------------------------------------------------------

    def config_map(self, name: str) -> StoredObject | None:
        """The ConfigMap as it is now, ``None`` if there is none."""
        return self._get(_CONFIG_MAPS, name, "binaryData")

    def create_config_map(self, name: str, binary_data: Mapping[str, bytes]) -> StoredObject:
        """A new ConfigMap; raises Conflict if there is one by now."""
        body = {**self._head(_CONFIG_MAPS, name), "binaryData": _encoded(binary_data, name)}
        return self._stored(self._made("POST", _CONFIG_MAPS, name, body), _CONFIG_MAPS, name, "binaryData")

    def patch_config_map(self, name: str, operations: Sequence[Mapping[str, object]]) -> StoredObject:
        """Apply a JSON patch (RFC 6902); raises Refused with status 422 if it does not fit what is there."""
        answer = self._made("PATCH", _CONFIG_MAPS, name, list(operations), content_type=_JSON_PATCH)
        return self._stored(answer, _CONFIG_MAPS, name, "binaryData")

    # -- EndpointSlices ------------------------------------------------------------------------------------------

    def endpoint_slices(self, service: str) -> tuple[EndpointSlice, ...]:
        """Where a Service of the namespace is served; empty if nowhere."""
        return tuple(map(_slice, self._slices(service)))

    def _slices(self, service: str) -> Iterator[Mapping[str, Any]]:
        query = {"labelSelector": f"kubernetes.io/service-name={service}", "limit": str(_SLICES_A_PAGE)}
        for _ in range(_MAX_PAGES):
            answer = self._ask("GET", _SLICES, "", query=query) or {}
            items, metadata = answer.get("items"), answer.get("metadata")
            if answer.get("kind") != "EndpointSliceList" or not isinstance(items, list):
                raise self._strange("no list of EndpointSlices")
            yield from (item for item in items if isinstance(item, dict))
            more = metadata.get("continue") if isinstance(metadata, dict) else None
            if not isinstance(more, str) or not more:
                return
            query["continue"] = more
        raise self._strange("more EndpointSlices than any Service has")

    # -- one request ---------------------------------------------------------------------------------------------

    def _get(self, resource: tuple[str, str, str], name: str, field: str) -> StoredObject | None:
        answer = self._ask("GET", resource, name)
        return None if answer is None else self._stored(answer, resource, name, field)

    def _made(
        self, method: str, resource: tuple[str, str, str], name: str, body: object, content_type: str = _JSON
    ) -> Mapping[str, Any]:
        answer = self._ask(method, resource, name, body=body, content_type=content_type)
        if answer is None:
            if method == "POST":
                raise Unavailable(f"the namespace {self.namespace} does not exist; create it or set EDG_K8S_NAMESPACE")
            raise Unavailable(f"{self._what(resource, name)} is gone; restore it from a backup")
        return answer

    def _ask(
        self,
        method: str,
        resource: tuple[str, str, str],
        name: str,
        *,
        body: object = None,
        query: Mapping[str, str] | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> Mapping[str, Any] | None:
        """The server's answer as an object, ``None`` if what was asked for does not exist."""
        request = self._http.build_request(
            method,
            self._path(resource, name if method != "POST" else ""),
            params=query,
            content=None if body is None else json.dumps(body).encode(),
            headers={"Accept": accept, "Content-Type": content_type, **self._authorization()},
        )
        status, content = self._send(request)
        answer = _object(content)
        if status == HTTPStatus.NOT_FOUND and answer.get("kind") == "Status":
            return None
        if status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise self._refusal(method, resource, name, status, answer)
        if not answer:
            raise self._strange("something that is not a JSON object")
        return answer

    def _send(self, request: httpx.Request) -> tuple[int, bytes]:
        limit = self._cluster.answer_seconds
        deadline = time.monotonic() + limit  # noqa: TID251  the rest of the room needs no clock
        content = bytearray()
        try:
            response = self._begin(request)
            try:
                for part in response.iter_raw():
                    content += part
                    if len(content) > _MAX_ANSWER_BYTES:
                        raise self._strange("more than any object can have")
                    if time.monotonic() > deadline:  # noqa: TID251
                        raise Unavailable(f"{self._where} did not answer within {limit:g} seconds; try again")
            finally:
                response.close()
        except httpx.TimeoutException as error:
            raise Unavailable(f"{self._where} did not answer within {limit:g} seconds; try again") from error
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise Unavailable(f"{self._where} cannot be reached: {str(error) or type(error).__name__}") from error
        return response.status_code, bytes(content)

    def _begin(self, request: httpx.Request) -> httpx.Response:
        """The beginning of an answer. A question is asked again where an idle connection turns out to be closed."""
        try:
            return self._http.send(request, stream=True)
        except httpx.RemoteProtocolError:
            if request.method != "GET":
                raise
            return self._http.send(request, stream=True)

    def _authorization(self) -> Mapping[str, str]:
        """The token as the file has it now: the kubelet replaces it long before it expires."""
        path = self._cluster.token_file
        try:
            with path.open("rb") as file:
                token = file.read(_MAX_TOKEN_BYTES).strip().decode("ascii")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a token"
            raise Unavailable(f"the service account's token {path} cannot be read: {reason}") from None
        if not token.isprintable() or not token:
            raise Unavailable(f"the service account's token {path} cannot be read: not a token")
        return {"Authorization": f"Bearer {token}"}

    def _path(self, resource: tuple[str, str, str], name: str) -> str:
        group = f"/apis/{resource[0]}" if "/" in resource[0] else f"/api/{resource[0]}"
        path = f"{group}/namespaces/{quote(self.namespace, safe='')}/{resource[2]}"
        return f"{path}/{quote(name, safe='')}" if name else path

    def _head(self, resource: tuple[str, str, str], name: str) -> dict[str, object]:
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": resource[0], "kind": resource[1], "metadata": metadata}

    # -- what came back ------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"the Kubernetes API server at {self._cluster.url}"

    def _what(self, resource: tuple[str, str, str], name: str) -> str:
        return f"the {resource[1]} {self.namespace}/{name}"

    def _strange(self, what: str) -> Unavailable:
        return Unavailable(f"{self._where} answered with {what}; is it one?")

    def _refusal(
        self, method: str, resource: tuple[str, str, str], name: str, status: int, answer: Mapping[str, Any]
    ) -> Unavailable | Conflict:
        """What a status means. Of the server's own text only its one-word reason is told: the rest may quote values."""
        told = answer.get("reason")
        reason = told if isinstance(told, str) and told.isascii() and told.isalpha() and len(told) < 64 else "no reason"
        verb = {"GET": "get" if name else "list", "POST": "create", "PUT": "update", "PATCH": "patch"}[method]
        if status == HTTPStatus.CONFLICT and reason in ("Conflict", "AlreadyExists"):
            return Conflict(f"{self._what(resource, name)} was changed by another Coordinator meanwhile; try again")
        if status == HTTPStatus.UNAUTHORIZED:
            return Unavailable(
                f"{self._where} does not accept the service account's token {self._cluster.token_file}; is it of this "
                "cluster, and has it expired?"
            )
        if status == HTTPStatus.FORBIDDEN:
            return Refused(
                f"the service account may not {verb} {resource[2]} in the namespace {self.namespace} ({reason}); "
                f"{_DOCS}",
                status=status,
            )
        what = self._what(resource, name) if name else f"{resource[2]} of {self.namespace}"
        return Refused(f"{self._where} did not {verb} {what}: HTTP status {status}, {reason}", status=status)

    def _metadata(
        self, answer: Mapping[str, Any], resource: tuple[str, str, str], name: str, kind: str
    ) -> Mapping[str, Any]:
        """What stands over the object that was asked for; anything else than that object is refused."""
        metadata = answer.get("metadata")
        if not isinstance(metadata, dict) or answer.get("kind") != kind:
            raise self._strange(f"a {str(answer.get('kind'))[:40]!r} instead of a {resource[1]}")
        if (metadata.get("name"), metadata.get("namespace")) != (name, self.namespace) or not _version(metadata):
            raise self._strange(f"another {resource[1]} than {self.namespace}/{name}")
        return metadata

    def _stored(self, answer: Mapping[str, Any], resource: tuple[str, str, str], name: str, field: str) -> StoredObject:
        metadata = self._metadata(answer, resource, name, resource[1])
        values = answer.get(field)
        try:
            data = None if values is None else {key: base64.b64decode(v, validate=True) for key, v in values.items()}
        except (AttributeError, TypeError, ValueError, binascii.Error):
            raise self._strange(f"a {resource[1]} whose {field} is none") from None
        return StoredObject(name, _version(metadata), data, answer)


def _encoded(data: Mapping[str, bytes], name: str) -> dict[str, str]:
    """Values as they are sent; raises Unavailable, before anything is, for more than an object can hold."""
    size = sum(map(len, data.values()))
    if size > MAX_OBJECT_BYTES:
        raise Unavailable(
            f"{name} would have {size} bytes, and Kubernetes keeps {MAX_OBJECT_BYTES} at most in one object; make the "
            "manifest or the user-defined secrets smaller"
        )
    return {key: base64.b64encode(value).decode("ascii") for key, value in data.items()}


def _object(content: bytes) -> Mapping[str, Any]:
    """The JSON object, an empty one if it is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _version(metadata: Mapping[str, Any]) -> str:
    version = metadata.get("resourceVersion")
    return version if isinstance(version, str) else ""


def _slice(item: Mapping[str, Any]) -> EndpointSlice:
    """Addresses and ports of a slice; parts that are none are left out."""
    metadata, endpoints, ports = item.get("metadata"), item.get("endpoints"), item.get("ports")
    name = metadata.get("name") if isinstance(metadata, dict) else ""
    addresses: list[str] = []
    for endpoint in endpoints if isinstance(endpoints, list) else ():
        if not isinstance(endpoint, dict):
            continue
        conditions, found = endpoint.get("conditions"), endpoint.get("addresses")
        is_away = isinstance(conditions, dict) and conditions.get("ready") is False
        if not is_away and isinstance(found, list):
            addresses.extend(address for address in found if isinstance(address, str))
    numbers = [p.get("port") for p in ports if isinstance(p, dict)] if isinstance(ports, list) else []
    return EndpointSlice(
        name=name if isinstance(name, str) else "",
        addresses=tuple(dict.fromkeys(addresses)),
        ports=tuple(dict.fromkeys(n for n in numbers if isinstance(n, int) and 0 < n < 65536)),
    )


def _tls_context(cluster: Cluster) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(cluster.ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    except (OSError, ValueError) as error:
        raise Misconfigured(
            f"the cluster's CA certificates {cluster.ca_file} cannot be used: {error}; does the pod have a service "
            "account, with automountServiceAccountToken not off?"
        ) from error
    return context
