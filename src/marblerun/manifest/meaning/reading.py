"""Who may read which secret: Marbles through their templates and TLS tags, users through their roles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from marblerun.errors import Malformed
from marblerun.manifest.changes import definitions_equal
from marblerun.manifest.meaning.statement import Statement, Topic, came_and_went, gain, loss, other
from marblerun.manifest.model import Manifest, Marble
from marblerun.manifest.templates import ENV_FUNCTIONS, FILE_FUNCTIONS, compile_template

_READ: Final = Topic.READ
_VALUES: Final = Topic.SECRETS


def secrets_read(marble: Marble, manifest: Manifest) -> frozenset[str]:
    """The secrets that a Marble can read, at most: all of them where a template asks for computed names.

    A template that cannot be compiled reads nothing, since no Coordinator takes it.
    """
    found: set[str] = set()
    for files, functions in ((marble.parameters.files, FILE_FUNCTIONS), (marble.parameters.env, ENV_FUNCTIONS)):
        for file in files.values():
            if file.no_templates:
                continue
            try:
                references = compile_template(file.data, functions).references()
            except Malformed:
                continue
            if references.dynamic:
                return frozenset(manifest.secrets)
            found |= references.secrets | references.previous
    for tag in {tag for tag in marble.tls if tag in manifest.tls}:
        found |= {entry.cert for entry in manifest.tls[tag].incoming}
    return frozenset(found & manifest.secrets.keys())


def reading(old: Manifest, new: Manifest) -> Iterator[Statement]:
    """What Marbles read."""
    for name in sorted(old.marbles.keys() | new.marbles.keys()):
        before, after = old.marbles.get(name), new.marbles.get(name)
        was = secrets_read(before, old) if before else frozenset()
        now = secrets_read(after, new) if after else frozenset()
        gained, lost = f"Marble {name} reads the secret {{}}", f"Marble {name} does not read the secret {{}} any more"
        still_there = (name,) if before and after else ()
        yield from came_and_went(_READ, f"Marbles.{name}.Parameters", was, now, gained, lost, *still_there)
        if before and after and before.disable_secret_binding != after.disable_secret_binding:
            where = f"Marbles.{name}.DisableSecretBinding"
            if after.disable_secret_binding:
                text = f"Marble {name} shares its private secrets with other unbound Marbles of the same UUID"
                yield gain(_READ, where, text, name)
            else:
                yield loss(_READ, where, f"private secrets of Marble {name} are bound to its type", name)


def secrets(old: Manifest, new: Manifest) -> Iterator[Statement]:
    """What becomes of the values themselves."""
    for name in sorted(old.secrets.keys() | new.secrets.keys()):
        path = f"Secrets.{name}"
        before, after = old.secrets.get(name), new.secrets.get(name)
        if after is None:
            yield other(_VALUES, path, f"the secret {name} is deleted with its value")
        elif before is None:
            how = "is uploaded by users" if after.user_defined else "is generated"
            yield other(_VALUES, path, f"there is a new secret {name} ({after.type}), which {how}")
        elif not definitions_equal(before, after):
            how = "must be uploaded again" if after.user_defined else "gets a new value"
            yield other(_VALUES, path, f"the secret {name} is defined anew: its value is lost and it {how}")
        elif (before.template, before.certificate) != (after.template, after.certificate):
            yield other(_VALUES, f"{path}.Cert", f"the certificate {name} will state something else")
    if new.config.rotate_root_secret:
        text = "a new root secret: every generated secret that is not user-defined gets a new value with this update"
        yield other(_VALUES, "Config.RotateRootSecret", text, *sorted(old.marbles.keys() & new.marbles.keys()))
