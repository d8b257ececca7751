"""Jobs from the command line: list, show, submit, cancel, retry."""

from __future__ import annotations

import argparse
import getpass
import json
import uuid
from datetime import UTC, datetime

from app import queries, stitcher
from app.cli.base import Commands, add, count, forge_of, job_of, opened, operator
from app.gitea_events import text_hash
from app.ledger.chain import stamp, transaction
from app.neutral import plain
from app.types import REASONS, Job, MosaicError, Trigger
from app.waiting import Waiting


def add_to(commands: Commands[argparse.ArgumentParser]) -> None:
    listing = add(commands, "jobs", cmd_jobs)
    listing.add_argument("--repository", help="owner/name")
    listing.add_argument("--limit", type=count, default=20, help="how many, from 1")
    add(commands, "show", cmd_show).add_argument("job", type=int)
    add(commands, "cancel", cmd_cancel).add_argument("job", type=int)
    add(commands, "retry", cmd_retry).add_argument("job", type=int)
    submit = add(commands, "submit", cmd_submit)
    submit.add_argument("repository", help="owner/name")
    submit.add_argument("--issue", type=int)
    submit.add_argument("--priority", type=int, default=0)
    submit.add_argument("instructions", nargs="*")


def cmd_jobs(arguments: argparse.Namespace) -> int:
    """List the newest jobs."""
    with opened():
        found = queries.jobs(repository=arguments.repository, limit=arguments.limit)
        waits = queries.waiting_of([job.id for job in found])
        for job in found:
            print(_line(job, waits.get(job.id)))
    return 0


def _line(job: Job, waits: Waiting | None) -> str:
    where = f"{job.repository}#{job.number}" if job.number else job.repository
    place = f" ({waits.position}. in the queue)" if waits and waits.position else ""
    state, note = job.status.value + place, f"  {waits.note}" if waits else ""
    return f"{job.id:>6}  {state:<28} {job.reason or '':<20} {where}  {job.requester}{note}"


def why(job: Job) -> list[str]:
    """Reason, cause, what is particular to this job, and what to do next."""
    if not job.reason:
        return []
    reason = REASONS[job.reason]
    lines = [("why", f"{reason.cause} ({reason.code})"), ("", plain(job.detail)), ("next", reason.next_action)]
    return [f"  {name:<5} {text}" for name, text in lines if text]


def cmd_show(arguments: argparse.Namespace) -> int:
    """Show a job: plan, steps, receipts, reason, events."""
    with opened() as settings:
        job = job_of(arguments.job)
        waits = queries.waiting_for(job.id)
        print(_line(job, None))
        print(f"        {settings.base_url}/jobs/{job.id}")
        if job.host:
            print(f"  host  {job.host}")
        if waits:
            print(f"  waits {waits.sentence} ({waits.code})")
        for line in why(job):
            print(line)
        saved = queries.saved_work(job.id)
        if saved:
            lines = f"+{saved.added} -{saved.removed} lines"
            print(f"  kept  {saved.files} files, {lines}, on {saved.host}: `mosaic continue {job.id}`")
        for step in queries.steps(job.id):
            print(f"  {step.status.value:<10} {step.key:<32} {step.reason}")
        for round, gate in queries.all_gate_results(job.id):
            print(
                f"  gate  round {round} {gate.name:<16} {'green' if gate.passed else 'red':<6} "
                f"{gate.seconds:.1f} s  {plain(gate.why)}"
            )
        print(f"  used  {job.tokens} tokens, {job.cost_usd:.4f} USD")
        for event in queries.events(job.id)[-15:]:
            print(
                f"  {event.seq:>4} {stamp(event.at)} {event.kind:<22} {event.step or '':<28} "
                f"{json.dumps(dict(event.data))[:100]}"
            )
    return 0


def cmd_cancel(arguments: argparse.Namespace) -> int:
    """Stop a job."""
    with opened():
        job = job_of(arguments.job)
        if not stitcher.cancel(job.id, operator()):
            print(f"Job {job.id} is {job.status.value}; there is nothing to stop.")
            return 1
        print(f"Job {job.id} is being stopped.")
    return 0


def cmd_retry(arguments: argparse.Namespace) -> int:
    """Run a finished job again, on the same branch and pull request."""
    with opened():
        job = job_of(arguments.job)
        if not job.status.terminal:
            raise MosaicError(f"Job {job.id} is still {job.status.value}.", code="not_finished")
        # The request stays the first person's: the operator only starts it again.
        new = stitcher.retry(
            job,
            actor=operator(),
            actor_id=job.requester_id,
            login=job.trigger.actor,
            key=uuid.uuid4().hex,
            permission=job.trigger.permission,
            at=datetime.now(UTC).isoformat(),
        )
        print(f"Job {new} runs job {job.id} again.")
    return 0


def cmd_submit(arguments: argparse.Namespace) -> int:
    """Start a job from here: mosaic submit owner/name --issue 42 what to do."""
    with opened() as settings:
        forge = forge_of(settings)
        repository = forge.repository(arguments.repository)
        if repository is None:
            raise MosaicError(f"{arguments.repository} is not visible to the bot.", code="not_found")
        text = " ".join(arguments.instructions)
        if not text and arguments.issue is None:
            raise MosaicError("Say what to do, or name an issue with --issue.", code="nothing_asked")
        trigger = Trigger(
            kind="cli",
            repository_id=repository.id,
            repository=repository.full_name,
            number=arguments.issue,
            is_pull=False,
            object_id=0,
            actor_id=0,
            actor=getpass.getuser(),
            text=text,
            text_sha256=text_hash(text),
            at=datetime.now(UTC).isoformat(),
        )
        with transaction():
            job = stitcher.submit(
                trigger,
                trigger_key=f"cli:{uuid.uuid4().hex}",
                instructions=text,
                requester=operator(),
                priority=arguments.priority,
            )
        print(f"Job {job}: {settings.base_url}/jobs/{job}")
    return 0
