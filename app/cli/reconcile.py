"""`mosaic reconcile`: look now for mentions whose webhook never came, instead of waiting for the next round."""

from __future__ import annotations

import argparse
import re
import time
from datetime import UTC, datetime, timedelta

from app import queries
from app.cli.base import Commands, add, forge_of, opened
from app.clients.gitea import GiteaClient
from app.gitea_polled import Place
from app.ledger import jobs
from app.ledger import reconcile as ledger
from app.rules import ServerConfig
from app.types import MosaicError

SAY_SECONDS = 2.0
_AGO = re.compile(r"(\d{1,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def add_to(commands: Commands[argparse.ArgumentParser]) -> None:
    look = add(commands, "reconcile", cmd_reconcile)
    look.add_argument("--repository", help="owner/name: only this one")
    look.add_argument("--since", type=moment, help="look further back: 90m, 6h, 2d, or a time like 2026-11-22T10:00Z")


def moment(text: str) -> datetime:
    """A time, or how long ago. Without a zone it is UTC."""
    if ago := _AGO.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither like 6h nor a time like 2026-11-22T10:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def cmd_reconcile(arguments: argparse.Namespace) -> int:
    """Look now for mentions whose webhook never came."""
    from jobs.runner.reconcile import Reconciler

    with opened() as settings:
        forge = forge_of(settings)
        _know_ourselves(forge)
        looker = Reconciler(forge, ServerConfig.load(settings.config_path), say=print)
        looker.discover()
        places = _places(looker.places(), arguments.repository)
        whole = arguments.repository is None
        if whole:
            looker.notifications()
            ledger.begin_round()
        said = time.monotonic()
        for number, place in enumerate(places, 1):
            looker.visit(place, arguments.since, force=True)
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                print(f"… {number} of {len(places)} repositories, {looker.tally.requests} requests", flush=True)
        if whole:
            ledger.complete_round()
        tally = looker.tally
        for line in tally.refused:
            print(f"not looked at: {line}")
        print(
            f"Looked at {tally.repositories} repositories with {tally.requests} requests: {tally.seen} texts, "
            f"{tally.found} requests found that no webhook had told."
        )
        if tally.waiting:
            print(f"{tally.waiting} are too young: their webhooks may still come; the next round takes them.")
    return 1 if tally.refused else 0


def _know_ourselves(forge: GiteaClient) -> None:
    if queries.self_id() is None:
        me = forge.me()
        jobs.remember_self(me.id, me.login)


def _places(served: list[Place], wanted: str | None) -> list[Place]:
    if wanted is None:
        return served
    found = [place for place in served if place.full_name.lower() == wanted.lower()]
    if not found:
        raise MosaicError(
            f"{wanted} is not served, or the bot cannot see it. Check `repositories` in the file that MOSAIC_CONFIG "
            "names, and that the bot is a collaborator.",
            code="not_served",
        )
    return found
