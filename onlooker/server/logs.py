"""Logs as one JSON object a line, with no keys, no queries and no names and passwords of addresses."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(?<=://)([^\s?\"']+)\?[^\s\"']+")


def redact(text: str) -> str:
    """Text without the names, passwords and queries of addresses in it."""
    return _QUERY.sub(r"\1?***", _USERINFO.sub("***@", text))


class JsonLines(logging.Formatter):
    """A record as JSON: time, level, logger, message, whatever `extra` adds, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            facts["trace"] = self.formatException(record.exc_info)
        return redact(json.dumps(facts, default=str))


class PlainLines(logging.Formatter):
    """A record for people at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        told = " ".join(f"{name}={value}" for name, value in facts.items())
        stamp = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{stamp} {record.levelname.lower()} {record.getMessage()} {told}".rstrip()
        return redact(line + ("\n" + self.formatException(record.exc_info) if record.exc_info else ""))


def start_logging(stream: TextIO | None = None, *, as_json: bool | None = None, level: int = logging.INFO) -> None:
    """Send the logs of the server to the error stream: JSON lines, or plain ones where that is a terminal."""
    stream = stream or sys.stderr
    assert stream is not None, "the command line opens one where there was none"
    as_json = not stream.isatty() if as_json is None else as_json
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    for name in ("onlooker", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
