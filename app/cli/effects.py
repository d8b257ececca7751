"""What goes out to the forge, seen and mended by hand: `mosaic effects [replay|drop]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from typing import Any

from app import queries
from app.cli.base import Commands, add, opened, operator
from app.ledger import dead_letters
from app.ledger.chain import stamp, transaction
from app.neutral import plain
from app.queries import Breaker
from app.queue import ring
from app.types import MosaicError, Pool

_WIDTH = 100  # characters of an error that are shown


def add_to(commands: Commands[argparse.ArgumentParser]) -> None:
    verb = add(commands, "effects", cmd_effects)
    acts = verb.add_subparsers(dest="act", metavar="ACT")
    again = acts.add_parser("replay", help="try dead ones again")
    which = again.add_mutually_exclusive_group(required=True)
    which.add_argument("effect", type=int, nargs="*", default=[], metavar="ID")
    which.add_argument("--all", action="store_true", help="every dead one")
    again.set_defaults(run=cmd_replay)
    away = acts.add_parser("drop", help="give up what waits or is dead")
    away.add_argument("effect", type=int, nargs="+", metavar="ID")
    away.set_defaults(run=cmd_drop)


def cmd_effects(arguments: argparse.Namespace) -> int:
    """List what waits to go out to the forge and what is dead; `replay` and `drop` mend it."""
    with opened():
        print(_breaker(queries.breaker()))
        waiting, dead = queries.waiting_effects(), queries.dead_effects()
        for row in waiting:
            print(_line(row, "waits", row["waiting_since"] or row["created_at"], f"next try {stamp(row['next_at'])}"))
        for row in dead:
            print(_line(row, "dead", row["failed_at"] or row["created_at"], f"after {row['attempts']} tries"))
        for row in queries.unlooked_effects():
            look = f"next look for copies {stamp(row['settle_at'])}" if row["settle_at"] else "not looked for copies"
            print(_line(row, "done", row["done_at"], look))
        for row in queries.closed_effects():
            print(_line(row, "closed", row["dropped_at"], "given up"))
        if dead:
            print("When the cause is mended: `mosaic effects replay ID` (or --all); to give one up: `drop ID`.")
        elif not waiting:
            print("nothing waits, nothing is dead")
    return 0


def _breaker(now: Breaker) -> str:
    if now.closed:
        return "forge   answers" + (
            f" ({now.failures} failures in a row, the last: {now.code})" if now.failures else ""
        )
    since = now.since or now.opened_at
    return (
        f"forge   left alone since {stamp(since) if since else '?'} ({now.code}), next probe in {now.wait:.0f} s\n"
        f"        {plain(now.detail)}"
    )


def _line(row: dict[str, Any], state: str, since: datetime, then: str) -> str:
    where = f"{row['repository']}#{row['number']}" if row["number"] else row["repository"]
    owner = f"job {row['job_id']}" if row["job_id"] else f"delivery {row['delivery_id']}"
    head = f"{row['id']:>6}  {state:<6} {row['kind']:<16} {plain(where)}  {owner}"
    why = f"\n        {row['code'] or 'failed'}: {plain(row['error'])[:_WIDTH]}" if row["error"] else ""
    return f"{head}  since {stamp(since)}, {then}{why}"


def cmd_replay(arguments: argparse.Namespace) -> int:
    """Try dead effects again."""
    with opened():
        chosen = [row["id"] for row in queries.dead_effects(10_000)] if arguments.all else arguments.effect
        return _each(chosen, _replay, "is tried again", "is not dead: `mosaic effects` lists what is")


def cmd_drop(arguments: argparse.Namespace) -> int:
    """Give up effects for good."""
    with opened():
        return _each(arguments.effect, dead_letters.drop, "is given up", "is done, given up or under way already")


def _replay(effect_id: int, actor: str) -> bool:
    with transaction():
        found = dead_letters.replay(effect_id, actor)
        if found:
            ring(Pool.CONTROL, "herald.deliver", effect_id)
        return found


def _each(chosen: list[int], act: Callable[[int, str], bool], said: str, otherwise: str) -> int:
    """Each on its own, so that one that does not fit keeps no other from it; an error names the last of those."""
    wrong = ""
    for effect_id in chosen:
        if queries.effect_by_id(effect_id) is None:
            wrong = f"There is no effect {effect_id}. `mosaic effects` lists them."
        elif act(effect_id, operator()):
            print(f"Effect {effect_id} {said}.")
        else:
            wrong = f"Effect {effect_id} {otherwise}."
    if wrong:
        raise MosaicError(wrong, code="not_found")
    if not chosen:
        print("nothing is dead")
    return 0
