"""`mosaic blame`: from a commit back to who asked, what the agent was told, and what judged it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from app import queries
from app.clients.git import Git
from app.ledger.chain import stamp
from app.paths import Paths
from app.types import Job, MosaicError

_RECEIPT = ("name", "command", "passed", "exit_code", "why", "tree_sha")
_TRAILER = re.compile(r"^Mosaic-Job:[ ]*([0-9]{1,18})[ ]*$", re.MULTILINE)


def blame(text: str, paths: Paths, base_url: str) -> dict[str, Any]:
    """Everything that is known about a commit. `text` = 4 to 64 hexadecimal digits.

    MosaicError: `bad_commit`, `ambiguous_commit`, `not_mosaics`.
    """
    prefix = text.lower()
    if not re.fullmatch(r"[0-9a-f]{4,64}", prefix):
        raise MosaicError(f"{text!r} is no commit: give 4 to 40 hexadecimal digits of it.", code="bad_commit")
    found = queries.commits(prefix)
    shas = sorted({row["sha"] for row in found})
    if len(shas) > 1:
        raise MosaicError(f"{text} is the begin of several commits: {', '.join(shas)}.", code="ambiguous_commit")
    if not found:
        return _by_trailer(prefix, paths, base_url)
    job = queries.job(found[0]["job_id"])
    assert job is not None
    how = "Mosaic made and pushed it." if found[0]["pushed"] else "Mosaic made it in a round and did not push it."
    return {"commit": shas[0], "how": how, "also_jobs": [row["job_id"] for row in found[1:]], **story(job, base_url)}


def _by_trailer(sha: str, paths: Paths, base_url: str) -> dict[str, Any]:
    """A commit that somebody else made of Mosaic's: a squashed merge keeps the trailer in its message."""
    for repository in queries.repositories():
        git = Git(paths.mirror(repository["id"]), None)
        try:
            named = _TRAILER.findall(git.message(sha)) if len(sha) in (40, 64) and git.mirror.exists() else []
        except MosaicError:
            continue
        job = queries.job(int(named[-1])) if named else None
        if job is not None and job.repository_id == repository["id"]:
            how = "Somebody else made it; its message names this job, and messages can say anything."
            return {"commit": sha, "how": how, "also_jobs": [], **story(job, base_url)}
    more = "" if len(sha) in (40, 64) else " Give all its digits to have the commit messages searched as well."
    raise MosaicError(f"{sha} is not a commit of Mosaic's, as far as this Mosaic knows.{more}", code="not_mosaics")


def story(job: Job, base_url: str) -> dict[str, Any]:
    """Who asked, what was seen, by which rules, what judged, what came of it."""
    events = queries.events(job.id, limit=1_000_000)
    body = queries.snapshot(job.id) or {}
    steps = queries.steps(job.id)
    return {
        "job": job.id,
        "url": f"{base_url}/jobs/{job.id}",
        "repository": job.repository,
        "status": job.status.value,
        "reason": job.reason,
        "asked": {
            "by": job.requester,
            "at": job.trigger.at,
            "where": job.trigger.url or f"{job.trigger.kind} ({job.repository}#{job.number})",
            "text": job.instructions,
            "text_sha256": job.trigger.text_sha256,
            "retry_of": job.retry_of,
        },
        "rights": [{**event.data, "when": stamp(event.at)} for event in events if event.kind == "authz.checked"],
        "context": {
            "sha256": queries.snapshot_sha256(job.id),
            "comments": len(body.get("comments", ())),
            "excluded": list(body.get("excluded", ())),
        },
        "rules": {
            "base": job.base_sha,
            "default_branch": job.default_branch,
            "sha256": next((step.output.get("rules_sha256") for step in steps if step.name == "runner.admit"), None),
            "gates": [gate.name for gate in queries.gates(job.id)],
        },
        "agent": [
            {"step": step.key, **{name: step.output.get(name) for name in ("session", "tool_calls", "seconds")}}
            for step in steps
            if step.name == "weaver.implement" and step.output.get("session")
        ],
        "rounds": max((step.round for step in steps), default=0),
        "tokens": job.tokens,
        "cost_usd": job.cost_usd,
        "gates": [
            {
                "round": round,
                **{name: asdict(gate)[name] for name in ("name", "command", "passed", "exit_code", "why", "tree_sha")},
            }
            for round, gate in queries.all_gate_results(job.id)
        ],
        "approvals": [
            {"kind": event.kind, "by": event.actor, **event.data}
            for event in events
            if event.kind.startswith("approval.")
        ],
        "branch": job.branch,
        "pull_request": {"number": job.pull_request, "url": job.metadata.get("pull_url", "")},
        "ledger": {"events": len(events), "anchor": _anchor(job.id, len(events))},
    }


def _anchor(job_id: int, seq: int) -> dict[str, Any] | None:
    row = queries.anchor_of(job_id, seq)
    return {**row, "at": stamp(row["at"])} if row else None


def told(found: dict[str, Any]) -> Iterator[str]:
    """The same for a person, line by line."""
    asked, context, rules = found["asked"], found["context"], found["rules"]
    yield f"commit    {found['commit']}"
    yield f"          {found['how']}"
    yield f"job       {found['job']} ({found['status']}, {found['reason']})  {found['url']}"
    yield f"asked     by {asked['by']} at {asked['at']}: {asked['where']}"
    yield f"          {asked['text']!r} (sha256 {asked['text_sha256']})"
    if asked["retry_of"]:
        yield f"          a repetition of job {asked['retry_of']}"
    for right in found["rights"]:
        may = "allowed" if right.get("allowed") else "not allowed"
        has = f"{right.get('login')} has {right.get('permission')} (says {right.get('source')})"
        yield f"rights    {has}: {may}, {right['when']}"
    yield f"context   sha256 {context['sha256']}, {context['comments']} comments"
    for one in context["excluded"]:
        yield f"          not shown: {one['what']} ({one['why']})"
    yield f"rules     of {rules['default_branch']} at {rules['base']} (sha256 {rules['sha256']})"
    for run in found["agent"]:
        yield f"agent     {run['step']}: {run['session']}, {run['tool_calls']} tool calls, {run['seconds']} s"
    yield f"          {found['rounds']} rounds, {found['tokens']} tokens, {found['cost_usd']:.4f} USD"
    for gate in found["gates"]:
        colour = "green" if gate["passed"] else "red"
        yield f"gate      round {gate['round']} {gate['name']}: {colour} on tree {gate['tree_sha']}: {gate['command']}"
    for approval in found["approvals"]:
        yield f"approval  {approval['kind'].removeprefix('approval.')} by {approval['by']}"
    pull = found["pull_request"]
    yield f"branch    {found['branch']}" + (f", pull request #{pull['number']} {pull['url']}" if pull["number"] else "")
    anchor = found["ledger"]["anchor"]
    covered = f"anchor {anchor['seq']} of {anchor['at']}" if anchor else "no anchor yet"
    yield f"ledger    {found['ledger']['events']} events, {covered}"
