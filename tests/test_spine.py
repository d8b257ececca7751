"""The spine on a real PostgreSQL: jobs are driven step by step; bells are lost, workers vanish, two act at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from app import queries, stitcher
from app.edge import connected
from app.ledger import steps
from app.ledger.chain import entry, transaction
from app.models import execute, fetch
from app.queue import ring
from app.stitcher.sweep import take_back
from app.types import Failed, HandBack, JobStatus, LostLease, Pool, StepStatus
from tests import spine

pytestmark = pytest.mark.usefixtures("database")


def red(row: dict[str, Any]) -> Failed:
    return Failed("gate_red", "1 failed", output={"required": True})


def test_a_job_runs_through_its_plan() -> None:
    job, me = spine.submit(), spine.worker()
    assert spine.work(job, me) == "completed"
    found = queries.job(job)
    assert found is not None and (found.reason, found.pull_request) == ("done", 5)
    assert all(step.status is StepStatus.COMPLETED for step in queries.steps(job))
    kinds = [event.kind for event in queries.events(job)]
    assert [kind for kind in kinds if kind.startswith("job.")] == [
        "job.created",
        "job.queued",
        "job.started",
        "job.completed",
    ]
    assert kinds[-1] == "job.completed"
    assert spine.broken_links(job) == []


def test_the_whole_plan_stands_before_the_first_working_step() -> None:
    job, me = spine.submit(), spine.worker()
    [admit] = spine.ready_steps(job)
    row = steps.claim(admit, me, "here")
    assert row is not None and stitcher.record(row, spine.admitted(job))
    plan = {step.name: step.status.value for step in queries.steps(job)}
    assert plan.pop("runner.admit") == "completed"
    assert set(plan.values()) == {"pending"} and "inspector.gate.test" in plan and "herald.publish" in plan


def test_every_bell_may_be_lost() -> None:
    """After each step all bells are lost: the sweep alone carries the job to its end."""
    job, me = spine.submit(), spine.worker()
    for pool in ("agents", "gates"):
        spine.worker(pool, 1)
    for _ in range(30):
        spine.silence()
        execute("update job_steps set rung_at = rung_at - interval '1 minute'")
        keep_alive(me)
        stitcher.sweep()
        found = [number for _, task, number in spine.bells() if task not in ("herald.deliver", "stitcher.advance")]
        if not found:
            break
        row = steps.claim(found[0], me, "here")
        assert row is not None
        assert stitcher.record(row, spine.outcome(row, {}))
    ended = queries.job(job)
    assert ended is not None and ended.status is JobStatus.COMPLETED


def keep_alive(worker_id: int) -> None:
    """The tests' worker has no process and so no session lock: its leases are renewed by hand."""
    steps.renew(worker_id, [row["id"] for row in steps.running(worker_id)])


def test_every_bell_may_ring_three_times() -> None:
    job, me = spine.submit(), spine.worker()
    [admit] = spine.ready_steps(job)
    claims = [steps.claim(admit, me, "here") for _ in range(3)]
    assert [claim is not None for claim in claims] == [True, False, False]
    assert claims[0] is not None and stitcher.record(claims[0], spine.admitted(job))
    assert not stitcher.record(claims[0], spine.admitted(job))
    for _ in range(3):
        stitcher.advance(job)
    assert len([step for step in queries.steps(job) if step.name == "runner.snapshot"]) == 1
    assert spine.broken_links(job) == []


def test_eight_claim_one_gets_it() -> None:
    job = spine.submit()
    [admit] = spine.ready_steps(job)
    ids = [spine.worker() for _ in range(8)]

    def claim(worker_id: int) -> bool:
        with connected():
            return steps.claim(admit, worker_id, "here") is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, ids)) == 1
    started = [event for event in queries.events(job) if event.kind == "step.started"]
    assert len(started) == 1
    assert spine.broken_links(job) == []


def test_a_red_gate_makes_a_round_and_the_limit_ends_the_job() -> None:
    job, me = spine.submit(), spine.worker()
    assert spine.work(job, me, {"inspector.gate.test": red}) == "failed"
    found = queries.job(job)
    assert found is not None and (found.reason, found.detail) == ("gates_failed", "Red: test")
    rounds = {(step.name, step.round): step.status.value for step in queries.steps(job)}
    assert rounds[("weaver.implement", 2)] == "completed" and ("weaver.implement", 3) not in rounds
    assert rounds[("herald.publish", 1)] == "skipped" and rounds[("herald.report", 1)] == "completed"


def test_a_lost_worker_costs_no_attempt_and_its_late_result_is_refused() -> None:
    job, me = spine.submit(), spine.worker()
    other = spine.worker()
    [admit] = spine.ready_steps(job)
    lost = steps.claim(admit, me, "here")
    assert lost is not None
    take_back(admit)  # its worker holds no session lock: it is gone
    again = steps.claim(admit, other, "here")
    assert again is not None and again["fence"] > lost["fence"]
    assert (again["attempt"], again["crashes"]) == (1, 1)
    assert not stitcher.record(lost, spine.admitted(job))
    with pytest.raises(LostLease):
        steps.event(lost, "step.output", text="late")
    assert stitcher.record(again, spine.admitted(job))
    kinds = [event.kind for event in queries.events(job)]
    assert "worker.lost" in kinds and spine.broken_links(job) == []


def test_a_step_that_takes_three_workers_down_is_given_up() -> None:
    job, me = spine.submit(), spine.worker()
    [admit] = spine.ready_steps(job)
    for _ in range(3):
        assert steps.claim(admit, me, "here") is not None
        take_back(admit)
    assert spine.work(job, me) == "failed"
    found = queries.job(job)
    assert found is not None and found.reason == "crashed"


def test_a_lost_agent_step_gets_a_fresh_worktree_first() -> None:
    job, me = spine.submit(), spine.worker()
    while True:
        [number] = spine.ready_steps(job)
        row = steps.claim(number, me, "here")
        assert row is not None
        if row["name"] == "weaver.implement":
            break
        assert stitcher.record(row, spine.outcome(row, {}))
    take_back(row["id"])
    order = []
    while spine.ready_steps(job):
        claimed = steps.claim(spine.ready_steps(job)[0], me, "here")
        assert claimed is not None
        order.append(steps.key_of(claimed))
        assert stitcher.record(claimed, spine.outcome(claimed, {}))
    assert order[:4] == ["runner.checkout@1.2", "runner.setup@1.2", "weaver.implement@1.1", "runner.commit@1.1"]


def test_the_engines_fault_costs_no_attempt() -> None:
    job, me = spine.submit(), spine.worker()
    faults = iter([True, True, False])

    def agent(row: dict[str, Any]) -> Any:
        return HandBack("engine_unavailable", "refused", 0.0) if next(faults) else spine.outcome(row, {})

    assert spine.work(job, me, {"weaver.implement": agent}) == "completed"
    [step] = [step for step in queries.steps(job) if step.name == "weaver.implement"]
    assert (step.attempt, step.faults, step.status) == (1, 2, StepStatus.COMPLETED)


def test_a_job_gets_a_row_that_its_pipeline_has_gained() -> None:
    job, me = spine.submit(), spine.worker()
    row = steps.claim(spine.ready_steps(job)[0], me, "here")
    assert row is not None and stitcher.record(row, spine.admitted(job))
    execute("delete from job_steps where job_id = %s and name = 'inspector.policy'", job)
    assert spine.work(job, me) == "completed"
    assert [step.status.value for step in queries.steps(job) if step.name == "inspector.policy"] == ["completed"]


def test_a_handed_back_step_waits_its_time() -> None:
    job, me = spine.submit(), spine.worker()
    [admit] = spine.ready_steps(job)
    row = steps.claim(admit, me, "here")
    assert row is not None and stitcher.record(row, HandBack("forge_unavailable", "503", 3600.0))
    stitcher.sweep()
    assert steps.claim(admit, me, "here") is None


def test_own_failures_become_attempts() -> None:
    job, me = spine.submit(), spine.worker()
    script = {"weaver.implement@1.1": lambda row: Failed("agent_failed", "boom", retryable=True)}
    assert spine.work(job, me, script) == "completed"
    found = [(step.key, step.status.value) for step in queries.steps(job) if step.name == "weaver.implement"]
    assert found == [("weaver.implement@1.1", "failed"), ("weaver.implement@1.2", "completed")]


def test_cancel_stops_what_runs_and_skips_the_rest() -> None:
    job, me = spine.submit(), spine.worker()
    while True:
        [number] = spine.ready_steps(job)
        row = steps.claim(number, me, "here")
        assert row is not None
        if row["name"] == "weaver.implement":
            break
        assert stitcher.record(row, spine.outcome(row, {}))
    assert stitcher.cancel(job, "gitea:alice") and not stitcher.cancel(job, "gitea:bob")
    assert [held["stop"] for held in steps.running(me)] == [True]
    assert stitcher.record(row, Failed("cancelled"))
    assert spine.work(job, me) == "cancelled"
    status = {step.name: step.status.value for step in queries.steps(job)}
    assert status["weaver.implement"] == "cancelled" and status["herald.publish"] == "skipped"
    assert status["herald.report"] == "completed" and status["runner.cleanup"] == "completed"
    last = queries.events(job)[-1]
    assert (last.kind, last.actor) == ("job.cancelled", "gitea:alice")


def test_a_rolled_back_job_leaves_no_bell() -> None:
    with pytest.raises(RuntimeError), transaction():
        spine.submit()
        raise RuntimeError
    assert spine.bells() == [] and queries.jobs() == ()


def test_one_job_of_a_repository_runs_the_next_one_waits_and_then_starts() -> None:
    first, second, me = spine.submit(), spine.submit(), spine.worker()
    for job in (first, second):
        row = steps.claim(spine.ready_steps(job)[0], me, "here")
        assert row is not None and stitcher.record(row, spine.admitted(job))
    assert [one.status.value for one in queries.jobs()] == ["queued", "running"]
    assert queries.queue_position(second) == 1
    spine.silence()
    assert spine.work(first, me) == "completed"
    assert ("mosaic-control", "stitcher.advance", second) in spine.bells()
    stitcher.advance(second)
    assert spine.work(second, me) == "completed"


def test_the_higher_priority_starts_first() -> None:
    first, low, high, me = spine.submit(), spine.submit(), spine.submit(priority=5), spine.worker()
    for job in (first, low, high):
        row = steps.claim(spine.ready_steps(job)[0], me, "here")
        assert row is not None and stitcher.record(row, spine.admitted(job))
    spine.work(first, me)
    for job in (low, high):
        stitcher.advance(job)
    assert {one.id: one.status.value for one in queries.jobs()} == {first: "completed", low: "queued", high: "running"}


def test_agents_are_rung_for_only_when_a_slot_is_free() -> None:
    jobs, me = [spine.submit(repository_id=number) for number in range(1, 5)], spine.worker()
    spine.worker("agents", 2)
    for job in jobs:
        for name in ("runner.admit", "runner.snapshot", "runner.checkout", "runner.setup"):
            row = steps.claim(spine.ready_steps(job)[0], me, "here")
            assert row is not None and row["name"] == name
            assert stitcher.record(row, spine.outcome(row, {}))
    rung = [number for _, task, number in spine.bells(Pool.AGENTS) if task == "weaver.implement"]
    assert len(rung) == 2
    row = steps.claim(rung[0], me, "here")
    assert row is not None and stitcher.record(row, spine.outcome(row, {}))
    stitcher.sweep()
    assert len([1 for _, task, _ in spine.bells(Pool.AGENTS) if task == "weaver.implement"]) == 3


def test_the_ledger_refuses_change_even_from_its_owner(cluster: Any, database: str) -> None:
    job = spine.submit()
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    for role in ("mosaic_app", "mosaic_owner"):
        for statement in ("update job_events set kind = 'x'", "delete from job_events", "truncate job_events"):
            refused = pytest.raises(psycopg.errors.InsufficientPrivilege)
            with psycopg.connect(cluster.url(role, str(name))) as connection, refused:
                connection.execute(statement)
    assert spine.broken_links(job) == []


def test_an_edited_event_breaks_the_chain(cluster: Any, database: str) -> None:
    job = spine.submit()
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    with psycopg.connect(cluster.url("postgres", str(name)), autocommit=True) as forger:
        forger.execute("set session_replication_role = replica")
        forger.execute("update job_events set actor = 'gitea:mallory' where job_id = %s and seq = 1", (job,))
    assert spine.broken_links(job) == [1]


def test_many_writers_leave_no_gap() -> None:
    job = spine.submit()

    def write(number: int) -> None:
        with connected(), entry(job) as locked:
            locked.event("step.output", text=str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(80)))
    assert len(fetch("select 1 as one from job_events where job_id = %s", job)) >= 81
    assert spine.broken_links(job) == []


def test_a_status_goes_only_where_it_may() -> None:
    from app.ledger import jobs

    job = spine.submit()
    with pytest.raises(ValueError, match="does not go"), entry(job) as locked:
        jobs.move(locked, JobStatus.RUNNING)


def test_a_bell_is_json_and_a_planted_pickle_is_only_data() -> None:
    from app.queue import BellSerializer

    with transaction():
        ring(Pool.CONTROL, "runner.admit", 17)
    assert spine.bells()[-1] == ("mosaic-control", "runner.admit", 17)
    import pickle

    with pytest.raises(ValueError):
        BellSerializer().deserialize(pickle.dumps(print))
