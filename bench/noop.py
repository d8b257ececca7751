"""A consumer whose pipeline does nothing: the real consumer, stitcher and ledger, with empty steps in the table.

`python -m bench.noop` runs the control consumer of a data directory; `--supervised` runs it under the supervisor.
"""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path

from app import pipeline
from app.context import Context
from app.pipeline import StepSpec
from app.processes import Child, Supervisor
from app.settings import load
from app.types import Done, Phase, Pool, Result, StepType

RULES = {"limits": {"rounds": 1, "attempts": 1, "minutes": 60, "concurrent": 100}}
CHAIN = 12  # steps of the long pipeline, as many as a job with one gate and a spare
SHORT = 6
HANG = 60.0  # seconds; whoever holds this step is killed long before


def admit(context: Context) -> Result:
    """What admission fixes, without asking anyone."""
    return Done(
        facts={
            "branch": f"bench/{context.job.id}",
            "base_sha": "0" * 40,
            "default_branch": "main",
            "rules": RULES,
            "gates": [],
        }
    )


def nothing(_: Context) -> Result:
    return Done()


def fatal(context: Context) -> Result:
    """The first owner waits to be killed; the next one is done at once."""
    end = time.monotonic() + (0 if context.row["crashes"] else HANG)
    while time.monotonic() < end and not context.held.stop.is_set():
        time.sleep(0.05)
    return Done()


def _row(verb: str, order: int, *, always: bool = False) -> StepSpec:
    phase = Phase.CLEANUP if always else Phase.EXECUTION
    return StepSpec(f"noop.{verb}", order, Pool.CONTROL, phase, StepType.COMMAND, 300, always=always)


def tables() -> dict[str, tuple[StepSpec, ...]]:
    """Pipelines of empty steps."""
    first = _row("admit", pipeline.ADMIT.order)
    return {
        "short": (first, *(_row(f"step{n}", 20 + n) for n in range(SHORT - 2)), _row("end", 900, always=True)),
        "chain": (first, *(_row(f"step{n}", 20 + n) for n in range(CHAIN - 2)), _row("end", 900, always=True)),
        "fatal": (first, _row("fatal", 20), _row("end", 900, always=True)),
    }


def install() -> None:
    """Put the empty pipelines into the table, and their functions where the table looks for them."""
    pipeline.PIPELINES.update(tables())
    module = types.ModuleType("jobs.noop")
    for rows in tables().values():
        for row in rows:
            verb = row.name.partition(".")[2]
            setattr(module, verb, {"admit": admit, "fatal": fatal}.get(verb, nothing))
    sys.modules["jobs.noop"] = module


def main() -> int:
    if "--supervised" in sys.argv:
        argv = [sys.executable, "-m", "bench.noop"]
        return Supervisor([Child("control", argv, env=dict(os.environ), cwd=Path.cwd())]).run()
    install()
    from jobs.tasks import consume

    consume(load("control", os.environ), Pool.CONTROL)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
