"""Stand-ins for values that do not exist yet when templates are tried (protocol, section 5.8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from marblerun.manifest.templates.data import ReservedSecrets, TemplateData
from marblerun.secrets.model import Secret

STAND_IN: Final = b"A"
"""One byte 0x41."""


def stand_in(secret: Secret) -> Secret:
    """The secret with a stand-in for certificate, private and public part: one that a user will upload.

    On a full update symmetric keys are replaced by this too.
    """
    return replace(secret, certificate=STAND_IN, private=STAND_IN, public=STAND_IN)


def dry_run_reserved() -> ReservedSecrets:
    """``.MarbleRun`` with stand-ins in exactly the parts a template may use, so that a use of others is found."""
    certificate_only = Secret(type="", certificate=STAND_IN)
    return ReservedSecrets(
        root_ca=certificate_only,
        marble_cert=Secret(type="", certificate=STAND_IN, private=STAND_IN, public=STAND_IN),
        coordinator_root=certificate_only,
        coordinator_intermediate=certificate_only,
    )


def dry_run_data(secrets: Mapping[str, Secret]) -> TemplateData:
    """What templates are tried with: the given secrets, also as the previous ones, and stand-ins for the mesh's own.

    The caller has replaced what does not exist yet by :func:`stand_in`.
    """
    return TemplateData(marblerun=dry_run_reserved(), secrets=secrets, previous=secrets)
