"""`mosaic audit verify`: replay every event and compare it with what is stored. Reads one moment, changes nothing.

`violations(url)` is the whole of it for a test: an empty list, or the rows that break an invariant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from app.audit_anchors import Anchored, examine, examine_file
from app.audit_chain import Chain, EventRow, by_job
from app.audit_export import verify_lines
from app.audit_fold import Fold
from app.audit_invariants import Report, Violation
from app.audit_stored import StoredJob, stored
from app.audit_witness import Witness
from app.paths import Paths
from app.queries import of_audit
from app.queries.of_audit import Connection
from app.redact import Redactor

CHUNK = 1000  # jobs whose rows are held in memory at a time
MANY = 200_000  # events from which on all processors are used
Heads = Mapping[int, Mapping[int, str]]  # job → seq → hash, as the anchors name them
FUNCTIONS: Mapping[str, str] = import_module("migrations.0006_audit").FUNCTIONS  # the triggers' newest sources
# table, trigger, type bits (1 row, 2 before, 8 delete, 16 update, 32 truncate), function
TRIGGERS = (
    ("job_events", "job_events_no_change", 1 + 2 + 8 + 16, "job_events_append_only"),
    ("job_events", "job_events_no_truncate", 2 + 32, "job_events_append_only"),
    ("audit_anchors", "audit_anchors_no_change", 1 + 2 + 8 + 16, "audit_anchors_append_only"),
    ("audit_anchors", "audit_anchors_no_truncate", 2 + 32, "audit_anchors_append_only"),
)
Progress = Callable[[int], None]  # told how many events have been checked so far


@dataclass
class Findings:
    """What a run found. `notes` are worth a look and break nothing."""

    violations: list[Violation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    events: int = 0
    jobs: int = 0
    anchors: int = 0

    def add(self, violation: Violation) -> None:
        self.violations.append(violation)

    def as_json(self) -> dict[str, Any]:
        counts = {"events": self.events, "jobs": self.jobs, "anchors": self.anchors}
        return {**counts, "violations": [one.as_json() for one in self.violations], "notes": self.notes}


def violations(url: str, *, data_dir: Path | None = None) -> list[Violation]:
    """Every row of this database that breaks an invariant; [] when all is well."""
    return verify(url, witness=Paths(data_dir).audit if data_dir else None).violations


def verify(
    url: str,
    *,
    witness: Path | None = None,
    trusted: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> Findings:
    """Check everything that can be checked without the forge.

    `witness`: a directory with `anchors.jsonl`, which is compared with the table, and `anchor-keys`, which are trusted
    besides `trusted` (public keys in hexadecimal). Without any key, signatures only prove that an anchor fits itself.
    """
    found = Findings()
    file = Witness(witness) if witness is not None else None
    keys = trusted | (file.trusted() if file else frozenset())
    with of_audit.snapshot(url) as connection:
        if file is not None and not file.there():
            found.notes.append(f"There is no witness in {witness}: the anchors of the table were not compared.")
            file = None
        anchored = examine(of_audit.anchors(connection), file, keys or None, of_audit.now(connection), found.add)
        found.anchors = anchored.count
        _counted(connection, anchored, found)
        for invariant, job_id, sentence in of_audit.faults(connection):
            found.add(Violation(invariant, sentence, job_id))
        for invariant, sentence in guards(connection):
            found.add(Violation(invariant, sentence))
        _beyond(connection, anchored.heads, found)
        histories(url, connection, anchored.heads, found, progress)
    return found


def verify_export(file: Path, witness: Path | None = None) -> Findings:
    """Check the chains of an export, and against a witness if one is given. Needs no database."""
    found, anchored = Findings(), Anchored()
    if witness is not None:
        anchored = examine_file(Witness(witness), found.add)
        found.anchors = anchored.count
    with file.open(encoding="utf-8") as lines:
        found.events, jobs, notes = verify_lines(lines, anchored, found.add)
    found.jobs = len(jobs)
    found.notes += notes
    return found


def leaks(url: str, redactor: Redactor) -> Iterator[Violation]:
    """Events in which a secret stands that this redactor knows: slow, for each body is searched in every encoding."""
    with of_audit.snapshot(url) as connection:
        low, high = of_audit.span(connection)
        for job_id, seq, kind, _, _, _, data, _, _ in of_audit.events(connection, low, high + 1):
            said = json.loads(data.decode("utf-8", "replace"))
            if redactor.value(said) != said:
                yield Violation("secrets", f"event {seq} ({kind}) holds a secret", job_id, {"seq": seq})


def _counted(connection: Connection, anchored: Anchored, found: Findings) -> None:
    """The newest anchor says how many events there were: as many must still be there."""
    newest = anchored.newest
    if not newest:
        found.notes.append("Nothing has been anchored yet: a history that was cut off at its end would not be noticed.")
        return
    there = of_audit.count_until(connection, newest["max_id"], newest["snapshot"])
    if there != newest["events"]:
        detail = f"anchor {newest['seq']} counted {newest['events']} events; {there} of them are there"
        found.add(Violation("anchored", detail, row={"anchor": newest["seq"]}))


def guards(connection: Connection) -> Iterator[tuple[str, str]]:
    """What is missing of the triggers and indexes that keep the ledger, as invariant and sentence."""
    there = of_audit.triggers(connection)
    for table, trigger, bits, function in TRIGGERS:
        enabled, found_bits, source = there.get((table, trigger), ("missing", 0, ""))
        if enabled not in ("O", "A"):
            yield "triggers", f"{trigger} on {table} is {'missing' if enabled == 'missing' else 'switched off'}"
        elif found_bits != bits or source.strip() != FUNCTIONS[function].strip():
            yield "triggers", f"{trigger} on {table} does something else than it should"
    indexes = of_audit.unique_indexes(connection)
    for name in of_audit.UNIQUE:
        if of_audit.PARTIAL.get(name, "") not in indexes.get(name, "(missing)") or name not in indexes:
            yield "indexes", f"the unique index {name} is missing, not valid, or has another condition"


def histories(url: str, connection: Connection, anchored: Heads, found: Findings, progress: Progress | None) -> None:
    """Chain and fold of every job; of many events on all processors, which see the same moment."""
    low, high = of_audit.span(connection)
    starts = range(low, high + 1, CHUNK)
    if of_audit.size(connection) < MANY or len(starts) < 2:
        for start in starts:
            _add(found, histories_of(connection, start, min(start + CHUNK, high + 1), anchored), progress)
        return
    moment = of_audit.export_snapshot(connection)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        parts = [
            pool.submit(_elsewhere, url, moment, start, min(start + CHUNK, high + 1), _part(anchored, start))
            for start in starts
        ]
        for part in parts:
            _add(found, part.result(), progress)


def _beyond(connection: Connection, anchored: Heads, found: Findings) -> None:
    """Jobs that were anchored and lie outside of all that is there: no range meets them."""
    low, high = of_audit.span(connection)
    for job_id in sorted(key for key in anchored if not low <= key <= high):
        replay(job_id, None, iter(()), dict(anchored[job_id]), found.add)


def _part(anchored: Heads, start: int) -> Heads:
    return {key: heads for key, heads in anchored.items() if start <= key < start + CHUNK}


def _elsewhere(url: str, moment: str, low: int, high: int, anchored: Heads) -> Findings:
    """In another process."""
    with of_audit.snapshot(url, moment) as connection:
        return histories_of(connection, low, high, anchored)


def _add(found: Findings, part: Findings, progress: Progress | None) -> None:
    found.violations += part.violations
    found.events += part.events
    found.jobs += part.jobs
    if progress:
        progress(found.events)


def histories_of(connection: Connection, low: int, high: int, anchored: Heads) -> Findings:
    """Chain and fold of the jobs in [low, high). `anchored` = job → seq → hash."""
    found = Findings()
    jobs = stored(connection, low, high)
    heard: set[int] = set()
    for job_id, events in by_job(of_audit.events(connection, low, high)):
        heard.add(job_id)
        found.events += replay(job_id, jobs.get(job_id), events, dict(anchored.get(job_id, {})), found.add)
    for job_id in sorted((jobs.keys() | {key for key in anchored if low <= key < high}) - heard):
        replay(job_id, jobs.get(job_id), iter(()), dict(anchored.get(job_id, {})), found.add)
    found.jobs = len(jobs)
    return found


def replay(
    job_id: int, job: StoredJob | None, events: Iterator[EventRow], anchored: dict[int, str], report: Report
) -> int:
    """Check the history of one job; how many events it has."""
    chain = Chain(job_id, anchored, report)
    fold = Fold(job, report) if job is not None else None
    count = 0
    for row in events:
        count += 1
        data = chain.link(row)
        if row[2] == "audit.redacted" and data is not None:
            said = json.loads(data)
            chain.confess(said["seq"], said["body_sha256"])
        if fold is not None:
            fold.event(row[1], row[2], row[4], row[5], data)
    chain.close((job.event_seq, job.event_hash) if job is not None else None)
    if fold is not None:
        fold.close()
    elif count:
        report(Violation("orphans", f"{count} events belong to a job that is not there", job_id))
    return count
