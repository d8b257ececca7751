"""herald.deliver: carry out one planned effect; the outside world's faults only delay it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from app.context import Clients
from app.edge import UNAVAILABLE
from app.ledger import effects
from app.types import Ambiguous, LostLease, MosaicError, Permanent, Transient
from jobs.herald import branches, comments
from jobs.herald.comments import Outcome
from jobs.herald.place import Delivery

log = logging.getLogger("mosaic.herald")
STATUS_QUIET = 2.0  # seconds between two edits of one status comment
BACKOFF = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

KINDS: dict[str, Callable[[Delivery], Outcome]] = {
    "reaction": comments.react,
    "label.remove": comments.unlabel,
    "comment.status": comments.tell_status,
    "comment.closing": comments.tell_closing,
    "comment.reply": comments.tell_reply,
    "commit.status": branches.set_status,
    "push": branches.push,
    "pull_request": branches.pull_request,
}


def deliver(effect_id: int, clients: Clients) -> None:
    """Claim an effect and carry it out. What fails for now is due again later; what is refused is kept as failed."""
    effect = effects.claim(effect_id, clients.worker.id)
    if effect is None:
        return
    try:
        carry_out(effect, clients)
    except LostLease:
        return
    except Transient as error:
        later(effect, error)
    except UNAVAILABLE as error:
        effects.postpone(effect, BACKOFF[0], str(error))
    except Permanent as error:
        log.warning("effect %s was refused: %s", effect["key"], error)
        effects.fail(effect, str(error))
    except Exception as error:
        log.exception("effect %s failed", effect["key"])
        effects.postpone(effect, BACKOFF[-1], f"{type(error).__name__}: {error}")


def carry_out(effect: dict[str, object], clients: Clients) -> dict[str, object]:
    """Do it and record it; its result. Raises Transient, Permanent, LostLease.

    Who was frozen between fence and write has put an old text over a newer one: the status comment is told again.
    """
    quiet = STATUS_QUIET if effect["kind"] == "comment.status" else 0.0
    external_id, result = KINDS[str(effect["kind"])](Delivery(effect, clients))
    if not effects.done(effect, external_id, result, quiet_seconds=quiet):
        effects.doubt(effect)
    return {**result, "external_id": external_id}


def later(effect: dict[str, object], error: MosaicError) -> float:
    """Postpone an effect; for how many seconds."""
    attempts = int(str(effect["attempts"]))
    wait = getattr(error, "retry_after", None) or BACKOFF[min(attempts - 1, len(BACKOFF) - 1)]
    if isinstance(error, Ambiguous):
        wait = min(wait, 1.0)  # look soon whether it happened
    log.info("effect %s is tried again in %.0f s: %s", effect["key"], wait, error)
    effects.postpone(effect, wait, str(error))
    return float(wait)
