"""Who may ask: a person's permission on the forge, by numeric id, from the first source that can tell.

Sources, in order: an administrator's token (or a bot that is repository administrator) may ask Gitea; the signed
payload, where it states the actor's own rights; otherwise nobody knows, and the request is refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from app import queries
from app.context import Clients, Context
from app.guard_rails import Decision, allowed_actor, is_bot
from app.rules import Rules
from app.types import Failed, Permanent

LEVELS = ("none", "read", "write", "admin", "owner")


@dataclass(frozen=True, slots=True)
class Authority:
    """What is known of a person's rights: where from, and what."""

    source: str  # forge | payload | operator | unknown
    permission: str | None
    login: str
    user_id: int
    bot: bool = False  # no person, by the rules

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def ask(clients: Clients, repository: str, user_id: int, login: str, stated: str | None) -> Authority:
    """The person's authority now. `stated` is what the signed payload said, if it said anything."""
    person = _person(clients, user_id, login)
    if person is None:
        return Authority("unknown", None, login, user_id)
    for client in (clients.authz, clients.forge):
        permission = client.permission(repository, person) if client else None
        if permission is not None:
            return Authority("forge", permission, person, user_id)
    if stated is not None:
        return Authority("payload", stated, person, user_id)
    return Authority("unknown", None, person, user_id)


def _person(clients: Clients, user_id: int, login: str) -> str | None:
    """The login that this id has today; None when the account is gone or the name belongs to somebody else."""
    client = clients.authz or clients.forge
    assert client is not None
    try:
        user = client.user(login)
    except Permanent:
        user = None
    if user is not None and user.id == user_id:
        return user.login
    renamed = client.user_by_id(user_id)
    return renamed.login if renamed else None


def known_as(rules: Rules, who: Authority) -> Authority:
    """The same, knowing whether the rules take the account for a bot."""
    return replace(who, bot=who.source != "operator" and is_bot(rules.who, who.login, who.user_id))


def judge(context: Context, rules: Rules, who: Authority) -> Decision:
    """Whether the rules let this person start work; recorded as `authz.checked`."""
    who = known_as(rules, who)
    own = "" if who.source == "operator" else queries.self_login() or ""
    decision = allowed_actor(rules.who, who.login, who.permission, bot=who.bot, own=own)
    context.event(
        "authz.checked",
        actor_id=who.user_id,
        login=who.login,
        source=who.source,
        permission=who.permission,
        bot=who.bot,
        needed=rules.who.permission,
        allowed=decision.allowed,
    )
    return decision


def still_allowed(context: Context) -> Failed | None:
    """At each round and before the push: may the person who started or retried the job still ask for it?"""
    job = context.job
    known = queries.authority(job.id)
    if known.get("source") == "operator":
        return None
    stated = known.get("permission") if known.get("source") == "payload" else None
    now = ask(context.clients, job.repository, job.requester_id, job.trigger.actor, stated)
    decision = judge(context, context.rules, now)
    return None if decision.allowed else Failed("refused", decision.why)
