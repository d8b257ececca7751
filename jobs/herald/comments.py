"""Comments and reactions: one status and one closing comment per job, found again by id, then by signed marker."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from app import queries
from app.clients.gitea_types import Comment
from app.types import Finding, Job
from app.voice import closing_comment, refusal
from app.voice_format import login
from app.voice_status import status_comment
from jobs.herald.marker import marker
from jobs.herald.place import Delivery

Outcome = tuple[str, dict[str, object]]


def react(delivery: Delivery) -> Outcome:
    """👀 on a comment or an issue. Gitea answers 200 when it is there already."""
    target = delivery.target

    def call(repository: str) -> bool:
        delivery.fence()
        if target["comment_id"] is not None:
            return delivery.forge.react_comment(repository, target["comment_id"], target["content"])
        return delivery.forge.react_issue(repository, target["number"], target["content"])

    return target["content"], {"allowed": delivery.in_repository(call)}


def unlabel(delivery: Delivery) -> Outcome:
    """Take the one-shot label off again."""
    target = delivery.target

    def call(repository: str) -> bool:
        issue = delivery.forge.issue(repository, target["number"])
        label = (
            next((one for one in issue.labels if one.name.lower() == target["label"].lower()), None) if issue else None
        )
        if label is None:
            return False
        delivery.fence()
        return delivery.forge.remove_label(repository, target["number"], label.id)

    return target["label"], {"removed": delivery.in_repository(call)}


def tell_status(delivery: Delivery) -> Outcome:
    """The status comment of a job, rendered from its steps as they are now."""
    job = delivery.job
    assert job is not None
    body = status_comment(
        job,
        queries.steps(job.id),
        link=job_link(delivery, job),
        queue_position=queries.queue_position(job.id),
        progress=queries.progress(job.id),
        gates=queries.gate_results(job.id),
        bot=bot_name(),
    )
    digest = hashlib.sha256(body.encode()).hexdigest()
    known, told = delivery.effect["result"], delivery.effect["told"]
    if delivery.effect["external_id"] and known.get("sha256") == digest and told >= known.get("doubt", 0):
        return delivery.effect["external_id"], {}
    return put(delivery, body, "status", f"job-{job.id}", reuse=_earlier(job, "status")), {"sha256": digest}


def tell_closing(delivery: Delivery) -> Outcome:
    """The closing comment, or the refusal of a job that was never admitted."""
    job = delivery.job
    assert job is not None
    return put(delivery, closing_text(delivery, job), "closing", f"job-{job.id}"), {}


def closing_text(delivery: Delivery, job: Job) -> str:
    if job.base_sha is None and job.reason is not None and job.reason != "cancelled_by_user":
        said, who = refusal(job.reason, job.detail, bot_name()), login(job)
        return f"@{who} {said}" if who else said  # who asked from the command line has no account there
    made = next(
        (
            step.output
            for step in reversed(queries.steps(job.id))
            if step.name == "runner.commit" and "files" in step.output
        ),
        {},
    )
    seconds = (datetime.now(UTC) - job.created_at).total_seconds()
    return closing_comment(
        job,
        gates=queries.gate_results(job.id),
        pull_url=str(job.metadata.get("pull_url", "")),
        changed=(made.get("files", 0), made.get("added", 0), made.get("removed", 0)),
        seconds=seconds,
        link=job_link(delivery, job),
        findings=findings_of(job),
        excluded=_excluded(job),
        bot=bot_name(),
    )


def findings_of(job: Job) -> tuple[Finding, ...]:
    """What the policy step of the newest round objected to."""
    policies = [step for step in queries.steps(job.id) if step.name == "inspector.policy"]
    newest = max(policies, key=lambda step: (step.round, step.attempt), default=None)
    return tuple(Finding(**one) for one in newest.output.get("findings", ())) if newest else ()


def _excluded(job: Job) -> tuple[tuple[str, str], ...]:
    body = queries.snapshot(job.id) or {}
    return tuple((one["what"], one["why"]) for one in body.get("excluded", ()))


def tell_reply(delivery: Delivery) -> Outcome:
    """The answer to a command."""
    return put(delivery, delivery.target["body"], "reply", f"delivery-{delivery.effect['delivery_id']}"), {}


def job_link(delivery: Delivery, job: Job) -> str:
    return f"{delivery.clients.settings.base_url}/jobs/{job.id}"


def bot_name() -> str:
    return queries.self_login() or "mosaic"


def _earlier(job: Job, kind: str) -> str | None:
    """The comment of the job that this one retries: it is taken over."""
    before = queries.effect(f"job:{job.retry_of}:{kind}") if job.retry_of else None
    return before["external_id"] if before else None


def put(delivery: Delivery, body: str, kind: str, owner: str, reuse: str | None = None) -> str:
    """Write a comment so that exactly one is there, whatever was cut off where; its id."""
    target = delivery.target
    sign = marker(delivery.clients.settings.secret_key, target["repository_id"], target["number"], kind, owner)
    text = f"{delivery.clients.redactor.text(body)}\n\n{sign}"
    return delivery.in_repository(lambda repository: _converge(delivery, repository, text, reuse))


def _converge(delivery: Delivery, repository: str, text: str, reuse: str | None) -> str:
    known = delivery.effect["external_id"] or reuse
    if known:
        delivery.fence()
        if delivery.forge.edit_comment(repository, int(known), text) is not None:
            return str(known)
    sign = text.rsplit("\n", 1)[1]
    found = _ours(delivery, repository, sign)
    delivery.fence()
    if found:
        if found[0].body != text:
            delivery.forge.edit_comment(repository, found[0].id, text)
        kept = found[0].id
    else:
        kept = delivery.forge.create_comment(repository, delivery.target["number"], text).id
    return str(_only_one(delivery, repository, sign, kept))


def _ours(delivery: Delivery, repository: str, sign: str) -> list[Comment]:
    """Comments by the bot that carry this marker, oldest first."""
    self_id = queries.self_id()
    comments = delivery.forge.comments(repository, delivery.target["number"])
    return sorted(
        (one for one in comments if one.user.id == self_id and one.body.rstrip().endswith(sign)), key=lambda one: one.id
    )


def _only_one(delivery: Delivery, repository: str, sign: str, kept: int) -> int:
    """Look again after the write: another worker, frozen between its look and its write, may have written too."""
    found = _ours(delivery, repository, sign)
    for extra in found[1:]:
        delivery.forge.delete_comment(repository, extra.id)
    return found[0].id if found else kept
