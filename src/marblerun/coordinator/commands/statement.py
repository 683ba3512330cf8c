"""What a Coordinator states about itself beyond its quote: which deployment, and how far its history has come. Pure."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache

from marblerun.attestation.model import Origin
from marblerun.coordinator.state import State
from marblerun.coordinator.store.lineage import Mark
from marblerun.wire import gojson

VERSION = 1


def statement_text(state: State, latest: Mark, evidence: Origin, nonce: bytes) -> bytes:
    """The statement as JSON, byte for byte what a quote over it covers.

    Begins with ``{``, which no certificate does, so it cannot be taken for what other quotes cover. Fingerprint and
    log hash are empty without a manifest; sequence 0 means that nothing is stored.
    """
    deployment = state.deployment
    fields = (
        ("statement", VERSION),
        ("state", int(state.phase)),
        ("rootCertificate", state.authority.root_pem.decode("ascii")),
        ("manifestFingerprint", _sha256(deployment.manifest) if deployment else ""),
        ("updateLogHash", _sha256(state.update_log) if deployment else ""),
        ("sequence", latest.sequence),
        ("head", latest.head.hex()),
        ("provenance", state.provenance.fields()),
        ("evidence", evidence.value),
        ("nonce", base64.b64encode(nonce).decode("ascii")),
    )
    return gojson.marshal(gojson.Struct(fields))


@lru_cache(maxsize=4)
def _sha256(content: bytes | str) -> str:
    """Of megabytes, for anybody who asks: once for each value."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
