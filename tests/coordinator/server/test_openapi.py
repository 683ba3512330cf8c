"""The OpenAPI document: complete, shipped as it is served, and true of a live Coordinator."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.coordinator.manifests import encode
from tests.coordinator.people import ADMIN, ask, office, person
from tests.coordinator.running import Running, running

from marblerun.coordinator.server.client_api import TABLE
from marblerun.coordinator.server.described import DESCRIPTIONS
from marblerun.coordinator.server.openapi import openapi_bytes, openapi_document
from marblerun.coordinator.server.rest.route import Route

SHIPPED = Path(__file__).parents[3] / "docs" / "openapi.json"
REGENERATE = "run `python -m marblerun.coordinator.server.openapi > docs/openapi.json`"


@pytest.fixture(scope="module")
def up() -> Iterator[Running]:
    with running(manifest=encode(office({"admin": ADMIN}, FeatureGates=["SignQuoteEndpoint"]))) as started:
        yield started


def test_every_route_is_described_and_nothing_else() -> None:
    routed = {(method, path) for path, methods in TABLE.items() for method in methods}
    assert set(DESCRIPTIONS) == routed


def test_a_route_without_description_is_an_error_that_names_it() -> None:
    async def handle(*_: object) -> Any:
        raise AssertionError

    with pytest.raises(LookupError, match="GET /new"):
        openapi_document({"/new": {"GET": Route(handle)}})


def test_the_shipped_document_is_the_one_that_the_code_makes() -> None:
    assert SHIPPED.read_bytes() == openapi_bytes(TABLE), REGENERATE


def test_the_document_is_served(up: Running) -> None:
    answer = ask(up.client, "GET", "/api/v2/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.body == openapi_bytes(TABLE)


def test_who_may_call_is_what_the_routes_say() -> None:
    document = openapi_document(TABLE)
    for path, methods in TABLE.items():
        for method, route in methods.items():
            operation = document["paths"][path][method.lower()]
            found = [name for entry in operation.get("security", []) for name in entry]
            marble = ["marble"] if path == "/api/v2/monotonic-counter" else []
            assert found == (["user"] if route.operation is not None else marble), path
            assert ("401" in operation["responses"]) == bool(found), path
            assert operation.get("deprecated", False) == (not path.startswith("/api/v2/"))


def test_ids_are_unique_and_references_lead_somewhere() -> None:
    text = openapi_bytes(TABLE).decode()
    ids = re.findall(r'"operationId": "([^"]*)"', text)
    assert len(ids) == len(set(ids)) == sum(map(len, TABLE.values()))
    document = json.loads(text)
    for reference in set(re.findall(r'"\$ref": "#/([^"]*)"', text)):
        place: Any = document
        for step in reference.split("/"):
            place = place[step]
        assert place


def _live_cases(document: dict[str, Any]) -> list[Any]:
    try:
        import schemathesis
    except ImportError:
        pytest.skip("schemathesis is not installed: the document was not tried against a live Coordinator")
    schema: Any = schemathesis.openapi.from_dict(document)
    return [operation.ok() for operation in schema.get_all_operations()]


@pytest.mark.parametrize("as_user", [False, True])
def test_a_live_coordinator_answers_as_the_document_says(up: Running, tmp_path: Path, as_user: bool) -> None:
    """schemathesis: for made-up requests, status, content type and body of each answer are documented ones."""
    operations = _live_cases(openapi_document(TABLE))
    from schemathesis.checks import CHECKS

    wanted = ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
    checks = [CHECKS.get_one(name) for name in wanted]
    admin = person("admin")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_text(admin.pem)
    key.write_text(admin.key_pem)
    shown = {"cert": (str(certificate), str(key))} if as_user else {}
    base = f"https://{up.client[0]}:{up.client[1]}"
    tried = 0

    def run(operation: Any) -> None:
        @settings(max_examples=3, deadline=None, derandomize=True, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=operation.as_strategy())
        def try_case(case: Any) -> None:
            nonlocal tried
            tried += 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # urllib3 about certificates
                response = case.call(base_url=base, verify=False, timeout=60, **shown)
            case.validate_response(response, checks=checks)

        try_case()

    for operation in operations:
        run(operation)
    assert tried >= len(operations)
