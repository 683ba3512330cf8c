"""Does a certificate chain to a root we trust? Decided as Go's default verifier decides for certificates of this kind.

Tolerant where the reference's certificates need it: CA certificates carry extended key usages, leaves lack a subject
key id, non-CA certificates may assert keyCertSign, lifetimes pass the year 2300, and the Marble type extension is not
DER. Strict in everything else; a critical extension that is not understood refuses the chain.
Source: RFC 5280, section 6; Go ``crypto/x509`` (Certificate.Verify); protocol, section 16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from marblerun.errors import Malformed, Untrusted
from marblerun.pki import extensions as ext
from marblerun.pki.constraints import verify_name_constraints
from marblerun.pki.parsed import ParsedCertificate, parse_certificate
from marblerun.pki.profiles import IpAddress, parse_ip
from marblerun.pki.signatures import load_public_key, verify_signature

# What a peer may send; a chain of ours has two certificates below the root.
MAX_INTERMEDIATES: Final = 16
# Bounds the search however the intermediates are crafted; Go's number.
MAX_SIGNATURE_CHECKS: Final = 100

SERVER_AUTH: Final = ext.EXTENDED_KEY_USAGES[ext.SERVER_AUTH]
CLIENT_AUTH: Final = ext.EXTENDED_KEY_USAGES[ext.CLIENT_AUTH]
ANY_USAGE: Final = ext.EXTENDED_KEY_USAGES[ext.ANY_USAGE]

_UNDERSTOOD: Final = frozenset(
    (
        ext.SUBJECT_KEY_ID,
        ext.KEY_USAGE,
        ext.SUBJECT_ALT_NAME,
        ext.BASIC_CONSTRAINTS,
        ext.NAME_CONSTRAINTS,
        ext.CRL_DISTRIBUTION_POINTS,
        ext.CERTIFICATE_POLICIES,
        ext.AUTHORITY_KEY_ID,
        ext.EXTENDED_KEY_USAGE,
    )
)


def verify_chain(
    leaf: bytes,
    intermediates: Sequence[bytes],
    roots: Sequence[bytes],
    *,
    at: datetime,
    usage: str = SERVER_AUTH,
) -> tuple[bytes, ...]:
    """The chain from ``leaf`` to one of ``roots`` (all DER), leaf and root included.

    ``Malformed`` if a certificate cannot be read. Steps, each ``Untrusted`` when it fails:

    1. ``leaf-validity``: the leaf is valid at ``at`` and has no critical extension that is not understood.
    2. ``issuer``: a path of issuers leads to a root; each issuer's name is what the certificate says, it is a CA that
       may sign certificates, the path below it is not longer than it allows, and it is valid itself.
    3. ``chain-signature``: each certificate is signed with its issuer's key, and not with SHA-1.
    4. ``chain-usage``: every certificate that limits its extended key usage allows ``usage``.
    5. ``name-constraints``: the leaf's names keep to the constraints of every CA above it.

    A leaf that is itself one of the roots is its own chain. Without roots nothing is trusted. With several paths the
    first that passes is returned, else the failure of the first one tried is raised.
    """
    if len(intermediates) > MAX_INTERMEDIATES:
        raise Untrusted(f"more than {MAX_INTERMEDIATES} intermediate certificates", step="issuer", reason="too-many")
    end = parse_certificate(leaf)
    anchors = [parse_certificate(root) for root in roots]
    between = [parse_certificate(certificate) for certificate in intermediates]
    # 1
    _verify_valid(end, at, step="leaf-validity")
    search = _Search(anchors, between, at)
    paths = iter([(end,)]) if any(end.der == anchor.der for anchor in anchors) else search.paths((end,))
    for path in paths:
        try:
            # 4
            _verify_usage(path, usage)
            # 5
            verify_name_constraints(path)
        except (Untrusted, Malformed) as error:
            search.failures.append(error)
            continue
        return tuple(certificate.der for certificate in path)
    # 2, 3
    raise (
        search.failures[0]
        if search.failures
        else Untrusted("no trusted certificate issued it", step="issuer", reason="unknown-issuer")
    )


class _Search:
    """Depth-first search for paths to a root, with one budget of signature checks."""

    def __init__(self, roots: list[ParsedCertificate], between: list[ParsedCertificate], at: datetime) -> None:
        self._roots = roots
        self._between = between
        self._at = at
        self._budget = MAX_SIGNATURE_CHECKS
        self.failures: list[Untrusted | Malformed] = []

    def paths(self, path: tuple[ParsedCertificate, ...]) -> Iterator[tuple[ParsedCertificate, ...]]:
        """Every path that begins with ``path`` and ends at a root."""
        for candidates, at_root in ((self._roots, True), (self._between, False)):
            for issuer in candidates:
                if issuer.subject != path[-1].issuer or _is_repeated(issuer, path):
                    continue
                self._budget -= 1
                if self._budget < 0:
                    self.failures.insert(0, Untrusted("too many possible paths", step="issuer", reason="too-many"))
                    return
                try:
                    _verify_issuer(issuer, path, self._at)
                except (Untrusted, Malformed) as error:
                    self.failures.append(error)
                    continue
                if at_root:
                    yield (*path, issuer)
                else:
                    yield from self.paths((*path, issuer))


def _is_repeated(issuer: ParsedCertificate, path: tuple[ParsedCertificate, ...]) -> bool:
    """Whether the same name and key are in the path already, in the same or another certificate."""
    return any(
        (issuer.subject, issuer.public_key, issuer.alt_names) == (found.subject, found.public_key, found.alt_names)
        for found in path
    )


def _verify_valid(certificate: ParsedCertificate, at: datetime, *, step: str) -> None:
    if not certificate.not_before <= at <= certificate.not_after:
        reason = "expired" if at > certificate.not_after else "not-yet-valid"
        times = f"{certificate.not_before:%Y-%m-%d %H:%M:%S} to {certificate.not_after:%Y-%m-%d %H:%M:%S} UTC"
        raise Untrusted(f"a certificate is only valid from {times}", step=step, reason=reason)
    for extension in certificate.extensions.values():
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise Untrusted(
                f"critical extension {extension.oid} is not understood", step=step, reason="unknown-extension"
            )


def _verify_issuer(issuer: ParsedCertificate, path: tuple[ParsedCertificate, ...], at: datetime) -> None:
    is_ca, path_length = issuer.basic_constraints or (False, None)
    if not is_ca:
        raise Untrusted("a certificate above the leaf is not a CA's", step="issuer", reason="not-a-ca")
    if issuer.key_usage and not issuer.key_usage & ext.CERT_SIGN:
        raise Untrusted("a CA's key is not for signing certificates", step="issuer", reason="bad-usage")
    if path_length is not None and len(path) - 1 > path_length:
        raise Untrusted("the path is longer than a CA allows", step="issuer", reason="path-too-long")
    _verify_valid(issuer, at, step="issuer")
    child = path[-1]
    key = load_public_key(issuer.public_key)
    verify_signature(child.signature_algorithm, key, child.tbs, child.signature, step="chain-signature")


def _verify_usage(path: tuple[ParsedCertificate, ...], usage: str) -> None:
    for certificate in path:
        allowed = certificate.extended_key_usage
        if usage != ANY_USAGE and allowed and usage not in allowed and ANY_USAGE not in allowed:
            raise Untrusted("a certificate is not for this use", step="chain-usage", reason="bad-usage")


def verify_host(leaf: bytes, host: str) -> None:
    """Return if ``leaf`` (DER) is for ``host``, a DNS name or IP address; else ``Untrusted`` (step ``host``).

    Addresses match only addresses. Names match label by label, ignoring ASCII case; a lone asterisk as first label of
    the certificate's name stands for exactly one label. The common name does not count.
    """
    names = parse_certificate(leaf).alt_names
    address = parse_ip(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    if not _is_named(names.dns_names, names.ip_addresses, host, address):
        raise Untrusted(f"the certificate is not for {host[:253]!r}", step="host", reason="mismatch")


def _is_named(names: Sequence[str], addresses: Sequence[IpAddress], host: str, address: IpAddress | None) -> bool:
    if address is not None:
        return address in addresses
    wanted = host.removesuffix(".").lower().split(".")
    # Only ASCII has one lower case; anything else could be folded into a name that is not meant.
    return host.isascii() and all(wanted) and any(_labels_match(name.lower().split("."), wanted) for name in names)


def _labels_match(pattern: list[str], wanted: list[str]) -> bool:
    if len(pattern) != len(wanted):
        return False
    first = pattern[0] == wanted[0] or (pattern[0] == "*" and len(pattern) > 1)
    return first and pattern[1:] == wanted[1:]
