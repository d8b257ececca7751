"""The spine when things break under it: connections that end, processes that freeze, results that cannot be stored."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import psycopg
import pytest
from peewee import OperationalError

from app import queries, redact, rules, settings, stitcher
from app.clients.gitea import GiteaClient
from app.context import Clients, Context, Work
from app.edge import connected
from app.ledger import effects, inbox, steps, workers
from app.ledger.chain import entry, transaction
from app.models import execute, fetch, fetch_one
from app.queue import CROWD, ring_many
from app.stitcher.sweep import take_back
from app.types import Cancelled, Command, Done, Failed, HandBack, LostLease, Pool, Result, Verb
from app.worker import Held, Worker
from jobs import herald, runner, tasks
from jobs.herald.publish import _carry
from jobs.runner.obey import Asked, _answer
from jobs.runner.setup import _only_one
from tests import spine
from tests.worlds.forge import Forge
from tests.worlds.gitea import Fault, PracticeGitea

pytestmark = pytest.mark.usefixtures("database")
ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


def until(look: Callable[[], T | None], seconds: float = 20.0) -> T:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"waited {seconds:g} s"
        time.sleep(0.02)
    return found


@pytest.fixture
def live(database: str) -> Iterator[Worker]:
    """A worker with its session lock and its heartbeat, as a consumer has one."""
    worker = Worker(database, "control", 8)
    worker.start()
    yield worker
    worker.stop()


def clients_of(worker: Worker, forge: Any = None, env: dict[str, str] | None = None) -> Clients:
    mine = settings.load("control", env) if env else SimpleNamespace(data_dir=Path("/tmp"))
    return Clients(mine, rules.ServerConfig.load(None), worker, redact.Redactor(()), forge)  # type: ignore[arg-type]


def admission(work: Work) -> dict[str, tasks.Task]:
    """The work of the first step; the second, with which a worker goes on at once, stops there."""
    return {
        "runner.admit": tasks.Task(work),
        "runner.snapshot": tasks.Task(lambda _: HandBack("worker_stopped", "here the test ends", 600.0)),
    }


def hang_up() -> None:
    """End every other session of this database, as a restart of the server does; returns when they are gone."""
    ended = [
        row["pid"]
        for row in fetch(
            "select pid, pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
    ]
    until(lambda: not fetch("select 1 as yes from pg_stat_activity where pid = any(%s)", ended))


def break_off() -> None:
    """End our own session from within."""
    with pytest.raises(OperationalError):
        execute("select pg_terminate_backend(pg_backend_pid())")


def first_step(job: int, worker_id: int) -> dict[str, Any]:
    row = steps.claim(spine.ready_steps(job)[0], worker_id, "here")
    assert row is not None
    return row


def lapse(step_id: int) -> None:
    execute("update job_steps set lease_until = clock_timestamp() where id = %s", step_id)


def step_now(step_id: int) -> dict[str, Any]:
    row = fetch_one("select * from job_steps where id = %s", step_id)
    assert row is not None
    return row


# ---------------------------------------------------------------- the database goes away and comes back


def test_a_thread_whose_connection_ended_gets_a_new_one_at_its_next_statement() -> None:
    with connected():
        break_off()
        assert fetch("select 1 as one") == [{"one": 1}]
        break_off()
        with transaction():
            assert fetch("select 1 as one") == [{"one": 1}]
    assert fetch("select 1 as one") == [{"one": 1}]


def test_a_transaction_that_is_cut_off_is_not_gone_on_with() -> None:
    job = spine.submit()
    with pytest.raises(OperationalError), entry(job) as locked:
        locked.event("step.output", text="never")
        break_off()
    assert "step.output" not in [event.kind for event in queries.events(job)]
    assert spine.broken_links(job) == []


def test_a_worker_that_lost_its_session_is_alive_again_and_its_slots_count(live: Worker) -> None:
    execute("update workers set ended_at = clock_timestamp()")  # what a sweep does while the session is gone
    hang_up()
    until(lambda: queries.workers_alive("control") == 8 and queries.live_workers() == {"control": 1})


def test_a_restart_of_the_database_takes_no_step_from_its_worker(live: Worker) -> None:
    job = spine.submit()
    row = first_step(job, live.id)
    with live.holding(row, interruptible=False) as held:
        hang_up()
        until(lambda: row["id"] not in queries.lost_steps())
        stitcher.sweep()
        assert not held.stop.is_set()
    assert stitcher.record(row, spine.admitted(job))
    assert step_now(row["id"])["crashes"] == 0


@pytest.mark.parametrize("go_on", [60.0, 0.0])
def test_a_worker_goes_on_with_the_next_step_and_after_its_time_lets_it_ring(live: Worker, go_on: float) -> None:
    job = spine.submit()
    [admit] = spine.ready_steps(job)
    spine.silence()
    tasks.perform(admit, admission(lambda _: spine.admitted(job)), clients_of(live), go_on=go_on)
    [snapshot] = [step for step in queries.steps(job) if step.name == "runner.snapshot"]
    assert snapshot.faults == (1 if go_on else 0), "it was worked on, or waits"
    rung = ("mosaic-control", "runner.snapshot", snapshot.id) in spine.bells()
    assert rung is not bool(go_on)


def test_a_result_is_recorded_though_the_connection_ended_under_the_work(live: Worker) -> None:
    job = spine.submit()
    [admit] = spine.ready_steps(job)

    def work(context: Context) -> Result:
        context.log("before")
        break_off()
        return spine.admitted(job)

    tasks.perform(admit, admission(work), clients_of(live))
    done = step_now(admit)
    assert (done["status"], done["faults"], done["crashes"]) == ("completed", 0, 0)
    assert queries.log(admit) == "before"


def test_a_result_is_recorded_though_the_first_try_is_cut_off(live: Worker, database: str) -> None:
    """Another session holds the job's row; the server ends ours while it waits for it."""
    job = spine.submit()
    [admit] = spine.ready_steps(job)
    other = psycopg.connect(database)

    def work(context: Context) -> Result:
        other.execute("select 1 from runner_jobs for update")
        return spine.admitted(job)

    def cut_off() -> None:
        with connected():
            until(
                lambda: fetch(
                    "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock' "
                    "and datname = current_database()"
                )
            )
            other.close()

    helper = threading.Thread(target=cut_off)
    helper.start()
    tasks.perform(admit, admission(work), clients_of(live))
    helper.join()
    assert step_now(admit)["status"] == "completed"


def test_a_claimed_step_is_worked_on_though_the_comment_cannot_be_asked_for(
    live: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = spine.submit()
    [admit] = spine.ready_steps(job)
    execute("update job_steps set pool = 'gates' where id = %s", admit)

    def away(_: int) -> None:
        raise OperationalError("the database has just gone away")

    monkeypatch.setattr(stitcher, "tell", away)
    tasks.perform(admit, admission(lambda _: spine.admitted(job)), clients_of(live))
    assert step_now(admit)["status"] == "completed"


@pytest.mark.parametrize(("kind", "looked_at"), [("wip.push", False), ("reaction", False), ("comment.reply", True)])
def test_what_is_done_is_looked_at_again_only_where_there_could_be_copies(
    live: Worker, kind: str, looked_at: bool
) -> None:
    """The answer to the COMMIT that says so was lost: it is postponed, and done all the same."""
    with transaction():
        planned = effects.plan("k", kind, {})
    effect = effects.claim(planned, live.id)
    assert effect is not None and effects.done(effect, "1")
    effects.postpone(effect, 0.0, "the connection broke", "database_unavailable", unsure=True)
    row = queries.effect("k")
    assert row is not None and row["state"] == "done"
    assert (row["code"] != "", effects.due() == [planned]) == (looked_at, looked_at)


def test_a_lease_counts_from_the_end_of_the_wait_for_the_job(live: Worker, database: str) -> None:
    """Whoever was frozen with the lock of a job holds it for as long as a lease lasts."""
    job = spine.submit()
    [admit] = spine.ready_steps(job)
    with psycopg.connect(database) as other:
        other.execute("select 1 from runner_jobs where id = %s for update", (job,))
        helper = threading.Timer(1.0, other.rollback)
        helper.start()
        assert steps.claim(admit, live.id, live.host) is not None
        helper.join()
    [left] = fetch(
        "select extract(epoch from lease_until - clock_timestamp())::float8 as seconds from job_steps where id = %s",
        admit,
    )
    assert left["seconds"] > steps.LEASE_SECONDS - 0.9


@pytest.mark.parametrize("fails", ["the result", "the look"])
def test_a_step_that_a_lost_commit_gave_us_is_gone_on_with_after_several_tries(
    live: Worker, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The answer to the COMMIT is lost with the database, which is still away at the next try."""
    job = spine.submit()
    [admit] = spine.ready_steps(job)
    record, holds, tries = stitcher.record, steps.holds, iter(range(100))

    def unlucky(*arguments: Any) -> bool:
        turn = next(tries)
        if turn == 1 and fails == "the result":
            raise OperationalError("the database is away")
        recorded = record(*arguments)
        if turn == 0:
            raise OperationalError("the connection broke before the answer to COMMIT")
        return recorded

    def unlucky_look(*arguments: Any) -> bool:
        if next(tries) == 2 and fails == "the look":
            raise OperationalError("the database is away")
        return holds(*arguments)

    monkeypatch.setattr(stitcher, "record", unlucky)
    monkeypatch.setattr(steps, "holds", unlucky_look)
    tasks.perform(admit, admission(lambda _: spine.admitted(job)), clients_of(live), go_on=60.0)
    [snapshot] = fetch(
        "select status, reason, crashes from job_steps where job_id = %s and name = 'runner.snapshot'", job
    )
    assert snapshot == {"status": "pending", "reason": "worker_stopped", "crashes": 0}


def test_work_that_the_database_interrupts_is_done_again_and_spends_no_attempt(live: Worker) -> None:
    job = spine.submit()
    [admit] = spine.ready_steps(job)

    def work(context: Context) -> Result:
        execute("select pg_terminate_backend(pg_backend_pid())")
        raise AssertionError("the statement above has failed")

    tasks.perform(admit, admission(work), clients_of(live))
    row = step_now(admit)
    assert (row["status"], row["reason"], row["attempt"], row["faults"]) == ("pending", "database_unavailable", 1, 1)


@pytest.mark.slow
def test_no_fault_ends_the_sweep(database: str) -> None:
    rounds: list[int] = []

    def sweep() -> None:
        rounds.append(1)
        if len(rounds) == 1:
            raise OperationalError("deadlock detected")
        if len(rounds) == 2:
            raise RuntimeError("anything else")

    worker = Worker(database, "control", 1)
    worker.start(sweep)
    until(lambda: len(rounds) >= 3)
    worker.stop()


# ---------------------------------------------------------------- frozen and dead workers


def test_the_lease_of_a_step_that_nobody_works_on_any_more_lapses(live: Worker) -> None:
    """A thread that ended without a result (the database refused it) leaves a running step behind."""
    job = spine.submit()
    row = first_step(job, live.id)
    with live.holding(row, interruptible=False):
        lapse(row["id"])
        live._look(renew=True)
        assert step_now(row["id"])["lease_until"] > queries.now()
    lapse(row["id"])
    live._look(renew=True)
    assert queries.lost_steps() == [row["id"]]


def test_a_process_that_lost_a_step_and_got_it_again_still_renews_it(live: Worker) -> None:
    job = spine.submit()
    row = first_step(job, live.id)
    with ExitStack() as earlier:
        before = earlier.enter_context(live.holding(row, interruptible=False))
        lapse(row["id"])
        take_back(row["id"])
        with live.holding(first_step(job, live.id), interruptible=False) as now:
            live._look(renew=True)
            assert (before.why, now.why) == ("lost", "")
            earlier.close()  # the thread that lost it ends
            lapse(row["id"])
            live._look(renew=True)
            assert queries.lost_steps() == []


@pytest.mark.slow
def test_a_frozen_sweeper_does_not_keep_the_office(database: str) -> None:
    script = (
        "import sys, time\nfrom app import models, worker\nworker.FROZEN_SECONDS = 1\n"
        "models.bind(sys.argv[1])\nworker.Worker(sys.argv[1], 'control', 1).start(lambda: print('swept', flush=True))\n"
        "time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, database], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    swept = threading.Event()
    worker = Worker(database, "control", 1)
    try:
        assert other.stdout is not None and other.stdout.readline() == "swept\n"
        other.send_signal(19)  # SIGSTOP
        worker.start(swept.set)
        assert swept.wait(20)
    finally:
        worker.stop()
        other.kill()
        other.wait()
        other.stdout.close() if other.stdout else None


def test_a_worker_of_another_database_of_the_server_proves_nothing(cluster: Any, live: Worker) -> None:
    job, dead = spine.submit(), spine.worker()
    first_step(job, dead)
    with psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True) as elsewhere:
        elsewhere.execute("select pg_advisory_lock(%s, %s)", (workers.LOCK_CLASS, dead))
        assert len(queries.lost_steps()) == 1


def test_who_waits_for_a_frozen_setup_can_be_stopped(live: Worker, tmp_path: Path) -> None:
    row = first_step(spine.submit(), live.id)
    held = Held(row["id"], row["fence"], interruptible=True)
    context = Context(row, clients_of(live), held)
    with _only_one(context, tmp_path / "cache"):
        held.end("cancel")
        with pytest.raises(Cancelled), _only_one(context, tmp_path / "cache"):
            raise AssertionError("two hold one lock")


def test_a_stop_of_the_process_does_not_throw_away_work_that_is_done(live: Worker) -> None:
    row = first_step(spine.submit(), live.id)
    held = Held(row["id"], row["fence"], interruptible=True)
    held.end("drain")
    context = Context(row, clients_of(live), held)
    assert tasks.attempt(context, lambda _: Done(output={"text": "paid for"}), ()) == Done(output={"text": "paid for"})
    handed_back = tasks.attempt(context, lambda _: Failed("cancelled"), ("runner.checkout",))
    assert isinstance(handed_back, HandBack) and handed_back.redo == ("runner.checkout",)


# ---------------------------------------------------------------- results and rows that cannot be stored


def test_a_result_that_cannot_be_stored_ends_the_step_as_an_internal_error(live: Worker) -> None:
    job = spine.submit()
    [admit] = spine.ready_steps(job)
    tasks.perform(admit, admission(lambda _: Done(facts={"no_such_column": 1})), clients_of(live))
    row = step_now(admit)
    assert (row["status"], row["reason"]) == ("failed", "internal_error")
    assert "no_such_column" in row["detail"]
    again = [step for step in queries.steps(job) if step.name == "runner.admit"]
    assert [step.attempt for step in again] == [1, 2]


def test_a_command_that_always_fails_is_given_up(live: Worker) -> None:
    with transaction():
        number = inbox.receive(
            "gitea", "d-1", dedup_key="k", event="issue_comment", state="command", trigger=spine.trigger(),
            commands=[Command(Verb.HELP)],
        )  # fmt: skip
    assert number is not None
    for _ in range(20):
        runner.obey(number, clients_of(live))  # without a forge it fails
        execute("update deliveries set run_after = clock_timestamp()")
    row = queries.delivery(number)
    assert row is not None and (row["state"], row["attempts"]) == ("failed", 9)
    assert inbox.due_commands() == []


def test_two_jobs_cancelled_by_one_text_wait_for_nobody_who_waits_for_them(database: str) -> None:
    """To cancel the first rings for steps of the second; a worker that records such a step holds the second's row."""
    first, second = spine.submit(), spine.submit()
    execute("update job_steps set rung_at = null where job_id = %s", second)
    said = [Command(Verb.CANCEL, job=first), Command(Verb.CANCEL, job=second)]
    with transaction():
        number = inbox.receive(
            "gitea", "d-1", dedup_key="k", event="issue_comment", state="command", trigger=spine.trigger(),
            commands=said,
        )  # fmt: skip
    row = queries.delivery(number or 0)
    assert row is not None
    asked = Asked(row["id"], spine.trigger(), "alice", "write", "mosaic", "")

    def answer() -> None:
        with connected():
            _answer(row, asked, "")

    with psycopg.connect(database) as recorder, ThreadPoolExecutor(1) as pool:
        recorder.execute("set lock_timeout = '500ms'")
        recorder.execute("select 1 from runner_jobs where id = %s for update", (second,))
        answered = pool.submit(answer)
        until(lambda: fetch("select 1 as yes from pg_locks where not granted and locktype <> 'advisory'"))
        recorder.execute("update job_steps set detail = 'done' where job_id = %s", (second,))
        recorder.commit()
        answered.result(20)
    assert [job.cancel_requested for job in map(queries.job, (first, second)) if job] == [True, True]
    assert (queries.delivery(row["id"]) or {})["state"] == "answered"


def test_a_command_that_waits_for_the_forge_is_asked_for_less_and_less_often_and_not_for_ever(live: Worker) -> None:
    settings: Any = SimpleNamespace(base_url="")
    away = replace(clients_of(live), settings=settings, forge=GiteaClient("http://127.0.0.1:1", "a-token-of-nobody"))
    with transaction():
        number = inbox.receive(
            "gitea", "d-1", dedup_key="k", event="issue_comment", state="command", trigger=spine.trigger(),
            commands=[Command(Verb.HELP)],
        )  # fmt: skip
    assert number is not None
    waits = []
    for _ in range(7):
        runner.obey(number, away)
        [row] = fetch("select extract(epoch from run_after - clock_timestamp())::float8 as s from deliveries")
        waits.append(round(row["s"], -1))
    assert waits == [10, 20, 40, 80, 160, 300, 300]
    execute("update deliveries set received_at = received_at - interval '25 hours'")
    runner.obey(number, away)
    row = queries.delivery(number) or {}
    assert row["state"] == "failed" and "no connection" in row["reason"] and inbox.due_commands() == []


def test_bells_do_not_pile_up_while_nobody_answers_them() -> None:
    job = spine.submit()
    with transaction():
        ring_many(Pool.CONTROL, "runner.admit", [spine.ready_steps(job)[0]] * CROWD)
    hanging = len(spine.bells())
    execute("update job_steps set rung_at = rung_at - interval '1 minute'")
    execute("update effects set rung_at = rung_at - interval '1 minute'")
    stitcher.sweep()
    assert len(spine.bells()) == hanging
    spine.silence()
    stitcher.sweep()
    assert {task for _, task, _ in spine.bells()} >= {"runner.admit", "herald.deliver"}


# ---------------------------------------------------------------- effects


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[SimpleNamespace]:
    practice = PracticeGitea(tmp_path / "gitea", "a" * 40).start()
    hands = Forge(practice.url, "a" * 40, control=True)
    bot, alice = hands.make_user("mosaic"), hands.make_user("alice")
    repo = hands.make_repo(alice.login, "calc", {"calc.py": "x = 1\n"})
    hands.collaborator(repo, bot.login)
    number = int(hands.open_issue(alice.token, repo, "title")["number"])
    yield SimpleNamespace(practice=practice, hands=hands, bot=bot, repo=repo, number=number)
    practice.stop()


@pytest.fixture
def herald_clients(live: Worker, forge: SimpleNamespace, tmp_path: Path) -> Clients:
    """What a control consumer holds: the bot's token for the practice forge."""
    env = {
        "MOSAIC_DATA_DIR": str(tmp_path / "var"), "MOSAIC_SECRET_KEY": "s" * 40, "MOSAIC_GITEA_URL": forge.practice.url,
        "MOSAIC_GITEA_TOKEN": forge.bot.token, "MOSAIC_GITEA_WEBHOOK_SECRET": "w" * 40,
    }  # fmt: skip
    clients = clients_of(live, tasks.GiteaClient(forge.practice.url, forge.bot.token), env)
    runner.introduce(clients)
    return clients


def job_on(forge: SimpleNamespace, clients: Clients) -> int:
    """An admitted job for the issue of the practice forge."""
    assert clients.forge is not None
    repository = clients.forge.repository(forge.repo)
    assert repository is not None
    job = spine.submit(repository_id=repository.id, repository=forge.repo, number=forge.number)
    assert stitcher.record(first_step(job, clients.worker.id), spine.admitted(job))
    return job


def stall(forge: SimpleNamespace, method: str, path: str) -> Callable[[], bool]:
    """The next such request takes two seconds; the answer says whether it is under way."""
    forge.practice.world.faults.add(Fault(method, path, "stall", seconds=2.0))
    return lambda: not forge.practice.world.faults._rules


@pytest.mark.slow
def test_a_late_write_of_a_lost_owner_does_not_stay(forge: SimpleNamespace, herald_clients: Clients) -> None:
    """An old status comment arrives after the newer one: it is written over."""
    job = job_on(forge, herald_clients)
    effect = queries.effect(f"job:{job}:status")
    assert effect is not None

    def deliver() -> None:
        with connected():
            execute("update effects set next_at = clock_timestamp(), lease_until = null where id = %s", effect["id"])
            herald.deliver(effect["id"], herald_clients)

    deliver()
    first_step(job, herald_clients.worker.id)
    stitcher.tell(job)
    under_way = stall(forge, "PATCH", "/issues/comments/")
    frozen = threading.Thread(target=deliver)
    frozen.start()
    until(under_way)
    assert stitcher.cancel(job, "gitea:alice")
    deliver()
    [newest] = [one["body"] for one in forge.hands.comments(forge.repo, forge.number)]
    frozen.join()
    [late] = [one["body"] for one in forge.hands.comments(forge.repo, forge.number)]
    assert late != newest
    deliver()
    assert [newest] == [one["body"] for one in forge.hands.comments(forge.repo, forge.number)]
    row = queries.effect(effect["key"])
    assert row is not None and (row["state"], row["told"]) == ("done", row["wanted"])


@pytest.mark.slow
def test_a_publisher_that_lost_its_effect_hands_its_step_back(forge: SimpleNamespace, herald_clients: Clients) -> None:
    job = job_on(forge, herald_clients)
    row = first_step(job, herald_clients.worker.id)
    context = Context(row, herald_clients, Held(row["id"], row["fence"], interruptible=False))
    under_way = stall(forge, "GET", "/pulls")

    def lapse_it() -> None:
        with connected():
            until(under_way)
            execute("update effects set lease_until = clock_timestamp() where kind = 'pull_request'")

    helper = threading.Thread(target=lapse_it)
    helper.start()
    target = {"repository_id": context.job.repository_id, "repository": forge.repo, "number": forge.number}
    result = _carry(context, f"job:{job}:pull", "pull_request", target)
    helper.join()
    assert isinstance(result, HandBack) and "no longer ours" in result.detail
    assert forge.hands.pulls(forge.repo) == []


# ---------------------------------------------------------------- everything at once


@pytest.mark.slow
def test_many_hands_on_many_jobs_never_block_each_other_for_good() -> None:
    """Claims, results, lost workers, sweeps, renewals, cancels and effects side by side: no deadlock, no gap."""
    hands = [spine.worker(pool, 20) for pool in ("control", "agents", "gates")]
    jobs = [
        spine.submit(repository_id=n % 3 + 1, number=n % 6 + 1, object_id=9000 + n, priority=n % 3) for n in range(12)
    ]
    faults: list[BaseException] = []
    over = threading.Event()

    def keep(work: Callable[[random.Random], None], seed: int) -> threading.Thread:
        def run() -> None:
            chance = random.Random(seed)
            while not over.is_set():
                try:
                    with connected():
                        work(chance)
                except Exception as fault:  # noqa: BLE001 - whatever it is, the test tells it
                    faults.append(fault)

        return threading.Thread(target=run)

    def work(chance: random.Random) -> None:
        found = spine.ready_steps()
        row = steps.claim(chance.choice(found), chance.choice(hands), "here") if found else None
        if row is None or chance.random() < 0.05:
            return  # nothing to do, taken by another, or this worker dies with it
        try:
            steps.event(row, "step.output", text="x")
        except LostLease:
            return
        stitcher.record(row, _chance_result(row, chance))

    def renew(_: random.Random) -> None:
        for hand in hands:
            steps.renew(hand, [row["id"] for row in steps.running(hand)])

    def tell(_: random.Random) -> None:
        for found in fetch("select id from effects where state = 'planned' limit 5"):
            effect = effects.claim(found["id"], hands[0])
            if effect:
                effects.done(effect, "1")

    roles = [work] * 5 + [lambda _: stitcher.sweep()] * 2 + [renew, tell]
    threads = [keep(role, seed) for seed, role in enumerate(roles)]
    for thread in threads:
        thread.start()
    stitcher.cancel(jobs[3], "gitea:alice")
    until(lambda: not queries.jobs(status=("pending", "queued", "running", "waiting")), 60)
    over.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert [job for job in jobs if spine.broken_links(job)] == []


def _chance_result(row: dict[str, Any], chance: random.Random) -> Result:
    if row["name"] == "runner.admit":
        job = queries.job(row["job_id"])
        assert job is not None
        return spine.admitted(job.id, branch=f"mosaic/issue-{job.number}", gates=[spine.GATE])
    lot = chance.random()
    if row["name"] == "inspector.gate.test" and lot < 0.3:
        return Failed("gate_red", "1 failed", output={"required": True})
    if lot < 0.1:
        return HandBack("forge_unavailable", "503", 0.0)
    return spine.outcome(row, {})


def test_a_step_beyond_its_limit_is_told_to_stop(database: str) -> None:
    worker = Worker(database, "control", 1)
    worker.start()
    try:
        job = spine.submit()
        row = steps.claim(spine.ready_steps(job)[0], worker.id, "here")
        assert row is not None
        with worker.holding(row, interruptible=True, seconds=0.0) as held:
            assert held.stop.wait(20)
            assert held.why == "late"
    finally:
        worker.stop()
