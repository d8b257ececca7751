"""What every entry point shares: settings read once, the database open around a request, errors as JSON.

A handler is a plain function `name(request) -> response`: the same file serves under Flask and as a single function
of a serverless framework. It keeps nothing between two requests.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flask import Request, Response
from flask.typing import ResponseReturnValue

from app import logs, models
from app.ledger.chain import use_redactor
from app.redact import Redactor
from app.settings import Settings, load, secrets_of

log = logging.getLogger("mosaic.edge")
MAX_BODY = 1024 * 1024
UNAVAILABLE = models.UNAVAILABLE  # what a statement raises while the database is away


@cache
def settings() -> Settings:
    """The settings of a web process."""
    return load("web", os.environ, dotenv=Path(".env"))


def database_url(of: Settings) -> str:
    """The runtime role's URL: the configured server, or the embedded one."""
    if of.database_url:
        return of.database_url
    from app.postgres import Cluster

    return Cluster(of.data_dir).app_url


def redactor_of(of: Settings) -> Redactor:
    """Hides every secret that a process of these settings holds, the database's password included."""
    password = unquote(urlsplit(database_url(of)).password or "")
    return Redactor((*secrets_of(of), password) if password else secrets_of(of))


def open_database(url: str, name: str) -> None:
    """Bind the models of this process to the database; connections open when they are needed."""
    models.bind(url, application_name=f"mosaic-{name}")


_starting = threading.Lock()
_started = False


def _ready() -> None:
    """Once per process, at its first request: gunicorn's threads may come here together."""
    global _started
    with _starting:
        if not _started:
            logs.configure(settings())
            use_redactor(redactor_of(settings()))
            open_database(database_url(settings()), "web")
            _started = True


@contextmanager
def connected() -> Iterator[None]:
    """A database connection of this thread, from the pool, for the length of the block."""
    with models.db.connection_context():
        yield


class Refusal(Exception):
    """An answer that ends a request: HTTP status, stable code, a sentence for a person."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


Handler = Callable[..., ResponseReturnValue]


def edge(handler: Handler) -> Handler:
    """Open the database around a handler and turn what goes wrong into a JSON error with a stable code."""

    @wraps(handler)
    def call(request: Request, **path: Any) -> ResponseReturnValue:
        try:
            _ready()
            with connected():
                return handler(request, **path)
        except Refusal as refusal:
            return failure(refusal.status, refusal.code, str(refusal))
        except UNAVAILABLE as error:
            log.error("database: %s", error)
            return failure(503, "database_unavailable", "The database does not answer. Try again in a moment.")

    return call


def failure(status: int, code: str, message: str) -> ResponseReturnValue:
    """The one shape of every error. Made without the application, which a plain function may not have."""
    body = json.dumps({"error": {"code": code, "message": message, "details": {}}})
    response = Response(body, mimetype="application/json")
    if status == 503:
        response.headers["Retry-After"] = "5"
    return response, status


def raw_body(request: Request, content_type: str = "application/json") -> bytes:
    """The bytes of a request, refused when they are too many, encoded, of another type, or of unknown length.

    A chunked body is refused: Werkzeug would cut it at the limit without a word.
    """
    length = request.headers.get("Content-Length")
    if length is None or not length.isdecimal():
        raise Refusal(411, "length_required", "Send the body with a Content-Length.")
    if len(length) > 20 or int(length) > MAX_BODY:  # Python reads no number of thousands of digits
        raise Refusal(413, "too_large", f"The body may have at most {MAX_BODY} bytes.")
    if request.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise Refusal(415, "unsupported_encoding", "Send the body without a Content-Encoding.")
    if request.mimetype != content_type:
        raise Refusal(415, "unsupported_media_type", f"Send the body as {content_type}.")
    body = request.get_data(cache=False)
    if len(body) != int(length):
        raise Refusal(400, "truncated", "The body is shorter than its Content-Length.")
    return body
