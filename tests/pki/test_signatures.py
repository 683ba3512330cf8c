"""Which keys are taken and which signatures hold: every algorithm with every kind of key, and each PSS parameter."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from marblerun.errors import Malformed, Untrusted
from marblerun.pki import der
from marblerun.pki.ecdsa import VerifyingKey
from marblerun.pki.signatures import (
    ECDSA_SHA256,
    ECDSA_SHA384,
    ECDSA_SHA512,
    ED25519,
    PublicKey,
    algorithm_name,
    load_public_key,
    verify_signature,
)

MESSAGE = b"what was signed"

ECDSA_SHA1 = der.sequence(der.oid("1.2.840.10045.4.1"))
RSA_MD5 = der.sequence(der.oid("1.2.840.113549.1.1.4"), der.NULL)
RSA_SHA1 = der.sequence(der.oid("1.2.840.113549.1.1.5"), der.NULL)
OIW_RSA_SHA1 = der.sequence(der.oid("1.3.14.3.2.29"), der.NULL)
RSA_SHA256 = der.sequence(der.oid("1.2.840.113549.1.1.11"), der.NULL)
RSA_SHA384 = der.sequence(der.oid("1.2.840.113549.1.1.12"), der.NULL)
RSA_SHA512 = der.sequence(der.oid("1.2.840.113549.1.1.13"), der.NULL)

SHA1 = "1.3.14.3.2.26"
SHA256 = "2.16.840.1.101.3.4.2.1"
SHA384 = "2.16.840.1.101.3.4.2.2"
SHA512 = "2.16.840.1.101.3.4.2.3"
MGF1 = "1.2.840.113549.1.1.8"


def _hash(dotted: str, parameters: bytes = der.NULL) -> bytes:
    return der.sequence(der.oid(dotted), parameters)


def _field(number: int, body: bytes) -> bytes:
    return der.tlv(der.context(number, constructed=True), body)


def pss(
    digest: str = SHA256,
    *,
    mask_digest: str | None = None,
    salt: int = 32,
    trailer: int | None = None,
    mask: str = MGF1,
    nulls: tuple[bytes, bytes] = (der.NULL, der.NULL),
) -> bytes:
    """AlgorithmIdentifier of RSASSA-PSS (RFC 4055, section 3.1)."""
    inner = _hash(mask_digest or digest, nulls[1])
    fields = [
        _field(0, _hash(digest, nulls[0])),
        _field(1, der.sequence(der.oid(mask), inner)),
        _field(2, der.integer(salt)),
    ]
    if trailer is not None:
        fields.append(_field(3, der.integer(trailer)))
    return pss_of(der.sequence(*fields))


def pss_of(*parameters: bytes) -> bytes:
    return der.sequence(der.oid("1.2.840.113549.1.1.10"), *parameters)


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 1024)


@cache
def ec_key(name: str = "signer") -> ec.EllipticCurvePrivateKey:
    assert name
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def info_of(key: PublicKey | x25519.X25519PublicKey | ed448.Ed448PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def rsa_info(bits: int, exponent: int = 65537) -> bytes:
    """A key of that size which nobody can sign with: its modulus is only the next odd number after a power of two."""
    numbers = der.sequence(der.integer(2 ** (bits - 1) + 1), der.integer(exponent))
    return der.sequence(der.sequence(der.oid("1.2.840.113549.1.1.1"), der.NULL), der.bit_string(numbers))


def _by_rsa(digest: hashes.HashAlgorithm) -> Callable[[bytes], bytes]:
    return lambda message: rsa_key().sign(message, padding.PKCS1v15(), digest)


def _by_pss(
    digest: hashes.HashAlgorithm, salt: int | None = None, mask: hashes.HashAlgorithm | None = None
) -> Callable[[bytes], bytes]:
    length = digest.digest_size if salt is None else salt
    return lambda message: rsa_key().sign(message, padding.PSS(padding.MGF1(mask or digest), length), digest)


def _by_ec(digest: hashes.HashAlgorithm) -> Callable[[bytes], bytes]:
    return lambda message: ec_key().sign(message, ec.ECDSA(digest))


# Algorithm, kind of key it is for, whether SHA-1 must be allowed, and how a signature of it is made.
ALGORITHMS: dict[str, tuple[bytes, str, bool, Callable[[bytes], bytes]]] = {
    "ecdsa-sha1": (ECDSA_SHA1, "ec", True, _by_ec(hashes.SHA1())),
    "ecdsa-sha256": (ECDSA_SHA256, "ec", False, _by_ec(hashes.SHA256())),
    "ecdsa-sha384": (ECDSA_SHA384, "ec", False, _by_ec(hashes.SHA384())),
    "ecdsa-sha512": (ECDSA_SHA512, "ec", False, _by_ec(hashes.SHA512())),
    "rsa-sha1": (RSA_SHA1, "rsa", True, _by_rsa(hashes.SHA1())),
    "rsa-sha1-oiw": (OIW_RSA_SHA1, "rsa", True, _by_rsa(hashes.SHA1())),
    "rsa-sha256": (RSA_SHA256, "rsa", False, _by_rsa(hashes.SHA256())),
    "rsa-sha384": (RSA_SHA384, "rsa", False, _by_rsa(hashes.SHA384())),
    "rsa-sha512": (RSA_SHA512, "rsa", False, _by_rsa(hashes.SHA512())),
    "pss-sha256": (pss(), "rsa", False, _by_pss(hashes.SHA256())),
    "pss-sha384": (pss(SHA384, salt=48), "rsa", False, _by_pss(hashes.SHA384())),
    "ed25519": (ED25519, "ed25519", False, lambda message: ed_key().sign(message)),
}
ONLY_WITH_SHA1 = [name for name, (_, _, is_sha1, _) in ALGORITHMS.items() if is_sha1]


def _verifying_key() -> VerifyingKey:
    key = VerifyingKey.of(info_of(ec_key().public_key()))
    assert key is not None
    return key


KEYS: dict[str, Callable[[], PublicKey | VerifyingKey]] = {
    "ec": lambda: ec_key().public_key(),
    "rsa": lambda: rsa_key().public_key(),
    "ed25519": lambda: ed_key().public_key(),
    "ec, fast": _verifying_key,
}

# Every algorithm with each kind of key that it is for.
FITTING = [
    (name, kind) for name, (_, wanted, _, _) in ALGORITHMS.items() for kind in KEYS if kind.split(",")[0] == wanted
]


def refusal(
    algorithm: bytes,
    signature: bytes,
    key: PublicKey | VerifyingKey,
    *,
    message: bytes = MESSAGE,
    allow_sha1: bool = False,
) -> tuple[str, str]:
    """Step and reason with which the signature is refused."""
    with pytest.raises(Untrusted) as caught:
        verify_signature(algorithm, key, message, signature, step="the-step", allow_sha1=allow_sha1)
    return caught.value.step, caught.value.reason


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_signature_holds_with_the_kind_of_key_its_algorithm_is_for_and_no_other(name: str, kind: str) -> None:
    algorithm, _, _, sign = ALGORITHMS[name]
    signature = sign(MESSAGE)
    if (name, kind) in FITTING:
        verify_signature(algorithm, KEYS[kind](), MESSAGE, signature, step="the-step", allow_sha1=True)
    else:
        found = refusal(algorithm, signature, KEYS[kind](), allow_sha1=True)
        assert found == ("the-step", "bad-algorithm")


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_a_signature_of_another_message_or_an_empty_one_is_refused(name: str, kind: str) -> None:
    algorithm, _, _, sign = ALGORITHMS[name]
    signature, key = sign(MESSAGE), KEYS[kind]()
    bad = ("the-step", "bad-signature")
    assert bad == refusal(algorithm, signature, key, message=MESSAGE + b".", allow_sha1=True)
    assert bad == refusal(algorithm, b"", key, allow_sha1=True)
    assert bad == refusal(algorithm, signature[:-1], key, allow_sha1=True)


@pytest.mark.parametrize("name", ONLY_WITH_SHA1)
def test_a_good_signature_with_sha1_is_refused_unless_the_caller_allows_it(name: str) -> None:
    algorithm, kind, _, sign = ALGORITHMS[name]
    assert refusal(algorithm, sign(MESSAGE), KEYS[kind]()) == ("the-step", "bad-algorithm")


def test_all_three_algorithms_with_sha1_are_tried() -> None:
    assert ONLY_WITH_SHA1 == ["ecdsa-sha1", "rsa-sha1", "rsa-sha1-oiw"]


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in ONLY_WITH_SHA1])
def test_a_good_signature_with_a_newer_hash_needs_no_permission(name: str) -> None:
    algorithm, kind, _, sign = ALGORITHMS[name]
    verify_signature(algorithm, KEYS[kind](), MESSAGE, sign(MESSAGE), step="the-step")


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize(
    "dotted",
    ["1.2.840.113549.1.1.4", "1.2.840.113549.1.1.2", "1.2.840.113549.1.1.14", "1.2.840.10045.4.3.1", "1.3.101.113"],
    ids=["MD5", "MD2", "RSA with SHA-224", "ECDSA with SHA-224", "Ed448"],
)
def test_an_algorithm_that_is_not_in_the_list_is_refused_even_with_sha1(dotted: str, kind: str) -> None:
    found = refusal(der.sequence(der.oid(dotted), der.NULL), bytes(128), KEYS[kind](), allow_sha1=True)
    assert found == ("the-step", "bad-algorithm")


def test_a_good_signature_with_md5_is_refused_even_with_sha1() -> None:
    signature = rsa_key().sign(MESSAGE, padding.PKCS1v15(), hashes.MD5())
    assert refusal(RSA_MD5, signature, rsa_key().public_key(), allow_sha1=True) == ("the-step", "bad-algorithm")


@pytest.mark.parametrize("kind", ["ec", "ec, fast"])
def test_a_signature_by_another_key_or_with_another_hash_is_refused(kind: str) -> None:
    other = ec_key("other").sign(MESSAGE, ec.ECDSA(hashes.SHA256()))
    assert refusal(ECDSA_SHA256, other, KEYS[kind]()) == ("the-step", "bad-signature")
    sha384 = ec_key().sign(MESSAGE, ec.ECDSA(hashes.SHA384()))
    assert refusal(ECDSA_SHA256, sha384, KEYS[kind]()) == ("the-step", "bad-signature")


def test_a_pkcs1_signature_is_none_of_pss_nor_the_other_way_round() -> None:
    key = rsa_key().public_key()
    assert refusal(pss(), _by_rsa(hashes.SHA256())(MESSAGE), key) == ("the-step", "bad-signature")
    assert refusal(RSA_SHA256, _by_pss(hashes.SHA256())(MESSAGE), key) == ("the-step", "bad-signature")


@pytest.mark.parametrize("parameters", [der.NULL, der.sequence()], ids=["NULL", "empty sequence"])
def test_ed25519_has_no_parameters(parameters: bytes) -> None:
    """RFC 8410, section 3: they are absent."""
    algorithm = der.sequence(der.oid("1.3.101.112"), parameters)
    found = refusal(algorithm, ed_key().sign(MESSAGE), ed_key().public_key())
    assert found == ("the-step", "bad-algorithm")


@pytest.mark.parametrize(
    "algorithm",
    [
        pss(trailer=1),
        pss(nulls=(b"", b"")),
        pss(nulls=(der.NULL, b"")),
        pss(nulls=(b"", der.NULL)),
    ],
    ids=["trailer stated", "hashes without NULL", "mask's hash without NULL", "hash without NULL"],
)
def test_the_other_spellings_of_the_same_pss_parameters_hold(algorithm: bytes) -> None:
    verify_signature(algorithm, rsa_key().public_key(), MESSAGE, _by_pss(hashes.SHA256())(MESSAGE), step="the-step")


def test_a_pss_signature_with_another_salt_or_mask_than_its_algorithm_says_is_refused() -> None:
    key = rsa_key().public_key()
    assert refusal(pss(), _by_pss(hashes.SHA256(), salt=20)(MESSAGE), key) == ("the-step", "bad-signature")
    assert refusal(pss(), _by_pss(hashes.SHA256(), mask=hashes.SHA384())(MESSAGE), key) == (
        "the-step",
        "bad-signature",
    )
    assert refusal(pss(SHA384, salt=48), _by_pss(hashes.SHA256())(MESSAGE), key) == ("the-step", "bad-signature")


_HASH = _field(0, _hash(SHA256))
_MASK = _field(1, der.sequence(der.oid(MGF1), _hash(SHA256)))
_SALT = _field(2, der.integer(32))
# Algorithm, and the signature that would hold if nobody looked at what is wrong.
REFUSED_PSS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "no parameters": (pss_of(), _by_pss(hashes.SHA256())),
    "parameters are NULL": (pss_of(der.NULL), _by_pss(hashes.SHA256())),
    "empty parameters, so SHA-1": (pss_of(der.sequence()), _by_pss(hashes.SHA1())),
    "hash left out": (pss_of(der.sequence(_MASK, _SALT)), _by_pss(hashes.SHA256())),
    "mask left out": (pss_of(der.sequence(_HASH, _SALT)), _by_pss(hashes.SHA256())),
    "salt length left out": (pss_of(der.sequence(_HASH, _MASK)), _by_pss(hashes.SHA256())),
    "SHA-1": (pss(SHA1, salt=20), _by_pss(hashes.SHA1())),
    "unknown hash": (pss("1.2.3"), _by_pss(hashes.SHA256())),
    "other hash for the mask": (pss(mask_digest=SHA384), _by_pss(hashes.SHA256())),
    "other mask than MGF1": (pss(mask="1.2.840.113549.1.1.9"), _by_pss(hashes.SHA256())),
    "mask without hash": (
        pss_of(der.sequence(_HASH, _field(1, der.sequence(der.oid(MGF1))), _SALT)),
        _by_pss(hashes.SHA256()),
    ),
    "shorter salt": (pss(salt=20), _by_pss(hashes.SHA256(), salt=20)),
    "no salt": (pss(salt=0), _by_pss(hashes.SHA256(), salt=0)),
    "longer salt": (pss(salt=33), _by_pss(hashes.SHA256(), salt=33)),
    "salt above every limit": (pss(salt=2**31), _by_pss(hashes.SHA256())),
    "negative salt": (pss(salt=-32), _by_pss(hashes.SHA256())),
    "other trailer": (pss(trailer=2), _by_pss(hashes.SHA256())),
    "trailer 0": (pss(trailer=0), _by_pss(hashes.SHA256())),
    "hash with parameters": (pss(nulls=(der.integer(1), der.NULL)), _by_pss(hashes.SHA256())),
    "mask's hash with parameters": (pss(nulls=(der.NULL, der.integer(1))), _by_pss(hashes.SHA256())),
}


@pytest.mark.parametrize("case", REFUSED_PSS)
def test_pss_parameters_other_than_one_hash_with_a_salt_of_its_length_are_malformed(case: str) -> None:
    algorithm, sign = REFUSED_PSS[case]
    signature = sign(MESSAGE)
    with pytest.raises(Malformed):
        verify_signature(algorithm, rsa_key().public_key(), MESSAGE, signature, step="the-step", allow_sha1=True)


@pytest.mark.parametrize(
    "algorithm",
    [b"", der.NULL, der.sequence(), der.sequence(der.NULL), ED25519 + b"\x00", der.sequence(*[der.oid("1.2.3")] * 3)],
    ids=["nothing", "NULL", "empty", "no object identifier", "bytes behind it", "three parts"],
)
def test_what_is_no_algorithm_identifier_is_malformed(algorithm: bytes) -> None:
    with pytest.raises(Malformed):
        algorithm_name(algorithm)
    with pytest.raises(Malformed):
        verify_signature(algorithm, ed_key().public_key(), MESSAGE, ed_key().sign(MESSAGE), step="the-step")


def test_the_name_of_an_algorithm_is_its_object_identifier_whatever_its_parameters() -> None:
    assert [algorithm_name(found) for found in (ECDSA_SHA384, RSA_SHA256, pss())] == [
        "1.2.840.10045.4.3.3",
        "1.2.840.113549.1.1.11",
        "1.2.840.113549.1.1.10",
    ]


@pytest.mark.parametrize("bits", [1024, 1025, 2048, 8192, 8193, 16384])
def test_an_rsa_key_of_1024_to_16384_bits_is_taken(bits: int) -> None:
    key = load_public_key(rsa_info(bits))
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == bits


@pytest.mark.parametrize("bits", [512, 1023, 16385, 20000])
def test_a_smaller_or_larger_rsa_key_is_malformed(bits: int) -> None:
    with pytest.raises(Malformed):
        load_public_key(rsa_info(bits))


@pytest.mark.parametrize("exponent", [3, 65537, 2**31 - 1])
def test_an_rsa_exponent_below_two_to_the_31_is_taken(exponent: int) -> None:
    key = load_public_key(rsa_info(2048, exponent))
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.public_numbers().e == exponent


@pytest.mark.parametrize("exponent", [2**31 + 1, 2**32 + 1, 2**1000 + 1])
def test_a_larger_rsa_exponent_is_malformed(exponent: int) -> None:
    with pytest.raises(Malformed):
        load_public_key(rsa_info(2048, exponent))


@pytest.mark.parametrize(
    "curve", [ec.SECP224R1(), ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: str(curve.name)
)
def test_a_key_on_one_of_the_four_curves_of_nist_is_taken(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve).public_key()
    assert load_public_key(info_of(key)) == key


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.BrainpoolP256R1()], ids=lambda curve: str(curve.name))
def test_a_key_on_another_curve_is_malformed(curve: ec.EllipticCurve) -> None:
    with pytest.raises(Malformed):
        load_public_key(info_of(ec.generate_private_key(curve).public_key()))


def test_a_key_for_ed25519_is_taken() -> None:
    assert load_public_key(info_of(ed_key().public_key())) == ed_key().public_key()


def test_keys_of_other_kinds_are_malformed() -> None:
    """A key for agreement, and one for an algorithm that Go does not know."""
    for other in (x25519.X25519PrivateKey.generate().public_key(), ed448.Ed448PrivateKey.generate().public_key()):
        with pytest.raises(Malformed):
            load_public_key(info_of(other))


def _off_the_curve() -> bytes:
    info = bytearray(info_of(ec_key().public_key()))
    info[-1] ^= 1
    return bytes(info)


@pytest.mark.parametrize(
    "info",
    [
        b"",
        b"\x00" * 40,
        der.sequence(),
        info_of(ed_key().public_key())[:-1],
        info_of(ed_key().public_key()) + b"\x00",
        _off_the_curve(),
        rsa_info(2048)[:-1],
        der.sequence(der.sequence(der.oid("1.2.3")), der.bit_string(bytes(32))),
    ],
    ids=["nothing", "zeros", "empty", "cut", "bytes behind it", "not on the curve", "cut RSA", "unknown algorithm"],
)
def test_what_is_no_public_key_is_malformed(info: bytes) -> None:
    with pytest.raises(Malformed):
        load_public_key(info)
