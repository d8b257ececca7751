"""The forge's circuit breaker as its clients use it: asked before every exchange, told about every answer.

Its one rule: only what the forge itself did counts, and only a probe closes an open breaker.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from app import queries
from app.edge import UNAVAILABLE
from app.ledger import breaker
from app.types import Ambiguous, Misconfigured, Outage, Permanent, Transient

log = logging.getLogger("mosaic.breaker")
_LONGEST_WAIT = 30.0  # seconds; what waits is told earlier when the forge is back
_SHORTEST_WAIT = 1.0


@contextmanager
def forge() -> Iterator[None]:
    """Around one exchange with the forge. Raises `Outage` instead of letting it begin while the breaker is open."""
    now = queries.breaker()
    if not now.closed:
        wait = min(max(now.wait, _SHORTEST_WAIT), _LONGEST_WAIT)
        raise Outage(f"Gitea is not asked at the moment ({now.code}): {now.detail}", retry_after=wait)
    try:
        yield
    except Transient as error:
        _failed(error)
        raise
    except Permanent as error:
        if error.status is not None:
            _worked(now.failures)
        raise
    _worked(now.failures)


def word(error: Transient) -> str:
    """What went wrong, as one stable word for tables and metrics."""
    if isinstance(error, Misconfigured | Outage):
        return error.code
    if error.status == 429:
        return "rate_limited"
    if error.status is not None and error.status >= 500:
        return "server_error"
    return "ambiguous" if isinstance(error, Ambiguous) else "unreachable"


def _failed(error: Transient) -> None:
    """A missing scope says nothing about the forge; a refused token or certificate stops everything at once."""
    unfit = isinstance(error, Misconfigured)
    if error.code == "token_scope":
        return
    try:
        opened = breaker.failed(word(error), str(error), retry_after=error.retry_after or 0.0, at_once=unfit)
    except UNAVAILABLE as away:  # the forge's own fault is what the caller has to hear
        log.warning("a failure of Gitea cannot be counted, the database is away: %s", away)
        return
    if opened:
        log.error("Gitea is left alone from now on, but for one probe at a time: %s", error)


def _worked(failures: int) -> None:
    """The answer is there, whatever becomes of the count."""
    if not failures:
        return
    try:
        breaker.worked()
    except UNAVAILABLE as away:
        log.warning("Gitea answers again, but that cannot be noted, the database is away: %s", away)
