"""weaver: lets the agent change files in the worktree. It holds no forge token and no git dir, and never pushes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app import budget, disk, prompts, quality_rails, queries
from app import engine as gateway
from app.clients.openclaw import OpenClaw, session_key
from app.context import Context
from app.prompts import Begun, Snapshot
from app.types import Cancelled, Done, EngineEvent, Failed, Finding, HandBack, Result, RunResult, RunSpec, Step, Usage

STEP_SECONDS = 3600.0
FILL_LIMIT = 0.6  # of the context window: beyond it the next round starts a fresh conversation
RESTART_SECONDS = 12.0  # about what the gateway takes to be ready again
SETTLE_SECONDS = 1.5  # per old session; a gateway that is away hands the step back
FRESH = ("runner.checkout", "runner.setup")  # what has to run again when the worktree cannot be trusted
BACKOFF = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0)


def implement(context: Context) -> Result:
    """One turn of the agent on the worktree; later rounds go on in the same conversation while it has room."""
    engine = context.clients.engine
    assert engine is not None
    refusal = budget.used_up(context)
    if refusal:
        return refusal
    unrest = _unrest(context, engine)
    if unrest:
        return HandBack("engine_unavailable", unrest, _pause(context.row["faults"]))
    session, goes_on = _conversation(context)
    spec = RunSpec(
        run_id=f"mosaic-{context.job.id}-{context.row['id']}-{context.row['fence']}",
        session=session,
        profile="write",
        workdir=str(context.worktree),
        prompt=_prompt(context, goes_on),
        system=prompts.system_prompt(_rules_text(context)),
        deadline_s=max(1.0, context.seconds_left(STEP_SECONDS)),
        stall_s=context.rules.limits.stall_minutes * 60.0,
        label=f"mosaic {context.job.id} round {context.round}",
        token_limit=max(1, context.rules.limits.tokens - context.job.tokens),
        cost_limit=budget.cost_left(context),
    )
    watch = Watch(context)
    context.check()  # who was frozen up to here may look at the worktree of the next owner
    ran = engine.run(spec, watch, context.cancelled)
    context.tokens(ran.usage)
    if gateway.wedged(ran.error) and gateway.kill_wedged(context.paths.engine_state):
        ran = replace(ran, error=f"{ran.error}. The gateway is being restarted.", retry_after=RESTART_SECONDS)
    short = _short(context, ran)
    if short:
        return HandBack("disk_full", short, _pause(context.row["faults"]), FRESH)
    if ran.outcome == "budget_exhausted":
        day = budget.daily_left(context, context.rules)[1]
        if day:
            return Failed("daily_budget_exhausted", day)
    return judge(ran, session, context.row["faults"])


def _short(context: Context, ran: RunResult) -> str:
    """Why the turn is worth nothing: the agent, or the gateway, could not write. "" when there was room."""
    broke = ran.outcome in ("failed", "stalled", "lost", "engine_unavailable")
    missed = ran.outcome == "completed" and ran.tool_failures > 0
    return disk.short(context.paths.data) if broke or missed else ""


def judge(ran: RunResult, session: str, faults: int) -> Result:
    """A turn's outcome as the result of the step; `faults` = how often the step was handed back before."""
    dirty = FRESH if ran.tool_calls or ran.outcome == "lost" else ()
    match ran.outcome:
        case "completed":
            return Done(
                output={
                    "text": ran.text[:8000],
                    "session": session,
                    "session_tokens": ran.session_tokens,
                    "boot_id": ran.boot_id,
                    "tool_calls": ran.tool_calls,
                    "seconds": round(ran.seconds, 1),
                }
            )
        case "cancelled":
            raise Cancelled("the turn was stopped")
        case "timed_out" | "stalled" | "budget_exhausted":
            return Failed(ran.outcome, ran.error)
        case "engine_unavailable" | "lost":
            wait = ran.retry_after or _pause(faults)
            return HandBack("engine_unavailable", ran.error or "The engine dropped the connection.", wait, dirty)
        case "rejected":
            return Failed("engine_rejected", ran.error)
        case _:
            return Failed(
                "agent_failed", ran.error or f"The agent stopped with {ran.stop_reason or 'an error'}.", retryable=True
            )


def _pause(faults: int) -> float:
    """Seconds until a step that was handed back is tried again."""
    return BACKOFF[min(faults, len(BACKOFF) - 1)]


# ---------------------------------------------------------------- the conversation


def _workspace_fence(context: Context) -> int:
    return int(context.output_of("runner.checkout")["fence"])


def _conversation(context: Context) -> tuple[str, bool]:
    """(session, whether it goes on). A conversation that fills its window is left for a fresh one on the same files."""
    session = session_key("write", f"{context.job.id}-{_workspace_fence(context)}")
    previous, window = context.output_of("weaver.implement"), context.settings.model_context_window
    if not str(previous.get("session", "")).startswith(session):
        return session, False
    if not window or previous.get("session_tokens", 0) < FILL_LIMIT * window:
        return str(previous["session"]), True
    return f"{session}-{context.step.round}", False


def _unrest(context: Context, engine: OpenClaw) -> str:
    """After a lost owner: why it is not sure that no earlier turn of this job still runs; "" when none does.

    OpenClaw resumes turns by itself after a crash.
    """
    if not (context.row["crashes"] or context.row["faults"] or context.row["attempt"] > 1):
        return ""
    health = engine.health()
    if not health.ok:
        return health.detail
    quiet = all(engine.settle(session_key("write", name), SETTLE_SECONDS) for name in _earlier_sessions(context))
    return "" if quiet else "An earlier turn of this job could not be stopped."


def _earlier_sessions(context: Context) -> list[str]:
    fences = [
        step.output["fence"]
        for step in queries.steps(context.job.id)
        if step.name == "runner.checkout" and "fence" in step.output
    ]
    rounds = ("", *(f"-{round}" for round in range(2, context.step.round + 1)))
    return [f"{context.job.id}-{fence}{end}" for fence in fences for end in rounds]


def _prompt(context: Context, goes_on: bool) -> str:
    job, gates, rounds = context.job, context.gates, context.rules.limits.rounds
    snapshot = _snapshot(context)
    fence = secrets.token_hex(8)
    round, before = context.round, context.step.round - 1
    if round == 1:
        begun = _begun(context)
        return prompts.task_prompt(job, snapshot, gates, round=1, rounds=rounds, delimiter=fence, begun=begun)
    feedback = quality_rails.continuation(
        queries.gate_results(job.id, before), _findings(context, before), round, rounds
    )
    if goes_on:
        return prompts.followup_prompt(job, feedback, round=round, rounds=rounds, delimiter=fence)
    return prompts.handover_prompt(
        job, snapshot, gates, feedback, _done_so_far(context), round=round, rounds=rounds, delimiter=fence
    )


def _begun(context: Context) -> Begun | None:
    """What an earlier job had done, when this one goes on from it."""
    saved = context.job.metadata.get("continues")
    if not saved:
        return None
    earlier = int(saved["job"])
    said = next((step.output["text"] for step in _turns(earlier) if step.output.get("text")), "")
    red = queries.gate_results(earlier) if saved["reason"] == "gates_failed" else ()
    paths = context.output_of("runner.checkout").get("begun", ())
    return Begun(
        job=earlier,
        reason=str(saved["reason"]),
        paths=tuple(map(str, paths)),
        numbers=(int(saved["files"]), int(saved["added"]), int(saved["removed"])),
        said=str(said),
        feedback=quality_rails.continuation(red, (), 1, context.rules.limits.rounds) if red else "",
    )


def _turns(job_id: int) -> list[Step]:
    """The agent's turns of a job, newest first."""
    turns = [step for step in queries.steps(job_id) if step.name == "weaver.implement"]
    return sorted(turns, key=lambda step: (step.round, step.attempt), reverse=True)


def _snapshot(context: Context) -> Snapshot:
    body = queries.snapshot(context.job.id)
    if body is None:
        raise LookupError(f"job {context.job.id} has no snapshot")
    return Snapshot.from_json(body)


def _rules_text(context: Context) -> str:
    return str((queries.snapshot(context.job.id) or {}).get("agents_md", ""))


def _findings(context: Context, round: int) -> tuple[Finding, ...]:
    red = [step for step in queries.steps(context.job.id) if step.name == "inspector.policy" and step.round == round]
    return tuple(Finding(**finding) for finding in _last(red).get("findings", ())) if red else ()


def _last(steps: list[Step]) -> Mapping[str, Any]:
    return max(steps, key=lambda step: step.attempt).output


def _done_so_far(context: Context) -> str:
    last = context.output_of("runner.commit")
    before = context.output_of("weaver.implement").get("text", "")
    if not last:
        return ""
    numbers = f"{last.get('files', 0)} files changed, +{last.get('added', 0)} −{last.get('removed', 0)} lines."
    return f"{numbers}\n{before}"


# ---------------------------------------------------------------- watching


class Watch:
    """Turns the engine's events into the job's events and its progress."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.calls = 0
        self.tool = self.path = ""
        self.usage = Usage()
        self.active_at = time.monotonic()

    def __call__(self, event: EngineEvent) -> None:
        data = event.data
        if event.kind == "tool_start":
            self.calls += 1
            self.tool, self.path = str(data.get("tool", "")), str(data.get("path", ""))
        elif event.kind == "tool_end":
            self.context.event(
                "ai.tool_called",
                tool=data.get("tool"),
                path=data.get("path"),
                ok=data.get("ok"),
                note=str(data.get("note", ""))[:300],
            )
        elif event.kind == "usage":
            self.usage = Usage(**{key: data[key] for key in Usage.__slots__ if key in data})
            self.context.tokens(self.usage)
        idle, self.active_at = time.monotonic() - self.active_at, time.monotonic()
        self.context.progress(
            calls=self.calls, tool=self.tool, path=self.path, tokens=self.usage.total, idle_seconds=round(idle, 1)
        )
