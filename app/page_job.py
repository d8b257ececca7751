"""What the page of one job shows: its timeline, its gates, what went out. Pure, from frozen values.

One rule: every attempt of every step is there; nothing is summed up into looking better than it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from app.page_views import AGENT, GATE, flat, label
from app.types import Event, GateResult, Job, Step, StepStatus
from app.voice_format import brief_duration, counts, duration, plural, verdict

_LOOP = ("weaver.implement", "runner.commit", "inspector.policy")  # with the gates: one set per round
_NEVER = 1_000_000  # beyond every order: a plan without a round
_EFFECTS = {
    "reaction": "Reaction (eyes)",
    "comment.status": "Status comment",
    "comment.closing": "Closing comment",
    "comment.answer": "Answer",
    "push": "Branch pushed",
    "pull_request": "Pull request",
    "commit.status": "Commit status",
    "label.remove": "Label removed",
}
_STEP_TONES = {
    StepStatus.COMPLETED: "ok",
    StepStatus.FAILED: "bad",
    StepStatus.RUNNING: "run",
    StepStatus.SKIPPED: "off",
    StepStatus.CANCELLED: "off",
}


@dataclass(frozen=True, slots=True)
class Live:
    """What the running agent did last."""

    last: str
    calls: int
    tokens: int
    idle: float | None  # seconds since its last activity


@dataclass(frozen=True, slots=True)
class StepView:
    step: Step
    label: str
    tone: str
    seconds: float | None
    notes: tuple[str, ...]
    live: Live | None
    has_log: bool


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    steps: tuple[StepView, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    gate: GateResult
    id: str
    tone: str
    facts: tuple[str, ...]
    log: str  # id of the step whose log it is; "" when there is none


@dataclass(frozen=True, slots=True)
class Round:
    number: int
    newest: bool
    summary: str
    receipts: tuple[Receipt, ...]


# ---------------------------------------------------------------- the steps of a job


def sections(
    steps: Sequence[Step],
    now: datetime,
    *,
    logged: frozenset[int] = frozenset(),
    progress: Mapping[str, Any] | None = None,
    events: Sequence[Event] = (),
) -> tuple[Section, ...]:
    """The timeline: preparation, each round, delivery; every attempt of every step."""
    loop = [step.order for step in steps if step.name in _LOOP or step.name.startswith(GATE)]
    start, end = min(loop, default=_NEVER), max(loop, default=_NEVER)

    def section(step: Step) -> tuple[int, int]:
        if step.order > end:
            return 2, 0
        return (1, step.round) if step.order >= start or step.round > 1 else (0, 0)

    names = {0: "Preparation", 2: "Delivery"}
    ordered = sorted(steps, key=lambda step: (*section(step), step.order, step.name, step.attempt))
    return tuple(
        Section(
            names.get(kind) or f"Round {number}",
            tuple(_step(step, now, step.id in logged, progress, events) for step in members),
        )
        for (kind, number), members in groupby(ordered, key=section)
    )


def _step(
    step: Step, now: datetime, has_log: bool, progress: Mapping[str, Any] | None, events: Sequence[Event]
) -> StepView:
    running = step.status is StepStatus.RUNNING
    end = step.finished_at or (now if running else None)
    seconds = (end - step.started_at).total_seconds() if end and step.started_at else None
    live = _live(step, progress, events, now) if running and step.name.startswith(AGENT) else None
    return StepView(step, label(step.name), _step_tone(step), seconds, tuple(_notes(step, now)), live, has_log)


def _step_tone(step: Step) -> str:
    """A red gate that is not required warns; it stops nothing."""
    if step.status is StepStatus.FAILED and step.output.get("required") is False:
        return "ask"
    return _STEP_TONES.get(step.status, "idle")


def _notes(step: Step, now: datetime) -> Iterable[str]:
    if step.attempt > 1:
        yield f"attempt {step.attempt}"
    if step.crashes:
        yield f"{plural(step.crashes, 'worker')} lost"
    if step.faults:
        yield f"handed back {plural(step.faults, 'time')}"
    if step.run_after and step.run_after > now and step.status is StepStatus.PENDING:
        yield f"again in {duration((step.run_after - now).total_seconds())}"


def _live(step: Step, progress: Mapping[str, Any] | None, events: Sequence[Event], now: datetime) -> Live | None:
    if not progress:
        return None
    last = max((event.at for event in events if event.step == step.key), default=None)
    words = " ".join(str(progress[key]) for key in ("tool", "path") if progress.get(key))
    return Live(
        flat(words, 200),
        _whole(progress.get("calls")),
        _whole(progress.get("tokens")),
        max(0.0, (now - last).total_seconds()) if last else None,
    )


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def tool_calls(steps: Sequence[Step], progress: Mapping[str, Any] | None) -> int:
    done = sum(_whole(step.output.get("tool_calls")) for step in steps if step.name.startswith(AGENT))
    return done + _whole((progress or {}).get("calls"))


# ---------------------------------------------------------------- gates and effects


def rounds(
    results: Sequence[tuple[int, GateResult]], steps: Sequence[Step], logged: frozenset[int]
) -> tuple[Round, ...]:
    """The receipts, newest round first."""
    by_name = {(step.round, step.name): step for step in sorted(steps, key=lambda step: step.attempt)}
    grouped: dict[int, list[Receipt]] = {}
    for number, gate in results:
        step = by_name.get((number, GATE + gate.name))
        log = step.key if step and step.id in logged else ""
        receipts = grouped.setdefault(number, [])
        receipts.append(
            Receipt(gate, f"output-{number}-{len(receipts)}", _gate_tone(gate), tuple(_gate_facts(gate)), log)
        )
    last = max(grouped, default=0)
    return tuple(
        Round(number, number == last, _summary(grouped[number]), tuple(grouped[number]))
        for number in sorted(grouped, reverse=True)
    )


def _gate_tone(gate: GateResult) -> str:
    return "ok" if gate.passed else "bad" if gate.required else "ask"


def _gate_facts(gate: GateResult) -> Iterable[str]:
    yield verdict(gate)
    yield brief_duration(gate.seconds)
    counted = counts(gate)
    if counted:
        yield counted
    if not gate.required:
        yield "not required"


def _summary(receipts: Sequence[Receipt]) -> str:
    red = [receipt.gate.name for receipt in receipts if not receipt.gate.passed]
    return f"{len(red)} of {len(receipts)} red: {', '.join(red)}" if red else f"all {len(receipts)} green"


def limits(rules: Mapping[str, Any] | None) -> dict[str, Any]:
    """The limits that the page shows beside what was used; None where a job has none yet."""
    stored = (rules or {}).get("limits") or {}
    return {name: stored.get(name) for name in ("minutes", "tokens", "cost_usd", "rounds")}


def seen(snapshot: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The snapshot with every part that the page names."""
    if snapshot is None:
        return None
    return {
        "issue_title": "",
        "issue_body": "",
        "issue_author": "",
        "comments": [],
        "excluded": [],
        "hashes": {},
        "agents_md": "",
        **snapshot,
    }


def effect_label(kind: str) -> str:
    return _EFFECTS.get(kind, kind)


def effect_detail(effect: Mapping[str, Any]) -> str:
    """What an effect is about, in a few words."""
    target, result = effect["target"], effect["result"]
    match effect["kind"]:
        case "push":
            return f"{target.get('branch') or ''} at {str(target.get('sha') or '')[:10]}"
        case "pull_request":
            return f"#{result['number']}" if "number" in result else "not there yet"
        case "commit.status":
            return f"{target.get('context')}: {target.get('state')}"
        case _:
            return f"in #{target['number']}" if target.get("number") else ""


def effect_tone(effect: Mapping[str, Any]) -> str:
    return {"done": "ok", "failed": "bad"}.get(effect["state"], "idle")


def settled(job: Job, effects: Sequence[Mapping[str, Any]]) -> bool:
    """Whether nothing on the page will change any more."""
    return job.status.terminal and not any(effect["state"] == "planned" for effect in effects)
