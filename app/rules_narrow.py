"""Which of two values of a key is the stricter one, and what a repository may reach at most without the server's word.

Every key of `.mosaic.toml` is in exactly one of WIDTHS, UNITED, SHARED, RESTRICTING and FREE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from app.rules_schema import NOBODY, Limits

# What a repository may reach where the server's [ceilings] say nothing.
BUILT_IN_CEILINGS: Mapping[str, Any] = {
    "who.permission": "write",
    "limits.minutes": 240,
    "limits.stall_minutes": 60,
    "limits.rounds": 10,
    "limits.attempts": 5,
    "limits.tokens": 20_000_000,
    "limits.cost_usd": 50.0,
    "limits.concurrent": 5,
    "limits.per_user_hour": 100,
    "limits.per_issue_day": 100,
    "limits.per_repository_hour": 300,
    "limits.per_repository_day": 2_000,
    "limits.failures_in_a_row": 20,
    "limits.files": 1_000,
    "limits.patch_kb": 65_536,
    "agent.access": "write",
    "setup.network": False,  # until it is filtered: it is the server's own, with all that listens on loopback
    "setup.timeout": 3_600,
    "notify.channels": (),
}

Width = Callable[[Any], float]


def _rank(*strict_to_wide: str) -> Width:
    return lambda value: strict_to_wide.index(value)


def _number(value: float | None) -> float:
    return float("inf") if value is None else float(value)


def _off_is_wide(value: bool) -> float:
    return 0.0 if value else 1.0


# The smaller width holds.
WIDTHS: Mapping[str, Width] = {
    "bot.enabled": float,
    "bot.trigger_on_assign": float,
    "bot.draft": _off_is_wide,
    "bot.mode": _rank("shadow", "live"),
    "bot.ci": _rank("ask", "run"),
    "bot.allow_ungated": float,
    "who.permission": _rank("admin", "write", "read"),
    **{f"limits.{name}": _number for name in Limits.model_fields},
    "agent.access": _rank("write", "write+exec"),
    "agent.plan": _rank("always", "large", "never"),
    "setup.network": float,
    "setup.timeout": _number,
    "notify.verbosity": _rank("low", "medium", "high"),
}
UNITED = frozenset({"agent.exclude", "protect.paths", "protect.locked"})  # more entries are stricter
SHARED = frozenset({"who.bots", "protect.allow", "notify.channels"})  # fewer are
RESTRICTING = frozenset({"who.users"})  # fewer are, but an empty list restricts nobody
# Neither: a ceiling, or the newer rules, simply decide.
FREE = frozenset({
    "bot.trigger_label", "bot.branch_prefix", "agent.instructions", "agent.model",
    "setup.commands", "setup.cache", "setup.outputs",
})  # fmt: skip


def narrow(key: str, value: Any, limit: Any) -> Any:
    """`value`, no wider than `limit`."""
    if key in WIDTHS:
        return min(value, limit, key=WIDTHS[key])
    if key in UNITED:
        return value + tuple(entry for entry in limit if entry not in value)
    if key in FREE or (key in RESTRICTING and not value):
        return limit
    if key in RESTRICTING and not limit:
        return value
    both = tuple(entry for entry in value if entry in limit)
    return both or NOBODY if key in RESTRICTING else both


def widen(key: str, value: Any, other: Any) -> Any:
    """The wider of two ceilings."""
    if key in WIDTHS:
        return max(value, other, key=WIDTHS[key])
    return value + tuple(entry for entry in other if entry not in value)
