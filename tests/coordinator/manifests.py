"""Manifests that the tests of this folder set."""

from __future__ import annotations

import json
from typing import Any

from marblerun.attestation.simulated.identity import DEFAULT_SIGNER_ID

CANARY = "canary-5a1f0c77-do-not-log"


def encode(document: dict[str, Any]) -> bytes:
    """The bytes that are uploaded."""
    return json.dumps(document).encode()


def integration() -> dict[str, Any]:
    """A deployment with one of everything that an activation can give."""
    return {
        "Packages": {
            "shop": {"SignerID": DEFAULT_SIGNER_ID.hex(), "ProductID": 1, "SecurityVersion": 1},
            "debug": {"Debug": True},
        },
        "Marbles": {
            "frontend": {
                "Package": "shop",
                "Parameters": {
                    "Files": {
                        "/plain": "text",
                        "/base64": {"Encoding": "base64", "Data": "Zm9vAGJhcg=="},
                        "/hex": {"Encoding": "hex", "Data": "666f6f"},
                        "/raw": {"Encoding": "string", "NoTemplates": True, "Data": "{{ not a template }}"},
                        "/shared.key": "{{ raw .Secrets.sharedKey }}",
                    },
                    "Env": {
                        "SHARED": "{{ hex .Secrets.sharedKey }}",
                        "PRIVATE": "{{ hex .Secrets.privateKey }}",
                        "SHARED_CERT": "{{ pem .Secrets.sharedCert.Cert }}",
                        "PRIVATE_CERT": "{{ pem .Secrets.privateCert.Cert }}",
                        "PLAIN": CANARY,
                    },
                    "Argv": ["./shop", "--fast"],
                },
                "TLS": ["web", "api"],
            },
            "backend": {
                "Package": "shop",
                "Parameters": {
                    "Env": {
                        "PRIVATE": "{{ hex .Secrets.privateKey }}",
                        "SHARED_CERT": "{{ pem .Secrets.sharedCert.Cert }}",
                        "PRIVATE_CERT": "{{ pem .Secrets.privateCert.Cert }}",
                    }
                },
            },
            "unbound": {
                "Package": "shop",
                "DisableSecretBinding": True,
                "Parameters": {"Env": {"PRIVATE": "{{ hex .Secrets.privateKey }}"}},
            },
            "unboundToo": {
                "Package": "shop",
                "DisableSecretBinding": True,
                "Parameters": {"Env": {"PRIVATE": "{{ hex .Secrets.privateKey }}"}},
            },
            "once": {"Package": "shop", "MaxActivations": 1},
            "bare": {"Package": "shop"},
            "tlsOnly": {"Package": "shop", "Parameters": {}, "TLS": ["web"]},
            "debugger": {"Package": "debug"},
        },
        "Secrets": {
            "sharedKey": {"Type": "symmetric-key", "Size": 128, "Shared": True},
            "privateKey": {"Type": "symmetric-key", "Size": 256},
            "sharedCert": {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "ValidFor": 7},
            "privateCert": {"Type": "cert-ed25519", "ValidFor": 7},
        },
        "TLS": {
            "web": {
                "Outgoing": [{"Port": "8080", "Addr": "service.namespace"}],
                "Incoming": [{"Port": "8443"}, {"Port": "9443"}],
            },
            "api": {"Incoming": [{"Port": "8443", "Cert": "sharedCert", "DisableClientAuth": True}]},
        },
    }


def many(limit: int) -> dict[str, Any]:
    """One Marble type that may start ``limit`` times."""
    return {"Packages": {"p": {"Debug": True}}, "Marbles": {"m": {"Package": "p", "MaxActivations": limit}}}


INTEGRATION = encode(integration())
EMPTY_MARBLES = encode({"Packages": {}, "Marbles": {}})
