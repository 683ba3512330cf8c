"""The process's log: one JSON object a line on standard error, or plain text for people (protocol, section 1.5)."""

from __future__ import annotations

import json
import logging
import sys
import time
from json.encoder import encode_basestring
from typing import Any, Final

from marblerun.coordinator.server.journal import REQUEST_ID

_LEVEL_NAMES: Final = {"WARNING": "warn", "CRITICAL": "fatal"}
# Of equal lines in one second the first ones are written and then one in so many, as the reference does: strangers
# must not fill a disk (protocol, section 1.5).
FIRST_LINES: Final = 100
THEN_ONE_IN: Final = 100
_MAX_MESSAGES: Final = 1000
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    found = dict(fields) if isinstance(fields, dict) else {}
    number = REQUEST_ID.get()
    return {**found, "requestId": number} if number else found


class Sampling(logging.Filter):
    """Lets the first equal lines of each second through, then one in a hundred.

    Lines about what a user did all pass: strangers cannot make them, and nobody must be able to hide one behind others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._seen: dict[tuple[int, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; lines are equal if level and text are, whatever their fields."""
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict) and "user" in fields:
            return True
        second = int(record.created)
        if second != self._second or len(self._seen) > _MAX_MESSAGES:
            self._second, self._seen = second, {}
        key = (record.levelno, str(record.msg))
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        return seen <= FIRST_LINES or (seen - FIRST_LINES) % THEN_ONE_IN == 0


def _level(record: logging.LogRecord) -> str:
    return _LEVEL_NAMES.get(record.levelname, record.levelname.lower())


class JsonFormatter(logging.Formatter):
    """Keys ``level``, ``ts`` (seconds), ``caller``, ``msg``, then the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, Any] = {
            "level": _level(record),
            "ts": round(record.created, 6),
            "caller": f"{record.name}:{record.lineno}",
            "msg": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["stacktrace"] = self.formatException(record.exc_info)
        # As json.dumps would; nearly everything is text, and for text alone a fifth of its work is enough.
        parts = [
            f"{encode_basestring(name)}: {encode_basestring(value) if type(value) is str else _ENCODER.encode(value)}"
            for name, value in entry.items()
        ]
        return "{" + ", ".join(parts) + "}"


class ConsoleFormatter(logging.Formatter):
    """Time, level, message, then the record's fields as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, plus a stack trace if there is one."""
        moment = time.strftime("%H:%M:%S", time.gmtime(record.created))
        fields = "".join(f" {name}={_printable(str(value))}" for name, value in _fields(record).items())
        line = f"{moment} {_level(record).upper():5} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _printable(text: str) -> str:
    """What peers send must not start a new line or move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def configure_logging(*, console: bool, debug: bool) -> None:
    """Send the log to standard error, as JSON or as plain text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ConsoleFormatter() if console else JsonFormatter())
    if not console:
        handler.addFilter(Sampling())
    # No line shows them, so no record need find them out.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for chatty in ("httpx", "httpcore", "h2", "hpack", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.DEBUG if debug and chatty == "asyncio" else logging.WARNING)
