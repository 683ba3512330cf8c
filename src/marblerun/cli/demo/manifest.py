"""The demo's manifest: three packages, three services, one secret each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

SIGNER: Final = hashlib.sha256(b"the demo's vendor").hexdigest()
COORDINATOR_SIGNER: Final = hashlib.sha256(b"the demo's Coordinator vendor").hexdigest()
COORDINATOR_PRODUCT: Final = 3
COORDINATOR_VERSION: Final = 3
PRODUCTS: Final[Mapping[str, int]] = {"shop": 11, "orders": 12, "ledger": 13}
SECURITY_VERSION: Final = 2


def demo_manifest() -> dict[str, Any]:
    """The document as JSON values."""
    return {
        "Packages": {
            name: {"SignerID": SIGNER, "ProductID": product, "SecurityVersion": SECURITY_VERSION, "Debug": False}
            for name, product in PRODUCTS.items()
        },
        "Marbles": {
            "shop": {"Package": "shop"},
            "orders": {"Package": "orders"},
            "ledger": {
                "Package": "ledger",
                "Parameters": {
                    "Env": {"LEDGER_KEY": "{{ hex .Secrets.ledger_key }}"},
                    "Files": {"motd.txt": "This ledger's certificate was issued by:\n{{ pem .MarbleRun.RootCA.Cert }}"},
                },
            },
        },
        "Secrets": {"ledger_key": {"Type": "symmetric-key", "Size": 256}},
    }


def coordinator_policy() -> dict[str, Any]:
    """What the owner of the data expects of the Coordinator itself."""
    return {
        "SignerID": COORDINATOR_SIGNER,
        "ProductID": COORDINATOR_PRODUCT,
        "SecurityVersion": COORDINATOR_VERSION,
    }


def enclave(
    product: int, *, signer: str = SIGNER, version: int = SECURITY_VERSION, debug: bool = False
) -> dict[str, str]:
    """The variables that make a process report this identity on the simulated platform."""
    return {
        "EDG_SIMULATED_SIGNER_ID": signer,
        "EDG_SIMULATED_PRODUCT_ID": str(product),
        "EDG_SIMULATED_SECURITY_VERSION": str(version),
        "EDG_SIMULATED_DEBUG": "1" if debug else "0",
    }
