"""``manifest lint``, ``schema``, ``diff`` and ``render``: what they print, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.session import Session
from tests.manifest.test_lint import clean
from tests.manifest.test_schema import accepts

from marblerun.manifest.rules import RULES
from marblerun.wire.limits import MAX_MANIFEST_BYTES

UUID = "d3b07384-d113-4ec6-8f2a-1c2d3e4f5a6b"


def write(session: Session, name: str, document: object) -> str:
    text = document if isinstance(document, str) else json.dumps(document, indent=1)
    (session.folder / name).write_text(text)
    return name


def misspelt() -> dict[str, Any]:
    document = clean()
    document["Packages"]["p"]["SecurityVersoin"] = 1
    return document


def test_a_clean_manifest_has_no_findings_and_exit_code_0(session: Session) -> None:
    result = session.run("manifest", "lint", write(session, "a.json", clean()))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No findings\n")


def test_a_finding_has_place_severity_rule_path_and_hint(session: Session) -> None:
    result = session.run("manifest", "lint", write(session, "a.json", misspelt()))
    assert result.exit_code == 10
    assert result.stdout == (
        "a.json:7:4: warning: unknown key SecurityVersoin [key-unknown] (Packages.p.SecurityVersoin)\n"
        "    did you mean SecurityVersion?\n"
    )
    assert result.stderr == "1 warning\n"


def test_the_exit_code_says_how_bad_it_is(session: Session) -> None:
    noted = clean()
    del noted["Marbles"]["n"]["AllowedIPs"]
    broken = clean()
    broken["Marbles"]["n"]["Package"] = "none"
    for document, fail_on, code in (
        (clean(), "note", 0),
        (noted, "warning", 0),
        (noted, "note", 10),
        (misspelt(), "warning", 10),
        (misspelt(), "error", 0),
        (broken, "error", 7),
        (broken, "note", 7),
        ("{", "warning", 7),
    ):
        name = write(session, "a.json", document)
        assert session.run("manifest", "lint", name, "--fail-on", fail_on).exit_code == code


def test_lint_as_json(session: Session) -> None:
    result = session.run("manifest", "lint", write(session, "a.json", misspelt()), "-o", "json")
    assert json.loads(result.stdout) == {
        "findings": [
            {
                "severity": "warning",
                "rule": "key-unknown",
                "path": "Packages.p.SecurityVersoin",
                "line": 7,
                "column": 4,
                "message": "unknown key SecurityVersoin",
                "hint": "did you mean SecurityVersion?",
            }
        ],
        "errors": 0,
        "warnings": 1,
        "notes": 0,
    }


def test_lint_as_sarif_has_what_the_standard_demands(session: Session) -> None:
    result = session.run("manifest", "lint", write(session, "a b.json", misspelt()), "-o", "sarif")
    log = json.loads(result.stdout)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    assert {rule["defaultConfiguration"]["level"] for rule in rules} <= {"error", "warning", "note"}
    (found,) = run["results"]
    assert rules[found["ruleIndex"]]["id"] == found["ruleId"] == "key-unknown"
    assert (found["level"], found["message"]["text"]) == (
        "warning", "unknown key SecurityVersoin; did you mean SecurityVersion?",
    )  # fmt: skip
    assert found["locations"] == [
        {
            "physicalLocation": {
                "artifactLocation": {"uri": "a%20b.json"},
                "region": {"startLine": 7, "startColumn": 4},
            },
            "logicalLocations": [{"fullyQualifiedName": "Packages.p.SecurityVersoin"}],
        }
    ]


def test_yaml_is_linted_with_its_own_lines_and_columns(session: Session) -> None:
    text = yaml.safe_dump(clean(), sort_keys=False).replace("\n  n:\n", "\n  'n':\n") + "# é\nPackagse:\n  x: {}\n"
    line = text.count("\n") - 1
    result = session.run("manifest", "lint", write(session, "a.yaml", text))
    assert result.exit_code == 10
    assert result.stdout.splitlines()[0] == f"a.yaml:{line}:1: warning: unknown key Packagse [key-unknown] (Packagse)"


def test_names_that_yaml_takes_for_booleans_are_told(session: Session) -> None:
    document = yaml.safe_dump(clean(), sort_keys=False)
    assert "\n  n:\n" in document
    result = session.run("manifest", "lint", write(session, "a.yaml", document))
    assert result.exit_code == 10
    assert ": warning: YAML reads this name as false [yaml-boolean] (Marbles.false)\n" in result.stdout
    quoted = document.replace("\n  n:\n", "\n  'n':\n")
    assert session.run("manifest", "lint", write(session, "a.yaml", quoted)).exit_code == 0


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("a: [1,\n", "2:1", ""),
        ("a: 1\na: 2\n", "2:1", "key 'a' is there twice"),
        ("Packages: {p: {SecurityVersion: x}}\n", "1:33", "expected a whole number"),
        ('{"Packages": \n  oops', "2:3", "expected a value"),
        ("just words", "1:1", "neither a JSON object nor a YAML mapping"),
    ],
)
def test_what_cannot_be_read_is_one_finding_at_its_place(session: Session, text: str, place: str, says: str) -> None:
    result = session.run("manifest", "lint", write(session, "a.yaml", text))
    assert result.exit_code == 7
    assert f"a.yaml:{place}: error: " in result.stdout
    assert says in result.stdout


def test_hostile_files_are_refused_soon(session: Session) -> None:
    for content in (
        b"[" * MAX_MANIFEST_BYTES,
        b"{" + b'"a":1,' * 2_000_000 + b'"a":1}',
        b"- [" * 100_000,
        b"a: " + b"[" * 1_000_000,
        b"x" * (MAX_MANIFEST_BYTES + 1),
        b"\xff\xfe{}",
    ):
        (session.folder / "a.json").write_bytes(content)
        begin = time.process_time()
        assert session.run("manifest", "lint", "a.json").exit_code == 7
        assert time.process_time() - begin < 8


def test_bytes_that_are_not_utf8_are_a_warning(session: Session) -> None:
    (session.folder / "a.json").write_bytes(json.dumps(clean()).encode()[:-1] + b', "x": "\xff"}')
    result = session.run("manifest", "lint", "a.json", "-o", "json")
    assert [found["rule"] for found in json.loads(result.stdout)["findings"]] == ["not-utf8", "key-unknown"]


def test_the_schema_is_printed_and_accepts_what_lints_clean(session: Session) -> None:
    result = session.run("manifest", "schema")
    schema = json.loads(result.stdout)
    assert (result.exit_code, schema["$schema"]) == (0, "https://json-schema.org/draft/2020-12/schema")
    assert accepts(schema, clean())
    assert not accepts(schema, {"Packages": []})


def test_diff_tells_what_it_means_and_what_to_restart(session: Session) -> None:
    new = clean()
    new["Packages"]["p"]["SecurityVersion"] = 1
    new["Marbles"]["m"]["Parameters"]["Env"]["X"] = "z"
    new["Config"]["UpdateThreshold"] = 1
    arguments = (write(session, "old.json", clean()), write(session, "new.json", new))
    result = session.run("manifest", "diff", *arguments)
    assert (result.exit_code, result.stdout) == (
        0,
        """\
Who may join
  + package p admits older builds: security version 1 or higher
Who may change what
  + one user alone can update the manifest; it was 2 users together
What Marbles run with
  ~ Marble m gets the variable X
After the update
  restart m: they go on as before until then
  running Marbles and those started later trust each other only after the running ones are restarted,
  because every update makes a new intermediate CA
""",
    )
    found = json.loads(session.run("manifest", "diff", *arguments, "-o", "json").stdout)
    assert found["update"] == "full"
    assert found["restart"] == {"marbles": ["m"], "coordinator": False}
    assert [(change["topic"], change["effect"], change["path"]) for change in found["changes"]] == [
        ("join", "gain", "Packages.p.SecurityVersion"),
        ("change", "gain", "Config.UpdateThreshold"),
        ("run", "other", "Marbles.m.Parameters.Env.X"),
    ]


def test_diff_of_equal_manifests_and_of_package_updates(session: Session) -> None:
    old = write(session, "old.json", clean())
    assert session.run("manifest", "diff", old, old).stdout == "No difference in meaning\n"
    update = write(session, "new.json", {"Packages": {"p": {"SecurityVersion": 7}}})
    assert "admits no builds below security version 7; it was 2" in session.run("manifest", "diff", old, update).stdout
    bad: dict[str, Any]
    for bad in ({"Packages": {"none": {"SecurityVersion": 1}}}, {"Packages": {"p": {}}}, {**clean(), "Packages": {}}):
        assert session.run("manifest", "diff", old, write(session, "new.json", bad)).exit_code == 7


def test_render_shows_files_environment_and_arguments_with_placeholders(session: Session) -> None:
    document = clean()
    document["Marbles"]["m"]["Parameters"]["Argv"] = ["./m", "--x"]
    name = write(session, "a.json", document)
    result = session.run("manifest", "render", name, "--marble", "m", "--uuid", UUID)
    assert (result.exit_code, result.stderr) == (0, "All secrets are placeholders\n")
    assert "Arguments\n  './m'\n  '--x'\nEnvironment\n  CA\n    -----BEGIN CERTIFICATE-----...-----END" in result.stdout
    assert "  UP\n    <placeholder for up>\n" in result.stdout
    assert "  /data\n    {{\n" in result.stdout
    assert "MARBLE_TTLS_CONFIG" in result.stdout
    rendered = json.loads(session.run("manifest", "render", name, "--marble", "m", "--uuid", UUID, "-o", "json").stdout)
    assert rendered["Argv"] == ["./m", "--x"]
    assert rendered["Env"]["UP"] == {"Data": "<placeholder for up>", "Encoding": "string"}
    assert rendered["Files"]["/key"]["Encoding"] == "base64"
    assert rendered["Env"]["MARBLE_PREDEFINED_PRIVATE_KEY"]["Data"].startswith("-----BEGIN PRIVATE KEY-----\n")


def test_render_refuses_what_a_coordinator_would_refuse(session: Session) -> None:
    name = write(session, "a.json", clean())
    result = session.run("manifest", "render", name, "--marble", "none")
    assert (result.exit_code, result.stderr) == (8, "Error: the manifest has no Marble 'none'; it has m, n\n")
    assert session.run("manifest", "render", name, "--marble", "m", "--uuid", "1").exit_code == 2
    assert session.run("manifest", "render", name).exit_code == 2
    broken = clean()
    broken["Marbles"]["n"]["Parameters"] = {"Env": {"X": "{{ hex .Secrets.nothing }}"}}
    result = session.run("manifest", "render", write(session, "a.json", broken), "--marble", "m")
    assert result.exit_code == 7
    assert "Marbles.n.Parameters.Env[X]" in result.stderr


def test_previous_values_of_uploaded_secrets_are_missing_as_in_the_real_thing(session: Session) -> None:
    document = clean()
    document["Marbles"]["m"]["Parameters"]["Env"]["OLD"] = "{{ string .Previous.Secrets.up }}"
    result = session.run("manifest", "render", write(session, "a.json", document), "--marble", "m")
    assert result.exit_code == 7
    assert "Env[OLD]" in result.stderr


def test_none_of_them_needs_a_coordinator_or_a_policy(session: Session) -> None:
    Path("era.json").unlink()
    name = write(session, "a.json", clean())
    for arguments in (("lint", name), ("schema",), ("diff", name, name), ("render", name, "--marble", "m")):
        assert session.run("manifest", *arguments).exit_code == 0
