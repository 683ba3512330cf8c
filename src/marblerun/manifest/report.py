"""Findings about a manifest, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from marblerun.errors import Malformed

_TOLD_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: where, what, what was found and expected, what to do. ``code`` is stable."""

    path: str
    message: str
    found: str = ""
    expected: str = ""
    hint: str = ""
    code: str = ""
    warning: bool = False
    """Worth knowing, but accepted."""

    def __str__(self) -> str:
        text = self.message
        if self.found or self.expected:
            parts = [f"found {self.found}" if self.found else "", f"expected {self.expected}" if self.expected else ""]
            text += f" ({', '.join(part for part in parts if part)})"
        return f"{text} [{self.path}]" if self.path else text


class BadManifest(Malformed):
    """A manifest that reads well and makes no sense: ``problems`` lists every error, the message tells them all."""

    code = "bad-manifest"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        told = "; ".join(str(problem) for problem in problems[:_TOLD_AT_ONCE])
        if len(problems) > _TOLD_AT_ONCE:
            told += f"; and {len(problems) - _TOLD_AT_ONCE} more"
        super().__init__(told)
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Report:
    """Everything found, in the order in which it was looked for."""

    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Report:
        """The report of a sequence of findings."""
        listed = tuple(problems)
        return cls(
            tuple(problem for problem in listed if not problem.warning),
            tuple(problem for problem in listed if problem.warning),
        )

    def __add__(self, other: Report) -> Report:
        return Report(self.errors + other.errors, self.warnings + other.warnings)

    def raise_if_bad(self) -> None:
        """Raise :class:`BadManifest` (a Malformed) if there is any error; its message begins with the first one."""
        if self.errors:
            raise BadManifest(self.errors)
