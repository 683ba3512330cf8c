"""The linter's rules: what each is called, how serious it is, and why. The documentation is made from this table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple


class Severity(StrEnum):
    """How serious a finding is; the words are SARIF's."""

    ERROR = "error"
    """A Coordinator refuses the manifest."""
    WARNING = "warning"
    """Accepted, and probably not what was meant, or dangerous."""
    NOTE = "note"
    """Worth knowing."""


class Rule(NamedTuple):
    """One rule."""

    severity: Severity
    why: str


def _rules(severity: Severity, table: Mapping[str, str]) -> dict[str, Rule]:
    return {name: Rule(severity, why) for name, why in table.items()}


RULES: Final[Mapping[str, Rule]] = {
    **_rules(
        Severity.ERROR,
        {
            "json": "The text is not JSON, or a value has the wrong type.",
            "packages-missing": "A manifest without packages admits nobody.",
            "marbles-missing": "A manifest without Marbles starts nothing.",
            "package-undefined": "A Marble names a package that is not defined.",
            "package-ambiguous": "UniqueID names one build, the other values a family of builds.",
            "package-incomplete": "Without SignerID, ProductID and SecurityVersion (or MRTD) anything could run.",
            "allowed-dns-name": "AllowedDNSNames holds DNS names, with an asterisk at most as the whole first label.",
            "allowed-ip": "AllowedIPs holds IP addresses and networks.",
            "tdx-identity": "A value of TDX is not one that a TD can have.",
            "infrastructure-id": "An entry of a platform list is not one that a platform can have.",
            "tls-tag-undefined": "A Marble names a TLS tag that is not defined.",
            "tls-entry-incomplete": "A TLS entry without port or address protects nothing.",
            "tls-cert-undefined": "A TLS entry names a secret that is not defined.",
            "tls-client-auth": "A certificate of its own is for clients outside the mesh, which cannot authenticate.",
            "user-certificate-missing": "A user is known by a certificate.",
            "user-certificate": "The certificate of a user cannot be read.",
            "user-certificate-shared": "Two users with one certificate cannot be told apart.",
            "role-undefined": "A user has a role that is not defined.",
            "role-type": "A role is about Packages, Secrets or the Manifest.",
            "role-names": "A role of type Manifest names no resources.",
            "role-action": "The resource type of a role does not have this action.",
            "role-resource-undefined": "A role names a resource that is not defined.",
            "role-write": "Only user-defined secrets can be written.",
            "role-read": "Only shared and user-defined secrets can be read.",
            "secret-type": "The type of a secret is unknown.",
            "secret-size": "A secret of this type cannot have this size.",
            "secret-plain": "Plain secrets are uploaded, not generated.",
            "secret-validity": "The end of a certificate's validity is given twice or too far away.",
            "secret-template": "No certificate can be made from this Cert.",
            "recovery-key": "A recovery key is an RSA public key in PEM.",
            "update-threshold": "More acknowledgments are needed than there are users who can give them.",
            "recovery-threshold": "More keys are needed than there are.",
            "recovery-threshold-one": "A threshold of one would let every key holder recover alone.",
            "seal-mode": "The seal mode is unknown.",
            "feature-gate": "The feature gate is unknown.",
            "feature-gate-environment": "The Coordinator's environment lacks what the feature gate needs.",
            "template-invalid": "A template cannot be compiled.",
            "reference-undefined": "A template refers to a secret that is not defined.",
        },
    ),
    **_rules(
        Severity.WARNING,
        {
            "key-unknown": "Unknown keys are ignored: what they were meant to say is not said.",
            "key-misplaced": "The key exists, but elsewhere; here it is ignored.",
            "key-duplicate": "Of two equal keys the later one counts, or both are merged; it depends on the value.",
            "yaml-boolean": "YAML reads y, n, yes, no, on and off without quotes as true and false, also as names.",
            "not-utf8": "Bytes that are not UTF-8 are replaced by a character of their own, each byte by one.",
            "cert-ignored": "A Cert that is not base64 is silently taken for none.",
            "placeholder": "A value was left to be filled in.",
            "debug-package": "The memory of a debug enclave can be read by the host: it protects no secret.",
            "identity-not-hex": "An enclave identity is 64 hex digits; anything else never matches.",
            "tdx-unmeasured": "MRTD covers a TD's firmware; kernel and command line are in RTMR1 and RTMR2.",
            "infrastructure-empty": "No platform can satisfy this infrastructure.",
            "infrastructure-any": "Every platform satisfies this infrastructure, so that none is excluded.",
            "no-minimum-version": "SecurityVersion 0 admits every old build, also those with known holes.",
            "single-updater": "One person alone can replace the manifest, and with it every rule.",
            "recovery-alone": "One person alone can recover the Coordinator's state.",
            "no-recovery-key": "If the host loses the key, for example through a new CPU, all secrets are lost.",
            "secret-across-signers": "Programs of different vendors get the same secret.",
            "unlimited-reader": "Whoever can start this Marble can do so any number of times, with secrets of users.",
            "wildcard-name": "A wildcard, or a network of all addresses, stands for servers nobody listed.",
            "weak-key": "The key is smaller than what is considered secure.",
            "sealing-disabled": "Nothing is kept across a restart of the Coordinator.",
        },
    ),
    **_rules(
        Severity.NOTE,
        {
            "key-case": "Other readers of JSON do not ignore the case of keys.",
            "key-ignored": "The Coordinator sets this itself.",
            "package-unused": "No Marble runs this package, and it is not checked either.",
            "secret-unused": "No Marble, TLS tag or role uses this secret.",
            "role-unused": "No user has this role.",
            "tls-unused": "No Marble has this TLS tag.",
            "user-idle": "A user without roles can do nothing.",
            "no-updater": "Nobody can update this manifest.",
            "names-unrestricted": "Without AllowedDNSNames and AllowedIPs a Marble may get a certificate for any name, "
            "also for that of another Marble.",
            "binding-disabled": "Marbles of different types with one UUID get the same private secrets.",
        },
    ),
}
