"""Control on a real PostgreSQL: who may start and when, what a waiting job says, pauses, budgets, breakers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from app import queries, stitcher
from app.ledger import pauses, steps, turns, workers
from app.ledger.budgets import MARKS
from app.ledger.chain import entry, transaction
from app.models import db, execute, fetch
from app.rules_schema import Limits
from app.stitcher.dispatch import dispatch
from app.types import Failed, HandBack, Job, Pool, Usage
from app.voice import status_comment
from jobs.herald.report import _last_word
from jobs.runner.breakers import tripped
from tests import spine

pytestmark = pytest.mark.usefixtures("database")
WIDE = {"limits": {"rounds": 2, "attempts": 2, "minutes": 60, "concurrent": 2, "tokens": 1000, "cost_usd": 2.0}}
BASE = "0" * 40


def queued(branch: str | None = None, rules: Any = None, **more: Any) -> int:
    """A job that was admitted; it starts by itself when it may."""
    job = spine.submit(**more)
    row = steps.claim(spine.ready_steps(job)[0], spine.worker(), "here")
    assert row is not None
    facts = {"branch": branch} if branch else {}
    assert stitcher.record(row, spine.admitted(job, rules=rules or spine.RULES, **facts))
    return job


def status(job: int) -> str:
    return found(job).status.value


def found(job: int) -> Job:
    row = queries.job(job)
    assert row is not None
    return row


def older(job: int, minutes: float) -> None:
    execute("update runner_jobs set queued_at = queued_at - %s * interval '1 minute' where id = %s", minutes, job)


def why(job: int) -> tuple[str, str, int | None]:
    waits = queries.waiting_for(job)
    return (waits.code, waits.sentence, waits.position) if waits else ("", "", None)


@contextmanager
def living(pool: str, slots: int = 1) -> Iterator[int]:
    """A worker that holds its session lock for as long as the block lasts."""
    number = spine.worker(pool, slots)
    fetch("select pg_advisory_lock(%s, %s)", workers.LOCK_CLASS, number)
    try:
        yield number
    finally:
        fetch("select pg_advisory_unlock(%s, %s)", workers.LOCK_CLASS, number)


# ---------------------------------------------------------------- the queue of a repository


def test_who_waits_for_a_busy_branch_steps_aside() -> None:
    first, twin, other = queued("b", WIDE), queued("b", WIDE), queued("c", WIDE)
    assert [status(job) for job in (first, twin, other)] == ["running", "queued", "running"]
    assert why(twin) == ("branch_busy", f"The branch b is busy with job {first}.", 1)
    assert turns.ahead(twin, 1, "b")["before_us"] == 0
    spine.work(first, spine.worker())
    stitcher.advance(twin)
    assert status(twin) == "running"


def test_the_sweep_looks_past_a_job_whose_branch_is_busy() -> None:
    first, twin = queued("b", WIDE), queued("b", WIDE)
    pauses.pause(1, "acme/calc", "gitea:alice")
    other = queued("c", WIDE)
    assert pauses.resume(1, "gitea:alice") and status(other) == "queued"
    spine.silence()
    assert twin not in queries.jobs_to_advance() and other in queries.jobs_to_advance()
    stitcher.sweep()
    assert [status(job) for job in (first, twin, other)] == ["running", "queued", "running"]


def test_of_two_that_want_one_branch_the_first_gets_it() -> None:
    pauses.pause(None, "", "cli:operator")
    first, second = queued("b", WIDE), queued("b", WIDE)
    pauses.resume(None, "cli:operator")
    stitcher.advance(second)
    assert [status(first), status(second)] == ["queued", "queued"]
    stitcher.advance(first)
    assert status(first) == "running"


def test_who_is_just_coming_does_not_jump_the_queue() -> None:
    pauses.pause(None, "", "cli:operator")
    first = queued(actor_id=7)
    pauses.resume(None, "cli:operator")
    last = queued(actor_id=7)
    assert [status(first), status(last)] == ["queued", "queued"]
    stitcher.sweep()
    assert [status(first), status(last)] == ["running", "queued"]


def test_the_end_of_a_job_wakes_those_that_can_start() -> None:
    """Not only the five before them, all of which wait for a branch."""
    one, busy = queued("a", WIDE), queued("b", WIDE)
    twins = [queued("b", WIDE) for _ in range(6)]
    last = queued("c", WIDE)
    spine.silence()
    spine.work(one, spine.worker())
    assert ("mosaic-control", "stitcher.advance", last) in spine.bells()
    assert status(busy) == "running" and {status(job) for job in twins} == {"queued"}


def test_people_take_turns_in_the_queue() -> None:
    mine = [queued(actor_id=7) for _ in range(4)]
    theirs = queued(actor_id=8)
    older(mine[1], 60)  # age lifts nobody above another person's first
    assert [status(job) for job in mine] == ["running", "queued", "queued", "queued"]
    assert [queries.queue_position(job) for job in (theirs, *mine[1:])] == [1, 2, 3, 4]
    spine.work(mine[0], spine.worker())
    for job in (mine[1], theirs):
        stitcher.advance(job)
    assert status(theirs) == "running" and status(mine[1]) == "queued"
    another = queued(actor_id=8)
    assert queries.queue_position(mine[1]) == 1 and queries.queue_position(another) == 3


def test_ageing_lifts_a_low_priority_above_a_high_one_and_not_for_ever() -> None:
    running = queued(actor_id=7)
    low, high, top = queued(actor_id=8), queued(actor_id=9, priority=5), queued(actor_id=10, priority=30)
    assert [queries.queue_position(job) for job in (top, high, low)] == [1, 2, 3]
    older(low, 6)
    assert [queries.queue_position(job) for job in (top, low, high)] == [1, 2, 3]
    older(low, 6000)
    assert [queries.queue_position(job) for job in (top, low, high)] == [1, 2, 3]
    assert [job.id for job in queries.queued_jobs()] == [top, low, high] and status(running) == "running"


# ---------------------------------------------------------------- slots of a pool


def at_the_agent(**more: Any) -> int:
    """A job whose agent's step is ready; its id. The step waits for a slot."""
    job, me = spine.submit(**more), spine.worker()
    for _ in range(4):
        row = steps.claim(spine.ready_steps(job)[0], me, "here")
        assert row is not None and row["name"] != "weaver.implement"
        done = spine.admitted(job, rules=WIDE) if row["name"] == "runner.admit" else spine.outcome(row, {})
        assert stitcher.record(row, done)
    return job


def rung_agents() -> list[int]:
    """The jobs whose agent was rung for, in that order."""
    rung = [number for _, task, number in spine.bells(Pool.AGENTS) if task == "weaver.implement"]
    return [fetch("select job_id from job_steps where id = %s", number)[0]["job_id"] for number in rung]


def take_agent(job: int) -> dict[str, Any]:
    [step] = [one for one in queries.steps(job) if one.name == "weaver.implement"]
    row = steps.claim(step.id, spine.worker(), "here")
    assert row is not None
    return row


def next_agent() -> int:
    """The agent that was rung for last does its work: the job that is rung for then."""
    row = take_agent(rung_agents()[-1])
    assert stitcher.record(row, spine.outcome(row, {}))
    with transaction():
        dispatch(Pool.AGENTS)
    return rung_agents()[-1]


def waits_long(*jobs: int) -> None:
    execute("update job_steps set ready_at = ready_at - interval '1 hour' where job_id = any(%s)", list(jobs))


def test_people_take_turns_at_the_agents() -> None:
    """One slot, three old requests of one person, two new ones of another: one of the one, one of the other."""
    spine.worker("agents", 1)
    greedy = [at_the_agent(repository_id=number, actor_id=7) for number in (1, 2, 3)]
    others = [at_the_agent(repository_id=number, actor_id=8) for number in (4, 5)]
    waits_long(*greedy)
    assert rung_agents() == [greedy[0]]
    assert [next_agent() for _ in range(4)] == [others[0], greedy[1], others[1], greedy[2]]


def test_repositories_take_turns_at_the_agents() -> None:
    spine.worker("agents", 1)
    busy = [at_the_agent(repository_id=1, actor_id=number) for number in (7, 8)]
    other = at_the_agent(repository_id=2, actor_id=9)
    waits_long(*busy)
    assert rung_agents() == [busy[0]] and [next_agent(), next_agent()] == [other, busy[1]]


def test_who_holds_a_slot_is_behind_who_holds_none() -> None:
    spine.worker("agents", 2)
    greedy = [at_the_agent(repository_id=number, actor_id=7) for number in (1, 2, 3)]
    other = at_the_agent(repository_id=4, actor_id=8)
    waits_long(greedy[2])
    execute("delete from turns")  # so that who was served last decides nothing
    assert rung_agents() == greedy[:2]
    take_agent(greedy[0])
    assert next_agent() == other


def test_priority_decides_within_a_turn() -> None:
    first = at_the_agent(repository_id=1, actor_id=7)
    high = at_the_agent(repository_id=2, actor_id=8, priority=3)
    spine.worker("agents", 1)
    stitcher.sweep()
    assert rung_agents() == [high] and status(first) == "running"


# ---------------------------------------------------------------- pauses


@pytest.mark.parametrize("scope", [1, None])
def test_a_pause_holds_the_queue_and_nothing_else(scope: int | None) -> None:
    running = queued()
    assert stitcher.pause(scope, "acme/calc" if scope else "", "gitea:alice")
    assert not stitcher.pause(scope, "acme/calc", "gitea:bob"), "it is paused already"
    elsewhere = queued(repository_id=2)
    waiting = queued()
    assert spine.work(running, spine.worker()) == "completed", "what runs goes on"
    stitcher.advance(waiting)
    stitcher.sweep()
    assert status(waiting) == "queued" and status(elsewhere) == ("running" if scope else "queued")
    code, sentence, position = why(waiting)
    assert (code, position) == ("paused", 1)
    assert sentence.startswith("Paused by alice since 20") and sentence.endswith("`@mosaic resume` lets it go on.")
    spine.silence()
    assert stitcher.resume(scope, "gitea:bob") and not stitcher.resume(scope, "gitea:bob")
    assert ("mosaic-control", "stitcher.advance", waiting) in spine.bells()
    stitcher.advance(waiting)
    assert status(waiting) == "running"
    [kept] = fetch("select actor, ended_by, ended_at is not null as over from pauses")
    assert kept == {"actor": "gitea:alice", "ended_by": "gitea:bob", "over": True}


def test_the_operators_pause_takes_the_place_of_a_persons() -> None:
    assert stitcher.pause(1, "acme/calc", "gitea:alice") and stitcher.pause(1, "acme/calc", "cli:root")
    assert not stitcher.pause(1, "acme/calc", "gitea:bob") and not stitcher.pause(1, "acme/calc", "cli:root")
    assert queries.open_pause(1)["actor"] == "cli:root"  # type: ignore[index]
    [first, _] = fetch("select actor, ended_by from pauses order by id")
    assert first == {"actor": "gitea:alice", "ended_by": "cli:root"}


def test_the_pause_of_everything_and_of_a_repository_are_two() -> None:
    assert pauses.pause(None, "", "cli:root") and pauses.pause(1, "acme/calc", "gitea:alice")
    job = queued()
    assert why(job)[1].startswith("Paused by the operator since ")
    assert pauses.resume(None, "cli:root")
    stitcher.advance(job)
    assert status(job) == "queued" and why(job)[1].startswith("Paused by alice ")


# ---------------------------------------------------------------- what a job waits for


def test_a_queued_job_names_its_place_and_who_is_before_it() -> None:
    first, second, third = queued(), queued(), queued()
    assert why(first) == (
        "no_consumer",
        "No control consumer is alive: ask the operator to look at `mosaic doctor`.",
        None,
    )
    assert why(second) == ("queue", f"1. in the queue of acme/calc: job {first} runs.", 1)
    assert why(third) == ("queue", f"2. in the queue of acme/calc: job {first} runs.", 2)
    assert set(queries.waiting_of([first, second, third])) == {first, second, third}


def test_a_job_between_two_steps_says_why() -> None:
    job, agents = at_the_agent(), "agents"
    assert why(job)[0] == "no_consumer" and "No agents consumer" in why(job)[1]
    with living(agents, 1):
        assert why(job)[0] == "", "its turn comes at once"
        other = at_the_agent(repository_id=2)
        [step] = [one for one in queries.steps(other) if one.name == "weaver.implement"]
        execute("update job_steps set rung_at = null")
        assert steps.claim(step.id, spine.worker(agents, 0), "here")
        assert why(job) == ("no_slot", "No agent slot is free: 1 of 1 work.", None)
        assert why(other)[0] == "", "it works"


def test_what_fails_at_once_is_not_tried_again_at_once() -> None:
    """Else an agent that a provider turns away would be out of attempts within a second."""
    job, me = at_the_agent(), spine.worker()
    pauses_between = []
    execute("update runner_jobs set rules = jsonb_set(rules, '{limits,attempts}', '6') where id = %s", job)
    for attempt in range(1, 6):
        row = steps.claim(spine.ready_steps(job)[0], me, "here")
        assert row is not None and row["attempt"] == attempt
        assert stitcher.record(row, Failed("agent_failed", "refused at once", retryable=True))
        for name in ("runner.checkout", "runner.setup"):  # a fresh worktree, while it waits
            fresh = next(one.id for one in reversed(queries.steps(job)) if one.name == name and one.status == "pending")
            made = steps.claim(fresh, me, "here")
            assert made is not None and stitcher.record(made, spine.outcome(made, {}))
        [again] = fetch(
            "select id, extract(epoch from run_after - clock_timestamp())::float8 as wait from job_steps "
            "where job_id = %s and name = 'weaver.implement' and status = 'pending'",
            job,
        )
        assert steps.claim(again["id"], me, "here") is None
        code, sentence, _ = why(job)
        assert code == "trying_again" and f"attempt {attempt + 1} starts in " in sentence
        assert "Waits: The last attempt failed" in status_comment(
            found(job), queries.steps(job), link="", waiting=queries.waiting_for(job)
        )
        pauses_between.append(round(again["wait"], -1) or 5)
    assert pauses_between == [5, 20, 60, 120, 120], "ever longer"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("engine_unavailable", "The agent engine or its model does not answer"),
        ("forge_unavailable", "Gitea does not answer"),
        ("worker_stopped", "Its worker was stopped"),
    ],
)
def test_a_job_that_backs_off_says_when_it_tries_again(reason: str, words: str) -> None:
    job = spine.submit()
    row = steps.claim(spine.ready_steps(job)[0], spine.worker(), "here")
    assert row is not None and stitcher.record(row, HandBack(reason, "away", 600.0))
    code, sentence, _ = why(job)
    assert code == "backing_off" and sentence.startswith(f"{words}: try 2 in ")


def test_who_has_ended_or_is_being_stopped_waits_for_nothing() -> None:
    job = queued()
    spine.work(job, spine.worker())
    assert queries.waiting_for(job) is None and queries.waiting_for(999) is None
    queued(), (stopped := queued())
    stitcher.cancel(stopped, "gitea:alice")
    assert queries.waiting_for(stopped) is None


# ---------------------------------------------------------------- budgets


def crossings(job: int) -> list[tuple[str, int]]:
    return [(one.data["what"], one.data["percent"]) for one in queries.events(job) if one.kind == "budget.crossed"]


def test_the_marks_of_a_budget_are_told_once_each() -> None:
    job = queued(rules=WIDE)
    row = steps.claim(spine.ready_steps(job)[0], spine.worker(), "here")
    assert row is not None
    before = Usage()
    for total, cost in ((499, 0.1), (500, 0.2), (790, 0.3), (960, 0.9), (2000, 1.0)):
        now = Usage(total=total, cost_usd=cost)
        steps.tokens(row, now, before)
        before = now
    assert crossings(job) == [("tokens", 50), ("tokens", 95), ("cost_usd", 50)], "the highest of those passed at once"
    steps.tokens(row, replace(before, cost_usd=1.7), before)
    assert crossings(job)[3:] == [("cost_usd", 80)] and MARKS == (50, 80, 95)
    assert spine.broken_links(job) == []


def test_a_job_without_limits_crosses_nothing() -> None:
    job = queued(rules={"limits": {"concurrent": 1}})
    row = steps.claim(spine.ready_steps(job)[0], spine.worker(), "here")
    assert row is not None
    steps.tokens(row, Usage(total=10**9, cost_usd=10.0), Usage())
    assert crossings(job) == []


# ---------------------------------------------------------------- breakers


def trip(job: int, **limits: int) -> tuple[str, str] | None:
    return tripped(found(job), Limits(**limits), BASE)


def accepted(count: int, **more: Any) -> list[int]:
    return [queued(**more) for _ in range(count)]


@pytest.mark.parametrize(
    ("limit", "same", "other", "words"),
    [
        ("per_user_hour", {"repository_id": 5}, {"actor_id": 8}, "of one person within an hour"),
        ("per_issue_day", {"number": 40, "actor_id": 8}, {"number": 41}, "on one issue within a day"),
        ("per_repository_hour", {"actor_id": 8}, {"repository_id": 5}, "in one repository within an hour"),
        ("per_repository_day", {"actor_id": 8}, {"repository_id": 5}, "in one repository within a day"),
    ],
)
def test_a_breaker_turns_away_what_is_too_much_and_says_when_it_goes(
    limit: str, same: dict[str, Any], other: dict[str, Any], words: str
) -> None:
    accepted(2, number=40)
    one_more, elsewhere = spine.submit(**{"number": 40, **same}), spine.submit(**{"number": 40, **other})
    refused = trip(one_more, **{limit: 2})
    assert refused is not None and refused[0] == "rate_limited"
    assert refused[1].startswith(f"More than 2 requests {words} (`limits.{limit}`). It is possible again at ")
    assert refused[1].endswith(" UTC.")
    assert trip(one_more, **{limit: 3}) is None and trip(elsewhere, **{limit: 2}) is None
    execute("update runner_jobs set created_at = created_at - interval '1 hour' where id < %s", one_more)
    assert (trip(one_more, **{limit: 2}) is None) is ("hour" in limit)
    execute("update runner_jobs set created_at = created_at - interval '1 day' where id < %s", one_more)
    assert trip(one_more, **{limit: 2}) is None


def test_the_time_that_is_named_is_when_the_oldest_that_counts_is_over() -> None:
    first, second = accepted(2)
    job = spine.submit()
    execute("update runner_jobs set created_at = clock_timestamp() - interval '50 minutes' where id = %s", first)
    execute("update runner_jobs set created_at = clock_timestamp() - interval '20 minutes' where id = %s", second)
    free = queries.free_again(found(job), 2, 1.0, repository_id=1)
    assert free is not None and 540 < (free - queries.now()).total_seconds() < 660
    free = queries.free_again(found(job), 1, 1.0, repository_id=1)
    assert free is not None and 2340 < (free - queries.now()).total_seconds() < 2460


def refuse(job: int, reason: str = "rate_limited") -> None:
    assert spine.work(job, spine.worker(), {"runner.admit": lambda _: Failed(reason, "too many")}) == "failed"


def test_requests_that_were_turned_away_do_not_put_the_time_off() -> None:
    accepted(1)
    for _ in range(3):
        refuse(spine.submit())
    assert trip(spine.submit(), per_user_hour=2) is None
    assert trip(spine.submit(), per_user_hour=2) is not None, "one that is being judged counts"


def test_strangers_use_up_no_limit_of_others() -> None:
    """Their requests lie there unjudged, or judged and found not allowed; those of people who may ask do count."""
    strangers = [spine.submit(number=40, actor_id=90 + number) for number in range(4)]
    me = spine.submit(number=40, actor_id=7)
    limits = {"per_issue_day": 2, "per_repository_hour": 2, "per_repository_day": 2, "per_user_hour": 2}
    assert trip(me, **limits) is None
    for job in strangers:
        judged(job, False)
    assert trip(me, **limits) is None
    for job in strangers[:2]:
        judged(job, True)
    refused = trip(me, **limits)
    assert refused is not None and "`limits.per_issue_day`" in refused[1]


def judged(job: int, allowed: bool) -> None:
    with entry(job) as locked:
        locked.event("authz.checked", allowed=allowed)


def failing(number: int) -> int:
    job = spine.submit(number=number)
    assert spine.work(job, spine.worker(), {"weaver.implement": lambda _: Failed("agent_failed", "no")}) == "failed"
    return job


def test_after_failures_in_a_row_a_person_must_say_so() -> None:
    jobs = [failing(9) for _ in range(3)]
    again = spine.submit(number=9)
    refused = trip(again, failures_in_a_row=3)
    assert refused is not None and refused[0] == "failing_repeatedly"
    listed = ", ".join(map(str, reversed(jobs)))
    assert refused[1] == f"3 jobs in a row failed here within a day: {listed} (`limits.failures_in_a_row`)."
    assert trip(again, failures_in_a_row=4) is None and trip(spine.submit(number=10), failures_in_a_row=3) is None
    assert tripped(found(again), Limits(failures_in_a_row=3), "1" * 40) is None, "the default branch has changed"
    refuse(again, "failing_repeatedly")
    assert trip(spine.submit(number=9), failures_in_a_row=3) is not None, "a refusal is no end of the row"
    retried = stitcher.retry(found(jobs[0]), actor="gitea:alice", actor_id=7, login="alice", key="1")
    assert retried is not None and trip(retried, failures_in_a_row=3) is None


def test_a_success_ends_the_row_and_a_day_forgets_it() -> None:
    failing(9), failing(9)
    assert spine.work(spine.submit(number=9), spine.worker()) == "completed"
    failing(9)
    assert trip(spine.submit(number=9), failures_in_a_row=2) is None
    failing(9)
    job = spine.submit(number=9)
    assert trip(job, failures_in_a_row=2) is not None
    execute("update runner_jobs set created_at = created_at - interval '1 day'")
    assert trip(job, failures_in_a_row=2) is None


def planned(job: int) -> tuple[str, str] | None:
    """(kind, content) of what the last words of a refused job are."""
    place = {"repository_id": 1, "repository": "acme/calc", "number": found(job).number}
    effect = _last_word(found(job), place)
    rows = fetch("select kind, coalesce(target ->> 'content', '') as content from effects where id = %s", effect)
    return (rows[0]["kind"], rows[0]["content"]) if rows else None


def test_a_limit_is_explained_once_an_hour_and_then_only_signed() -> None:
    comment, sign = ("comment.closing", ""), ("reaction", "confused")
    first, again = spine.submit(number=1), spine.submit(number=1)
    refuse(first), refuse(again)
    assert (planned(first), planned(again)) == (comment, sign)
    same_person, same_issue = spine.submit(number=2), spine.submit(number=1, actor_id=8)
    neither = spine.submit(number=3, actor_id=9)
    other_reason, elsewhere = spine.submit(number=1), spine.submit(number=1, repository_id=2)
    for job in (same_person, same_issue, neither, elsewhere):
        refuse(job)
    refuse(other_reason, "refused")
    assert [planned(job) for job in (same_person, same_issue)] == [sign, sign]
    assert [planned(job) for job in (neither, other_reason, elsewhere)] == [comment] * 3
    execute("update runner_jobs set created_at = created_at - interval '61 minutes'")
    later = spine.submit(number=1)
    refuse(later)
    assert planned(later) == comment


# ---------------------------------------------------------------- the row that keeps the work


@pytest.mark.parametrize(("reason", "kept"), [("agent_failed", True), ("stalled", True), ("conflict", False)])
def test_stopped_work_is_kept_before_the_last_words(reason: str, kept: bool) -> None:
    job = spine.submit()
    assert spine.work(job, spine.worker(), {"weaver.implement": lambda _: Failed(reason, "no")}) == "failed"
    order = [event.step for event in queries.events(job) if event.kind == "step.started" and event.step]
    tail = ["herald.report@1.1", "runner.cleanup@1.1"]
    assert order[-len(tail) - kept :] == (["runner.keep@1.1"] if kept else []) + tail


def test_a_job_that_never_started_and_one_that_is_done_keep_nothing() -> None:
    first, waiting = queued(), queued()
    assert stitcher.cancel(waiting, "gitea:alice")
    assert spine.work(waiting, spine.worker()) == "cancelled"
    assert spine.work(first, spine.worker()) == "completed"
    assert not fetch("select 1 as yes from job_steps where name = 'runner.keep'")
    assert queries.saved_work(first) is None and db.is_closed() is False
