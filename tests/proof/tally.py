"""What a scenario has counted, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

COLUMNS = ("scenario", "jobs", "steps", "kills -9", "freezes", "faults", "lost", "doubled", "audit", "seconds", "")


@dataclass
class Tally:
    """One row. A scenario holds when nothing is lost, doubled or violated, and no expectation of its own was missed."""

    scenario: str
    jobs: int = 0
    steps: int = 0
    kills: int = 0
    freezes: int = 0
    faults: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    audit: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)  # other expectations of the scenario that were not met
    notes: list[str] = field(default_factory=list)  # figures worth reading
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.audit or self.missed)

    def expect(self, met: bool, what: str) -> None:
        if not met:
            self.missed.append(what)

    def row(self) -> tuple[str, ...]:
        numbers = (self.jobs, self.steps, self.kills, self.freezes, self.faults)
        bad = (len(self.lost), len(self.doubled), len(self.audit))
        return (self.scenario, *map(str, (*numbers, *bad)), f"{self.seconds:.0f}", "ok" if self.holds else "FAILED")

    def details(self) -> list[str]:
        """Everything behind a number that is not 0, then the notes."""
        wrong = [("lost", self.lost), ("doubled", self.doubled), ("audit", self.audit), ("missed", self.missed)]
        said = [f"{kind}: {text}" for kind, texts in wrong for text in texts[:20]]
        return said + [f"note: {text}" for text in self.notes]


def table(tallies: Sequence[Tally]) -> str:
    """The rows under their names, the sum below, then the details."""
    total = Tally("total")
    for one in tallies:
        for name in ("jobs", "steps", "kills", "freezes", "faults", "seconds", "lost", "doubled", "audit", "missed"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
    rows = [COLUMNS, *(one.row() for one in tallies), total.row()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(text.ljust(width) if i in (0, len(row) - 1) else text.rjust(width)
                  for i, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(-1, "-" * len(lines[0]))
    for one in tallies:
        lines += [f"{one.scenario}: {text}" for text in one.details()]
    return "\n".join(lines)
