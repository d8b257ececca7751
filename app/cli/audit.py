"""The audit from the command line: verify, export, erase one body; and `mosaic blame`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from app import audit_remote, serve
from app.audit import Findings, leaks, verify, verify_export
from app.audit_export import export
from app.audit_invariants import Violation
from app.audit_witness import Key
from app.blame import blame, told
from app.cli.base import Commands, add, forge_of, opened, operator
from app.edge import connected, database_url, open_database, redactor_of
from app.ledger.redactions import erase
from app.neutral import plain
from app.paths import Paths
from app.queries import of_audit
from app.settings import Settings
from app.types import MosaicError

_SHOWN = 200  # rows printed; --json prints all


def add_to(commands: Commands[argparse.ArgumentParser]) -> None:
    audit = commands.add_parser("audit", help=(cmd_verify.__doc__ or "").splitlines()[0])
    verbs = audit.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = add(verbs, "verify", cmd_verify)
    check.add_argument("--remote", action="store_true", help="look at the forge as well")
    check.add_argument("--secrets", action="store_true", help="search every event for the secrets set here (slow)")
    check.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    check.add_argument("--file", type=Path, help="verify an export instead of the database")
    check.add_argument("--witness", type=Path, help="a directory with anchors.jsonl and anchor-keys instead of our own")
    out = add(verbs, "export", cmd_export)
    out.add_argument("--job", type=int)
    out.add_argument("--since", type=moment, help="a moment (2026-11-22T10:00Z) or an age (12h, 30d)")
    gone = add(verbs, "redact", cmd_redact)
    gone.add_argument("job", type=int)
    gone.add_argument("seq", type=int, help="number of the event within the job")
    gone.add_argument("--why", required=True, help="the reason, which is recorded for good")
    who = add(commands, "blame", cmd_blame)
    who.add_argument("commit")
    who.add_argument("--json", action="store_true")


def moment(text: str) -> datetime:
    """A moment of RFC 3339 (UTC without an offset), or an age in hours or days."""
    try:
        if text[-1:] in ("h", "d") and text[:-1].isdecimal():
            return datetime.now(UTC) - timedelta(hours=int(text[:-1]) * (24 if text[-1] == "d" else 1))
        at = datetime.fromisoformat(text)
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a moment nor an age") from None


def cmd_verify(arguments: argparse.Namespace) -> int:
    """Check the ledger: every invariant, from one moment of the database."""
    begun = time.monotonic()
    if arguments.file is not None:
        found = verify_export(arguments.file, arguments.witness)
    else:
        with opened() as settings:
            witness = arguments.witness or Paths(settings.data_dir).audit
            ours = frozenset({Key(settings.anchor_key).public} if settings.anchor_key else ())
            url = database_url(settings)
            found = verify(url, witness=witness, trusted=ours, progress=_progress(arguments.json))
            if arguments.secrets:
                found.violations += leaks(url, redactor_of(settings))
            if arguments.remote:
                _remote(settings, found)
    _tell(found, time.monotonic() - begun, arguments.json)
    return 1 if found.violations else 0


def _remote(settings: Settings, found: Findings) -> None:
    from jobs.herald.marker import marker

    forge = forge_of(settings)
    if not settings.secret_key:
        raise MosaicError("Markers cannot be checked: there is no MOSAIC_SECRET_KEY here.", code="unset")
    with of_audit.snapshot(database_url(settings)) as connection:
        for one in audit_remote.remote(connection, forge, partial(marker, settings.secret_key)):
            found.violations.append(one) if isinstance(one, Violation) else found.notes.append(one)


def _progress(quiet: bool) -> partial[None] | None:
    return None if quiet or not sys.stderr.isatty() else partial(_count, time.monotonic())


def _count(begun: float, events: int) -> None:
    print(f"\r{events:,} events, {events / max(0.001, time.monotonic() - begun):,.0f}/s", end="", file=sys.stderr)


def _tell(found: Findings, seconds: float, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**found.as_json(), "seconds": round(seconds, 3)}, default=str))
        return
    for violation in found.violations[:_SHOWN]:
        print(plain(str(violation)))
    if len(found.violations) > _SHOWN:
        print(f"… and {len(found.violations) - _SHOWN} more; --json lists all")
    for note in found.notes:
        print(f"note: {plain(note)}")
    verdict = f"{len(found.violations)} violations" if found.violations else "all is well"
    print(f"{found.events:,} events of {found.jobs:,} jobs, {found.anchors:,} anchors, {seconds:.1f} s: {verdict}")


def cmd_export(arguments: argparse.Namespace) -> int:
    """Write every event with its chain fields to standard output, one JSON line each."""
    with opened() as settings:
        for line in export(database_url(settings), job=arguments.job, since=arguments.since):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    return 0


def cmd_redact(arguments: argparse.Namespace) -> int:
    """Erase the body of one event; the chain keeps its hash, and the ledger says who did it and why."""
    with opened() as settings:
        pass
    if settings.database_url and not settings.database_owner_url:
        raise MosaicError(
            "Only the owner of the tables may erase. Set MOSAIC_DATABASE_OWNER_URL for this command.", code="unset"
        )
    with serve.database(settings) as (owner, _, _):
        open_database(owner, "cli")
        with connected():
            digest = erase(arguments.job, arguments.seq, operator(), arguments.why)
    print(f"The body of event {arguments.seq} of job {arguments.job} is erased; its SHA-256 was {digest}.")
    return 0


def cmd_blame(arguments: argparse.Namespace) -> int:
    """From a commit back to who asked, what the agent saw and what judged it."""
    with opened() as settings:
        found = blame(arguments.commit, Paths(settings.data_dir), settings.base_url)
    if arguments.json:
        print(json.dumps(found, default=str))
    else:
        print("\n".join(plain(line) for line in told(found)))
    return 0
