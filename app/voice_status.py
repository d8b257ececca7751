"""The status comment of a job: one text that is rendered anew from the job's steps whenever one of them changes.

One rule: what is shown is what the steps say; nothing here is decided by the agent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from app.types import GateResult, Job, JobStatus, Step, StepStatus, Verb, since_loss
from app.voice_format import (
    addressed,
    code,
    command,
    counts,
    duration,
    joined_lines,
    outcome,
    plural,
    reason_of,
    requester,
    said,
    short,
    spent,
)
from app.waiting import Waiting

_ICONS = {
    StepStatus.PENDING: "⏳",
    StepStatus.RUNNING: "▶️",
    StepStatus.COMPLETED: "✅",
    StepStatus.FAILED: "❌",
    StepStatus.SKIPPED: "⏭️",
    StepStatus.CANCELLED: "⏹️",
}
_LABELS = {
    "runner.admit": "Request checked",
    "runner.snapshot": "Context gathered",
    "runner.checkout": "Worktree prepared",
    "runner.setup": "Setup",
    "weaver.implement": "Implementation",
    "runner.commit": "Commit",
    "inspector.policy": "Policy",
    "herald.publish": "Pull request",
}
_GATE = "inspector.gate."
_AGENT = "weaver."
_LOOP = ("weaver.implement", "runner.commit", "inspector.policy")  # with the gates: one set per round
_HOUSEKEEPING = ("runner.keep", "herald.report", "runner.cleanup")  # shown only when they fail
_PASSING = ("next", "backing_off", "person")  # said elsewhere in the comment, or over before it is read
_WAITS = {  # what a step that was handed back waits for
    "engine_unavailable": "waits for the agent engine; Mosaic tries again by itself",
    "forge_unavailable": "waits for Gitea; Mosaic tries again by itself",
    "database_unavailable": "waits for Mosaic's database; Mosaic tries again by itself",
    "host_lost": "goes on elsewhere: the machine with its files is gone",
    "worker_stopped": "goes on with another worker",
    "disk_full": "waits for space on the disk of Mosaic's machine (the operator makes room: `mosaic gc`); "
    "Mosaic tries again by itself",
}


def status_comment(
    job: Job,
    steps: Sequence[Step],
    *,
    link: str,
    waiting: Waiting | None = None,
    progress: Mapping[str, Any] | None = None,
    gates: Sequence[GateResult] = (),
    bot: str = "mosaic",
) -> str:
    """The whole comment as Markdown.

    `link` = address of the job's page; `waiting` = what it waits for now; `progress` = the running agent step's
    newest `step.progress`: {tool, path, calls, tokens, idle_seconds}; `gates` = the results
    of the newest round.
    """
    shown = [step for step in _newest(steps) if step.name not in _HOUSEKEEPING or step.status is StepStatus.FAILED]
    rounds = max((step.round for step in shown), default=1)
    return joined_lines(
        f"{_header(job, steps, waiting.position if waiting else None)} — [live view]({link}) · job {job.id}"
        + (f" · round {rounds}" if rounds > 1 else ""),
        _waits(waiting, bot),
        _restarted(job),
        "\n".join(_rows(shown, rounds, progress or {}, gates)),
        _result(job),
        _particulars(job, shown),
        _footer(job, bot),
    )


def _waits(waiting: Waiting | None, bot: str) -> str:
    return addressed(f"Waits: {waiting.sentence}", bot) if waiting and waiting.code not in _PASSING else ""


def _restarted(job: Job) -> str:
    """After the loss of the machine with the job's files."""
    if "restarted" not in job.metadata or job.status.terminal:
        return ""
    lost = since_loss(job.metadata)[0] - 1
    work = f"what was done in {plural(lost, 'round')}" if lost else "what was done"
    count = "; its rounds count from there" if lost else ""
    return f"The machine with the files was lost, and {work} with it. The agent starts again from the beginning{count}."


def _newest(steps: Sequence[Step]) -> list[Step]:
    """The last attempt of each step, in the order in which a person reads the job: the loop round by round."""
    last: dict[tuple[str, int], Step] = {}
    for step in steps:
        known = last.get((step.name, step.round))
        if known is None or (step.attempt, step.id) > (known.attempt, known.id):
            last[step.name, step.round] = step
    loop = [step.order for step in last.values() if _in_loop(step)]
    start, end = min(loop, default=0), max(loop, default=0)

    def place(step: Step) -> tuple[int, int, int, str]:
        section = 1 if _in_loop(step) else 0 if step.order < start else 2 if step.order > end else 1
        return section, step.round if section == 1 else 0, step.order, step.name

    return sorted(last.values(), key=place)


def _in_loop(step: Step) -> bool:
    return step.name in _LOOP or step.name.startswith(_GATE)


def _header(job: Job, steps: Sequence[Step], queue_position: int | None) -> str:
    who = requester(job)
    state = outcome(job)
    if state is JobStatus.COMPLETED:
        return f"**Mosaic finished the request of {who}{_time(job, steps, ' in ')}**"
    if state is JobStatus.FAILED:
        return f"**Mosaic stopped the request of {who}{_time(job, steps, ' after ')}**"
    if state is JobStatus.CANCELLED:
        return f"**The request of {who} was cancelled{_time(job, steps, ' after ')}**"
    if state is JobStatus.WAITING:
        return f"**Mosaic waits for a person on the request of {who}**"
    if state is JobStatus.QUEUED:
        position = f", position {queue_position}" if queue_position else ""
        return f"**The request of {who} is queued{position}**"
    if state is JobStatus.PENDING:
        return f"**Mosaic received the request of {who}**"
    return f"**Mosaic is working on the request of {who}**"


def _time(job: Job, steps: Sequence[Step], word: str) -> str:
    ends = [step.finished_at for step in steps if step.finished_at and step.name not in _HOUSEKEEPING]
    end = job.finished_at or max(ends, default=None)
    begin = job.started_at or job.created_at
    return f"{word}{duration((end - begin).total_seconds())}" if end else ""


def _rows(steps: Sequence[Step], rounds: int, progress: Mapping[str, Any], gates: Sequence[GateResult]) -> list[str]:
    rows: list[str] = []
    for is_gate, group in groupby(steps, key=lambda step: step.name.startswith(_GATE) and step.round):
        members = list(group)
        if is_gate:
            results = {gate.name: gate for gate in gates} if members[0].round == rounds else {}
            rows.append(_gate_row(members, rounds, results))
        else:
            rows += [_row(step, rounds, progress) for step in members]
    return rows


def _row(step: Step, rounds: int, progress: Mapping[str, Any]) -> str:
    text = f"- {_ICONS[step.status]} {_LABELS.get(step.name) or code(step.name)}{_round(step, rounds)}"
    if step.attempt > 1:
        text += f" · attempt {step.attempt}"
    if step.status is StepStatus.RUNNING and step.name.startswith(_AGENT):
        return text + _live(progress)
    if step.status is StepStatus.PENDING and step.faults and step.reason in _WAITS:
        return f"{text}: {_WAITS[step.reason]}"
    if step.status in (StepStatus.FAILED, StepStatus.SKIPPED) and step.detail:
        return f"{text}: {said(step.detail, 160)}"
    return text


def _round(step: Step, rounds: int) -> str:
    return f" · round {step.round}" if rounds > 1 and step.name.startswith((_AGENT, _GATE)) else ""


def _live(progress: Mapping[str, Any]) -> str:
    """`: 12 tool calls, last `edit src/x.py`, 31k tokens`."""
    parts = []
    if isinstance(progress.get("calls"), int):
        parts.append(plural(progress["calls"], "tool call"))
    last = " ".join(str(progress[key]) for key in ("tool", "path") if progress.get(key))
    if last:
        parts.append(f"last {code(last, 120)}")
    if isinstance(progress.get("tokens"), int):
        parts.append(f"{short(progress['tokens'])} tokens")
    idle = progress.get("idle_seconds")
    if isinstance(idle, int | float) and idle >= 30:
        parts.append(f"quiet for {duration(idle)}")
    return ": " + ", ".join(parts) if parts else ""


def _gate_row(steps: Sequence[Step], rounds: int, results: Mapping[str, GateResult]) -> str:
    gates = " · ".join(_gate(step, results.get(step.name.removeprefix(_GATE))) for step in steps)
    return f"- {_ICONS[_together(steps)]} Gates{_round(steps[0], rounds)}: {gates}"


def _together(steps: Sequence[Step]) -> StepStatus:
    """The state of gates that run side by side, as one."""
    states = {step.status for step in steps}
    for state in (StepStatus.FAILED, StepStatus.RUNNING, StepStatus.CANCELLED):
        if state in states:
            return state
    if StepStatus.PENDING in states:
        return StepStatus.RUNNING if StepStatus.COMPLETED in states else StepStatus.PENDING
    return StepStatus.COMPLETED if StepStatus.COMPLETED in states else StepStatus.SKIPPED


def _gate(step: Step, result: GateResult | None) -> str:
    text = f"{said(step.name.removeprefix(_GATE), 60)} {_ICONS[step.status]}"
    counted = counts(result) if result and step.status.terminal else ""
    return f"{text} ({counted})" if counted else text


def _result(job: Job) -> str:
    reason = reason_of(job)
    parts = [f"{reason.cause} (`{reason.code}`)"] if reason else []
    where = [f"pull request #{job.pull_request}"] if job.pull_request else []
    where += [f"branch {code(job.branch)}"] if job.pull_request and job.branch else []
    return " ".join([*parts, " · ".join(where)]).strip()


def _particulars(job: Job, shown: Sequence[Step]) -> str:
    """What is particular to this end, where no failed step above says it."""
    told = any(step.status is StepStatus.FAILED and step.detail for step in shown)
    return "" if told or outcome(job) is JobStatus.COMPLETED else said(job.detail, 300)


def _footer(job: Job, bot: str) -> str:
    reason = reason_of(job)
    if reason is None:
        return f"To stop: {command(Verb.CANCEL, bot)}"
    if reason.status is JobStatus.COMPLETED:
        return spent(job)
    return joined_lines(addressed(f"Next: {reason.next_action}" if reason.next_action else "", bot), spent(job))
