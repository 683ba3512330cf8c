"""An anchor in etcd, through the JSON gateway of its version 3.

The mark moves by a transaction that compares what is there with what this Coordinator saw last. So two Coordinators,
or an old one that comes back, cannot overwrite a newer mark.
Source: etcd 3.4 documentation, "gRPC gateway" and "KV API: Txn"; byte fields are base64, 64-bit numbers are strings.
"""

from __future__ import annotations

import base64
import binascii
import json
import ssl
import time
from collections.abc import Mapping
from typing import Any, Final

import httpx

from marblerun.coordinator.store.anchors import EtcdPlace, TlsFiles, encode_mark, parse_mark
from marblerun.coordinator.store.lineage import Mark
from marblerun.errors import Misconfigured, Unavailable, Untrusted

CONNECT_SECONDS: Final = 3.0
ANSWER_SECONDS: Final = 5.0
MAX_ANSWER_BYTES: Final = 64 * 1024
_RANGE: Final = "/v3/kv/range"
_TXN: Final = "/v3/kv/txn"


class EtcdAnchor:
    """One key whose value is the number and the head (hex) of the latest state."""

    def __init__(self, place: EtcdPlace, tls: TlsFiles) -> None:
        """Nothing is asked yet; raises Misconfigured for TLS files that cannot be used."""
        self._endpoints = list(place.endpoints)
        self._key = base64.b64encode(place.key.encode()).decode()
        self._name = f"etcd key {place.key}"
        self._seen: bytes | None = None  # the value as it was last seen
        self._has_looked = False
        self._http = httpx.Client(
            verify=_tls_context(tls),
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            trust_env=False,
            follow_redirects=False,
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def load(self) -> Mark | None:
        """What the key holds; the next :meth:`advance` starts from there."""
        found = _value(self._ask(_RANGE, {"key": self._key}), self._name)
        mark = self._mark(found) if found is not None else None
        self._seen, self._has_looked = found, True
        return mark

    def advance(self, mark: Mark) -> None:
        """Put ``mark`` in the place of what was seen last.

        Raises Untrusted (step ``anchor``, reason ``overtaken``) if something else is there now: another Coordinator
        has gone on, and this one must not. Then nothing is changed, now and at every later call.
        """
        if not self._has_looked:
            self.load()
        new = encode_mark(mark).encode()
        answer = self._ask(_TXN, self._transaction(new))
        if answer.get("succeeded") is not True:
            found = _value(_failure_range(answer), self._name)
            if found != new:  # else an earlier answer was lost on the way, and this very mark is there
                raise Untrusted(self._overtaken(found), step="anchor", reason="overtaken")
        self._seen = new

    def _transaction(self, new: bytes) -> dict[str, Any]:
        present: dict[str, Any] = {"key": self._key, "result": "EQUAL"}
        if self._seen is None:
            present |= {"target": "VERSION", "version": "0"}
        else:
            present |= {"target": "VALUE", "value": base64.b64encode(self._seen).decode()}
        return {
            "compare": [present],
            "success": [{"request_put": {"key": self._key, "value": base64.b64encode(new).decode()}}],
            "failure": [{"request_range": {"key": self._key}}],
        }

    def _overtaken(self, found: bytes | None) -> str:
        if found is None:
            return f"the anchor {self._name} was removed while this Coordinator ran"
        return (
            f"the anchor {self._name} was moved to number {self._mark(found).sequence} by somebody else; another "
            "Coordinator may use this deployment's state or its key"
        )

    def _mark(self, found: bytes) -> Mark:
        return parse_mark(found.decode("ascii", "replace"), self._name)

    def _ask(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer of the first member that gives one; that one is asked first the next time."""
        failure = Unavailable(f"the anchor {self._name} has no endpoint")
        for endpoint in tuple(self._endpoints):
            try:
                answer = self._ask_one(endpoint, path, body)
            except Unavailable as error:
                failure = error
                continue
            self._endpoints.remove(endpoint)
            self._endpoints.insert(0, endpoint)
            return answer
        raise failure

    def _ask_one(self, endpoint: str, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        where = f"the anchor {self._name} at {endpoint}"
        deadline = time.monotonic() + ANSWER_SECONDS
        content = b""
        try:
            with self._http.stream("POST", endpoint + path, json=body) as response:
                for part in response.iter_bytes():
                    content += part
                    if len(content) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                        raise Unavailable(f"{where}: the answer is too long or too slow")
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise Unavailable(f"{where} cannot be reached: {str(error) or type(error).__name__}") from error
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        # Every answer of etcd has a header; without this check an empty object would mean that nothing is remembered.
        fields: dict[str, Any] = answer if isinstance(answer, dict) else {}
        if response.status_code != httpx.codes.OK or not isinstance(fields.get("header"), dict):
            told = fields.get("message")
            said = f": {told[:200]}" if isinstance(told, str) and told.isprintable() else ""
            raise Unavailable(f"{where} did not do what it was asked (HTTP status {response.status_code}{said})")
        return fields


def _failure_range(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The range that a refused transaction answers with; empty if it is not there, which then says nothing is."""
    responses = answer.get("responses")
    first = responses[0] if isinstance(responses, list) and responses else None
    found = first.get("response_range") if isinstance(first, dict) else None
    if not isinstance(found, dict):
        raise Unavailable("etcd refused a transaction and did not say what is there")
    return found


def _value(answer: Mapping[str, Any], name: str) -> bytes | None:
    """The value in the answer to a range over one key; ``None`` if there is no such key."""
    pairs = answer.get("kvs", [])
    if not pairs and isinstance(pairs, list):
        return None
    first = pairs[0] if isinstance(pairs, list) else None
    value = first.get("value", "") if isinstance(first, dict) else None
    try:
        return base64.b64decode(value, validate=True)  # type: ignore[arg-type]  # anything else is a TypeError
    except (binascii.Error, TypeError, ValueError):
        raise Unavailable(f"the anchor {name}: etcd's answer cannot be understood") from None


def _tls_context(files: TlsFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(files.ca) if files.ca is not None else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if files.certificate is not None:
            # The callback keeps OpenSSL from asking at the terminal for the password of an encrypted key.
            context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise Misconfigured(f"the anchor's TLS files cannot be used: {error}") from error
    return context
