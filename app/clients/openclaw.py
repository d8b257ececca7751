"""OpenClaw, the agent engine, through its gateway. Its one rule: every question goes over a fresh, checked connection.

Connecting takes a few milliseconds, so nothing is shared between threads or kept between turns.
"""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.clients.device_identity import load_or_create
from app.clients.openclaw_connection import (
    ADMIN_SCOPES,
    PINNED_VERSION,
    RUN_SCOPES,
    Connection,
    GatewayRefused,
    GatewayUnavailable,
)
from app.clients.openclaw_frames import clip, dig, judge_error, money, whole
from app.clients.openclaw_turn import Turn
from app.types import EngineEvent, Permanent, RunResult, RunSpec

__all__ = [
    "PINNED_VERSION",
    "GatewayRefused",
    "GatewayUnavailable",
    "Health",
    "OpenClaw",
    "SessionState",
    "ready",
    "session_key",
]

PROFILES: Mapping[str, tuple[str, str]] = {"read": ("runner", "read-only"), "write": ("weaver", "workspace")}
SETTLE_EVERY = 0.3
LABEL_LIMIT = 100


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the gateway can be used; `detail` says why not."""

    ok: bool
    version: str
    boot_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class SessionState:
    """A conversation as the gateway keeps it. Token totals are filled at the end of a turn only."""

    session: str
    running: bool
    status: str  # running | done | failed | killed | ...
    workdir: str
    mode: str  # read-only | workspace
    context_tokens: int
    input_tokens: int
    output_tokens: int
    cost_usd: float


def session_key(profile: str, name: str) -> str:
    """The key of a conversation: `read` belongs to agent runner, `write` to weaver."""
    return f"agent:{PROFILES[profile][0]}:mosaic-{name}"


def ready(url: str, timeout: float = 2.0) -> bool:
    """Whether the gateway at a ws:// or http:// address says that it is ready for work (`GET /readyz`)."""
    parts = urlsplit(url)
    secure = parts.scheme in ("wss", "https")
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class OpenClaw:
    """A client of one gateway. `identity` is where this Mosaic keeps its device key (None: a new one per client)."""

    def __init__(self, url: str, token: str, *, identity: Path | None = None) -> None:
        self._url = url
        self._token = token
        self._identity = load_or_create(identity)

    def run(self, spec: RunSpec, on_event: Callable[[EngineEvent], None], cancelled: Callable[[], bool]) -> RunResult:
        """Play one turn to its end; blocks. Faults of gateway and model come back as an outcome, never as an error.

        `cancelled` is asked every 0.2 s; when it or `on_event` raises, the turn is aborted and the error passed on.
        A profile that does not fit the session's agent is refused (Permanent).
        """
        began = time.monotonic()
        agent, mode = _agent_of(spec)
        if cancelled():
            return RunResult("cancelled", error="The turn was cancelled before it began.")
        try:
            with self._connect() as connection:
                self._prepare(connection, spec, agent, mode)
                return Turn(connection, spec, agent, on_event, cancelled).play()
        except GatewayRefused as error:
            verdict = judge_error(error.rpc_code, str(error), "", reached_model=False)
        except GatewayUnavailable as error:
            return RunResult("engine_unavailable", error=str(error), retry_after=15.0, seconds=time.monotonic() - began)
        return RunResult(
            verdict.outcome, error=verdict.error, retry_after=verdict.retry_after, seconds=time.monotonic() - began
        )

    def abort(self, session: str, run_id: str | None = None) -> bool:
        """End a run (or, without `run_id`, whatever runs or waits in the session); True when something was ended.

        May be repeated. Raises GatewayUnavailable or GatewayRefused.
        """
        with self._connect() as connection:
            return _abort(connection, session, run_id)

    def settle(self, session: str, timeout: float) -> bool:
        """Make sure that nothing runs in a session any more, and that nothing resumes in it; False when unsure.

        Needed after a lost connection: a gateway that crashed resumes an interrupted turn by itself a few seconds
        after its restart, under a new run id, unless the session was aborted by then.
        """
        until = time.monotonic() + timeout
        while True:
            try:
                with self._connect() as connection:
                    if _settle(connection, session, until):
                        return True
            except (GatewayUnavailable, GatewayRefused):
                pass  # a gateway that is starting refuses or drops connections: that is what the time is for
            if time.monotonic() >= until:
                return False
            time.sleep(SETTLE_EVERY)

    def describe(self, session: str) -> SessionState | None:
        """The session's state, or None when the gateway does not know it. Raises as `abort`."""
        with self._connect() as connection:
            return _describe(connection, session)

    def delete(self, session: str) -> bool:
        """Forget a conversation; True when it existed. Asks for the admin scope, which runs never hold."""
        with self._connect(ADMIN_SCOPES) as connection:
            return connection.call("sessions.delete", {"key": session}).get("deleted") is True

    def health(self) -> Health:
        """Connect once and report. Never raises for a gateway that is away or wrong."""
        try:
            with self._connect() as connection:
                hello = connection.hello
        except GatewayUnavailable as error:
            return Health(False, "", "", str(error))
        return Health(True, hello.version, hello.boot_id, "")

    def _connect(self, scopes: tuple[str, ...] = RUN_SCOPES) -> Connection:
        return Connection(self._url, self._token, self._identity, scopes=scopes)

    def _prepare(self, connection: Connection, spec: RunSpec, agent: str, mode: str) -> None:
        """Create or reopen the session, and refuse to go on unless it is confined as asked.

        A label must be unique among all sessions, so the session's own name is part of it. The messages of the
        session are subscribed because they alone carry the token use of each model call.
        """
        params = {"key": spec.session, "agentId": agent, "cwd": spec.workdir, "permissionMode": mode}
        label = clip(" ".join(f"{spec.session.rpartition(':')[2]} {spec.label}".split()), LABEL_LIMIT)
        entry = dig(connection.call("sessions.create", {**params, "label": label}), "entry")
        root, granted = dig(entry, "sessionRoot"), dig(entry, "permissionMode")
        if root != os.path.realpath(spec.workdir) or granted != mode:
            raise GatewayUnavailable(
                f"OpenClaw would work in {root!r} with mode {granted!r} instead of {spec.workdir!r} with {mode!r}. "
                "Ask the operator to start the gateway with `mosaic engine`."
            )
        connection.call("sessions.messages.subscribe", {"key": spec.session})


def _agent_of(spec: RunSpec) -> tuple[str, str]:
    agent, mode = PROFILES.get(spec.profile, ("", ""))
    if not agent or not spec.session.startswith(f"agent:{agent}:"):
        raise Permanent(f"Profile {spec.profile!r} cannot run in the session {spec.session!r}.")
    return agent, mode


def _abort(connection: Connection, session: str, run_id: str | None) -> bool:
    params: dict[str, Any] = {"key": session, **({"runId": run_id} if run_id else {"clearQueued": True})}
    return connection.call("sessions.abort", params).get("status") == "aborted"


def _settle(connection: Connection, session: str, until: float) -> bool:
    """Idle = nothing was there to abort, and the session's own status agrees."""
    while True:
        ended = _abort(connection, session, None)
        state = _describe(connection, session)
        if not ended and (state is None or not state.running):
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(SETTLE_EVERY)


def _describe(connection: Connection, session: str) -> SessionState | None:
    row = connection.call("sessions.describe", {"key": session}).get("session")
    if not isinstance(row, dict):
        return None
    status = clip(row.get("status"), 40)
    return SessionState(
        session=session,
        running=status == "running" or row.get("hasActiveRun") is True,
        status=status,
        workdir=clip(row.get("sessionRoot"), 4096),
        mode=clip(row.get("permissionMode"), 40),
        context_tokens=whole(row.get("totalTokens")),
        input_tokens=whole(row.get("inputTokens")),
        output_tokens=whole(row.get("outputTokens")),
        cost_usd=money(row.get("estimatedCostUsd")),
    )
