"""The words between the HTTP server and the API: requests, replies, errors, routes.

Rule: a handler returns a Reply or raises ApiError; it never touches the socket.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

if TYPE_CHECKING:
    from tests.worlds.gitea.state import Repo, Token, User
    from tests.worlds.gitea.world import World

Json = Any
MAX_PAGE = 50
DEFAULT_PAGE = 30


@dataclass
class Request:
    """One HTTP request, its body read and decoded from chunks."""

    method: str
    raw_path: str  # still percent-encoded
    query_string: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def path(self) -> str:
        return unquote(self.raw_path)

    @property
    def query(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(self.query_string, keep_blank_values=True).items()}

    def query_values(self, key: str) -> list[str]:
        """Every value of a parameter that may be repeated or hold commas."""
        return [part for value in parse_qs(self.query_string).get(key, []) for part in value.split(",")]


@dataclass
class Reply:
    """An answer: `payload` becomes JSON, `raw` goes out as it is, neither gives an empty body."""

    status: int = 200
    payload: Json = None
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        return b"" if self.payload is None else json.dumps(self.payload, ensure_ascii=False).encode() + b"\n"


class ApiError(Exception):
    """`{"message", "url"}` with a status; `message=None` is one of the replies with an empty body."""

    def __init__(self, status: int, message: str | None = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.message = message
        self.headers = headers or {}


class Cut(Exception):
    """The connection ends here: without an answer, or in the middle of this one."""

    def __init__(self, reply: Reply | None = None) -> None:
        super().__init__("cut")
        self.reply = reply


@dataclass
class Call:
    """One API call: the world, who asks, and what was resolved from the path."""

    world: World
    request: Request
    user: User | None
    token: Token | None
    by_password: bool = False
    _repo: Repo | None = None

    @property
    def me(self) -> User:
        """The caller of a route that needs one."""
        if self.user is None:
            raise ApiError(401, "token is required")
        return self.user

    @property
    def repo(self) -> Repo:
        if self._repo is None:
            raise RuntimeError("this route has no repository in its path")
        return self._repo

    @property
    def body(self) -> dict[str, Json]:
        """The JSON object of the request; a body that is not one is 422, as Gitea's binder answers."""
        if not self.request.body.strip():
            return {}
        try:
            value = json.loads(self.request.body)
        except ValueError as error:
            raise ApiError(422, f"[]: {error}") from error
        if not isinstance(value, dict):
            raise ApiError(422, "[]: json: cannot unmarshal into Go value")
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self.body.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise ApiError(422, f"json: cannot unmarshal into field {key} of type string")
        return value

    def required(self, key: str) -> str:
        value = self.text(key)
        if not value.strip():
            raise ApiError(422, f"[{key.title().replace('_', '')}]: Required")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.body.get(key)
        return default if value is None else bool(value)

    def page(self, items: Sequence[Json], shape: Callable[[Json], Json], link: bool = True) -> Reply:
        """One page: `limit` is 30 by default and silently cut to 50; `X-Total-Count` always."""
        query = self.request.query
        limit = min(_positive(query.get("limit"), DEFAULT_PAGE), MAX_PAGE)
        page = _positive(query.get("page"), 1)
        start = (page - 1) * limit
        headers = {"X-Total-Count": str(len(items)), "Access-Control-Expose-Headers": "X-Total-Count, Link"}
        if link and len(items) > limit:
            headers["Link"] = self._link(page, limit, -(-len(items) // limit))
        return Reply(200, [shape(item) for item in items[start : start + limit]], headers=headers)

    def _link(self, page: int, limit: int, last: int) -> str:
        base = f"{self.world.url}{self.request.raw_path}"
        wanted = {"next": page + 1, "last": last} if page < last else {}
        if page > 1:
            wanted |= {"first": 1, "prev": page - 1}
        return ",".join(f'<{base}?limit={limit}&page={number}>; rel="{rel}"' for rel, number in wanted.items())


def _positive(text: str | None, default: int) -> int:
    return int(text) if text and text.isdigit() and int(text) > 0 else default


Handler = Callable[..., Reply]


@dataclass(frozen=True)
class Route:
    """A path below /api/v1 and what must hold before its handler runs."""

    method: str
    pattern: re.Pattern[str]
    handler: Handler
    scope: str | None
    need: str  # none: anyone; token: signed in; read, write, admin: that right on the repository; site: site admin
    live: bool  # refused with 423 when the repository is archived
    since: tuple[int, int]  # the version that brought it
    greedy: bool  # has a part that may hold slashes: tried last


ROUTES: list[Route] = []


def _pattern(template: str) -> tuple[re.Pattern[str], bool]:
    parts = re.split(r"\{(\w+)(?::(\w+))?\}", template)
    kinds = {"int": "[0-9]+", "path": ".+", None: "[^/]+"}
    out = re.escape(parts[0])
    for name, kind, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        out += f"(?P<{name}>{kinds[kind]})" + re.escape(text)
    return re.compile(out), "path" in parts[2::3]


def route(
    method: str,
    template: str,
    *,
    scope: str | None,
    need: str = "token",
    live: bool = False,
    since: tuple[int, int] = (0, 0),
) -> Callable[[Handler], Handler]:
    """Registers a handler; `{name}` is one segment, `{name:int}` a number, `{name:path}` the rest."""

    def register(handler: Handler) -> Handler:
        pattern, greedy = _pattern(template)
        ROUTES.append(Route(method, pattern, handler, scope, need, live, since, greedy))
        ROUTES.sort(key=lambda row: row.greedy)
        return handler

    return register


def find_route(method: str, raw_path: str) -> tuple[Route, dict[str, Json]] | None:
    """The route of a path (without its /api/v1) with the values of its parts; None when there is none."""
    for row in ROUTES:
        if row.method == method and (match := row.pattern.fullmatch(raw_path)):
            values = {key: unquote(value) for key, value in match.groupdict().items()}
            numbers = {key: int(v) for key, v in values.items() if key in {"number", "id", "page"} and v.isdigit()}
            return row, values | numbers
    return None
