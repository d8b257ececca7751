"""Webhooks that never come: whatever was asked meanwhile becomes exactly one job each, and a late replay adds none.

All of Mosaic's processes run but the engine: what becomes of the jobs is not the question here.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from tests.worlds.mailbox import Letter
from tests.worlds.openclaw import free_port
from tests.worlds.town import CONFIG, EVENTS, Story, Town

pytestmark = [pytest.mark.e2e, pytest.mark.practice]
PACE = """
[reconcile]
seconds = 2
notification_seconds = 1
grace_seconds = 0
requests_per_minute = 60000
"""
REPOSITORIES = 4
FILES = {"calc.py": "1\n"}


@pytest.fixture
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """A town of its own: its Mosaic looks around every two seconds."""
    with Town(
        tmp_path_factory.mktemp("lost"), engine=False, config=CONFIG.partition("[reconcile]")[0] + PACE
    ) as running:
        yield running


def deaf(town: Town) -> Story:
    """A repository whose webhook goes to a port where nobody listens."""
    story = town.story(FILES, hook=False)
    town.forge.hook(story.repo, f"http://127.0.0.1:{free_port()}/webhooks/gitea", town.mosaic.secret, EVENTS)
    return story


def ask(story: Story, number: int) -> str:
    """One of the ways to ask for work; the key under which it is known."""
    town = story.town
    if number % 4 == 0:
        issue = town.forge.issue(story.repo, story.issue(f"Ask {number}", town.mention("look at this")))
        return f"opened:{issue['id']}"
    if number % 4 == 1:
        plain = story.issue(f"Assign {number}")
        return f"assigned:{town.forge.assign(town.alice.token, story.repo, plain, town.bot.login)['id']}"
    said = story.say(story.issue(f"Talk {number}"), town.mention(f"fix number {number}"))
    return f"comment:{said['id']}"


def keys(town: Town) -> list[str]:
    """The keys of all jobs, without the hash of the text and the moment."""
    rows = town.mosaic.sql("select trigger_key from runner_jobs")
    names = [row["trigger_key"].removeprefix("gitea:") for row in rows]
    return sorted(":".join(name.split(":")[:2]) for name in names)


def replay_all(town: Town) -> list[int]:
    """Every delivery that failed so far, under a new id, to where Mosaic really listens; what it answered."""
    told = []
    for row in town.forge.knob("deliveries"):
        if row["error"] and row["event_type"] != "push":
            headers = {name.lower(): value for name, value in row["headers"].items()}
            answer = Letter(headers, row["payload"].encode()).hand(town.webhook, new_id=True)
            told.append(answer.status_code)
    return told


def settled_at(town: Town, wanted: list[str]) -> None:
    town.mosaic.until(lambda: len(keys(town)) >= len(wanted), f"{len(wanted)} jobs", 120.0)
    assert keys(town) == wanted


def rounds(town: Town, more: int = 2) -> None:
    """Wait for further complete rounds."""
    for _ in range(more):
        [before] = town.mosaic.sql("select completed_at from reconciler")
        town.mosaic.until(
            lambda seen=before: town.mosaic.sql("select completed_at from reconciler") != [seen], "another round", 60.0
        )


def test_a_hundred_mentions_that_no_webhook_told(town: Town) -> None:
    """Sixty while Mosaic cannot be reached, forty while it does not run at all."""
    stories = [deaf(town) for _ in range(REPOSITORIES)]
    numbers = count()
    turns = [(stories[turn % REPOSITORIES], next(numbers)) for turn in range(100)]
    with ThreadPoolExecutor(4) as pool:
        wanted = sorted(pool.map(lambda turn: ask(*turn), turns[:60]))
    settled_at(town, wanted)
    rounds(town, 1)
    town.mosaic.stop()
    with ThreadPoolExecutor(4) as pool:
        wanted = sorted([*wanted, *pool.map(lambda turn: ask(*turn), turns[60:])])
    town.mosaic.start()
    settled_at(town, wanted)
    told = replay_all(town)
    assert len(told) >= 100 and set(told) == {202}
    rounds(town)
    assert keys(town) == wanted and len(set(wanted)) == 100, "0 lost, 0 doubled"
    rows = town.mosaic.sql("select via, count(*) as n from deliveries where dedup_key is not null group by via")
    assert {row["via"]: row["n"] for row in rows} == {"confirmed": 100}
    [state] = town.mosaic.sql("select failures, completed_at is not null as whole from reconciler")
    assert state == {"failures": 0, "whole": True}
