"""A simulated platform in a directory: its keys, its quoting enclave, its certificates.

The directory holds what does not change: keys and certificates. Collateral is signed again whenever it is asked for,
so a platform never goes stale. ``root-ca.pem`` alone is what others need in order to trust it.
"""

from __future__ import annotations

import hashlib
import logging
import stat
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from marblerun.attestation.model import Collateral, Origin, Platform, TcbStatus, Tee, TrustRoot
from marblerun.attestation.simulated import quotes
from marblerun.attestation.simulated.collateral import current_qe_identity, current_tcb_info, publish
from marblerun.attestation.simulated.description import (
    DESCRIPTION_FILE,
    Description,
    encode_description,
    parse_description,
)
from marblerun.attestation.simulated.entropy import Entropy, SystemEntropy
from marblerun.attestation.simulated.hierarchy import Hierarchy, Signer, mint_hierarchy, new_platform
from marblerun.attestation.simulated.identity import (
    DEFAULT_PRODUCT_ID,
    DEFAULT_SECURITY_VERSION,
    DEFAULT_SIGNER_ID,
    DEFAULT_UNIQUE_ID,
    EnclaveIdentity,
)
from marblerun.attestation.simulated.storage import read_file, write_new_directory
from marblerun.errors import Malformed

SIMULATED_FMSPC: Final = bytes.fromhex("0051ab000000")
"""No processor of Intel's has this FMSPC."""
ROOT_FILE: Final = "root-ca.pem"

_SIGNERS: Final = ("root-ca", "pck-ca", "tcb-signer", "pck")
_QE_KEY_FILE: Final = "attestation.key.pem"
_QE_REPORT_FILE: Final = "qe-report.bin"
_SEALING_FILE: Final = "sealing.secret"
# A verifier whose clock is behind ours must not find the collateral issued in its future.
_CLOCK_SKEW: Final = timedelta(hours=1)

_log = logging.getLogger("marblerun.simulated")


class SimulatedPlatform:
    """One simulated machine. Reading is lazy, files are read once; safe to use from several threads and processes."""

    def __init__(self, directory: Path, description: Description, root: x509.Certificate) -> None:
        """Use :meth:`create` or :meth:`load`."""
        self.directory = directory
        self.root_certificate = root
        self._description = description
        self._published: dict[datetime, dict[Tee, Collateral]] = {}
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        at: datetime,
        entropy: Entropy | None = None,
        ca: str = "platform",
        fmspc: bytes = SIMULATED_FMSPC,
        tcb_status: TcbStatus = TcbStatus.UP_TO_DATE,
        advisories: tuple[str, ...] = (),
    ) -> SimulatedPlatform:
        """A new platform in ``directory``, which must not exist or be empty; it appears whole or not at all.

        ``ca`` is ``platform`` or ``processor``; ``tcb_status`` and ``advisories`` are what its TCB Info will say of it.

        Raises:
            Conflict: there is something in the directory; an existing platform is never overwritten.
            Unavailable: it cannot be written.
        """
        entropy = entropy or SystemEntropy()
        platform = new_platform(fmspc, ca, entropy=entropy)
        hierarchy = mint_hierarchy(platform, at=at, entropy=entropy)
        files = _public_files(hierarchy, Description(platform, tcb_status, advisories), at)
        write_new_directory(directory, files | _secret_files(hierarchy, entropy))
        return cls.load(directory)

    @classmethod
    def load(cls, directory: Path) -> SimulatedPlatform:
        """The platform that :meth:`create` left in ``directory``; warns if others on the machine can read its keys.

        Raises:
            NotFound: there is no platform.
            Malformed: a file is not what it should be.
        """
        description = parse_description(read_file(directory, DESCRIPTION_FILE))
        platform = cls(directory, description, _certificate(directory, ROOT_FILE))
        for name in platform.exposed_files():
            _log.warning("%s can be read by others: the simulated platform's keys are not private", directory / name)
        return platform

    @property
    def root_der(self) -> bytes:
        """The root certificate, DER."""
        return self.root_certificate.public_bytes(serialization.Encoding.DER)

    @property
    def fmspc(self) -> bytes:
        """6 bytes."""
        return self._description.platform.fmspc

    @property
    def platform(self) -> Platform:
        """What verified quotes of this platform say about the machine."""
        return self._description.platform

    def trust_root(self) -> TrustRoot:
        """The root as something to trust, marked as simulated."""
        return _trust_root(self.root_certificate)

    def quote(
        self,
        report_data: bytes,
        *,
        unique_id: bytes = DEFAULT_UNIQUE_ID,
        signer_id: bytes = DEFAULT_SIGNER_ID,
        product_id: int = DEFAULT_PRODUCT_ID,
        security_version: int = DEFAULT_SECURITY_VERSION,
        debug: bool = False,
    ) -> bytes:
        """An SGX quote, version 3, without Open Enclave header; ``report_data`` up to 64 bytes, zero padded."""
        return self.quote_as(EnclaveIdentity(unique_id, signer_id, product_id, security_version, debug), report_data)

    def quote_as(self, identity: EnclaveIdentity, report_data: bytes) -> bytes:
        """An SGX quote of the enclave ``identity``; otherwise as :meth:`quote`."""
        flags = quotes.SGX_ATTRIBUTES[0] | (quotes.DEBUG if identity.debug else 0)
        report = quotes.sgx_report(
            report_data,
            mrenclave=identity.unique_id,
            mrsigner=identity.signer_id,
            isv_prod_id=identity.product_id,
            isv_svn=identity.security_version,
            attributes=bytes((flags,)) + quotes.SGX_ATTRIBUTES[1:],
            cpusvn=self.platform.cpu_svns,
        )
        header = quotes.header(3, Tee.SGX, pce_svn=self.platform.pce_svn, qe_id=self.qe_id)
        body = quotes.encode_sgx_report(report)
        return quotes.sign_quote(header, body, self._quoting_enclave, self.pck_chain).encode()

    def collateral(self, at: datetime, tee: Tee = Tee.SGX) -> Collateral:
        """Collateral valid at ``at`` and for 29 days more, freshly signed.

        Within one hour the answer stays the same, byte for byte, as a real service's would, so that verifiers can
        recognise what they have judged already.
        """
        issued = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0) - _CLOCK_SKEW
        with self._lock:
            if issued not in self._published:
                self._published.clear()
                self._published[issued] = self._publish(issued)
            return self._published[issued][tee]

    def sealing_key(self, identity: bytes, key_id: bytes, size: int = 16) -> bytes:
        """A key that only this platform can derive, for ``identity`` (who may unseal) and ``key_id`` (which key).

        16 bytes as SGX's EGETKEY gives, or 32. HKDF-SHA256 over the platform's secret with ``key_id`` as salt and
        ``identity`` in the info; any change of either, or of the size, gives an unrelated key. Unlike hardware, nothing
        stops a process from asking for another's identity.
        """
        if size not in (16, 32):
            raise ValueError("a sealing key has 16 or 32 bytes")
        info = b"simulated platform sealing key\x00" + bytes((size,)) + identity
        return HKDF(hashes.SHA256(), size, salt=key_id, info=info).derive(self._secret)

    def hierarchy(self) -> Hierarchy:
        """The whole hierarchy with its private keys."""
        root, pck_ca, tcb_signer, pck = (self._signer(name) for name in _SIGNERS)
        return Hierarchy(root, pck_ca, tcb_signer, pck, self.platform)

    def exposed_files(self) -> tuple[str, ...]:
        """Names of secret files that group or others can read."""
        if not self.directory.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH):
            return ()
        secret = sorted((*self.directory.glob("*.key.pem"), self.directory / _SEALING_FILE))
        return tuple(f.name for f in secret if f.exists() and f.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))

    @cached_property
    def _secret(self) -> bytes:
        secret = read_file(self.directory, _SEALING_FILE)
        if len(secret) != 32:
            raise Malformed("the sealing secret does not have 32 bytes", where=str(self.directory / _SEALING_FILE))
        return secret

    @cached_property
    def qe_id(self) -> bytes:
        """By what quotes name this machine, 16 bytes."""
        return hashlib.sha256(b"QE ID" + self.platform.ppid).digest()[:16]

    @cached_property
    def pck_chain(self) -> str:
        """PEM text: PCK leaf, PCK CA, root; what quotes carry."""
        return "".join(
            read_file(self.directory, f"{name}.pem").decode("ascii") for name in ("pck", "pck-ca", "root-ca")
        )

    @cached_property
    def _quoting_enclave(self) -> quotes.QuotingEnclave:
        certified = read_file(self.directory, _QE_REPORT_FILE)
        if len(certified) != 448:
            raise Malformed("not a report and a signature", where=str(self.directory / _QE_REPORT_FILE))
        return quotes.QuotingEnclave(_key(self.directory, _QE_KEY_FILE), certified[:384], certified[384:])

    @cached_property
    def _signing_hierarchy(self) -> Hierarchy:
        return self.hierarchy()

    def _signer(self, name: str) -> Signer:
        return Signer(_certificate(self.directory, f"{name}.pem"), _key(self.directory, f"{name}.key.pem"))

    def _publish(self, issued: datetime) -> dict[Tee, Collateral]:
        published = {tee: self._publish_for(tee, issued) for tee in (Tee.SGX, Tee.TDX)}
        # There is one CRL of each CA, whoever asks.
        crls = published[Tee.SGX]
        published[Tee.TDX] = replace(published[Tee.TDX], root_ca_crl=crls.root_ca_crl, pck_crl=crls.pck_crl)
        return published

    def _publish_for(self, tee: Tee, issued: datetime) -> Collateral:
        tcb_info = current_tcb_info(
            self._signing_hierarchy,
            tee,
            issued=issued,
            status=self._description.tcb_status,
            advisories=self._description.advisories,
        )
        return publish(self._signing_hierarchy, tcb_info, current_qe_identity(tee, issued=issued))


def load_trust_root(directory: Path) -> TrustRoot:
    """The root of the platform in ``directory``; needs ``root-ca.pem`` and nothing else, no private keys.

    Raises:
        NotFound: there is no such file.
        Malformed: it is not a certificate.
    """
    return _trust_root(_certificate(directory, ROOT_FILE))


def is_simulated_platform(directory: Path) -> bool:
    """Whether ``directory`` holds a simulated platform."""
    return (directory / DESCRIPTION_FILE).is_file()


def _trust_root(root: x509.Certificate) -> TrustRoot:
    spki = root.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashlib.sha256(spki).digest()
    return TrustRoot(f"simulated platform {digest[:6].hex()}", digest, Origin.SIMULATED)


def _public_files(hierarchy: Hierarchy, description: Description, at: datetime) -> dict[str, bytes]:
    signers = zip(_SIGNERS, (hierarchy.root, hierarchy.pck_ca, hierarchy.tcb_signer, hierarchy.pck), strict=True)
    certificates = {f"{name}.pem": signer.pem.encode() for name, signer in signers}
    return {DESCRIPTION_FILE: encode_description(description, at)} | certificates


def _secret_files(hierarchy: Hierarchy, entropy: Entropy) -> dict[str, bytes]:
    # A real quoting enclave keeps its key and its certification until it is re-provisioned; so does this one.
    qe_key = entropy.ec_key(ec.SECP256R1())
    qe = quotes.certify(hierarchy, qe_key, quotes.qe_report(Tee.SGX, qe_key, cpusvn=hierarchy.platform.cpu_svns))
    signers = zip(_SIGNERS, (hierarchy.root, hierarchy.pck_ca, hierarchy.tcb_signer, hierarchy.pck), strict=True)
    return {f"{name}.key.pem": _key_pem(signer.key) for name, signer in signers} | {
        _QE_KEY_FILE: _key_pem(qe_key),
        _QE_REPORT_FILE: qe.report + qe.report_signature,
        _SEALING_FILE: entropy.token(32),
    }


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate(directory: Path, name: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_file(directory, name))
    except ValueError:
        raise Malformed("not a PEM certificate", where=str(directory / name)) from None


def _key(directory: Path, name: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_file(directory, name), None)
    except (ValueError, TypeError):
        raise Malformed("not an unencrypted PEM key", where=str(directory / name)) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Malformed("not an EC key", where=str(directory / name))
    return key
