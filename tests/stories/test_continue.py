"""A stopped job goes on from its work, and a paused repository takes requests without starting them."""

from __future__ import annotations

import pytest

from tests.stories.test_commands_story import answers, bots
from tests.worlds.town import Town, edit, say

pytestmark = pytest.mark.e2e


def test_a_cancelled_job_goes_on_from_where_it_was(town: Town) -> None:
    """The second agent can do its edit only on what the first one left."""
    story = town.story()
    number, bot = story.issue(), town.bot.login
    marker = story.script([edit("calc.py", "a - b", "a * b"), {"hang": 600, "text": "never said"}])
    story.say(number, town.mention(f"fix this {marker}"))
    name = marker[9:-2]
    town.mosaic.until(lambda: len(town.model.seen(name)) >= 2, "the agent to have made its edit")
    story.say(number, town.mention("cancel"))
    first = story.nth(number, 1)
    assert first["reason"] == "cancelled_by_user"
    story.settled()
    status, closing = bots(story, number)[0], story.said(number)[-1]
    assert f"1 file changed so far is kept. `@{bot} continue` goes on from there." in closing
    assert set(town.forge.branches(story.repo)) == {"main"}, "nothing of it has left this machine"

    town.forge.collaborator(story.repo, town.bob.login, "read")
    before = len(story.said(number))
    story.say(number, town.mention("continue"), by=town.bob)
    [denied] = story.heard(number, count=before + 1, timeout=120.0)[before:]
    assert "`continue` needs write permission on this repository." in denied

    played = len(town.model.seen(name))
    story.script([edit("calc.py", "a * b", "a + b"), say("add() adds now.")])
    [reply] = answers(story, number, f"continue {first['id']} it should be a sum")
    second = story.nth(number, 2)
    assert reply == f"Job {second['id']} goes on from what job {first['id']} had done: 1 changed file."
    assert (second["reason"], second["retry_of"], second["branch"]) == ("done", first["id"], first["branch"])
    told = town.model.seen(name)[played]["last"][-1]
    assert "## What was done so far" in told and "it should be a sum" in told and "calc.py" in told
    story.settled()
    [pull] = story.pulls()
    assert b"return a + b" in (town.forge.file(story.repo, "calc.py", pull["head"]["ref"]) or b"")
    assert bots(story, number)[0]["id"] == status["id"], "the same status comment"
    assert answers(story, number, "continue") == [
        f"Nothing of job {second['id']} is kept. To start it again from the branch: `@{bot} retry {second['id']}`"
    ]


def test_a_paused_repository_takes_requests_and_starts_none(town: Town) -> None:
    story, other = town.story(), town.story()
    number, bot = story.issue(), town.bot.login
    town.forge.collaborator(story.repo, town.bob.login, "write")
    story.say(number, town.mention("pause"), by=town.bob)
    [denied] = story.heard(number, timeout=120.0)
    assert "`pause` needs admin permission on this repository." in denied
    rest = "requests are taken and wait, what runs goes on."
    [paused, again] = answers(story, number, "pause", "pause")
    assert paused == f"`{story.repo}` is paused: {rest} `@{bot} resume` lets new jobs start."
    assert again.startswith(f"`{story.repo}` is paused already: ")
    story.say(number, town.mention(f"fix this {story.script([say('There is nothing to change.')])}"))
    [status] = story.heard(number, lambda text: " is queued, position 1**" in text, timeout=120.0)
    assert f"Waits: Paused by {town.alice.login} since " in status and f"`@{bot} resume` lets it go on." in status
    elsewhere = other.issue()
    other.say(elsewhere, town.mention(f"fix this {other.script([say('There is nothing to change.')])}"))
    assert other.nth(elsewhere, 1)["reason"] == "nothing_to_do", "the pause is that repository's alone"
    [job] = story.jobs()
    assert job["status"] == "queued"
    [why] = answers(story, number, "why")
    assert f"Paused by {town.alice.login} since " in why
    assert answers(story, number, "resume")[0] == f"`{story.repo}` goes on."
    assert story.nth(number, 1)["reason"] == "nothing_to_do"
