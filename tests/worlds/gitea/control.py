"""The control endpoints `POST /_control/<name>`: every knob of the practice forge, for another process.

Rule: only the token given at start opens them; no Gitea has them.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.worlds.gitea.faults import Fault
from tests.worlds.gitea.http import Reply, Request

if TYPE_CHECKING:
    from tests.worlds.gitea.server import PracticeGitea

Knob = Callable[..., Any]


def knobs(gitea: PracticeGitea) -> dict[str, Knob]:
    """Name of a knob -> what it does; keyword arguments come from the JSON body."""
    world, out = gitea.world, gitea.world.deliveries

    def fault(**fields: Any) -> None:
        world.faults.add(Fault(**fields))

    def rate_limit(method: str, path: str, times: int = 1, retry_after: int = 1) -> None:
        headers = {"Retry-After": str(retry_after)}
        world.faults.add(Fault(method, path, "status", times, 429, "too many requests", headers=headers))

    def version(value: str) -> None:
        world.version = value

    def allowed_hosts(value: str) -> None:
        out.allowed_hosts = value

    return {
        "lose": out.lose,
        "delay": out.delay,
        "reorder": out.reorder,
        "flush": out.flush,
        "replay": lambda uuid: {"uuid": out.replay(uuid)},
        "deliveries": lambda: [vars(row) for row in list(out.log)],
        "requests": lambda: list(world.requests),
        "errors": lambda: list(world.errors),
        "idle": lambda timeout=10.0: {"idle": world.idle(timeout)},
        "fault": fault,
        "rate_limit": rate_limit,
        "clear_faults": world.faults.clear,
        "faults_hit": lambda: world.faults.hit,
        "version": version,
        "allowed_hosts": allowed_hosts,
        "down": gitea.down,
        "up": gitea.up,
        "info": lambda: {"url": world.url, "control_url": gitea.control_url},
    }


def serve(gitea: PracticeGitea, request: Request) -> Reply:
    """Runs one knob: 200 with its result as JSON (null for none)."""
    sent = request.headers.get("authorization", "").encode()
    if not hmac.compare_digest(sent, f"token {gitea.world.admin_token}".encode()):
        return Reply(401, {"message": "the control endpoints need the token given at start"})
    knob = knobs(gitea).get(request.path.removeprefix("/_control/"))
    if knob is None or request.method != "POST":
        return Reply(404, {"message": f"there is no such knob; POST one of {sorted(knobs(gitea))}"})
    try:
        result = knob(**json.loads(request.body or b"{}"))
    except (TypeError, ValueError, StopIteration) as error:
        return Reply(422, {"message": f"{type(error).__name__}: {error}"})
    return Reply(200, raw=json.dumps(result).encode())
