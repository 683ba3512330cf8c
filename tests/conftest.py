"""What holds for all tests: made-up inputs are the same in every run, and what was not tested is said at its end."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from tests.vectors import EXPECTED_DCAP_VECTORS, vectors_directory

# A change is to be judged by what it changed: every run tries the same examples, takes none from earlier runs, and
# fails nothing for being slow. New examples are for ``make fuzz``, or for ``--hypothesis-profile=default``.
settings.register_profile(
    "same", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line that cannot be overlooked; silent where the vectors are there."""
    if vectors_directory() is None:
        terminalreporter.write_sep(
            "!", f"NO VECTORS: {EXPECTED_DCAP_VECTORS} recorded quotes were NOT tested; set MARBLERUN_VECTORS", red=True
        )
