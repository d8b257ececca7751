"""Why a job waits, as a value: one code and one sentence, the same in comment, page and command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from app.voice_format import duration

_ODD = re.compile(r"[^\w./:-]", re.ASCII)
_AWAY = {
    "engine_unavailable": "The agent engine or its model does not answer",
    "forge_unavailable": "Gitea does not answer",
    "disk_full": "There is too little space on the disk of Mosaic's machine (the operator makes room: `mosaic gc`)",
    "host_lost": "The machine with its files is gone",
    "database_unavailable": "The database was away",
    "worker_stopped": "Its worker was stopped",
}
_PLACES = {"agents": "agent slot", "gates": "place for gates", "control": "control worker"}


@dataclass(frozen=True, slots=True)
class Waiting:
    """`position` from 1: the place in the queue of the job's repository, while it is in one."""

    # paused | branch_busy | queue | next | backing_off | trying_again | no_consumer | no_slot | alone | person
    code: str
    sentence: str
    position: int | None = None

    @property
    def note(self) -> str:
        """The sentence where the position stands beside it, as plain words."""
        words = self.sentence.partition(": ")[2] if self.code == "queue" else self.sentence
        return (words[:1].upper() + words[1:]).rstrip(".").replace("`", "")


def paused(actor: str, since: datetime, position: int | None) -> Waiting:
    source, _, name = actor.partition(":")
    at = f"{since.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if source == "cli":
        return Waiting("paused", f"Paused by the operator since {at}; the operator resumes it.", position)
    return Waiting("paused", f"Paused by {_plain(name)} since {at}; `@mosaic resume` lets it go on.", position)


def branch_busy(branch: str, job: int, position: int | None) -> Waiting:
    return Waiting("branch_busy", f"The branch {_plain(branch)} is busy with job {job}.", position)


def queue(repository: str, position: int, running: Sequence[int], before: Sequence[int]) -> Waiting:
    """`running` = the jobs that hold the repository's slots, `before` = queued ones with a better right."""
    if running:
        names = _jobs(running)
        return Waiting(
            "queue",
            f"{position}. in the queue of {_plain(repository)}: {names} {'runs' if len(running) == 1 else 'run'}.",
            position,
        )
    ahead = f"{_jobs(before)} {'comes' if len(before) == 1 else 'come'} first"
    return Waiting("queue", f"{position}. in the queue of {_plain(repository)}: {ahead}.", position)


def soon(position: int | None = None) -> Waiting:
    return Waiting("next", "Starts in a moment.", position)


def backing_off(reason: str, seconds: float, faults: int) -> Waiting:
    what = _AWAY.get(reason, "The last try failed")
    return Waiting("backing_off", f"{what}: try {faults + 1} in {duration(max(1, seconds))}.")


def trying_again(attempt: int, seconds: float) -> Waiting:
    """The work itself failed, and the same is tried once more after a pause."""
    return Waiting("trying_again", f"The last attempt failed: attempt {attempt} starts in {duration(max(1, seconds))}.")


def forge_away(since: datetime | None, seconds: float) -> Waiting:
    """The circuit breaker is open: nobody asks Gitea but a probe, in `seconds`."""
    at = f" since {since.astimezone(UTC):%H:%M} UTC" if since else ""
    return Waiting("backing_off", f"Gitea does not answer{at}: Mosaic asks again in {duration(max(1, seconds))}.")


def no_consumer(pool: str) -> Waiting:
    return Waiting("no_consumer", f"No {pool} consumer is alive: ask the operator to look at `mosaic doctor`.")


def no_slot(pool: str, busy: int, slots: int) -> Waiting:
    return Waiting("no_slot", f"No {_PLACES.get(pool, pool)} is free: {busy} of {slots} work.")


def alone(crashes: int) -> Waiting:
    return Waiting("alone", f"Its worker was lost {crashes} times: it runs next without another such step beside it.")


def person() -> Waiting:
    return Waiting("person", "Waits for a person.")


def _jobs(numbers: Sequence[int]) -> str:
    shown = [str(number) for number in numbers[:3]]
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return ("job " if len(numbers) == 1 else "jobs ") + ", ".join(shown) + more


def _plain(name: str) -> str:
    """A name of the forge: letters, digits and the signs that it allows, so that it means nothing in Markdown."""
    return _ODD.sub("", name)[:120] or "?"
