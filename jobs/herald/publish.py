"""herald.publish: push the judged commit, open the pull request, set the statuses. In this order, each exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app import authority, disk, queries
from app.context import Context
from app.ledger import carried, effects
from app.outcome import reason_of
from app.pipeline import on_files, plan
from app.types import Done, Failed, HandBack, LostLease, Permanent, Result, Transient
from app.voice_pr import status_description
from jobs.herald.deliver import carry_out, later


def publish(context: Context) -> Result:
    """Done when branch and pull request are there; nothing is pushed whose tree the gates did not judge."""
    made = _made(context)
    if made is None:
        redo = on_files(plan(context.job.pipeline, context.gates))
        return HandBack("host_lost", "The commit is on a host that is gone; it is made once more.", 0.0, redo)
    refusal = _may_not(context, made)
    if refusal:
        return refusal
    if context.rules.bot.mode == "shadow":
        return Done(output={"shadow": True}, conclude="done")
    job = context.job
    place: dict[str, Any] = {"repository_id": job.repository_id, "repository": job.repository, "number": job.number}
    what = {**place, "branch": job.branch, "sha": made["commit"], "tree": made["tree"]}
    pushed = _carry(context, f"job:{job.id}:push", "push", what)
    if not isinstance(pushed, dict):
        return pushed
    _statuses(context, made["commit"], place)
    pull = _carry(context, f"job:{job.id}:pull", "pull_request", place)
    if not isinstance(pull, dict):
        return pull
    return Done(
        output={"pushed": pushed.get("outcome"), "pull_request": pull["number"], "url": pull["url"]},
        facts={
            "pull_request": pull["number"],
            "head_sha": made["commit"],
            "metadata": {**job.metadata, "pull_url": pull["url"]},
        },
        conclude="done",
    )


def _made(context: Context) -> Mapping[str, Any] | None:
    """The commit to be published. One that a lost host has made may be on the forge already; None when it is not."""
    elsewhere = context.made_elsewhere("runner.commit")
    if elsewhere is None:
        return context.output_of("runner.commit")
    git = context.clients.forge_git(context.job.repository_id, context.job.repository)
    git.fetch()
    return elsewhere if git.exists(elsewhere["commit"]) else None


def _may_not(context: Context, made: Any) -> Failed | None:
    """Before the push: every required gate is green on exactly this tree, and the person may still ask."""
    results = {gate.name: gate for gate in queries.gate_results(context.job.id)}
    for gate in context.gates:
        seen = results.get(gate.name)
        if gate.required and (seen is None or not seen.passed or seen.tree_sha != made["tree"]):
            return Failed("gates_failed", f"There is no green result of gate {gate.name} for the tree to be pushed.")
    return authority.still_allowed(context)


def _carry(context: Context, key: str, kind: str, target: dict[str, Any]) -> dict[str, Any] | Result:
    """Plan an effect (once), carry it out now under its own fence; its result."""
    carried.plan_for(context.row, key, kind, target)
    known = queries.effect(key)
    assert known is not None
    same = known["target"].get("sha") == target.get("sha")
    if known["state"] == "done" and same:
        before = {**known["result"], "external_id": known["external_id"]}
        if kind == "push" and not _recorded(context, before["sha"]):  # a worker was lost between the push and its event
            _record(context, kind, before, target)
        return before
    if not same:  # the host that made the other commit is gone; it may have pushed it with its last breath
        target = {**target, "earlier": [*known["target"].get("earlier", ()), known["target"]["sha"]]}
    if known["state"] == "failed" or not same:
        carried.plan_for(context.row, key, kind, target, anew=True)
    effect = effects.claim(known["id"], context.clients.worker.id)
    if effect is None:
        return HandBack("forge_unavailable", f"{key} is held by another worker or not due yet.", 5.0)
    try:
        result = carry_out(effect, context.clients)
    except LostLease as lost:  # of the effect, not of the step
        return HandBack("forge_unavailable", str(lost), 5.0)
    except Transient as error:
        return HandBack("forge_unavailable", str(error), later(effect, error))
    except Permanent as error:
        effects.fail(effect, str(error), error.code)
        return Failed(reason_of(error), str(error))
    except Exception as error:
        if disk.full(error):  # the step waits for space; let it have its effect again then
            effects.postpone(effect, 1.0, str(error), "disk_full", unsure=True)
        raise
    _record(context, kind, result, target)
    return result


def _recorded(context: Context, sha: str) -> bool:
    found = queries.events(context.job.id, limit=1_000_000)
    return any(event.kind == "git.pushed" and event.data.get("sha") == sha for event in found)


def _record(context: Context, kind: str, result: dict[str, Any], target: dict[str, Any]) -> None:
    if kind == "push":
        said = {name: result[name] for name in ("branch", "sha", "outcome")}
        context.event("git.pushed", **said, tree=target["tree"])
    else:
        again = context.job.pull_request == result["number"]
        context.event("pr.updated" if again else "pr.opened", number=result["number"], url=result["url"])


def _statuses(context: Context, sha: str, place: dict[str, Any]) -> None:
    """A status per gate and one for the job, on the pushed commit; they are carried out on the side."""
    job, link = context.job, f"{context.settings.base_url}/jobs/{context.job.id}"
    for gate in queries.gate_results(job.id):
        target = {
            **place,
            "sha": sha,
            "context": f"mosaic/{gate.name}",
            "url": link,
            # Gitea counts a `warning` as a failure of the whole commit, and an optional gate is none.
            "state": "failure" if gate.required and not gate.passed else "success",
            "description": status_description(gate),
        }
        effects.plan_once(f"job:{job.id}:status:{gate.name}:{sha[:12]}", "commit.status", target, job_id=job.id)
    effects.plan_once(
        f"job:{job.id}:status:job:{sha[:12]}",
        "commit.status",
        {
            **place,
            "sha": sha,
            "context": "mosaic/job",
            "url": link,
            "state": "success",
            "description": f"Job {job.id}: all gates are green",
        },
        job_id=job.id,
    )
