"""The state as the flat map of entries that is sealed, and back (protocol, section 11.1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from marblerun.coordinator.provenance import PROVENANCE, read_provenance, with_provenance
from marblerun.coordinator.state import Authority, Deployment, PendingUpdate, Phase, State
from marblerun.coordinator.store.lineage import PREVIOUS, SEQUENCE, STAMP
from marblerun.errors import Malformed
from marblerun.manifest.encode import encode_infrastructure, encode_marble, encode_package, encode_tls_tag
from marblerun.manifest.parse import (
    parse_infrastructure,
    parse_manifest,
    parse_marble,
    parse_package,
    parse_tls_tag,
)
from marblerun.pki.encodings import load_sec1, sec1
from marblerun.policy.access import encode_user, parse_user
from marblerun.secrets.codec import decode_secret, encode_secret
from marblerun.secrets.derive import legacy_root_secret
from marblerun.wire.gojson import Struct, boolean, byte_string, integer, mapping, marshal, optional, record, unmarshal

T = TypeVar("T")

ROOT_CERTIFICATE: Final = "certificate:coordinatorRootCert"
INTERMEDIATE_CERTIFICATE: Final = "certificate:coordinatorIntermediateCert"
MARBLE_ROOT_CERTIFICATE: Final = "certificate:marbleRootCert"
ROOT_KEY: Final = "privateKey:coordinatorRootKey"
INTERMEDIATE_KEY: Final = "privateKey:coordinatorIntermediateKey"

_HEX: Final = re.compile(rb"[0-9a-f]{1,16}")
_DECIMAL: Final = re.compile(rb"[0-9]{1,3}")


def encode_state(state: State) -> dict[str, bytes]:
    """Every entry of a state; without a manifest only Coordinators that share their state keep one."""
    authority = state.authority
    entries = {
        **state.other_entries,
        "state": b"%d" % state.phase,
        "rootSecret": state.root_secret,
        "updateLog": state.update_log.encode(),
        ROOT_CERTIFICATE: authority.root_der,
        INTERMEDIATE_CERTIFICATE: authority.intermediate_der,
        MARBLE_ROOT_CERTIFICATE: authority.marble_root_der,
        ROOT_KEY: sec1(authority.root_key),
        INTERMEDIATE_KEY: sec1(authority.intermediate_key),
        **{f"activations:{name}": b"%x" % count for name, count in state.activations.items()},
        **{f"monotonicCounter:{name}": value.to_bytes(8, "little") for name, value in state.counters.items()},
    }
    if state.previous_root_secret is not None:
        entries["previousRootSecret"] = state.previous_root_secret
    if state.pending_update is not None:
        entries["pendingUpdate"] = encode_pending_update(state.pending_update)
    if state.deployment is not None:
        entries.update(_encode_deployment(state.deployment))
    return with_provenance(entries, state.provenance, SEQUENCE, PREVIOUS, STAMP)


def _encode_deployment(deployment: Deployment) -> dict[str, bytes]:
    entries = {"manifest": deployment.manifest, "manifestSignature": deployment.signature}
    entries.update(_encode_all("package", deployment.packages, encode_package))
    entries.update(_encode_all("infrastructure", deployment.infrastructures, encode_infrastructure))
    entries.update(_encode_all("marble", deployment.marbles, encode_marble))
    entries.update(_encode_all("TLS", deployment.tls, encode_tls_tag))
    entries.update(_encode_all("user", deployment.users, encode_user))
    entries.update(_encode_all("secret", deployment.secrets, encode_secret))
    entries.update(_encode_all("previousSecret", deployment.previous_secrets, encode_secret))
    return entries


def decode_state(entries: Mapping[str, bytes]) -> State:
    """The state that the entries hold; raises Malformed naming the entry that is missing or broken."""
    reader = _Reader(entries)
    authority = Authority(
        root=reader.certificate(ROOT_CERTIFICATE),
        root_key=reader.take(ROOT_KEY, load_sec1),
        intermediate=reader.certificate(INTERMEDIATE_CERTIFICATE),
        intermediate_key=reader.take(INTERMEDIATE_KEY, load_sec1),
        marble_root=reader.certificate(MARBLE_ROOT_CERTIFICATE),
    )
    root_secret = reader.optional("rootSecret") or legacy_root_secret(authority.root_key)
    return State(
        phase=reader.take("state", _phase),
        authority=authority,
        root_secret=root_secret,
        previous_root_secret=reader.optional("previousRootSecret"),
        deployment=_deployment(reader) if "manifest" in entries else None,
        activations=reader.all("activations", _count),
        counters=reader.all("monotonicCounter", _counter),
        update_log=(reader.optional("updateLog") or b"").decode("utf-8", "replace"),
        pending_update=reader.take("pendingUpdate", decode_pending_update) if "pendingUpdate" in entries else None,
        provenance=read_provenance(entries, SEQUENCE, PREVIOUS, STAMP),
        other_entries=reader.rest(SEQUENCE, PREVIOUS, STAMP, PROVENANCE),
    )


def decode_following(entries: Mapping[str, bytes], before: Mapping[str, bytes], present: State) -> State:
    """The state that the entries hold, with the very objects of ``present``, whose entries are ``before``.

    What is equal is the same object: whoever compares deployments by identity sees that nothing has changed. Where only
    counters have, nothing else is decoded. Data key and record are left to the caller. Raises Malformed.
    """
    changed = {name for name in entries.keys() | before.keys() if entries.get(name) != before.get(name)}
    kinds = {name.partition(":")[0] for name in changed} - _STANDING
    reader = _Reader(entries)
    activations = reader.all("activations", _count) if "activations" in kinds else present.activations
    counters = reader.all("monotonicCounter", _counter) if "monotonicCounter" in kinds else present.counters
    record = read_provenance(entries, SEQUENCE, PREVIOUS, STAMP)
    if kinds <= _COUNTED:
        return replace(present, activations=activations, counters=counters, provenance=record)
    new = decode_state(entries)
    authority = new.authority if kinds & _OF_AUTHORITY else present.authority
    deployment = new.deployment if kinds & _OF_DEPLOYMENT else present.deployment
    return replace(new, activations=activations, counters=counters, authority=authority, deployment=deployment)


_STANDING: Final = frozenset({SEQUENCE, PREVIOUS, STAMP, PROVENANCE})
_COUNTED: Final = frozenset({"activations", "monotonicCounter"})
_OF_AUTHORITY: Final = frozenset({"certificate", "privateKey"})
_OF_DEPLOYMENT: Final = frozenset(
    {
        *("manifest", "manifestSignature", "package", "infrastructure", "marble", "TLS", "user", "secret"),
        "previousSecret",
    }
)


def encode_pending_update(pending: PendingUpdate) -> bytes:
    """The JSON of a pending update (protocol, section 9.3)."""
    fields = Struct(
        (
            ("manifestRaw", pending.manifest),
            ("requiredUsers", pending.acknowledged),
            ("missingAcknowledgments", pending.missing),
        )
    )
    return marshal(fields)


def decode_pending_update(data: bytes) -> PendingUpdate:
    """The pending update in a JSON text; without a count, everybody who has not acknowledged is needed."""
    found = unmarshal(data, _PENDING_UPDATE)
    acknowledged: dict[str, bool] = found["requiredUsers"]
    missing: int | None = found["missingAcknowledgments"]
    if missing is None:
        missing = sum(not done for done in acknowledged.values())
    return PendingUpdate(found["manifestRaw"], acknowledged, missing)


_PENDING_UPDATE: Final = record(
    manifestRaw=byte_string, requiredUsers=mapping(boolean), missingAcknowledgments=optional(integer(64))
)


def _deployment(reader: _Reader) -> Deployment:
    raw = reader.take("manifest", bytes)
    return Deployment(
        manifest=raw,
        signature=reader.take("manifestSignature", bytes),
        config=parse_manifest(raw).config,
        packages=reader.all("package", parse_package),
        infrastructures=reader.all("infrastructure", parse_infrastructure),
        marbles=reader.all("marble", parse_marble),
        tls=reader.all("TLS", parse_tls_tag),
        users=reader.all("user", parse_user),
        secrets=reader.all("secret", decode_secret),
        previous_secrets=reader.all("previousSecret", decode_secret),
    )


def _encode_all(kind: str, values: Mapping[str, T], encode: Callable[[T], bytes]) -> Iterator[tuple[str, bytes]]:
    return ((f"{kind}:{name}", encode(value)) for name, value in values.items())


class _Reader:
    """Takes entries one by one and knows in the end which ones nobody asked for."""

    def __init__(self, entries: Mapping[str, bytes]) -> None:
        self._entries = entries
        self._taken: set[str] = set()

    def take(self, name: str, decode: Callable[[bytes], T]) -> T:
        """A required entry."""
        if name not in self._entries:
            raise Malformed("the entry is missing", where=name)
        self._taken.add(name)
        try:
            return decode(self._entries[name])
        except Malformed as error:
            raise Malformed(str(error), where=name) from error

    def certificate(self, name: str) -> x509.Certificate:
        """A required certificate."""
        return self.take(name, _certificate)

    def optional(self, name: str) -> bytes | None:
        """An entry that may be missing; an empty one counts as missing."""
        self._taken.add(name)
        return self._entries.get(name) or None

    def all(self, kind: str, decode: Callable[[bytes], T]) -> dict[str, T]:
        """All entries of a kind by the name after the colon."""
        prefix = f"{kind}:"
        return {name[len(prefix) :]: self.take(name, decode) for name in self._entries if name.startswith(prefix)}

    def rest(self, *known: str) -> dict[str, bytes]:
        """What nobody has taken, but for the names that somebody else knows."""
        taken = self._taken.union(known)
        return {name: value for name, value in self._entries.items() if name not in taken}


def _certificate(data: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(data)
        certificate.public_key()
    except ValueError as error:
        raise Malformed("not a certificate") from error
    if certificate.public_bytes(Encoding.DER) != data:
        raise Malformed("not a certificate in DER")
    return certificate


def _phase(data: bytes) -> Phase:
    try:
        if not _DECIMAL.fullmatch(data):
            raise ValueError
        return Phase(int(data))
    except ValueError:
        raise Malformed("not a state number") from None


def _counter(data: bytes) -> int:
    if len(data) != 8:
        raise Malformed("not a number of 64 bits")
    return int.from_bytes(data, "little")


def _count(data: bytes) -> int:
    if not _HEX.fullmatch(data):
        raise Malformed("not a hexadecimal number")
    return int(data, 16)
