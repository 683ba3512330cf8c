"""The manifest as it is shown: with raised security versions merged in, and wrapped together with its signature."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from marblerun.errors import Malformed


def merge_updates(manifest: bytes, log: Sequence[str]) -> bytes:
    """The manifest with the security versions that package updates have raised since (cli-marble-k8s, section 1.8).

    What they had raised before this manifest came into force does not count any more: a full update says anew which
    versions are admitted. Its line of the log has the manifest's fingerprint and no user (protocol, section 7.10).
    Empty maps and nulls are dropped and the text is indented by four spaces, as the reference shows it.

    Raises:
        Malformed: manifest or log are not JSON.
    """
    document = _parse(manifest, "manifest")
    if not isinstance(document, dict):
        raise Malformed("is not a JSON object", where="manifest")
    fingerprint = hashlib.sha256(manifest).hexdigest()
    raised: dict[str, object] = {}
    for number, line in enumerate(log):
        entry = _parse(line.encode(), f"update log, line {number + 1}")
        if not isinstance(entry, dict):
            continue
        if entry.get("manifestFingerprint") == fingerprint and "user" not in entry:
            raised.clear()
        if "new version" in entry and isinstance(entry.get("package"), str):
            raised[entry["package"]] = entry["new version"]
    packages = document.get("Packages")
    for name, version in raised.items():
        package = packages.get(name) if isinstance(packages, dict) else None
        if isinstance(package, dict):
            package["SecurityVersion"] = version
    return json.dumps(_without_empty(document), indent=4, ensure_ascii=False).encode()


def with_signature(manifest: bytes, fingerprint: str) -> bytes:
    """An object with the manifest and its signature, indented by four spaces."""
    document = {"ManifestSignature": fingerprint, "Manifest": _parse(manifest, "manifest")}
    return json.dumps(document, indent=4, ensure_ascii=False).encode()


def _parse(text: bytes, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("is not JSON", where=where) from None


def _without_empty(value: object) -> object:
    """Without nulls and empty maps, also those that become empty by it."""
    if isinstance(value, dict):
        kept = {key: _without_empty(entry) for key, entry in value.items()}
        return {key: entry for key, entry in kept.items() if entry is not None and entry != {}}
    if isinstance(value, list):
        return [_without_empty(entry) for entry in value]
    return value
