"""The transport to Gitea: py-gitea's session and authorisation, every call bounded, every error with its meaning.

Its one rule: a write whose answer was lost is `Ambiguous`, never repeated here and never called a failure.
"""

from __future__ import annotations

import json as jsonlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from gitea import Gitea
from requests.adapters import HTTPAdapter

from app.clients.guard import Guard, unguarded
from app.clients.http_faults import moment, retry_after, sent, timed_out, untrusted
from app.types import Ambiguous, Misconfigured, Permanent, Transient

MAX_ANSWER = 8 * 1024 * 1024  # bytes of one answer
MAX_SECONDS = 60.0  # of one answer's body, however slowly it drips
PAGE = 50  # Gitea's default ceiling; a lower one on the server is respected
_ADVICE = {
    403: "Check the rights of Mosaic's account and the scopes of its token.",
    404: "It does not exist, or Mosaic's account may not see it.",
    423: "The repository is archived: unarchive it first.",
}
# A 403 whose cause is the account or its token, wherever it is used: in Gitea's own words.
_SCOPE = "required scope"
_ACCOUNT = ("prohibited from", "must change your password")
_FORBIDDEN = frozenset({403, 404, 423})
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    data: Any  # decoded JSON; None for an empty body
    total: int | None  # X-Total-Count, where the endpoint sends it
    at: datetime | None = None  # the forge's clock when it answered, to the second


class Transport:
    """One authorised session to one Gitea. Safe for a few threads; make a new one after a fork."""

    def __init__(
        self, url: str, token: str, ca_bundle: str | None, timeout: tuple[float, float], guard: Guard = unguarded
    ) -> None:
        self.url = _checked_url(url)
        self._guard = guard
        self._timeout = timeout
        self._secrets: tuple[str, ...] = (_checked_token(token),)
        if ca_bundle and not os.path.exists(ca_bundle):
            raise ValueError(f"MOSAIC_CA_BUNDLE names {ca_bundle!r}, which does not exist")
        self._gitea = Gitea(self.url, token_text=token, verify=ca_bundle or True)
        self._session: requests.Session = self._gitea.requests
        _bound(self._session, timeout)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def hide(self, secret: str) -> None:
        """Keeps one more value out of every message made from an answer."""
        self._secrets += (secret,)

    def call(
        self,
        method: str,
        path: str,
        *,
        json: dict[str, Any] | None = None,
        params: Mapping[str, str | int] | None = None,
        ok: Sequence[int] = (200,),
        idempotent: bool = True,
    ) -> Reply:
        """One API call; `path` is already quoted. A GET is tried three times where the failure is known to be short.

        Raises `Transient`, `Ambiguous` (only if not `idempotent`) or `Permanent`; returns for the statuses in `ok`.
        """
        with self._guard():
            return self._tried(_Ask(method, path, idempotent), json, params, ok)

    def _tried(
        self, ask: _Ask, json: dict[str, Any] | None, params: Mapping[str, str | int] | None, ok: Sequence[int]
    ) -> Reply:
        tries = 3 if ask.method == "GET" else 1
        for used in range(1, tries + 1):
            try:
                return self._once(ask, json, params, ok)
            except Transient as error:
                if used == tries or not _short(error):
                    raise
            time.sleep(random.uniform(0.5, 1.0) * 0.1 * 2**used)  # noqa: S311 - jitter, not a secret
        raise AssertionError("unreachable: the last try returns or raises")

    def pages(self, path: str, params: Mapping[str, str | int], cap: int, field: str = "") -> Iterator[Any]:
        """Every item of a paginated list, at most `cap`; `field` names the list inside an object answer.

        Ends at `X-Total-Count` where it is sent, else at an empty page or one that brings nothing new.
        """
        seen: set[str] = set()
        for page in range(1, cap + 1):
            reply = self.call("GET", path, params={**params, "page": page, "limit": PAGE})
            items = self.shape(lambda data: _items(data, field), reply, path)
            fresh = [item for item in items if repr(item) not in seen][: cap - len(seen)]
            yield from fresh
            seen.update(map(repr, fresh))
            if not fresh or len(seen) >= min(cap, cap if reply.total is None else reply.total):
                return

    def shape(self, build: Callable[[Any], _T], reply: Reply, what: str, *, written: bool = False) -> _T:
        """`build` applied to the answer; an answer of another shape is an error (`Ambiguous` after a write)."""
        try:
            return build(reply.data)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            text = f"{what}: Gitea's answer has not the expected shape. Check that {self.url} is a supported Gitea."
            raise (Ambiguous(text, status=reply.status) if written else Permanent(text, code="bad_answer")) from exc

    def _once(
        self, ask: _Ask, json: dict[str, Any] | None, params: Mapping[str, str | int] | None, ok: Sequence[int]
    ) -> Reply:
        try:
            with self._session.request(
                ask.method,
                f"{self.url}/api/v1{ask.path}",
                json=json,
                params=params,
                headers={**self._gitea.headers, "Accept": "application/json", "Accept-Encoding": "identity"},
                timeout=self._timeout,
                allow_redirects=False,  # a renamed repository answers 301, and a followed POST becomes a GET
                stream=True,
            ) as response:
                body = _read(response, ask)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as exc:
            raise self._lost(ask, exc) from exc
        if response.status_code in ok:
            data = _decode(body, response.status_code, ask)
            return Reply(response.status_code, data, _total(response), moment(response.headers))
        raise self._refusal(ask, response, body)

    def _lost(self, ask: _Ask, exc: Exception) -> Transient | Permanent:
        """The error for an exchange that broke off."""
        if untrusted(exc):
            return Misconfigured(
                f"{ask}: the certificate of {self.url} is not trusted. Set MOSAIC_CA_BUNDLE to the CA of your Gitea.",
                code="untrusted_certificate",
            )
        if not sent(exc):
            return Transient(f"{ask}: no connection to Gitea at {self.url}. Check that it runs and the URL is right.")
        kind = "did not answer in time" if timed_out(exc) else "closed the connection before it answered"
        text = f"{ask}: Gitea at {self.url} {kind}."
        return Transient(text) if ask.idempotent else Ambiguous(f"{text} The write may have happened: look first.")

    def _refusal(self, ask: _Ask, response: requests.Response, body: bytes) -> Transient | Permanent:
        """The error for a status that the caller did not expect."""
        status = response.status_code
        text = f"{ask}: Gitea answered {status} {self._message(body)}".rstrip() + "."
        unfit = self._unfit(status, text)
        if unfit:
            return unfit
        later = retry_after(response.headers)
        if status == 429:
            return Transient(text, retry_after=later, status=status)
        if status >= 500 and status not in (501, 505):
            if not ask.idempotent:
                text = f"{text} The write may have happened: look first."
                return Ambiguous(text, retry_after=later, status=status)
            return Transient(text, retry_after=later, status=status)
        if 300 <= status < 400:
            return Permanent(f"{text} It was renamed or moved: look it up by its id.", status=status, code="moved")
        code = "forge_forbidden" if status in _FORBIDDEN else None
        return Permanent(f"{text} {_ADVICE.get(status, '')}".rstrip(), status=status, code=code)

    def _unfit(self, status: int, text: str) -> Misconfigured | None:
        """The error for an account or token that Gitea refuses whatever is asked."""
        if status == 401 or (status == 403 and any(word in text for word in _ACCOUNT)):
            advice = "Gitea does not accept the token: make a new one and set it in the configuration."
            return Misconfigured(f"{text} {advice}", status=status)
        if status == 403 and _SCOPE in text:
            advice = "Make a token with that scope and set it in the configuration."
            return Misconfigured(f"{text} {advice}", code="token_scope", status=status)
        return None

    def _message(self, body: bytes) -> str:
        """Gitea's own `message`, one line, without any secret; "" where it sent none."""
        try:
            data = jsonlib.loads(body)
        except (ValueError, RecursionError):
            return ""
        said = data.get("message") if isinstance(data, dict) else None
        text = " ".join(said.split())[:500] if isinstance(said, str) else ""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return f"({text})" if text else ""


@dataclass(frozen=True, slots=True)
class _Ask:
    method: str
    path: str
    idempotent: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class _BoundedAdapter(HTTPAdapter):
    """Gives the default timeout to every call that brings none, so that py-gitea's own calls end too."""

    def __init__(self, timeout: tuple[float, float]) -> None:
        self._timeout = timeout
        super().__init__(pool_maxsize=16)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._timeout
        return super().send(request, **kwargs)


def _bound(session: requests.Session, timeout: tuple[float, float]) -> None:
    session.trust_env = False  # a .netrc would replace the token, a proxy variable would send it elsewhere
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.mount("http://", _BoundedAdapter(timeout))
    session.mount("https://", _BoundedAdapter(timeout))


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("the URL of Gitea must look like https://git.example.org (MOSAIC_GITEA_URL)")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL of Gitea must not hold a name or password: set MOSAIC_GITEA_TOKEN instead")
    return url.rstrip("/")


def _checked_token(token: str) -> str:
    """Refused here because the HTTP library would print an unfit header value in its error."""
    if len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the Gitea token is empty, too short or holds a space or line break (MOSAIC_GITEA_TOKEN)")
    return token


def _read(response: requests.Response, ask: _Ask) -> bytes:
    """The body, at most MAX_ANSWER bytes and MAX_SECONDS; `read1` returns after each packet, so a drip is noticed."""
    deadline = time.monotonic() + MAX_SECONDS
    parts: list[bytes] = []
    size = 0
    while part := response.raw.read1(64 * 1024, decode_content=True):
        size += len(part)
        if size > MAX_ANSWER:
            raise _oversized(ask, response.status_code)
        if time.monotonic() > deadline:
            raise requests.ReadTimeout("the answer took too long")
        parts.append(part)
    return b"".join(parts)


def _oversized(ask: _Ask, status: int) -> Transient | Permanent:
    text = f"{ask}: Gitea's answer is larger than {MAX_ANSWER // 1024 // 1024} MiB."
    return Permanent(text, status=status, code="too_large") if ask.idempotent else Ambiguous(text, status=status)


def _decode(body: bytes, status: int, ask: _Ask) -> Any:
    if not body.strip() or status in (204, 404):
        return None
    try:
        return jsonlib.loads(body)
    except (ValueError, RecursionError) as exc:
        text = f"{ask}: Gitea answered {status} with something that is not JSON. Is a proxy in the way?"
        raise (Transient(text, status=status) if ask.idempotent else Ambiguous(text, status=status)) from exc


def _items(data: Any, field: str) -> list[Any]:
    items = data[field] if field else data
    if not isinstance(items, list | None):
        raise TypeError("not a list")
    return items or []


def _total(response: requests.Response) -> int | None:
    text = response.headers.get("X-Total-Count", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _short(error: Transient) -> bool:
    """True for failures that tend to pass at once: no connection, 502, 503, 504; not a wait that was used up."""
    if error.retry_after is not None:
        return False
    return error.status in (502, 503, 504) or (error.status is None and not timed_out(error.__cause__))
