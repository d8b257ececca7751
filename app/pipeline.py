"""Which steps a job has, in order, and their limits. Read this file first.

One row = one function `jobs.<component>:<verb>` + its limits. `decide` (app/stitcher.py) walks the rows by `order`;
rows of the same order run side by side. Gate rows are made from the repository's rules at admission.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from app.types import GateSpec, Phase, Pool, StepType


@dataclass(frozen=True, slots=True)
class StepSpec:
    name: str  # "<component>.<verb>": key in job_steps, Huey task, metrics, and the function jobs.<component>:<verb>
    order: int
    pool: Pool
    phase: Phase
    type: StepType
    timeout: int  # seconds the step may take; long ones also obey the job's deadline
    attempts: int = 1  # times the same work is tried when its own work failed
    back_to: str | None = None  # forced continuation: a red result sends the job back to this step
    always: bool = False  # runs however the job ended
    redo: tuple[str, ...] = ()  # steps to run again first when this one was lost half-way
    gate: str = ""  # name of the gate, for the rows made from the rules
    anywhere: bool = False  # needs no files of the job: any host may run it

    @property
    def target(self) -> str:
        """`module:function` of the work."""
        component, verb = self.name.split(".")[:2]
        return f"jobs.{component}:{verb}"


def _control(
    name: str,
    order: int,
    phase: Phase,
    timeout: int,
    attempts: int = 3,
    *,
    always: bool = False,
    anywhere: bool = False,
) -> StepSpec:
    return StepSpec(
        name, order, Pool.CONTROL, phase, StepType.COMMAND, timeout, attempts, always=always, anywhere=anywhere
    )


ADMIT = _control("runner.admit", 10, Phase.SETUP, 900, anywhere=True)  # the first clone of a repository may take long

IMPLEMENT: tuple[StepSpec, ...] = (
    ADMIT,
    _control("runner.snapshot", 20, Phase.SETUP, 300, anywhere=True),
    _control("runner.checkout", 30, Phase.SETUP, 600),
    StepSpec("runner.setup", 40, Pool.GATES, Phase.SETUP, StepType.COMMAND, 1800, attempts=2),
    StepSpec(
        "weaver.implement",
        50,
        Pool.AGENTS,
        Phase.EXECUTION,
        StepType.AI_ACTION,
        3600,
        attempts=2,
        redo=("runner.checkout", "runner.setup"),
    ),
    _control("runner.commit", 60, Phase.EXECUTION, 300),
    _control("inspector.policy", 70, Phase.VALIDATION, 300),
    # inspector.gate.<name>: orders 100-899, made by gate_spec() at admission
    StepSpec("herald.publish", 900, Pool.CONTROL, Phase.EXECUTION, StepType.ARTIFACT, 300, attempts=5),
    _control("herald.report", 910, Phase.CLEANUP, 120, attempts=5, always=True, anywhere=True),
    _control("runner.cleanup", 920, Phase.CLEANUP, 120, attempts=2, always=True),
)

# What a job that is stopped half-way has done is kept: this row comes when its end is known, before the last words.
KEEP = _control("runner.keep", 905, Phase.CLEANUP, 300, attempts=2, always=True)
KEEPS_WORK = frozenset({
    "agent_failed", "budget_exhausted", "cancelled_by_user", "crashed", "daily_budget_exhausted", "disk_full",
    "engine_rejected", "engine_unavailable", "forge_refused", "forge_unavailable", "gates_failed", "internal_error",
    "policy_violation", "sandbox_unavailable", "stalled", "timed_out",
})  # fmt: skip

PIPELINES: dict[str, tuple[StepSpec, ...]] = {"implement": IMPLEMENT}

# A red policy or gate sends the job back here; these rows exist once per round.
ROUND_STEPS = ("weaver.implement", "runner.commit", "inspector.policy")
BACK_TO = "weaver.implement"

# Steps that need no files of the job. All others belong to the host where its worktree and its commits lie.
ANYWHERE = frozenset(row.name for table in PIPELINES.values() for row in table if row.anywhere)


def gate_spec(gate: GateSpec) -> StepSpec:
    """The row of one gate: same `order` in the rules = side by side."""
    return StepSpec(
        f"inspector.gate.{gate.name}",
        100 + min(max(gate.order, 0), 799),
        Pool.GATES,
        Phase.VALIDATION,
        StepType.GATE,
        gate.timeout + 120,
        attempts=1,
        back_to=BACK_TO,
        gate=gate.name,
    )


def plan(pipeline: str, gates: tuple[GateSpec, ...] = (), *, keep: bool = False) -> tuple[StepSpec, ...]:
    """The rows of a job in order: the pipeline's table with its gates put in, and KEEP when its work is to be kept."""
    rows = [replace(row, back_to=BACK_TO) if row.name == "inspector.policy" else row for row in PIPELINES[pipeline]]
    more = (KEEP,) if keep else ()
    return tuple(sorted([*rows, *map(gate_spec, gates), *more], key=lambda row: (row.order, row.name)))


def on_files(rows: tuple[StepSpec, ...]) -> tuple[str, ...]:
    """The steps that make the commit to be published and judge it: what starts again when the job changes its host."""
    return tuple(row.name for row in rows if not row.anywhere and not row.always and row.type is not StepType.ARTIFACT)
