"""health: is this process up, can Mosaic work, how is it doing. Asked by machines; it changes nothing.

One rule: everybody may learn whether Mosaic is ready; why, and the figures, only who may look (`may_look`).
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

from flask import Request, Response
from flask.typing import ResponseReturnValue

from app import checks, metrics
from app.checks import FAIL, OK, Check
from app.edge import edge, failure, settings
from app.local import is_forwarded, is_local
from app.types import Pool

ENGINE_SECONDS = 5.0  # an answer about the engine holds so long: strangers cannot make us ask more often
_NAMES = ("database", "migrations", *(pool.value for pool in Pool), "engine", "disk")
_HEADERS = {"Cache-Control": "no-store"}
T = TypeVar("T")


def may_look(request: Request) -> bool:
    """This machine, or an address of MOSAIC_METRICS_FROM that speaks to us itself: through a proxy nobody is known."""
    if is_local(request):
        return True
    try:
        address = ipaddress.ip_address(request.remote_addr or "")
    except ValueError:
        return False
    networks = [ipaddress.ip_network(text) for text in settings().metrics_from]
    return not is_forwarded(request) and any(address in network for network in networks)


def healthz(request: Request) -> ResponseReturnValue:
    """`GET /healthz`: this process is up. It asks nobody."""
    return {"status": "ok"}, 200, _HEADERS


def readyz(request: Request) -> ResponseReturnValue:
    """`GET /readyz`: 200 when Mosaic can take and do work, else 503; who may look gets every check with what to do."""
    found = _look(request)
    stored = found if isinstance(found, dict) else {"database": _away()}
    asked = {**stored, "engine": _engine(), "disk": checks.disk(settings().data_dir)}
    unknown = Check("", FAIL, "not known without the database")
    results = {name: asked.get(name, unknown) for name in _NAMES}
    failed = any(check.state == FAIL for check in results.values())
    body: dict[str, object] = {"status": "not ready" if failed else "ready"}
    if may_look(request):
        body["checks"] = {name: check.state for name, check in results.items()}
        body["why"] = {name: check.said for name, check in asked.items() if check.state != OK}
        body["next"] = {name: check.next for name, check in asked.items() if check.next}
    return body, 503 if failed else 200, {**_HEADERS, **({"Retry-After": "5"} if failed else {})}


@edge
def _look(request: Request) -> ResponseReturnValue:
    """{name: Check}; the edge's own answer when the database cannot be reached."""
    applied = checks.migrations()
    found = [checks.writable(), applied]
    if applied.state == OK:
        found += checks.consumers()
    return {check.name: check for check in found}


def _away() -> Check:
    action = "See that it runs and that MOSAIC_DATABASE_URL is right; its log says more."
    return Check("database", FAIL, "The database does not answer.", action)


def scrape(request: Request) -> ResponseReturnValue:
    """`GET /metrics`, for Prometheus; 404 for whom it is not meant."""
    if not may_look(request):
        return failure(404, "not_found", "There is no such page.")
    return _scrape(request)


@edge
def _scrape(request: Request) -> ResponseReturnValue:
    return Response(
        metrics.text(_collector()), headers=_HEADERS, content_type="text/plain; version=0.0.4; charset=utf-8"
    )


@cache
def _collector() -> metrics.Database:
    return metrics.Database(settings().data_dir)


class Kept:
    """An answer that holds for a while, asked by one thread at a time."""

    def __init__(self, ask: Callable[[], Check], seconds: float) -> None:
        self._ask, self._seconds, self._until = ask, seconds, 0.0
        self._mutex, self._answer = threading.Lock(), Check("", FAIL, "")

    def __call__(self) -> Check:
        with self._mutex:
            if time.monotonic() >= self._until:
                self._answer = self._ask()
                self._until = time.monotonic() + self._seconds
            return self._answer


_engine = Kept(lambda: checks.engine(settings()), ENGINE_SECONDS)
