"""Seeded bugs: the real code with one thing taken out. The machine has to find each of them.

A mutant whose text is not there any more fails at once: it would prove nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from app import models, queries
from app.ledger import chain, effects, jobs, steps
from app.types import Done, HandBack, JobStatus, StepStatus
from jobs import tasks
from jobs.herald import branches, comments
from tests.simulation.store import SimulatedCursor

_ADVANCE = sys.modules["app.stitcher.advance"]
deliver = sys.modules["jobs.herald.deliver"]
_SWEEP = sys.modules["app.stitcher.sweep"]


@dataclass(frozen=True)
class Mutant:
    name: str
    what: str
    apply: Callable[[], Any]  # a context manager
    nearest: str = ""  # the blow (and where it falls) that shows it soonest; "": the machine's search


class NotApplied(Exception):
    """The code has changed: the mutant does not change it any more."""


@contextmanager
def sql(pattern: str, replacement: str, *, only: str = "") -> Iterator[None]:
    """Every statement that matches `only` (or the pattern itself) is sent with the replacement."""
    hits = 0

    def rewrite(query: Any) -> Any:
        nonlocal hits
        if not isinstance(query, str) or not re.search(only or pattern, query):
            return query
        changed, count = re.subn(pattern, replacement, query)
        hits += count
        return changed

    SimulatedCursor.rewrites.append(rewrite)
    try:
        yield
    finally:
        SimulatedCursor.rewrites.remove(rewrite)
    if not hits:
        raise NotApplied(pattern)


@contextmanager
def many(*parts: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part)
        yield


def put(owner: Any, name: str, value: Any) -> Any:
    assert hasattr(owner, name), f"{owner} has no {name}"
    return mock.patch.object(owner, name, value)


# ---------------------------------------------------------------- ownership


def no_fence() -> Any:
    """A result is accepted from whoever claimed the step once."""
    return sql(
        r"and fence = %s and status = 'running'",
        "and %s::bigint > 0 and status = 'running'",
        only=r"^update job_steps set status = %s, worker_id = null|^update job_steps set status = 'pending', worker_id",
    )


def reap_without_fence() -> Any:
    """A step is taken back, but its fence stays as it was: the next owner gets the same number."""
    return many(
        sql(r"fence = %s, crashes = crashes \+ 1", "fence = fence + 0 * %s, crashes = crashes + 1"),
        put(steps, "claim", _claim_with_the_old_fence()),
    )


def _claim_with_the_old_fence() -> Any:
    def claim(step_id: int, worker_id: int, host: str) -> dict[str, Any] | None:
        with chain.entry_of_step(step_id) as (job, step):
            stopping = job["cancel_requested_at"] is not None or job["reason"] is not None
            if step["status"] != "pending" or job["finished_at"] or (stopping and step["phase"] != "cleanup"):
                return None
            fence = step["fence"] or job["fence"] + 1
            row = models.fetch_one(
                "update job_steps set status = 'running', worker_id = %s, host = %s, fence = %s, progress = null, "
                "lease_until = clock_timestamp() + interval '30 seconds', started_at = clock_timestamp() "
                "where id = %s and status = 'pending' and ready_at is not null "
                "and (run_after is null or run_after <= clock_timestamp()) returning *",
                worker_id, host, fence, step_id,
            )  # fmt: skip
            if row is None:
                return None
            if not step["fence"]:
                job.next_fence()
            job.event("step.started", actor="system:worker", step=steps.key_of(row), fence=fence, worker=worker_id)
            return row

    return claim


def early_reap() -> Any:
    """A lease counts as lapsed two seconds after it was given."""
    return sql(r"s\.lease_until < clock_timestamp\(\)", "s.lease_until < clock_timestamp() + interval '28 seconds'")


def worker_clock() -> Any:
    """The lease is set by the worker's clock, which is five minutes behind the database's."""
    return sql(
        r"lease_until = clock_timestamp\(\) \+ interval '30 seconds'",
        "lease_until = clock_timestamp() - interval '270 seconds'",
        only="update job_steps",
    )


def claim_without_guard() -> Any:
    """Nobody looks whether the step is still to be had."""
    real = chain.entry_of_step

    @contextmanager
    def looks_pending(step_id: int) -> Iterator[Any]:
        with real(step_id) as (job, step):
            yield job, {**step, "status": "pending" if step["status"] == "running" else step["status"]}

    return many(
        put(steps, "entry_of_step", looks_pending),
        sql(
            r"where id = %s and status = 'pending' and ready_at is not null ",
            "where id = %s and ready_at is not null ",
            only=r"^update job_steps set status = 'running'",
        ),
    )


def crash_uncounted() -> Any:
    """A step that kills its worker is tried for ever."""
    return sql(r"crashes = crashes \+ 1", "crashes = crashes", only="update job_steps")


# ---------------------------------------------------------------- the stitcher


def split_commit() -> Any:
    """The result is committed first, what follows from it in another transaction; and the sweep does not look."""

    def record(step: Any, result: Any, taker: Any = None) -> bool:
        try:
            with chain.entry(step["job_id"]) as job:
                _ADVANCE._close_step(job, step, result)
        except _ADVANCE.LostLease:
            return False
        with chain.entry(step["job_id"]) as job:
            _ADVANCE.step_forward(job)
        return True

    return many(put(tasks.stitcher, "record", record), put(queries, "jobs_to_advance", list))


def lost_cancel() -> Any:
    """A result that comes in writes over the cancellation."""
    real = _ADVANCE._close_step

    def close_step(job: Any, step: Any, result: Any) -> None:
        real(job, step, result)
        if isinstance(result, Done) and job["reason"] == "cancelled_by_user":
            job.set(cancel_requested_at=None, reason=None)

    return put(_ADVANCE, "_close_step", close_step)


def cancel_ignored_by_claim() -> Any:
    """A step of a job that is to stop can still be claimed."""
    real = chain.entry_of_step

    @contextmanager
    def never_stopping(step_id: int) -> Iterator[Any]:
        with real(step_id) as (job, step):
            job._row.update(cancel_requested_at=None)
            yield job, step

    def cancel(job_id: int, actor: str) -> bool:
        with chain.entry(job_id) as job:
            return jobs.request_cancel(job, actor)

    return many(put(steps, "entry_of_step", never_stopping), put(sys.modules["app.stitcher"], "cancel", cancel))


def doubled_bell() -> Any:
    """Whoever hears a bell does the work, whether or not somebody else has the step."""

    def claim(step_id: int, worker_id: int, host: str) -> Any:
        with chain.entry_of_step(step_id) as (job, step):
            if step["status"] not in ("pending", "running") or job["finished_at"]:
                return None
            models.execute(
                "update job_steps set status = 'running', worker_id = %s, host = %s, fence = %s, "
                "lease_until = clock_timestamp() + interval '30 seconds', started_at = clock_timestamp() where id = %s",
                worker_id, host, job["fence"] + 1, step_id,
            )  # fmt: skip
            job.next_fence()
            job.event("step.started", actor="system:worker", step=steps.key_of(step), fence=job["fence"])
            return models.fetch_one("select * from job_steps where id = %s", step_id)

    return put(steps, "claim", claim)


def hand_back_counts() -> Any:
    """A fault of the engine spends an attempt."""
    real = _ADVANCE._close_step

    def close_step(job: Any, step: Any, result: Any) -> None:
        if isinstance(result, HandBack) and result.reason == "engine_unavailable":
            result = _ADVANCE.Failed("agent_failed", result.detail, retryable=True)
        real(job, step, result)

    return put(_ADVANCE, "_close_step", close_step)


def crash_spends_attempt() -> Any:
    """A lost worker spends an attempt of the step."""

    def take_back(step_id: int) -> None:
        with chain.entry_of_step(step_id) as (job, step):
            if step["status"] != "running" or step_id not in queries.lost_steps():
                return
            steps.finish(job, step, StepStatus.FAILED, output={"retryable": True}, reason="agent_failed")
            _ADVANCE.step_forward(job)

    return put(_SWEEP, "take_back", take_back)


def bells_are_all() -> Any:
    """The sweep trusts the bells: what nobody was rung for stays where it is."""
    return many(put(_SWEEP, "_dispatch", lambda pool: None), put(queries, "jobs_to_advance", list))


def closing_skipped() -> Any:
    """A cancelled job ends at once, without its last words."""
    real = _ADVANCE.decide

    def decide(facts: Any, rows: Any, so_far: Any) -> Any:
        if facts.reason == "cancelled_by_user" and not facts.status.terminal:
            return (_ADVANCE.Finish(JobStatus.CANCELLED),)
        return real(facts, rows, so_far)

    return put(_ADVANCE, "decide", decide)


# ---------------------------------------------------------------- effects


def naive_effect() -> Any:
    """A comment is written without looking whether it is there."""
    return put(comments, "_ours", lambda *_: [])


def no_reconcile() -> Any:
    """Nobody looks again after the write."""
    return many(
        put(comments, "_only_one", lambda delivery, repository, sign, kept: kept),
        put(deliver, "settle", lambda effect, clients: effects.settled(effect, None)),
    )


def no_effect_fence() -> Any:
    """Whoever has claimed an effect once may write."""
    return many(put(effects, "check", lambda effect: None), put(effects, "doubt", lambda effect: None),
                put(deliver, "settle", lambda effect, clients: effects.settled(effect, None)))  # fmt: skip


def done_without_version() -> Any:
    """An effect is done when it is written, whatever was asked for meanwhile."""
    return sql(
        r"case when wanted > %s then 'planned' else 'done' end",
        "case when %s < 0 then 'planned' else 'done' end",
        only=r"^update effects set external_id",
    )


def planned_twice() -> Any:
    """The last words are planned anew by everyone who comes by."""
    real, count = effects.plan_once, iter(range(10**6))

    def plan_once(key: str, *args: Any, **more: Any) -> Any:
        return real(f"{key}:{next(count)}" if key.endswith(":closing") else key, *args, **more)

    def put_unsigned(delivery: Any, body: str, kind: str, owner: str, *rest: Any) -> str:
        return real_put(delivery, body, kind, owner if kind != "closing" else f"{owner}-{delivery.effect['id']}", *rest)

    real_put = comments.put
    return many(put(effects, "plan_once", plan_once), put(comments, "put", put_unsigned))


def two_pull_requests() -> Any:
    """A pull request is opened on a branch of its own time: another one each time it is asked for."""

    def pull_request(delivery: Any) -> Any:
        job = delivery.job
        pull = delivery.forge.create_pull(
            job.repository,
            job.branch,
            job.default_branch,
            branches._title(delivery, job),
            branches._body(delivery, job),
        )
        return str(pull.number), {"number": pull.number, "url": pull.html_url}

    return put(deliver, "KINDS", {**deliver.KINDS, "pull_request": pull_request})


def lost_answer_is_failure() -> Any:
    """A write whose answer was lost counts as refused."""

    def later(effect: Any, error: Any) -> float:
        effects.fail(effect, str(error), "ambiguous")
        return 1.0

    return put(deliver, "later", later)


MUTANTS = (
    Mutant("no fence", "steps.finish accepts any fence", no_fence, "overtake"),
    Mutant("reap without fence bump", "take_back keeps the fence", reap_without_fence),
    Mutant("naive effect", "no look before the write", naive_effect),
    Mutant("no reconcile", "no look after the write", no_reconcile, "freeze at forge: POST"),
    Mutant("split commit", "done and next in two transactions", split_commit, "kill"),
    Mutant("early reap", "lease lost too early", early_reap, "linger"),
    Mutant("lost cancel", "a result overwrites the cancellation", lost_cancel),
    Mutant("clock step", "lease by the worker's clock", worker_clock),
    Mutant("claim without guard", "a running step is claimed", claim_without_guard),
    Mutant("crash uncounted", "poison is tried for ever", crash_uncounted),
    Mutant("cancel ignored by claim", "steps start after the cancel", cancel_ignored_by_claim, "cancel at BEGIN"),
    Mutant("doubled bell", "who hears a bell works", doubled_bell),
    Mutant("hand back counts", "engine faults spend attempts", hand_back_counts),
    Mutant("crash spends an attempt", "a lost worker spends an attempt", crash_spends_attempt),
    Mutant("bells are all", "the sweep does not ring", bells_are_all),
    Mutant("closing skipped", "no last words after a cancel", closing_skipped),
    Mutant("no effect fence", "lost owners write", no_effect_fence, "freeze"),
    Mutant("done without version", "a newer wish is forgotten", done_without_version, "linger at forge"),
    Mutant("planned twice", "plan_once plans again", planned_twice),
    Mutant("two pull requests", "no look for the open one", two_pull_requests),
    Mutant("lost answer is failure", "ambiguous counts as refused", lost_answer_is_failure),
)
