"""A Marble's monotonic counter, with the credentials that the Coordinator put into its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from marblerun.client.api import Client
from marblerun.client.pinning import Credentials, PinnedRoot
from marblerun.errors import Malformed, Misconfigured

_CHAIN = "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"
_KEY = "MARBLE_PREDEFINED_PRIVATE_KEY"
_ROOT = "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"


def set_monotonic_counter(endpoint: str, name: str, value: int, environment: Mapping[str, str] | None = None) -> int:
    """Raises this Marble's counter ``name`` to ``value`` if that is more; its value before the call comes back.

    To be called inside a Marble. Needs the feature gate ``MonotonicCounter`` (cli-marble-k8s, section 2.1).

    Raises:
        Misconfigured: a variable that the Coordinator sets is missing.
    """
    variables = os.environ if environment is None else environment
    missing = [variable for variable in (_CHAIN, _KEY, _ROOT) if not variables.get(variable)]
    if missing:
        raise Misconfigured(f"{', '.join(missing)} must be set, as they are in a Marble")
    try:
        root = x509.load_pem_x509_certificate(variables[_ROOT].encode()).public_bytes(Encoding.DER)
    except ValueError:
        raise Malformed("is not a PEM certificate", where=_ROOT) from None
    credentials = Credentials(variables[_CHAIN].encode(), variables[_KEY].encode())
    with Client(endpoint, PinnedRoot(root), credentials=credentials) as client:
        return client.monotonic_counter(name, value)
