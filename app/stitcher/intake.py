"""What was asked becomes work, once: a webhook tells it, or it is found by looking. Whichever comes first counts."""

from __future__ import annotations

from dataclasses import dataclass

from app import queries
from app.gitea_events import Request
from app.ledger import inbox
from app.ledger.chain import transaction
from app.queue import ring
from app.stitcher.advance import take_label_off
from app.stitcher.requests import acknowledge, same_click, submit
from app.types import Command, Pool, Verb

SOURCE = "gitea"  # of every delivery of the forge, however it reached us: that is what makes a request count once
POLL = "poll"
_MOST_COMMANDS = 10  # of one text that are answered


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a request: the stored delivery and the job that it made or belongs to."""

    delivery: int
    job: int | None


def floods(actor_id: int, most: int) -> bool:
    """Whether a person asks so much that even refusals would be spam: beyond this nothing is answered."""
    return max(queries.recently_asked(actor_id)) > most


def take(found: Request, delivery_id: str, event: str, body: bytes, *, via: str = "webhook") -> Taken | None:
    """Delivery and job commit together, or neither does. None: it is known by id or by meaning."""
    task = next(
        (command for command in found.commands if isinstance(command, Command) and command.verb is Verb.FIX), None
    )
    others = list(dict.fromkeys(command for command in found.commands if command is not task))[:_MOST_COMMANDS]
    with transaction():
        stored = inbox.receive(
            SOURCE,
            delivery_id,
            dedup_key=found.dedup_key,
            event=event[:80],
            state="command" if others else "job",
            body=body,
            trigger=found.trigger,
            commands=others,
            via=via,
        )
        if stored is None:
            if via == "webhook":
                inbox.confirm(SOURCE, found.dedup_key, found.trigger)
            return None
        job_id = _submit(task, found, stored, via) if task else None
        if others:
            acknowledge(found.trigger, f"delivery:{stored}:eyes", delivery_id=stored)
            ring(Pool.CONTROL, "runner.obey", stored)
    return Taken(stored, job_id)


def _submit(task: Command, found: Request, delivery: int, via: str) -> int | None:
    trigger = found.trigger
    other = same_click(trigger)
    if other is not None:
        inbox.attach(delivery, other.id, "job", f"part of the click that made job {other.id}")
        if trigger.kind == "labeled" and other.base_sha is not None:
            take_label_off(other.id, trigger.kind, trigger.repository_id, trigger.repository, trigger.number)
        return other.id
    job_id = submit(
        trigger,
        trigger_key=found.job_key,
        instructions=task.text,
        metadata={"found": via} if via == POLL else None,
    )
    if job_id is not None:
        inbox.note_job(delivery, job_id)
    return job_id
