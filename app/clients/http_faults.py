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
    """Seconds from a Retry-After header in either of its forms, at most an hour; None without a usable one."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _RETRY_AFTER_CEILING)
    try:
        seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None
    return min(max(seconds, 0.0), _RETRY_AFTER_CEILING)


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
