"""The main job: a mention becomes a gated pull request, made by the real OpenClaw."""

from __future__ import annotations

import re

import pytest

from tests.worlds.town import Story

pytestmark = pytest.mark.e2e


def test_a_mention_becomes_a_pull_request(story: Story) -> None:
    number = story.issue()
    story.say(number, story.town.mention("fix this [[script:right]]"))
    job = story.ended(number)
    assert (job["status"], job["reason"]) == ("completed", "done")

    [pull] = story.pulls()
    assert pull["title"] == "WIP: add() subtracts"
    assert pull["head"]["ref"] == f"mosaic/issue-{number}"
    assert f"Closes #{number}" in pull["body"]
    assert story.town.forge.file(story.repo, "calc.py", pull["head"]["ref"]) == b"def add(a, b):\n    return a + b\n"
    assert story.town.forge.statuses(story.repo, pull["head"]["sha"]) == {
        "mosaic/test": "success",
        "mosaic/job": "success",
    }

    story.settled()
    status, closing = story.said(number)
    assert status.startswith(f"**Mosaic finished the request of `{story.town.alice.login}` in ")
    assert closing.startswith(
        f"@{story.town.alice.login} Done: [pull request #{pull['number']}]({pull['html_url']}) is ready"
    )


def test_a_red_gate_sends_the_agent_back_and_the_second_round_is_green(story: Story) -> None:
    number = story.issue()
    story.say(number, story.town.mention("fix this [[script:wrong-first]]"))
    job = story.ended(number)
    assert (job["status"], job["reason"]) == ("completed", "done")
    mosaic = story.town.mosaic
    gates = mosaic.sql(
        "select round, passed, exit_code, tree_sha from gate_results where job_id = %s order by id", job["id"]
    )
    assert [(gate["round"], gate["passed"], gate["exit_code"]) for gate in gates] == [(1, False, 1), (2, True, 0)]
    assert [event["data"]["red"] for event in mosaic.events(job["id"]) if event["kind"] == "continuation.forced"] == [
        ["test"]
    ]
    [pull] = story.pulls()
    tree = gates[1]["tree_sha"]
    assert tree in pull["body"] and gates[0]["tree_sha"] not in pull["body"]


def test_red_to_the_limit_ends_without_a_pull_request(story: Story) -> None:
    number = story.issue()
    story.say(number, story.town.mention("fix this [[script:never]]"))
    job = story.ended(number)
    assert (job["status"], job["reason"]) == ("failed", "gates_failed")
    assert story.pulls() == []
    assert set(story.town.forge.branches(story.repo)) == {"main"}
    story.settled()
    closing = story.said(number)[-1]
    assert f"@{story.town.alice.login}" in closing and "`gates_failed`" in closing
    assert re.search(r"AssertionError: .* != 5", closing)
    assert f"`@{story.town.bot.login} retry`" in closing
