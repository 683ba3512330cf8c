"""``marblerun evidence`` keeps its form: exit codes, JSON names, and no traceback whatever it is given."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.forge.dcap import NOW, Dcap
from tests.vectors import load, parameters

from marblerun.attestation.dcap.collateral import collateral_to_json
from marblerun.attestation.dcap.quote import add_oe_header
from marblerun.cli.evidence import evidence

MINTED = Dcap().mint()
AT = str(int(NOW.timestamp()))
SAMPLE = [
    "sgx/marblerun-coordinator-00906ed5",
    "sgx/automata-00a06711-debug",
    "sgx/fortanix-00906ea1-corrupted",
    "tdx/gotdx-v5-90c06f",
    "tdx/phala-tappd-b0c06f-old",
    "sim/tdx-v4-uptodate",
    "sim/sgx-pck-revoked",
    "negative/trailing-16-bytes",
    "negative/root-crl-missing",
    "negative/collateral-expired",
]


def run(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(evidence, [str(argument) for argument in arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "quote").write_bytes(MINTED.quote)
    (tmp_path / "wrapped").write_bytes(add_oe_header(MINTED.quote))
    (tmp_path / "collateral.json").write_text(collateral_to_json(MINTED.collateral))
    (tmp_path / "root.der").write_bytes(MINTED.root_der)
    pem = x509.load_der_x509_certificate(MINTED.root_der).public_bytes(Encoding.PEM)
    (tmp_path / "root.pem").write_bytes(pem)
    return tmp_path


def verify(files: Path, *more: str | Path, quote: str = "quote") -> Result:
    return run("verify", files / quote, "--collateral", files / "collateral.json", "--at", AT, *more)


@pytest.mark.parametrize("name", [p for p in parameters("sgx", "tdx", "sim", "negative") if p.values[0] in SAMPLE])
def test_verify_prints_what_the_index_expects(name: str, tmp_path: Path) -> None:
    vector = load(name)
    assert vector.collateral_json is not None
    assert vector.at is not None
    (tmp_path / "quote").write_bytes(vector.quote)
    (tmp_path / "collateral.json").write_text(vector.collateral_json)
    arguments: list[str | Path] = ["verify", tmp_path / "quote", "--collateral", tmp_path / "collateral.json"]
    arguments += ["--at", str(int(vector.at.timestamp())), "-o", "json"]
    if vector.root_certificate is not None:
        (tmp_path / "root").write_bytes(vector.root_certificate)
        arguments += ["--root-ca", tmp_path / "root"]
    result = run(*arguments)
    shown = json.loads(result.stdout)
    if vector.ok:
        expected = {key: value for key, value in vector.expected.items() if key != "report_data_binding"}
        assert (result.exit_code, expected) == (0, {key: shown[key] for key in expected})
    else:
        assert (result.exit_code, shown["ok"]) == (3, False)
        assert {"code", "step", "message"} <= shown["error"].keys()
        assert "mrenclave" not in shown


@pytest.mark.parametrize("root", ["root.der", "root.pem"])
@pytest.mark.parametrize("quote", ["quote", "wrapped"])
def test_a_named_root_is_trusted_alone_and_said_to_be_simulated(files: Path, root: str, quote: str) -> None:
    result = verify(files, "--root-ca", files / root, "-o", "json", quote=quote)
    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["ok"], shown["origin"], shown["simulated"]) == (0, True, "simulated", True)
    assert "not evidence of any hardware" in result.stderr
    text = verify(files, "--root-ca", files / root, quote=quote)
    assert text.stdout.startswith("GENUINE, BUT SIMULATED")
    assert "Not judged: TCB status" in text.stdout


def test_without_a_named_root_only_intels_counts(files: Path) -> None:
    result = verify(files, "-o", "json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["error"]["reason"] == "unknown-root"
    assert verify(files).stdout.startswith("REFUSED at step tcb-signer (unknown-root)")


def test_the_quote_may_come_from_standard_input(files: Path) -> None:
    arguments = ("verify", "-", "--collateral", files / "collateral.json", "--at", AT, "--root-ca", files / "root.der")
    assert run(*arguments, stdin=MINTED.quote).exit_code == 0
    assert run("inspect", "-", stdin=MINTED.quote).exit_code == 0


@pytest.mark.parametrize(
    ("content", "step"),
    [
        (b"", "parse"),
        (b"hello", "parse"),
        (b"\x00" * 100_000, "parse"),
        (MINTED.quote[:-1], "parse"),
        (MINTED.quote.hex()[:-1].encode(), "parse"),
        (MINTED.quote.hex().encode() + b"!", "parse"),
        (b"\n" * 100_000, "parse"),
        (b"00" * 100_000, "parse"),
    ],
)
def test_a_file_that_is_no_quote_is_refused(files: Path, content: bytes, step: str) -> None:
    (files / "quote").write_bytes(content)
    for result in (verify(files, "-o", "json"), run("inspect", files / "quote", "-o", "json")):
        error: dict[str, Any] = json.loads(result.stdout)["error"]
        assert (result.exit_code, error["code"], error["step"]) == (3, "malformed", step)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"tcb_info": 1}', b"[" * 100_000])
def test_collateral_that_cannot_be_read_is_refused(files: Path, content: bytes) -> None:
    (files / "collateral.json").write_bytes(content)
    result = verify(files, "-o", "json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["step"]) == (3, "collateral")


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify"],
        ["verify", "quote"],
        ["verify", ".", "--collateral", "collateral.json"],
        ["verify", "quote\0", "--collateral", "collateral.json"],
        ["verify", "-", "--collateral", "-"],
        ["verify", "quote", "--collateral", "collateral.json", "--at", "-1"],
        ["verify", "quote", "--collateral", "collateral.json", "--at", "99999999999999999999"],
        ["verify", "quote", "--collateral", "collateral.json", "--at", "tomorrow"],
        ["verify", "quote", "--collateral", "collateral.json", "--root-ca", "quote"],
        ["verify", "quote", "--collateral", "collateral.json", "-o", "yaml"],
        ["inspect"],
    ],
)
def test_what_cannot_be_carried_out_is_a_usage_error(
    files: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_inspect_says_that_nothing_is_verified_and_counts_padding(files: Path) -> None:
    (files / "quote").write_bytes(MINTED.quote + bytes(10))
    text = run("inspect", files / "quote")
    shown = json.loads(run("inspect", files / "quote", "-o", "json").stdout)
    assert text.stdout.startswith("NOT VERIFIED")
    assert (shown["ok"], shown["verified"], shown["trailing_bytes"]) == (None, False, 10)
    assert (shown["quote_bytes"], shown["trailing_zeros_only"]) == (len(MINTED.quote), True)
    assert (shown["fmspc"], shown["pck_ca"], shown["mrenclave"]) == ("00606A000000", "platform", "11" * 32)


@pytest.mark.parametrize(("behind", "zeros"), [(b"", None), (b"\0" * 70, True), (b"\0" * 69 + b"\1", False)])
def test_inspect_tells_padding_from_other_bytes_behind_a_quote(behind: bytes, zeros: bool | None) -> None:
    """70 zeros are what quoting services leave behind quotes of version 4."""
    shown = json.loads(run("inspect", "-", "-o", "json", stdin=MINTED.quote + behind).stdout)
    assert (shown["quote_bytes"], shown["trailing_bytes"]) == (len(MINTED.quote), len(behind))
    assert shown["trailing_zeros_only"] is zeros


@pytest.mark.parametrize("wrapped", [False, True])
def test_padding_is_refused_with_the_length_to_cut_at(files: Path, wrapped: bool) -> None:
    quote = add_oe_header(MINTED.quote) if wrapped else MINTED.quote
    (files / "quote").write_bytes(quote + bytes(70))
    result = verify(files, "-o", "json", "--root-ca", files / "root.der")
    message = json.loads(result.stdout)["error"]["message"]
    assert result.exit_code == 3
    assert f"all of them zero: the rest of the sender's buffer, to be cut off at byte {len(quote)}" in message
    (files / "quote").write_bytes(quote)
    assert verify(files, "--root-ca", files / "root.der").exit_code == 0


TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "hex": lambda quote: quote.hex().encode(),
    "upper case": lambda quote: quote.hex().upper().encode() + b"\n",
    "0x": lambda quote: b"0x" + quote.hex().encode(),
    "lines of hex": lambda quote: quote.hex("\n", 16).encode() + b"\r\n",
    "base64": base64.b64encode,
    "lines of base64": base64.encodebytes,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_quote_may_come_as_text(files: Path, text: Callable[[bytes], bytes], wrapped: bool) -> None:
    (files / "quote").write_bytes(text(add_oe_header(MINTED.quote) if wrapped else MINTED.quote))
    assert verify(files, "--root-ca", files / "root.der").exit_code == 0
    assert run("inspect", files / "quote").exit_code == 0


@pytest.mark.parametrize("name", parameters("sgx", "tdx"))
def test_inspect_reads_every_recorded_quote(name: str, tmp_path: Path) -> None:
    vector = load(name)
    (tmp_path / "quote").write_bytes(vector.quote)
    result = run("inspect", tmp_path / "quote", "-o", "json")
    shown = json.loads(result.stdout)
    expected = {key: value for key, value in (vector.identity | vector.expected).items() if key in shown}
    expected |= {"ok": None}
    assert (result.exit_code, expected) == (0, {key: shown[key] for key in expected})


@pytest.mark.parametrize("command", [[], ["verify"], ["inspect"]])
def test_help_is_there_with_an_example_for_each_command(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert not command or "Example:" in result.stdout
