"""One mention is one job, however often and by whichever way its delivery comes."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.worlds.mailbox import Mailbox
from tests.worlds.town import EVENTS, Story, Town

pytestmark = pytest.mark.e2e
COPIES = 20
TASK = "[[script:nothing]]"


def test_one_mention_through_three_hooks_and_a_replay_is_one_job(town: Town, box: Mailbox) -> None:
    """The hooks of repository, organisation and whole forge deliver it, each under an id of its own."""
    org = town.forge.make_org("guild", town.alice)
    story = town.story(owner=org)
    town.hook(org)
    system = town.hook("")
    try:
        number = story.issue()
        town.forge.hook(story.repo, box.url, town.mosaic.secret, EVENTS)
        story.say(number, town.mention(f"fix {TASK}"))
        [copy] = box.wait("issue_comment created")
        town.mosaic.until(lambda: len(deliveries(story, number)) >= 3, "the three deliveries")
    finally:
        town.forge.call("DELETE", f"/admin/hooks/{system}")
    assert copy.hand(town.webhook, new_id=True).json() == {"duplicate": True}
    job = story.nth(number, 1)
    assert copy.hand(town.webhook, new_id=True).json() == {"duplicate": True}  # also when the job has ended
    story.settled()
    assert job["reason"] == "nothing_to_do" and len(story.jobs()) == 1
    assert len(story.said(number)) == 2
    assert Counter(row["state"] for row in deliveries(story, number)) == {"job": 1, "duplicate": 4}


def deliveries(story: Story, number: int) -> list[dict[str, object]]:
    """What Mosaic has stored of the comments on an issue, this one and its copies."""
    [comment] = [
        one for one in story.town.forge.comments(story.repo, number) if one["user"]["id"] == story.town.alice.id
    ]
    return story.town.mosaic.sql(
        "select state from deliveries where dedup_key like %s or reason like %s",
        f"comment:{comment['id']}:%",
        f"same meaning as comment:{comment['id']}:%",
    )


@pytest.mark.parametrize("new_id", [False, True], ids=["one id", "an id each"])
def test_twenty_copies_at_once_are_one_job(town: Town, by_post: Story, box: Mailbox, new_id: bool) -> None:
    number = by_post.issue()
    by_post.say(number, town.mention(f"fix {TASK}"))
    [letter] = box.wait("issue_comment created")
    with ThreadPoolExecutor(COPIES) as pool:
        answers = list(pool.map(lambda _: letter.hand(town.webhook, new_id=new_id), range(COPIES)))
    assert [answer.status_code for answer in answers] == [202] * COPIES
    told = [answer.json() for answer in answers]
    assert told.count({"duplicate": True}) == COPIES - 1
    assert by_post.nth(number, 1)["reason"] == "nothing_to_do"
    by_post.settled()
    assert len(by_post.jobs()) == 1 and len(by_post.said(number)) == 2


def test_copies_of_a_command_are_answered_once(town: Town, by_post: Story, box: Mailbox) -> None:
    number = by_post.issue()
    by_post.say(number, town.mention("status"))
    [letter] = box.wait("issue_comment created")
    with ThreadPoolExecutor(COPIES) as pool:
        answers = list(pool.map(lambda _: letter.hand(town.webhook, new_id=True), range(COPIES)))
    assert [answer.status_code for answer in answers] == [202] * COPIES
    by_post.settled()
    assert by_post.said(number) == [f"There is no job here. Start one with `@{town.bot.login} fix`."]
