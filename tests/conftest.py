"""Says at the end of every run, in any verbosity, what was not tested because the recorded evidence is not there."""

from __future__ import annotations

import pytest
from tests.vectors import EXPECTED_DCAP_VECTORS, vectors_directory


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line that cannot be overlooked; silent where the vectors are there."""
    if vectors_directory() is None:
        terminalreporter.write_sep(
            "!", f"NO VECTORS: {EXPECTED_DCAP_VECTORS} recorded quotes were NOT tested; set MARBLERUN_VECTORS", red=True
        )
