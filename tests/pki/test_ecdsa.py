"""AWS-LC accepts exactly the signatures that pyca accepts, signs what pyca verifies, makes keys as pyca encodes them.

The hand-made cases are those of Wycheproof's kind: values at the edges of the group, every way to spoil the encoding,
and keys for which the arithmetic of a verification comes to a special point.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pki.authority import AT, NAMES, CountingEntropy, marble_issuer, marble_root
from tests.pki.authority import key as authority_key

from marblerun.errors import Malformed, Untrusted
from marblerun.pki import der, ecdsa
from marblerun.pki.csr import build_csr, parse_csr
from marblerun.pki.ecdsa import SigningKey, VerifyingKey, new_pair
from marblerun.pki.encodings import encoded_pair, pkcs8, public_key_info
from marblerun.pki.issue import Issuer, issue_marble_certificate
from marblerun.pki.parsed import parse_certificate
from marblerun.pki.signatures import load_public_key

MESSAGE = b"what is signed"
DIGESTS: tuple[hashes.HashAlgorithm, ...] = (hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512())
Point = tuple[int, int] | None


@dataclass(frozen=True)
class Curve:
    """Short Weierstrass with a = -3 over a field where -1 is no square. Source: NIST SP 800-186, section 3.2.1."""

    curve: ec.EllipticCurve
    p: int
    b: int
    n: int

    @property
    def size(self) -> int:
        return (self.p.bit_length() + 7) // 8

    def add(self, one: Point, other: Point) -> Point:
        if one is None or other is None:
            return one or other
        (x1, y1), (x2, y2) = one, other
        if x1 == x2 and (y1 + y2) % self.p == 0:
            return None
        slope = (3 * x1 * x1 - 3) * pow(2 * y1, -1, self.p) if one == other else (y2 - y1) * pow(x2 - x1, -1, self.p)
        x = (slope * slope - x1 - x2) % self.p
        return x, (slope * (x1 - x) - y1) % self.p

    def times(self, factor: int, point: Point) -> Point:
        total: Point = None
        for bit in bin(factor % self.n)[2:]:
            total = self.add(total, total)
            total = self.add(total, point) if bit == "1" else total
        return total

    def point_near(self, x: int) -> tuple[int, int]:
        """The first point from this coordinate on."""
        while True:
            square = (x**3 - 3 * x + self.b) % self.p
            y = pow(square, (self.p + 1) // 4, self.p)
            if y * y % self.p == square:
                return x, y
            x += 1

    @property
    def base(self) -> tuple[int, int]:
        numbers = self.secret(1).public_key().public_numbers()
        return numbers.x, numbers.y

    def secret(self, value: int) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(value % self.n, self.curve)

    def public(self, point: tuple[int, int]) -> ec.EllipticCurvePublicKey:
        return ec.EllipticCurvePublicNumbers(*point, self.curve).public_key()

    def info(self, point: bytes) -> bytes:
        """A SubjectPublicKeyInfo with whatever is given as its point."""
        name = {32: "1.2.840.10045.3.1.7", 48: "1.3.132.0.34"}[self.size]
        return der.sequence(der.sequence(der.oid("1.2.840.10045.2.1"), der.oid(name)), der.bit_string(point))

    def raw(self, x: int, y: int) -> bytes:
        return b"\x04" + x.to_bytes(self.size) + y.to_bytes(self.size)

    def number(self, algorithm: hashes.HashAlgorithm) -> int:
        """The message as the number that is signed: as many leftmost bits as the order has."""
        digest = hashlib.new(algorithm.name, MESSAGE).digest()
        return int.from_bytes(digest) >> max(0, 8 * len(digest) - self.n.bit_length())


P256 = Curve(
    ec.SECP256R1(),
    0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF,
    0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
)
P384 = Curve(
    ec.SECP384R1(),
    2**384 - 2**128 - 2**96 + 2**32 - 1,
    0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973,
)
CURVES = pytest.mark.parametrize("curve", [P256, P384], ids=["P-256", "P-384"])
HASHED = pytest.mark.parametrize("algorithm", DIGESTS, ids=lambda one: one.name)


def by_pyca(key: ec.EllipticCurvePublicKey, signature: bytes, algorithm: hashes.HashAlgorithm) -> bool:
    try:
        key.verify(signature, MESSAGE, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def fast(key: ec.EllipticCurvePublicKey) -> VerifyingKey:
    found = VerifyingKey.of(public_key_info(key))
    assert found is not None
    return found


def agreed(key: ec.EllipticCurvePublicKey, signature: bytes, algorithm: hashes.HashAlgorithm) -> bool:
    """The verdict that both give; AssertionError if they differ."""
    theirs, ours = by_pyca(key, signature, algorithm), fast(key).is_signed(signature, MESSAGE, algorithm)
    assert ours == theirs, signature.hex()
    return ours


@cache
def signer(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve)


def integer(value: int) -> bytes:
    return der.integer(value)


def numbers_of(curve: Curve, algorithm: hashes.HashAlgorithm, k: int, d: int) -> tuple[int, int]:
    """The signature with this nonce by the private key ``d``."""
    r = curve.secret(k).public_key().public_numbers().x % curve.n
    return r, (curve.number(algorithm) + r * d) * pow(k, -1, curve.n) % curve.n


# -- signatures ----------------------------------------------------------------------------------------------------


@CURVES
@HASHED
def test_what_pyca_signs_is_accepted_for_every_hash_shorter_or_longer_than_the_order(
    curve: Curve, algorithm: hashes.HashAlgorithm
) -> None:
    key = signer(curve.curve)
    for _ in range(5):
        signature = key.sign(MESSAGE, ec.ECDSA(algorithm))
        assert agreed(key.public_key(), signature, algorithm)
        assert not fast(key.public_key()).is_signed(signature, MESSAGE + b"!", algorithm)
        others = [other for other in DIGESTS if other.name != algorithm.name]
        assert [agreed(key.public_key(), signature, other) for other in others] == [False] * 3
        stranger = ec.generate_private_key(curve.curve).public_key()
        assert not agreed(stranger, signature, algorithm)


@CURVES
@HASHED
def test_numbers_at_the_edges_of_the_group_get_the_same_verdict(curve: Curve, algorithm: hashes.HashAlgorithm) -> None:
    """Zero, the order and its neighbours, the field's order, negative and huge numbers, in every pair."""
    d = 0x1234567890ABCDEF
    key, n = curve.secret(d).public_key(), curve.n
    r, s = numbers_of(curve, algorithm, 0x55AA55AA55AA, d)
    edges = [0, 1, 2, n - 1, n, n + 1, curve.p, curve.p + 1, n // 2, 2**256, 2**384, 2**521, 2**4096]
    for one in (*edges, r, s, r + n, s + n, n - r, n - s):
        for other in (*edges, r, s, r + n, s + n, n - r, n - s):
            signature = der.sequence(integer(one), integer(other))
            assert agreed(key, signature, algorithm) == ((one, other) in {(r, s), (r, n - s)}), (one, other)
    for one, other in ((-1, s), (r, -1), (r - n, s), (r, s - n), (-r, s), (r, -s)):
        assert not agreed(key, der.sequence(_signed(one), _signed(other)), algorithm)


def _signed(value: int) -> bytes:
    """An INTEGER that may be negative."""
    return der.tlv(der.INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _bytes(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8)


SPOILT: dict[str, Callable[[int, int, int], bytes]] = {
    "empty": lambda r, s, z: b"",
    "one byte": lambda r, s, z: b"\x30",
    "empty sequence": lambda r, s, z: der.sequence(),
    "one number": lambda r, s, z: der.sequence(integer(r)),
    "three numbers": lambda r, s, z: der.sequence(integer(r), integer(s), integer(s)),
    "numbers without contents": lambda r, s, z: bytes.fromhex("300402000200"),
    "swapped": lambda r, s, z: der.sequence(integer(s), integer(r)),
    "raw": lambda r, s, z: r.to_bytes(z) + s.to_bytes(z),
    "without its last byte": lambda r, s, z: encode_dss_signature(r, s)[:-1],
    "a byte after it": lambda r, s, z: encode_dss_signature(r, s) + b"\x00",
    "a NULL after it": lambda r, s, z: encode_dss_signature(r, s) + der.NULL,
    "a byte inside, at the end": lambda r, s, z: der.sequence(integer(r), integer(s), b"\x00"),
    "a NULL inside": lambda r, s, z: der.sequence(integer(r), integer(s), der.NULL),
    "a zero more before r": lambda r, s, z: der.sequence(der.tlv(2, b"\x00" + integer(r)[2:]), integer(s)),
    "a zero more before s": lambda r, s, z: der.sequence(integer(r), der.tlv(2, b"\x00" + integer(s)[2:])),
    "many zeros before r": lambda r, s, z: der.sequence(der.tlv(2, bytes(40) + integer(r)[2:]), integer(s)),
    "no zero where one is needed": lambda r, s, z: der.sequence(der.tlv(2, _bytes(r)), der.tlv(2, _bytes(s))),
    "lengths of two bytes": lambda r, s, z: (
        b"\x30\x82" + (len(encode_dss_signature(r, s)) - 2).to_bytes(2) + integer(r) + integer(s)
    ),
    "a length of two bytes inside": lambda r, s, z: der.sequence(
        b"\x02\x81" + bytes([len(integer(r)) - 2]) + integer(r)[2:], integer(s)
    ),
    "without a length": lambda r, s, z: b"\x30\x80" + integer(r) + integer(s) + b"\x00\x00",
    "a length beyond its end": lambda r, s, z: b"\x30\x7f" + integer(r) + integer(s),
    "an enormous length": lambda r, s, z: b"\x30\x84\xff\xff\xff\xff" + integer(r) + integer(s),
    "a set": lambda r, s, z: der.tlv(0x31, integer(r) + integer(s)),
    "a primitive sequence": lambda r, s, z: der.tlv(0x10, integer(r) + integer(s)),
    "octets for numbers": lambda r, s, z: der.sequence(der.tlv(4, integer(r)[2:]), integer(s)),
    "an octet string around it": lambda r, s, z: der.tlv(4, encode_dss_signature(r, s)),
    "a bit string around it": lambda r, s, z: der.bit_string(encode_dss_signature(r, s)),
    "twice": lambda r, s, z: encode_dss_signature(r, s) * 2,
    "a real for a number": lambda r, s, z: der.sequence(bytes.fromhex("090380fe01"), integer(s)),
    "thousands of bytes": lambda r, s, z: bytes(10_000),
}


@CURVES
@pytest.mark.parametrize("how", SPOILT)
def test_a_signature_that_is_not_der_is_refused_as_pyca_refuses_it(curve: Curve, how: str) -> None:
    """Both numbers have their highest bit set, or neither: so zeros are needed, or wrong."""
    algorithm, wanted, tried = hashes.SHA256(), {True, False}, 0
    while wanted:
        tried += 1
        r, s = numbers_of(curve, algorithm, k=tried, d=99)
        high = {value.bit_length() == 8 * curve.size for value in (r, s)}
        if len(high) == 2 or not high & wanted:
            continue
        wanted -= high
        key = curve.secret(99).public_key()
        assert agreed(key, encode_dss_signature(r, s), algorithm)
        spoilt = SPOILT[how](r, s, curve.size)
        # Without the highest bit set the encoding that leaves a zero out is the right one.
        assert agreed(key, spoilt, algorithm) == (spoilt == encode_dss_signature(r, s))


@CURVES
@HASHED
def test_verifications_that_meet_special_points_get_the_same_verdict(
    curve: Curve, algorithm: hashes.HashAlgorithm
) -> None:
    """The two points that are added may be equal, opposite, or the base point; the nonce may be 1 or -1."""
    e, n = curve.number(algorithm), curve.n
    for k in (1, 2, n - 1, n - 2, 3**50):
        r = curve.secret(k).public_key().public_numbers().x % n
        doubling = e * pow(r, -1, n) % n  # u1 * G equals u2 * Q
        for d in (1, 2, n - 1, n - 2, doubling):
            signature = encode_dss_signature(*numbers_of(curve, algorithm, k, d))
            assert agreed(curve.secret(d).public_key(), signature, algorithm)
        opposite = curve.secret(-doubling).public_key()  # the sum is the point at infinity, whatever s is
        for s in (1, 2, n - 1, e or 1, k):
            assert not agreed(opposite, encode_dss_signature(r, s), algorithm)


@CURVES
@HASHED
def test_a_coordinate_above_the_order_counts_modulo_the_order(curve: Curve, algorithm: hashes.HashAlgorithm) -> None:
    """Once in 2**128 signatures by accident; and what is to be signed may be such a number, too."""
    point = curve.point_near(curve.n + 3)
    assert curve.n < point[0] < curve.p
    r = point[0] - curve.n
    for s in (1, 7, curve.n - 5):
        sum_ = curve.add(curve.times(s, point), curve.times(-curve.number(algorithm), curve.base))
        public = curve.times(pow(r, -1, curve.n), sum_)
        assert public is not None
        key = curve.public(public)
        assert agreed(key, encode_dss_signature(r, s), algorithm)
        assert not agreed(key, encode_dss_signature(point[0], s), algorithm)
        assert not agreed(key, encode_dss_signature(r + 1, s), algorithm)


@CURVES
def test_keys_with_small_coordinates_are_the_same_keys(curve: Curve) -> None:
    """Leading zeros in a coordinate are part of the point, not to be left out."""
    algorithm = hashes.SHA384()
    for x in (0, 1, 255, 2**64, curve.p - 200):
        point = curve.point_near(x)
        key = curve.public(point)
        for s in (1, 5, curve.n - 2):
            # The signature whose nonce is a + b * Q: r is its x, and the message follows from it. So none for MESSAGE:
            # both must say so, and agree about the one that follows.
            shared = curve.add(curve.times(11, curve.base), curve.times(s, point))
            assert shared is not None
            assert not agreed(key, encode_dss_signature(shared[0] % curve.n, s), algorithm)
        assert fast(key)._key.export_key(2) == public_key_info(key)


NUMBERS = st.integers(0, 2**400) | st.sampled_from([0, 1, P256.n, P384.n, P256.n - 1, P384.n - 1, P256.p, P384.p])


@CURVES
@settings(max_examples=150, deadline=None)
@given(r=NUMBERS, s=NUMBERS)
def test_any_two_numbers_get_the_same_verdict(curve: Curve, r: int, s: int) -> None:
    assert not agreed(signer(curve.curve).public_key(), der.sequence(integer(r), integer(s)), hashes.SHA384())


@CURVES
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_of_a_signatures_bytes_gets_the_same_verdict(curve: Curve, data: st.DataObject) -> None:
    key = curve.secret(4711)
    signature = bytearray(encode_dss_signature(*numbers_of(curve, hashes.SHA256(), 815, 4711)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(signature) - 1))
        change = data.draw(st.sampled_from(["flip", "insert", "remove"]))
        if change == "flip":
            signature[at] ^= data.draw(st.integers(1, 255))
        elif change == "insert":
            signature[at:at] = data.draw(st.binary(min_size=1, max_size=3))
        elif len(signature) > 1:
            del signature[at]
    agreed(key.public_key(), bytes(signature), hashes.SHA256())


@CURVES
@settings(max_examples=100, deadline=None)
@given(signature=st.binary(max_size=160))
def test_garbage_gets_the_same_verdict(curve: Curve, signature: bytes) -> None:
    assert not agreed(signer(curve.curve).public_key(), signature, hashes.SHA256())


# -- keys ----------------------------------------------------------------------------------------------------------


def _is_read(info: bytes) -> bool:
    try:
        load_public_key(info)
    except Malformed:
        return False
    return True


def _explicit(curve: Curve) -> bytes:
    """The key with all parameters of its curve written out instead of its name. Source: RFC 3279, section 2.3.5."""
    field = der.sequence(der.oid("1.2.840.10045.1.1"), integer(curve.p))
    octets = [der.tlv(der.OCTET_STRING, value.to_bytes(curve.size)) for value in (curve.p - 3, curve.b)]
    base = der.tlv(der.OCTET_STRING, curve.raw(*curve.base))
    parameters = der.sequence(integer(1), field, der.sequence(*octets), base, integer(curve.n), integer(1))
    algorithm = der.sequence(der.oid("1.2.840.10045.2.1"), parameters)
    return der.sequence(algorithm, der.bit_string(curve.raw(*curve.base)))


ODD_KEYS: dict[str, Callable[[Curve], bytes]] = {
    "infinity": lambda c: c.info(b"\x00"),
    "infinity of full length": lambda c: c.info(bytes(1 + 2 * c.size)),
    "zeros": lambda c: c.info(b"\x04" + bytes(2 * c.size)),
    "not on the curve": lambda c: c.info(c.raw(c.base[0], c.base[1] + 1)),
    "coordinates swapped": lambda c: c.info(c.raw(c.base[1], c.base[0])),
    "x beyond the field": lambda c: c.info(c.raw(c.point_near(5)[0] + c.p, c.point_near(5)[1])),
    "x is the field's order": lambda c: c.info(c.raw(c.p, c.point_near(0)[1])),
    "all bits set": lambda c: c.info(b"\x04" + b"\xff" * 2 * c.size),
    "hybrid of the other y": lambda c: c.info(bytes([7 - c.base[1] % 2]) + c.raw(*c.base)[1:]),
    "another first byte": lambda c: c.info(b"\x05" + c.raw(*c.base)[1:]),
    "a byte too short": lambda c: c.info(c.raw(*c.base)[:-1]),
    "a byte too long": lambda c: c.info(c.raw(*c.base) + b"\x00"),
    "a byte after it": lambda c: c.info(c.raw(*c.base)) + b"\x00",
    "without its last byte": lambda c: c.info(c.raw(*c.base))[:-1],
    "no point": lambda c: c.info(b""),
    "private key": lambda c: pkcs8(c.secret(5)),
    "empty": lambda c: b"",
}


@CURVES
@pytest.mark.parametrize("what", ODD_KEYS)
def test_a_key_that_pyca_refuses_is_not_a_key_here(curve: Curve, what: str) -> None:
    """Nobody asks for such a key, as pyca is asked first; and would not get one."""
    assert (_is_read(ODD_KEYS[what](curve)), VerifyingKey.of(ODD_KEYS[what](curve))) == (False, None)


OTHER_FORMS: dict[str, Callable[[Curve], bytes]] = {
    "compressed": lambda c: c.info(bytes([2 + c.base[1] % 2]) + c.base[0].to_bytes(c.size)),
    "hybrid": lambda c: c.info(bytes([6 + c.base[1] % 2]) + c.raw(*c.base)[1:]),
    "explicit parameters": _explicit,
}


@CURVES
@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_key_in_another_form_than_the_usual_stays_with_pyca(curve: Curve, form: str) -> None:
    info = OTHER_FORMS[form](curve)
    assert (_is_read(info), VerifyingKey.of(info)) == (True, None)


@pytest.mark.parametrize("curve", [ec.SECP224R1(), ec.SECP521R1(), ec.SECP256K1()])
def test_keys_on_other_curves_stay_with_pyca(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    found = VerifyingKey.of(public_key_info(key.public_key())), SigningKey.of(key), new_pair(curve)
    assert found == (None, None, None)


@CURVES
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_key_with_changed_bytes_is_the_key_that_pyca_reads_or_none(curve: Curve, data: st.DataObject) -> None:
    info = bytearray(public_key_info(curve.secret(4711).public_key()))
    for _ in range(data.draw(st.integers(1, 2))):
        info[data.draw(st.integers(0, len(info) - 1))] ^= data.draw(st.integers(1, 255))
    found = VerifyingKey.of(bytes(info))
    if found is not None:
        key = load_public_key(bytes(info))
        assert found._key.export_key(2) == bytes(info) == public_key_info(key)


@CURVES
def test_a_request_with_a_wrong_signature_or_key_raises_only_our_errors(curve: Curve) -> None:
    good = build_csr(NAMES, signer(curve.curve))
    assert parse_csr(good).dns_names == NAMES.dns_names
    at = good.index(b"\x00\x04") + 40
    with pytest.raises(Malformed):  # most likely no point; were it one, then not the one that signed
        parse_csr(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    with pytest.raises(Untrusted):
        parse_csr(good[:-1] + bytes([good[-1] ^ 1]))


# -- signing -------------------------------------------------------------------------------------------------------


@CURVES
@HASHED
def test_pyca_verifies_what_is_signed_here_and_no_signature_is_made_twice(
    curve: Curve, algorithm: hashes.HashAlgorithm
) -> None:
    key = signer(curve.curve)
    signing = SigningKey.of(key)
    assert signing is not None
    assert signing.curve.name == curve.curve.name
    made = {signing.sign(MESSAGE, ec.ECDSA(algorithm)) for _ in range(10)}
    assert len(made) == 10
    assert all(by_pyca(key.public_key(), signature, algorithm) for signature in made)


@CURVES
def test_private_keys_with_leading_zeros_sign_as_well(curve: Curve) -> None:
    for d in (1, 2, 255, 2**64, curve.n - 1):
        signing = SigningKey.of(curve.secret(d))
        assert signing is not None
        assert by_pyca(curve.secret(d).public_key(), signing.sign(MESSAGE, ec.ECDSA(hashes.SHA256())), hashes.SHA256())


def test_a_key_that_does_not_sign_as_it_should_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that read another key than was meant would make certificates that nobody accepts."""
    stranger = ecdsa.load().new_key_from_der_data(pkcs8(P384.secret(77)))

    class Mistaken:
        new_key_from_der_data = staticmethod(lambda _: stranger)

    monkeypatch.setattr(ecdsa, "load", lambda: Mistaken)
    with pytest.raises(RuntimeError, match="does not sign"):
        SigningKey.of(P384.secret(78))


def test_certificates_of_an_issuer_of_many_are_verified_by_its_key() -> None:
    one = marble_issuer()
    many = Issuer.of_many(marble_root("intermediate"), authority_key("intermediate"))
    assert isinstance(many.key, SigningKey)
    assert (many.certificate, many.name, many.key_id) == (one.certificate, one.name, one.key_id)
    data = issue_marble_certificate(
        build_csr(NAMES, signer(P384.curve)),
        marble_type="t",
        uuid=UUID(int=1),
        issuer=many,
        public_key=P384.secret(5).public_key(),
        at=AT,
        entropy=CountingEntropy(),
    )
    parsed = parse_certificate(data)
    authority_key("intermediate").public_key().verify(parsed.signature, parsed.tbs, ec.ECDSA(hashes.SHA384()))


def test_threads_may_share_keys() -> None:
    keys = [signer(curve.curve) for curve in (P256, P384)]
    signing = [SigningKey.of(key) for key in keys]

    def work(number: int) -> bool:
        key, sign = keys[number % 2], signing[number % 2]
        assert sign is not None
        return fast(key.public_key()).is_signed(sign.sign(MESSAGE, ec.ECDSA(hashes.SHA384())), MESSAGE, hashes.SHA384())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(200))) == [True] * 200


# -- new keys ------------------------------------------------------------------------------------------------------


@CURVES
def test_a_new_key_is_encoded_as_pyca_encodes_it(curve: Curve) -> None:
    for _ in range(300):
        pair = new_pair(curve.curve)
        assert pair is not None
        key = load_der_private_key(pair[0], None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert pair == encoded_pair(key) == (pkcs8(key), public_key_info(key.public_key()))


@CURVES
def test_a_new_key_whose_leading_zeros_the_library_left_out_gets_them_back(curve: Curve) -> None:
    """One in 256 is so; pyca and others refuse a private key that is too short."""
    known = ecdsa._CURVES[curve.curve.name]
    few = (curve.n >> 8, curve.n >> 9, curve.n >> 17, curve.n >> 56, curve.n - 1)
    for d in (1, 256, 0x0200FF, 2**63, 2 ** (8 * curve.size - 65), *few):
        key = curve.secret(d)
        point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        public = der.tlv(der.context(1, constructed=True), der.bit_string(point))
        inner = der.sequence(der.integer(1), der.tlv(der.OCTET_STRING, _bytes(d)), public)
        algorithm = der.children(der.single(pkcs8(key)), der.SEQUENCE, "key", limit=3)[1].encoded
        shortened = der.sequence(der.integer(0), algorithm, der.tlv(der.OCTET_STRING, inner))
        if d in few:
            assert ecdsa._whole_pair(shortened, known) == (pkcs8(key), public_key_info(key.public_key()))
        else:  # never by chance, and the lengths before it are shorter
            with pytest.raises(RuntimeError):
                ecdsa._whole_pair(shortened, known)


@CURVES
def test_an_encoding_that_is_not_known_is_not_used(curve: Curve) -> None:
    known, good = ecdsa._CURVES[curve.curve.name], pkcs8(curve.secret(3**100))
    assert ecdsa._whole_pair(good, known)[0] == good
    cut = len(known.before_secret)
    for bad in (
        b"",
        good[:-1],
        good + b"\x00",
        good[:cut] + b"\x00" + good[cut:],
        good[: cut - 1] + b"\xff" + good[cut:],
        good[: -known.point_bytes] + b"\x02" + good[1 - known.point_bytes :],
    ):
        with pytest.raises(RuntimeError):
            ecdsa._whole_pair(bad, known)


FORKED = """
import os
from cryptography.hazmat.primitives.asymmetric import ec
from marblerun.pki.ecdsa import new_pair
new_pair(ec.SECP384R1())
child = os.fork()
print(new_pair(ec.SECP384R1())[0].hex(), flush=True)
if child:
    os.waitpid(child, 0)
"""


def _lines(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=True)
    assert done.stderr == b""
    return done.stdout.decode().split()


def test_a_process_and_its_fork_make_different_keys() -> None:
    assert len(set(_lines(FORKED))) == 2


LIGHT = """
import sys
from cryptography.hazmat.primitives.asymmetric import ec
import marblerun.client, marblerun.marble.credentials, marblerun.pki.chains, marblerun.pki.issue
from marblerun.marble.credentials import make_credentials
from marblerun.pki.profiles import SubjectNames
make_credentials(SubjectNames.parse("localhost"), ec.SECP384R1())
print("awscrt" in sys.modules or "_awscrt" in sys.modules)
from marblerun.pki.ecdsa import load
load()
import os
print("awscrt" in sys.modules, len(os.listdir("/proc/self/task")))
"""


def test_clients_and_marbles_do_not_load_the_library_which_starts_no_threads_and_says_nothing() -> None:
    assert _lines(LIGHT) == ["False", "True", "1"]


def test_one_module_knows_the_library() -> None:
    source = Path(ecdsa.__file__).parents[1]
    assert [path.name for path in sorted(source.rglob("*.py")) if "awscrt" in path.read_text()] == ["ecdsa.py"]
