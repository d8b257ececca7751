"""Branch and pull request through their life: worked on again, merged, closed, touched by people."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stories.words import link, same
from tests.worlds.forge import Json
from tests.worlds.town import CALC, RIGHT, Story, Town, edit, say

pytestmark = pytest.mark.e2e

DONE = """@{who} Done: [pull request #{number}]({url}) is ready for your review.

1 file changed, +1 −1.

Gates: ✅ test (1 test)

Took <time> · <spent> · {job}"""
REFUSED = """@{who} Not started: Mosaic works on issues, and on the open pull requests that it made itself. (`wrong_place`)

**Next:** Mention Mosaic on an issue: it opens a pull request for it.

{why}"""  # noqa: E501
CONFLICT = """@{who} Mosaic stopped: The branch holds commits that Mosaic did not make, so it was left alone. (`conflict`)

**Next:** Merge, rename or delete the branch, then `@{bot} retry`.

`{branch}` holds commits that are not Mosaic's.

Took <time> · {job}"""  # noqa: E501
QUEUED = """**The request of `{who}` is queued, position 1** — [live view]({base}/jobs/{job}) · job {job}

Waits: The branch mosaic/issue-1 is busy with job {first}.

- ✅ Request checked
- ⏳ Context gathered
- ⏳ Worktree prepared
- ⏳ Setup
- ⏳ Implementation
- ⏳ Commit
- ⏳ Policy
- ⏳ Gates: test ⏳
- ⏳ Pull request

To stop: `@{bot} cancel`"""
BODY = """Requested by `{who}`, made by Mosaic in [job {first}]({base}/jobs/{first}). Nothing here was reviewed by a person yet.

Closes #{issue}

The agent says: add() adds now.

### What changed

1 file, +1 −1

- `calc.py` changed

A word of alice's.

<!-- mosaic:receipts -->
### Receipts

| Gate | Result | Command | Exit code | Time | Counted | Tree | Log |
|---|---|---|---|---|---|---|---|
| test | ✅ passed | `python3 -m unittest -v` | 0 | <gate time> | 1 test | `{tree:.12}` | [log]({base}/jobs/{newest}/steps/inspector.gate.test@1.1/log) |

Every gate ran on a clean checkout of the tree `{tree}`.

Job {newest}: 1 round · <time> · <spent>
<!-- /mosaic:receipts -->

[What the agent saw, and what was left out]({base}/jobs/{first}#context)"""  # noqa: E501

SWAP = [edit("calc.py", "a + b", "b + a"), say("add() adds the other way round.")]
TURN = [edit("calc.py", "b + a", "sum((a, b))"), say("add() uses sum().")]


def first_pull(story: Story) -> tuple[int, Json]:
    """An issue and the pull request that Mosaic opened for it."""
    number = story.issue()
    story.say(number, story.town.mention(f"fix this {story.script(*RIGHT)}"))
    assert story.nth(number, 1)["reason"] == "done"
    [pull] = story.pulls()
    return number, pull


def change_pull(story: Story, number: int, **fields: str) -> None:
    story.town.forge.call("PATCH", f"/repos/{story.repo}/pulls/{number}", story.town.alice.token, fields)


def source(story: Story, branch: str) -> str:
    found = story.town.forge.file(story.repo, "calc.py", branch)
    assert found is not None
    return found.decode().splitlines()[1].strip()


def test_a_second_request_and_a_comment_on_the_pull_request_go_on_with_it(story: Story) -> None:
    """One branch, one pull request; its title, and what people wrote into its body, stay; the receipts are renewed."""
    town, forge, alice = story.town, story.town.forge, story.town.alice
    number, pull = first_pull(story)
    before, receipts = pull["body"].split("<!-- mosaic:receipts -->")
    change_pull(story, pull["number"], title="Add, do not subtract")
    change_pull(story, pull["number"], body=f"{before}A word of alice's.\n\n<!-- mosaic:receipts -->{receipts}")

    story.script(SWAP)
    story.say(number, town.mention("swap the terms"))
    assert story.nth(number, 2)["reason"] == "done"
    assert source(story, "mosaic/issue-1") == "return b + a"
    story.script(TURN)
    story.say(pull["number"], town.mention(f"use sum() {story.script(TURN)}"))
    third = story.nth(pull["number"], 1)
    assert third["reason"] == "done"
    story.settled()

    assert source(story, "mosaic/issue-1") == "return sum((a, b))"
    assert set(forge.branches(story.repo)) == {"main", "mosaic/issue-1"}
    [pull] = story.pulls()
    assert (pull["number"], pull["title"], pull["state"]) == (2, "Add, do not subtract", "open")
    jobs = story.jobs()
    [tree] = [
        row["tree_sha"] for row in town.mosaic.sql("select tree_sha from gate_results where job_id = %s", third["id"])
    ]
    words = {"who": alice.login, "base": town.mosaic.url, "first": jobs[0]["id"], "newest": third["id"], "tree": tree}
    same(pull["body"], BODY.format(issue=number, **words))
    commits = forge.call("GET", f"/repos/{story.repo}/pulls/2/commits")
    assert {trailer(commit, "Mosaic-Job") for commit in commits} == {str(job["id"]) for job in jobs}
    assert {job["pull_request"] for job in jobs} == {2} and {job["branch"] for job in jobs} == {"mosaic/issue-1"}

    assert len(story.said(number)) == 4  # a status and a closing comment for each of the two jobs
    status, closing = story.said(pull["number"])
    assert status.startswith(f"**Mosaic finished the request of `{alice.login}` in ")
    words = {"who": alice.login, "number": 2, "url": pull["html_url"]}
    same(closing, DONE.format(job=link(town.mosaic.url, third), **words))


def trailer(commit: Json, name: str) -> str:
    lines = commit["commit"]["message"].splitlines()
    [value] = [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")]
    return value


def test_a_request_while_a_job_works_waits_for_its_end_and_goes_on_from_there(story: Story) -> None:
    town, number = story.town, story.issue()
    town.forge.collaborator(story.repo, town.bob.login, "write")
    pause = story.pause(*RIGHT)
    story.say(number, town.mention(f"fix this {pause.marker}"))
    pause.at_work()
    story.say(number, town.mention(f"swap the terms {story.script(SWAP)}"), by=town.bob)
    [queued] = story.heard(number, lambda text: text.startswith("**The request of"), timeout=120.0)
    first, second = story.jobs()
    words = {"who": town.bob.login, "bot": town.bot.login, "base": town.mosaic.url, "job": second["id"]}
    words["first"] = first["id"]
    same(queued, QUEUED.format(**words))
    assert (first["status"], second["status"]) == ("running", "queued")
    pause.go_on()
    assert [story.nth(number, count)["reason"] for count in (1, 2)] == ["done", "done"]
    story.settled()
    [pull] = story.pulls()
    assert source(story, pull["head"]["ref"]) == "return b + a"
    assert story.said(number)[-1].startswith(f"@{town.bob.login} Done: [pull request #{pull['number']}](")


def test_after_a_merge_and_after_a_close_the_next_request_gets_a_branch_of_its_own(town: Town) -> None:
    merged, closed = town.story(), town.story()
    for story in (merged, closed):
        first_pull(story)
    change_pull(merged, 2, title="Add, do not subtract")  # Gitea merges no draft
    town.forge.merge(town.alice.token, merged.repo, 2)
    change_pull(closed, 2, state="closed")
    merged.script(SWAP)
    for story in (merged, closed):
        story.say(1, town.mention("once more, please"))
    for story, text in ((merged, "return b + a"), (closed, "return a + b")):
        job = story.nth(1, 2)
        assert (job["reason"], job["branch"]) == ("done", "mosaic/issue-1-2")
        assert source(story, "mosaic/issue-1-2") == text
        numbers = {pull["number"]: (pull["state"], pull["head"]["ref"]) for pull in story.pulls()}
        assert numbers[3] == ("open", "mosaic/issue-1-2") and numbers[2][0] == "closed"
        story.say(2, town.mention("and here?"))
        assert story.nth(2, 1)["reason"] == "wrong_place"
        story.settled()
        [refusal] = story.said(2)
        same(refusal, REFUSED.format(who=town.alice.login, why="This pull request is closed."))


def test_the_pull_request_of_a_person_is_refused(story: Story, tmp_path: Path) -> None:
    checkout = story.town.forge.clone(story.town.alice.token, story.repo, tmp_path / "clone")
    checkout.commit({"calc.py": CALC["calc.py"].replace("-", "+")}, "Add")
    checkout.push("by-hand")
    number = story.town.forge.open_pull(story.town.alice.token, story.repo, "by-hand", "main", "Add")["number"]
    story.say(number, story.town.mention("fix the tests here"))
    assert (story.nth(number, 1)["status"], story.nth(number, 1)["reason"]) == ("failed", "wrong_place")
    story.settled()
    [refusal] = story.said(number)
    same(refusal, REFUSED.format(who=story.town.alice.login, why="This pull request is not one of Mosaic's."))


def test_a_commit_of_a_person_on_the_branch_is_never_overwritten(story: Story, tmp_path: Path) -> None:
    town, branch = story.town, "mosaic/issue-1"
    number, _ = first_pull(story)
    checkout = town.forge.clone(town.alice.token, story.repo, tmp_path / "clone", branch)
    mine = checkout.commit({"note.txt": "mine\n"}, "A note")
    checkout.push(branch)
    story.script(SWAP)
    story.say(number, town.mention("swap the terms"))
    job = story.nth(number, 2)
    assert (job["status"], job["reason"]) == ("failed", "conflict")
    story.settled()
    assert town.forge.branches(story.repo)[branch] == mine
    words = {"who": town.alice.login, "bot": town.bot.login, "branch": branch, "job": link(town.mosaic.url, job)}
    same(story.said(number)[-1], CONFLICT.format(**words))


def test_a_commit_of_a_person_that_arrives_while_the_agent_works_is_never_overwritten(
    story: Story, tmp_path: Path
) -> None:
    town, branch = story.town, "mosaic/issue-1"
    number = story.issue()
    pause = story.pause(*RIGHT)
    story.say(number, town.mention(f"fix this {pause.marker}"))
    pause.at_work()
    checkout = town.forge.clone(town.alice.token, story.repo, tmp_path / "clone")
    mine = checkout.commit({"note.txt": "mine\n"}, "A note")
    checkout.push(branch)
    pause.go_on()
    job = story.nth(number, 1)
    assert (job["status"], job["reason"]) == ("failed", "conflict")
    story.settled()
    assert town.forge.branches(story.repo)[branch] == mine and story.pulls() == []
    words = {
        "who": town.alice.login,
        "bot": town.bot.login,
        "branch": branch,
        "job": f"<spent> · {link(town.mosaic.url, job)}",
    }
    same(story.said(number)[-1], CONFLICT.format(**words))
