"""The JSON Schema accepts every manifest that loads and passes the checks, and refuses what a schema can tell."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.manifest import golden
from tests.manifest.test_check import GOOD
from tests.manifest.test_lint import clean

from marblerun.errors import Malformed
from marblerun.manifest.check import check_manifest
from marblerun.manifest.parse import parse_manifest
from marblerun.manifest.schema import manifest_schema

SCHEMA = manifest_schema()
_KEYWORDS = {"$schema", "title", "description", "type", "properties", "additionalProperties", "items", "enum", "const"}
_KEYWORDS |= {"anyOf", "not", "pattern", "minimum", "maximum", "minProperties", "required"}
# What the schema judges beyond types and words.
_FURTHER = {"packages-missing", "recovery-threshold-one", "secret-validity"}


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value fits, by the keywords that the schema uses (JSON Schema 2020-12, core and validation)."""
    assert set(schema) <= _KEYWORDS
    if "anyOf" in schema and not any(accepts(option, value) for option in schema["anyOf"]):
        return False
    if "not" in schema and accepts(schema["not"], value):
        return False
    if "enum" in schema and not any(value == option and type(value) is type(option) for option in schema["enum"]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_is(value, name) for name in types):
            return False
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        return False
    if _is(value, "integer") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return False
    if isinstance(value, dict):
        if len(value) < schema.get("minProperties", 0) or not set(schema.get("required", ())) <= set(value):
            return False
        properties = schema.get("properties", {})
        rest = schema.get("additionalProperties", {})
        return all(accepts(properties.get(key, rest), item) for key, item in value.items())
    if isinstance(value, list):
        return all(accepts(schema.get("items", {}), item) for item in value)
    return True


def _is(value: Any, name: str) -> bool:
    kinds: dict[str, type | tuple[type, ...]] = {
        "null": type(None), "boolean": bool, "string": str, "array": list, "object": dict,
    }  # fmt: skip
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kinds[name])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key.casefold() for key, _ in pairs}) < len(pairs):
        raise ValueError("a schema sees parsed JSON, in which duplicates are gone")
    return dict(pairs)


def test_good_manifests_fit() -> None:
    assert accepts(SCHEMA, GOOD)
    assert accepts(SCHEMA, clean())


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every member and element, at any depth."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _changed(document: dict[str, Any], changes: list[tuple[int, Any]]) -> bytes:
    """A good manifest with a few members taken out, or with another value in their place."""
    document = copy.deepcopy(document)
    for number, new in changes:
        places = list(_places(document))
        *path, last = places[number % len(places)]
        holder: Any = document
        for key in path:
            holder = holder[key]
        if new is _GONE:
            del holder[last]
        else:
            holder[last] = copy.deepcopy(new)
    return json.dumps(document).encode()


_GONE = object()
_NEW = st.sampled_from([_GONE, _GONE, None, "", "x", 0, 1, 2, 2**40, -1, 1.5, True, [], {}, [""], {"a": {}}])
# Random documents hardly ever load; good ones that were changed a little often do.
_NEARLY_GOOD = st.builds(
    _changed, st.sampled_from([GOOD, clean()]), st.lists(st.tuples(st.integers(0, 10_000), _NEW), max_size=4)
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(_NEARLY_GOOD)
def test_what_loads_and_passes_fits(document: bytes) -> None:
    try:
        value = json.loads(document, object_pairs_hook=_unique)
        errors = check_manifest(parse_manifest(document), {}).errors
    except (Malformed, ValueError, RecursionError):
        assume(False)
    bad = {problem.code for problem in errors}  # what a schema judges must be right, the rest may be wrong
    assume(not bad & {"secret-type", "role-type", "role-action", "seal-mode", "feature-gate", *_FURTHER})
    assert accepts(SCHEMA, value)


def test_golden_documents_that_load_fit() -> None:
    fitted = 0
    for mode, text, answer in golden.load():
        if mode != "manifest" or not answer.ok or len(text) > 5000:
            continue
        try:
            value = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, UnicodeDecodeError):
            continue
        if b"SealMode" in text or b'"t":{"Cert":null' in text or b'"s":{"Cert"' in text:
            continue
        refused = {problem.code for problem in check_manifest(parse_manifest(text), {}).errors} & _FURTHER
        # Most of these documents have no packages at all, which a schema lets pass.
        if refused - {"packages-missing"} or (refused and value and "packages" in map(str.lower, value)):
            continue
        fitted += 1
        assert accepts(SCHEMA, value), text
    assert fitted > 50


@pytest.mark.parametrize(
    "document",
    [
        {"Packages": []},
        {"Packages": {"p": {"SecurityVersion": -1}}},
        {"Packages": {"p": {"SecurityVersion": "1"}}},
        {"Packages": {"p": {"Debug": 1}}},
        {"Infrastructures": {"i": {"QESVN": 65536}}},
        {"Infrastructures": {"i": {"CPUSVN": [256]}}},
        {"Infrastructures": {"i": {"RootCA": "not base64!"}}},
        {"Marbles": {"m": {"Parameters": {"Files": {"/f": None}}}}},
        {"Marbles": {"m": {"Parameters": {"Env": {"E": {"Encoding": "utf8"}}}}}},
        {"Secrets": {"s": {"Type": "Plain"}}},
        {"Secrets": {"s": {"Type": "plain", "Cert": {"DNSNames": "a"}}}},
        {"Secrets": {"s": {"Cert": {"IsCA": "yes"}}}},
        {"Roles": {"r": {"ResourceType": "secrets"}}},
        {"Roles": {"r": {"Actions": ["Read"]}}},
        {"Config": {"SealMode": "productkey"}},
        {"Config": {"FeatureGates": ["x"]}},
        {"TLS": {"t": {"Incoming": {}}}},
        {"Packages": {}},
        {"Config": {"RecoveryThreshold": 1}},
        {"Secrets": {"s": {"Type": "cert-rsa", "ValidFor": 1, "Cert": {"NotAfter": "2030-01-31T12:00:00Z"}}}},
    ],
)
def test_what_a_schema_can_refuse_is_refused(document: object) -> None:
    assert not accepts(SCHEMA, document)


@pytest.mark.parametrize(
    "document",
    [
        {"Config": {"RecoveryThreshold": 0}},
        {"Config": {"RecoveryThreshold": 2}},
        {"Secrets": {"s": {"Type": "plain", "ValidFor": 1, "Cert": {"NotAfter": "2030-01-31T12:00:00Z"}}}},
        {"Secrets": {"s": {"Type": "cert-rsa", "ValidFor": 0, "Cert": {"NotAfter": "2030-01-31T12:00:00Z"}}}},
        {"Secrets": {"s": {"Type": "cert-rsa", "ValidFor": 1, "Cert": {"NotAfter": "0001-01-01T00:00:00Z"}}}},
        {"Secrets": {"s": {"Type": "cert-rsa", "ValidFor": 1, "Cert": {"DNSNames": ["a"]}}}},
        {"Secrets": {"s": {"Type": "cert-rsa", "Cert": {"NotAfter": "2030-01-31T12:00:00Z"}}}},
    ],
)
def test_what_the_checks_admit_beside_what_they_refuse_fits(document: object) -> None:
    assert accepts(SCHEMA, document)


def test_the_schema_is_plain_json() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
