"""Budgets: says in the ledger when a job has used half, four fifths and nearly all of what it may use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.ledger.chain import Entry

MARKS = (50, 80, 95)  # per cent of a limit


def crossed(job: Entry, tokens: int, cost_usd: float) -> None:
    """`budget.crossed`, once for the highest mark that the job passes as its use goes from these figures to its own."""
    limits: Mapping[str, Any] = (job["rules"] or {}).get("limits", {})
    for what, before, now in (("tokens", tokens, job["tokens"]), ("cost_usd", cost_usd, job["cost_usd"])):
        limit = limits.get(what)
        passed = [mark for mark in MARKS if limit and before * 100 < mark * limit <= now * 100]
        if passed:
            job.event("budget.crossed", what=what, percent=passed[-1], used=now, limit=limit)
