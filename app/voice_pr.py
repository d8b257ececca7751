"""What stands on a pull request, on its commits and on their statuses.

One rule: people own the title and the body once they exist; only the marked region of receipts is rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.types import Change, GateResult, GateSpec, Job
from app.voice_format import (
    TITLE_LIMIT,
    brief_duration,
    bullets,
    cell,
    code,
    counts,
    duration,
    joined_lines,
    login,
    mark,
    one_line,
    plural,
    requester,
    said,
    spent,
    title,
    verdict,
)

START, END = "<!-- mosaic:receipts -->", "<!-- /mosaic:receipts -->"
SKIP_CI = "[skip ci]"  # as Gitea and its like read it, in the message of the last commit that is pushed
_FILES = 30  # changed files that the body names
_CHANGES = {"A": "added", "M": "changed", "D": "deleted", "T": "type changed"}


def pr_title(issue_title: str, draft: bool, *, unverified: bool = False, job: int | None = None) -> str:
    """At most 255 characters. Gitea knows drafts by the prefix `WIP: `; `unverified` = no gate has run."""
    prefix = ("WIP: " if draft else "") + ("[unverified] " if unverified else "")
    subject = title(issue_title, TITLE_LIMIT - len(prefix))
    return prefix + (subject or (f"Changes of job {job}" if job else "Changes by Mosaic"))


def pr_body(
    job: Job,
    *,
    region: str,
    files: Sequence[Change] = (),
    changed: tuple[int, int, int] = (0, 0, 0),
    summary: str = "",
    link: str,
) -> str:
    """The body of a new pull request; `region` = `receipts(…)`, `summary` = the agent's own words about its change."""
    closes = f"Closes #{job.number}" if job.number and not job.trigger.is_pull else ""
    return joined_lines(
        f"Requested by {requester(job)}, made by Mosaic in [job {job.id}]({link}). "
        "Nothing here was reviewed by a person yet.",
        closes,
        _summary(summary),
        _what_changed(files, changed),
        region,
        f"[What the agent saw, and what was left out]({link}#context)",
    )


def _summary(text: str) -> str:
    return f"The agent says: {said(text, 1000)}" if text.strip() else ""


def _what_changed(files: Sequence[Change], changed: tuple[int, int, int]) -> str:
    count, added, removed = changed
    count = count or len(files)
    if not count:
        return ""
    rows = (f"{code(change.path)} {_CHANGES.get(change.status, 'changed')}" for change in files)
    head = f"### What changed\n\n{plural(count, 'file')}, +{added} −{removed}"
    return joined_lines(head, bullets(rows, _FILES, count) if files else "")


def receipts(
    job: Job,
    gates: Sequence[GateResult],
    *,
    tree_sha: str,
    specs: Sequence[GateSpec] = (),
    logs: Mapping[str, str] | None = None,
    rounds: int = 1,
    seconds: float = 0.0,
) -> str:
    """The marked region: one line per gate as it was run on the tree `tree_sha`, and what the job has cost.

    `specs` = the effective gates (they say where each comes from); `logs` = gate name → address of its whole output.
    """
    facts = [plural(rounds, "round"), duration(seconds) if seconds else "", spent(job)]
    return joined_lines(
        f"{START}\n### Receipts",
        _table(gates, logs or {}) if gates else "No gate ran: this change is **unverified**.",
        f"Every gate ran on a clean checkout of the tree {code(tree_sha)}." if gates else "",
        _detected(specs),
        f"Job {job.id}: " + " · ".join(fact for fact in facts if fact) + f"\n{END}",
    )


def _table(gates: Sequence[GateResult], logs: Mapping[str, str]) -> str:
    head = "| Gate | Result | Command | Exit code | Time | Counted | Tree | Log |\n|---|---|---|---|---|---|---|---|"
    return "\n".join([head, *(_receipt(gate, logs.get(gate.name, "")) for gate in gates)])


def _receipt(gate: GateResult, log: str) -> str:
    name = said(gate.name, 60) + ("" if gate.required else " (optional)")
    exit_code = "–" if gate.exit_code is None else str(gate.exit_code)
    cells = (
        name,
        f"{mark(gate.passed, gate.required)} {'passed' if gate.passed else 'failed'}",
        code(gate.command, 120),
        "time limit" if gate.timed_out else exit_code,
        brief_duration(gate.seconds),
        counts(gate) or "–",
        code(gate.tree_sha[:12]) if gate.tree_sha else "–",
        f"[log]({log})" if log else "–",
    )
    return "| " + " | ".join(cell(text) for text in cells) + " |"


def _detected(specs: Sequence[GateSpec]) -> str:
    found = [(spec.name, spec.source.partition(":")[2]) for spec in specs if spec.source.startswith("detected:")]
    if not found:
        return ""
    names = ", ".join(f"{code(name)} from {code(source)}" for name, source in found)
    return f"The repository names no gates in `.mosaic.toml`; these were detected: {names}."


def replace_receipts(old_body: str, new_region: str) -> str:
    """`old_body` with its marked region replaced; everything that people wrote around it stays as it is.

    A body without a whole region (someone deleted a marker) gets the new one at its end.
    """
    start = old_body.find(START)
    end = old_body.find(END, start + len(START)) if start >= 0 else -1
    if end < 0:
        return joined_lines(old_body.rstrip(), new_region)
    return old_body[:start] + new_region + old_body[end + len(END) :]


def commit_message(job: Job, summary: str, *, noreply: str = "noreply.localhost", skip_ci: bool = True) -> str:
    """Subject, then trailers that name the job and the requester.

    `noreply` = the forge's no-reply mail domain; `skip_ci` puts `[skip ci]` above the trailers, since the forge's CI
    would run the agent's code with the forge's secrets.
    """
    subject = title(summary, 72) or f"Changes of job {job.id}"
    trailers = [f"Mosaic-Job: {job.id}"]
    who = login(job)
    if who:
        trailers.append(f"Co-authored-by: {who} <{job.requester_id}+{who}@{noreply}>")
    return joined_lines(subject, SKIP_CI if skip_ci else "", "\n".join(trailers)) + "\n"


def skips_ci(message: str) -> bool:
    """Whether the forge starts no CI for a push that ends in a commit with this message."""
    return SKIP_CI in message


def status_description(gate: GateResult) -> str:
    """The text of a commit status: plain, at most 255 characters."""
    word = "passed" if gate.passed else ("failed" if gate.required else "optional: failed")
    facts = ", ".join(filter(None, (verdict(gate) if not gate.passed else "", counts(gate))))
    text = f"{word} in {brief_duration(gate.seconds)}" + (f": {facts}" if facts else "")
    return one_line(text if gate.passed or not gate.why else f"{text}. {gate.why}", TITLE_LIMIT)
