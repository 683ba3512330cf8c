"""Makes ``golden_yaml.json`` anew: what Go's sigs.k8s.io/yaml makes of each document in it. Needs Go and its modules.

Run from the project's root: ``python tests/client/make_golden_yaml.py``.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE / "golden_yaml.json"


def main() -> None:
    documents = [document for document, _ in json.loads(TABLE.read_text())]
    asked = "".join(base64.b64encode(document.encode()).decode() + "\n" for document in documents)
    go = subprocess.run(
        ["go", "run", "."], cwd=HERE / "yamljson", input=asked, capture_output=True, text=True, check=True
    )
    answers = [None if line == "-" else base64.b64decode(line).decode() for line in go.stdout.splitlines()]
    rows = [json.dumps(row) for row in zip(documents, answers, strict=True)]
    TABLE.write_text("[\n  " + ",\n  ".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
