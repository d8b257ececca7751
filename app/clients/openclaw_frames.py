"""What the frames of a run mean: events for the ledger, usage, and the outcome. Its one rule: no file bodies pass.

Pure functions on decoded frames, written against OpenClaw 2026.9.6; whatever they do not know is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.types import EngineEvent, Usage

Data = Mapping[str, Any]

PATH_LIMIT = 300
NOTE_LIMIT = 200
TEXT_LIMIT = 20_000
PATCHED_FILE = re.compile(r"^\*\*\* (?:Add|Update|Delete) File: (.+)$", re.MULTILINE)

# OpenClaw's words for why a model call failed -> seconds until another try makes sense.
# After a refused key (401, billing) the gateway blocks the provider for about a minute, for every run.
RETRY_AFTER: Mapping[str, float] = {
    "auth": 90.0,
    "auth_permanent": 300.0,
    "billing": 300.0,
    "rate_limit": 60.0,
    "overloaded": 60.0,
    "server_error": 30.0,
    "timeout": 30.0,
    "tls_certificate": 300.0,
}
REJECTED = ("format", "model_not_found")
KEY_BLOCKED = re.compile(r"temporarily disabled after a provider (?:auth|billing)")
MISCONFIGURED = ("FORBIDDEN", "NOT_PAIRED", "UNAVAILABLE")


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome of RunResult with its explanation."""

    outcome: str
    error: str = ""
    retry_after: float | None = None


def dig(value: Any, *keys: str) -> Any:
    """The value under nested keys, or None where anything on the way is absent or not an object."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def clip(value: Any, limit: int) -> str:
    """A value as one short text; what is not a text becomes empty."""
    text = value if isinstance(value, str) else ""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def whole(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


def money(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 else 0.0


# ---------------------------------------------------------------- events


def tool_event(data: Data) -> EngineEvent | None:
    """`agent` event, stream `tool`: {phase: start|result, name, toolCallId, args | result, isError, meta}."""
    head = {"tool": clip(data.get("name"), 60), "call": clip(data.get("toolCallId"), 60)}
    if data.get("phase") == "start":
        return EngineEvent("tool_start", {**head, "path": _path(data.get("args"))})
    if data.get("phase") == "result":
        failed = bool(data.get("isError"))
        note = _first_text(data.get("result")) if failed else data.get("meta")
        return EngineEvent("tool_end", {**head, "ok": not failed, "note": clip(note, NOTE_LIMIT)})
    return None


def _path(args: Any) -> str:
    """The file that a tool call names. A patch names several: they are listed, its body is left out."""
    named = dig(args, "path") or dig(args, "file_path")
    patch = dig(args, "input")
    if not named and isinstance(patch, str):
        named = ", ".join(PATCHED_FILE.findall(patch[:200_000]))
    return clip(named, PATH_LIMIT)


def _first_text(result: Any) -> str:
    content = dig(result, "content")
    for part in content if isinstance(content, list) else []:
        if isinstance(dig(part, "text"), str):
            return str(part["text"]).strip()
    return ""


def retry_event(data: Data) -> EngineEvent | None:
    """`agent` event, stream `run_status`: {phase: retrying, retryAttempt, maxRetries, delayMs, reason}."""
    if data.get("phase") != "retrying":
        return None
    wait = whole(data.get("delayMs")) / 1000
    tries = {"retry": whole(data.get("retryAttempt")), "of": whole(data.get("maxRetries"))}
    return EngineEvent("model", {**tries, "wait_s": wait, "reason": clip(data.get("reason"), 60)})


# ---------------------------------------------------------------- usage


def usage_of(usage: Any) -> Usage:
    """OpenClaw's usage object: {input, output, cacheRead, cacheWrite, total | totalTokens, cost: {total}}."""
    parts = [whole(dig(usage, key)) for key in ("input", "output", "cacheRead", "cacheWrite")]
    total = whole(dig(usage, "total")) or whole(dig(usage, "totalTokens")) or sum(parts)
    return Usage(parts[0], parts[1], parts[2], parts[3], total, money(dig(usage, "cost", "total")))


def add(a: Usage, b: Usage) -> Usage:
    """Two usages together."""
    return Usage(
        a.input + b.input,
        a.output + b.output,
        a.cache_read + b.cache_read,
        a.cache_write + b.cache_write,
        a.total + b.total,
        a.cost_usd + b.cost_usd,
    )


def call_usage(payload: Data, run_id: str) -> Usage | None:
    """Usage of one model call, from a `session.message` event of this run; None for every other message."""
    message = payload.get("message")
    if dig(message, "role") != "assistant" or dig(message, "__openclaw", "runId") != run_id:
        return None
    usage = dig(message, "usage")
    return usage_of(usage) if isinstance(usage, Mapping) else None


# ---------------------------------------------------------------- outcomes


def judge_error(code: str, message: str, reason: str, *, reached_model: bool) -> Verdict:
    """Outcome of a run that the gateway answered with an error.

    `reason` is the failure that the run's own events named ("" if none), `code` the word of the error frame.
    """
    text = clip(message, 500)
    if reason in RETRY_AFTER:
        return Verdict("engine_unavailable", f"The model did not answer ({reason}): {text}", RETRY_AFTER[reason])
    if KEY_BLOCKED.search(message):
        return Verdict("engine_unavailable", f"The model refused the key a moment ago: {text}", RETRY_AFTER["auth"])
    if reason in REJECTED or code == "INVALID_REQUEST":
        return Verdict("rejected", text)
    if code in MISCONFIGURED and not reason and not reached_model:
        return Verdict("engine_unavailable", f"OpenClaw could not start the turn: {text}", RETRY_AFTER["server_error"])
    return Verdict("failed", text)


def judge_final(payload: Data, reason: str) -> Verdict:
    """Outcome of a run whose final frame has no error: `status: ok` alone does not mean success.

    A turn that was cut off during a tool call also ends with `ok`, with another stop reason or an error payload.
    """
    meta = dig(payload, "result", "meta")
    if payload.get("status") != "ok":
        return _judge_unfinished(payload, meta, reason)
    wrong = _error_payload(payload)
    if dig(meta, "error"):
        wrong = clip(dig(meta, "error", "message"), 500) or "the turn ended with an error"
    if dig(meta, "aborted"):
        wrong = "the turn was aborted"
    stop = dig(meta, "stopReason")
    if not wrong and stop != "stop":
        wrong = f"the turn ended with stop reason {stop!r} instead of 'stop'"
    if not wrong:
        return Verdict("completed")
    if reason in RETRY_AFTER:
        return Verdict("engine_unavailable", f"The model did not answer ({reason}): {wrong}", RETRY_AFTER[reason])
    return Verdict("failed", wrong)


def _judge_unfinished(payload: Data, meta: Any, reason: str) -> Verdict:
    """`status: timeout` without our asking: OpenClaw's own limit in a model call, or somebody else's abort."""
    if reason not in RETRY_AFTER and dig(meta, "timeoutPhase") == "provider":
        reason = "timeout"
    if reason in RETRY_AFTER:
        text = f"The model did not answer ({reason}); OpenClaw gave up."
        return Verdict("engine_unavailable", text, RETRY_AFTER[reason])
    summary = clip(payload.get("summary"), 100)
    return Verdict("lost", f"The turn was ended by something other than this worker ({summary}).")


def _error_payload(payload: Data) -> str:
    parts = dig(payload, "result", "payloads")
    for part in parts if isinstance(parts, list) else []:
        if dig(part, "isError"):
            return clip(dig(part, "text"), 500) or "the turn ended with an error"
    return ""


def final_text(payload: Data) -> str:
    """The agent's closing words."""
    parts = dig(payload, "result", "payloads")
    texts = [dig(part, "text") for part in (parts if isinstance(parts, list) else [])]
    return clip("\n\n".join(text for text in texts if isinstance(text, str)), TEXT_LIMIT)
