"""What Go and we make of the documents of ``golden_json.json``, in one comparable form.

These are documents on which decoders of JSON disagree. To add one, append a row ``{"mode": ..., "document": ...}`` and
run ``python -m tests.manifest.golden`` from the project's root, with Go installed: it writes all verdicts anew. Modes:
``manifest`` (whole input), ``first`` (first value of a stream), ``shapes`` (numbers and containers).
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

from tests.go.oracle import Answer, Oracle, running
from tests.manifest import canonical

from marblerun.errors import Malformed
from marblerun.manifest.parse import parse_manifest
from marblerun.wire import gojson

FILE = Path(__file__).with_name("golden_json.json")

_PAIR = gojson.record(A=gojson.string, B=gojson.string)
COUNTER = gojson.record(name=gojson.string, value=gojson.uint(64), data=gojson.byte_string)
SHAPES = gojson.record(
    I8=gojson.integer(8),
    I64=gojson.integer(64),
    U8=gojson.uint(8),
    U16=gojson.uint(16),
    U64=gojson.uint(64),
    Bytes=gojson.byte_string,
    List=gojson.list_of(gojson.string),
    Pairs=gojson.list_of(_PAIR),
    Map=gojson.mapping(gojson.list_of(gojson.string)),
    Ptr=gojson.optional(_PAIR),
    Any=gojson.anything,
)


def ours(mode: str, document: bytes) -> Answer:
    """Our own answer; only Malformed counts as a refusal, anything else is a crash."""
    try:
        match mode:
            case "manifest":
                value: Any = canonical.plain(parse_manifest(document))
            case "first":
                value = gojson.unmarshal_first(document, COUNTER)
                value["data"] = base64.b64encode(value["data"]).decode()
            case _:
                value = gojson.unmarshal(document, SHAPES)
                value["Bytes"], value["Any"] = base64.b64encode(value["Bytes"]).decode(), None
                value = canonical.soften(json.loads(json.dumps(value)))
    except Malformed:
        return Answer(False)
    return Answer(True, canonical.prune(value))


def theirs(oracle: Oracle, mode: str, document: bytes) -> Answer:
    """Go's answer."""
    answer = oracle.ask(mode, document)
    if not answer.ok:
        return Answer(False)
    soft = canonical.soften_go(answer.value) if mode == "manifest" else canonical.soften(answer.value)
    return Answer(True, canonical.prune(soft))


def stored(mode: str, document: bytes, answer: Answer) -> dict[str, Any]:
    """A row of the golden file."""
    row: dict[str, Any] = {"mode": mode, "ok": answer.ok}
    try:
        if len(document) > 300:
            raise ValueError("long")
        row["document"] = document.decode()
    except ValueError:
        row["packed"] = base64.b64encode(zlib.compress(document, 9)).decode()
    if answer.ok:
        row["value"] = answer.value
    return row


def load() -> list[tuple[str, bytes, Answer]]:
    """The golden file."""
    rows = json.loads(FILE.read_text())
    return [
        (
            row["mode"],
            row["document"].encode() if "document" in row else zlib.decompress(base64.b64decode(row["packed"])),
            Answer(row.get("ok", False), row.get("value")),
        )
        for row in rows
    ]


def main() -> None:
    """Write the golden file with Go's answers."""
    with tempfile.TemporaryDirectory() as folder, running("jsondiff", Path(folder)) as oracle:
        if oracle is None:
            sys.exit("Go is not installed")
        rows = [stored(mode, text, theirs(oracle, mode, text)) for mode, text, _ in load()]
    FILE.write_text("[\n" + ",\n".join(json.dumps(row, sort_keys=True) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
