"""Whole texts for the main paths, and that nothing a stranger writes can act through them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import voice, waiting
from app.cli.jobs import why
from app.commands import LATER_VERBS, parse
from app.markdown import BLOCK, ZERO, normalise, prose
from app.types import (
    REASONS,
    Change,
    DidYouMean,
    Event,
    Finding,
    GateResult,
    GateSpec,
    Job,
    JobStatus,
    Phase,
    Step,
    StepStatus,
    StepType,
    Trigger,
    Verb,
)
from app.voice_format import brief_duration, duration, short, title
from tests.test_markdown import markdown

NOW = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)
LINK = "http://mosaic.test/jobs/42"
TREE = "f" * 40
TRIGGER = Trigger(
    kind="comment",
    repository_id=1,
    repository="acme/widget",
    number=7,
    is_pull=False,
    object_id=11,
    actor_id=5,
    actor="alice",
    text="The last byte is lost.\n\n@mosaic fix the parser",
    text_sha256="0" * 64,
    issue_title="Parser drops the last byte",
    issue_body="It does.",
    issue_author="bob",
)
JOB = Job(
    id=42,
    pipeline="implement",
    status=JobStatus.RUNNING,
    repository_id=1,
    repository="acme/widget",
    number=7,
    instructions="the parser",
    requester="gitea:alice",
    requester_id=5,
    trigger=TRIGGER,
    priority=0,
    access="write",
    reason=None,
    detail="",
    retry_of=None,
    branch="mosaic/issue-7",
    base_sha="b" * 40,
    default_branch="main",
    pull_request=None,
    head_sha=None,
    cancel_requested=False,
    created_at=NOW,
    started_at=NOW,
    finished_at=None,
    deadline_at=None,
    tokens=0,
    cost_usd=0.0,
)
ORDERS = {
    "runner.admit": 10,
    "runner.snapshot": 20,
    "runner.checkout": 30,
    "runner.setup": 40,
    "weaver.implement": 50,
    "runner.commit": 60,
    "inspector.policy": 70,
    "inspector.gate.lint": 110,
    "inspector.gate.test": 120,
    "herald.publish": 900,
    "herald.report": 910,
    "runner.cleanup": 920,
}
Make = Callable[..., Any]


def job(**changes: Any) -> Job:
    return dataclasses.replace(JOB, **changes)


def step(name: str, status: str = "completed", round: int = 1, attempt: int = 1, **more: Any) -> Step:
    number = ORDERS[name] * 100 + round * 10 + attempt
    return Step(
        number, 42, name, round, attempt, StepStatus(status), Phase.SETUP, StepType.COMMAND, ORDERS[name], **more
    )


def gate(name: str = "test", passed: bool = True, **more: Any) -> GateResult:
    values: dict[str, Any] = {
        "type": "test",
        "command": "pytest -q",
        "required": True,
        "exit_code": 0 if passed else 1,
        "seconds": 3.21,
        "why": "exit code 0" if passed else "2 tests failed",
        "output": "",
        "tree_sha": TREE,
    }
    return GateResult(name=name, passed=passed, **(values | more))


def plan(*done: Step) -> list[Step]:
    """All steps of a first round, pending but for the ones given."""
    known = {one.name: one for one in done if one.round == 1}
    return [known.get(name) or step(name, "pending") for name in ORDERS] + [one for one in done if one.round > 1]


DONE = [step(name) for name in ("runner.admit", "runner.snapshot", "runner.checkout")]
ROUND = [
    *DONE,
    step("runner.setup", "skipped"),
    step("weaver.implement"),
    step("runner.commit"),
    step("inspector.policy"),
]


# ---------------------------------------------------------------- the status comment


def test_status_of_a_job_that_has_just_come_in() -> None:
    assert voice.status_comment(job(status=JobStatus.PENDING), [step("runner.admit", "running")], link=LINK) == (
        "**Mosaic received the request of `alice`** — [live view](http://mosaic.test/jobs/42) · job 42\n"
        "\n"
        "- ▶️ Request checked\n"
        "\n"
        "To stop: `@mosaic cancel`"
    )


def test_status_of_a_queued_job_shows_the_whole_plan_and_the_position() -> None:
    waits = waiting.queue("acme/calc", 3, [40, 41], [43, 44])
    text = voice.status_comment(job(status=JobStatus.QUEUED), plan(step("runner.admit")), link=LINK, waiting=waits)
    assert text == (
        "**The request of `alice` is queued, position 3** — [live view](http://mosaic.test/jobs/42) · job 42\n"
        "\n"
        "Waits: 3. in the queue of acme/calc: jobs 40, 41 run.\n"
        "\n"
        "- ✅ Request checked\n"
        "- ⏳ Context gathered\n"
        "- ⏳ Worktree prepared\n"
        "- ⏳ Setup\n"
        "- ⏳ Implementation\n"
        "- ⏳ Commit\n"
        "- ⏳ Policy\n"
        "- ⏳ Gates: lint ⏳ · test ⏳\n"
        "- ⏳ Pull request\n"
        "\n"
        "To stop: `@mosaic cancel`"
    )


def test_status_in_the_second_round_with_a_live_line() -> None:
    steps = plan(
        *ROUND[:3],
        step("runner.setup", "skipped", detail="no setup commands"),
        *ROUND[4:],
        step("inspector.gate.lint"),
        step("inspector.gate.test", "failed"),
        step("weaver.implement", "failed", 2, detail="the connection was lost"),
        step("weaver.implement", "running", 2, attempt=2),
        step("runner.commit", "pending", 2),
        step("inspector.policy", "pending", 2),
        step("inspector.gate.lint", "pending", 2),
        step("inspector.gate.test", "pending", 2),
    )
    progress = {"tool": "edit", "path": "src/x.py", "calls": 12, "tokens": 31_000, "idle_seconds": 2.0}
    results = [gate("lint"), gate("test", False, counts={"tests": 40, "failures": 2})]
    assert voice.status_comment(job(), steps, link=LINK, progress=progress, gates=results) == (
        "**Mosaic is working on the request of `alice`** — [live view](http://mosaic.test/jobs/42) · job 42 · round 2\n"
        "\n"
        "- ✅ Request checked\n"
        "- ✅ Context gathered\n"
        "- ✅ Worktree prepared\n"
        "- ⏭️ Setup: no setup commands\n"
        "- ✅ Implementation · round 1\n"
        "- ✅ Commit\n"
        "- ✅ Policy\n"
        "- ❌ Gates · round 1: lint ✅ · test ❌\n"
        "- ▶️ Implementation · round 2 · attempt 2: 12 tool calls, last `edit src/x.py`, 31k tokens\n"
        "- ⏳ Commit\n"
        "- ⏳ Policy\n"
        "- ⏳ Gates · round 2: lint ⏳ · test ⏳\n"
        "- ⏳ Pull request\n"
        "\n"
        "To stop: `@mosaic cancel`"
    )


def test_status_of_a_job_that_is_done() -> None:
    steps = plan(
        *ROUND,
        step("inspector.gate.lint"),
        step("inspector.gate.test"),
        step("herald.publish", finished_at=NOW + timedelta(seconds=372)),
        step("herald.report", "running"),
    )
    done = job(reason="done", pull_request=57, tokens=31_000, cost_usd=0.42)
    results = [gate("lint"), gate("test", counts={"tests": 40, "skipped": 1})]
    assert voice.status_comment(done, steps, link=LINK, gates=results) == (
        "**Mosaic finished the request of `alice` in 6m 12s** — [live view](http://mosaic.test/jobs/42) · job 42\n"
        "\n"
        "- ✅ Request checked\n"
        "- ✅ Context gathered\n"
        "- ✅ Worktree prepared\n"
        "- ⏭️ Setup\n"
        "- ✅ Implementation\n"
        "- ✅ Commit\n"
        "- ✅ Policy\n"
        "- ✅ Gates: lint ✅ · test ✅ (40 tests, 1 skipped)\n"
        "- ✅ Pull request\n"
        "\n"
        "All gates are green and the pull request is open. (`done`) pull request #57 · branch `mosaic/issue-7`\n"
        "\n"
        "31k tokens · $0.42"
    )


def test_status_of_a_job_that_failed() -> None:
    steps = [step("runner.admit"), step("runner.setup", "failed", detail="pip: no such @package")]
    failed = job(status=JobStatus.FAILED, reason="setup_failed", finished_at=NOW + timedelta(seconds=61))
    assert voice.status_comment(failed, steps, link=LINK, bot="robo") == (
        "**Mosaic stopped the request of `alice` after 1m 01s** — [live view](http://mosaic.test/jobs/42) · job 42\n"
        "\n"
        "- ✅ Request checked\n"
        "- ❌ Setup: pip: no such &#64;package\n"
        "\n"
        "The repository's setup commands failed on the base commit, before the agent started. (`setup_failed`)\n"
        "\n"
        "Next: Fix `[setup]` in `.mosaic.toml` (the output says what failed), then `@robo retry`."
    )


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        ({"status": JobStatus.WAITING}, "**Mosaic waits for a person on the request of `alice`** — "),
        ({"status": JobStatus.CANCELLED, "reason": "cancelled_by_user"}, "**The request of `alice` was cancelled** — "),
        ({"requester": "slack:T1/U1"}, "**Mosaic is working on the request of `slack:T1/U1`** — "),
    ],
)
def test_status_headers(changes: dict[str, Any], header: str) -> None:
    assert voice.status_comment(job(**changes), [], link=LINK).startswith(header)


def test_gates_of_a_round_are_shown_as_one() -> None:
    def row(lint: str, test: str) -> str:
        steps = [step("inspector.gate.lint", lint), step("inspector.gate.test", test)]
        return voice.status_comment(job(), steps, link=LINK).split("\n")[2]

    assert row("completed", "completed").startswith("- ✅ Gates")
    assert row("failed", "running").startswith("- ❌ Gates")
    assert row("completed", "running").startswith("- ▶️ Gates")
    assert row("completed", "pending").startswith("- ▶️ Gates")
    assert row("pending", "pending").startswith("- ⏳ Gates")
    assert row("skipped", "skipped").startswith("- ⏭️ Gates")
    assert row("completed", "skipped").startswith("- ✅ Gates")
    assert row("cancelled", "completed").startswith("- ⏹️ Gates")


def test_housekeeping_is_shown_only_when_it_fails_and_nothing_is_a_task_box() -> None:
    text = voice.status_comment(job(), [step("herald.report", "failed"), step("runner.cleanup")], link=LINK)
    assert "`herald.report`" in text
    assert "cleanup" not in text
    assert "[ ]" not in text


# ---------------------------------------------------------------- the closing comment


def test_closing_of_a_success() -> None:
    done = job(reason="done", pull_request=57, tokens=31_000, cost_usd=0.42)
    text = voice.closing_comment(
        done,
        gates=[
            gate("lint", type="lint"),
            gate("test", counts={"tests": 40}, coverage=81.5),
            gate("style", False, required=False),
        ],
        pull_url="http://git.test/acme/widget/pulls/57",
        changed=(3, 40, 12),
        seconds=372,
        link=LINK,
        excluded=[("comment 3 by @eve", "written after the request")],
    )
    assert text == (
        "@alice Done: [pull request #57](http://git.test/acme/widget/pulls/57) is ready for your review.\n"
        "\n"
        "3 files changed, +40 −12.\n"
        "\n"
        "Gates: ✅ lint · ✅ test (40 tests, coverage 81.5 %) · ⚠️ style\n"
        "\n"
        "<details><summary>Not shown to the agent: 1 item</summary>\n"
        "\n"
        "- comment 3 by &#64;eve: written after the request\n"
        "\n"
        "</details>\n"
        "\n"
        "Took 6m 12s · 31k tokens · $0.42 · [job 42](http://mosaic.test/jobs/42)"
    )


def test_closing_of_red_gates_shows_the_last_ten_lines() -> None:
    red = gate(
        "test", False, counts={"tests": 40, "failures": 2}, output="\n\n".join(f"line {n}" for n in range(1, 14))
    )
    text = voice.closing_comment(
        job(reason="gates_failed"),
        gates=[gate("lint"), red, gate("style", False, required=False)],
        seconds=240,
        link=LINK,
    )
    lines = "\n".join(f"line {n}" for n in range(4, 14))
    assert text == (
        "@alice Mosaic stopped: A required gate was still red after the last allowed round. (`gates_failed`)\n"
        "\n"
        "**Next:** Read the output of the red gate, then `@mosaic retry`, or fix it by hand.\n"
        "\n"
        "<details><summary>❌ test: exit code 1, 2 of 40 tests failed</summary>\n"
        "\n"
        "2 tests failed\n"
        "\n"
        "Command: `pytest -q`\n"
        "\n"
        f"```text\n{lines}\n```\n"
        "\n"
        "</details>\n"
        "\n"
        "Took 4m 00s · [job 42](http://mosaic.test/jobs/42)"
    )


def test_closing_of_a_policy_violation_names_the_paths() -> None:
    text = voice.closing_comment(
        job(reason="policy_violation", requester="api:ci"),
        seconds=3,
        link=LINK,
        findings=[Finding("protected_path", ".gitea/x`y.yml", "may not be changed")] * 12,
    )
    head, *rest = text.split("\n\n")
    assert head == "Mosaic stopped: The change touched something that the policy does not allow. (`policy_violation`)"
    assert rest[1].split("\n")[0] == "- ``.gitea/x`y.yml``: may not be changed (`protected_path`)"
    assert rest[1].split("\n")[10:] == ["- … and 2 more"]


def test_closing_without_a_change_keeps_the_words_of_the_agent_apart() -> None:
    assert voice.closing_comment(job(reason="nothing_to_do", detail="It is right as it is, @bob."), link=LINK) == (
        "@alice The agent finished without changing a file. (`nothing_to_do`)\n"
        "\n"
        "```text\nIt is right as it is, @bob.\n```\n"
        "\n"
        "Say more precisely what should change and mention Mosaic again.\n"
        "\n"
        "Took 0s · [job 42](http://mosaic.test/jobs/42)"
    )


@pytest.mark.parametrize("code", REASONS)
def test_every_end_says_code_cause_what_happened_and_what_to_do_next_everywhere(code: str) -> None:
    reason = REASONS[code]
    ended = job(reason=code, status=reason.status, detail="the particulars")
    texts = {
        "status comment": voice.status_comment(ended, plan(), link=LINK),
        "closing comment": voice.closing_comment(ended, link=LINK),
        "answer to why": voice.why_reply(ended, []),
        "refusal": voice.refusal(code, ended.detail),
        "mosaic show": "\n".join(why(ended)),
    }
    for name, text in texts.items():
        if reason.status is JobStatus.COMPLETED and name in ("status comment", "closing comment"):
            continue  # a success speaks of its pull request
        for part in (reason.cause, code, "the particulars", reason.next_action):
            assert part in text, (name, part)
    for name in ("status comment", "closing comment"):
        assert (code == "done" and name == "closing comment") or f"{reason.cause} (`{code}`)" in texts[name]


@pytest.mark.parametrize("code", REASONS)
def test_every_failure_has_a_next_action_that_makes_sense_wherever_it_stands(code: str) -> None:
    reason = REASONS[code]
    assert reason.cause.endswith(".") and len(reason.cause) > 20
    if reason.status is not JobStatus.COMPLETED:
        assert reason.next_action.endswith((".", "below.")) and len(reason.next_action) > 20
    assert not re.search(r"\b(below|above|here)\b", reason.cause + reason.next_action), "each text has its own order"


def test_a_failed_step_says_it_once() -> None:
    ended = job(reason="setup_failed", status=JobStatus.FAILED, detail="`make` ended with 2")
    text = voice.status_comment(ended, plan(step("runner.setup", "failed", detail="`make` ended with 2")), link=LINK)
    assert text.count("ended with 2") == 1


def test_the_requester_is_mentioned_once_and_only_at_the_end() -> None:
    assert voice.closing_comment(job(reason="done"), link=LINK).count("@alice") == 1
    assert "@alice" not in voice.status_comment(job(), ROUND, link=LINK)
    assert "@" not in voice.pr_body(job(), region="", link=LINK)
    odd = job(reason="done", requester="gitea:al ice@evil [x]")
    assert voice.closing_comment(odd, link=LINK).startswith(REASONS["done"].cause)


# ---------------------------------------------------------------- answers


def test_refusal() -> None:
    assert voice.refusal("refused", "@eve has read permission only.", bot="robo") == (
        "Not started: The request was not allowed. (`refused`)\n"
        "\n"
        "**Next:** Ask someone with write permission on the repository to make the request.\n"
        "\n"
        "&#64;eve has read permission only."
    )


def test_did_you_mean() -> None:
    (item,) = parse("@mosaic cancel the `x` endpoint")
    assert isinstance(item, DidYouMean)
    assert voice.did_you_mean([item]) == (
        "I did not start anything, because I am not sure what was meant.\n"
        "\n"
        "- ``cancel the `x` endpoint``: did you mean `@mosaic cancel`? "
        "If it is a task, write ``@mosaic fix cancel the `x` endpoint``.\n"
        "\n"
        "All commands: `@mosaic help`"
    )


@pytest.mark.parametrize("verb", sorted(LATER_VERBS))
def test_not_yet(verb: Verb) -> None:
    assert voice.not_yet(verb) == (
        f"`@mosaic {verb}` is not available in this version of Mosaic. Nothing was started. What works: `@mosaic help`"
    )


def test_help_lists_exactly_what_works() -> None:
    assert voice.help_text("robo") == (
        "| Command | What it does |\n"
        "|---|---|\n"
        "| `@robo fix [text]` | Work on this issue. Without a text, the issue itself is the task. |\n"
        "| `@robo status [job]` | What runs here, and how far it is. |\n"
        "| `@robo cancel [job]` | Stop the job; nothing that is already pushed is touched. |\n"
        "| `@robo retry [job]` | Start a job that ended once more, on the same branch and pull request. |\n"
        "| `@robo continue [job] [text]` | Go on from the work that was kept of a job that was stopped; "
        "the text adds to the request. |\n"
        "| `@robo why [job]` | Why a job waits or ended: reason, cause, what to do next, and its last events. |\n"
        "| `@robo pause` | Let no new job start in this repository; for its administrators. |\n"
        "| `@robo resume` | Let jobs start again. |\n"
        "| `@robo help` | This table. |\n"
        "\n"
        "One command per line. Anything else that is addressed to me is taken as a task. "
        "Mentions in code, quotes and links are ignored."
    )
    assert all(f"@mosaic {verb}" not in voice.help_text() for verb in LATER_VERBS)


def test_status_reply() -> None:
    jobs = [
        job(id=40, status=JobStatus.FAILED, reason="stalled", tokens=950),
        job(id=42),
        job(id=41, status=JobStatus.COMPLETED, reason="done", pull_request=57),
    ]
    assert voice.status_reply(jobs, "http://mosaic.test") == (
        "- [job 42](http://mosaic.test/jobs/42): running\n"
        "- [job 41](http://mosaic.test/jobs/41): completed (`done`) · pull request #57\n"
        "- [job 40](http://mosaic.test/jobs/40): failed (`stalled`) · 950 tokens"
    )
    assert voice.status_reply([]) == "There is no job here. Start one with `@mosaic fix`."


def test_why_reply_ends_with_the_last_ten_events() -> None:
    events = [
        Event(str(n), 42, n, "step.started", NOW + timedelta(seconds=n), "system:worker", "runner.admit@1.1", {})
        for n in range(1, 13)
    ]
    rows = "\n".join(f"- `13:00:{n:02}` `step.started` `runner.admit@1.1` by `system:worker`" for n in range(3, 13))
    assert voice.why_reply(job(reason="stalled", detail="10 minutes without a sign"), events, LINK) == (
        "[Job 42](http://mosaic.test/jobs/42): "
        "The agent showed no activity for longer than the stall limit. (`stalled`)\n"
        "\n"
        "**Next:** `@mosaic retry`; if it happens again, look at the engine's log.\n"
        "\n"
        "10 minutes without a sign\n"
        "\n"
        f"Last events:\n{rows}"
    )
    assert voice.why_reply(job(), []) == "Job 42 is running."


SINCE = datetime(2026, 11, 22, 18, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("waits", "words"),
    [
        (waiting.queue("acme/calc", 2, [41], [43]), "2. in the queue of acme/calc: job 41 runs."),
        (waiting.queue("acme/calc", 2, [], [43]), "2. in the queue of acme/calc: job 43 comes first."),
        (waiting.queue("a/b", 9, [1, 2, 3, 4, 5], []), "9. in the queue of a/b: jobs 1, 2, 3 and 2 more run."),
        (waiting.branch_busy("mosaic/issue-7", 40, 1), "The branch mosaic/issue-7 is busy with job 40."),
        (
            waiting.paused("gitea:alice", SINCE, 1),
            "Paused by alice since 2026-11-22 18:30 UTC; `@robo resume` lets it go on.",
        ),
        (waiting.paused("cli:root", SINCE, 1), "Paused by the operator since 2026-11-22 18:30 UTC; the operator "
         "resumes it."),
        (waiting.no_slot("agents", 2, 2), "No agent slot is free: 2 of 2 work."),
        (waiting.alone(2), "Its worker was lost 2 times: it runs next without another such step beside it."),
        (waiting.no_consumer("gates"), "No gates consumer is alive: ask the operator to look at `mosaic doctor`."),
        (waiting.forge_away(SINCE, 12.3), "Gitea does not answer since 18:30 UTC: Mosaic asks again in 12s."),
        (waiting.trying_again(2, 4.2), "The last attempt failed: attempt 2 starts in 4s."),
        (waiting.backing_off("engine_unavailable", 75, 2), "The agent engine or its model does not answer: try 3 in "
         "1m 15s."),
    ],
)  # fmt: skip
def test_why_a_job_waits_is_the_same_everywhere(waits: waiting.Waiting, words: str) -> None:
    assert words in voice.why_reply(job(), [], bot="robo", waiting=waits)
    assert words.rstrip(".") in voice.status_reply([job()], bot="robo", waits={42: waits})
    if waits.code != "backing_off":  # its step says so
        shown = voice.status_comment(job(), plan(step("runner.admit")), link=LINK, waiting=waits, bot="robo")
        assert f"Waits: {words}" in shown


def test_the_names_of_others_mean_nothing_in_what_a_job_waits_for() -> None:
    odd = waiting.paused("gitea:@bob](http://x)**", SINCE, None), waiting.branch_busy("<b>#5 `x`", 1, None)
    for waits in odd:
        assert not set("@[]()<>*#`") & set(waits.sentence.replace("`@mosaic resume`", ""))


def test_the_closing_comment_offers_what_was_kept() -> None:
    stopped = job(status=JobStatus.FAILED, reason="timed_out")
    assert "1 file changed so far is kept. `@robo continue` goes on from there." in voice.closing_comment(
        stopped, link=LINK, kept=1, bot="robo"
    )
    assert "3 files changed so far are kept." in voice.closing_comment(stopped, link=LINK, kept=3)
    assert "kept" not in voice.closing_comment(stopped, link=LINK)


def test_answers_to_continue_pause_and_resume() -> None:
    ended = job(status=JobStatus.FAILED, reason="stalled")
    assert voice.continue_reply(None) == "There is no ended job here to continue. Start one with `@mosaic fix`."
    assert voice.continue_reply(job()).startswith("Job 42 is still running.")
    assert voice.continue_reply(ended) == (
        "Nothing of job 42 is kept. To start it again from the branch: `@mosaic retry 42`"
    )
    assert voice.continue_reply(ended, gone=True) == (
        "What job 42 had done is kept on a machine where no Mosaic runs now. "
        "To start it again from the branch: `@mosaic retry 42`"
    )
    assert voice.continue_reply(ended, job(id=43), files=2) == (
        "Job 43 goes on from what job 42 had done: 2 changed files."
    )
    paused = "requests are taken and wait, what runs goes on. `@mosaic resume` lets new jobs start."
    assert voice.pause_reply("acme/calc", True, True) == f"`acme/calc` is paused: {paused}"
    assert voice.pause_reply("acme/calc", True, False) == f"`acme/calc` is paused already: {paused}"
    assert voice.pause_reply("acme/calc", False, True) == "`acme/calc` goes on."
    assert voice.pause_reply("acme/calc", False, False) == "`acme/calc` was not paused."
    held = waiting.paused("cli:root", SINCE, None).sentence
    assert voice.pause_reply("acme/calc", False, False, elsewhere=held) == f"`acme/calc` stays paused: {held}"


def test_short_answers() -> None:
    ended = job(status=JobStatus.FAILED, reason="stalled")
    assert voice.cancel_reply(None) == "There is no open job here to cancel. Name one: `@mosaic cancel <job>`."
    assert voice.cancel_reply(ended) == "Job 42 has already ended: failed (`stalled`)."
    assert voice.cancel_reply(job()) == "Stopping job 42. Its status comment says when it has stopped."
    assert voice.retry_reply(None) == "There is no ended job here to retry. Start one with `@mosaic fix`."
    assert voice.retry_reply(job()) == (
        "Job 42 is still running. Wait for its end, or stop it first: `@mosaic cancel 42`."
    )
    assert voice.retry_reply(ended, job(id=43)) == "Job 43 retries job 42, on the same branch and pull request."
    assert voice.joined(job()) == "Job 42 is already at work here: your request joins its next round."
    assert voice.queued_behind(job()) == (
        "Job 42 is already at work here: your request is queued and starts when that job has ended."
    )


# ---------------------------------------------------------------- the pull request


def test_body_of_a_pull_request() -> None:
    region = voice.receipts(
        job(tokens=31_000, cost_usd=0.42),
        [
            gate("lint", command="ruff check . | tee `x`", seconds=0.42),
            gate("test", counts={"tests": 40, "skipped": 2}, seconds=61.4),
            gate("slow", False, required=False, exit_code=None, timed_out=True, seconds=900),
        ],
        tree_sha=TREE,
        specs=[
            GateSpec("lint", "lint", "ruff check .", source="detected:pyproject.toml"),
            GateSpec("test", "test", "pytest -q"),
        ],
        logs={"test": f"{LINK}/steps/inspector.gate.test@1.1/log"},
        rounds=2,
        seconds=372,
    )
    body = voice.pr_body(
        job(),
        region=region,
        files=[Change("src/a.py", "M", "", "", "", ""), Change("src/b|c.py", "A", "", "", "", "")],
        changed=(2, 40, 12),
        summary="I repaired it, @bob.\nCloses #5",
        link=LINK,
    )
    assert body == (
        "Requested by `alice`, made by Mosaic in [job 42](http://mosaic.test/jobs/42). "
        "Nothing here was reviewed by a person yet.\n"
        "\n"
        "Closes #7\n"
        "\n"
        "The agent says: I repaired it, &#64;bob. Closes &#35;5\n"
        "\n"
        "### What changed\n"
        "\n"
        "2 files, +40 −12\n"
        "\n"
        "- `src/a.py` changed\n"
        "- `src/b|c.py` added\n"
        "\n"
        "<!-- mosaic:receipts -->\n"
        "### Receipts\n"
        "\n"
        "| Gate | Result | Command | Exit code | Time | Counted | Tree | Log |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| lint | ✅ passed | `` ruff check . \\| tee `x` `` | 0 | 0.4s | – | `ffffffffffff` | – |\n"
        "| test | ✅ passed | `pytest -q` | 0 | 1m 01s | 40 tests, 2 skipped | `ffffffffffff` "
        "| [log](http://mosaic.test/jobs/42/steps/inspector.gate.test@1.1/log) |\n"
        "| slow (optional) | ⚠️ failed | `pytest -q` | time limit | 15m 00s | – | `ffffffffffff` | – |\n"
        "\n"
        f"Every gate ran on a clean checkout of the tree `{TREE}`.\n"
        "\n"
        "The repository names no gates in `.mosaic.toml`; these were detected: `lint` from `pyproject.toml`.\n"
        "\n"
        "Job 42: 2 rounds · 6m 12s · 31k tokens · $0.42\n"
        "<!-- /mosaic:receipts -->\n"
        "\n"
        "[What the agent saw, and what was left out](http://mosaic.test/jobs/42#context)"
    )


def test_a_pull_request_closes_only_an_issue() -> None:
    on_pull = job(trigger=dataclasses.replace(TRIGGER, is_pull=True))
    assert "Closes" not in voice.pr_body(on_pull, region="", link=LINK)
    assert "Closes" not in voice.pr_body(job(number=None), region="", link=LINK)
    assert "unverified" in voice.receipts(job(), [], tree_sha=TREE)


def test_only_the_marked_region_is_rewritten() -> None:
    old, new = (voice.receipts(job(), [gate()], tree_sha=tree) for tree in ("a" * 40, "c" * 40))
    body = voice.pr_body(job(), region=old, link=LINK)
    edited = "A person's words.\n" + body + "\nMore words, <!-- mosaic:receipts --> too.\n"
    assert voice.replace_receipts(edited, new) == edited.replace(old, new)
    assert voice.replace_receipts(voice.replace_receipts(edited, new), old) == edited
    assert voice.replace_receipts("Mine alone.\n", new) == "Mine alone.\n\n" + new
    half = "Mine. <!-- mosaic:receipts --> and no end"
    assert voice.replace_receipts(half, new) == half + "\n\n" + new
    assert voice.replace_receipts("", new) == new


@given(st.text(), st.text())
def test_what_people_wrote_around_the_region_survives(before: str, after: str) -> None:
    old, new = (voice.receipts(job(), [], tree_sha=tree) for tree in ("a", "c"))
    assert voice.replace_receipts(before + old + after, new) == before + new + after


@pytest.mark.parametrize(
    ("issue_title", "draft", "expected"),
    [
        ("Parser drops\nthe last byte", True, "WIP: Parser drops the last byte"),
        ("wip: [WIP] Draft: a", False, "a"),
        ("WIP: a", True, "WIP: a"),
        ("closes #5, acme/x!6 [skip ci] https://x.y/a", False, "closes 5, acme/x 6 x.y/a"),
        ("a\u202eb\u200bc", False, "a b c"),
        ("\n", False, "Changes by Mosaic"),
        ("é" * 300, False, "é" * 254 + "…"),
        ("é" * 300, True, "WIP: " + "é" * 249 + "…"),
    ],
)
def test_titles(issue_title: str, draft: bool, expected: str) -> None:
    assert voice.pr_title(issue_title, draft) == expected


def test_an_unverified_title_says_so() -> None:
    assert voice.pr_title("a", True, unverified=True) == "WIP: [unverified] a"
    assert voice.pr_title("", False, job=42) == "Changes of job 42"


def test_commit_message() -> None:
    summary = "Keep the last byte [ci skip], closes #5\n\nCo-authored-by: eve <eve@x.y>"
    assert voice.commit_message(job(), summary, noreply="noreply.git.test") == (
        "Keep the last byte , closes 5 Co-authored-by: eve <eve@x.y>\n"
        "\n"
        "[skip ci]\n"
        "\n"
        "Mosaic-Job: 42\n"
        "Co-authored-by: alice <5+alice@noreply.git.test>\n"
    )
    assert voice.commit_message(job(requester="api:ci"), "", skip_ci=False) == "Changes of job 42\n\nMosaic-Job: 42\n"
    assert "evil" not in voice.commit_message(job(requester="gitea:a>\nevil: x"), "s")
    assert len(voice.commit_message(job(), "x" * 500).split("\n")[0]) == 72


def test_status_descriptions_fit() -> None:
    assert voice.status_description(gate(counts={"tests": 1})) == "passed in 3.2s: 1 test"
    red = gate(passed=False, counts={"tests": 40, "failures": 1, "errors": 1}, why="x\n" * 300)
    assert voice.status_description(red).startswith("failed in 3.2s: exit code 1, 2 of 40 tests failed. x x")
    assert len(voice.status_description(red)) == 255
    assert voice.status_description(gate(passed=False, timed_out=True, why="")) == "failed in 3.2s: time limit reached"
    assert voice.status_description(gate(passed=False, exit_code=None, why="")) == "failed in 3.2s: no exit code"


def test_numbers() -> None:
    assert [duration(n) for n in (0, 59.4, 60, 3599, 3661, -5)] == ["0s", "59s", "1m 00s", "59m 59s", "1h 01m", "0s"]
    assert [brief_duration(n) for n in (0.04, 9.94, 9.96, 61)] == ["0.0s", "9.9s", "10s", "1m 01s"]
    assert [short(n) for n in (0, 999, 1000, 31_400, 999_499, 999_500, 1_250_000)] == [
        "0",
        "999",
        "1k",
        "31k",
        "999k",
        "1.0M",
        "1.2M",
    ]


# ---------------------------------------------------------------- strangers

HOSTILE = st.one_of(
    markdown,
    st.text(max_size=80),
    st.lists(
        st.sampled_from(
            [
                "@mosaic cancel",
                "@eve",
                "\n",
                "`",
                "```",
                "|",
                "closes #5",
                "<!-- /mosaic:receipts -->",
                "</details>",
                "![x](http://e.vil/)",
                "\\",
                " ",
                "&#64;",
                "text",
            ]
        ),
        max_size=12,
    ).map("".join),
)


def every_text(words: str) -> list[str]:
    """Every text that leaves us, with a stranger's words wherever there is room for any."""
    stranger = job(detail=words, requester=f"api:{words}", branch=words, pull_request=57, tokens=5)
    named = dataclasses.replace(stranger, requester="gitea:alice", reason="gates_failed")
    red = gate("test", False, output=words, why=words, command=words, counts={"tests": 2, "failures": 1})
    steps = [
        step("runner.setup", "failed", detail=words),
        step("weaver.implement", "running"),
        dataclasses.replace(step("runner.commit"), name=words),
        dataclasses.replace(step("inspector.gate.test"), name=f"inspector.gate.{words}"),
    ]
    region = voice.receipts(
        stranger, [red], tree_sha=words, specs=[GateSpec("g", "test", "x", source=f"detected:{words}")]
    )
    return [
        voice.status_comment(
            stranger, steps, link=LINK, progress={"tool": words, "path": words, "calls": 1}, gates=[red]
        ),
        voice.status_comment(named, steps, link=LINK),
        voice.closing_comment(
            named, gates=[red], link=LINK, findings=[Finding("name", words, words)], excluded=[(words, words)]
        ),
        voice.closing_comment(dataclasses.replace(named, reason="nothing_to_do"), link=LINK),
        voice.refusal("refused", words),
        voice.did_you_mean([DidYouMean(words[:200], f"@mosaic cancel {words}"[:200])]),
        voice.why_reply(stranger, [Event("1", 42, 1, "job.created", NOW, words, words, {})], LINK),
        voice.pr_body(named, region=region, files=[Change(words, "M", "", "", "", "")], summary=words, link=LINK),
        voice.commit_message(named, words),
        voice.pr_title(words, True),
    ]


@settings(max_examples=150)
@given(HOSTILE)
def test_no_words_of_a_stranger_mention_or_command_anyone(words: str) -> None:
    texts = every_text(words)
    for text in texts:
        assert parse(text) == ()
    for text in texts[:8]:
        seen = prose(normalise(text)).replace(BLOCK, " ").replace(ZERO, "")
        assert "@" not in seen.replace("@alice", "", 1)
        assert "#5" not in seen.replace("#57", "")


@given(HOSTILE)
def test_no_words_of_a_stranger_end_the_receipts_or_forge_a_trailer(words: str) -> None:
    texts = every_text(words)
    assert texts[7].count("<!-- mosaic:receipts -->") == texts[7].count("<!-- /mosaic:receipts -->") == 1
    assert texts[8].split("\n")[1:] == [
        "",
        "[skip ci]",
        "",
        "Mosaic-Job: 42",
        "Co-authored-by: alice <5+alice@noreply.localhost>",
        "",
    ]
    assert "\n" not in texts[9]
    assert len(texts[9]) <= 255


@given(st.text())
def test_titles_hold_no_reference(words: str) -> None:
    seen = title(f"closes #5 {words} fixes !6 http://x")
    assert "#5" not in seen
    assert "!6" not in seen
    assert "://" not in seen or "http" not in seen


def test_no_text_names_a_machine_or_an_account_on_one() -> None:
    """`mosaic show` does; those who read the forge are not those who run Mosaic."""
    inner = "ci-runner-7f3a"
    placed = {
        "host": inner, "requester": "cli:ops-jane", "metadata": {"continues": {"job": 41, "host": inner}},
        "trigger": dataclasses.replace(TRIGGER, kind="cli", actor="ops-jane"),
    }  # fmt: skip
    events = [
        Event("1", 42, 1, "job.created", NOW, "cli:ops-jane", None, {"host": inner}),
        Event("2", 42, 2, "host.lost", NOW, "system:stitcher", None, {"host": inner, "to": f"{inner}-b"}),
    ]
    steps = plan(step("runner.admit", host=inner), step("weaver.implement", "failed", host=inner, detail="boom"))
    texts = []
    for state in JobStatus:
        reasons = [code for code, reason in REASONS.items() if reason.status is state] or [None]
        for one in (job(status=state, reason=reason, **placed) for reason in reasons):
            texts += [
                voice.status_comment(one, steps, link=LINK),
                voice.closing_comment(one, link=LINK, kept=2),
                voice.status_reply([one]),
                voice.why_reply(one, events, LINK),
                voice.cancel_reply(one),
                voice.retry_reply(one),
                voice.continue_reply(one, gone=True),
                voice.pr_body(one, region="", files=[], changed=(0, 0, 0), summary="", link=LINK),
                voice.commit_message(one, "x"),
            ]
    for text in texts:
        assert inner not in text and "ops-jane" not in text
    assert "the request of the operator" in texts[0] and "`job.created` by the operator" in texts[3]
