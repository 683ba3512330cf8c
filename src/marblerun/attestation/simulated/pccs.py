"""A stand-in PCCS: collateral over HTTP in the shapes of Intel's API version 4.

What to answer is decided by :func:`answer`, a function of the request and a publisher; the server only carries it.

Source: formats, section 4; Intel PCS API version 4; PCCS design guide.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, runtime_checkable
from urllib.parse import parse_qs, quote

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from marblerun.attestation.collect.contents import Contents
from marblerun.attestation.collect.directory import Recording, load_recordings, newest
from marblerun.attestation.model import Collateral, Platform, Tee
from marblerun.attestation.simulated.platform import SimulatedPlatform
from marblerun.errors import NotFound

# A reader that sends nothing must not keep a thread for ever.
_IDLE_SECONDS: Final = 10.0
_CAS: Final = ("processor", "platform")


class Publisher(Protocol):
    """Where the stand-in finds what it serves."""

    def find(self, *, tee: Tee | None = None, fmspc: bytes | None = None, ca: str | None = None) -> Collateral | None:
        """Collateral that fits everything that is given, or None."""
        ...


@dataclass(frozen=True, slots=True)
class PublishedPck:
    """The PCK certificate of one machine; both parts PEM text."""

    leaf: str
    issuers: str
    platform: Platform


@runtime_checkable
class PckPublisher(Protocol):
    """A publisher that knows machines."""

    def find_pck(self, qe_id: bytes) -> PublishedPck | None:
        """The PCK certificate of the machine with this QE ID (16 bytes), or None."""
        ...


class PlatformPublisher:
    """The collateral of one simulated platform, signed freshly for the clock's time."""

    def __init__(self, platform: SimulatedPlatform, clock: Callable[[], datetime]) -> None:
        """``clock`` gives the time now, in UTC."""
        self._platform = platform
        self._clock = clock

    def find(self, *, tee: Tee | None = None, fmspc: bytes | None = None, ca: str | None = None) -> Collateral | None:
        """The platform's collateral, or None if another platform is asked for."""
        own = self._platform.platform
        if fmspc not in (None, own.fmspc) or ca not in (None, own.ca):
            return None
        return self._platform.collateral(self._clock(), tee or Tee.SGX)

    def find_pck(self, qe_id: bytes) -> PublishedPck | None:
        """The platform's PCK certificate, if it is asked for."""
        if qe_id != self._platform.qe_id:
            return None
        leaf, end, issuers = self._platform.pck_chain.partition("-----END CERTIFICATE-----\n")
        return PublishedPck(leaf + end, issuers, self._platform.platform)


class RecordedPublisher:
    """Recorded collateral, served as it is. Parts of several recordings may be mixed, as a real service's are."""

    def __init__(self, recordings: tuple[Recording, ...], clock: Callable[[], datetime]) -> None:
        """``clock`` decides which of several recordings of one platform is served."""
        self._recordings = recordings
        self._clock = clock

    @classmethod
    def load(cls, directory: Path, clock: Callable[[], datetime]) -> RecordedPublisher:
        """All nine-field JSON files in ``directory``; NotFound if there are none, Malformed if one is broken."""
        recordings = load_recordings(directory)
        if not recordings:
            raise NotFound(f"{directory} holds neither a simulated platform nor recorded collateral (*.json)")
        return cls(recordings, clock)

    def find(self, *, tee: Tee | None = None, fmspc: bytes | None = None, ca: str | None = None) -> Collateral | None:
        """The newest recording that fits."""

        def fits(contents: Contents) -> bool:
            key = contents.key
            return tee in (None, key.tee) and fmspc in (None, key.fmspc) and ca in (None, key.ca)

        found = newest(self._recordings, self._clock(), fits)
        return found.collateral if found else None


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)


class _Refused(Exception):
    """A request that ends with a status and one line of text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def answer(publisher: Publisher, target: str) -> Answer:
    """The answer to GET ``target`` (path and query).

    400 for bad parameters, 404 for an unknown path, FMSPC or evaluation number, 410 for API version 3, 461 for a
    machine without PCK certificate here.
    """
    path, _, query = target.partition("?")
    tee, _, rest = path.strip("/").partition("/")
    api, _, resource = rest.partition("/v4/")
    try:
        if rest.startswith("certification/v3/"):
            raise _Refused(410, "API version 3 is at its end of life; use version 4")
        if tee not in ("sgx", "tdx") or api != "certification":
            raise _Refused(404, "no such resource")
        return _resource(publisher, Tee(tee), resource, _query(query))
    except _Refused as refusal:
        return Answer(refusal.status, refusal.message.encode() + b"\n")


def _resource(publisher: Publisher, tee: Tee, resource: str, query: dict[str, str]) -> Answer:
    match tee, resource:
        case Tee.SGX, "pckcrl":
            return _pck_crl(publisher, query)
        case Tee.SGX, "pckcert":
            return _pck_certificate(publisher, query)
        case Tee.SGX, "rootcacrl":
            crl = _found(publisher.find(), "root CRL").root_ca_crl
            return Answer(200, crl.hex().encode(), "application/pkix-crl")
        case _, "tcb":
            return _tcb_info(publisher, tee, query)
        case _, "qe/identity":
            return _qe_identity(publisher, tee, query)
        case _:
            raise _Refused(404, "no such resource")


# Digits of each parameter; the encrypted PPID may be absent for a machine that is known by its QE ID.
_PCK_PARAMETERS: Final = {"qeid": 32, "cpusvn": 32, "pcesvn": 4, "pceid": 4, "encrypted_ppid": 768}


def _pck_certificate(publisher: Publisher, query: dict[str, str]) -> Answer:
    for name, digits in _PCK_PARAMETERS.items():
        if name not in query and name == "encrypted_ppid":
            continue
        text = query.get(name, "")
        if len(text) != digits or not all(digit in "0123456789abcdefABCDEF" for digit in text):
            raise _Refused(400, f"{name} must be {digits} hex digits")
    found = publisher.find_pck(bytes.fromhex(query["qeid"])) if isinstance(publisher, PckPublisher) else None
    if found is None or query["pceid"].lower() != found.platform.pce_id.hex():
        raise _Refused(461, "no such platform")
    platform = found.platform
    headers = {
        "SGX-PCK-Certificate-Issuer-Chain": quote(found.issuers),
        "SGX-TCBm": platform.cpu_svns.hex() + platform.pce_svn.to_bytes(2, "little").hex(),
        "SGX-FMSPC": platform.fmspc.hex().upper(),
        "SGX-PCK-Certificate-CA-Type": platform.ca,
    }
    return Answer(200, found.leaf.encode(), "application/x-pem-file", headers)


def _pck_crl(publisher: Publisher, query: dict[str, str]) -> Answer:
    ca, encoding = query.get("ca", ""), query.get("encoding", "hex")
    if ca not in _CAS:
        raise _Refused(400, "ca must be processor or platform")
    collateral = _found(publisher.find(ca=ca), f"CRL of the {ca} CA")
    crl = collateral.pck_crl
    match encoding:
        case "der":
            body, content_type = crl, "application/pkix-crl"
        case "pem":
            parsed = x509.load_der_x509_crl(crl)
            body, content_type = parsed.public_bytes(serialization.Encoding.PEM), "application/x-pem-file"
        case "hex":
            # Without an encoding a PCCS answers in hex (formats, section 4).
            body, content_type = crl.hex().encode(), "application/pkix-crl"
        case _:
            raise _Refused(400, "encoding must be der or pem")
    headers = {"SGX-PCK-CRL-Issuer-Chain": quote(collateral.pck_crl_issuer_chain)}
    return Answer(200, body, content_type, headers)


def _tcb_info(publisher: Publisher, tee: Tee, query: dict[str, str]) -> Answer:
    text = query.get("fmspc", "")
    if len(text) != 12 or not all(digit in "0123456789abcdefABCDEF" for digit in text):
        raise _Refused(400, "fmspc must be 12 hex digits")
    collateral = _found(publisher.find(tee=tee, fmspc=bytes.fromhex(text)), f"TCB Info for FMSPC {text}")
    _check_update(query, collateral.tcb_info)
    headers = {"TCB-Info-Issuer-Chain": quote(collateral.tcb_info_issuer_chain)}
    return _signed("tcbInfo", collateral.tcb_info, collateral.tcb_info_signature, headers)


def _qe_identity(publisher: Publisher, tee: Tee, query: dict[str, str]) -> Answer:
    collateral = _found(publisher.find(tee=tee), "QE identity")
    _check_update(query, collateral.qe_identity)
    headers = {"SGX-Enclave-Identity-Issuer-Chain": quote(collateral.qe_identity_issuer_chain)}
    return _signed("enclaveIdentity", collateral.qe_identity, collateral.qe_identity_signature, headers)


def _signed(name: str, text: str, signature: bytes, headers: Mapping[str, str]) -> Answer:
    # Put together as text: the signed part must arrive exactly as it was signed.
    body = f'{{"{name}":{text},"signature":"{signature.hex()}"}}'
    return Answer(200, body.encode(), "application/json", headers)


def _check_update(query: dict[str, str], text: str) -> None:
    number = query.get("tcbEvaluationDataNumber")
    if "update" in query and (number is not None or query["update"] not in ("standard", "early")):
        raise _Refused(400, "update must be standard or early, and stands alone")
    if number is None:
        return
    if not (number.isascii() and number.isdigit()):
        raise _Refused(400, "tcbEvaluationDataNumber must be a number")
    if f'"tcbEvaluationDataNumber":{number},' not in text:
        raise _Refused(404, f"evaluation data number {number} is not known")


def _query(text: str) -> dict[str, str]:
    values = parse_qs(text, keep_blank_values=True, max_num_fields=16) if text.count("&") < 16 else {}
    if any(len(value) != 1 for value in values.values()) or (text and not values):
        raise _Refused(400, "each parameter must be given once")
    return {name: value[0] for name, value in values.items()}


def _found(collateral: Collateral | None, what: str) -> Collateral:
    if collateral is None:
        raise _Refused(404, f"no {what}")
    return collateral


class CollateralServer:
    """The stand-in on a socket, http or https; a context manager that serves in a thread while it is entered."""

    def __init__(
        self, publisher: Publisher, address: tuple[str, int] = ("127.0.0.1", 0), *, tls: ssl.SSLContext | None = None
    ) -> None:
        """Bind ``address`` (port 0 takes a free one); OSError if that cannot be done."""
        self._host = address[0]  # as it was named: a certificate for a name does not fit the address behind it
        self._server = _Server(address, publisher, tls)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end."""
        host, port = self._host, self._server.server_port
        return f"{self._server.scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def __enter__(self) -> CollateralServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], publisher: Publisher, tls: ssl.SSLContext | None) -> None:
        self.publisher = publisher
        self.scheme = "https" if tls else "http"
        self._tls = tls
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without looking up our own name, which can hang where there is no DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection; the TLS handshake happens here, in the connection's own thread."""
        request.settimeout(_IDLE_SECONDS)
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        with contextlib.closing(self._tls.wrap_socket(request, server_side=True)) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that hangs up or speaks no TLS is its own problem."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Answer one request."""
        reply = answer(self.server.publisher, self.path)
        self.send_response(reply.status)
        for name, value in {
            "Content-Type": reply.content_type,
            "Content-Length": str(len(reply.body)),
            "Request-ID": uuid.uuid4().hex,
            **reply.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:  # the base class's name
        """Nothing: the platform's owner sees failures at the client."""
