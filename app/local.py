"""Whether a request comes from this machine. One rule: in doubt it does not."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Request

from app.settings_values import is_loopback

_FORWARDED = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP")


def is_forwarded(request: Request) -> bool:
    """Whether there is a trace of a proxy. HTTP/1.0 is what a proxy speaks that was told nothing; no browser does."""
    return (
        any(name in request.headers for name in _FORWARDED) or request.environ.get("SERVER_PROTOCOL") == "HTTP/1.0"
    )


def is_local(request: Request) -> bool:
    """Whether the request comes from this machine, by its address, its `Host`, and no trace of a proxy.

    `Host` counts because any web site may point its own name at 127.0.0.1.
    """
    host = urlsplit(f"//{request.host}").hostname or ""
    return is_loopback(request.remote_addr or "") and is_loopback(host) and not is_forwarded(request)
