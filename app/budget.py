"""What a job may still spend: its own limits, and the day's limits of its repository and of the server."""

from __future__ import annotations

from app import queries
from app.context import Context
from app.rules import Rules
from app.types import Failed


def daily_left(context: Context, rules: Rules) -> tuple[float | None, str]:
    """(US dollars left of the tightest daily budget, None = no such budget; a sentence when one is used up, or "").

    A day is the last 24 hours.
    """
    left: float | None = None
    for name, limit, scope in (
        ("limits.daily_cost_usd", rules.limits.daily_cost_usd, context.job.repository_id),
        ("budget.daily", context.clients.server.budget.daily, None),
    ):
        if limit is None:
            continue
        rest = limit - queries.spent_today(scope)
        if rest <= 0:
            return 0.0, f"The budget of {limit:g} USD a day (`{name}`) is used up."
        left = rest if left is None else min(left, rest)
    return left, ""


def used_up(context: Context) -> Failed | None:
    """Asked before each turn of the agent: what forbids to pay for another one."""
    job, limits = context.job, context.rules.limits
    if job.tokens >= limits.tokens:
        return Failed("budget_exhausted", f"The job used {job.tokens} of {limits.tokens} tokens (`limits.tokens`).")
    if priced(context) and job.cost_usd >= limits.cost_usd:
        spent = f"{job.cost_usd:.4f} of {limits.cost_usd:g} USD"
        return Failed("budget_exhausted", f"The job cost {spent} (`limits.cost_usd`).")
    why = daily_left(context, context.rules)[1]
    return Failed("daily_budget_exhausted", why) if why else None


def cost_left(context: Context) -> float:
    """US dollars that the next turn may cost."""
    own = max(0.0, context.rules.limits.cost_usd - context.job.cost_usd)
    day = daily_left(context, context.rules)[0]
    return own if day is None else min(own, day)


def priced(context: Context) -> bool:
    """Whether a price is known: without one nothing costs anything."""
    return bool(context.settings.model_cost_input or context.settings.model_cost_output)
