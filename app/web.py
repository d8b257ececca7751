"""Composition root of the web process: URLs meet handlers here. Nothing imports this module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from app.edge import Handler, failure
from handlers import health, mosaic, pages

ROUTES: dict[tuple[str, str], Handler] = {
    ("POST", "/webhooks/gitea"): mosaic.receive,
    ("GET", "/"): pages.index,
    ("GET", "/jobs/<int:job_id>"): pages.job,
    ("GET", "/jobs/<int:job_id>/live"): pages.live,
    ("GET", "/jobs/<int:job_id>/steps/<step>/log"): pages.log,
    ("GET", "/healthz"): health.healthz,
    ("GET", "/readyz"): health.readyz,
    ("GET", "/metrics"): health.scrape,
}


def create_app() -> Flask:
    """The Flask application: the table above, templates, uniform errors."""
    app = Flask("mosaic", root_path=str(pages.HOME), template_folder="templates", static_folder="static")
    app.config["MAX_CONTENT_LENGTH"] = None  # the edge refuses by Content-Length, before a byte is read
    for (method, path), handler in ROUTES.items():
        app.add_url_rule(path, f"{method} {path}", _bind(handler), methods=[method])
    app.register_error_handler(HTTPException, _http_error)
    app.after_request(_headers)
    return app


def _bind(handler: Handler) -> Callable[..., ResponseReturnValue]:
    def view(**path: Any) -> ResponseReturnValue:
        return handler(request, **path)

    return view


def _http_error(error: HTTPException) -> ResponseReturnValue:
    code = (error.name or "error").lower().replace(" ", "_")
    return failure(error.code or 500, code, error.description or error.name)


def _headers(response: Any) -> Any:
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "no-referrer")
    response.headers.setdefault(
        "Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )
    return response
