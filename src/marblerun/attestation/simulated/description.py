"""``platform.json``: which machine a simulated platform is, and what its TCB Info says of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from marblerun.attestation.model import Platform, TcbStatus
from marblerun.errors import Malformed

DESCRIPTION_FILE: Final = "platform.json"
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Description:
    """What the certificates do not say in a convenient way, and what the collateral shall say."""

    platform: Platform
    tcb_status: TcbStatus
    advisories: tuple[str, ...]


def encode_description(description: Description, created: datetime) -> bytes:
    """The file's content; ``created`` is for people."""
    platform = description.platform
    document = {
        "format": _FORMAT,
        "created": created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "fmspc": platform.fmspc.hex(),
        "pce_id": platform.pce_id.hex(),
        "pce_svn": platform.pce_svn,
        "cpu_svns": platform.cpu_svns.hex(),
        "ca": platform.ca,
        "ppid": platform.ppid.hex(),
        "platform_instance_id": platform.platform_instance_id.hex() if platform.platform_instance_id else None,
        "sgx_type": platform.sgx_type,
        "dynamic_platform": platform.dynamic_platform,
        "cached_keys": platform.cached_keys,
        "smt_enabled": platform.smt_enabled,
        "tcb_status": description.tcb_status.value,
        "advisories": list(description.advisories),
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def parse_description(data: bytes) -> Description:
    """The inverse of :func:`encode_description`.

    Raises:
        Malformed: it is something else, or of a format we do not know.
    """
    try:
        document = json.loads(data)
        if document["format"] != _FORMAT:
            raise Malformed(f"format {document['format']!r} is not known", where=DESCRIPTION_FILE)
        instance = document["platform_instance_id"]
        platform = Platform(
            fmspc=bytes.fromhex(document["fmspc"]),
            pce_id=bytes.fromhex(document["pce_id"]),
            pce_svn=int(document["pce_svn"]),
            cpu_svns=bytes.fromhex(document["cpu_svns"]),
            ca=str(document["ca"]),
            ppid=bytes.fromhex(document["ppid"]),
            platform_instance_id=bytes.fromhex(instance) if instance else None,
            sgx_type=int(document["sgx_type"]),
            dynamic_platform=document["dynamic_platform"],
            cached_keys=document["cached_keys"],
            smt_enabled=document["smt_enabled"],
        )
        return Description(platform, TcbStatus(document["tcb_status"]), tuple(map(str, document["advisories"])))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Malformed(f"not a simulated platform's description: {error}", where=DESCRIPTION_FILE) from None
