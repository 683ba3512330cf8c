"""Templates of a manifest: Go's text/template over secrets, in pure Python.

``compile_template`` once, ``Template.execute`` for every activation. What a template prints is bytes; a value never
becomes template text again.
"""

from marblerun.manifest.templates.budget import Budget
from marblerun.manifest.templates.data import ReservedSecrets, TemplateData
from marblerun.manifest.templates.dry_run import dry_run_data, dry_run_reserved, stand_in
from marblerun.manifest.templates.functions import ENV_FUNCTIONS, FILE_FUNCTIONS, FunctionSet
from marblerun.manifest.templates.references import References
from marblerun.manifest.templates.template import Template, compile_template

__all__ = [
    "ENV_FUNCTIONS",
    "FILE_FUNCTIONS",
    "Budget",
    "FunctionSet",
    "References",
    "ReservedSecrets",
    "Template",
    "TemplateData",
    "compile_template",
    "dry_run_data",
    "dry_run_reserved",
    "stand_in",
]
