"""Control commands on Gitea: what is answered, who may, and that a stopped job leaves nothing running."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import pytest

from tests.stories.words import link, same
from tests.worlds.forge import Json
from tests.worlds.town import CALC, NEVER, RIGHT, RULES, Story, Town

pytestmark = pytest.mark.e2e

HELP = """| Command | What it does |
|---|---|
| `@{bot} fix [text]` | Work on this issue. Without a text, the issue itself is the task. |
| `@{bot} status [job]` | What runs here, and how far it is. |
| `@{bot} cancel [job]` | Stop the job; nothing that is already pushed is touched. |
| `@{bot} retry [job]` | Start a job that ended once more, on the same branch and pull request. |
| `@{bot} continue [job] [text]` | Go on from the work that was kept of a job that was stopped; the text adds to the request. |
| `@{bot} why [job]` | Why a job waits or ended: reason, cause, what to do next, and its last events. |
| `@{bot} pause` | Let no new job start in this repository; for its administrators. |
| `@{bot} resume` | Let jobs start again. |
| `@{bot} help` | This table. |

One command per line. Anything else that is addressed to me is taken as a task. Mentions in code, quotes and links are ignored."""  # noqa: E501
DID_YOU_MEAN = """I did not start anything, because I am not sure what was meant.

- `{line}`: did you mean `@{bot} {form}`? If it is a task, write `@{bot} fix {line}`.

All commands: `@{bot} help`"""
LATER = "`@{bot} {verb}` is not available in this version of Mosaic. Nothing was started. What works: `@{bot} help`"
NO_JOB = "There is no job here. Start one with `@{bot} fix`."
NO_OPEN_JOB = "There is no open job here to cancel. Name one: `@{bot} cancel <job>`."
NO_ENDED_JOB = "There is no ended job here to retry. Start one with `@{bot} fix`."
NO_KEPT_JOB = "There is no ended job here to continue. Start one with `@{bot} fix`."
KEPT = "1 file changed so far is kept. `@{bot} continue` goes on from there.\n\n"
NEEDS_WRITE = """Not started: The request was not allowed. (`refused`)

**Next:** Ask someone with write permission on the repository to make the request.

`{verb}` needs write permission on this repository."""
CANCELLED = """@{who} Mosaic was stopped: Someone asked to stop the job. (`cancelled_by_user`)

**Next:** `@{bot} retry` starts it again.

{kept}Took <time>{spent} · {job}"""
WHY = """[Job {id}]({base}/jobs/{id}): The agent finished without changing a file. (`nothing_to_do`)

**Next:** Say more precisely what should change and mention Mosaic again.

Last events:
- `<clock>` `step.skipped` `inspector.policy@1.1` by `system:stitcher`
- `<clock>` `step.skipped` `inspector.gate.test@1.1` by `system:stitcher`
- `<clock>` `step.skipped` `herald.publish@1.1` by `system:stitcher`
- `<clock>` `step.started` `herald.report@1.1` by `system:worker`
- `<clock>` `comment.posted` `herald.report@1.1` by `system:worker`
- `<clock>` `comment.posted` `herald.report@1.1` by `system:worker`
- `<clock>` `step.completed` `herald.report@1.1` by `system:worker`
- `<clock>` `step.started` `runner.cleanup@1.1` by `system:worker`
- `<clock>` `step.completed` `runner.cleanup@1.1` by `system:worker`
- `<clock>` `job.completed` by `system:stitcher`"""


def answers(story: Story, number: int, *lines: str) -> list[str]:
    """What Mosaic answers to each of these comments of alice, one after the other."""
    said = []
    for line in lines:
        before = len(story.said(number))
        story.say(number, story.town.mention(line))
        said.append(story.heard(number, count=before + 1, timeout=120.0)[before])
    return said


def test_every_command_without_a_job_is_answered(story: Story) -> None:
    bot, number = story.town.bot.login, story.issue()
    later = ("plan", "ask why?", "review", "approve deadbeef go on", "deny", "verbose", "quiet", "config",
             "answer yes", "link", "ci")  # fmt: skip
    expected = {
        "help": HELP,
        "status": NO_JOB,
        "why": NO_JOB,
        "cancel": NO_OPEN_JOB,
        "retry": NO_ENDED_JOB,
        "continue": NO_KEPT_JOB,
        "cancle": DID_YOU_MEAN.format(line="cancle", form="cancel", bot="{bot}"),
        "retry the upload when it fails": DID_YOU_MEAN.format(
            line="retry the upload when it fails", form="retry", bot="{bot}"
        ),
        "status 999999": NO_JOB,
    } | {line: LATER.format(verb=line.split()[0], bot="{bot}") for line in later}
    for line, answer in zip(expected, answers(story, number, *expected), strict=True):
        same(answer, expected[line].format(bot=bot))
    assert story.jobs() == []
    comments = story.town.forge.comments(story.repo, number)
    mine = [one["id"] for one in comments if one["user"]["id"] == story.town.alice.id]
    assert {tuple(story.town.forge.reactions(story.repo, number, one)) for one in mine} == {((bot, "eyes"),)}


def test_several_commands_in_one_comment_are_one_answer(story: Story) -> None:
    bot, number = story.town.bot.login, story.issue()
    [answer] = answers(story, number, f"status\n{story.town.mention('cancle')}\n{story.town.mention('plan')}")
    parts = (NO_JOB, DID_YOU_MEAN.format(line="cancle", form="cancel", bot=bot), LATER.format(verb="plan", bot=bot))
    same(answer, "\n\n---\n\n".join(part.format(bot=bot) for part in parts))


def test_commands_about_a_job(town: Town) -> None:
    """While it works and after its end; and a reader may look, but not touch."""
    story, other = town.story(), town.story()
    bot, base, number = town.bot.login, town.mosaic.url, story.issue()
    pause = story.pause([{"text": "There is nothing to change."}])
    story.say(number, town.mention(f"fix this {pause.marker}"))
    pause.at_work()
    [job] = story.jobs()
    [status, too_early, finished] = answers(story, number, "status", "retry", f"status {job['id']}")
    assert status.startswith(f"- {link(base, job)}: running") and finished.startswith(f"- {link(base, job)}: running")
    same(
        too_early, f"Job {job['id']} is still running. Wait for its end, or stop it first: `@{bot} cancel {job['id']}`."
    )

    count = len(story.said(number))
    story.say(number, town.mention("cancel"), by=town.bob)
    story.say(number, town.mention(f"retry {job['id']}"), by=town.bob)
    for answer in story.heard(number, count=count + 2, timeout=120.0)[count:]:
        assert answer in (NEEDS_WRITE.format(verb="cancel"), NEEDS_WRITE.format(verb="retry"))
    foreign = other.issue()
    same(answers(other, foreign, f"cancel {job['id']}")[0], NO_OPEN_JOB.format(bot=bot))  # of another repository

    pause.go_on()
    assert story.nth(number, 1)["reason"] == "nothing_to_do"
    story.settled()
    status, why, late = answers(story, number, "status", "why", f"cancel {job['id']}")
    same(status, f"- {link(base, job)}: completed (`nothing_to_do`) · <spent>")
    same(why, WHY.format(id=job["id"], base=base))
    same(late, f"Job {job['id']} has already ended: completed (`nothing_to_do`).")
    assert len(story.jobs()) == 1


def test_cancel_ends_the_agent_s_turn(town: Town) -> None:
    story = town.story()
    number, bot = story.issue(), town.bot.login
    marker = story.script([{"hang": 600, "text": "never said"}])
    story.say(number, town.mention(f"fix this {marker}"))
    town.mosaic.until(lambda: town.model.seen(marker[9:-2]), "the agent to be at work")
    [job] = story.jobs()
    asked = time.time()
    story.say(number, town.mention("cancel"))
    job = story.nth(number, 1)
    assert (job["status"], job["reason"]) == ("cancelled", "cancelled_by_user")
    [left] = town.mosaic.until(lambda: [one for one in town.model.left if one["script"] == marker[9:-2]], "the end")
    print(f"the model's client went away {left['at'] - asked:.2f} s after the comment")
    assert left["at"] - asked < 60  # it would have hung for ten minutes
    story.settled()
    agent = [step for step in town.mosaic.steps(job["id"]) if step["name"] == "weaver.implement"]
    assert [(step["status"], step["attempt"]) for step in agent] == [("cancelled", 1)]
    [answer] = [text for text in story.said(number) if text.startswith("Stopping")]
    same(answer, f"Stopping job {job['id']}. Its status comment says when it has stopped.")
    words = {"who": town.alice.login, "bot": bot, "job": link(town.mosaic.url, job)}
    same(story.said(number)[-1], CANCELLED.format(spent="<anything>", kept="", **words))
    status = story.said(number)[0]
    assert status.startswith(f"**The request of `{town.alice.login}` was cancelled after ")
    assert "- ⏹️ Implementation\n" in status and story.pulls() == []


def test_cancel_ends_the_whole_tree_of_a_gate(town: Town) -> None:
    """Also what left the gate's session; the sandbox of the next gate is not touched by it."""
    mark = f"61.{secrets.randbelow(10**9):09d}"
    rules = RULES.replace("python3 -m unittest -v", f"setsid sleep {mark} & (setsid sleep {mark} &) ; sleep {mark}")
    story = town.story({**CALC, ".mosaic.toml": rules})
    number = story.issue()
    story.say(number, town.mention(f"fix this {story.script(*RIGHT)}"))
    town.mosaic.until(lambda: len(sleepers(mark)) == 3, "the gate and its two children", 240.0)
    asked = time.monotonic()
    story.say(number, town.mention("cancel"))
    town.mosaic.until(lambda: not processes(mark), "the end of the gate's processes")
    took = time.monotonic() - asked
    print(f"the last process of the gate was gone {took:.2f} s after the comment")
    assert took < 50  # they would have slept for a minute
    job = story.nth(number, 1)
    assert (job["status"], job["reason"]) == ("cancelled", "cancelled_by_user")
    story.settled()
    [gate] = [step for step in town.mosaic.steps(job["id"]) if step["name"] == "inspector.gate.test"]
    assert gate["status"] == "cancelled"
    words = {"who": town.alice.login, "bot": town.bot.login, "job": link(town.mosaic.url, job)}
    same(story.said(number)[-1], CANCELLED.format(spent=" · <spent>", kept=KEPT.format(**words), **words))
    assert story.pulls() == [] and set(town.forge.branches(story.repo)) == {"main"}


def processes(mark: str) -> list[list[str]]:
    """The arguments of every process on this machine that has the mark in them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except OSError:
            continue  # it has just ended
        if any(mark in word for word in words):
            found.append(words)
    return found


def sleepers(mark: str) -> list[list[str]]:
    return [words for words in processes(mark) if words == ["sleep", mark]]


def test_retry_after_red_gates_takes_over_branch_and_status_comment(town: Town) -> None:
    story = town.story({**CALC, ".mosaic.toml": f"{RULES}[limits]\nrounds = 1\n"})
    number, base = story.issue(), town.mosaic.url
    story.say(number, town.mention(f"fix this {story.script(*NEVER)}"))
    first = story.nth(number, 1)
    assert (first["status"], first["reason"]) == ("failed", "gates_failed")
    story.settled()
    [status, closing] = bots(story, number)
    story.script(*RIGHT)
    [reply] = answers(story, number, "retry")[:1]
    second = story.nth(number, 2)
    assert (second["status"], second["reason"], second["retry_of"]) == ("completed", "done", first["id"])
    same(reply, f"Job {second['id']} retries job {first['id']}, on the same branch and pull request.")
    story.settled()
    now = bots(story, number)
    assert [one["id"] for one in now[:2]] == [status["id"], closing["id"]] and len(now) == 4
    assert now[0]["body"].startswith(f"**Mosaic finished the request of `{town.alice.login}` in ")
    assert f"[live view]({base}/jobs/{second['id']}) · job {second['id']}" in now[0]["body"]
    assert now[1]["body"] == closing["body"]
    assert now[3]["body"].startswith(f"@{town.alice.login} Done: [pull request #2](")
    assert first["branch"] == second["branch"] == "mosaic/issue-1"
    assert set(town.forge.branches(story.repo)) == {"main", "mosaic/issue-1"}


def bots(story: Story, number: int) -> list[Json]:
    """The bot's comments as the forge has them, oldest first."""
    comments = story.town.forge.comments(story.repo, number)
    return [one for one in comments if one["user"]["id"] == story.town.bot.id]


def test_setup_runs_once_and_what_it_leaves_is_there_for_the_gate(town: Town) -> None:
    rules = (
        'version = 1\n[setup]\ncommands = ["mkdir built", "cp lock.txt built/copy"]\ncache = ["lock.txt"]\n'
        'outputs = ["built"]\n[[gates]]\nname = "test"\ntype = "test"\n'
        'command = "cmp lock.txt built/copy && ! touch built/x && python3 -m unittest -v"\n'
    )
    story = town.story({**CALC, ".mosaic.toml": rules, "lock.txt": "one==1\n", ".gitignore": "built\n"})
    number = story.issue()
    for count, rounds in enumerate((RIGHT, [[{"text": "Nothing more."}]]), 1):
        story.say(number, town.mention(f"fix this {story.script(*rounds)}"))
        story.nth(number, count)
    first, second = story.jobs()
    assert (first["reason"], second["reason"]) == ("done", "nothing_to_do")
    for job, reused in ((first, False), (second, True)):
        [setup] = [step for step in town.mosaic.steps(job["id"]) if step["name"] == "runner.setup"]
        assert setup["output"]["reused"] is reused
    assert first["branch"] == second["branch"]


def test_setup_that_fails_ends_the_job_before_the_agent_starts(town: Town) -> None:
    rules = f'{RULES}[setup]\ncommands = ["echo preparing; echo no such thing >&2; exit 7"]\n'
    story = town.story({**CALC, ".mosaic.toml": rules})
    number = story.issue()
    marker = story.script(*RIGHT)
    story.say(number, town.mention(f"fix this {marker}"))
    job = story.nth(number, 1)
    assert (job["status"], job["reason"]) == ("failed", "setup_failed")
    assert town.model.seen(marker[9:-2]) == []
    story.settled()
    same(
        story.said(number)[-1],
        f"""@{town.alice.login} Mosaic stopped: The repository's setup commands failed on the base commit, before the \
agent started. (`setup_failed`)

**Next:** Fix `[setup]` in `.mosaic.toml` (the output says what failed), then `@{town.bot.login} retry`.

```text
`echo preparing; echo no such thing >&2; exit 7` ended with 7<anything>:
preparing
no such thing
```

Took <time> · {link(town.mosaic.url, job)}""",
    )
