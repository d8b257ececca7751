"""The forge fails in the worst moment: an answer is lost after the write, it is overloaded, away, or renamed."""

from __future__ import annotations

import pytest

from tests.stories.words import link, same
from tests.worlds.forge import Json
from tests.worlds.town import RIGHT, Story, Town

pytestmark = [pytest.mark.e2e, pytest.mark.practice]

DONE = """@{who} Done: [pull request #{number}]({url}) is ready for your review.

1 file changed, +1 −1.

Gates: ✅ test (1 test)

Took <time> · <spent> · {job}"""


def fault(story: Story, method: str, path: str, kind: str, **more: object) -> None:
    """What happens to the next calls about this story's repository that fit."""
    story.town.forge.knob("fault", method=method, path=f"{story.repo}{path}", kind=kind, **more)


def calls(story: Story, method: str, end: str) -> list[int | None]:
    """The statuses of the calls that were made about this story's repository; None = the answer was cut off."""
    rows = story.town.forge.knob("requests")
    return [
        row["status"]
        for row in rows
        if row["method"] == method and story.repo in row["path"] and row["path"].endswith(end)
    ]


def well(story: Story, number: int = 1) -> Json:
    """The job has ended well, and there is exactly one of everything."""
    town = story.town
    job = story.nth(number, 1)
    assert (job["status"], job["reason"]) == ("completed", "done"), job["detail"]
    story.settled()
    assert set(town.forge.branches(story.repo)) == {"main", f"mosaic/issue-{number}"}
    [pull] = story.pulls()
    assert town.forge.file(story.repo, "calc.py", pull["head"]["ref"]) == b"def add(a, b):\n    return a + b\n"
    both = {"mosaic/test": "success", "mosaic/job": "success"}
    town.mosaic.until(lambda: town.forge.statuses(story.repo, pull["head"]["sha"]) == both, "the commit statuses")
    status, closing = story.said(number)
    assert status.startswith(f"**Mosaic finished the request of `{town.alice.login}` in ")
    words = {"who": town.alice.login, "number": pull["number"], "url": pull["html_url"]}
    same(closing, DONE.format(job=link(town.mosaic.url, job), **words))
    assert town.forge.knob("errors") == []
    return job


def started(story: Story) -> None:
    """The request stands in the issue itself, so that no comment but the bot's is made."""
    story.issue(body=story.town.mention(f"fix this {story.script(*RIGHT)}"))


def test_answers_that_are_lost_after_the_write_leave_one_of_each(town: Town) -> None:
    """Each on its own, all at once, and a push whose answer is lost."""
    comments, edits, pull, push, statuses, everything = (town.story() for _ in range(6))
    places = {
        comments: ("POST", "/issues/1/comments$", 2),
        edits: ("PATCH", "/issues/comments/", 3),
        pull: ("POST", "/pulls$", 1),
        push: ("POST", r"\.git/git-receive-pack$", 1),
        statuses: ("POST", "/statuses/", 2),
    }
    for story, (method, path, times) in places.items():
        fault(story, method, path, "cut_after", times=times)
        fault(everything, method, path, "cut_after", times=1)
    for story in (*places, everything):
        started(story)
    for story in (*places, everything):
        well(story)
    assert calls(comments, "POST", "/issues/1/comments").count(None) == 2
    assert calls(edits, "PATCH", "").count(None) == 3
    assert calls(pull, "POST", "/pulls") == [None]
    assert None in calls(push, "POST", "/git-receive-pack")
    assert calls(everything, "POST", "/pulls") == [None] and None in calls(everything, "POST", "/git-receive-pack")


def test_an_overloaded_forge_is_asked_again_when_it_says_so(town: Town) -> None:
    broken, limited, early = town.story(), town.story(), town.story()
    fault(broken, "POST", "/issues/1/comments$", "status", status=500, times=2)
    fault(broken, "POST", "/pulls$", "status", status=503, times=1)
    fault(broken, "POST", "/statuses/", "status", status=500, times=1)
    for path in ("/issues/1/comments$", "/pulls$"):
        town.forge.knob("rate_limit", method="POST", path=f"{limited.repo}{path}", times=1, retry_after=2)
    fault(early, "GET", "/issues/comments/", "status", status=502, times=4)
    fault(early, "POST", r"\.git/git-upload-pack$", "cut_before", times=1)
    for story in (broken, limited, early):
        started(story)
    for story in (broken, limited, early):
        well(story)
    assert calls(broken, "POST", "/issues/1/comments").count(500) == 2
    assert calls(broken, "POST", "/pulls") == [503, 201]
    assert calls(limited, "POST", "/pulls") == [429, 201]
    assert calls(limited, "POST", "/issues/1/comments").count(429) == 1
    waits = town.mosaic.sql(
        "select faults, attempt from job_steps where name = 'herald.publish' and job_id = any(%s)",
        [story.jobs()[0]["id"] for story in (broken, limited)],
    )
    assert [(row["faults"], row["attempt"]) for row in waits] == [(1, 1), (1, 1)]  # the forge's fault spends no attempt


def test_a_forge_that_is_away_in_the_middle_of_a_job_delays_it(story: Story) -> None:
    town = story.town
    number = story.issue()
    pause = story.pause(*RIGHT)
    story.say(number, town.mention(f"fix this {pause.marker}"))
    pause.at_work()
    town.forge.knob("down")
    try:
        pause.go_on()
        town.mosaic.until(
            lambda: town.mosaic.sql(
                "select 1 as yes from job_steps where job_id = %s and faults > 1 and status = 'pending'",
                story.jobs()[0]["id"],
            ),
            "Mosaic to find the forge away, twice",
            120.0,
        )
    finally:
        town.forge.knob("up")
    job = well(story)
    waited = [step["name"] for step in town.mosaic.steps(job["id"]) if step["faults"]]
    assert len(waited) == 1 and {step["attempt"] for step in town.mosaic.steps(job["id"])} == {1}


def test_a_job_survives_that_its_repository_is_renamed(story: Story) -> None:
    """Gitea answers 301 to the old name, and a redirected POST would turn into a GET."""
    town, old = story.town, story.repo
    number = story.issue()
    pause = story.pause(*RIGHT)
    story.say(number, town.mention(f"fix this {pause.marker}"))
    pause.at_work()
    new = f"{old.split('/')[1]}-renamed"
    town.forge.call("PATCH", f"/repos/{old}", body={"name": new})
    story.repo = f"{old.split('/')[0]}/{new}"
    pause.go_on()
    town.mosaic.until(
        lambda: town.mosaic.sql(
            "select 1 as yes from runner_jobs where repository in (%s, %s) and finished_at is not null", old, story.repo
        ),
        "the end",
        240.0,
    )
    well(story)


def test_a_job_whose_issue_is_deleted_ends(story: Story) -> None:
    """Gitea answers 500 to a comment on an issue that is gone: that is no reason to try for ever."""
    town = story.town
    number = story.issue()
    pause = story.pause(*RIGHT)
    story.say(number, town.mention(f"fix this {pause.marker}"))
    pause.at_work()
    town.forge.call("DELETE", f"/repos/{story.repo}/issues/{number}")
    pause.go_on()
    job = story.nth(number, 1)
    assert (job["status"], job["reason"]) == ("completed", "done"), job["detail"]
    story.settled()
    rows = town.mosaic.sql("select kind, state, error from effects where job_id = %s and state = 'failed'", job["id"])
    assert {row["kind"] for row in rows} == {"comment.status", "comment.closing"}


def test_a_mention_in_a_review_thread_is_answered(story: Story) -> None:
    """Such a reply is told as a comment, but Gitea answers 204 when it is read as one: it is read with its review."""
    town = story.town
    started(story)
    well(story)
    review = {"event": "COMMENT", "body": "", "comments": [{"path": "calc.py", "new_position": 2, "body": "Why?"}]}
    number = town.forge.call("POST", f"/repos/{story.repo}/pulls/2/reviews", town.alice.token, review)["id"]
    [line] = town.forge.call("GET", f"/repos/{story.repo}/pulls/2/reviews/{number}/comments")
    body = {"body": town.mention("help")}
    town.forge.call("POST", f"/repos/{story.repo}/pulls/2/comments/{line['id']}/replies", town.alice.token, body)
    [told] = story.heard(2)
    assert f"`@{town.bot.login} help`" in told
