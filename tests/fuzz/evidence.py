"""What is fuzzed of evidence and collateral. Keys are the same in every run, so that a saved input means the same.

What the vendor would sign is signed again after the change, so that what lies behind the signature is reached.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.forge.dcap import NOW, Dcap, Minted, raw_signature, sgx_extension
from tests.fuzz.targets import Target, mutated

from marblerun.attestation.dcap.certificates import read_certificate, read_chain
from marblerun.attestation.dcap.collateral import collateral_to_json, parse_collateral_json
from marblerun.attestation.dcap.crl import read_crl
from marblerun.attestation.dcap.pck import collateral_key, parse_sgx_extension, summarise_certification
from marblerun.attestation.dcap.qe import parse_identity
from marblerun.attestation.dcap.quote import add_oe_header, parse_quote_prefix, ppid_certification, strip_oe_header
from marblerun.attestation.dcap.tcb import parse_tcb_info
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral
from marblerun.attestation.registry import DcapEvidence
from marblerun.errors import Malformed, Untrusted
from marblerun.wire import der
from marblerun.wire.limits import MAX_COLLATERAL_FIELD_BYTES, MAX_QUOTE_BYTES
from marblerun.wire.pem import decode_pem

_ROLES: Final = ("root", "ca", "pck", "signer", "qe")
KEYS: Final = {role: ec.derive_private_key(1000 + i, ec.SECP256R1()) for i, role in enumerate(_ROLES)}


@cache
def minted() -> tuple[Minted, ...]:
    """Genuine evidence of every form, all under one root."""
    forms = (Dcap(revoked_by_root=("pck",)), Dcap(tdx=True, version=4), Dcap(tdx=True, version=5))
    return tuple(form.with_(keys=KEYS).mint() for form in forms)


@cache
def _verifier() -> Verifier:
    """One for all, so that what it remembers is filled with hostile input too."""
    return Verifier([minted()[0].root])


def _verify(quote: bytes, collateral: Collateral) -> None:
    with suppress(Malformed, Untrusted):
        _verifier().verify(quote, collateral, NOW)


def _quote(dice: random.Random) -> bytes:
    seeds = tuple(one.quote for one in minted())
    raw = mutated(seeds, dice) if dice.random() < 0.9 else dice.randbytes(dice.randint(0, MAX_QUOTE_BYTES + 32))
    return add_oe_header(raw) if dice.random() < 0.2 else raw


def _check_quote(raw: bytes) -> None:
    evidence = DcapEvidence(_verifier())
    evidence.recognises(raw)
    with suppress(Malformed, Untrusted):
        evidence.collateral_key(raw)
    with suppress(Malformed, Untrusted):
        quote, _ = parse_quote_prefix(raw)
        ppid_certification(quote.certification)
        summarise_certification(quote.certification)
        collateral_key(quote)
    for one in minted():
        _verify(raw, one.collateral)


def _oe_header(dice: random.Random) -> bytes:
    quote = minted()[0].quote
    header = bytearray(add_oe_header(quote)[:16])
    for _ in range(dice.randint(0, 3)):
        header[dice.randrange(16)] = dice.choice((0, 1, 2, 3, 0x7F, 0x80, 0xFF, dice.randrange(256)))
    return bytes(header[: dice.choice((16, 16, 16, dice.randrange(17)))]) + quote[: dice.choice((len(quote), 0, 100))]


def _check_oe_header(raw: bytes) -> None:
    with suppress(Malformed):
        stripped = strip_oe_header(raw)
        assert stripped in (raw, raw[16:])
        assert len(stripped) <= MAX_QUOTE_BYTES


def _der(*seeds: bytes) -> Callable[[random.Random], bytes]:
    """DER with changes, among them huge lengths and deep nesting."""

    def make(dice: random.Random) -> bytes:
        data = mutated(seeds, dice)
        match dice.randrange(12):
            case 0:
                at = dice.randint(0, len(data))
                size = dice.choice((0xFF, 1 << 31, (1 << 32) - 1, 1 << 63))
                return data[:at] + b"\x30" + _der_length(size) + data[at:]
            case 1:
                return b"\x30\x80" * dice.randint(1, 20_000) + data
            case 2:
                return _nested(dice.randint(1, 3_000))
            case _:
                return data

    return make


def _der_length(size: int) -> bytes:
    encoded = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(encoded)]) + encoded


def _nested(depth: int) -> bytes:
    """SEQUENCEs in each other, all lengths right."""
    data = b""
    for _ in range(depth):
        data = b"\x30" + (bytes([len(data)]) if len(data) < 128 else _der_length(len(data))) + data
    return data


def _check_extension(raw: bytes) -> None:
    with suppress(Malformed):
        platform = parse_sgx_extension(raw, "platform")
        assert tuple(map(len, (platform.fmspc, platform.pce_id, platform.cpu_svns, platform.ppid))) == (6, 2, 16, 16)


def _certificates() -> tuple[bytes, ...]:
    first = minted()[0].collateral
    chains = (first.pck_crl_issuer_chain, first.tcb_info_issuer_chain)
    return tuple(one for chain in chains for one in decode_pem(chain.encode(), "CERTIFICATE", max_blocks=2))


def _check_certificate(raw: bytes) -> None:
    with suppress(Untrusted):
        read_certificate(raw, "step", "a certificate")


def _crl(dice: random.Random) -> bytes:
    """What is signed in a list; now and then with many entries."""
    tbs = der.elements(der.single(minted()[0].collateral.root_ca_crl).content, limit=3)[0].encoded
    if dice.random() < 0.02:
        return _many_entries(tbs, dice.choice((10, 1_000, 26_000, 100_000)))
    return _der(tbs)(dice)


def _many_entries(tbs: bytes, count: int) -> bytes:
    """The same with its first entry that often."""
    members = list(der.elements(der.single(tbs).content, limit=10))
    at = next(i for i, one in enumerate(members) if i > 3 and one.tag == der.SEQUENCE)
    entries = der.elements(members[at].content, limit=10)[0].encoded * count
    parts = [one.encoded for one in members]
    parts[at] = b"\x30" + _der_length(len(entries)) + entries
    content = b"".join(parts)
    return b"\x30" + _der_length(len(content)) + content


def signed_list(tbs: bytes) -> bytes:
    """A CRL of these bytes, signed by the root."""
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature = KEYS["root"].sign(tbs, ec.ECDSA(hashes.SHA256()))
    content = tbs + algorithm + bytes([3, len(signature) + 1, 0]) + signature
    return b"\x30" + _der_length(len(content)) + content


def _check_crl(raw: bytes) -> None:
    root = read_certificate(minted()[0].root_der, "step", "the root")
    for encoded in (raw, signed_list(raw)):
        with suppress(Untrusted):
            read_crl(encoded, root, "root-crl", "a list")
    first = minted()[0]
    _verify(first.quote, replace(first.collateral, root_ca_crl=signed_list(raw)))


def _pem(dice: random.Random) -> bytes:
    seeds = tuple(one.collateral.tcb_info_issuer_chain.encode() for one in minted())
    data = mutated(seeds, dice)
    if dice.random() < 0.05:
        data = dice.choice((data, b"-----BEGIN CERTIFICATE-----\n", b"\n", b"A", b"\r\n", b"-")) * dice.randint(1, 400)
    return data


def _check_pem(raw: bytes) -> None:
    with suppress(Untrusted):
        assert 1 <= len(read_chain(raw, "step", "a chain")) <= 3
    with suppress(Malformed):
        decode_pem(raw, "CERTIFICATE", max_blocks=3)
    text = raw.decode("latin-1")
    first = minted()[0]
    for field in ("tcb_info_issuer_chain", "qe_identity_issuer_chain", "pck_crl_issuer_chain"):
        changes: dict[str, Any] = {field: text}
        _verify(first.quote, replace(first.collateral, **changes))


_HOSTILE: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 255, 256, 1 << 16, 1 << 32, 1 << 64, -(1 << 70), 0.5, 1e300),
    *("", "0", "ff" * 16, "FF", "\ud800", "\0", "é", "2026-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0000-00-00T"),
    *([], {}, [[]], [{}], {"svn": 5}, [{"svn": 5}] * 16, [{"svn": 256}] * 16, "UpToDate", "Revoked", "TDX_01", "SGX"),
)


def _json(*names: str) -> Callable[[random.Random], bytes]:
    """Signed texts of the collateral with members changed, gone, doubled, or changed as bytes."""

    def make(dice: random.Random) -> bytes:
        text = getattr(dice.choice(minted()).collateral, dice.choice(names))
        roll = dice.random()
        if roll < 0.02:
            return _bomb(dice)
        if roll < 0.3:
            return mutated((text.encode(),), dice)
        document = json.loads(text)
        for _ in range(dice.randint(1, 3)):
            _change(document, dice)
        return json.dumps(document, separators=(",", ":")).encode("utf-8", "surrogatepass")

    return make


def _change(here: Any, dice: random.Random) -> None:
    """One member somewhere has another value, is gone, or moves up."""
    while True:
        key = dice.choice(sorted(here) if isinstance(here, dict) else range(len(here))) if here else None
        if key is None:
            return
        inner = here[key]
        if isinstance(inner, (dict, list)) and inner and dice.random() < 0.7:
            here = inner
            continue
        if dice.random() < 0.8:
            here[key] = deepcopy(dice.choice(_HOSTILE))  # or a later change would be one of the table
        elif isinstance(here, list) and dice.random() < 0.5:
            here.extend([inner] * dice.choice((1, 16, 300)))
        else:
            del here[key]
        return


def _bomb(dice: random.Random) -> bytes:
    """Text made to cost much: up to the ceiling of a field."""
    count = dice.choice((100, 10_000, MAX_COLLATERAL_FIELD_BYTES // 8))
    shape = dice.choice((b"[", b'{"a":', b"[[],", b'"\\u0000', b"9", b'{"tcbLevels":[', b"-", b'{"a":1,'))
    return (shape * count)[:MAX_COLLATERAL_FIELD_BYTES]


def _check_json(raw: bytes) -> None:
    text = raw.decode("utf-8", "surrogatepass") if _is_text(raw) else raw.decode("latin-1")
    for parse in (parse_tcb_info, parse_identity):
        with suppress(Malformed):
            parse(text)
    signature = raw_signature(KEYS["signer"], text.encode("utf-8", "surrogatepass"))
    for one in minted():
        for field in ("tcb_info", "qe_identity"):
            changes: dict[str, Any] = {field: text, f"{field}_signature": signature}
            _verify(one.quote, replace(one.collateral, **changes))


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _collateral(dice: random.Random) -> bytes:
    text = collateral_to_json(dice.choice(minted()).collateral)
    if dice.random() < 0.3:
        return mutated((text.encode(),), dice)
    document = json.loads(text)
    name = dice.choice(sorted(document))
    value: str = document[name]
    at = dice.randint(0, len(value))
    document[name] = dice.choice(
        (value[:at], value + value, value[at:] + value[:at], value[:at] + "0" + value[at + 1 :], dice.choice(_HOSTILE))
    )
    return json.dumps(document).encode()


def _check_collateral(raw: bytes) -> None:
    try:
        collateral = parse_collateral_json(raw)
    except Malformed:
        return
    for one in minted():
        _verify(one.quote, collateral)


EVIDENCE: Mapping[str, Target] = {
    "quote": Target(_quote, _check_quote),
    "oe-header": Target(_oe_header, _check_oe_header),
    "pck-extension": Target(_der(sgx_extension((5,) * 16, 13, "0000", "00606a000000")), _check_extension),
    "certificate": Target(lambda dice: _der(*_certificates())(dice), _check_certificate),
    "crl": Target(_crl, _check_crl),
    "pem-chain": Target(_pem, _check_pem),
    "tcb-info": Target(_json("tcb_info"), _check_json),
    "qe-identity": Target(_json("qe_identity"), _check_json),
    "collateral": Target(_collateral, _check_collateral),
}
