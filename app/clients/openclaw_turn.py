"""One turn of the agent on one connection. Its one rule: Mosaic's clock and record decide how a turn ended.

OpenClaw's own timeout does not bound its retries of a failing model (measured: 116 s with a timeout of 30), and its
final frame does not tell an abort from a timeout. So the deadline, the stall limit, the budget and the patience with
the model are kept here, a turn is ended by `sessions.abort`, and what was asked for is what is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from app.clients.openclaw_connection import Connection, ConnectionLost, Frame, GatewayUnavailable
from app.clients.openclaw_frames import (
    RETRY_AFTER,
    Verdict,
    clip,
    dig,
    final_text,
    judge_error,
    judge_final,
    usage_of,
    whole,
)
from app.clients.openclaw_record import RunRecord
from app.types import EngineEvent, RunResult, RunSpec

TICK = 0.2  # seconds between looks at the clock and at the cancel flag
ACCEPT_LIMIT = 60.0  # for the gateway to accept the turn
ABORT_EVERY = 1.0  # an abort that comes before the turn has really begun finds nothing to end: ask again
ABORT_LIMIT = 10.0  # for the turn to end after we asked
# A model that fails before the agent has done anything: give up and come back later. Once the agent has worked,
# OpenClaw's own retries (90 s at most) are cheaper than doing the work again.
MODEL_PATIENCE = 25.0
OVERTIME = 60  # seconds beyond our deadline at which OpenClaw ends a turn by itself, should this process be gone


class Turn:
    """Plays one RunSpec; `on_event` and `cancelled` are called from this thread only."""

    def __init__(
        self,
        connection: Connection,
        spec: RunSpec,
        agent: str,
        on_event: Callable[[EngineEvent], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._spec = spec
        self._agent = agent
        self._cancelled = cancelled
        self._record = RunRecord(spec.run_id, on_event)
        self._began = time.monotonic()
        self._request = ""
        self._accepted = False
        self._stop: Verdict | None = None
        self._stop_at = self._last_abort = self._last_look = 0.0

    def play(self) -> RunResult:
        """Start the turn, follow it to its end, say what came of it. Only errors of the two callbacks are raised."""
        try:
            final = self._follow()
        except ConnectionLost as error:
            self._stop = self._stop or Verdict("lost", f"{error} The turn may still be running.")
            final = None
        except BaseException:
            self._abort_quietly()
            raise
        return self._result(final)

    def _follow(self) -> Frame | None:
        """The final frame, or None when the turn did not end within the time it was given to stop."""
        self._request = self._connection.send("agent", self._parameters())
        while True:
            frame = self._connection.receive(TICK)
            if frame is not None and self._take(frame):
                return frame
            now = time.monotonic()
            if now - self._last_look < TICK:
                continue
            self._last_look = now
            if self._stop is None:
                self._stop, self._stop_at = self._reason_to_stop(now), now
            if self._stop is not None and not self._ask_to_stop(now):
                return None

    def _parameters(self) -> dict[str, Any]:
        spec = self._spec
        parameters: dict[str, Any] = {
            "message": spec.prompt,
            "sessionKey": spec.session,
            "agentId": self._agent,
            "idempotencyKey": spec.run_id,  # becomes the run id
            "timeout": int(spec.deadline_s) + OVERTIME,
            "deliver": False,
        }
        if spec.system:
            parameters["extraSystemPrompt"] = spec.system
        return parameters

    def _take(self, frame: Frame) -> bool:
        """Handle one frame; True when it is the final answer of the turn."""
        payload = frame.get("payload")
        payload = payload if isinstance(payload, Mapping) else {}
        if frame.get("type") == "event":
            self._record.take(str(frame.get("event")), payload)
        elif frame.get("type") == "res" and frame.get("id") == self._request:
            self._record.activity = time.monotonic()
            self._accepted = True
            return not (frame.get("ok") is True and payload.get("status") == "accepted")
        return False

    def _reason_to_stop(self, now: float) -> Verdict | None:
        spec, record = self._spec, self._record
        if self._cancelled():
            return Verdict("cancelled", "The turn was cancelled.")
        if now - self._began > spec.deadline_s:
            return Verdict("timed_out", f"The turn reached its limit of {spec.deadline_s:g} s.")
        if spec.token_limit is not None and record.usage.total > spec.token_limit:
            return Verdict("budget_exhausted", f"The turn used {record.usage.total} tokens of {spec.token_limit}.")
        if spec.cost_limit is not None and record.usage.cost_usd > spec.cost_limit:
            spent = f"{record.usage.cost_usd:.4f} USD of {spec.cost_limit:.4f}"
            return Verdict("budget_exhausted", f"The turn cost {spent}.")
        if not self._accepted and now - self._began > ACCEPT_LIMIT:
            return Verdict("engine_unavailable", "OpenClaw did not accept the turn in time.", RETRY_AFTER["timeout"])
        if record.outage > MODEL_PATIENCE and not record.tools_ok:
            text = f"The model did not answer ({record.failure}), and was given {MODEL_PATIENCE:g} s to recover."
            return Verdict("engine_unavailable", text, RETRY_AFTER.get(record.failure, RETRY_AFTER["timeout"]))
        if now - record.activity > spec.stall_s:
            return Verdict("stalled", f"The agent showed no activity for {spec.stall_s:g} s.")
        return None

    def _ask_to_stop(self, now: float) -> bool:
        """Send the abort, again and again; False when the turn has had its time to end."""
        if now - self._stop_at > ABORT_LIMIT:
            return False
        if now - self._last_abort >= ABORT_EVERY:
            self._last_abort = now
            self._connection.send("sessions.abort", {"key": self._spec.session, "runId": self._spec.run_id})
        return True

    def _abort_quietly(self) -> None:
        """This thread is about to leave with an error of its own: the turn must not go on without it."""
        with suppress(GatewayUnavailable):
            self._connection.call("sessions.abort", {"key": self._spec.session, "clearQueued": True}, ABORT_LIMIT)

    def _result(self, final: Frame | None) -> RunResult:
        payload = final.get("payload") if final else None
        payload = payload if isinstance(payload, Mapping) else {}
        meta, record = dig(payload, "result", "meta"), self._record
        record.finish(
            usage_of(dig(meta, "agentMeta", "usage")), whole(dig(meta, "agentMeta", "lastCallUsage", "total"))
        )
        result = RunResult(
            outcome="failed",
            text=final_text(payload),
            usage=record.usage,
            session_tokens=record.context,
            tools_ok=tuple(record.tools_ok),
            tool_calls=len(record.tools_ok) + record.tool_failures,
            tool_failures=record.tool_failures,
            stop_reason=clip(dig(meta, "stopReason"), 40),
            boot_id=self._connection.hello.boot_id,
            seconds=time.monotonic() - self._began,
        )
        verdict = self._verdict(final, payload)
        return replace(result, outcome=verdict.outcome, error=verdict.error, retry_after=verdict.retry_after)

    def _verdict(self, final: Frame | None, payload: Mapping[str, Any]) -> Verdict:
        if final is None or self._stop is not None:
            return self._own_verdict(final)
        if final.get("ok") is True:
            return judge_final(payload, self._record.failure)
        code, message = dig(final, "error", "code"), dig(final, "error", "message")
        return judge_error(
            str(code or ""),
            str(message or "no reason given"),
            self._record.failure,
            reached_model=self._record.model_calls > 0,
        )

    def _own_verdict(self, final: Frame | None) -> Verdict:
        """What we asked for, and whether it was seen to happen."""
        stop = self._stop or Verdict("lost", "The turn did not end.")
        if final is None and stop.outcome != "lost":
            return replace(stop, error=f"{stop.error} OpenClaw did not confirm that it ended.")
        return stop
