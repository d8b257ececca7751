"""gunicorn's own log, in the shape of all others and through the same redactor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from app import logs
from app.settings import load


class Lines(Logger):  # type: ignore[misc]
    """Named on gunicorn's command line as `--logger-class`."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        settings = load("web", os.environ, dotenv=Path(".env"))
        self.error_log.setLevel(settings.log_level.upper())
        for handler in self.error_log.handlers:
            handler.setFormatter(logs.formatter(settings))
