"""One figure, its target and what was measured; and all of them as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Figure:
    """`met` is None for what has no target (floors, peers, notes)."""

    name: str
    target: str
    measured: str
    met: bool | None = None
    values: dict[str, float] = field(default_factory=dict)  # the numbers behind `measured`


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * share))]


def markdown(machine: Mapping[str, str], figures: Sequence[Figure]) -> str:
    """Two tables: what was measured, and on what."""
    verdict = {True: "yes", False: "**no**", None: ""}
    lines = ["# Bench", "", "| figure | target | measured | met |", "|---|---|---|---|"]
    lines += [f"| {one.name} | {one.target} | {one.measured} | {verdict[one.met]} |" for one in figures]
    lines += ["", "| machine | |", "|---|---|", *(f"| {key} | {value} |" for key, value in machine.items()), ""]
    return "\n".join(lines)


def store(machine: Mapping[str, str], figures: Sequence[Figure]) -> str:
    """Write bench/results/latest.md and latest.json; the Markdown."""
    RESULTS.mkdir(exist_ok=True)
    text = markdown(machine, figures)
    (RESULTS / "latest.md").write_text(text)
    data = {"machine": dict(machine), "figures": [asdict(one) for one in figures]}
    (RESULTS / "latest.json").write_text(json.dumps(data, indent=1) + "\n")
    return text
