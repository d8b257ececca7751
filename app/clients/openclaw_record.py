"""What the gateway's events tell about one run: counted, and relayed in Mosaic's words.

Its one rule: the gateway sends every client the events of all runs, so what is not of this run is not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from app.clients.openclaw_frames import TEXT_LIMIT, add, call_usage, clip, dig, retry_event, tool_event
from app.types import EngineEvent, Usage

USAGE_EVERY = 5.0  # seconds between relayed usage events; every model call is counted at once
TEXT_EVERY = 1.0


class RunRecord:
    """Feed it every event frame through `take`; read the counters at any time."""

    def __init__(self, run_id: str, emit: Callable[[EngineEvent], None]) -> None:
        self._run_id = run_id
        self._emit = emit
        self.activity = time.monotonic()  # of the last event of this run
        self.usage = Usage()
        self.context = 0  # tokens of the last model call: the size of the conversation
        self.model_calls = 0
        self.tools_ok: list[str] = []
        self.tool_failures = 0
        self.failure = ""  # OpenClaw's word for why the last model call failed; "" once one succeeds
        self.outage = 0.0  # seconds that the model will have been away when it is tried next; 0 while it answers
        self._outage_began = 0.0
        self._started = False
        self._paths: dict[str, str] = {}  # tool call -> path: its result does not repeat it
        self._text = ""
        self._text_at = self._usage_at = 0.0
        self._handlers: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            "lifecycle": self._lifecycle,
            "tool": self._tool,
            "run_status": self._run_status,
            "assistant": self._assistant,
        }

    def take(self, name: str, payload: Mapping[str, Any]) -> None:
        """One event frame: `name` is its family, e.g. agent, chat, session.message, tick."""
        if name == "session.message":
            self._message(payload)
        if name not in ("agent", "chat") or payload.get("runId") != self._run_id:
            return
        self.activity = time.monotonic()
        handler = self._handlers.get(str(payload.get("stream")))
        data = payload.get("data")
        if name == "agent" and handler and isinstance(data, Mapping):
            handler(data)

    def finish(self, total: Usage, context: int) -> None:
        """Relay what was held back. `total` is the gateway's own account of the run (zero when it gave none)."""
        if total.total:
            self.usage = total
        self.context = context or self.context
        self._flush_text()
        self._emit_usage()

    def _message(self, payload: Mapping[str, Any]) -> None:
        usage = call_usage(payload, self._run_id)
        if usage is None:
            return
        self.activity = time.monotonic()
        self.usage = add(self.usage, usage)
        if usage.total:
            self.context = usage.total
            self.failure, self.outage = "", 0.0
        if time.monotonic() - self._usage_at >= USAGE_EVERY:
            self._emit_usage()

    def _lifecycle(self, data: Mapping[str, Any]) -> None:
        phase = data.get("phase")
        reason = dig(data, "errorObservation", "failoverReason")
        if isinstance(reason, str):
            self.failure = reason
        if phase == "start" and not self._started:
            self._started = True
            self._emit(EngineEvent("started", {}))
        elif phase == "model" and data.get("model"):
            self.model_calls += 1
            self._emit(EngineEvent("model", {"model": clip(data["model"], 100), "call": self.model_calls}))
        elif phase == "finishing" and not data.get("error"):
            self._flush_text()
            self._emit(EngineEvent("finishing", {"stop_reason": clip(data.get("stopReason"), 40)}))

    def _tool(self, data: Mapping[str, Any]) -> None:
        event = tool_event(data)
        if event is None:
            return
        self._flush_text()
        call = str(event.data["call"])
        if event.kind == "tool_start":
            self._paths[call] = str(event.data["path"])
        else:
            event = EngineEvent(event.kind, {**event.data, "path": self._paths.pop(call, "")})
            self._count(event)
        self._emit(event)

    def _count(self, event: EngineEvent) -> None:
        if event.data["ok"]:
            self.tools_ok.append(str(event.data["tool"]))
        else:
            self.tool_failures += 1

    def _run_status(self, data: Mapping[str, Any]) -> None:
        event = retry_event(data)
        if event is None:
            return
        now = time.monotonic()
        if not self.outage:
            self._outage_began = now
        self.outage = now - self._outage_began + float(event.data["wait_s"])
        self._emit(event)

    def _assistant(self, data: Mapping[str, Any]) -> None:
        delta = data.get("delta")
        if isinstance(delta, str) and delta:
            self._text = clip(self._text + delta, TEXT_LIMIT)
            if time.monotonic() - self._text_at >= TEXT_EVERY:
                self._flush_text()

    def _flush_text(self) -> None:
        if self._text:
            self._emit(EngineEvent("text", {"text": self._text}))
            self._text = ""
        self._text_at = time.monotonic()

    def _emit_usage(self) -> None:
        self._usage_at = time.monotonic()
        used = self.usage
        self._emit(EngineEvent("usage", {**asdict(used), "context": self.context}))
