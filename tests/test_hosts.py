"""Several hosts on one database: a job's files lie on one of them; when it is gone, the job goes on at another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from app import queries, stitcher
from app.context import Context
from app.ledger import effects, slots, steps, workers
from app.ledger.chain import transaction
from app.models import execute, fetch
from app.pipeline import ANYWHERE, on_files, plan
from app.queue import ring
from app.stitcher import hosts
from app.types import Failed, GateSpec, HandBack, Job, Pool
from app.worker import Held, Worker
from jobs import tasks
from tests import spine

pytestmark = pytest.mark.usefixtures("database")
POOLS = {"control": 8, "agents": 2, "gates": 2}


class Host:
    """Workers of a host that hold their locks, as consumers do; without processes."""

    def __init__(self, name: str, lock: psycopg.Connection[Any], **pools: int) -> None:
        self.name, self._lock = name, lock
        self.ids = {pool: spine.worker(pool, slots) for pool, slots in (pools or POOLS).items()}
        for number in self.ids.values():
            execute("update workers set host = %s where id = %s", name, number)
            lock.execute("select pg_advisory_lock(%s, %s)", (workers.LOCK_CLASS, number))

    def do(self, job: int, upto: str = "", script: spine.Script | None = None) -> dict[str, Any] | None:
        """Do the ready steps of a job here, until `upto` is claimed, or there is nothing to do here."""
        while ready := spine.ready_steps(job):
            row = steps.claim(ready[0], self.ids["control"], self.name)
            if row is None or steps.key_of(row).startswith(upto or "-"):
                return row
            assert stitcher.record(row, spine.outcome(row, script or {}))
        return None

    def die(self, seconds: float = 60.0) -> None:
        """Its locks are free, and it has been gone for so long."""
        for number in self.ids.values():
            self._lock.execute("select pg_advisory_unlock(%s, %s)", (workers.LOCK_CLASS, number))
            execute(
                "update workers set ended_at = clock_timestamp() - %s * interval '1 second' where id = %s",
                seconds,
                number,
            )


@pytest.fixture
def lock(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def one(lock: psycopg.Connection[Any]) -> Host:
    return Host("one", lock)


@pytest.fixture
def two(lock: psycopg.Connection[Any]) -> Host:
    return Host("two", lock)


def job_now(number: int) -> Job:
    found = queries.job(number)
    assert found is not None
    return found


def plan_of(number: int) -> list[tuple[str, str, str]]:
    return [(step.key, step.status.value, step.host) for step in queries.steps(number)]


# ---------------------------------------------------------------- where a job goes


def test_one_host_has_one_queue_and_its_first_file_step_binds_the_job(one: Host) -> None:
    job = spine.submit()
    row = one.do(job, "runner.checkout")
    assert row is not None and job_now(job).host == "one"
    assert {name for name, _, _ in spine.bells()} <= {"mosaic-control", "mosaic-agents", "mosaic-gates"}
    assert stitcher.record(row, spine.outcome(row, {}))
    assert ("mosaic-gates", "runner.setup") in {(name, task) for name, task, _ in spine.bells()}


def test_jobs_go_where_most_slots_are_free_and_their_bells_with_them(one: Host, two: Host) -> None:
    jobs = [spine.submit(repository_id=number) for number in range(70, 74)]
    for job in jobs:
        assert one.do(job, "runner.snapshot"), "control steps without files run anywhere"
    assert sorted(str(job_now(job).host) for job in jobs) == ["one", "one", "two", "two"]
    for job in jobs:
        [row] = [row for row in queries.step_rows(job) if row["status"] == "running"]
        spine.silence()
        assert stitcher.record(row, spine.outcome(row, {}))
        [(name, task, _)] = [bell for bell in spine.bells() if bell[1] == "runner.checkout"]
        assert (name, task) == (f"mosaic-control@{job_now(job).host}", "runner.checkout")


def test_a_claim_from_the_wrong_host_is_refused_and_the_bell_rings_again(one: Host, two: Host) -> None:
    job = placed(one, "runner.checkout")
    [row] = [row for row in queries.step_rows(job) if row["status"] == "running"]
    assert stitcher.record(row, HandBack("database_unavailable", "away", 0.0))
    spine.silence()
    assert steps.claim(row["id"], two.ids["control"], "two") is None
    assert fetch("select rung_at from job_steps where id = %s", row["id"]) == [{"rung_at": None}]
    stitcher.sweep()
    assert ("mosaic-control@one", "runner.checkout", row["id"]) in spine.bells()
    assert steps.claim(row["id"], one.ids["control"], "one") is not None


def test_slots_are_counted_for_each_host(one: Host, two: Host) -> None:
    jobs = [spine.submit(repository_id=number) for number in range(70, 76)]
    for job in jobs:
        for host in (one, two):
            host.do(job, "weaver.implement")
    running = [
        row["host"]
        for row in fetch("select host from job_steps where name = 'weaver.implement' and status = 'running'")
    ]
    assert sorted(running) == ["one", "one", "one", "two", "two", "two"]
    assert slots.free("agents", 5) == {"one": -1, "two": -1}, "the test claims without asking; three of two slots each"


def test_a_host_without_agents_gets_no_job(one: Host, lock: psycopg.Connection[Any]) -> None:
    Host("bare", lock, control=8)
    for number in range(70, 75):
        job = spine.submit(repository_id=number)
        one.do(job, "runner.snapshot")
        assert job_now(job).host == "one"


def test_saved_work_is_continued_where_it_lies(one: Host, two: Host) -> None:
    for number, name in ((70, "two"), (71, "two"), (72, "one")):
        job = spine.submit(repository_id=number)
        saved = json.dumps({"continues": {"host": name}})
        execute("update runner_jobs set metadata = %s::jsonb where id = %s", saved, job)
        one.do(job, "runner.snapshot")
        assert job_now(job).host == name


# ---------------------------------------------------------------- a host is gone


def placed(at: Host, upto: str, script: spine.Script | None = None, repository: int = 70) -> int:
    """A job that has come to this step on this host, and holds it."""
    job = spine.submit(repository_id=repository)
    at.do(job, "runner.snapshot")
    execute("update runner_jobs set host = %s where id = %s", at.name, job)
    [row] = [row for row in queries.step_rows(job) if row["status"] == "running"]
    assert stitcher.record(row, spine.outcome(row, {}))
    assert at.do(job, upto, script) is not None
    return job


def test_a_lost_hosts_job_starts_again_from_its_checkout(one: Host, two: Host) -> None:
    job = placed(one, "inspector.gate.test")
    [late] = [row for row in queries.step_rows(job) if row["status"] == "running"]
    one.die()
    stitcher.sweep()
    assert job_now(job).host == "two"
    assert not stitcher.record(late, spine.outcome(late, {})), "the old host's late result is refused"
    assert two.do(job) is None and job_now(job).status.value == "completed"
    ran = {key: host for key, status, host in plan_of(job) if status == "completed"}
    assert ran["weaver.implement@1.1"] == "one" and ran["weaver.implement@1.2"] == "two"
    assert {ran[key] for key in ("runner.checkout@1.2", "runner.commit@1.2", "herald.publish@1.1")} == {"two"}
    again = [step for step in queries.steps(job) if step.attempt > 1]
    assert again and all(step.excused == step.attempt - 1 for step in again)
    moved = [event.data for event in queries.events(job) if event.kind == "host.lost"]
    assert moved == [{"host": "one", "to": "two", "round": 1}] and spine.broken_links(job) == []


def red(row: dict[str, Any]) -> Failed:
    return Failed("gate_red", "1 failed", output={"required": True})


def test_a_job_in_its_second_round_begins_its_rounds_again(one: Host, two: Host) -> None:
    """What the first round had made is lost: the agent has as many rounds as at first."""
    job = placed(one, "runner.commit@2", {"inspector.gate.test@1.1": red})
    assert spine.RULES["limits"]["rounds"] == 2
    one.die()
    stitcher.sweep()
    assert two.do(job, script={"inspector.gate.test@2.1": red}) is None
    assert (job_now(job).status.value, job_now(job).reason) == ("completed", "done")
    ran = {key: host for key, status, host in plan_of(job) if status == "completed"}
    assert ran["runner.checkout@2.1"] == ran["weaver.implement@2.2"] == ran["runner.commit@2.1"] == "two"
    assert ran["weaver.implement@3.1"] == "two", "its second round there"
    [moved] = [event.data for event in queries.events(job) if event.kind == "host.lost"]
    assert moved["round"] == 2 and spine.broken_links(job) == []


def test_the_rounds_of_a_moved_job_are_limited_too(one: Host, two: Host) -> None:
    job = placed(one, "runner.commit@2", {"inspector.gate.test@1.1": red})
    one.die()
    stitcher.sweep()
    assert two.do(job, script={"inspector.gate.test": red}) is None
    assert job_now(job).reason == "gates_failed" and max(step.round for step in queries.steps(job)) == 3


def test_a_commit_that_is_gone_with_its_host_is_made_again_in_the_round_that_made_it(one: Host, two: Host) -> None:
    """It was about to be published; the step that would have done so is of the first round."""
    job = placed(one, "herald.publish", {"inspector.gate.test@1.1": red})
    one.die()
    stitcher.sweep()
    row = two.do(job, "herald.publish")
    assert row is not None and row["round"] == 1
    rows = on_files(plan("implement", (GateSpec(**spine.GATE),)))
    assert stitcher.record(row, HandBack("host_lost", "the commit is gone", 0.0, rows))
    assert two.do(job) is None and job_now(job).reason == "done"
    ran = {key: host for key, status, host in plan_of(job) if status == "completed"}
    assert ran["runner.checkout@2.1"] == ran["weaver.implement@2.2"] == ran["inspector.gate.test@2.2"] == "two"


def test_what_was_made_before_a_loss_does_not_count_where_it_was_made(one: Host, two: Host) -> None:
    """There and back: the first host has an older change than the job has; the agent begins from the clean tree."""
    job = placed(one, "runner.commit@2", {"inspector.gate.test@1.1": red})
    one.die()
    stitcher.sweep()
    assert two.do(job, "runner.commit") is not None
    back = Host("one", one._lock)
    two.die()
    stitcher.sweep()
    row = back.do(job, "runner.checkout")
    assert row is not None and steps.key_of(row) == "runner.checkout@2.2"
    context = Context(row, None, Held(row["id"], row["fence"], False))  # type: ignore[arg-type]
    assert context.output_of("runner.commit") == {} and context.output_of("runner.checkout") == {}
    assert context.output_of("runner.snapshot") != {} and context.made_elsewhere("runner.commit") is None


def test_its_own_failures_count_and_the_hosts_do_not(one: Host, two: Host) -> None:
    def fails(row: dict[str, Any]) -> Failed:
        return Failed("agent_failed", "no", retryable=True)

    job = placed(one, "runner.commit")
    one.die()
    stitcher.sweep()
    assert two.do(job, script={"weaver.implement": fails}) is None
    turns = [step for step in queries.steps(job) if step.name == "weaver.implement"]
    assert [(step.attempt, step.excused) for step in turns] == [(1, 0), (2, 1), (3, 1)], "two attempts of its own"
    assert job_now(job).reason == "agent_failed"


def test_a_host_that_comes_back_in_time_keeps_its_jobs(one: Host, two: Host) -> None:
    job = placed(one, "weaver.implement")
    one.die(seconds=hosts.LOST_SECONDS - 10)
    stitcher.sweep()
    assert job_now(job).host == "one"
    assert all(step.attempt == 1 for step in queries.steps(job) if step.name in ("weaver.implement", "runner.commit"))


def test_the_only_host_never_loses_its_jobs(one: Host) -> None:
    job = placed(one, "weaver.implement")
    one.die(seconds=3600)
    for _ in range(3):
        stitcher.sweep()
    found = job_now(job)
    assert found.host == "one" and "host.lost" not in [event.kind for event in queries.events(job)]


def test_what_still_runs_on_a_half_dead_host_is_waited_for(one: Host, two: Host) -> None:
    job = placed(one, "weaver.implement")
    control = one.ids["control"]
    execute("update workers set ended_at = clock_timestamp() - interval '1 hour' where id = %s", one.ids["gates"])
    one._lock.execute("select pg_advisory_unlock(%s, %s)", (workers.LOCK_CLASS, one.ids["gates"]))
    stitcher.sweep()
    assert job_now(job).host == "one"
    [row] = [row for row in queries.step_rows(job) if row["status"] == "running"]
    assert row["worker_id"] == control and stitcher.record(row, spine.outcome(row, {}))
    stitcher.sweep()
    assert job_now(job).host == "two", "its gates would never run there"


def test_the_closing_of_a_job_does_not_wait_for_a_lost_host(one: Host, lock: psycopg.Connection[Any]) -> None:
    bare = Host("bare", lock, control=8)
    job = placed(one, "weaver.implement")
    assert stitcher.cancel(job, "gitea:alice")
    one.die()
    for _ in range(4):
        stitcher.sweep()
        bare.do(job)
    assert (job_now(job).status.value, job_now(job).reason) == ("cancelled", "cancelled_by_user")
    turns = [step.attempt for step in queries.steps(job) if step.name == "weaver.implement"]
    assert turns == [1], "nothing is done again for a job that only has to be closed"


def test_a_job_about_to_be_published_goes_on_with_that(one: Host, two: Host) -> None:
    job = placed(one, "herald.publish")
    one.die()
    stitcher.sweep()
    row = two.do(job, "herald.publish")
    assert row is not None and [step.attempt for step in queries.steps(job) if step.name == "runner.commit"] == [1]
    again = HandBack("host_lost", "the commit is gone", 0.0, ("runner.checkout", "weaver.implement", "runner.commit"))
    assert stitcher.record(row, again)
    assert two.do(job) is None and job_now(job).reason == "done"
    ran = {key: host for key, status, host in plan_of(job) if status == "completed"}
    assert ran["weaver.implement@1.2"] == ran["runner.commit@1.2"] == "two"


def test_the_bells_of_a_lost_host_are_taken_away(one: Host, two: Host) -> None:
    placed(one, "weaver.implement")
    with transaction():
        ring(Pool.CONTROL, "runner.commit", 1, host="one")
    one.die()
    stitcher.sweep()
    assert not [bell for bell in spine.bells() if bell[0].endswith("@one")]


def test_only_the_jobs_at_a_host_need_its_files(one: Host, two: Host) -> None:
    here, there = placed(one, "weaver.implement"), placed(two, "weaver.implement", repository=71)
    assert queries.jobs_at("one") == {here} and queries.jobs_at("two") == {there}


def test_steps_that_need_no_files_are_few_and_named() -> None:
    assert {"runner.admit", "runner.snapshot", "herald.report"} == ANYWHERE


# ---------------------------------------------------------------- one key for all


def test_a_host_with_another_key_does_not_start_beside_the_others(one: Host, database: str) -> None:
    execute("update workers set signer = 'aaa' where id = %s", one.ids["control"])
    for host, signer, starts in (("two", "bbb", False), ("two", "aaa", True), ("one", "bbb", True)):
        worker = Worker(database, "control", 1, host, signer)
        if starts:
            with tasks.at_work(worker, Pool.AGENTS):
                assert worker.id
        else:
            with (
                pytest.raises(tasks.MosaicError, match="MOSAIC_SECRET_KEY") as refused,
                tasks.at_work(worker, Pool.AGENTS),
            ):
                raise AssertionError("it started")
            assert refused.value.code == "key_differs"


def test_effects_need_no_host(one: Host, two: Host) -> None:
    job = placed(one, "weaver.implement")
    with transaction():
        number = effects.plan("k", "comment.status", {"number": 1}, job_id=job)
    assert effects.claim(number, two.ids["control"]) is not None
