"""Every sample manifest loads, passes all checks, lints as its README says, renders, and can be set."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from tests.coordinator.running import World

from marblerun.client.yaml_json import manifest_document, manifest_from_bytes
from marblerun.coordinator.commands import Inputs
from marblerun.coordinator.commands.render import render_marble
from marblerun.coordinator.entropy import SystemEntropy
from marblerun.manifest.check import check_manifest, check_material
from marblerun.manifest.lint import lint_document
from marblerun.manifest.parse import parse_manifest
from marblerun.manifest.report import Report

FOLDER = Path(__file__).parents[2] / "examples" / "manifests"
SAMPLES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".json", ".yaml"))
README = (FOLDER / "README.md").read_text()
UUID = "d3b07384-d113-4ec6-8f2a-1c2d3e4f5a6b"
INPUTS = Inputs(datetime(2026, 1, 1, tzinfo=UTC), SystemEntropy())


def raw(sample: str) -> bytes:
    return manifest_from_bytes((FOLDER / sample).read_bytes()).json


def test_all_kinds_of_samples_are_there() -> None:
    assert SAMPLES == [
        "gramine-nginx.json",
        "gramine-redis.json",
        "minimal.json",
        "multi-party-update.yaml",
        "recovery-k-of-n.yaml",
        "shop.yaml",
        "ttls-tags.json",
        "user-secrets.yaml",
    ]


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_passes_every_check(sample: str) -> None:
    manifest = parse_manifest(raw(sample))
    assert check_manifest(manifest, {}) + check_material(manifest) == Report()


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_lints_clean_or_its_row_says_what_is_found(sample: str) -> None:
    findings = lint_document(manifest_document((FOLDER / sample).read_bytes()))
    row = re.search(rf"^\| \[`{re.escape(sample)}`\].*\|$", README, re.MULTILINE)
    assert row is not None
    documented = re.findall(r"`([a-z-]+)`", row.group().rpartition("| ")[2])
    assert Counter(documented) == Counter({finding.rule for finding in findings})


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_marble_of_a_sample_can_be_rendered(sample: str) -> None:
    text = raw(sample)
    for marble, definition in parse_manifest(text).marbles.items():
        activated = render_marble(text, marble, UUID, INPUTS)
        assert set(activated.files) == set(definition.parameters.files)
        assert set(activated.env) >= set(definition.parameters.env)
        assert not [name for name, value in {**activated.files, **activated.env}.items() if b"{{" in value]


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_can_be_set_on_a_coordinator(sample: str) -> None:
    text = raw(sample)

    async def scenario() -> None:
        coordinator = World().coordinator()
        await coordinator.start()
        shares = await coordinator.set_manifest(text)
        assert sorted(shares) == sorted(parse_manifest(text).recovery_keys)
        assert coordinator.signed_manifest().manifest == text
        assert coordinator.status().code == 3
        await coordinator.stop()

    asyncio.run(scenario())


def test_people_of_the_samples_have_real_keys_and_no_private_ones() -> None:
    for sample in SAMPLES:
        text = (FOLDER / sample).read_text()
        assert "PRIVATE KEY" not in text
        for pem in parse_manifest(raw(sample)).recovery_keys.values():
            assert getattr(load_pem_public_key(pem.encode()), "key_size", 0) == 3072
