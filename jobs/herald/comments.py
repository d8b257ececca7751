"""Comments and reactions: one status and one closing comment per job, found again by id, then by signed marker."""

from __future__ import annotations

import hashlib

from app import queries
from app.clients.gitea_types import Comment
from app.ledger import effects
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
    """The status comment of a job, rendered from its steps as they are now.

    A retry takes the comment over. The job before it writes there no more: when it has ended it keeps silent, and one
    that still works goes on in a comment of its own.
    """
    job, effect = delivery.job, delivery.effect
    assert job is not None
    known, result = effect["external_id"], effect["result"]
    taken = queries.successor(effect, known)
    if taken and job.status.terminal:
        return known, {}
    body = _status_text(delivery, job)
    digest = hashlib.sha256(body.encode()).hexdigest()
    if known and not taken and result.get("sha256") == digest and effect["told"] >= result.get("doubt", 0):
        return known, {}
    known = None if taken else known or _taken_over(delivery)
    external_id = put(delivery, body, "status", f"job-{job.id}", known)
    newer = queries.successor(effect, external_id)
    if newer:  # it took the comment while we wrote: our text is not to stay
        effects.doubt(newer)
    return external_id, {"sha256": digest}


def _status_text(delivery: Delivery, job: Job) -> str:
    return status_comment(
        job,
        queries.steps(job.id),
        link=job_link(delivery, job),
        waiting=queries.waiting_for(job.id),
        progress=queries.progress(job.id),
        gates=queries.gate_results(job.id),
        bot=bot_name(),
    )


def tell_closing(delivery: Delivery) -> Outcome:
    """The closing comment, or the refusal of a job that was never admitted."""
    job = delivery.job
    assert job is not None
    known = delivery.effect["external_id"]
    return put(delivery, closing_text(delivery, job), "closing", f"job-{job.id}", known), {}


def closing_text(delivery: Delivery, job: Job) -> str:
    if job.base_sha is None and job.reason is not None and job.reason != "cancelled_by_user":
        said, who = refusal(job.reason, job.detail, bot_name()), _to_mention(job)
        return f"@{who} {said}" if who else said  # who asked from the command line has no account there
    made = next(
        (
            step.output
            for step in reversed(queries.steps(job.id))
            if step.name == "runner.commit" and "files" in step.output
        ),
        {},
    )
    seconds = ((job.finished_at or queries.now()) - job.created_at).total_seconds()
    return closing_comment(
        job,
        gates=queries.gate_results(job.id),
        pull_url=str(job.metadata.get("pull_url", "")),
        changed=(made.get("files", 0), made.get("added", 0), made.get("removed", 0)),
        seconds=seconds,
        link=job_link(delivery, job),
        findings=findings_of(job),
        excluded=_excluded(job),
        kept=saved.files if (saved := queries.saved_work(job.id)) else 0,
        bot=bot_name(),
        mention=bool(_to_mention(job)),
    )


def _to_mention(job: Job) -> str:
    """Who is to hear of the end. Not from the command line, where nobody has an account there; nor a bot, which might
    take it for a request.
    """
    return "" if queries.asked_by_bot(job.id) else login(job)


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
    effect = delivery.effect
    owner = f"delivery-{effect['delivery_id']}"
    return put(delivery, delivery.target["body"], "reply", owner, effect["external_id"]), {}


def job_link(delivery: Delivery, job: Job) -> str:
    return f"{delivery.clients.settings.base_url}/jobs/{job.id}"


def bot_name() -> str:
    return queries.self_login() or "mosaic"


def _taken_over(delivery: Delivery) -> str | None:
    """The status comment of the job that this one retries; it is ours before we write there."""
    job = delivery.job
    before = queries.effect(f"job:{job.retry_of}:status") if job and job.retry_of else None
    if before is None or before["external_id"] is None:
        return None
    effects.adopt(delivery.effect, before["external_id"])
    return str(before["external_id"])


def put(delivery: Delivery, body: str, kind: str, owner: str, known: str | None) -> str:
    """Write a comment so that exactly one is there, whatever was cut off where; its id."""
    sign = _sign(delivery, kind, owner)
    text = f"{delivery.clients.redactor.text(body)}\n\n{sign}"
    return delivery.in_repository(lambda repository: _converge(delivery, repository, text, sign, known))


def _sign(delivery: Delivery, kind: str, owner: str) -> str:
    target = delivery.target
    return marker(delivery.clients.settings.secret_key, target["repository_id"], target["number"], kind, owner)


def _converge(delivery: Delivery, repository: str, text: str, sign: str, known: str | None) -> str:
    if known:
        delivery.fence()
        if delivery.forge.edit_comment(repository, int(known), text) is not None:
            return known
    found = _ours(delivery, repository, sign)
    delivery.fence()
    if found:
        if found[0].body != text:
            delivery.forge.edit_comment(repository, found[0].id, text)
        kept = found[0].id
    else:
        kept = delivery.forge.create_comment(repository, delivery.target["number"], text).id
    return str(_only_one(delivery, repository, sign, kept))


def only_comment(delivery: Delivery) -> str | None:
    """The id of the comment that is left after a look for copies; None when none is there any more.

    It is not made again: who deleted it meant it. A status comment that shows an older text is told once more.
    """
    effect, job = delivery.effect, delivery.job
    kind = str(effect["kind"]).removeprefix("comment.")
    sign = _sign(delivery, kind, f"job-{job.id}" if job else f"delivery-{effect['delivery_id']}")

    def look(repository: str) -> Comment | None:
        return next(iter(_without_copies(delivery, repository, sign)), None)

    left = delivery.in_repository(look)
    if left and kind == "status" and job:
        text = f"{delivery.clients.redactor.text(_status_text(delivery, job))}\n\n{sign}"
        if left.body != text:
            effects.doubt(effect)
    return str(left.id) if left else None


def _ours(delivery: Delivery, repository: str, sign: str) -> list[Comment]:
    """Comments by the bot that carry this marker, oldest first; not one that is known to be another thing's own.

    Who may write to a repository can edit the bot's comments and put another one's marker there.
    """
    self_id = queries.self_id()
    comments = delivery.forge.comments(repository, delivery.target["number"])
    signed = [one for one in comments if one.user.id == self_id and one.body.rstrip().endswith(sign)]
    others = queries.owned_by_others(delivery.effect, [str(one.id) for one in signed]) if signed else frozenset()
    return sorted((one for one in signed if str(one.id) not in others), key=lambda one: one.id)


def _without_copies(delivery: Delivery, repository: str, sign: str) -> list[Comment]:
    """Delete all but the oldest; what is left of them."""
    found = _ours(delivery, repository, sign)
    for extra in found[1:]:
        delivery.forge.delete_comment(repository, extra.id)
    return found[:1]


def _only_one(delivery: Delivery, repository: str, sign: str, kept: int) -> int:
    """Look again after the write: another worker, frozen between its look and its write, may have written too."""
    left = _without_copies(delivery, repository, sign)
    return left[0].id if left else kept
