"""What an operator wants to know about Gitea and our token before the first job: version, clock, identity, scopes.

One rule: it changes nothing there. Whether a token may write is asked at a place that cannot exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests

from app.clients.gitea_http import Transport
from app.clients.http_faults import untrusted
from app.types import MosaicError, Permanent

NEEDED = ("write:repository", "write:issue", "read:user", "read:notification")
_TIMEOUT = (3.05, 10.0)
# Scopes are judged before the path: 403 = missing, 404 = there. `-` is a reserved name: no such owner can exist.
_ASK = {
    "write:repository": ("POST", f"/repos/-/-/statuses/{'0' * 40}"),
    "write:issue": ("POST", "/repos/-/-/issues/1/comments"),
    "read:user": ("GET", "/user"),
    "read:notification": ("GET", "/notifications"),
}


@dataclass(frozen=True, slots=True)
class Server:
    """`ahead`: seconds by which Gitea's clock is before ours, None when it does not tell; good to about a second."""

    version: str
    ahead: float | None


@dataclass(frozen=True, slots=True)
class Bearer:
    login: str
    is_admin: bool  # of the whole server
    missing: tuple[str, ...]  # scopes of NEEDED that the token lacks


def server(url: str, ca_bundle: str | None) -> Server:
    """Ask for the version, without a token. Raises Permanent `forge_unreachable` with what to do."""
    before = datetime.now(UTC)
    try:
        answer = requests.get(
            f"{url}/api/v1/version", timeout=_TIMEOUT, verify=ca_bundle or True, allow_redirects=False
        )
        version = str(answer.json()["version"])
    except requests.RequestException as error:
        why = "its certificate is not trusted: set MOSAIC_CA_BUNDLE" if untrusted(error) else "no answer"
        raise Permanent(f"{url}: {why}.", code="forge_unreachable") from error
    except (ValueError, KeyError, TypeError):
        text = f"{url} answers ({answer.status_code}), but not as a Gitea does."
        raise Permanent(text, code="forge_unreachable") from None
    return Server(version, _ahead(answer.headers.get("Date", ""), before))


def _ahead(date: str, before: datetime) -> float | None:
    """The header tells whole seconds, cut off: its middle against the middle of the exchange."""
    try:
        theirs = parsedate_to_datetime(date).timestamp() + 0.5
    except (TypeError, ValueError):
        return None
    return theirs - (before.timestamp() + datetime.now(UTC).timestamp()) / 2


def bearer(url: str, token: str, ca_bundle: str | None) -> Bearer:
    """Whose token it is and which scopes it lacks. Raises Transient or Permanent as every call does."""
    http = Transport(url, token, ca_bundle, _TIMEOUT)
    missing = tuple(scope for scope in NEEDED if not _has(http, scope))
    if "read:user" in missing:
        return Bearer("", False, missing)
    me = http.call("GET", "/user").data
    return Bearer(str(me["login"]), bool(me.get("is_admin")), missing)


def _has(http: Transport, scope: str) -> bool:
    method, path = _ASK[scope]
    try:
        http.call(method, path, json={} if method == "POST" else None, params={"limit": 1} if method == "GET" else None)
    except MosaicError as error:
        if getattr(error, "status", None) in (401, None):
            raise
        return not (getattr(error, "status", None) == 403 and "scope" in str(error))
    return True
