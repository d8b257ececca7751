"""Branch, pull request, commit statuses: all are found again by name, so that a crash anywhere leaves one of each."""

from __future__ import annotations

from typing import Any

from app import queries
from app.clients.gitea_types import PullRequest
from app.rules import Rules
from app.stitcher.decide import latest
from app.types import Job, Permanent
from app.voice_pr import pr_body, pr_title, receipts, replace_receipts
from jobs.herald.comments import Outcome, job_link
from jobs.herald.place import Delivery


class Conflict(Permanent):
    """The branch holds commits that are not Mosaic's."""

    code = "conflict"


def push(delivery: Delivery) -> Outcome:
    """Push one commit to one branch, over nothing but what Mosaic itself pushed there before."""
    target, job = delivery.target, delivery.job
    assert job is not None
    sha, branch = target["sha"], target["branch"]

    def call(repository: str) -> str:
        git = delivery.clients.forge_git(job.repository_id, repository, push=True)
        there = git.remote_head(branch)
        if there == sha:
            return "same"
        ours = {*queries.pushed_shas(job.repository_id, branch), *target.get("earlier", ())}
        if there is not None and there not in ours:
            raise Conflict(f"`{branch}` holds commits that are not Mosaic's.")
        delivery.fence()
        outcome = git.push(sha, branch, there)
        if outcome == "conflict" and git.remote_head(branch) != sha:
            raise Conflict(f"`{branch}` was changed by somebody else while Mosaic pushed.")
        return outcome

    return sha, {"sha": sha, "branch": branch, "outcome": delivery.in_repository(call)}


def pull_request(delivery: Delivery) -> Outcome:
    """Open the pull request, or renew the receipts of the one that is open on this branch."""
    job = delivery.job
    assert job is not None and job.branch and job.default_branch
    branch, base = job.branch, job.default_branch

    def call(repository: str) -> PullRequest:
        found = delivery.forge.find_pull(repository, branch, base)
        delivery.fence()
        if found is None:
            try:
                return delivery.forge.create_pull(repository, branch, base, _title(delivery, job), _body(delivery, job))
            except Permanent as error:
                if error.code != "exists":
                    raise
                found = delivery.forge.find_pull(repository, branch, base)
                if found is None:
                    raise
        if found.user.id != queries.self_id():
            raise Conflict(f"Pull request #{found.number} on `{branch}` was opened by {found.user.login}.")
        body = replace_receipts(found.body, _receipts(delivery, job))
        return found if body == found.body else delivery.forge.edit_pull(repository, found.number, body=body)

    def only_one(repository: str) -> PullRequest:
        return _without_copies(delivery, repository, branch, base) or made

    made = delivery.in_repository(call)
    pull = delivery.in_repository(only_one)
    return str(pull.number), {"number": pull.number, "url": pull.html_url}


def _without_copies(delivery: Delivery, repository: str, branch: str, base: str) -> PullRequest | None:
    """Look again after the write: of two that were opened at the same moment the older one stays open."""
    self_id = queries.self_id()
    ours = [one for one in delivery.forge.find_pulls(repository, branch, base) if one.user.id == self_id]
    for extra in ours[1:]:
        delivery.forge.close_pull(repository, extra.number)
    return ours[0] if ours else None


def only_pull(delivery: Delivery) -> str | None:
    """The number of the one that is left after a look for copies; None when none is open any more."""
    job = delivery.job
    assert job is not None and job.branch and job.default_branch
    branch, base = job.branch, job.default_branch
    left = delivery.in_repository(lambda repository: _without_copies(delivery, repository, branch, base))
    return str(left.number) if left else None


def _title(delivery: Delivery, job: Job) -> str:
    rules = Rules.from_json(dict(queries.rules(job.id) or {}))
    ungated = not any(gate.required for gate in queries.gates(job.id))
    said = delivery.clients.redactor.text(job.trigger.issue_title or job.instructions or f"Job {job.id}")
    return pr_title(said, rules.bot.draft, unverified=ungated, job=job.id)


def _body(delivery: Delivery, job: Job) -> str:
    made = _commit_output(job)
    git = delivery.clients.git(job.repository_id)
    text = next(
        (
            step.output.get("text", "")
            for step in reversed(queries.steps(job.id))
            if step.name == "weaver.implement" and step.output.get("text")
        ),
        "",
    )
    body = pr_body(
        job,
        region=_receipts(delivery, job),
        files=git.changes(made["start"], made["commit"]),
        changed=(made["files"], made["added"], made["removed"]),
        summary=text,
        link=job_link(delivery, job),
    )
    return delivery.clients.redactor.text(body)


def _receipts(delivery: Delivery, job: Job) -> str:
    made = _commit_output(job)
    steps = queries.steps(job.id)
    link = job_link(delivery, job)
    results = queries.gate_results(job.id)
    rounds = max(step.round for step in steps)
    newest = latest(steps)
    logs = {gate.name: f"{link}/steps/{newest[f'inspector.gate.{gate.name}'].key}/log" for gate in results}
    return delivery.clients.redactor.text(
        receipts(
            job,
            results,
            tree_sha=made["tree"],
            specs=queries.gates(job.id),
            logs=logs,
            rounds=rounds,
            seconds=((job.started_at and (made["at"] - job.started_at).total_seconds()) or 0.0),
        )
    )


def _commit_output(job: Job) -> dict[str, Any]:
    """What the newest commit step made, and when."""
    made = [step for step in queries.steps(job.id) if step.name == "runner.commit" and "commit" in step.output]
    newest = max(made, key=lambda step: (step.round, step.attempt))
    return {**newest.output, "at": newest.finished_at}


def set_status(delivery: Delivery) -> Outcome:
    """A commit status. Gitea appends; the newest of a context counts, so setting it twice does no harm."""
    target = delivery.target

    def call(repository: str) -> None:
        delivery.fence()
        delivery.forge.set_status(
            repository,
            target["sha"],
            target["context"],
            target["state"],
            delivery.clients.redactor.text(target["description"]),
            target["url"],
        )

    delivery.in_repository(call)
    return f"{target['context']}@{target['sha']}", {"state": target["state"]}
