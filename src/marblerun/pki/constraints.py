"""Name constraints: which names a CA may vouch for. Source: RFC 5280, section 4.2.1.10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from marblerun.errors import Malformed, Untrusted
from marblerun.pki import der
from marblerun.pki import extensions as ext
from marblerun.pki.extensions import AltNames
from marblerun.pki.parsed import ParsedCertificate

_WHAT: Final = "name constraints"
_EMAIL = der.context(1, constructed=False)
_DNS = der.context(2, constructed=False)
_URI = der.context(6, constructed=False)
_IP = der.context(7, constructed=False)
_PERMITTED = der.context(0, constructed=True)
_EXCLUDED = der.context(1, constructed=True)
# More is a way to make every check slow; Go bounds the comparisons, we bound both factors.
_MAX_SUBTREES: Final = 512
_MAX_NAMES: Final = 512


def verify_name_constraints(path: Sequence[ParsedCertificate]) -> None:
    """Return if the leaf's alternative names keep to the constraints of every CA above it (``path[1:]``).

    ``Untrusted`` (step ``name-constraints``) if not. Names are constrained only within their kind; a constraint on
    e-mail addresses or URIs, which nobody uses between services, refuses a leaf that has names of that kind, and so
    does one of an unknown kind in a critical extension.
    """
    for certificate in path[1:]:
        found = certificate.extensions.get(ext.NAME_CONSTRAINTS)
        if found is not None:
            _verify_subtrees(found, path[0].alt_names)


def _verify_subtrees(found: ext.Extension, names: AltNames) -> None:
    permitted, excluded = _read_subtrees(found.value)
    if len(names.dns_names) + len(names.ip_addresses) > _MAX_NAMES:
        raise _refused("too many names to compare with constraints")
    kinds = {base.tag for base in (*permitted, *excluded)}
    unknown = kinds - {_DNS, _IP, _EMAIL, _URI}
    emails, uris = _EMAIL in kinds and names.email_addresses, _URI in kinds and names.uris
    if (unknown and found.critical) or emails or uris:
        raise _refused("a constraint of this kind is not supported")
    _verify_domains(permitted, excluded, [name.lower().encode() for name in names.dns_names])
    _verify_networks(permitted, excluded, [address.packed for address in names.ip_addresses])


def _read_subtrees(value: bytes) -> tuple[list[der.Element], list[der.Element]]:
    """The bases of the permitted and of the excluded subtrees, at least one in all."""
    bases: dict[int, list[der.Element]] = {}
    for group in der.children(der.single(value), der.SEQUENCE, _WHAT, limit=2):
        if group.tag not in (_PERMITTED, _EXCLUDED) or group.tag in bases:
            raise Malformed(f"{_WHAT}: not as X.509 defines them")
        entries = der.elements(group.content, limit=_MAX_SUBTREES)
        parts = [der.children(entry, der.SEQUENCE, _WHAT, limit=3) for entry in entries]
        bases[group.tag] = [found[0] for found in parts if found]
    if not any(bases.values()):
        raise Malformed(f"{_WHAT}: empty")
    return bases.get(_PERMITTED, []), bases.get(_EXCLUDED, [])


def _of_kind(kind: int, bases: Sequence[der.Element]) -> list[bytes]:
    return [base.content for base in bases if base.tag == kind]


def _verify_domains(permitted: Sequence[der.Element], excluded: Sequence[der.Element], names: Sequence[bytes]) -> None:
    allowed, refused = ([base.lower() for base in _of_kind(_DNS, bases)] for bases in (permitted, excluded))
    for name in names:
        # A wildcard is excluded as soon as one of the names it stands for is.
        parent = name.removeprefix(b"*.")
        covered = [base for base in refused if parent != name and _is_in_domain(base.removeprefix(b"."), parent)]
        if covered or any(_is_in_domain(name, base) for base in refused):
            raise _refused("a name is excluded by a CA")
        if allowed and not any(_is_in_domain(name, base) for base in allowed):
            raise _refused("a name is not among those a CA permits")


def _verify_networks(
    permitted: Sequence[der.Element], excluded: Sequence[der.Element], addresses: Sequence[bytes]
) -> None:
    allowed, refused = _of_kind(_IP, permitted), _of_kind(_IP, excluded)
    for address in addresses:
        if any(_is_in_network(address, base) for base in refused):
            raise _refused("an address is excluded by a CA")
        if allowed and not any(_is_in_network(address, base) for base in allowed):
            raise _refused("an address is not among those a CA permits")


def _refused(message: str) -> Untrusted:
    return Untrusted(message, step="name-constraints", reason="mismatch")


def _is_in_domain(name: bytes, base: bytes) -> bool:
    """Whether ``name`` is the domain or below it, label by label; a leading dot demands "below"."""
    if base.startswith(b"."):
        return name.endswith(base) and len(name) > len(base)
    return not base or name == base or name.endswith(b"." + base)


def _is_in_network(address: bytes, base: bytes) -> bool:
    """Whether the address is in the network; ``base`` is address and mask, so twice as long as an address."""
    size = len(base) // 2
    if len(base) not in (8, 32):
        raise Malformed(f"{_WHAT}: a network has 8 or 32 bytes")
    network, mask = int.from_bytes(base[:size]), int.from_bytes(base[size:])
    return len(address) == size and int.from_bytes(address) & mask == network & mask
