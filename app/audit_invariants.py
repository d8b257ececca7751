"""What must hold in every history: the name of each invariant and its sentence. `mosaic audit verify` checks them all.

The steps of one job that run side by side share one `order` (the gates of a round): where another system says "one
running step per job", it says here "the running steps of a job share their order".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

INVARIANTS: Mapping[str, str] = {
    "chain": "The events of a job count from 1 without a gap; each holds the hash of the one before and its own; the "
    "job's row holds the last.",
    "anchored": "Every event that a signed anchor names is there, with the hash that the anchor names.",
    "anchors": "Anchors count from 1; each holds the hash of the one before and a signature by a trusted key.",
    "witness": "The file of anchors and the table of anchors hold the same.",
    "redaction": "The body of an event is missing only where a later event of its job says who erased it, and why.",
    "job_status": "The status of a job and the reason of its end are what its events say, by moves that are allowed.",
    "job_facts": "Who asked, for which issue, with which text: the job's row says what its first event says.",
    "admission": "Base, rules and gates of a job are those that its admission recorded: from the base, not the branch.",
    "step_status": "The status of a step is what its events say; a step without events has not run.",
    "fence": "Each claim of a step has a greater fence than everything before in its job; its result has the same one.",
    "counts": "Crashes and faults of a step are those that its events count; three crashes end it, and nothing else "
    "ends it as crashed.",
    "done_once": "A step ends at most once, and nothing claims it after its end.",
    "one_order": "Steps of a job that run at the same time have the same order.",
    "order": "A step starts when every step of a lower order has ended.",
    "one_owner": "A step runs if and only if it has an owner and a lease.",
    "one_branch": "Of the jobs of one branch at most one runs.",
    "attempts": "The attempts of a step count from 1 in each round, and all but the last have ended.",
    "terminal": "A job that has ended has a reason that fits its status, no open step, and no work after its last "
    "word.",
    "effects": "A write to the outside that is done has the number that the forge gave it, and one version of each "
    "that was asked for; of a job that has ended no push is planned.",
    "effect_once": "No two comments of Mosaic's are the same comment of the forge.",
    "authority": "Before its first push a job was allowed by the rights of who asked, and it came from somewhere.",
    "green_push": "What was pushed is a tree that every required gate had found green.",
    "receipts": "The stored receipt of a gate says what the gate's event says.",
    "last_words": "A job that has ended on an issue has its closing comment (or a sign in its place) planned or told.",
    "triggers": "The triggers that refuse changes of the ledger are there, switched on, and unchanged.",
    "indexes": "The unique indexes that decide races are there and valid.",
    "orphans": "Every event belongs to a job.",
    "secrets": "No secret that this process knows stands in an event.",
    "remote": "Of each comment and pull request of Mosaic's there is exactly one on the forge, by the bot's account.",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One row that breaks an invariant. `invariant` is a key of INVARIANTS; `row` holds what was found there."""

    invariant: str
    detail: str
    job_id: int | None = None
    row: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        where = f"job {self.job_id}: " if self.job_id is not None else ""
        return f"{self.invariant}: {where}{self.detail}"

    def as_json(self) -> dict[str, Any]:
        return {"invariant": self.invariant, "job_id": self.job_id, "detail": self.detail, "row": dict(self.row)}


Report = Callable[[Violation], None]
