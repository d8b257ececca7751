"""How the log lines of a process look: text or one JSON object a line, on standard output.

One rule: no line leaves without having passed the redactor, tracebacks included.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

from app.redact import Redactor
from app.settings import Settings, secrets_of

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(about)s%(message)s"
_subject: ContextVar[Mapping[str, int | str]] = ContextVar("subject", default=MappingProxyType({}))


@contextmanager
def about(**ids: int | str) -> Iterator[None]:
    """Lines of this thread inside the block name these: job, step, effect, delivery. Blocks may stand in each other."""
    token = _subject.set({**_subject.get(), **ids})
    try:
        yield
    finally:
        _subject.reset(token)


class Lines(logging.Formatter):
    """`shape` is text or json; `process` is the role, named in JSON lines (in text the supervisor says it)."""

    def __init__(self, redactor: Redactor, shape: str, process: str = "") -> None:
        super().__init__(_TEXT if shape == "text" else "%(message)s")
        self._redactor, self._shape, self._process = redactor, shape, process

    def format(self, record: logging.LogRecord) -> str:
        subject = {name: self._redactor.text(str(value)) for name, value in _subject.get().items()}
        record.about = "".join(f"{name}={value} " for name, value in subject.items())
        line = self._redactor.text(super().format(record))
        if self._shape == "text":
            return line.replace("\n", "\n    ")  # only a line of its own begins with a time
        fields = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            **{name: int(value) if value.isdecimal() else value for name, value in subject.items()},
            "message": line,
        }
        return json.dumps(fields, ensure_ascii=False)


def formatter(settings: Settings) -> Lines:
    return Lines(Redactor(secrets_of(settings)), settings.log_format, settings.role)


def configure(settings: Settings) -> None:
    """Lines on standard output; the supervisor puts the process's name before those that are text."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter(settings))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    logging.getLogger("huey").setLevel(logging.WARNING)


def enveloped(process: bytes, line: bytes) -> bytes:
    """A child's line as a JSON object: as it is when it is one of that process's own, else as the message of one."""
    if line.startswith(b"{") and line.endswith(b"}"):
        try:
            if json.loads(line).get("process") == process.decode():
                return line
        except (ValueError, RecursionError):  # what a child prints may be anybody's text, nested without end
            pass
    fields = {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": "INFO",
        "process": process.decode(),
        "message": line.decode("utf-8", "replace"),
    }
    return json.dumps(fields, ensure_ascii=False).encode()
