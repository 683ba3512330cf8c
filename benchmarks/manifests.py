"""The manifests that the rows run on."""

from __future__ import annotations

from typing import Any

from marblerun.cli.demo.manifest import enclave

PRODUCT = 21
"""Of the enclave that all Marbles here claim to be."""


def package() -> dict[str, Any]:
    """The one package of all Marbles."""
    identity = enclave(PRODUCT)
    return {
        "SignerID": identity["EDG_SIMULATED_SIGNER_ID"],
        "ProductID": PRODUCT,
        "SecurityVersion": int(identity["EDG_SIMULATED_SECURITY_VERSION"]),
    }


def parameters() -> dict[str, Any]:
    """As they usually are: variables and files, two symmetric secrets, one ECDSA certificate."""
    return {
        "Env": {"KEY_A": "{{ hex .Secrets.key_a }}", "MODE": "production", "KEY_B": "{{ base64 .Secrets.key_b }}"},
        "Files": {
            "/tls/cert.pem": "{{ pem .Secrets.cert.Cert }}",
            "/tls/key.pem": "{{ pem .Secrets.cert.Private }}",
            "/config.json": '{"listen": "0.0.0.0:8080"}',
        },
        "Argv": ["./service"],
    }


def typical(*, unused_secrets: int = 0, other_marbles: int = 0, max_activations: int = 0) -> dict[str, Any]:
    """The Marble ``service``, and what else is in its mesh."""
    secrets: dict[str, Any] = {
        "key_a": {"Type": "symmetric-key", "Size": 256},
        "key_b": {"Type": "symmetric-key", "Size": 128, "Shared": True},
        "cert": {"Type": "cert-ecdsa", "Size": 256},
    }
    secrets |= {f"unused_{n}": {"Type": "symmetric-key", "Size": 256} for n in range(unused_secrets)}
    marbles = {
        "service": {"Package": "service", "MaxActivations": max_activations, "Parameters": parameters()},
        "plain": {"Package": "service"},
    }
    marbles |= {f"other_{n}": {"Package": "service", "Parameters": parameters()} for n in range(other_marbles)}
    return {"Packages": {"service": package()}, "Marbles": marbles, "Secrets": secrets}


def with_rsa(secrets: int = 1) -> dict[str, Any]:
    """The typical mesh and a Marble ``rsa`` that gets certificates with private RSA keys, made for each start of it."""
    manifest = typical()
    names = [f"rsa_{n}" for n in range(secrets)]
    manifest["Secrets"] |= {name: {"Type": "cert-rsa", "Size": 3072} for name in names}
    files = {f"/{name}.pem": f"{{{{ pem .Secrets.{name}.Private }}}}" for name in names}
    manifest["Marbles"]["rsa"] = {"Package": "service", "Parameters": {"Files": files}}
    return manifest
