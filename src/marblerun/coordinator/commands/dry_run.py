"""Trying every template of a deployment before it is kept, with stand-ins for what is not known yet (protocol, 5.8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from marblerun.coordinator.commands.activate import templates_of
from marblerun.coordinator.state import Deployment
from marblerun.errors import Malformed
from marblerun.manifest.templates import Budget, Template, TemplateData, dry_run_data, stand_in
from marblerun.manifest.templates.dry_run import STAND_IN
from marblerun.secrets.model import Secret, SecretType
from marblerun.wire import limits

# An author wants to see all mistakes, and a log line has an end.
MAX_ERRORS: Final = 50
_SHOWN_ERROR: Final = 300


def try_templates(
    deployment: Deployment, uploaded: Mapping[str, Secret] | None = None, *, lenient: bool = False
) -> None:
    """Execute all templates of all Marbles once; raises Malformed naming Marble and parameter of each that fails.

    Its place and the beginning of its message are the first failure's; up to ``MAX_ERRORS`` are told, fewer if the
    steps run out. User-defined secrets are stand-ins unless ``uploaded`` holds them. ``lenient`` gives symmetric keys
    a certificate: in a full update the reference replaces them by stand-ins too, so a template may name theirs. A
    Marble's templates have one budget together, as when it is activated, and all of them have one too.
    """
    secrets = {n: _shown(s, lenient=lenient) for n, s in deployment.secrets.items()}
    data = dry_run_data({**secrets, **(uploaded or {})})
    left = limits.MAX_DRY_RUN_STEPS
    failures: list[Malformed] = []
    for name in sorted(deployment.marbles):
        budget = Budget(steps=min(left, limits.MAX_TEMPLATE_STEPS))
        failures += islice(_failures(deployment, name, data, budget), MAX_ERRORS + 1 - len(failures))
        left -= budget.spent
        if len(failures) > MAX_ERRORS or budget.spent > budget.max_steps:
            break
    if failures:
        raise _all_of(failures)


def _failures(deployment: Deployment, name: str, data: TemplateData, budget: Budget) -> Iterator[Malformed]:
    path = f"Marbles.{name}.Parameters"
    unreadable: list[Malformed] = []
    templates = templates_of(deployment, name, unreadable)
    for error in unreadable:
        yield Malformed(error.message, where=f"{path}.{error.where}")
    for kind, contents in (("Files", templates.files), ("Env", templates.env)):
        for parameter in sorted(contents):
            content = contents[parameter]
            where = f"{path}.{kind}[{parameter}]"
            if isinstance(content, Template):
                try:
                    content.execute(data, budget=budget)
                except Malformed as error:
                    yield Malformed(str(error), where=where)
                if budget.spent > budget.max_steps:
                    return  # no step is left for the others
            elif kind == "Env" and b"\0" in content:
                yield Malformed("the value of an environment variable contains a NUL byte", where=where)


def _all_of(failures: Sequence[Malformed]) -> Malformed:
    first, *others = failures
    told = [first.message, *(str(error)[:_SHOWN_ERROR] for error in others[: MAX_ERRORS - 1])]
    if len(failures) > MAX_ERRORS:
        told.append("and more")
    return Malformed("; ".join(told), where=first.where)


def _shown(secret: Secret, *, lenient: bool) -> Secret:
    if secret.user_defined:
        return stand_in(secret)
    if lenient and secret.type == SecretType.SYMMETRIC_KEY:
        return replace(secret, certificate=STAND_IN)
    return secret
