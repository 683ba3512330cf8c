"""Every call of the client API as a conversation that does no I/O itself.

Each function is a generator: it yields a :class:`~marblerun.client.rest.Request`, is sent the
:class:`~marblerun.client.rest.Reply`, and returns the typed result. The blocking and the asynchronous client drive the
same conversations. Where the reference has it, 405 on the second version of the API leads to the first one
(cli-marble-k8s, sections 1.10 and 2.2).

Source: protocol, sections 7.4 to 7.9.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Generator, Mapping, Sequence
from typing import Final

from marblerun.client import replies
from marblerun.client.replies import (
    ManifestView,
    PendingUpdate,
    QuoteReply,
    RecoveryKey,
    RecoveryReply,
    RehearsalReply,
    Secrets,
    SignedQuote,
    Status,
    UpdateReply,
    UserSecret,
    a_text,
    an_int,
    an_object,
    bytes_by_name,
    some_bytes,
    some_texts,
)
from marblerun.client.rest import Reply, Request, post_json, post_text, read
from marblerun.client.statement import Statement, parse_statement
from marblerun.errors import Malformed, Unavailable

V2: Final = "/api/v2"
MAX_QUOTE_REPLY_BYTES: Final = 1024 * 1024


def status() -> Generator[Request, Reply, Status]:
    """The state's number and text."""
    data, v2 = yield from _either(Request("GET", f"{V2}/status"), Request("GET", "/status"))
    fields = an_object(data, "data")
    code, message = ("code", "message") if v2 else ("StatusCode", "StatusMessage")
    return Status(an_int(fields, code), a_text(fields, message), a_text(fields, "evidence"))


def quote(nonce: bytes, *, nonce_required: bool) -> Generator[Request, Reply, tuple[QuoteReply, bytes]]:
    """Certificates and quote, with the nonce that the quote covers: empty where only the first API version answered.

    Raises:
        Unavailable: the Coordinator knows only the first version, which has no nonce, and one is required.
    """
    query = (("nonce", base64.urlsafe_b64encode(nonce).decode()),) if nonce else ()
    request = Request("GET", f"{V2}/quote", query, limit=MAX_QUOTE_REPLY_BYTES)
    reply = yield request
    if reply.status != 405:
        fields = an_object(read(request, reply), "data")
        return QuoteReply(a_text(fields, "cert").encode(), some_bytes(fields, "quote")), nonce
    if nonce_required:
        raise Unavailable("this Coordinator speaks only version 1 of the API, which has no nonce; ask without one")
    request = Request("GET", "/quote", limit=MAX_QUOTE_REPLY_BYTES)
    fields = an_object(read(request, (yield request)), "data")
    return QuoteReply(a_text(fields, "Cert").encode(), some_bytes(fields, "Quote")), b""


def manifest_get() -> Generator[Request, Reply, ManifestView]:
    """The active manifest; its fingerprint is recomputed and has to fit."""
    data, v2 = yield from _either(Request("GET", f"{V2}/manifest"), Request("GET", "/manifest"))
    fields = an_object(data, "data")
    names = ("manifest", "manifestFingerprint", "manifestSignatureRootECDSA")
    if not v2:
        names = ("Manifest", "ManifestSignature", "ManifestSignatureRootECDSA")
    view = ManifestView(some_bytes(fields, names[0]), a_text(fields, names[1]).lower(), some_bytes(fields, names[2]))
    if view.manifest and hashlib.sha256(view.manifest).hexdigest() != view.fingerprint:
        raise Malformed("the fingerprint that the Coordinator states is not that of its manifest", where=names[1])
    return view


def manifest_set(manifest: bytes, key: str = "") -> Generator[Request, Reply, Mapping[str, bytes]]:
    """Sets the first manifest; what comes back are the encrypted recovery secrets by key name.

    ``key`` as in :class:`~marblerun.client.rest.Request`; only the second API version knows it.
    """
    data, _ = yield from _either(_manifest_post("/manifest", manifest, key), post_text("/manifest", manifest))
    return bytes_by_name(an_object(data, "data"), "RecoverySecrets") or {}


def manifest_log() -> Generator[Request, Reply, tuple[str, ...]]:
    """The update log, one JSON text per entry."""
    data, v2 = yield from _either(Request("GET", f"{V2}/update"), Request("GET", "/update"))
    if v2:
        return tuple(line.rstrip("\n") for line in some_texts(an_object(data, "data"), "updateLog"))
    return tuple(a_text({"data": data}, "data").splitlines())


def update_apply(manifest: bytes, key: str = "") -> Generator[Request, Reply, UpdateReply]:
    """Starts an update; in force at once when nobody else has to acknowledge it."""
    data, _ = yield from _either(_manifest_post("/update", manifest, key), post_text("/update", manifest))
    return _update_reply(an_object(data, "data"))


def update_get() -> Generator[Request, Reply, PendingUpdate]:
    """The pending update; :class:`~marblerun.client.problems.NothingThere` when there is none."""
    data, _ = yield from _either(Request("GET", f"{V2}/update-manifest"), Request("GET", "/update-manifest"))
    fields = an_object(data, "data")
    return PendingUpdate(some_bytes(fields, "manifest"), some_texts(fields, "missingUsers"), a_text(fields, "message"))


def update_acknowledge(manifest: bytes, key: str = "") -> Generator[Request, Reply, UpdateReply]:
    """Acknowledges the pending update, whose bytes ``manifest`` has to repeat."""
    path = "/update-manifest"
    data, v2 = yield from _either(_manifest_post(path, manifest, key), post_text(path, manifest))
    return _update_reply(an_object(data, "data")) if v2 else _acknowledged_by_text(a_text({"data": data}, "data"))


def update_cancel() -> Generator[Request, Reply, str]:
    """Cancels the pending update; the Coordinator's sentence about it comes back."""
    request = Request("POST", f"{V2}/update-cancel", body=b"")
    data, v2 = yield from _either(request, post_text("/update-cancel", b""))
    return a_text(an_object(data, "data"), "message") if v2 else a_text({"data": data}, "data")


def secrets_get(names: Sequence[str]) -> Generator[Request, Reply, Secrets]:
    """The named secrets; all of them have to be readable for the caller."""
    query = tuple(("s", name) for name in names)
    data, v2 = yield from _either(Request("GET", f"{V2}/secrets", query), Request("GET", "/secrets", query))
    entries = an_object(data, "data")
    if v2:
        entries = an_object(entries.get("secrets"), "secrets")
    return Secrets({name: replies.a_secret(an_object(entries[name], name)) for name in entries}, entries)


def secrets_set(secrets: Mapping[str, UserSecret]) -> Generator[Request, Reply, None]:
    """Uploads values of user-defined secrets."""
    document = {name: secret.document() for name, secret in secrets.items()}
    yield from _either(post_json(f"{V2}/secrets", {"secrets": document}), post_json("/secrets", document))


def recover(secret: bytes, signature: bytes) -> Generator[Request, Reply, RecoveryReply]:
    """Hands in one recovery secret with its signature. Only the second API version has this."""
    body = {"recoverySecret": _base64(secret), "recoverySecretSignature": _base64(signature)}
    request = post_json(f"{V2}/recover", body)
    fields = an_object(read(request, (yield request)), "data")
    return RecoveryReply(an_int(fields, "remaining"), a_text(fields, "message"))


def rehearse(secret: bytes, signature: bytes) -> Generator[Request, Reply, RehearsalReply]:
    """Hands in one recovery secret in the running state; nothing changes. The reference does not have this."""
    body = {"recoverySecret": _base64(secret), "recoverySecretSignature": _base64(signature)}
    request = post_json(f"{V2}/recover/rehearse", body)
    fields = an_object(read(request, (yield request)), "data")
    recoverable = fields.get("recoverable")
    if recoverable is not None and not isinstance(recoverable, bool):
        raise Malformed("is neither true, false nor null", where="recoverable")
    given, needed = an_int(fields, "given"), an_int(fields, "needed")
    return RehearsalReply(a_text(fields, "holder"), given, needed, recoverable, a_text(fields, "message"))


def recovery_public_key(*, rehearse: bool = False) -> Generator[Request, Reply, RecoveryKey]:
    """The key to encrypt recovery secrets for; the Coordinator makes it on the first call."""
    request = Request("GET", f"{V2}/recover/rehearse/public-key" if rehearse else f"{V2}/recover/public-key")
    fields = an_object(read(request, (yield request)), "data")
    return RecoveryKey(a_text(fields, "algorithm"), some_bytes(fields, "ephemeralPublicKey"))


def statement() -> Generator[Request, Reply, Statement]:
    """Which deployment this is and how far its history has come. Coordinators of the reference do not have this."""
    request = Request("GET", f"{V2}/statement")
    fields = an_object(read(request, (yield request)), "data")
    return parse_statement(a_text(fields, "statement"))


def quoted_statement(nonce: bytes) -> Generator[Request, Reply, tuple[Statement, bytes] | None]:
    """The same with a quote over its text, which holds ``nonce``; neither is verified here.

    ``None`` from a Coordinator that does not know statements.
    """
    query = (("nonce", base64.urlsafe_b64encode(nonce).decode()),)
    request = Request("GET", f"{V2}/statement", query, limit=MAX_QUOTE_REPLY_BYTES)
    reply = yield request
    if reply.status == 405:
        return None
    fields = an_object(read(request, reply), "data")
    return parse_statement(a_text(fields, "statement")), some_bytes(fields, "quote")


def sign_quote(quote: bytes) -> Generator[Request, Reply, SignedQuote]:
    """Lets the Coordinator verify any SGX quote and sign the TCB status it found."""
    request = post_json(f"{V2}/sign-quote", {"sgxQuote": _base64(quote)})
    fields = an_object(read(request, (yield request)), "data")
    return SignedQuote(a_text(fields, "tcbStatus"), some_bytes(fields, "verificationSignature"))


def monotonic_counter(name: str, value: int) -> Generator[Request, Reply, int]:
    """Raises the calling Marble's counter to ``value`` if that is more; its value before the call comes back."""
    if not 0 <= value < 1 << 64:
        raise ValueError(f"a counter holds 64 bits, {value} does not fit")
    request = post_json(f"{V2}/monotonic-counter", {"name": name, "value": value})
    return an_int(an_object(read(request, (yield request)), "data"), "value")


def _either(second: Request, first: Request) -> Generator[Request, Reply, tuple[object, bool]]:
    """The data of the second API version, or of the first where that is unknown; and whether it was the second."""
    reply = yield second
    if reply.status != 405:
        return read(second, reply), True
    return read(first, (yield first)), False


def _manifest_post(path: str, manifest: bytes, key: str) -> Request:
    return post_json(f"{V2}{path}", {"manifest": _base64(manifest)}, key)


def _update_reply(fields: Mapping[str, object]) -> UpdateReply:
    return UpdateReply(
        missing=an_int(fields, "missingAcknowledgments"),
        users=some_texts(fields, "missingUsers"),
        recovery_secrets=bytes_by_name(fields, "recoverySecrets"),
        message=a_text(fields, "message"),
    )


def _acknowledged_by_text(text: str) -> UpdateReply:
    """Version 1 answers in prose: ``All ...`` when in force, else the number still missing comes first."""
    word = text.split(maxsplit=1)[0] if text.strip() else ""
    if word == "All":
        return UpdateReply(message=text)
    if word.isascii() and word.isdigit() and len(word) < 10:
        return UpdateReply(missing=int(word), message=text)
    raise Malformed("the answer begins with neither 'All' nor a number", where="/update-manifest")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
