"""Make the moves that `decide` names, on a locked job, in one transaction; record the result of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from app import queries
from app.ledger import chain, effects, jobs, steps
from app.ledger.breaker import MAX_OUTAGE_HOURS
from app.ledger.chain import Entry
from app.pipeline import KEEPS_WORK, StepSpec, plan
from app.queue import queue_name, ring, ring_for
from app.stitcher.decide import (
    Again,
    Conclude,
    Facts,
    Finish,
    Move,
    NextRound,
    Queue,
    Ready,
    Skip,
    Start,
    decide,
    latest,
)
from app.stitcher.dispatch import dispatch, may_start, queue_moved, ring_ready, wake_repository
from app.stitcher.placing import place
from app.types import (
    Done,
    Failed,
    GateResult,
    GateSpec,
    HandBack,
    JobStatus,
    LostLease,
    Pool,
    Result,
    Step,
    StepStatus,
    since_loss,
)

Rows = Sequence[Mapping[str, Any]]
CLICKS = ("opened", "assigned", "labeled")  # triggers that one click may raise together
AGAIN_SECONDS = (5.0, 20.0, 60.0, 120.0)  # before the 2nd, 3rd, … attempt: what fails at once may not in a while
_MAX_MOVES = 50  # a job makes fewer than ten moves at a time; more means that `decide` runs in a circle


@dataclass(slots=True)
class Taker:
    """A worker of the control pool that is free for the next step of the job it has just worked for.

    That saves the bell, its way through the queue, and a transaction. `took` is the claimed row.
    """

    worker_id: int
    host: str
    took: dict[str, Any] | None = None
    rows: Rows = ()  # the job's steps as they were read under its lock

    def take(self, job: Entry, step_id: int) -> bool:
        """Claim this step; False when it has to wait for its bell."""
        row = next(row for row in self.rows if row["id"] == step_id)
        self.took = steps.take_next(job, row, self.worker_id, self.host)
        return self.took is not None


def advance(job_id: int) -> None:
    """Make every move that is due for this job now. Any caller, any number of times."""
    with chain.entry(job_id) as job:
        step_forward(job)


def step_forward(job: Entry, taker: Taker | None = None, found: Rows | None = None) -> None:
    """`advance` for a job that is already locked in the open transaction. `found`: its steps, if they are known."""
    pools: set[Pool] = set()
    for _ in range(_MAX_MOVES):
        rows = specs_of(job)
        found = _with_new_rows(job, rows, found or queries.step_rows(job.id))
        so_far = tuple(map(queries.as_step, found))
        moves = decide(facts_of(job), rows, so_far)
        if taker:
            taker.rows = found
        if not _make(job, moves, rows, so_far, pools, taker):
            break
        found = None
    else:
        raise RuntimeError(f"job {job.id} does not come to rest")
    for pool in sorted(pools):
        dispatch(pool)
    if job.changed and job["number"] is not None:
        tell(job.id, at_once=job["finished_at"] is not None, status=job["status"])


def _with_new_rows(job: Entry, rows: Sequence[StepSpec], found: Rows) -> Rows:
    """A pipeline that has gained a row since the job was queued: the job gets it too."""
    known = {step["name"] for step in found}
    missing = [row for row in rows if row.name not in known]
    if not missing or job["status"] == JobStatus.PENDING:
        return found
    steps.lay(job, missing, round=1)
    return queries.step_rows(job.id)


def specs_of(job: Entry) -> tuple[StepSpec, ...]:
    keep = job["started_at"] is not None and job["reason"] in KEEPS_WORK
    return plan(job["pipeline"], tuple(GateSpec(**gate) for gate in job["gates"]), keep=keep)


def facts_of(job: Entry) -> Facts:
    limits: Mapping[str, Any] = (job["rules"] or {}).get("limits", {})
    deadline, waits = job["deadline_at"], job["forge_wait_since"]
    return Facts(
        status=JobStatus(job["status"]),
        reason=job["reason"],
        cancel_requested=job["cancel_requested_at"] is not None,
        deadline_passed=waits is None and deadline is not None and deadline < job.now,
        outage_over=waits is not None and waits + timedelta(hours=MAX_OUTAGE_HOURS) < job.now,
        rounds=int(limits.get("rounds", 3)) + since_loss(job["metadata"])[0] - 1,
        attempts=int(limits.get("attempts", 2)),
    )


def _make(
    job: Entry,
    moves: Sequence[Move],
    rows: Sequence[StepSpec],
    so_far: Sequence[Step],
    pools: set[Pool],
    taker: Taker | None,
) -> bool:
    """Make the moves; False when the job has come to rest for now."""
    for move in moves:
        match move:
            case Ready(step_ids):
                pools |= _ready(job, [step for step in so_far if step.id in step_ids], rows, taker)
                return False
            case Start():
                if not may_start(job):
                    return False
                place(job)
                minutes = float((job["rules"] or {}).get("limits", {}).get("minutes", 60))
                jobs.start(job, minutes)
                queue_moved(job)
            case Queue():
                steps.lay(job, [row for row in rows if row.gate], round=1)
                jobs.move(job, JobStatus.QUEUED)
                queue_moved(job)
                _plan_status_comment(job)
                take_label_off(job.id, job["trigger"]["kind"], job["repository_id"], job["repository"], job["number"])
            case Again(spec, round, attempt):
                excused = latest(so_far)[spec.name].excused
                pause = AGAIN_SECONDS[min(attempt - excused - 2, len(AGAIN_SECONDS) - 1)]
                steps.lay(job, [spec], round=round, attempt=attempt, excused=excused, pause=pause)
                lay_again(job, spec.redo, round, rows, so_far)
            case NextRound(round, specs, red):
                left = [
                    step
                    for step in so_far
                    if step.status is StepStatus.PENDING and step.name in {spec.name for spec in specs}
                ]
                steps.skip(job, [_row(step) for step in left], "another round is needed")
                steps.lay(job, specs, round=round)
                job.event("continuation.forced", round=round, red=list(red))
            case Skip(step_ids, why):
                steps.skip(job, [_row(step) for step in so_far if step.id in step_ids], why)
            case Conclude(reason, detail):
                jobs.conclude(job, reason, detail)
            case Finish(status):
                if job["status"] == JobStatus.QUEUED:
                    queue_moved(job)
                jobs.move(
                    job,
                    status,
                    reason=job["reason"],
                    detail=job["detail"][:500],
                    actor=job["cancelled_by"] or "system:stitcher",
                )
                wake_repository(job)
                return False
    return bool(moves)


def _ready(job: Entry, due: Sequence[Step], rows: Sequence[StepSpec], taker: Taker | None) -> set[Pool]:
    """It is the turn of these steps. Those of the control pool are taken or rung for; the pools of the others."""
    pool_of = {row.name: row.pool for row in rows}
    ours = [step for step in due if pool_of[step.name] is Pool.CONTROL]
    others = [step for step in due if step not in ours]
    if taker and ours and taker.take(job, ours[0].id):
        ours = ours[1:]
    if ours:
        ring_ready(job, [step.id for step in ours])
    if others:
        steps.ready(job, [step.id for step in others])
    return {pool_of[step.name] for step in others}


def _row(step: Step) -> dict[str, Any]:
    return {"id": step.id, "name": step.name, "round": step.round, "attempt": step.attempt}


def lay_again(job: Entry, names: Sequence[str], round: int, rows: Sequence[StepSpec], so_far: Sequence[Step]) -> None:
    """Put fresh copies of earlier steps into a round: they run before the step that needs them again.

    What they were tried before does not count against them: their work was lost, it did not fail.
    """
    newest = latest(so_far)
    for row in rows:
        if row.name in names and newest[row.name].status.terminal:
            known = max((step.attempt for step in so_far if step.name == row.name and step.round == round), default=0)
            steps.lay(job, [row], round=round, attempt=known + 1, excused=known)


def start_over(job: Entry, names: Sequence[str], rows: Sequence[StepSpec], so_far: Sequence[Step]) -> int:
    """The host with the job's files is lost: make them again in the newest round; that one counts as the first.

    What was made up to now is not there any more: no later step is to build on it, and no prompt to speak of it.
    """
    round = max(step.round for step in so_far)
    job.set(metadata={**job["metadata"], "restarted": {"round": round, "fence": job["fence"]}})
    lay_again(job, names, round, rows, so_far)
    return round


def _plan_status_comment(job: Entry) -> None:
    if job["number"] is not None:
        effects.plan_once(
            f"job:{job.id}:status",
            "comment.status",
            {"repository_id": job["repository_id"], "number": job["number"]},
            job_id=job.id,
        )


def take_label_off(job_id: int, kind: str, repository_id: int, repository: str, number: int | None) -> None:
    """The label that starts a job is taken off as soon as the job is accepted: putting it on again asks again.

    For every job that a click has started: the payload does not say which part of the click came first.
    """
    if number is None or kind not in CLICKS:
        return
    target = {
        "repository_id": repository_id,
        "repository": repository,
        "number": number,
        "label": queries.trigger_label(repository_id),
    }
    ring(
        Pool.CONTROL,
        "herald.deliver",
        effects.plan(f"job:{job_id}:unlabel", "label.remove", target, job_id=job_id),
    )


def tell(job_id: int, *, at_once: bool = False, status: str | None = None) -> None:
    """Ask the herald for a fresh status comment, if the job has one; the last one does not wait for its turn.

    `status` = the job's, while the open transaction has not written it yet.
    """
    statement, params = effects.touch(
        f"job:{job_id}:status", queue_name(Pool.CONTROL), at_once=at_once, status=status
    )
    ring_for(statement, *params)


def record(step: Mapping[str, Any], result: Result, taker: Taker | None = None) -> bool:
    """Close a running step with its result and make the job's next moves, in one transaction; a `taker` gets the next
    step with it.

    False when the step is no longer ours: the result is dropped.
    """
    try:
        with chain.entry(step["job_id"]) as job:
            _close_step(job, step, result)
            found = queries.step_rows(job.id)
            job.check()
            if not isinstance(result, HandBack):
                steps.go_on(job)
            step_forward(job, taker, found)
    except LostLease:
        return False
    return True


def _close_step(job: Entry, step: Mapping[str, Any], result: Result) -> None:
    match result:
        case Done(output, facts, conclude):
            _receipt(job, step, output)
            steps.finish(job, step, StepStatus.COMPLETED, output=_without_receipt(output))
            job.set(**facts)
            if conclude:
                jobs.conclude(job, conclude)
        case Failed(reason, detail, retryable, output):
            _receipt(job, step, output)
            status = StepStatus.CANCELLED if reason == "cancelled" else StepStatus.FAILED
            steps.finish(
                job,
                step,
                status,
                output={**_without_receipt(output), "retryable": retryable},
                reason=reason,
                detail=detail,
            )
        case HandBack(reason, detail, retry_after, redo):
            steps.hand_back(job, step, reason, detail, retry_after)
            rows, so_far = specs_of(job), queries.steps(job.id)
            if reason == "host_lost":
                start_over(job, redo, rows, so_far)
            else:
                lay_again(job, redo, step["round"], rows, so_far)


def _receipt(job: Entry, step: Mapping[str, Any], output: Mapping[str, Any]) -> None:
    if "receipt" in output:
        steps.gate_result(job, step, GateResult(**output["receipt"]))


def _without_receipt(output: Mapping[str, Any]) -> dict[str, Any]:
    """The receipt of a gate has a table of its own; the step keeps the verdict."""
    return {key: value for key, value in output.items() if key != "receipt"}
