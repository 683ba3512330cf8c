"""The CA's intermediate made anew, as at each update: what was issued before no longer counts (protocol, 3.2)."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.coordinator.commands import Inputs
from marblerun.coordinator.state import Authority
from marblerun.pki.issue import Issuer, issue_intermediate, issue_marble_root, names_of_ca


def renewed_authority(authority: Authority, inputs: Inputs) -> Authority:
    """The same root with a new intermediate and Marble root on a new key, for the root's names and addresses.

    The reference drops configured addresses at a package update (protocol, section 12.3, no. 30); here they stay.
    """
    names = names_of_ca(authority.root)
    root = Issuer.of(authority.root, authority.root_key)
    key = inputs.entropy.ec_key(ec.SECP384R1())
    return Authority(
        root=authority.root,
        root_key=authority.root_key,
        intermediate=issue_intermediate(names, key, root, inputs.at, inputs.entropy),
        intermediate_key=key,
        marble_root=issue_marble_root(names, key, inputs.at, inputs.entropy),
    )
