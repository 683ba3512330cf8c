"""What Marbles are started with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from marblerun.manifest.changes import difference, files_equal, tls_tags_equal
from marblerun.manifest.meaning.statement import Statement, Topic, other
from marblerun.manifest.model import File, Manifest

_RUN: Final = Topic.RUN


def running(old: Manifest, new: Manifest) -> Iterator[Statement]:
    """Files, environment, arguments and TLS of the Marbles that are in both manifests."""
    for name in sorted(old.marbles.keys() & new.marbles.keys()):
        before, after = old.marbles[name].parameters, new.marbles[name].parameters
        path = f"Marbles.{name}.Parameters"
        yield from _files(f"{path}.Files", "file", name, before.files, after.files)
        yield from _files(f"{path}.Env", "variable", name, before.env, after.env)
        if before.argv != after.argv:
            yield other(_RUN, f"{path}.Argv", f"Marble {name} is started with other arguments", name)
        yield from _tls(name, old, new)


def _files(path: str, kind: str, marble: str, old: Mapping[str, File], new: Mapping[str, File]) -> Iterator[Statement]:
    found = difference(old, new, files_equal)
    for verb, names in (
        ("gets the", found.added),
        ("does not get the", found.removed),
        ("gets another", found.changed),
    ):
        for name in names:
            yield other(_RUN, f"{path}.{name}", f"Marble {marble} {verb} {kind} {name}", marble)


def _tls(name: str, old: Manifest, new: Manifest) -> Iterator[Statement]:
    was, now = (
        {tag: manifest.tls[tag] for tag in manifest.marbles[name].tls if tag in manifest.tls} for manifest in (old, new)
    )
    found = difference(was, now, tls_tags_equal)
    for verb, names in (("has the", found.added), ("does not have the", found.removed), ("has another", found.changed)):
        for tag in names:
            yield other(_RUN, f"TLS.{tag}", f"Marble {name} {verb} TLS tag {tag}", name)
