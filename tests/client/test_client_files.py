"""Files of the client: the certificate cache, uploads of secrets, the manifest as it is shown, offline signatures."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from tests.client.coordinators import Call, FakeCoordinator, Identity, mint, serving, success

from marblerun.client import (
    CertificateCache,
    UserSecret,
    parse_chain,
    set_monotonic_counter,
    verify_manifest_signature,
    verify_signed_quote,
)
from marblerun.client.certcache import default_path
from marblerun.client.manifest_text import merge_updates, with_signature
from marblerun.client.recovery import (
    decrypt_recovery_data,
    encrypt_recovery_secret,
    load_recovery_key,
    sign_recovery_secret,
)
from marblerun.client.user_secrets import parse_user_secrets, user_secret_from_pem
from marblerun.errors import Malformed, MarbleRunError, Misconfigured, NotFound, Untrusted


@pytest.fixture(scope="module")
def root() -> Identity:
    return mint("MarbleRun Coordinator")


def test_the_cache_keeps_the_chain_for_this_user_only(tmp_path: Path, root: Identity) -> None:
    chain = parse_chain(mint("i", root).pem + root.pem)
    cache = CertificateCache(tmp_path / "new" / "folder" / "cert.pem")
    cache.store(chain)
    cache.store(chain)
    assert cache.load().root_der == root.der
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o600
    assert cache.path.read_bytes() == chain.pem
    assert [path.name for path in cache.path.parent.iterdir()] == ["cert.pem"]


def test_a_missing_or_broken_cache_is_no_trust(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        CertificateCache(tmp_path / "none").load()
    (tmp_path / "broken").write_bytes(b"x")
    with pytest.raises(Malformed):
        CertificateCache(tmp_path / "broken").load()


def test_the_cache_is_where_the_reference_has_it() -> None:
    assert default_path({"HOME": "/h"}, "linux") == Path("/h/.config/marblerun/coordinator-cert.pem")
    assert default_path({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, "linux") == Path("/x/marblerun/coordinator-cert.pem")
    mac = Path("/h/Library/Application Support/marblerun/coordinator-cert.pem")
    assert default_path({"HOME": "/h"}, "darwin") == mac
    assert default_path({}, "linux") == Path("coordinator-cert.pem")


def test_user_secrets_are_read_and_written_as_the_api_has_them() -> None:
    raw = json.dumps({"a": {"Key": "aw=="}, "b": {"cert": "Yw==", "Private": "cA=="}, "c": {"Key": None}}).encode()
    found = parse_user_secrets(raw)
    assert found["a"].document() == {"Key": "aw=="}
    assert found["b"].document() == {"Cert": "Yw==", "Private": "cA=="}
    assert found["c"] == UserSecret()


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{}", b'{"a": 1}', b'{"a": {"Kay": ""}}', b'{"a": {"Key": "!"}}', b'{"a": {}, "a": {}}',
     b'{"a": {"Key": "", "key": ""}}', b'{"a": {"Key": 5}}'],
)  # fmt: skip
def test_other_files_of_secrets_are_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_user_secrets(raw)


@given(st.binary(max_size=100))
def test_any_bytes_are_secrets_or_malformed(raw: bytes) -> None:
    for read in (parse_user_secrets, user_secret_from_pem):
        with contextlib.suppress(Malformed):
            assert read(raw)


def test_the_first_certificate_and_key_of_a_pem_file_are_taken(root: Identity) -> None:
    """Leaf, CA, key in this order: the leaf wins; SEC1 becomes PKCS#8."""
    leaf = mint("leaf", root, ca=False)
    sec1 = leaf.key.private_bytes(
        Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    parameters = b"-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n"
    value, remarks = user_secret_from_pem(leaf.pem + root.pem + parameters + sec1)
    pkcs8 = leaf.key.private_bytes(Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    assert (value.certificate, value.private, len(remarks)) == (leaf.der, pkcs8, 1)


def test_pem_files_that_do_not_fit_are_refused(root: Identity) -> None:
    other = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    for raw in (b"", root.pem, root.key_pem, mint("x").pem + root.key_pem, root.pem + other + root.key_pem):
        with pytest.raises(Malformed):
            user_secret_from_pem(raw)


def test_versions_raised_before_the_manifest_came_into_force_do_not_count() -> None:
    manifest = b'{"Packages": {"p": {"SecurityVersion": 1}}}'
    fingerprint = hashlib.sha256(manifest).hexdigest()
    raised = '{"user":"u","package":"p","new version":%d}'
    started = json.dumps({"user": "u", "manifestFingerprint": fingerprint})
    applied = json.dumps({"manifestFingerprint": fingerprint})

    def version(*log: str) -> object:
        return json.loads(merge_updates(manifest, log))["Packages"]["p"]["SecurityVersion"]

    assert version(raised % 2, raised % 3) == 3
    assert version(raised % 2, started) == 2
    assert version(raised % 2, json.dumps({"manifestFingerprint": "0" * 64})) == 2
    assert version(raised % 2, started, applied) == 1
    assert version(raised % 2, started, applied, raised % 5) == 5


def test_raised_versions_are_merged_and_empties_dropped() -> None:
    manifest = b'{"Packages": {"p": {"SecurityVersion": 1, "X": {}}, "q": {"A": null}}, "Secrets": {}}'
    log = ['{"update": "set"}', '{"package": "p", "new version": 2}', '{"package": "gone", "new version": 9}']
    merged = merge_updates(manifest, log)
    assert json.loads(merged) == {"Packages": {"p": {"SecurityVersion": 2}}}
    assert b'\n    "Packages"' in merged
    assert json.loads(with_signature(manifest, "f"))["ManifestSignature"] == "f"
    with pytest.raises(Malformed):
        merge_updates(b"[]", [])


def test_the_root_keys_signature_over_a_manifest_is_checked_offline(root: Identity) -> None:
    signature = root.key.sign(b"{}", ec.ECDSA(hashes.SHA256()))
    verify_manifest_signature(root.certificate, b"{}", signature)
    for manifest, wrong in ((b"{ }", signature), (b"{}", b""), (b"{}", signature[:-1])):
        with pytest.raises(Untrusted):
            verify_manifest_signature(root.certificate, manifest, wrong)


def test_a_signed_quote_is_checked_over_the_known_digest(root: Identity) -> None:
    """The digest for ``quote`` and ``UpToDate`` is that of protocol, section 15."""
    digest = bytes.fromhex("dbd273e560e3ebfc8d29e58eab34ccaa5ae721df0fb8b45c51caeb15d572fa02")
    signature = root.key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    verify_signed_quote(root.certificate, b"quote", signature, "UpToDate")
    with pytest.raises(Untrusted):
        verify_signed_quote(root.certificate, b"quote", signature, "OutOfDate")


def test_a_recovery_secret_goes_from_its_holder_to_the_coordinator() -> None:
    holder, ephemeral = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    pem = holder.private_bytes(
        Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    key = load_recovery_key(pem)
    spki = (Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    data = encrypt_recovery_secret(holder.public_key().public_bytes(*spki), b"s" * 33)
    assert decrypt_recovery_data(key, data) == b"s" * 33
    with pytest.raises(Malformed):
        decrypt_recovery_data(ephemeral, data)
    from cryptography.hazmat.primitives.asymmetric import padding

    holder.public_key().verify(sign_recovery_secret(key, b"s"), b"s", padding.PKCS1v15(), hashes.SHA256())
    for wrong in (b"", mint("x").key_pem):
        with pytest.raises(MarbleRunError):
            load_recovery_key(wrong)


def test_a_marble_counts_with_the_credentials_of_its_environment(root: Identity) -> None:
    marble = mint("marble", root, ca=False)

    def count(call: Call) -> tuple[int, bytes]:
        assert call.client_certificate == marble.der
        assert call.json() == {"name": "c", "value": 7}
        return success({"value": 5})

    fake = FakeCoordinator(root, root, lambda _: b"", root, routes={"POST /api/v2/monotonic-counter": count})
    environment = {
        "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN": marble.pem.decode(),
        "MARBLE_PREDEFINED_PRIVATE_KEY": marble.key_pem.decode(),
        "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA": root.pem.decode(),
    }
    with serving(fake):
        assert set_monotonic_counter(fake.endpoint, "c", 7, environment) == 5
    with pytest.raises(Misconfigured, match="MARBLE_PREDEFINED_PRIVATE_KEY"):
        set_monotonic_counter(fake.endpoint, "c", 7, {})


def test_base64_of_uploads_is_standard() -> None:
    assert UserSecret(key=b"\xff\xfe").document() == {"Key": base64.b64encode(b"\xff\xfe").decode()}
