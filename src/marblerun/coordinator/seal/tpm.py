"""Sealing to a TPM 2.0: the data key opens on this TPM, while its PCRs are what they were.

What this is worth depends on whose TPM it is. It keeps a copied disk from being opened on another machine, or on this
one after it was started with other software. It keeps nothing from whoever runs programs on this machine in its usual
boot state, nor from whoever runs the TPM (docs/state.md).
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Final

from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.tpm_device import RC_PCR_CHANGED, RC_POLICY_FAIL, Tpm, TpmRefusal, open_tpm, tpm_code
from marblerun.coordinator.seal.tpm_key import PcrSelection, TpmObject, parse_tpm_key, pcrs_for
from marblerun.errors import Malformed, Misconfigured, Unavailable, Untrusted
from marblerun.pki.issue import Entropy
from marblerun.secrets.box import KEY_BYTES, NONCE_BYTES, open_key, seal_key

_log = logging.getLogger(__name__)

# Any PCR that moves between policy and use, also one that is not selected, makes the TPM ask for the policy again. What
# measures on a busy machine comes in bursts, so tries are counted in time, with growing pauses.
_PATIENCE_SECONDS: Final = 30.0
_LONGEST_PAUSE_SECONDS: Final = 0.25
_MACHINE_ID_BYTES: Final = 16
_POLICY_PCR: Final = (0x17F).to_bytes(4, "big")  # TPM_CC_PolicyPCR


@dataclass(frozen=True, slots=True)
class _Wrapping:
    """A key encryption key and the object that the TPM gives it back for."""

    key: bytes = field(repr=False)
    header: bytes


class TpmSealer:
    """Seals under a key encryption key that is made once per process and seal mode, and that the TPM keeps sealed.

    A state is stored at every change and the TPM takes a good part of a second, so it is asked once: AES-GCM with a
    fresh nonce does the rest. That key stays in memory as the data key itself does. A start makes a new one, under the
    PCR values of that time.
    """

    def __init__(self, tcti: str, selection: PcrSelection, entropy: Entropy) -> None:
        self._tcti = tcti
        self._selection = selection
        self._entropy = entropy
        self._wrappings: dict[SealMode, _Wrapping] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Which TPM, and what it is bound to."""
        return f"TPM 2.0 ({self._tcti}, PCRs {self._selection})"

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        """The data key in the TPM's form.

        Raises Unavailable if the TPM is not there, and Misconfigured if it cannot be used as configured.
        """
        selection = pcrs_for(mode, self._selection)
        with self._lock:
            wrapping = self._wrappings.get(mode)
            if wrapping is None:
                wrapping = self._wrappings[mode] = self._wrap(mode, selection)
        nonce = self._entropy.token(NONCE_BYTES)
        return wrapping.header + seal_key(wrapping.key, key, wrapping.header + additional, nonce)

    def unseal(self, sealed: bytes, additional: bytes) -> bytes:
        """The data key.

        Raises Malformed for bytes of another form, Unavailable without a TPM, and Untrusted (step ``sealed-key``):

        1. reason ``other-tpm``: the storage root key is not the one that it was sealed under;
        2. reason ``bad-seal``: the TPM does not take the object, or the key is not for this state;
        3. reason ``pcrs``: the PCRs are not what they were.
        """
        found = parse_tpm_key(sealed)
        try:
            with open_tpm(self._tcti) as tpm:
                kek = _unwrap(tpm, found.object)
        except TpmRefusal as error:
            raise Untrusted(f"the TPM refuses the key: {error}", step="sealed-key", reason="bad-seal") from error
        return open_key(kek, found.box, found.object.encode() + additional)

    def machine_id(self) -> bytes:
        """From the name of the storage root key: another one if the TPM is another one, or was cleared."""
        with open_tpm(self._tcti) as tpm:
            return hashlib.sha256(b"marblerun machine id" + tpm.root_name).digest()[:_MACHINE_ID_BYTES]

    def _wrap(self, mode: SealMode, selection: PcrSelection) -> _Wrapping:
        key = self._entropy.token(KEY_BYTES)
        try:
            with open_tpm(self._tcti) as tpm:
                wrapped = _wrap(tpm, key, mode, selection)
                # A start that cannot open it is too late to find out.
                if _unwrap(tpm, wrapped) != key:
                    raise Unavailable("the TPM did not give back what it had sealed")
        except TpmRefusal as error:
            raise Unavailable(f"the TPM refused to seal: {error}") from error
        except Untrusted as error:
            raise Unavailable(f"the TPM does not open what it sealed just now: {error.message}") from error
        return _Wrapping(key, wrapped.encode())


def _wrap(tpm: Tpm, key: bytes, mode: SealMode, selection: PcrSelection) -> TpmObject:
    """``key`` as a sealed object below the root key that only its policy opens."""
    t = tpm.library
    attributes = t.TPMA_OBJECT.FIXEDTPM | t.TPMA_OBJECT.FIXEDPARENT | t.TPMA_OBJECT.NODA
    policy = _policy(selection, _read_pcrs(tpm, selection))
    template = t.TPM2B_PUBLIC.parse("keyedhash", objectAttributes=attributes, authPolicy=policy)
    sensitive = t.TPM2B_SENSITIVE_CREATE(t.TPMS_SENSITIVE_CREATE(data=key))
    with tpm.hmac_session() as session:
        private, public, *_ = tpm.esapi.create(tpm.root_key, sensitive, template, session1=session)
    return TpmObject(mode, selection, tpm.root_name, public.publicArea.marshal(), bytes(private))


def _unwrap(tpm: Tpm, wrapped: TpmObject) -> bytes:
    """What is inside, if TPM and PCRs are those it was sealed to; the steps are those of :meth:`TpmSealer.unseal`."""
    # 1.
    if tpm.root_name != wrapped.root_name:
        raise Untrusted("it was sealed by another TPM, or the TPM was cleared", step="sealed-key", reason="other-tpm")
    # 2.
    t = tpm.library
    public = _public(tpm, wrapped.public)
    private = t.TPM2B_PRIVATE(wrapped.private)
    with tpm.hmac_session() as session:
        handle = tpm.esapi.load(tpm.root_key, private, public, session1=session)
    # 3.
    with tpm.flushed(handle):
        deadline, pause = time.monotonic() + _PATIENCE_SECONDS, 0.001
        while (key := _unsealed(tpm, handle, wrapped.selection)) is None:
            if time.monotonic() > deadline:
                raise Unavailable("the TPM's PCRs keep changing")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return key


def _unsealed(tpm: Tpm, handle: object, selection: PcrSelection) -> bytes | None:
    """What is in a loaded object; ``None`` if some PCR moved meanwhile."""
    with tpm.policy_session() as policy:
        try:
            tpm.esapi.policy_pcr(policy, b"", str(selection))
            return bytes(tpm.esapi.unseal(handle, session1=policy))
        except tpm.library.TSS2_Exception as error:
            if tpm_code(error.rc) == RC_POLICY_FAIL:
                raise Untrusted(
                    f"the machine was started with other software or settings: not all PCRs of {selection} are what "
                    "they were",
                    step="sealed-key",
                    reason="pcrs",
                ) from error
            if tpm_code(error.rc) != RC_PCR_CHANGED:
                raise
    return None


def _public(tpm: Tpm, encoded: bytes) -> object:
    """The public area as the library's value; Malformed if it is none. What follows it does not get past AES-GCM."""
    t = tpm.library
    try:
        area, _ = t.TPMT_PUBLIC.unmarshal(encoded)
    except (t.TSS2_Exception, ValueError) as error:
        raise Malformed(f"the object's public area cannot be read: {error}", where="sealed_key") from error
    return t.TPM2B_PUBLIC(area)


def _read_pcrs(tpm: Tpm, selection: PcrSelection) -> list[bytes]:
    """The values, in the order of their numbers; raises Misconfigured if the TPM does not keep them all.

    A TPM leaves banks out that are not allocated, of the answer and of policies alike: they would bind nothing.
    """
    values: list[bytes] = []
    with tpm.audit_session() as session:
        for pcr in selection.pcrs:  # one by one: an answer holds eight at most, or fewer
            _, _, digests = tpm.esapi.pcr_read(f"{selection.bank}:{pcr}", session1=session)
            values.extend(bytes(digest) for digest in digests)
    if len(values) != len(selection.pcrs):
        raise Misconfigured(
            f"the TPM does not keep the PCRs {selection}; set EDG_COORDINATOR_TPM_PCRS to a bank that it keeps, or "
            "allocate this one in the firmware's settings"
        )
    if not any(map(any, values)):
        _log.warning("all PCRs that the state is sealed to are zero: nothing has measured what was started here")
    return values


def _policy(selection: PcrSelection, values: list[bytes]) -> bytes:
    """The digest of TPM2_PolicyPCR for these values (TPM 2.0 Library part 3); all SHA-256."""
    digest = hashlib.sha256(b"".join(values)).digest()
    return hashlib.sha256(bytes(32) + _POLICY_PCR + selection.encode() + digest).digest()
