"""Every sentence that a person reads from us on the forge: pure functions from facts to Markdown.

One rule: a bare mention of ourselves never stands outside a code span, for our own comments come back as webhooks.
No machine is named, nor an account on one: those who read here are not those who run it.
The texts of pull requests, commits and statuses are in app.voice_pr, the status comment in app.voice_status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.grammar import FORMS
from app.neutral import fenced
from app.types import REASONS, DidYouMean, Event, Finding, GateResult, Job, JobStatus, Reason, Verb
from app.voice_format import (
    addressed,
    bullets,
    code,
    command,
    counts,
    duration,
    joined_lines,
    login,
    mark,
    outcome,
    plural,
    reason_of,
    said,
    spent,
    verdict,
    who,
)
from app.voice_pr import commit_message as commit_message
from app.voice_pr import pr_body as pr_body
from app.voice_pr import pr_title as pr_title
from app.voice_pr import receipts as receipts
from app.voice_pr import replace_receipts as replace_receipts
from app.voice_pr import status_description as status_description
from app.voice_status import status_comment as status_comment
from app.waiting import Waiting

_OUTPUT_LINES = 10  # of a red gate, in the closing comment
_OUTPUT_CHARACTERS = 2_000
_EVENTS = 10  # that `why` shows

_HELP = {
    Verb.FIX: "Work on this issue. Without a text, the issue itself is the task.",
    Verb.STATUS: "What runs here, and how far it is.",
    Verb.CANCEL: "Stop the job; nothing that is already pushed is touched.",
    Verb.RETRY: "Start a job that ended once more, on the same branch and pull request.",
    Verb.CONTINUE: "Go on from the work that was kept of a job that was stopped; the text adds to the request.",
    Verb.WHY: "Why a job waits or ended: reason, cause, what to do next, and its last events.",
    Verb.PAUSE: "Let no new job start in this repository; for its administrators.",
    Verb.RESUME: "Let jobs start again.",
    Verb.HELP: "This table.",
}


# ---------------------------------------------------------------- the closing comment


def closing_comment(
    job: Job,
    *,
    gates: Sequence[GateResult] = (),
    pull_url: str = "",
    changed: tuple[int, int, int] = (0, 0, 0),
    seconds: float = 0.0,
    link: str,
    findings: Sequence[Finding] = (),
    excluded: Sequence[tuple[str, str]] = (),
    kept: int = 0,
    bot: str = "mosaic",
    mention: bool = True,
) -> str:
    """The one comment at the end. It mentions the requester, because edits of a comment notify nobody.

    `changed` = (files, lines added, lines removed); `seconds` = how long the job took; `link` = the job's page;
    `excluded` = (what, why) pairs that the agent was not shown; `kept` = files changed in the work that was saved;
    `mention` = whether it is addressed to who asked.
    """
    name = login(job) if mention else ""
    success = outcome(job) is JobStatus.COMPLETED
    body = _success(job, gates, pull_url, changed) if success else _failure(job, gates, findings, bot)
    facts = [f"took {duration(seconds)}", spent(job), f"[job {job.id}]({link})"]
    return joined_lines(
        f"@{name} {body}" if name else body,
        _kept(kept, bot),
        _excluded(excluded),
        _capital(" · ".join(fact for fact in facts if fact)),
    )


def _kept(files: int, bot: str) -> str:
    if not files:
        return ""
    one = files == 1
    return (
        f"{plural(files, 'file')} changed so far {'is' if one else 'are'} kept. {command(Verb.CONTINUE, bot)} goes on "
        "from there."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _success(job: Job, gates: Sequence[GateResult], pull_url: str, changed: tuple[int, int, int]) -> str:
    reason = reason_of(job) or REASONS["done"]
    if not pull_url:
        detail = fenced(job.detail, _OUTPUT_CHARACTERS) if job.detail.strip() else ""
        return joined_lines(f"{reason.cause} (`{reason.code}`)", detail, reason.next_action)
    number = f" #{job.pull_request}" if job.pull_request else ""
    files, added, removed = changed
    what = f"{plural(files, 'file')} changed, +{added} −{removed}." if files else ""
    return joined_lines(f"Done: [pull request{number}]({pull_url}) is ready for your review.", what, _gate_line(gates))


def _gate_line(gates: Sequence[GateResult]) -> str:
    if not gates:
        return "No gate ran: the change is **unverified**."
    parts = []
    for gate in gates:
        counted = counts(gate)
        parts.append(f"{mark(gate.passed, gate.required)} {said(gate.name, 60)}" + (f" ({counted})" if counted else ""))
    return "Gates: " + " · ".join(parts)


def _failure(job: Job, gates: Sequence[GateResult], findings: Sequence[Finding], bot: str) -> str:
    reason = reason_of(job) or REASONS["internal_error"]
    red = [gate for gate in gates if not gate.passed and gate.required]
    cancelled = reason.status is JobStatus.CANCELLED
    return joined_lines(
        f"Mosaic {'was stopped' if cancelled else 'stopped'}: {reason.cause} (`{reason.code}`)",
        _next(reason, bot),
        _findings(findings) or _detail(job.detail),
        *(_red_gate(gate) for gate in red),
    )


def _next(reason: Reason | None, bot: str) -> str:
    """What to do now; it stands above the output, which it calls "below"."""
    return addressed(f"**Next:** {reason.next_action}", bot) if reason and reason.next_action else ""


def _detail(text: str) -> str:
    if not text.strip():
        return ""
    return fenced(text.strip(), _OUTPUT_CHARACTERS) if "\n" in text.strip() else said(text, 500)


def _findings(findings: Sequence[Finding]) -> str:
    rows = (f"{code(finding.path)}: {said(finding.detail)} (`{finding.rule}`)" for finding in findings)
    return bullets(rows, 10, len(findings))


def _red_gate(gate: GateResult) -> str:
    """A red gate with the last lines of its output, folded away."""
    summary = ", ".join(filter(None, (verdict(gate), counts(gate))))
    lines = [line for line in gate.output.splitlines() if line.strip()][-_OUTPUT_LINES:]
    return joined_lines(
        f"<details><summary>❌ {said(gate.name, 60)}: {summary}</summary>",
        said(gate.why),
        f"Command: {code(gate.command)}",
        fenced("\n".join(lines), _OUTPUT_CHARACTERS) if lines else "It printed nothing.",
        "</details>",
    )


def _excluded(excluded: Sequence[tuple[str, str]]) -> str:
    if not excluded:
        return ""
    rows = (f"{said(what, 120)}: {said(why, 160)}" for what, why in excluded)
    return joined_lines(
        f"<details><summary>Not shown to the agent: {plural(len(excluded), 'item')}</summary>",
        bullets(rows, 10, len(excluded)),
        "</details>",
    )


# ---------------------------------------------------------------- answers to commands


def refusal(code_: str, detail: str = "", bot: str = "mosaic") -> str:
    """Why a request was not accepted: `code_` of REASONS, and what is particular to this case."""
    reason = REASONS.get(code_, REASONS["refused"])
    return joined_lines(
        f"Not started: {reason.cause} (`{reason.code}`)",
        _next(reason, bot),
        _detail(detail),
    )


def did_you_mean(items: Sequence[DidYouMean], bot: str = "mosaic") -> str:
    """Asks about lines that start like a command and do not fit it."""
    rows = [
        f"{code(item.line)}: did you mean {code(item.suggestion)}? If it is a task, write "
        f"{code(f'@{bot} fix {item.line}')}."
        for item in items[:10]
    ]
    head = "I did not start anything, because I am not sure what was meant."
    return joined_lines(head, bullets(rows, 10, len(items)), f"All commands: {command(Verb.HELP, bot)}")


def not_yet(verb: Verb, bot: str = "mosaic") -> str:
    """A verb that is understood and whose function this version does not have."""
    return f"{command(verb, bot)} is not available in this version of Mosaic. Nothing was started. {_all(bot)}"


def _all(bot: str) -> str:
    return f"What works: {command(Verb.HELP, bot)}"


def help_text(bot: str = "mosaic") -> str:
    """The verbs that act, with their form."""
    rows = [f"| `@{bot} {verb} {FORMS[verb]}".rstrip() + f"` | {text} |" for verb, text in _HELP.items()]
    return joined_lines(
        "\n".join(["| Command | What it does |", "|---|---|", *rows]),
        "One command per line. Anything else that is addressed to me is taken as a task. "
        "Mentions in code, quotes and links are ignored.",
    )


def status_reply(
    jobs: Sequence[Job], base_url: str = "", bot: str = "mosaic", *, waits: Mapping[int, Waiting] | None = None
) -> str:
    """The jobs of an issue, the open ones first, and what those wait for that wait."""
    if not jobs:
        return f"There is no job here. Start one with `@{bot} fix`."
    ordered = sorted(jobs, key=lambda job: (job.status.terminal, -job.id))
    rows = (_job_row(job, base_url, _waits((waits or {}).get(job.id), bot)) for job in ordered)
    return bullets(rows, 10, len(ordered))


def _waits(waiting: Waiting | None, bot: str) -> str:
    return addressed(waiting.sentence, bot) if waiting else ""


def _job_row(job: Job, base_url: str, waits: str = "") -> str:
    name = f"[job {job.id}]({base_url}/jobs/{job.id})" if base_url else f"job {job.id}"
    reason = reason_of(job)
    state = f"{job.status} (`{reason.code}`)" if reason else f"{job.status}"
    parts = [
        f"{name}: {state}",
        waits.rstrip("."),
        f"pull request #{job.pull_request}" if job.pull_request else "",
        spent(job),
    ]
    return " · ".join(part for part in parts if part)


def why_reply(
    job: Job, events: Sequence[Event], link: str = "", bot: str = "mosaic", *, waiting: Waiting | None = None
) -> str:
    """Reason, cause, next action and the last events (given in order, oldest first); while it waits, what for."""
    reason = reason_of(job)
    head = f"[Job {job.id}]({link})" if link else f"Job {job.id}"
    state = f"{head}: {reason.cause} (`{reason.code}`)" if reason else f"{head} is {job.status}."
    rows = [_event_row(event) for event in events[-_EVENTS:]]
    return joined_lines(
        state,
        _waits(waiting, bot),
        _next(reason, bot),
        _detail(job.detail),
        "Last events:\n" + "\n".join(rows) if rows else "",
    )


def _event_row(event: Event) -> str:
    where = f" {code(event.step)}" if event.step else ""
    return f"- `{event.at:%H:%M:%S}` `{event.kind}`{where} by {who(event.actor)}"


def cancel_reply(job: Job | None, bot: str = "mosaic") -> str:
    """`job` = the job that is being cancelled; None when none was found."""
    if job is None:
        return f"There is no open job here to cancel. Name one: `@{bot} cancel <job>`."
    if job.status.terminal:
        return f"Job {job.id} has already ended: {job.status}{_because(job)}."
    return f"Stopping job {job.id}. Its status comment says when it has stopped."


def _because(job: Job) -> str:
    return f" (`{job.reason}`)" if job.reason in REASONS else ""


def retry_reply(job: Job | None, new: Job | None = None, bot: str = "mosaic") -> str:
    """`job` = the job to be retried, None when none was found; `new` = the job that retries it."""
    if job is None:
        return f"There is no ended job here to retry. Start one with `@{bot} fix`."
    if new is None:
        return f"Job {job.id} is still {job.status}. Wait for its end, or stop it first: `@{bot} cancel {job.id}`."
    return f"Job {new.id} retries job {job.id}, on the same branch and pull request."


def continue_reply(
    job: Job | None, new: Job | None = None, *, files: int = 0, gone: bool = False, bot: str = "mosaic"
) -> str:
    """`job` = the job to go on from, None when none was found; `new` = the job that does it, `files` = what it finds.

    Without `new`: the job is open still, or nothing of it is kept; `gone` = it lies on a machine that is not there.
    """
    if job is None:
        return f"There is no ended job here to continue. Start one with `@{bot} fix`."
    if new is not None:
        return f"Job {new.id} goes on from what job {job.id} had done: {plural(files, 'changed file')}."
    if not job.status.terminal:
        return f"Job {job.id} is still {job.status}. Wait for its end, or stop it first: `@{bot} cancel {job.id}`."
    if gone:
        why = f"What job {job.id} had done is kept on a machine where no Mosaic runs now."
    else:
        why = f"Nothing of job {job.id} is kept."
    return f"{why} To start it again from the branch: `@{bot} retry {job.id}`"


def pause_reply(repository: str, paused: bool, changed: bool, *, elsewhere: str = "", bot: str = "mosaic") -> str:
    """`paused` = whether it is paused now; `elsewhere` = who else's pause still holds, that this command cannot end."""
    where = code(repository)
    if elsewhere:
        return f"{where} stays paused: {elsewhere}"
    if paused:
        state = "is paused" if changed else "is paused already"
        return f"{where} {state}: requests are taken and wait, what runs goes on. `@{bot} resume` lets new jobs start."
    return f"{where} goes on." if changed else f"{where} was not paused."


def joined(job: Job) -> str:
    """A new request while `job` is open: it becomes part of it."""
    return f"Job {job.id} is already at work here: your request joins its next round."


def queued_behind(job: Job) -> str:
    """A new request while `job` is open: it waits for its end."""
    return f"Job {job.id} is already at work here: your request is queued and starts when that job has ended."
