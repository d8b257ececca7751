"""What starts a job on Gitea, and that one click starts one, in whatever order its deliveries come."""

from __future__ import annotations

import time
from datetime import datetime
from itertools import permutations

import pytest

from app.stitcher.requests import CLICK_SECONDS
from tests.stories.words import link, same
from tests.worlds.mailbox import Mailbox
from tests.worlds.town import CALC, Story, Town

pytestmark = pytest.mark.e2e

NOTHING = """@{who} The agent finished without changing a file. (`nothing_to_do`)

Say more precisely what should change and mention Mosaic again.

Took <time> · <spent> · {job}"""
STATUS = """**Mosaic finished the request of `{who}` in <time>** — [live view]({link}) · job {job}

- ✅ Request checked
- ✅ Context gathered
- ✅ Worktree prepared
- ✅ Setup
- ✅ Implementation
- ✅ Commit
- ⏭️ Policy
- ⏭️ Gates: test ⏭️
- ⏭️ Pull request

The agent finished without changing a file. (`nothing_to_do`)

<spent>"""
OFF = {**CALC, ".mosaic.toml": f"{CALC['.mosaic.toml']}\n[bot]\nenabled = false\n"}
TASK = "[[script:nothing]]"


def test_a_mention_in_title_body_or_comment_an_assignment_and_a_label_start_a_job(town: Town) -> None:
    forge, bot, alice = town.forge, town.bot, town.alice
    title, body, comment, assigned, labeled = (town.story() for _ in range(5))
    started = {
        title: title.issue(town.mention("look at add()"), TASK),
        body: body.issue("add() subtracts", f"It should add.\n\n{town.mention('fix ' + TASK)}"),
        comment: comment.issue(),
        assigned: assigned.issue(body=TASK),
        labeled: labeled.issue(body=TASK),
    }
    said = comment.say(started[comment], town.mention(TASK))
    forge.assign(alice.token, assigned.repo, started[assigned], bot.login)
    forge.label(alice.token, labeled.repo, started[labeled], "mosaic")
    kinds = {title: "opened", body: "opened", comment: "comment", assigned: "assigned", labeled: "labeled"}
    for story, number in started.items():
        job = story.nth(number, 1)
        assert (job["status"], job["reason"], job["trigger"]["kind"]) == ("completed", "nothing_to_do", kinds[story])
        story.settled()
        on = said["id"] if story is comment else None
        assert forge.reactions(story.repo, number, on) == [(bot.login, "eyes")]
        status, closing = story.said(number)
        where = f"{town.mosaic.url}/jobs/{job['id']}"
        same(status, STATUS.format(who=alice.login, link=where, job=job["id"]))
        same(closing, NOTHING.format(who=alice.login, job=link(town.mosaic.url, job)))
        assert len(story.jobs()) == 1


def test_the_label_is_taken_off_when_the_job_is_accepted_and_asks_again_when_it_is_put_on_again(town: Town) -> None:
    story = town.story()
    number = story.issue(body=story.script([{"hang": 600, "text": "never said"}]))
    town.forge.label(town.alice.token, story.repo, number, "mosaic", "bug")

    def labels() -> set[str]:
        return {label["name"] for label in town.forge.issue(story.repo, number)["labels"]}

    town.mosaic.until(lambda: labels() == {"bug"}, "the label to be taken off")
    [job] = story.jobs()
    assert job["finished_at"] is None  # it was accepted, not ended
    story.say(number, town.mention("cancel"))
    assert story.nth(number, 1)["reason"] == "cancelled_by_user"
    town.forge.label(town.alice.token, story.repo, number, "help wanted")  # another label asks for nothing
    story.script([{"text": "There is nothing to change."}])
    another_moment(story)
    town.forge.label(town.alice.token, story.repo, number, "mosaic")
    assert story.nth(number, 2)["reason"] == "nothing_to_do"
    story.say(number, town.mention("retry"))  # its label is off by now: the request was accepted once
    again = story.nth(number, 3)
    assert (again["reason"], again["retry_of"]) == ("nothing_to_do", story.jobs()[1]["id"])
    story.settled()
    assert labels() == {"bug", "help wanted"} and len(story.jobs()) == 3


def test_one_click_with_mention_label_and_assignment_is_one_job_in_any_order(
    town: Town, by_post: Story, box: Mailbox
) -> None:
    label = town.forge.make_label(by_post.repo, "mosaic")
    parts = ("issues opened", "issue_label label_updated", "issue_assign assigned")
    jobs = {}
    for order in permutations(range(3)):
        number = by_post.issue(body=town.mention(f"fix {TASK}"), labels=[label], assignees=[town.bot.login])
        letters = box.wait(*parts, by=town.alice.login)
        answers = [letters[place].hand(town.webhook) for place in order]
        assert [answer.status_code for answer in answers] == [202, 202, 202]
        [job] = {answer.json()["job"] for answer in answers}
        jobs[number] = job
    assert sorted(jobs.values()) == [job["id"] for job in by_post.jobs()]
    for number in jobs:
        assert by_post.nth(number, 1)["reason"] == "nothing_to_do"
    by_post.settled()
    for number in jobs:
        assert len(by_post.said(number)) == 2
        assert town.forge.issue(by_post.repo, number)["labels"] == []


def test_a_part_of_the_click_that_comes_after_the_job_has_ended_starts_nothing(town: Town, box: Mailbox) -> None:
    story = town.story(OFF, hook=False)
    town.forge.hook(story.repo, box.url, town.mosaic.secret, ("issues", "issue_assign"))
    number = story.issue(body=town.mention("fix this"), assignees=[town.bot.login])
    opened, assigned = box.wait("issues opened", "issue_assign assigned")
    assert assigned.hand(town.webhook).status_code == 202
    job = story.nth(number, 1)
    assert opened.hand(town.webhook).json()["job"] == job["id"]
    story.settled()
    [refusal] = story.said(number)
    same(
        refusal,
        f"""@{town.alice.login} Not started: Mosaic cannot work in this repository as it is. (`repository_unusable`)

**Next:** Mend what is named, or ask an owner of the repository to, then `@{town.bot.login} retry`.

Mosaic is switched off for this repository (`[bot] enabled = false`).""",
    )


def test_assigning_others_later_asks_for_nothing_and_a_second_assignment_of_the_bot_asks_again(
    town: Town, by_post: Story, box: Mailbox
) -> None:
    forge, alice, bot, repo = town.forge, town.alice, town.bot.login, by_post.repo
    forge.collaborator(repo, town.bob.login, "write")
    number = by_post.issue(body=TASK)

    def assign(*logins: str) -> list[dict[str, object]]:
        """Replace the assignees; what Mosaic answers to each delivery of it."""
        before = {user["login"] for user in forge.issue(repo, number)["assignees"] or []}
        forge.assign(alice.token, repo, number, *logins)
        gone, come = before - set(logins), set(logins) - before
        letters = box.wait(*["issue_assign unassigned"] * len(gone), *["issue_assign assigned"] * len(come))
        return [letter.hand(town.webhook).json() for letter in letters]

    first = assign(bot)
    assert by_post.nth(number, 1)["reason"] == "nothing_to_do"
    assert assign(bot, town.bob.login) == [{"duplicate": True}]
    assert assign(bot) == [{"ignored": "somebody else was unassigned"}]
    assert assign() == [{"ignored": "somebody else was unassigned"}]
    assert assign(town.bob.login) == [{"ignored": "somebody else was assigned"}]
    another_moment(by_post)
    second = assign(town.bob.login, bot)
    assert by_post.nth(number, 2)["reason"] == "nothing_to_do"
    assert [job["id"] for job in by_post.jobs()] == [first[0]["job"], second[0]["job"]]


def another_moment(story: Story) -> None:
    """Wait until what happens now cannot belong to the click that started the newest job."""
    first = datetime.fromisoformat(story.jobs()[-1]["trigger"]["at"]).timestamp()
    story.town.mosaic.until(lambda: time.time() > first + CLICK_SECONDS + 2, "another moment")
