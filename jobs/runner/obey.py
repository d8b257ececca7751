"""runner.obey: control commands act now: status, cancel, retry, why, help. One delivery in, one reply out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from app import authority, queries, stitcher, voice
from app.commands import LATER_VERBS
from app.context import Clients
from app.edge import UNAVAILABLE
from app.guard_rails import may
from app.ledger import effects, inbox
from app.ledger.chain import transaction
from app.queue import ring
from app.types import Command, DidYouMean, Job, Permanent, Pool, Transient, Trigger, Verb
from jobs.runner.evidence import verify

log = logging.getLogger("mosaic.runner")

NEEDS_WRITE = frozenset({Verb.CANCEL, Verb.RETRY})
_RETRY_SECONDS = 10.0
_MOST_TRIES = 10  # of a command that fails by a fault of ours


@dataclass(frozen=True, slots=True)
class Asked:
    """One delivery with control commands, checked against the forge."""

    delivery_id: int
    trigger: Trigger
    login: str
    permission: str | None
    bot: str
    base_url: str

    @property
    def actor(self) -> str:
        return f"gitea:{self.login}"


def obey(delivery_id: int, clients: Clients) -> None:
    """Answer a delivery once: the forge is asked first, then everything happens in one transaction."""
    row = queries.delivery(delivery_id)
    if row is None or row["state"] != "command":
        return
    try:
        _answer(row, *_checked(row, clients))
    except Transient as error:
        inbox.postpone(delivery_id, error.retry_after or _RETRY_SECONDS, str(error))
    except Permanent as error:
        log.warning("delivery %s cannot be answered: %s", delivery_id, error)
        inbox.attach(delivery_id, None, "failed", str(error))
    except UNAVAILABLE as error:
        inbox.postpone(delivery_id, _RETRY_SECONDS, str(error))
    except Exception as error:
        log.exception("the commands of delivery %s failed", delivery_id)
        if row["attempts"] + 1 >= _MOST_TRIES:
            inbox.attach(delivery_id, None, "failed", f"{type(error).__name__}: {error}")
        else:
            inbox.postpone(delivery_id, _RETRY_SECONDS * 2 ** row["attempts"], f"{type(error).__name__}: {error}")


def _answer(row: dict[str, Any], asked: Asked, refusal: str) -> None:
    delivery_id = row["id"]
    with transaction():
        if inbox.take_command(delivery_id) is None:
            return
        if refusal:
            inbox.attach(delivery_id, None, "answered", refusal)
            return
        replies = [_act(asked, command) for command in _commands(row)]
        inbox.attach(delivery_id, None, "answered")
        _reply(asked, "\n\n---\n\n".join(reply for reply in replies if reply))


def _commands(row: dict[str, Any]) -> list[Command | DidYouMean]:
    commands: list[Command | DidYouMean] = []
    for stored in row["commands"]:
        fields = {key: value for key, value in stored.items() if key != "type"}
        if stored["type"] == "DidYouMean":
            commands.append(DidYouMean(**fields))
        else:
            commands.append(Command(**{**fields, "verb": Verb(fields["verb"])}))
    return commands


def _checked(row: dict[str, Any], clients: Clients) -> tuple[Asked, str]:
    """Re-read the request; ("…", why) when it is not to be answered at all."""
    trigger = Trigger(**row["trigger"])
    forge = clients.forge
    assert forge is not None
    bot = queries.self_login() or "mosaic"
    nobody = Asked(row["id"], trigger, trigger.actor, None, bot, clients.settings.base_url)
    repository = forge.repository_by_id(trigger.repository_id)
    if repository is None or not clients.server.serves(repository.full_name):
        return nobody, "the repository is not served"
    why_not = verify(forge, repository.full_name, trigger, queries.self_id())
    if why_not:
        return nobody, why_not
    known = authority.ask(clients, repository.full_name, trigger.actor_id, trigger.actor, trigger.permission)
    return Asked(row["id"], trigger, known.login, known.permission, bot, clients.settings.base_url), ""


def _act(asked: Asked, command: Command | DidYouMean) -> str:
    if isinstance(command, DidYouMean):
        return voice.did_you_mean([command], asked.bot)
    if command.verb in LATER_VERBS:
        return voice.not_yet(command.verb, asked.bot)
    if command.verb in NEEDS_WRITE and not may(asked.permission):
        return voice.refusal("refused", f"`{command.verb}` needs write permission on this repository.", asked.bot)
    match command.verb:
        case Verb.HELP:
            return voice.help_text(asked.bot)
        case Verb.STATUS:
            return voice.status_reply(_jobs(asked, command), asked.base_url, asked.bot)
        case Verb.WHY:
            return _why(asked, command)
        case Verb.CANCEL:
            return _cancel(asked, command)
        case Verb.RETRY:
            return _retry(asked, command)
        case _:
            return voice.help_text(asked.bot)


def _jobs(asked: Asked, command: Command) -> tuple[Job, ...]:
    """The job that is named, if it belongs to this repository; else the jobs of this issue, newest first."""
    trigger = asked.trigger
    if command.job is not None:
        job = queries.job(command.job)
        return (job,) if job and job.repository_id == trigger.repository_id else ()
    return queries.issue_jobs(trigger.repository_id, trigger.number or 0, limit=10)


def _why(asked: Asked, command: Command) -> str:
    jobs = _jobs(asked, command)
    if not jobs:
        return voice.status_reply((), asked.base_url, asked.bot)
    job = jobs[0]
    return voice.why_reply(job, queries.events(job.id)[-10:], f"{asked.base_url}/jobs/{job.id}", asked.bot)


def _cancel(asked: Asked, command: Command) -> str:
    jobs = _jobs(asked, command)
    job = next((one for one in jobs if not one.status.terminal), jobs[0] if command.job and jobs else None)
    if job is not None and not job.status.terminal:
        stitcher.cancel(job.id, asked.actor)
        job = queries.job(job.id)
    return voice.cancel_reply(job, asked.bot)


def _retry(asked: Asked, command: Command) -> str:
    jobs = _jobs(asked, command)
    job = jobs[0] if command.job and jobs else next((one for one in jobs if _repeatable(one, asked)), None)
    new = None
    if job is not None and job.status.terminal:
        new_id = stitcher.retry(
            job,
            actor=asked.actor,
            actor_id=asked.trigger.actor_id,
            login=asked.login,
            key=str(asked.delivery_id),
            permission=asked.trigger.permission,
        )
        new = queries.job(new_id) if new_id else None
    return voice.retry_reply(job, new, asked.bot)


def _repeatable(job: Job, asked: Asked) -> bool:
    """Whether a bare `retry` may mean this job: one that was admitted, or their own.

    Else a stranger's refused request, slipped in as the newest, would run with the authority of who retries.
    """
    return job.base_sha is not None or job.requester_id == asked.trigger.actor_id


def _reply(asked: Asked, body: str) -> None:
    trigger = asked.trigger
    if not body or trigger.number is None:
        return
    effect_id = effects.plan_once(
        f"delivery:{asked.delivery_id}:reply",
        "comment.reply",
        {
            "repository_id": trigger.repository_id,
            "repository": trigger.repository,
            "number": trigger.number,
            "body": body,
        },
        delivery_id=asked.delivery_id,
    )
    if effect_id:
        ring(Pool.CONTROL, "herald.deliver", effect_id)
