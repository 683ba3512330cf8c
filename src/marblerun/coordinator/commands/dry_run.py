"""Trying every template of a deployment before it is kept, with stand-ins for what is not known yet (protocol, 5.8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from marblerun.coordinator.commands.activate import ActivationRefused, templates_of
from marblerun.coordinator.state import Deployment
from marblerun.errors import Malformed
from marblerun.manifest.templates import Budget, Template, TemplateData, dry_run_data, stand_in
from marblerun.manifest.templates.dry_run import STAND_IN
from marblerun.secrets.model import Secret, SecretType
from marblerun.wire import limits


def try_templates(
    deployment: Deployment, uploaded: Mapping[str, Secret] | None = None, *, lenient: bool = False
) -> None:
    """Execute all templates of all Marbles once; raises Malformed naming the Marble and the parameter.

    User-defined secrets are stand-ins unless ``uploaded`` holds them. ``lenient`` gives symmetric keys a certificate:
    in a full update the reference replaces them by stand-ins too, so a template may name theirs. A Marble's templates
    have one budget together, as when it is activated, and all of them have one too.
    """
    secrets = {n: _shown(s, lenient=lenient) for n, s in deployment.secrets.items()}
    data = dry_run_data({**secrets, **(uploaded or {})})
    left = limits.MAX_DRY_RUN_STEPS
    for name in sorted(deployment.marbles):
        budget = Budget(steps=min(left, limits.MAX_TEMPLATE_STEPS))
        path = f"Marbles.{name}.Parameters"
        try:
            templates = templates_of(deployment, name)
        except ActivationRefused as error:
            raise Malformed(error.message, where=path) from error
        for kind, contents in (("Files", templates.files), ("Env", templates.env)):
            for parameter in sorted(contents):
                content = contents[parameter]
                where = f"{path}.{kind}[{parameter}]"
                value = _try(content, where, data, budget) if isinstance(content, Template) else content
                if kind == "Env" and not isinstance(content, Template) and b"\0" in value:
                    raise Malformed("the value of an environment variable contains a NUL byte", where=where)
        left -= budget.spent


def _shown(secret: Secret, *, lenient: bool) -> Secret:
    if secret.user_defined:
        return stand_in(secret)
    if lenient and secret.type == SecretType.SYMMETRIC_KEY:
        return replace(secret, certificate=STAND_IN)
    return secret


def _try(template: Template, where: str, data: TemplateData, budget: Budget) -> bytes:
    try:
        return template.execute(data, budget=budget)
    except Malformed as error:
        raise Malformed(str(error), where=where) from error
