"""Check the anchors: their own chain and signatures, the table against the file, and what they say about the events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from app.audit_invariants import Report, Violation
from app.audit_witness import Anchor, Witness, WitnessError

LAG = timedelta(minutes=5)  # an anchor younger than this may be missing in a file: it is filled up once a minute


@dataclass
class Anchored:
    """What all anchors together say: the hash of each head they name, and of the newest one the count of events."""

    heads: dict[int, dict[int, str]] = field(default_factory=dict)
    newest: Mapping[str, Any] = field(default_factory=dict)
    count: int = 0


def examine(
    table: Iterable[Anchor], witness: Witness | None, trusted: frozenset[str] | None, now: datetime, report: Report
) -> Anchored:
    """Check table and file; what they say about the events.

    `trusted` = the public keys that count; None = nobody told us, so signatures only prove that rows fit themselves.
    """
    said = Anchored()
    known = _chain(table, trusted, said, report, "the table")
    said.count = len(known)
    if witness is not None:
        _compare(known, witness, trusted, now, said, report)
    return said


def examine_file(witness: Witness, report: Report) -> Anchored:
    """Check a file by itself; what it says about the events."""
    said = Anchored()
    try:
        said.count = len(_chain(witness.anchors(), witness.trusted() or None, said, report, "the file"))
    except WitnessError as error:
        report(Violation("witness", str(error), row={"file": str(witness.file)}))
    return said


def _chain(
    anchors: Iterable[Anchor], trusted: frozenset[str] | None, said: Anchored, report: Report, where: str
) -> dict[int, tuple[str, str]]:
    """Check one chain of anchors and take up what they say; seq → digest and moment."""
    known: dict[int, tuple[str, str]] = {}
    seq, prev = 0, ""
    for anchor in anchors:
        content = anchor.content()
        faults = anchor.faults(trusted)
        if anchor.seq != seq + 1:
            faults.append(f"anchor {seq + 1} is missing")
        if content.get("prev") != prev or content.get("seq") != anchor.seq:
            faults.append(f"anchor {anchor.seq} does not follow the one before it")
        for fault in faults:
            report(Violation("anchors", f"{fault} ({where})", row={"anchor": anchor.seq}))
        _take(content, said)
        known[anchor.seq] = anchor.digest(), str(content.get("at", ""))
        seq, prev = anchor.seq, anchor.hash
    return known


def _take(content: Mapping[str, Any], said: Anchored) -> None:
    for job_id, seq, digest in content.get("heads", ()):
        said.heads.setdefault(job_id, {}).setdefault(seq, digest)
    if content and content["seq"] > said.newest.get("seq", 0):
        said.newest = content


def _compare(
    known: Mapping[int, tuple[str, str]],
    witness: Witness,
    trusted: frozenset[str] | None,
    now: datetime,
    said: Anchored,
    report: Report,
) -> None:
    def wrong(detail: str, seq: int) -> None:
        report(Violation("witness", detail, row={"anchor": seq, "file": str(witness.file)}))

    held: dict[int, tuple[str, str]] = {}
    try:
        held = _chain(witness.anchors(), trusted, said, report, "the file")
    except WitnessError as error:
        wrong(str(error), 0)
    for seq, there in held.items():
        if seq not in known:
            wrong(f"anchor {seq} is in the file and not in the table", seq)
        elif known[seq] != there:
            wrong(f"anchor {seq} of the file is not the one of the table", seq)
    for seq in sorted(known.keys() - held.keys()):
        behind = seq > max(held, default=0) and _young(known[seq][1], now)
        if not behind:
            wrong(f"anchor {seq} is in the table and not in the file", seq)


def _young(at: str, now: datetime) -> bool:
    try:
        return datetime.fromisoformat(at) > now - LAG
    except ValueError:
        return False  # the moment of a changed anchor
