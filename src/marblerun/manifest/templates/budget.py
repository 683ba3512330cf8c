"""What a template may cost, and how its mistakes are reported."""

from __future__ import annotations

from typing import Final

from marblerun.errors import Malformed
from marblerun.wire.limits import MAX_TEMPLATE_OUTPUT_BYTES, MAX_TEMPLATE_STEPS

# A template is a list of tokens before it is anything else; real ones have dozens. Comments and escape sequences in
# constants are counted alike.
MAX_TEMPLATE_TOKENS: Final = 50_000
# Blocks and calls are kept on our own stack, parentheses on Python's, which holds about a thousand frames.
MAX_BLOCK_DEPTH: Final = 1_000
MAX_EXPRESSION_DEPTH: Final = 50
# A variable is looked up by going through those in scope.
MAX_VARIABLES: Final = 1_000
# Go stops at 100000 (text/template, exec.go); a recursion that ends by itself is far below this.
MAX_CALL_DEPTH: Final = 10_000
# Prices, in steps of less than a microsecond each, so that a million of them pass in about a second: a node or command,
# what a function call or a verb of printf adds, reading a certificate, and how many bytes are made, or looked at one by
# one, in the time of a step.
NODE_STEPS: Final = 2
CALL_STEPS: Final = 6
CERTIFICATE_STEPS: Final = 40
BYTES_PER_STEP: Final = 64
CHARACTERS_PER_STEP: Final = 3


class TemplateFailure(Malformed):
    """What is wrong with a template, before its name and line are known; never leaves this package."""

    def __init__(self, message: str, *, position: int = -1) -> None:
        super().__init__(message)
        self.position = position


class Budget:
    """Steps and output bytes that are left; one may be shared by all templates of a request.

    Intermediate texts are charged too: doubling a variable forty times is forty steps and a terabyte.
    """

    __slots__ = ("_output", "_steps", "max_output", "max_steps")

    def __init__(self, *, steps: int = MAX_TEMPLATE_STEPS, output: int = MAX_TEMPLATE_OUTPUT_BYTES) -> None:
        self.max_steps = steps
        self.max_output = output
        self._steps = steps
        self._output = output

    @property
    def spent(self) -> int:
        """Steps taken so far."""
        return self.max_steps - self._steps

    def step(self, count: int = 1) -> None:
        """Take ``count`` steps; :class:`TemplateFailure` when none are left."""
        self._steps -= count
        if self._steps < 0:
            raise TemplateFailure(f"the template needs more than {self.max_steps} steps")

    def text(self, size: int) -> None:
        """Pay for making or reading an intermediate text of ``size`` bytes."""
        self.check_size(size)
        self.step(size // BYTES_PER_STEP)

    def check_size(self, size: int) -> None:
        """Refuse a text that is longer than all output may be."""
        if size > self.max_output:
            raise TemplateFailure(f"the template makes a text of more than {self.max_output} bytes")

    def emit(self, size: int) -> None:
        """Pay for ``size`` bytes of output; :class:`TemplateFailure` when the ceiling is reached."""
        self._output -= size
        if self._output < 0:
            raise TemplateFailure(f"the template prints more than {self.max_output} bytes")
