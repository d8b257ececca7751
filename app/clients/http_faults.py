"""What a broken HTTP exchange means, whichever service it was with: was it sent, did it time out, when to come back."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests
import urllib3.exceptions

_RETRY_AFTER_CEILING = 3600.0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from a Retry-After header in either of its forms, at most an hour; None without a usable one.

    A moment is compared with the answer's own `Date`, where it has one: the clocks of two machines differ.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _RETRY_AFTER_CEILING)
    until, sent_at = _moment(text), _moment(headers.get("Date", ""))
    if until is None:
        return None
    return min(max((until - (sent_at or datetime.now(UTC))).total_seconds(), 0.0), _RETRY_AFTER_CEILING)


def _moment(text: str) -> datetime | None:
    """A moment in the form of HTTP; None for anything else, a moment without a time zone included."""
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else None


def moment(headers: Mapping[str, str]) -> datetime | None:
    """When the server says that it answered (`Date`); None without a usable one."""
    try:
        at = parsedate_to_datetime(headers.get("Date", ""))
    except (TypeError, ValueError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """The error and everything it wraps: requests and urllib3 put the real one in args or `reason`."""
    pending = [exc]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseException):
            yield error
            pending += [getattr(error, "reason", None), *(arg for arg in error.args if isinstance(arg, BaseException))]


def sent(exc: Exception) -> bool:
    """False if the connection was never made, so that the request cannot have had an effect."""
    never = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    return not any(isinstance(error, never) for error in _causes(exc))


def untrusted(exc: Exception) -> bool:
    """True if the server's certificate was refused."""
    return any(isinstance(error, ssl.SSLCertVerificationError) for error in _causes(exc))


def timed_out(exc: BaseException | None) -> bool:
    """True if the wait for an answer was used up."""
    kinds = (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)
    return any(isinstance(error, kinds) for error in _causes(exc))
