"""What the pages show, worked out from frozen values: pure functions, no database, no HTML.

One rule: it orders and names; text of strangers goes on as it is and is made harmless where the templates write it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from app.neutral import plain
from app.types import Job, JobStatus, Phase, Step, StepStatus
from app.voice_format import duration, login, one_line, outcome, reason_of
from app.waiting import Waiting

AGENT, GATE = "weaver.", "inspector.gate."
_LABELS = {  # step: (its name, what is being done while it runs)
    "runner.admit": ("Request checked", "Checking the request"),
    "runner.snapshot": ("Context gathered", "Gathering the context"),
    "runner.checkout": ("Worktree prepared", "Preparing the worktree"),
    "runner.setup": ("Setup", "Running the setup commands"),
    "weaver.implement": ("Implementation", "The agent is at work"),
    "runner.commit": ("Commit", "Committing the change"),
    "inspector.policy": ("Policy", "Checking the policy"),
    "herald.publish": ("Pull request", "Opening the pull request"),
    "herald.report": ("Report", "Reporting the result"),
    "runner.cleanup": ("Cleanup", "Cleaning up"),
}
_JOB_TONES = {
    JobStatus.COMPLETED: "ok",
    JobStatus.FAILED: "bad",
    JobStatus.CANCELLED: "off",
    JobStatus.WAITING: "ask",
    JobStatus.RUNNING: "run",
}


@dataclass(frozen=True, slots=True)
class Bar:
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class State:
    """A job in calm words. `tone` names colour and icon: idle | run | ask | ok | bad | off."""

    tone: str
    words: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One job in a list."""

    job: Job
    state: State
    bar: Bar | None


@dataclass(frozen=True, slots=True)
class Group:
    key: str
    title: str
    lines: tuple[Line, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Forge:
    """Addresses on the forge, made by us alone. `base` "" = not known: nothing is linked."""

    base: str

    def repository(self, job: Job) -> str:
        return f"{self.base}/{quote(job.repository)}" if self.base else ""

    def source(self, job: Job) -> str:
        kind = "pulls" if job.trigger.is_pull else "issues"
        return f"{self.repository(job)}/{kind}/{job.number}" if self.base and job.number else ""

    def pull(self, job: Job) -> str:
        return f"{self.repository(job)}/pulls/{job.pull_request}" if self.base and job.pull_request else ""

    def branch(self, job: Job) -> str:
        return f"{self.repository(job)}/src/branch/{quote(job.branch)}" if self.base and job.branch else ""


# ---------------------------------------------------------------- small words


def label(name: str) -> str:
    """A step's name for a person: `Gate test`, `Setup`."""
    return f"Gate {name.removeprefix(GATE)}" if name.startswith(GATE) else _LABELS.get(name, (name, name))[0]


def flat(text: str, limit: int) -> str:
    """Words of strangers on one line, without what hides or colours, at most `limit` characters."""
    return one_line(plain(text[: limit * 20]), limit)


def title(job: Job) -> str:
    first = next((line for line in job.instructions.splitlines() if line.strip()), "")
    return flat(job.trigger.issue_title or first, 160) or f"Job {job.id}"


def place(job: Job) -> str:
    return f"{job.repository}#{job.number}" if job.number else job.repository


def requester(job: Job) -> str:
    return login(job) or job.requester


def ago(then: datetime, now: datetime) -> str:
    """`just now`, `40 s ago`, `12 min ago`, `3 h ago`, `5 days ago`."""
    seconds = max(0, int((now - then).total_seconds()))
    if seconds < 10:
        return "just now"
    if seconds < 60:
        return f"{seconds} s ago"
    if seconds < 3600:
        return f"{seconds // 60} min ago"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h ago"
    return f"{seconds // 86400} days ago"


def utc(moment: datetime, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return moment.astimezone(UTC).strftime(form)


def spans(text: str) -> list[tuple[str, bool]]:
    """A sentence of ours cut at its backticks: (piece, whether it is code)."""
    return [(piece, index % 2 == 1) for index, piece in enumerate(text.split("`")) if piece]


def facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The data of an event as short (name, value) pairs; what is empty is left out."""
    return [(key, _value(value)) for key, value in data.items() if value not in (None, "", [], {})]


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return flat(text, 240)


def taken(job: Job, now: datetime) -> float | None:
    """Seconds a job has run; None before it began and while it waits for a person."""
    begin = job.started_at or (job.created_at if job.finished_at else None)
    if job.status is JobStatus.WAITING:
        return None
    return ((job.finished_at or now) - begin).total_seconds() if begin else None


# ---------------------------------------------------------------- the state of a job


def newest(steps: Iterable[Step]) -> list[Step]:
    """The last step of each name, in plan order."""
    last: dict[str, Step] = {}
    for step in steps:
        known = last.get(step.name)
        if known is None or (step.round, step.attempt) > (known.round, known.attempt):
            last[step.name] = step
    return sorted(last.values(), key=lambda step: (step.order, step.name))


def bar(steps: Sequence[Step]) -> Bar:
    rows = newest(steps)
    return Bar(sum(step.status.terminal for step in rows), len(rows))


def state(job: Job, steps: Sequence[Step], now: datetime, *, waits: Waiting | None = None) -> State:
    """A job's state in words; `waits` = what it waits for now."""
    reason = reason_of(job)
    if reason:
        verb = {JobStatus.COMPLETED: "Done", JobStatus.CANCELLED: "Cancelled"}.get(reason.status, "Stopped")
        verb = {"answered": "Answered", "nothing_to_do": "Nothing to do"}.get(reason.code, verb)
        return State(_JOB_TONES[outcome(job)], verb, "" if job.status.terminal else _doing(steps, now, "Finishing"))
    if job.cancel_requested:
        return State("off", "Stopping", "Someone asked to stop the job")
    if job.status is JobStatus.WAITING:
        return State("ask", "Waits for a person", "Answer in the issue to go on")
    note = waits.note if waits else ""
    if job.status is JobStatus.QUEUED:
        place = f"Queued, position {waits.position}" if waits and waits.position else "Queued"
        return State("idle", place, note or "Starts in a moment")
    if job.status is JobStatus.PENDING:
        return State("idle", "Received", note or _doing(steps, now, "Checked in a moment"))
    if job.status is JobStatus.RUNNING:
        return State("run", "Working", note or _doing(steps, now, "Between two steps"))
    return State(_JOB_TONES[job.status], job.status.value.capitalize())


def _doing(steps: Sequence[Step], now: datetime, otherwise: str) -> str:
    """What happens now, in a few words."""
    rows = newest(steps)
    running = [step for step in rows if step.status is StepStatus.RUNNING]
    gates = [step.name.removeprefix(GATE) for step in running if step.name.startswith(GATE)]
    if gates:
        return f"Running {'gate' if len(gates) == 1 else 'gates'} {', '.join(gates)}"
    if running:
        return _LABELS.get(running[0].name, ("", running[0].name))[1]
    open_steps = (step for step in rows if step.status is StepStatus.PENDING and step.phase is not Phase.CLEANUP)
    following = next(open_steps, None)
    if following is None:
        return otherwise
    if following.run_after and following.run_after > now:
        wait = duration((following.run_after - now).total_seconds())
        return f"{label(following.name)} is tried again in {wait}"
    if following.name.startswith(AGENT):
        return "Waiting for a free agent"
    if following.name.startswith((GATE, "runner.setup")):
        return "Waiting for a free place to run gates"
    return otherwise


def groups(
    running: Sequence[Job],
    queue: Sequence[Job],
    pending: Sequence[Job],
    waiting: Sequence[Job],
    recent: Sequence[Job],
    steps: Mapping[int, tuple[Step, ...]],
    totals: Mapping[str, int],
    now: datetime,
    waits: Mapping[int, Waiting],
) -> tuple[Group, ...]:
    """The lists of the first page; a list without jobs is left out."""

    def lines(jobs: Sequence[Job], with_bar: bool = False) -> tuple[Line, ...]:
        return tuple(
            Line(
                job,
                state(job, steps.get(job.id, ()), now, waits=waits.get(job.id)),
                bar(steps.get(job.id, ())) if with_bar else None,
            )
            for job in jobs
        )

    places = tuple(Line(job, state(job, (), now, waits=waits.get(job.id)), None) for job in queue)
    last = sorted(recent, key=lambda job: job.finished_at or job.created_at, reverse=True)
    found = (
        Group("ask", "Needs you", lines(waiting), totals.get("waiting", 0)),
        Group("run", "Running", lines(running, True), totals.get("running", 0)),
        Group("queue", "Queued", (*places, *lines(pending)), totals.get("queued", 0) + totals.get("pending", 0)),
        Group("recent", "Recent", lines(last), len(last)),
    )
    return tuple(group for group in found if group.lines)
