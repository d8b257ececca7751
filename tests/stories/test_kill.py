"""Each consumer is killed with -9 during each of its steps: the job still ends, with exactly one of everything.

The moment is the worst one: the work is done and its result is not recorded. A trigger in the test's database holds the
recording transaction there until the process is dead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from app.postgres import Cluster
from tests.worlds.town import Story

pytestmark = [pytest.mark.e2e, pytest.mark.practice]

KEY = 7_070_707
HOLD = f"""
create table if not exists test_arms (id serial primary key, name text not null unique);
grant select on test_arms to mosaic_app;
create or replace function test_hold() returns trigger language plpgsql as $$
declare arm integer;
begin
    select id into arm from test_arms where name = new.name;
    if found then perform pg_advisory_xact_lock({KEY}, arm); end if;
    return new;
end $$;
create or replace trigger test_hold before update on job_steps for each row
    when (old.status = 'running' and new.status = 'completed') execute function test_hold();
"""
RELEASE = (
    "drop trigger if exists test_hold on job_steps; drop function if exists test_hold; drop table if exists test_arms"
)


@contextmanager
def armed(story: Story, names: list[str]) -> Iterator[psycopg.Connection[Any]]:
    """A connection that holds the lock of every arm; a step of that name cannot be recorded while it is held."""
    url = Cluster(story.town.mosaic.data / "var").url("postgres")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(HOLD)
        try:
            for name in names:
                row = connection.execute("insert into test_arms (name) values (%s) returning id", (name,)).fetchone()
                assert row
                connection.execute("select pg_advisory_lock(%s, %s)", (KEY, row[0]))
            yield connection
        finally:
            connection.execute("select pg_advisory_unlock_all()")
            connection.execute(RELEASE)


def caught(connection: psycopg.Connection[Any]) -> tuple[int, str] | None:
    """The arm (id, step name) at which a worker waits now."""
    row = connection.execute(
        "select a.id, a.name from pg_locks l join test_arms a on a.id = l.objid where l.locktype = 'advisory' "
        "and l.classid = %s and not l.granted",
        (KEY,),
    ).fetchone()
    return (row[0], row[1]) if row else None


def test_every_step_loses_its_worker_once(story: Story) -> None:
    mosaic = story.town.mosaic
    pools = {
        "runner.admit": "control",
        "runner.snapshot": "control",
        "runner.checkout": "control",
        "runner.setup": "gates",
        "weaver.implement": "agents",
        "runner.commit": "control",
        "inspector.policy": "control",
        "inspector.gate.test": "gates",
        "herald.publish": "control",
        "herald.report": "control",
        "runner.cleanup": "control",
    }
    killed = []
    with armed(story, list(pools)) as connection:
        number = story.issue()
        story.say(number, story.town.mention("fix this [[script:right]]"))
        while len(killed) < len(pools):
            arm, name = mosaic.until(lambda: caught(connection), f"a step to be caught after {killed}", 90)
            os.kill(mosaic.pid(pools[name]), signal.SIGKILL)
            connection.execute("delete from test_arms where id = %s", (arm,))
            connection.execute("select pg_advisory_unlock(%s, %s)", (KEY, arm))
            killed.append(name)
        job = story.ended(number, timeout=120)

    assert sorted(killed) == sorted(pools)
    assert (job["status"], job["reason"]) == ("completed", "done")
    lost = [event["step"].split("@")[0] for event in mosaic.events(job["id"]) if event["kind"] == "worker.lost"]
    assert sorted(lost) == sorted(pools)
    assert all(
        step["attempt"] == 1
        for step in mosaic.steps(job["id"])
        if step["name"] not in ("runner.checkout", "runner.setup")
    ), "a crash of ours costs no attempt"
    story.settled()
    assert set(story.town.forge.branches(story.repo)) == {"main", f"mosaic/issue-{number}"}
    [pull] = story.pulls()
    assert story.town.forge.file(story.repo, "calc.py", pull["head"]["ref"]) == b"def add(a, b):\n    return a + b\n"
    status, closing = story.said(number)
    assert status.startswith("**Mosaic finished") and closing.startswith(f"@{story.town.alice.login} Done")


def test_killing_everything_at_once_loses_nothing(story: Story) -> None:
    mosaic = story.town.mosaic
    number = story.issue()
    story.say(number, story.town.mention("fix this [[script:wrong-first]]"))
    mosaic.until(lambda: story.job(number), "the job")
    for role in ("control", "agents", "gates", "web"):
        os.kill(mosaic.pid(role), signal.SIGKILL)
    job = story.ended(number, timeout=120)
    assert (job["status"], job["reason"]) == ("completed", "done")
    story.settled()
    assert len(story.pulls()) == 1 and len(story.said(number)) == 2
