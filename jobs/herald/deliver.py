"""herald.deliver: carry out one planned effect; the outside world's faults only delay it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from app import breaker, disk
from app.context import Clients
from app.edge import UNAVAILABLE
from app.ledger import chain, effects
from app.types import LostLease, Misconfigured, Outage, Permanent, Transient
from jobs.herald import branches, comments, wip
from jobs.herald.comments import Outcome
from jobs.herald.place import Delivery

log = logging.getLogger("mosaic.herald")
STATUS_QUIET = 2.0  # seconds between two edits of one status comment
BACKOFF = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
MOST_FAULTS = 10  # tries of an effect that fails by a fault of ours

KINDS: dict[str, Callable[[Delivery], Outcome]] = {
    "reaction": comments.react,
    "label.remove": comments.unlabel,
    "comment.status": comments.tell_status,
    "comment.closing": comments.tell_closing,
    "comment.reply": comments.tell_reply,
    "commit.status": branches.set_status,
    "push": branches.push,
    "wip.push": wip.push_kept,
    "pull_request": branches.pull_request,
}


def deliver(effect_id: int, clients: Clients) -> None:
    """Claim an effect and carry it out. What fails for now is due again later; what is refused is a dead letter."""
    effect = effects.claim(effect_id, clients.worker.id)
    if effect is None:
        return
    try:
        if effect["state"] == "done":
            settle(effect, clients)
        elif not wip.passed_on(Delivery(effect, clients)):
            carry_out(effect, clients)
    except LostLease:
        return
    except Transient as error:
        later(effect, error)
    except UNAVAILABLE as error:
        effects.postpone(effect, BACKOFF[0], str(error), "database_unavailable", unsure=True)
    except Permanent as error:
        refused(effect, error)
    except Exception as error:
        if disk.full(error):
            return no_room(effect, str(error))
        log.exception("effect %s failed", effect["key"])
        _broken(effect, f"{type(error).__name__}: {error}")


def carry_out(effect: dict[str, object], clients: Clients) -> dict[str, object]:
    """Do it and record it; its result. Raises Transient, Permanent, LostLease.

    Who was frozen between fence and write has put an old text over a newer one: the status comment is told again.
    """
    quiet = STATUS_QUIET if effect["kind"] == "comment.status" else 0.0
    external_id, result = KINDS[str(effect["kind"])](Delivery(effect, clients))
    if not _record(effect, external_id, result, quiet):
        effects.doubt(effect)
    return {**result, "external_id": external_id}


def _record(effect: dict[str, Any], external_id: str, result: dict[str, Any], quiet: float) -> bool:
    """A version is written. Of what was asked for by hand after its job's end, the job's ledger says so."""
    if effect["kind"] != "wip.push":
        return effects.done(effect, external_id, result, quiet_seconds=quiet)
    with chain.entry(effect["job_id"]) as job:
        won = effects.done(effect, external_id, result)
        if won:
            job.event("wip.pushed", actor="system:herald", effect=effect["id"], **result)
    return won


def settle(effect: dict[str, object], clients: Clients) -> None:
    """Some time after an unclear write: remove the copies that have arrived late, and an old text over a newer one."""
    one = Delivery(effect, clients)
    left = branches.only_pull(one) if effect["kind"] == "pull_request" else comments.only_comment(one)
    effects.settled(effect, left)


def later(effect: dict[str, object], error: Transient) -> float:
    """Postpone an effect; for how many seconds. One that has failed for too long is dead."""
    attempts = int(str(effect["attempts"]))
    pause = BACKOFF[min(attempts - 1, len(BACKOFF) - 1)]
    if isinstance(error, Outage):
        wait = error.retry_after or pause
        effects.give_back(effect, wait)
        return wait
    if effect["state"] == "planned" and effect["kind"] not in effects.CARRIED and effects.overdue(effect):
        effects.fail(effect, str(error), breaker.word(error))
        return pause
    wait = error.retry_after or pause
    log.log(
        logging.ERROR if isinstance(error, Misconfigured) else logging.INFO,
        "effect %s is tried again in %.0f s: %s",
        effect["key"],
        wait,
        error,
    )
    effects.postpone(effect, wait, str(error), breaker.word(error), unsure=_may_arrive(error))
    return float(wait)


def no_room(effect: dict[str, object], why: str) -> None:
    """Our own disk is full: the same again later, for as long as for the forge."""
    log.warning("effect %s waits for space on the disk: %s", effect["key"], why)
    if effect["state"] == "planned" and effects.overdue(effect):
        effects.fail(effect, why, "disk_full")
    else:
        pause = BACKOFF[min(int(str(effect["attempts"])) - 1, len(BACKOFF) - 1)]
        effects.postpone(effect, pause, why, "disk_full", unsure=True)


def _may_arrive(error: Transient) -> bool:
    """Whether what was sent may still take effect: all but the answers that say that it was not even looked at."""
    return error.status != 429 and not isinstance(error, Misconfigured)


def refused(effect: dict[str, object], error: Permanent) -> None:
    """Refused for good."""
    if effect["state"] == "done":
        return _not_looked(effect, str(error), error.code)
    log.warning("effect %s was refused: %s", effect["key"], error)
    effects.fail(effect, str(error), error.code)


def _broken(effect: dict[str, object], why: str) -> None:
    """A fault of ours: tried again, but not for ever."""
    attempts, told = int(str(effect["attempts"])), effect["state"] == "done"
    if attempts < MOST_FAULTS:
        pause = BACKOFF[min(attempts, len(BACKOFF) - 1)]
        effects.postpone(effect, pause, why, "internal_error", unsure=not told)
    elif told:
        _not_looked(effect, why, "internal_error")
    else:
        effects.fail(effect, why, "internal_error")


def _not_looked(effect: dict[str, object], why: str, code: str) -> None:
    """A look for copies that fails for good is left out: what it looked after is told and stays so."""
    log.warning("effect %s is done; a look for copies of it failed: %s", effect["key"], why)
    effects.settled(effect, None, error=why, code=code)
