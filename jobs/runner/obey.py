"""runner.obey: control commands act now: status, cancel, retry, continue, pause, … One delivery in, one reply out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from app import authority, queries, stitcher, voice, waiting
from app.commands import LATER_VERBS
from app.context import Clients
from app.edge import UNAVAILABLE
from app.guard_rails import may
from app.ledger import effects, inbox
from app.ledger.chain import lock_jobs, transaction
from app.queries import SavedWork
from app.queue import ring
from app.types import Command, DidYouMean, Job, Permanent, Pool, Transient, Trigger, Verb
from jobs.runner.evidence import verify

log = logging.getLogger("mosaic.runner")

NEEDS = {
    Verb.CANCEL: "write",
    Verb.RETRY: "write",
    Verb.CONTINUE: "write",
    Verb.PAUSE: "admin",
    Verb.RESUME: "admin",
}
CHANGES = (Verb.CANCEL, Verb.RETRY, Verb.CONTINUE)  # verbs that change jobs
_RETRY_SECONDS = 10.0
_MOST_SECONDS = 300.0
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
        if inbox.overdue(delivery_id):
            log.warning("delivery %s is given up: %s", delivery_id, error)
            inbox.attach(delivery_id, None, "failed", str(error))
        else:
            pause = min(_RETRY_SECONDS * 2 ** min(row["attempts"], 10), _MOST_SECONDS)
            inbox.postpone(delivery_id, error.retry_after or pause, str(error))
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
        commands = _commands(row)
        lock_jobs(_changed(asked, commands))
        replies = [_act(asked, command) for command in commands]
        inbox.attach(delivery_id, None, "answered")
        _reply(asked, "\n\n---\n\n".join(reply for reply in replies if reply))


def _changed(asked: Asked, commands: list[Command | DidYouMean]) -> list[int]:
    """The jobs that several commands may change in this transaction; one command locks its job by itself."""
    changing = [one for one in commands if isinstance(one, Command) and one.verb in CHANGES]
    if len(changing) < 2:
        return []
    return [job.id for command in changing for job in _jobs(asked, command)]


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
    why_not = verify(forge, repository.full_name, trigger, queries.self_id(), polled=row["via"] == "poll")
    if why_not:
        return nobody, why_not
    known = authority.ask(clients, repository.full_name, trigger.actor_id, trigger.actor, trigger.permission)
    return Asked(row["id"], trigger, known.login, known.permission, bot, clients.settings.base_url), ""


def _act(asked: Asked, command: Command | DidYouMean) -> str:
    if isinstance(command, DidYouMean):
        return voice.did_you_mean([command], asked.bot)
    if command.verb in LATER_VERBS:
        return voice.not_yet(command.verb, asked.bot)
    needed = NEEDS.get(command.verb)
    if needed and not may(asked.permission, needed):
        return voice.refusal("refused", f"`{command.verb}` needs {needed} permission on this repository.", asked.bot)
    match command.verb:
        case Verb.HELP:
            return voice.help_text(asked.bot)
        case Verb.STATUS:
            jobs = _jobs(asked, command)
            waits = queries.waiting_of([job.id for job in jobs])
            return voice.status_reply(jobs, asked.base_url, asked.bot, waits=waits)
        case Verb.WHY:
            return _why(asked, command)
        case Verb.CANCEL:
            return _cancel(asked, command)
        case Verb.RETRY:
            return _retry(asked, command)
        case Verb.CONTINUE:
            return _continue(asked, command)
        case Verb.PAUSE | Verb.RESUME:
            return _pause(asked, command.verb is Verb.PAUSE)
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
    link, waiting = f"{asked.base_url}/jobs/{job.id}", queries.waiting_for(job.id)
    return voice.why_reply(job, queries.events(job.id)[-10:], link, asked.bot, waiting=waiting)


def _cancel(asked: Asked, command: Command) -> str:
    jobs = _jobs(asked, command)
    job = next((one for one in jobs if not one.status.terminal), jobs[0] if command.job and jobs else None)
    if job is not None and not job.status.terminal:
        stitcher.cancel(job.id, asked.actor)
        job = queries.job(job.id)
    return voice.cancel_reply(job, asked.bot)


def _retry(asked: Asked, command: Command) -> str:
    job = _to_repeat(asked, command)
    new = _again(asked, job) if job is not None and job.status.terminal else None
    return voice.retry_reply(job, new, asked.bot)


def _continue(asked: Asked, command: Command) -> str:
    job = _to_repeat(asked, command)
    saved = queries.saved_work(job.id) if job is not None and job.status.terminal else None
    if job is None or saved is None:
        return voice.continue_reply(job, bot=asked.bot)
    if not queries.host_alive(saved.host):
        return voice.continue_reply(job, gone=True, bot=asked.bot)
    new = _again(asked, job, saved, command.text)
    return voice.continue_reply(job, new, files=saved.files, bot=asked.bot)


def _to_repeat(asked: Asked, command: Command) -> Job | None:
    jobs = _jobs(asked, command)
    return jobs[0] if command.job and jobs else next((one for one in jobs if _repeatable(one, asked)), None)


def _again(asked: Asked, job: Job, saved: SavedWork | None = None, added: str = "") -> Job | None:
    """A new job for an ended one, with the authority of whoever asks now."""
    trigger = asked.trigger
    new = stitcher.retry(
        job,
        actor=asked.actor,
        actor_id=trigger.actor_id,
        login=asked.login,
        key=str(asked.delivery_id),
        permission=trigger.permission,
        at=trigger.at,
        until_comment=trigger.object_id if trigger.kind == "comment" else None,
        saved=saved,
        added=added,
    )
    return queries.job(new) if new else None


def _pause(asked: Asked, pausing: bool) -> str:
    """Of this repository. A pause that the operator made, here or of everything, only the operator ends."""
    home, name = asked.trigger.repository_id, asked.trigger.repository
    if pausing:
        return voice.pause_reply(name, True, stitcher.pause(home, name, asked.actor), bot=asked.bot)
    own = queries.open_pause(home)
    operators = own if own and own["actor"].startswith("cli:") else None
    changed = operators is None and stitcher.resume(home, asked.actor)
    held = operators or queries.open_pause(None)
    elsewhere = waiting.paused(held["actor"], held["at"], None).sentence if held else ""
    return voice.pause_reply(name, False, changed, elsewhere=elsewhere, bot=asked.bot)


def _repeatable(job: Job, asked: Asked) -> bool:
    """Whether a bare `retry` or `continue` may mean this job: one that was admitted, or their own.

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
