"""The pure heart: from a job's facts, its plan and its steps so far to its next moves. No clock, no database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from app.pipeline import ADMIT, BACK_TO, ROUND_STEPS, StepSpec
from app.types import CLOCK_STOPS, REASONS, JobStatus, Step, StepStatus


@dataclass(frozen=True, slots=True)
class Facts:
    """What `decide` knows of the job besides its steps."""

    status: JobStatus
    reason: str | None = None  # the outcome, once it is known
    cancel_requested: bool = False
    deadline_passed: bool = False
    outage_over: bool = False  # it waited for the forge or for space as long as a job may
    rounds: int = 3  # limits.rounds
    attempts: int = 2  # limits.attempts, for the agent's step


@dataclass(frozen=True, slots=True)
class Queue:
    """Admitted: put the gates into the plan and queue the job."""


@dataclass(frozen=True, slots=True)
class Start:
    """The job wants to run; it does when its repository has a free slot."""


@dataclass(frozen=True, slots=True)
class Ready:
    """It is the turn of these steps."""

    step_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt at the same work."""

    spec: StepSpec
    round: int
    attempt: int


@dataclass(frozen=True, slots=True)
class NextRound:
    """Forced continuation: back to the agent because something is red."""

    round: int
    specs: tuple[StepSpec, ...]
    red: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skip:
    step_ids: tuple[int, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Conclude:
    """The outcome is known; what remains are the closing steps."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    status: JobStatus


Move = Queue | Start | Ready | Again | NextRound | Skip | Conclude | Finish


def latest(steps: Iterable[Step]) -> dict[str, Step]:
    """The newest step of each name: highest round, then attempt."""
    newest: dict[str, Step] = {}
    for step in steps:
        known = newest.get(step.name)
        if known is None or (step.round, step.attempt) > (known.round, known.attempt):
            newest[step.name] = step
    return newest


def decide(facts: Facts, rows: Sequence[StepSpec], steps: Sequence[Step]) -> tuple[Move, ...]:
    """The next moves of a job; () when it has to wait for something that runs or for a person.

    `rows` is the job's plan in order, `steps` every step it has. The result depends on nothing else.
    """
    if facts.status.terminal or facts.status is JobStatus.WAITING:
        return ()
    now = latest(steps)
    if facts.reason is not None:
        return _close(facts, rows, now)
    if facts.cancel_requested:
        return (Conclude("cancelled_by_user"),)
    if facts.outage_over:
        return (_waited(now),)
    if facts.deadline_passed:
        return (_late(now),)
    return _walk(facts, rows, now)


def _waited(now: dict[str, Step]) -> Conclude:
    """What the job waited for in vain, and what the step that was handed back was told."""
    waits = (step for step in now.values() if step.faults and step.reason in CLOCK_STOPS)
    return next((Conclude(step.reason, step.detail) for step in waits), Conclude("forge_unavailable"))


def _late(now: dict[str, Step]) -> Conclude:
    """A job that spent its time waiting for the engine or the forge says so."""
    for step in now.values():
        if step.status is StepStatus.PENDING and step.faults and step.reason in REASONS:
            return Conclude(step.reason, step.detail)
    return Conclude("timed_out")


def _close(facts: Facts, rows: Sequence[StepSpec], now: dict[str, Step]) -> tuple[Move, ...]:
    closing = {row.name for row in rows if row.always}
    working = [step for step in now.values() if step.name not in closing]
    left = tuple(step.id for step in working if step.status is StepStatus.PENDING)
    if left:
        return (Skip(left, facts.reason or ""),)
    if any(step.status is StepStatus.RUNNING for step in working):
        return ()  # it is being stopped
    for row in (row for row in rows if row.always):
        step = now[row.name]
        if step.status is StepStatus.PENDING:
            return (Ready((step.id,)),)
        if step.status is StepStatus.RUNNING:
            return ()
        if step.status is StepStatus.FAILED and _may_try_again(step, row.attempts):
            return (Again(row, step.round, step.attempt + 1),)
    return (Finish(REASONS[facts.reason or "internal_error"].status),)


def _walk(facts: Facts, rows: Sequence[StepSpec], now: dict[str, Step]) -> tuple[Move, ...]:
    for order, group in groupby((row for row in rows if not row.always), key=lambda row: row.order):
        specs = tuple(group)
        if order > ADMIT.order:
            if facts.status is JobStatus.PENDING:
                return (Queue(),)
            if facts.status is JobStatus.QUEUED:
                return (Start(),)
        members = [now[spec.name] for spec in specs]
        if any(not step.status.terminal for step in members):
            pending = tuple(step.id for step in members if step.status is StepStatus.PENDING)
            return (Ready(pending),) if pending else ()
        move = _after(facts, rows, specs, now)
        if move is not None:
            return (move,)
    return (Conclude("done"),)


def _after(facts: Facts, rows: Sequence[StepSpec], specs: Sequence[StepSpec], now: dict[str, Step]) -> Move | None:
    """What a group that has ended asks for; None = go on to the next group."""
    for spec in specs:
        step = now[spec.name]
        if step.status in (StepStatus.COMPLETED, StepStatus.SKIPPED):
            continue
        if step.reason == "gate_red":
            continue  # all gates run, so that the agent hears everything at once
        attempts = facts.attempts if spec.name == BACK_TO else spec.attempts
        if step.status is StepStatus.FAILED and _may_try_again(step, attempts):
            return Again(spec, step.round, step.attempt + 1)
        if spec.back_to and step.reason == "policy_violation":
            return _red(facts, rows, (step,), "policy_violation", step.detail)
        return Conclude(step.reason if step.status is StepStatus.FAILED else "internal_error", step.detail)
    last_gate = max((row.order for row in rows if row.gate), default=None)
    if specs[0].order != last_gate:
        return None
    red = tuple(now[row.name] for row in rows if row.gate and _is_red(now[row.name]))
    return (
        _red(facts, rows, red, "gates_failed", "Red: " + ", ".join(_gate_name(step) for step in red)) if red else None
    )


def _is_red(step: Step) -> bool:
    return step.status is StepStatus.FAILED and bool(step.output.get("required", True))


def _gate_name(step: Step) -> str:
    return step.name.removeprefix("inspector.gate.")


def _red(facts: Facts, rows: Sequence[StepSpec], red: Sequence[Step], reason: str, detail: str) -> Move:
    round = max(step.round for step in red)
    if round >= facts.rounds:
        return Conclude(reason, detail)
    specs = tuple(row for row in rows if row.gate or row.name in ROUND_STEPS)
    return NextRound(round + 1, specs, tuple(_gate_name(step) for step in red))


def _may_try_again(step: Step, attempts: int) -> bool:
    return bool(step.output.get("retryable")) and step.attempt - step.excused < attempts
