"""Collateral over the network: Intel's provisioning service or a PCCS, API version 4.

Source: formats, section 4; Intel PCS API version 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from marblerun.attestation.collect.contents import read_contents
from marblerun.attestation.collect.http import BoundedClient, Reply
from marblerun.attestation.collect.responses import (
    IDENTITY_CHAIN,
    PCK_CERTIFICATE_CHAIN,
    PCK_CRL_CHAIN,
    TCB_INFO_CHAIN,
    cut_signed_text,
    decode_crl,
    issuer_chain,
    pem_certificate,
)
from marblerun.attestation.collect.settings import INTEL_PCS, CollateralSettings
from marblerun.attestation.collect.source import describe_key
from marblerun.attestation.model import Collateral, CollateralKey, PckQuery
from marblerun.errors import Malformed, MarbleRunError, Unavailable

_API: Final = "certification/v4"
_KEY_HEADER: Final = "Ocp-Apim-Subscription-Key"
_WHAT: Final = ("PCK CRL", "root CRL", "TCB Info", "QE identity")


class PccsSource:
    """One collateral service; four requests a fetch, side by side. Close it with :meth:`aclose`."""

    def __init__(self, settings: CollateralSettings) -> None:
        """Misconfigured if the settings cannot be used."""
        self._settings = settings
        self._client = BoundedClient(settings)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def fetch(self, key: CollateralKey) -> Collateral:
        """The collateral for ``key`` as the service has it now.

        Raises:
            Unavailable: a request failed; each one that did is named.
            Malformed: an answer is not what it should be, or speaks of another platform.
        """
        tee = key.tee.value
        base = self._settings.base
        update = {} if self._settings.update == "standard" else {"update": self._settings.update}
        pck_crl, root_crl, tcb_info, identity = await self._all(
            self._client.get(f"{base}/sgx/{_API}/pckcrl", {"ca": key.ca, "encoding": "der"}),
            self._client.get(self._settings.root_crl),
            self._client.get(f"{base}/{tee}/{_API}/tcb", {"fmspc": key.fmspc.hex(), **update}),
            self._client.get(f"{base}/{tee}/{_API}/qe/identity", update),
        )
        collateral = self._assemble(pck_crl, root_crl, tcb_info, identity)
        self._check_answers(collateral, key)
        return collateral

    async def fetch_pck(self, query: PckQuery) -> str:
        """The PCK certificate chain of the machine that ``query`` names, PEM: leaf, CA, root.

        A PCCS knows machines by their QE ID, and asks Intel by the encrypted PPID for those that it does not know;
        Intel's service takes the encrypted PPID alone, and wants a subscription key.

        Raises:
            Unavailable: the service does not have it, or cannot be asked.
            Malformed: the answer is not a certificate with its issuers.
        """
        service = f"collateral service {self._settings.base}: PCK certificate"
        parameters = {
            "cpusvn": query.cpusvn.hex(),
            "pcesvn": query.pce_svn.to_bytes(2, "little").hex(),
            "pceid": query.pce_id.hex(),
        }
        if query.encrypted_ppid:
            parameters["encrypted_ppid"] = query.encrypted_ppid.hex()
        if self._settings.base != INTEL_PCS:
            parameters["qeid"] = query.qe_id.hex()
        elif not (query.encrypted_ppid and self._settings.api_key):
            raise Unavailable(
                f"{service}: Intel's service gives one only for a PPID encrypted with RSA-3072 and to those who have a "
                "subscription key; name a PCCS (EDG_PCCS_URL) or a file with the key (EDG_PCS_API_KEY_FILE)"
            )
        headers = {_KEY_HEADER: self._settings.api_key} if self._settings.api_key else None
        try:
            reply = await self._client.get(f"{self._settings.base}/sgx/{_API}/pckcert", parameters, headers)
            return pem_certificate(reply.body) + issuer_chain(reply.headers, PCK_CERTIFICATE_CHAIN)
        except MarbleRunError as error:
            kind = Malformed if isinstance(error, Malformed) else Unavailable
            raise kind(f"{service}: {error}") from None

    async def _all(self, *requests: Awaitable[Reply]) -> list[Reply]:
        results = await asyncio.gather(*requests, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, MarbleRunError):
                raise result
        failures = [(what, r) for what, r in zip(_WHAT, results, strict=True) if isinstance(r, MarbleRunError)]
        if failures:
            parts: dict[str, list[str]] = {}
            for what, failure in failures:
                parts.setdefault(str(failure), []).append(what)
            text = "; ".join(f"{', '.join(whats)}: {failure}" for failure, whats in parts.items())
            kind = Malformed if any(isinstance(f, Malformed) for _, f in failures) else Unavailable
            raise kind(f"collateral service {self._settings.base}: {text}")
        return [result for result in results if isinstance(result, Reply)]

    def _assemble(self, pck_crl: Reply, root_crl: Reply, tcb_info: Reply, identity: Reply) -> Collateral:
        what = ""
        try:
            what = "PCK CRL"
            pck_crl_der, pck_chain = decode_crl(pck_crl.body), issuer_chain(pck_crl.headers, PCK_CRL_CHAIN)
            what = "root CRL"
            root_crl_der = decode_crl(root_crl.body)
            what = "TCB Info"
            tcb_text, tcb_signature = cut_signed_text(tcb_info.body, "tcbInfo")
            tcb_chain = issuer_chain(tcb_info.headers, TCB_INFO_CHAIN)
            what = "QE identity"
            qe_text, qe_signature = cut_signed_text(identity.body, "enclaveIdentity")
            qe_chain = issuer_chain(identity.headers, IDENTITY_CHAIN)
        except Malformed as error:
            raise Malformed(f"collateral service {self._settings.base}: {what} {error}") from None
        return Collateral(
            pck_crl_issuer_chain=pck_chain,
            root_ca_crl=root_crl_der,
            pck_crl=pck_crl_der,
            tcb_info_issuer_chain=tcb_chain,
            tcb_info=tcb_text,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=qe_chain,
            qe_identity=qe_text,
            qe_identity_signature=qe_signature,
        )

    def _check_answers(self, collateral: Collateral, key: CollateralKey) -> None:
        try:
            found = read_contents(collateral).key
        except Malformed as error:
            raise Malformed(f"collateral service {self._settings.base}: {error}") from None
        if found != key:
            raise Malformed(
                f"collateral service {self._settings.base} was asked for {describe_key(key)} "
                f"and answered for {describe_key(found)}"
            )
