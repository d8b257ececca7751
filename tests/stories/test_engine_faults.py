"""The engine's faults: it is away, refuses us, dies or is taken away in the middle of a turn, or its model refuses.

Where the engine is at fault the step is handed back and no attempt is spent; where the request is, the job ends with
the reason. Two places: the shared town, whose engine Mosaic itself runs, and `away`, whose engine the test starts and
ends.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from app.postgres import Cluster
from tests.stories.words import same
from tests.worlds.forge import Json
from tests.worlds.openclaw import RealGateway
from tests.worlds.town import CALC, RIGHT, RULES, Story, Town, edit, say

pytestmark = [pytest.mark.e2e, pytest.mark.practice, pytest.mark.xdist_group("engine_faults")]

AGENT = "weaver.implement"
HANG = {"hang": 600, "text": "never said"}
WAITS = "- ⏳ Implementation: waits for the agent engine; Mosaic tries again by itself"
OLD_WORK = edit("calc.py", "a - b", "a * b")  # RIGHT cannot be played on a worktree that still holds it


# ---------------------------------------------------------------- looking at a job


def step_of(story: Story, job: Json, name: str = AGENT) -> Json:
    """The newest step of a name."""
    return [step for step in story.town.mosaic.steps(job["id"]) if step["name"] == name][-1]


def begun(story: Story, number: int) -> Json:
    return story.town.mosaic.until(lambda: story.job(number), "the job")


def handed_back(story: Story, job: Json, times: int = 1, timeout: float = 60.0) -> Json:
    """The agent's step once it waits after having been handed back that often."""

    def look() -> Json | None:
        step = step_of(story, job)
        return step if step["faults"] >= times and step["status"] == "pending" else None

    return story.town.mosaic.until(look, f"the step to be handed back {times} times", timeout)


def waits(story: Story, job: Json) -> list[Json]:
    """What was told each time that the agent's step was handed back."""
    events = story.town.mosaic.events(job["id"])
    return [one["data"] for one in events if one["kind"] == "step.progress" and "waiting" in one["data"]]


def no_attempt_burned(story: Story, job: Json) -> None:
    """The agent's step is the first attempt of the first round still, and nobody is said to have crashed."""
    rows = [step for step in story.town.mosaic.steps(job["id"]) if step["name"] == AGENT]
    assert [(step["round"], step["attempt"], step["crashes"]) for step in rows] == [(1, 1, 0)]
    assert not [one for one in story.town.mosaic.events(job["id"]) if one["kind"] == "worker.lost"]


def change(story: Story, statement: str, *values: Any) -> None:
    """Move the clock of a job: the runtime role may do it, too, but this says who does."""
    with psycopg.connect(Cluster(story.town.mosaic.data / "var").url("postgres"), autocommit=True) as connection:
        connection.execute(statement, values)


def out_of_time(story: Story, job: Json) -> None:
    change(story, "update runner_jobs set deadline_at = clock_timestamp() where id = %s", job["id"])


def try_now(story: Story, job: Json) -> None:
    """Not wait for the end of the pause before the next try."""
    change(
        story, "update job_steps set run_after = clock_timestamp() where job_id = %s and name = %s", job["id"], AGENT
    )


def script_of(marker: str) -> str:
    return marker.removeprefix("[[script:").removesuffix("]]")


def model_waits(story: Story, marker: str, step: int) -> None:
    """Until the model has been asked for this step of a script, whose answer then hangs."""
    name, seen = script_of(marker), story.town.model.seen
    story.town.mosaic.until(lambda: any(one["step"] == step for one in seen(name)), f"step {step} of {name}")


def turn_was_ended(story: Story, marker: str) -> None:
    """Until the engine has gone away from the model's answer that hangs: the turn is over for it, too."""
    name, left = script_of(marker), story.town.model.left
    story.town.mosaic.until(lambda: any(one["script"] == name for one in left), f"the turn of {name} to be ended")


def nothing_hangs(story: Story, marker: str, step: int) -> None:
    """Until no answer hangs: the engine may have been told to stop before it asked for this step at all."""
    name, model = script_of(marker), story.town.model

    def quiet() -> bool:
        asked = sum(one["step"] == step for one in model.seen(name))
        return asked == sum(one["script"] == name for one in model.left)

    story.town.mosaic.until(quiet, f"the turn of {name} to be ended")


def one_right_pull(story: Story, number: int) -> None:
    [pull] = story.pulls()
    assert story.town.forge.file(story.repo, "calc.py", pull["head"]["ref"]) == b"def add(a, b):\n    return a + b\n"
    assert set(story.town.forge.branches(story.repo)) == {"main", f"mosaic/issue-{number}"}


# ---------------------------------------------------------------- an engine of our own


@dataclass
class Away:
    """A town whose Mosaic runs no engine; the address it is told to use is that of `gateway`, started by the test."""

    town: Town
    gateway: RealGateway

    def ask(self, marker: str) -> tuple[Story, int, Json]:
        story = self.town.story()
        number = story.issue()
        story.say(number, self.town.mention(f"fix this {marker}"))
        return story, number, begun(story, number)

    def token(self, token: str) -> None:
        self.gateway.settings = replace(self.gateway.settings, token=token)


TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    path = tmp_path_factory.mktemp("away")
    with Town(path, engine=False, extra={"MOSAIC_OPENCLAW_TOKEN": TOKEN}) as town:
        workspace = town.mosaic.data / "var" / "worktrees"
        gateway = RealGateway(workspace, town.model.url, state_dir=path / "engine", token=TOKEN)
        gateway.settings = replace(gateway.settings, port=town.mosaic.engine_port)
        yield Away(town, gateway)
        gateway.kill()


def test_an_engine_that_stays_away_ends_the_job_at_its_time_limit(away: Away) -> None:
    story, number, job = away.ask("[[script:right]]")
    handed_back(story, job)
    [told] = waits(story, job)
    url = away.town.mosaic.env["MOSAIC_OPENCLAW_URL"]
    assert (told["waiting"], told["retry_in"]) == ("engine_unavailable", 15.0)
    assert told["detail"].startswith(f"The OpenClaw gateway at {url} does not answer")
    out_of_time(story, job)
    ended = story.ended(number)
    assert (ended["status"], ended["reason"]) == ("failed", "engine_unavailable")
    no_attempt_burned(story, job)
    assert step_of(story, job)["status"] == "skipped"
    story.settled()
    status, closing = story.said(number)
    assert closing.startswith(
        f"@{away.town.alice.login} Mosaic stopped: The agent engine or its model did not answer for too long. "
        "(`engine_unavailable`)\n\n**Next:** Ask the operator to run `mosaic doctor`, then "
        f"`@{away.town.bot.login} retry`."
    )
    assert "does not answer" in closing and "(`engine_unavailable`)" in status
    assert story.pulls() == [] and set(away.town.forge.branches(story.repo)) == {"main"}


def test_an_engine_that_comes_back_gets_the_same_step_again(away: Away) -> None:
    story, number, job = away.ask("[[script:right]]")
    handed_back(story, job)
    [status] = story.heard(number, lambda text: WAITS in text)
    assert status.startswith(f"**Mosaic is working on the request of `{away.town.alice.login}`**")
    assert "❌" not in status
    away.gateway.start()
    try_now(story, job)
    ended = story.ended(number, timeout=180)
    assert (ended["status"], ended["reason"]) == ("completed", "done")
    no_attempt_burned(story, job)
    told = waits(story, job)
    assert len(told) == step_of(story, job)["faults"] >= 1
    assert {one["waiting"] for one in told} == {"engine_unavailable"}  # a gateway that starts has other words for it
    assert "does not answer" in told[0]["detail"]
    checkouts = [step for step in away.town.mosaic.steps(job["id"]) if step["name"] == "runner.checkout"]
    assert len(checkouts) == 1, "the agent never began, so its worktree is as good as new"
    one_right_pull(story, number)
    story.settled()
    status, _ = story.said(number)
    assert status.startswith("**Mosaic finished") and "waits for" not in status


def test_a_wrong_token_is_called_that_each_time(away: Away) -> None:
    away.gateway.kill()
    away.token(TOKEN[::-1])
    away.gateway.start()
    story, number, job = away.ask("[[script:right]]")
    handed_back(story, job)
    try_now(story, job)
    handed_back(story, job, times=2)
    why = "The OpenClaw gateway refused the token. Ask the operator to compare MOSAIC_OPENCLAW_TOKEN on both sides."
    assert [(one["waiting"], one["detail"]) for one in waits(story, job)] == [("engine_unavailable", why)] * 2
    out_of_time(story, job)
    ended = story.ended(number)
    assert (ended["reason"], ended["detail"]) == ("engine_unavailable", why)
    no_attempt_burned(story, job)
    story.settled()
    assert why.replace("_", "\\_") in story.said(number)[-1] or why in story.said(number)[-1]
    assert TOKEN not in "".join(story.said(number)) and TOKEN not in away.town.mosaic.log_path.read_text()


def test_a_model_that_refuses_the_key_is_asked_again_when_the_engine_may_ask_again(away: Away) -> None:
    """The last one here: after one 401 the gateway blocks the model for about a minute, whoever asks."""
    away.gateway.kill()
    away.token(TOKEN)
    away.gateway.start()
    story, number, job = away.ask("[[script:err401]]")
    step = handed_back(story, job)
    [told] = waits(story, job)
    assert told["waiting"] == "engine_unavailable" and "(auth)" in told["detail"]
    [now] = away.town.mosaic.sql("select clock_timestamp() as now")
    assert told["retry_in"] >= 60 and step["run_after"] > now["now"] + timedelta(seconds=30)
    try_now(story, job)
    handed_back(story, job, times=2)
    again = waits(story, job)[-1]
    assert again["retry_in"] >= 60 and again["detail"].startswith("The model refused the key a moment ago")
    no_attempt_burned(story, job)
    story.say(number, away.town.mention("cancel"))
    ended = story.ended(number)
    assert (ended["status"], ended["reason"]) == ("cancelled", "cancelled_by_user")
    story.settled()
    assert story.pulls() == []


# ---------------------------------------------------------------- the engine that Mosaic runs


def test_a_model_that_calls_the_request_invalid_ends_the_job(story: Story) -> None:
    number = story.issue()
    story.say(number, story.town.mention("fix this [[script:err400]]"))
    ended = story.ended(number)
    assert (ended["status"], ended["reason"]) == ("failed", "engine_rejected")
    assert len(story.town.model.seen("err400")) == 1 and waits(story, ended) == []
    no_attempt_burned(story, ended)
    story.settled()
    closing = story.said(number)[-1]
    assert "(`engine_rejected`)" in closing and "`MOSAIC_MODEL_*`" in closing
    assert story.pulls() == []


def test_an_engine_that_is_killed_in_the_middle_of_a_turn_starts_afresh(story: Story) -> None:
    marker = story.script([OLD_WORK, HANG])
    number = story.issue()
    story.say(number, story.town.mention(f"fix this {marker}"))
    job = begun(story, number)
    model_waits(story, marker, step=1)
    name = script_of(marker)
    before = len(story.town.model.seen(name))
    story.script(*RIGHT)
    os.kill(story.town.mosaic.pid("engine"), signal.SIGKILL)
    ended = story.ended(number, timeout=180)
    assert (ended["status"], ended["reason"]) == ("completed", "done")
    no_attempt_burned(story, job)
    assert {one["waiting"] for one in waits(story, job)} == {"engine_unavailable"}
    assert fresh_start(story, job) == ["runner.checkout@1.2", "runner.setup@1.2"]
    assert 0 in [one["step"] for one in story.town.model.seen(name)[before:]], "a conversation of its own"
    one_right_pull(story, number)
    story.settled()
    assert len(story.said(number)) == 2


def test_an_agents_consumer_that_is_told_to_stop_hands_its_turn_back(story: Story) -> None:
    marker = story.script([OLD_WORK, HANG])
    number = story.issue()
    story.say(number, story.town.mention(f"fix this {marker}"))
    job = begun(story, number)
    model_waits(story, marker, step=1)
    story.script(*RIGHT)
    old = story.town.mosaic.pid("agents")
    os.kill(old, signal.SIGTERM)
    turn_was_ended(story, marker)
    ended = story.ended(number, timeout=180)
    assert (ended["status"], ended["reason"]) == ("completed", "done")
    no_attempt_burned(story, job)
    assert [(one["waiting"], one["retry_in"]) for one in waits(story, job)] == [("worker_stopped", 0.0)]
    assert fresh_start(story, job) == ["runner.checkout@1.2", "runner.setup@1.2"]
    assert story.town.mosaic.pid("agents") != old
    one_right_pull(story, number)
    story.settled()
    assert len(story.said(number)) == 2


def fresh_start(story: Story, job: Json) -> list[str]:
    """The steps that ran again before the agent did."""
    rows = [step for step in story.town.mosaic.steps(job["id"]) if step["attempt"] > 1]
    return [f"{step['name']}@{step['round']}.{step['attempt']}" for step in rows if step["status"] == "completed"]


def test_a_turn_that_uses_up_its_tokens_is_stopped(town: Town) -> None:
    story = town.story({**CALC, ".mosaic.toml": f"{RULES}\n[limits]\ntokens = 1000\n"})
    marker = story.script([OLD_WORK, HANG])
    number = story.issue()
    story.say(number, town.mention(f"fix this {marker}"))
    ended = story.ended(number)
    assert (ended["status"], ended["reason"]) == ("failed", "budget_exhausted")
    assert ended["tokens"] > 1000
    assert ended["detail"] == f"The turn used {ended['tokens']} tokens of 1000."
    nothing_hangs(story, marker, step=1)
    no_attempt_burned(story, ended)
    story.settled()
    status, closing = story.said(number)
    assert "(`budget_exhausted`)" in status and f"used {ended['tokens']} tokens of 1000" in closing
    assert story.pulls() == []


# ---------------------------------------------------------------- side by side, and one after the other


@dataclass
class Turnstile:
    """A script whose turn waits at its only model call until the test lets one more through."""

    story: Story
    permits: threading.Semaphore

    @property
    def marker(self) -> str:
        return f"[[script:{self.name}]]"

    @property
    def name(self) -> str:
        return f"turnstile-{self.story.repo.replace('/', '-')}"

    def play(self, _: Any) -> list[Json]:
        assert self.permits.acquire(timeout=300)
        return [say("There is nothing to change.")]


@pytest.fixture
def turnstiles(town: Town) -> Iterator[list[Turnstile]]:
    """Three, in three repositories. What still waits at the end is let through: the model's threads shall end."""
    made = [Turnstile(town.story(), threading.Semaphore(0)) for _ in range(3)]
    for one in made:
        town.model.scripts[one.name] = one.play
    yield made
    for one in made:
        one.permits.release(10)


def running(town: Town, jobs: list[Json]) -> list[int]:
    rows = town.mosaic.sql(
        "select job_id from job_steps where name = %s and status = 'running' and job_id = any(%s) order by job_id",
        AGENT,
        [job["id"] for job in jobs],
    )
    return [row["job_id"] for row in rows]


def asked(turnstile: Turnstile) -> Json:
    story = turnstile.story
    number = story.issue()
    story.say(number, story.town.mention(f"fix this {turnstile.marker}"))
    return begun(story, number)


def test_two_agents_work_side_by_side_and_a_third_waits_for_a_slot(town: Town, turnstiles: list[Turnstile]) -> None:
    first, second = asked(turnstiles[0]), asked(turnstiles[1])
    town.mosaic.until(lambda: running(town, [first, second]) == [first["id"], second["id"]], "both to run at once")
    third = asked(turnstiles[2])
    town.mosaic.until(lambda: step_of(turnstiles[2].story, third)["ready_at"], "the third agent's turn")
    assert running(town, [first, second, third]) == [first["id"], second["id"]]
    turnstiles[2].permits.release()
    turnstiles[0].permits.release()
    turnstiles[2].story.ended(third["number"])
    [still] = running(town, [first, second, third])
    assert still == second["id"]
    turnstiles[1].permits.release()
    turnstiles[1].story.ended(second["number"])
    ends = [step_of(one.story, job) for one, job in zip(turnstiles, (first, second, third), strict=True)]
    assert all(step["status"] == "completed" for step in ends)
    assert ends[2]["started_at"] >= ends[0]["finished_at"]


def test_jobs_of_one_repository_run_one_after_the_other_and_say_their_place(
    town: Town, turnstiles: list[Turnstile]
) -> None:
    turnstile = turnstiles[0]
    story, who = turnstile.story, town.alice.login
    jobs = [asked(turnstile)]
    town.mosaic.until(lambda: running(town, jobs), "the first to run")
    jobs += [asked(turnstile), asked(turnstile)]

    def place(job: Json) -> str:
        """The first line of the job's status comment, without its link."""
        return next(iter(story.said(job["number"])), "").split(" — ")[0]

    def places(*wanted: str) -> None:
        """Until each status comment begins so."""
        town.mosaic.until(
            lambda: all(place(job).startswith(text) for job, text in zip(jobs, wanted, strict=True)),
            f"the status comments {wanted}",
        )

    works, done = f"**Mosaic is working on the request of `{who}`**", f"**Mosaic finished the request of `{who}` in"
    queued = f"**The request of `{who}` is queued, position"
    places(works, f"{queued} 1**", f"{queued} 2**")
    turnstile.permits.release()
    story.ended(jobs[0]["number"])
    places(done, works, f"{queued} 1**")
    town.mosaic.until(lambda: running(town, jobs) == [jobs[1]["id"]], "the second alone to run")
    turnstile.permits.release(2)
    ends = [story.ended(job["number"]) for job in jobs]
    assert [job["reason"] for job in ends] == ["nothing_to_do"] * 3
    turns = [step_of(story, job) for job in jobs]
    assert all(before["finished_at"] <= after["started_at"] for before, after in pairwise(turns))
    story.settled()
    same(story.said(jobs[2]["number"])[0].split(" — ")[0], f"**Mosaic finished the request of `{who}` in <time>**")
