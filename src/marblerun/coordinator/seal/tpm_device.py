"""A connection to a TPM 2.0: opened for one errand, with sessions that hide and authenticate what crosses the bus.

Source: TCG "TPM 2.0 Library", parts 1 to 3, and "TPM v2.0 Provisioning Guidance" for the storage root key.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from marblerun.errors import Misconfigured, Unavailable

DEFAULT_TCTI: Final = "device:/dev/tpmrm0"
"""The kernel's resource manager. The library's own search is not used: it ends at a TCP port that anybody may serve."""
# Others run commands or load any library that the name points at.
_TCTI: Final = re.compile(r"(device|swtpm|mssim|tabrmd)(:[\x21-\x7e]{1,512})?")

# Response codes (part 2, TPM_RC): handle, parameter and session numbers taken out.
RC_AUTH_FAIL: Final = 0x08E
RC_BAD_AUTH: Final = 0x0A2
RC_HANDLE: Final = 0x08B
RC_POLICY_FAIL: Final = 0x09D
RC_PCR_CHANGED: Final = 0x128
RC_NV_UNINITIALIZED: Final = 0x14A
_RC_FORMAT_1: Final = 0x080
_RC_FORMAT_1_CODE: Final = 0x0BF
_RC_WARNING: Final = 0x900
# Layers of the TSS whose codes are those of a TPM: the TPM itself and a resource manager in its place.
_TPM_LAYERS: Final = (0, 11)
_MAX_NAME_BYTES: Final = 2 + 64


class TpmRefusal(Exception):
    """The TPM itself said no, for good; ``code`` says why. The caller knows what that means."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse_tcti(text: str) -> str:
    """The way to the TPM that a setting names, as the TPM library spells it; ``1`` is that of the machine."""
    if text == "1":
        return DEFAULT_TCTI
    if not _TCTI.fullmatch(text):
        raise Misconfigured(
            f"the TPM {text!r} cannot be used; give 1 for {DEFAULT_TCTI}, or device:PATH, tabrmd:, swtpm:OPTIONS or "
            "mssim:OPTIONS"
        )
    return text


def tpm_library() -> Any:
    """The library's module; raises Misconfigured, saying what to install, if it is not there or does not load."""
    # Its C part prints every failure to standard error, between the lines of the log.
    os.environ.setdefault("TSS2_LOG", "all+none")
    try:
        return importlib.import_module("tpm2_pytss")
    except (ImportError, OSError) as error:
        raise Misconfigured(
            "a TPM is configured, but its library cannot be loaded: install the extra marblerun[tpm] and the system "
            f"library tpm2-tss (Debian: libtss2-dev) ({error})"
        ) from error


@contextmanager
def open_tpm(tcti: str) -> Iterator[Tpm]:
    """A TPM for one errand; everything that was loaded into it is gone afterwards.

    Raises Misconfigured without the library, Unavailable if the TPM cannot be reached or does not answer now, and
    TpmRefusal for what it refuses.
    """
    library = tpm_library()
    with ExitStack() as stack:
        try:
            yield Tpm(library, stack.enter_context(library.ESAPI(tcti)), stack)
        except library.TSS2_Exception as error:
            code = tpm_code(error.rc)
            if code is None:
                raise Unavailable(f"the TPM at {tcti} does not answer: {error}") from error
            raise TpmRefusal(code, str(error)) from error


def tpm_code(rc: int) -> int | None:
    """The reason in a response code; ``None`` if it is none of the TPM's, or one that says to try again later."""
    rc = int(rc)
    if (rc >> 16) & 0xFF not in _TPM_LAYERS:
        return None
    if rc & _RC_FORMAT_1:
        return rc & _RC_FORMAT_1_CODE
    return None if rc & _RC_WARNING == _RC_WARNING else rc & 0xFFF


class Tpm:
    """What an errand works with: the library, the connection (``esapi``), and the storage root key."""

    def __init__(self, library: Any, esapi: Any, stack: ExitStack) -> None:
        self.library = library
        self.esapi = esapi
        self._stack = stack
        self.root_key, self.root_name = self._make_root_key()

    def _make_root_key(self) -> tuple[Any, bytes]:
        """The storage root key and its name, made anew from the owner seed: the same one until the TPM is cleared.

        ECC P-256 with AES-128-CFB. A persistent key of that kind is not used: it may have been made with another
        ``unique`` field and be another key, and what was sealed would not open when it comes or goes.
        """
        t = self.library
        attributes = (
            t.TPMA_OBJECT.FIXEDTPM
            | t.TPMA_OBJECT.FIXEDPARENT
            | t.TPMA_OBJECT.SENSITIVEDATAORIGIN
            | t.TPMA_OBJECT.USERWITHAUTH
            | t.TPMA_OBJECT.NODA
            | t.TPMA_OBJECT.RESTRICTED
            | t.TPMA_OBJECT.DECRYPT
        )
        template = t.TPM2B_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=attributes)
        try:
            handle, public, *_ = self.esapi.create_primary(t.TPM2B_SENSITIVE_CREATE(), template, t.ESYS_TR.OWNER)
        except t.TSS2_Exception as error:
            if tpm_code(error.rc) in (RC_BAD_AUTH, RC_AUTH_FAIL):
                raise Misconfigured("the TPM's owner hierarchy has a password; it must be empty") from error
            raise
        self._stack.enter_context(self.flushed(handle))
        return handle, bytes(public.get_name())[:_MAX_NAME_BYTES]

    @contextmanager
    def hmac_session(self) -> Iterator[Any]:
        """A session that authorizes with an empty password, salted by the root key.

        Its HMACs cover commands and answers, and secrets go encrypted in both directions.
        """
        with self._session(self.library.TPM2_SE.HMAC, "DECRYPT", "ENCRYPT") as session:
            yield session

    @contextmanager
    def audit_session(self) -> Iterator[Any]:
        """A session for what needs no authorization: it authenticates the answer."""
        with self._session(self.library.TPM2_SE.HMAC, "AUDIT") as session:
            yield session

    @contextmanager
    def policy_session(self) -> Iterator[Any]:
        """A session to satisfy a policy in; what the TPM answers goes encrypted."""
        with self._session(self.library.TPM2_SE.POLICY, "ENCRYPT") as session:
            yield session

    @contextmanager
    def _session(self, kind: Any, *attributes: str) -> Iterator[Any]:
        t = self.library
        cipher = t.TPMT_SYM_DEF.parse("aes128cfb")
        session = self.esapi.start_auth_session(self.root_key, t.ESYS_TR.NONE, kind, cipher, t.TPM2_ALG.SHA256)
        with self.flushed(session):
            bits = t.TPMA_SESSION.CONTINUESESSION
            for name in attributes:
                bits |= getattr(t.TPMA_SESSION, name)
            self.esapi.trsess_set_attributes(session, bits)
            yield session

    @contextmanager
    def flushed(self, handle: Any) -> Iterator[Any]:
        """A session or object in the TPM, which has room for three of each; gone at the end."""
        try:
            yield handle
        finally:
            with suppress(self.library.TSS2_Exception):  # it is gone already, or the connection is
                self.esapi.flush_context(handle)
