"""Who owns a step: a death is noticed at once, a crash is no attempt, a row starves nobody, a drain loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from app import queries, stitcher
from app.ledger import effects, slots, steps, workers
from app.ledger.chain import transaction
from app.models import execute, fetch
from app.paths import Paths
from app.queue import doorbell, ring
from app.stitcher.sweep import take_back
from app.types import Failed, Pool, StepStatus
from app.watch import Watch, neighbours
from app.worker import STOP_SECONDS, Worker
from tests import spine
from tests.worlds.crew import Crew

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


@pytest.fixture
def crew(database: str) -> Iterator[Crew]:
    with Crew(database) as hired:
        yield hired


def until(look: Callable[[], T | None], what: str = "it", seconds: float = 20.0) -> T:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)
    return found


def ended(job: int) -> str:
    def look() -> str | None:
        found = queries.job(job)
        return found.reason if found and found.status.terminal else None

    return until(look, f"the end of job {job}")


def rows(job: int, name: str) -> list[dict[str, Any]]:
    return [row for row in queries.step_rows(job) if row["name"] == name]


def runs(job: int, name: str) -> dict[str, Any] | None:
    return next((row for row in rows(job, name) if row["status"] == "running"), None)


def lost(job: int) -> list[dict[str, Any]]:
    return [event.data for event in queries.events(job) if event.kind == "worker.lost"]  # type: ignore[misc]


# ---------------------------------------------------------------- the death notice


def test_every_worker_is_watched_by_two_others_and_nobody_by_himself() -> None:
    pools = {1: "control", 2: "agents", 3: "gates", 4: "control", 5: "agents", 6: "control", 9: "gates", 12: "control"}
    seen: dict[int, list[int]] = {number: [] for number in pools}
    for me in (number for number, pool in pools.items() if pool == "control"):
        for number in neighbours(me, [{"id": n, "pool": p} for n, p in pools.items() if n != me]):
            seen[number].append(me)
    assert all(len(set(watchers)) == 2 and number not in watchers for number, watchers in seen.items())


def test_one_control_worker_watches_all_others() -> None:
    assert neighbours(5, [{"id": 2, "pool": "agents"}, {"id": 9, "pool": "gates"}]) == [2, 9]
    many = [{"id": number, "pool": "gates"} for number in range(10, 60)]
    assert len(neighbours(5, many)) == 16


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(("pool", "step"), [("control", "runner.snapshot"), ("gates", "runner.setup")])
def test_a_killed_worker_is_noticed_without_any_sweep(crew: Crew, tmp_path: Path, pool: str, step: str) -> None:
    """The watch alone does it: nobody sweeps here, and the lease has half a minute to go."""
    hold = {step: f"hold:{tmp_path / 'open'}"}
    watcher = crew.hire("control", hold, sweeps=False)
    victim = crew.hire(pool, hold, sweeps=False)
    if pool == "control":
        watcher.send(signal.SIGSTOP)
    for other in {"agents", "gates"} - {pool}:
        crew.hire(other)
    job = spine.submit()
    row = until(lambda: runs(job, step), "the step to run")
    assert row["worker_id"] == victim.id
    watcher.send(signal.SIGCONT)
    until(lambda: watched(victim.id), "somebody to watch")
    victim.kill()
    until(lambda: lost(job), "the notice")
    if pool != "control":
        crew.hire(pool, hold)
    (tmp_path / "open").touch()
    assert ended(job) == "done"
    assert [one["worker"] for one in lost(job)] == [victim.id]
    [row] = rows(job, step)
    assert (row["attempt"], row["crashes"]) == (1, 1)


def watched(worker_id: int) -> bool:
    """Somebody waits for the lock of this worker."""
    return bool(
        fetch(
            "select 1 as yes from pg_locks where locktype = 'advisory' and not granted and classid = %s and objid = %s",
            workers.LOCK_CLASS,
            worker_id,
        )
    )


def test_who_only_lost_a_connection_is_not_dead(crew: Crew, tmp_path: Path, database: str) -> None:
    """Its lock is free for a moment; its other sessions and its next beat say that it lives."""
    victim = crew.hire("control", {"runner.snapshot": f"hold:{tmp_path / 'open'}"})
    job = spine.submit()
    until(lambda: runs(job, "runner.snapshot"), "the step to run")
    crew.hire("control")
    until(lambda: watched(victim.id), "somebody to watch")
    [holder] = fetch(
        "select pid from pg_locks where locktype = 'advisory' and granted and classid = %s and objid = %s",
        workers.LOCK_CLASS,
        victim.id,
    )
    execute("select pg_terminate_backend(%s)", holder["pid"])
    until(lambda: workers.state(victim.id)["locked"], "it to take its lock again")
    until(lambda: watched(victim.id), "somebody to watch again")
    (tmp_path / "open").touch()
    crew.hire("agents"), crew.hire("gates")
    assert ended(job) == "done" and lost(job) == []


def test_a_free_lock_alone_makes_nobody_dead_while_the_process_has_a_session(database: str) -> None:
    """The sweep may come by in the moment between the loss of the lock's connection and the next heartbeat."""
    boot, job = "0a1b2c3d-boot", spine.submit()
    me = workers.register(boot, "here", 1, "control", 1, "test")
    execute("update workers set started_at = started_at - interval '1 minute' where id = %s", me)
    [admit] = spine.ready_steps(job)
    assert steps.claim(admit, me, "here")
    with psycopg.connect(database, application_name=workers.session_name("control", boot)):
        stitcher.sweep()
        assert queries.lost_steps() == [] and not workers.retired(me)
    until(lambda: queries.lost_steps() == [admit], "the session to be gone")
    stitcher.sweep()
    assert lost(job) and workers.retired(me)


def test_who_has_no_step_is_not_dead_before_it_looks_after_its_lock(database: str) -> None:
    """It may have a comment in hand, and looks after its lock more rarely than who has a step."""
    idle, over = Worker(database, "control", 1), threading.Event()
    buried: list[int] = []
    idle.start()
    with psycopg.connect(database, application_name=idle.session):
        watch = Watch(database, workers.register("b", "here", 1, "control", 1, "test"), buried.append, over)
        sentry = threading.Thread(target=watch.run)
        sentry.start()
        try:
            until(lambda: watched(idle.id), "somebody to watch")
            idle._woken.set()
            time.sleep(STOP_SECONDS + 0.2)  # it has just looked
            fetch(
                "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted "
                "and mode = 'ExclusiveLock' and classid = %s and objid = %s",
                workers.LOCK_CLASS,
                idle.id,
            )
            until(lambda: workers.state(idle.id)["locked"] or buried, "it to take its lock again")
            assert buried == []
        finally:
            over.set()
            sentry.join()
            idle.stop()


def test_everybody_loses_their_sessions_and_nobody_is_taken_for_dead(crew: Crew, tmp_path: Path) -> None:
    """What a restart of the database looks like."""
    hands = [crew.hire("control", {"runner.snapshot": f"hold:{tmp_path / 'open'}"}) for _ in range(2)]
    job = spine.submit()
    row = until(lambda: runs(job, "runner.snapshot"), "the step to run")
    until(lambda: all(watched(hand.id) for hand in hands), "them to watch each other")
    fetch(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
        "and pid <> pg_backend_pid()"
    )
    until(lambda: all(workers.state(hand.id)["locked"] for hand in hands), "them to come back")
    until(lambda: all(watched(hand.id) for hand in hands), "them to watch each other again")
    (tmp_path / "open").touch()
    crew.hire("agents"), crew.hire("gates")
    assert ended(job) == "done" and lost(job) == []
    [again] = rows(job, "runner.snapshot")
    assert (again["fence"], again["crashes"]) == (row["fence"], 0)


@pytest.mark.usefixtures("database")
def test_what_a_dead_worker_had_in_hand_besides_steps_is_free_at_once() -> None:
    """Its effects, and the bells that it may have heard and not answered."""
    job, dead = spine.submit(), spine.worker()
    with transaction():
        effect = effects.plan("k", "comment.status", {"number": 1}, job_id=job)
    assert effects.claim(effect, dead) is not None
    [admit] = spine.ready_steps(job)
    spine.silence()  # it heard the bell
    stitcher.bury(dead)
    assert ("mosaic-control", "runner.admit", admit) in spine.bells()
    assert ("mosaic-control", "herald.deliver", effect) in spine.bells()
    again = effects.claim(effect, spine.worker())
    assert again is not None and again["unsure"], "what the dead one sent may still arrive"
    assert fetch("select ended_at is not null as over from workers where id = %s", dead) == [{"over": True}]


def test_a_worker_that_fell_silent_takes_no_slots_and_comes_back(database: str) -> None:
    worker = Worker(database, "agents", 3)
    worker.start()
    try:
        execute(
            "update workers set started_at = started_at - interval '1 hour', "
            "heartbeat_at = heartbeat_at - interval '1 minute' where id = %s",
            worker.id,
        )
        workers.bury_dead()
        assert slots.free("agents", 5) == {}
        worker._look(renew=True)
        assert slots.free("agents", 5) == {worker.host: 3}
    finally:
        worker.stop()


# ---------------------------------------------------------------- crashes


def test_a_step_that_kills_its_process_is_stopped_after_three_and_harms_nobody_else(crew: Crew) -> None:
    poison, sound = spine.submit(), spine.submit()
    behave = {f"runner.snapshot#{poison}": "die"}
    hand = crew.hire("control", behave)
    crew.hire("agents"), crew.hire("gates")
    for _ in range(3):
        assert hand.ended() == -signal.SIGKILL
        hand = crew.rehire(hand)
    assert ended(poison) == "crashed"
    assert ended(sound) == "done"
    assert [one["crashes"] for one in lost(poison)] == [1, 2, 3]
    [row] = rows(poison, "runner.snapshot")
    assert (row["status"], row["attempt"], row["crashes"]) == ("failed", 1, 3)
    assert all(row["attempt"] == 1 for row in queries.step_rows(sound)), "whoever was beside it lost no attempt"
    assert spine.broken_links(poison) == [] and spine.broken_links(sound) == []


def test_of_those_whose_worker_was_lost_twice_one_runs_at_a_time(database: str) -> None:
    """They went down together: alone, each shows whether it was the one. A healthy one beside them need not wait."""
    suspects, dead = [spine.submit(repository_id=number) for number in (11, 12, 13)], spine.worker()
    for job in [*suspects, *suspects]:
        assert steps.claim(_admit(job), dead, "here")
        take_back(_admit(job))
    sound, live = spine.submit(repository_id=14), Worker(database, "control", 8)
    live.start()
    try:
        for done in range(len(suspects)):
            assert _rung_again() >= {_admit(sound)}
            [first] = _rung_again() - {_admit(sound)}
            row = steps.claim(first, live.id, "here")
            assert row is not None and row["crashes"] == 2
            assert _rung_again() == {_admit(sound)}, "while one of them runs, the others wait"
            waits = [job for job in suspects if (why := queries.waiting_for(job)) and why.code == "alone"]
            assert len(waits) == len(suspects) - 1 - done
            assert stitcher.record(row, spine.admitted(row["job_id"]))
    finally:
        live.stop()


def _rung_again() -> set[int]:
    """The admissions for which the sweep rings when all bells were lost."""
    spine.silence()
    execute("update job_steps set rung_at = null")
    stitcher.sweep()
    return {number for _, task, number in spine.bells() if task == "runner.admit"}


def _admit(job: int) -> int:
    return int(rows(job, "runner.admit")[0]["id"])


@pytest.mark.usefixtures("database")
def test_what_is_done_again_for_a_crash_keeps_its_attempts() -> None:
    """The agent's step is lost three times over: each time the worktree is made again, at no cost."""
    job, me = spine.submit(), spine.worker()
    for _ in range(2):
        while (row := steps.claim(spine.ready_steps(job)[0], me, "here")) and row["name"] != "weaver.implement":
            assert stitcher.record(row, spine.outcome(row, {}))
        assert row is not None
        take_back(row["id"])
    checkouts = [step for step in queries.steps(job) if step.name == "runner.checkout"]
    assert [(step.attempt, step.excused) for step in checkouts] == [(1, 0), (2, 1), (3, 2)]
    tries = {"n": 0}

    def fails(row: dict[str, Any]) -> Failed:
        tries["n"] += 1
        return Failed("internal_error", "no room", retryable=True)

    assert spine.work(job, me, {"runner.checkout": fails}) == "failed"
    assert tries["n"] == 3, "its own three attempts were all there"


# ---------------------------------------------------------------- rows that cannot be handled


@pytest.mark.usefixtures("database")
def test_a_row_that_is_locked_or_unreadable_hides_no_other(database: str) -> None:
    me = spine.worker()
    held, broken, sound = spine.submit(), spine.submit(), spine.submit()
    claimed = {job: steps.claim(spine.ready_steps(job)[0], me, "here") for job in (held, broken, sound)}
    assert all(claimed.values())
    execute("""update runner_jobs set gates = '[{"no": "gate"}]' where id = %s""", broken)
    with psycopg.connect(database) as other:
        other.execute("select 1 from runner_jobs where id = %s for update", (held,))
        stitcher.sweep()
        states = {job: rows(job, "runner.admit")[0]["status"] for job in claimed}
        assert states == {held: "running", broken: "pending", sound: "pending"}, "the slot of each but the held is free"
        assert spine.ready_steps(sound) and not spine.ready_steps(broken)
    stitcher.sweep()
    assert rows(held, "runner.admit")[0]["status"] == "pending", "the next round comes back to it"


@pytest.mark.usefixtures("database")
def test_a_job_that_nobody_can_read_ends_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("app.stitcher.sweep"), "PAUSES", (0.0,) * 4)
    broken, newer, me = spine.submit(), spine.submit(), spine.worker()
    execute("""update runner_jobs set gates = '[{"no": "gate"}]' where id = %s""", broken)
    execute("update runner_jobs set pipeline = 'of-a-newer-version' where id = %s", newer)
    for job in (broken, newer):
        assert steps.claim(rows(job, "runner.admit")[0]["id"], me, "here")
    for _ in range(6):
        stitcher.sweep()
    found = queries.job(broken)
    assert found is not None and (found.status.value, found.reason) == ("failed", "internal_error")
    assert all(step.status is StepStatus.SKIPPED for step in queries.steps(broken))
    other = queries.job(newer)
    assert other is not None and not other.status.terminal, "who knows the pipeline goes on with it"
    assert spine.broken_links(broken) == []


@pytest.mark.usefixtures("database")
def test_a_row_that_makes_trouble_is_looked_at_more_and_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    broken = spine.submit()
    assert steps.claim(spine.ready_steps(broken)[0], spine.worker(), "here")
    execute("""update runner_jobs set gates = '[{"no": "gate"}]' where id = %s""", broken)
    for _ in range(20):
        stitcher.sweep()
    assert len([record for record in caplog.records if record.exc_info]) <= 2


# ---------------------------------------------------------------- drain


def test_a_drain_under_load_loses_nothing_and_counts_against_nobody(crew: Crew) -> None:
    """Each consumer is told to stop while it works; what it had and what comes is done, once."""
    nap = {"weaver.implement": "sleep:0.1", "runner.setup": "sleep:0.1", "runner.commit": "sleep:0.05"}
    hands = [crew.hire(pool, nap) for pool in ("control", "control", "agents", "agents", "gates", "gates")]
    jobs: list[int] = []
    for hand in list(hands):
        jobs += [spine.submit(repository_id=100 + len(jobs) + number) for number in range(6)]
        until(lambda hand=hand: steps.running(hand.id), "it to be at work")
        hand.send(signal.SIGTERM)
        assert hand.ended() == 0 and steps.running(hand.id) == []
        crew.rehire(hand)
    for job in jobs:
        ended(job)
    for job in jobs:
        found = queries.job(job)
        assert found is not None and found.reason == "done" and lost(job) == []
        assert all(row["crashes"] == 0 and row["attempt"] - row["excused"] == 1 for row in queries.step_rows(job))
        told = [
            (event.step, event.data["fence"])
            for event in queries.events(job)
            if event.kind in ("step.completed", "step.failed") or event.data.get("waiting")
        ]
        assert len(told) == len(set(told)), "a run of a step is finished or handed back, and once"
        assert spine.broken_links(job) == []


def test_what_does_not_end_in_time_is_handed_back_once(crew: Crew, tmp_path: Path) -> None:
    hand = crew.hire("control", {"runner.snapshot": f"stubborn:{tmp_path / 'open'}"}, patience=0.2)
    job = spine.submit()
    row = until(lambda: runs(job, "runner.snapshot"), "the step to run")
    hand.send(signal.SIGTERM)
    assert hand.ended() == 0
    [back] = rows(job, "runner.snapshot")
    assert (back["status"], back["crashes"], back["attempt"], back["reason"]) == ("pending", 0, 1, "worker_stopped")
    assert not stitcher.record(row, spine.outcome(row, {})), "what it would have said later is refused"
    for _ in range(2):
        crew.hire("control"), crew.hire("agents"), crew.hire("gates")
    assert ended(job) == "done" and lost(job) == []


@pytest.mark.parametrize("signals", [["SIGTERM"] * 6, ["SIGTERM", "SIGINT"], ["SIGINT"], ["SIGHUP", "SIGTERM"]])
def test_who_is_told_more_than_once_to_end_counts_no_crash(crew: Crew, tmp_path: Path, signals: list[str]) -> None:
    """What does not end by itself is handed back: at once with SIGINT, else after its time."""
    patience = 600.0 if "SIGINT" in signals else 1.0
    hand = crew.hire("control", {"runner.snapshot": f"stubborn:{tmp_path / 'open'}"}, patience=patience)
    busy = [spine.submit(repository_id=300 + number) for number in range(4)]
    until(lambda: all(runs(job, "runner.snapshot") for job in busy), "all to be at work")
    for name in signals:
        hand.send(signal.Signals[name])
        until(lambda: fetch("select 1 from workers where id = %s and draining", hand.id), "it to hear that")
    assert hand.ended() == 0
    for job in busy:
        [back] = rows(job, "runner.snapshot")
        assert (back["status"], back["crashes"], back["reason"]) == ("pending", 0, "worker_stopped")
        assert lost(job) == []


def test_a_supervisor_that_is_told_twice_costs_no_step_a_crash(database: str, tmp_path: Path) -> None:
    """As `mosaic serve` and whoever presses Ctrl-C again: the consumer under it hands back what would not end."""
    behave = {"runner.snapshot": f"stubborn:{tmp_path / 'open'}"}
    order = json.dumps({"url": database, "pool": "control", "behave": behave, "patience": 600.0})
    argv = [sys.executable, "-m", "tests.worlds.crew", order]
    script = f"from app.processes import *; Supervisor([Child('control', {argv!r}, stop_timeout=600)]).run()"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL) as supervisor:
        job = spine.submit()
        until(lambda: runs(job, "runner.snapshot"), "the step to run")
        supervisor.send_signal(signal.SIGTERM)
        until(lambda: fetch("select 1 from workers where draining"), "the consumer to hear that")
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(30) == 0
    [back] = rows(job, "runner.snapshot")
    assert (back["status"], back["crashes"], back["reason"]) == ("pending", 0, "worker_stopped") and lost(job) == []


def test_who_drains_leaves_the_bells_to_others(database: str) -> None:
    draining, other = (
        doorbell(Pool.CONTROL, database, "here", closed=lambda yes=yes: yes).storage for yes in (True, False)
    )
    draining.read_timeout = other.read_timeout = 0.1
    with transaction():
        ring(Pool.CONTROL, "runner.admit", 1)
        ring(Pool.CONTROL, "runner.commit", 2, host="here")
        ring(Pool.CONTROL, "runner.commit", 3, host="elsewhere")
    assert draining.dequeue() is None and len(spine.bells()) == 3
    heard = {other.dequeue() for _ in range(3)}
    assert heard == {b'{"task": "runner.admit", "id": 1}', b'{"task": "runner.commit", "id": 2}', None}
    assert [number for _, _, number in spine.bells()] == [3]


# ---------------------------------------------------------------- clocks


def test_a_worker_whose_clock_is_an_hour_off_works_like_any_other(crew: Crew, tmp_path: Path) -> None:
    hold = {"runner.snapshot": f"hold:{tmp_path / 'open'}"}
    for ahead in (3600, -3600):
        crew.hire("control", hold, ahead=ahead)
        crew.hire("agents", ahead=ahead), crew.hire("gates", ahead=ahead)
    jobs = [spine.submit(repository_id=number) for number in (201, 202, 203, 204)]
    until(lambda: sum(bool(runs(job, "runner.snapshot")) for job in jobs) == 4, "all four to be at work")
    stitcher.sweep()
    (tmp_path / "open").touch()
    for job in jobs:
        assert ended(job) == "done" and lost(job) == []
        assert all(row["fence"] and row["crashes"] == 0 for row in queries.step_rows(job))


# ---------------------------------------------------------------- the name of a host


def test_a_data_directory_gets_one_name_though_three_processes_ask_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from app.paths import Paths; print(Paths(Path(sys.argv[1])).host_id())"
    )
    asked = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    names = {process.communicate()[0].strip() for process in asked}
    assert names == {Paths(tmp_path).host_id()} and len(names.pop()) <= 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host"]
    assert Paths(tmp_path).host_id() != Paths(tmp_path.parent).host_id()
    (tmp_path.parent / "host").unlink()


def test_who_was_frozen_while_it_sent_statements_holds_no_lock_for_ever(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a pipeline a session counts as active: the server's limit for idle transactions skips it."""
    monkeypatch.setattr(workers, "FROZEN_SECONDS", 0.5)
    job = spine.submit()
    limit = "-c idle_in_transaction_session_timeout=300"
    frozen = psycopg.connect(database, autocommit=True, application_name="mosaic-frozen", options=limit)
    with pytest.raises(psycopg.OperationalError), frozen.pipeline():
        frozen.cursor().execute("begin", ())
        frozen.cursor().execute("select 1 from runner_jobs where id = %s for update", (job,))
        for_free = "select 1 as yes from runner_jobs where id = %s for update skip locked"
        until(lambda: not fetch(for_free, job), "the lock")
        until(lambda: stitcher.sweep() or fetch(for_free, job), "the end of who is frozen")
