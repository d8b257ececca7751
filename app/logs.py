"""How the log lines of a process look: text or one JSON object a line, on standard output.

One rule: no line leaves without having passed the redactor, tracebacks included.
"""

from __future__ import annotations

import json
import logging
import sys

from app.redact import Redactor
from app.settings import Settings, secrets_of

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Lines(logging.Formatter):
    """`shape` is text or json."""

    def __init__(self, redactor: Redactor, shape: str) -> None:
        super().__init__(_TEXT if shape == "text" else "%(message)s")
        self._redactor, self._shape = redactor, shape

    def format(self, record: logging.LogRecord) -> str:
        line = self._redactor.text(super().format(record))
        if self._shape == "text":
            return line
        fields = {"at": self.formatTime(record), "level": record.levelname, "logger": record.name, "message": line}
        return json.dumps(fields, ensure_ascii=False)


def configure(settings: Settings) -> None:
    """Plain lines on standard output; the supervisor puts the process's name before them."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Lines(Redactor(secrets_of(settings)), settings.log_format))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    logging.getLogger("huey").setLevel(logging.WARNING)
