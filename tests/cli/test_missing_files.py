"""A file that the user named and that is not there: one text and one exit code, whatever the command."""

from __future__ import annotations

import pytest
from tests.cli.session import Session
from tests.client.coordinators import FakeCoordinator

ERA = ("--era-config", "era.json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("manifest", "set", "missing", "@", *ERA),
        ("manifest", "verify", "missing", "@", *ERA),
        ("manifest", "lint", "missing"),
        ("status", "@", "--era-config", "missing"),
        ("secret", "get", "s", "@", "--cert", "missing", "--key", "k.pem", *ERA),
        ("secret", "get", "s", "@", "--cert", "c.pem", "--key", "missing", *ERA),
        ("secret", "set", "missing", "@", "--cert", "c.pem", "--key", "k.pem", *ERA),
        ("recover", "missing", "@", "-k", "recovery.pem", *ERA),
        ("recover", "secret.bin", "@", "-k", "missing", *ERA),
        ("recover", "secret.bin", "@", "-k", "recovery.pem", "--manifest", "missing", *ERA),
        ("recover-with-signature", "secret.bin", "@", "-s", "missing", *ERA),
        ("evidence", "inspect", "missing"),
        ("evidence", "verify", "missing", "--collateral", "m.json"),
        ("evidence", "verify", "m.json", "--collateral", "missing"),
        ("evidence", "verify", "m.json", "--collateral", "m.json", "--root-ca", "missing"),
        ("evidence", "collateral", "show", "missing"),
        ("state", "restore", "missing", "state"),
        ("simulator", "serve", "missing"),
        ("simulator", "serve", ".", "--tls-cert", "missing", "--tls-key", "k.pem"),
    ],
)
def test_a_missing_file_is_named_and_ends_with_code_8(
    session: Session, honest: FakeCoordinator, arguments: tuple[str, ...]
) -> None:
    session.cache(honest.root)
    result = session.run(*(honest.endpoint if word == "@" else word for word in arguments))
    assert (result.exit_code, "there is no" in result.stderr, "missing" in result.stderr) == (8, True, True), (
        result.stderr
    )
