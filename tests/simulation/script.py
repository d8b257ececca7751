"""The work of the steps as a run wants it: how the agent and the gates turn out, and which step kills its worker.

Only what needs git, a model or a sandbox is scripted; admission, publication and the last words have real effects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from app import queries
from app.context import Context
from app.rules import ServerConfig, effective
from app.types import Cancelled, Done, Failed, GateResult, GateSpec, HandBack, Result, StepStatus, Usage
from tests.simulation.stage import checkpoint, die

GATES = (GateSpec("test", "test", "true"), GateSpec("lint", "lint", "true", required=False))
_BASE = "0" * 40


@dataclass
class Script:
    """How one job goes. `gates` by round, the last one for all later rounds; `agent` by turn, then it works."""

    gates: tuple[str, ...] = ("green",)  # green | red
    agent: tuple[str, ...] = ()  # works | fault | fails
    poison: str = ""  # a step that takes its worker down whenever it runs
    idle: bool = False  # the agent changes nothing

    @property
    def outcome(self) -> str:
        """The reason with which a job of this script ends when nothing else happens to it."""
        if self.poison and not self.poison.startswith(("herald.report", "runner.cleanup")):
            return "crashed"
        if self.agent.count("fails") >= 2:
            return "agent_failed"
        if self.idle:
            return "nothing_to_do"
        return (
            "done" if self.gates[min(2, len(self.gates)) - 1] == "green" or self.gates[0] == "green" else "gates_failed"
        )


@dataclass
class Scripts:
    """What the workers ask: the script of a job, by the number of its issue."""

    by_number: dict[int, Script] = field(default_factory=dict)
    rules: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = effective(ServerConfig(), None, "acme/calc").to_json()
        rules["limits"] |= {"rounds": 2, "attempts": 2, "minutes": 60, "concurrent": 1}
        self.rules = rules

    def work(self, context: Context) -> Result:
        """The work of a step that is not the herald's."""
        script = self.by_number.get(context.job.number or 0, Script())
        name = context.step.name
        checkpoint(f"work: {name}")
        if name == script.poison:
            die()
        context.check()
        act = _ACTS.get(name.split(".")[0] + "." + name.split(".")[1], _nothing)
        return act(self, context, script)


def _nothing(scripts: Scripts, context: Context, script: Script) -> Result:
    return Done(output={"step": context.step.name, "fence": context.row["fence"]})


def _admit(scripts: Scripts, context: Context, script: Script) -> Result:
    job = context.job
    return Done(
        output={"base": _BASE},
        facts={
            "branch": job.branch or f"mosaic/issue-{job.number}",
            "base_sha": _BASE,
            "default_branch": "main",
            "rules": scripts.rules,
            "gates": [asdict(gate) for gate in GATES],
            "authority": {"source": "forge", "permission": "write", "login": "alice", "user_id": 7},
        },
    )


def _implement(scripts: Scripts, context: Context, script: Script) -> Result:
    for part in range(2):
        context.progress(part=part)
        checkpoint("work: the agent thinks")
        if context.cancelled():
            raise Cancelled(context.held.why)
    context.tokens(Usage(total=100, cost_usd=0.01))
    turns = [step for step in queries.steps(context.job.id) if step.name == context.step.name]
    used = sum(step.faults + (step.status is StepStatus.FAILED) for step in turns)
    turn = script.agent[used] if used < len(script.agent) else "works"
    if turn == "fault":
        return HandBack("engine_unavailable", "the engine is away", 5.0, ("runner.checkout", "runner.setup"))
    if turn == "fails":
        return Failed("agent_failed", "the agent gave up", retryable=True)
    return Done(output={"text": "I changed a file."})


def _commit(scripts: Scripts, context: Context, script: Script) -> Result:
    if script.idle:
        return Done(conclude="nothing_to_do")
    sha = hashlib.sha1(f"{context.job.id}:{context.step.round}".encode(), usedforsecurity=False).hexdigest()
    made = {"start": _BASE, "commit": sha, "tree": sha[::-1], "files": 1, "added": 1, "removed": 0}
    return Done(output=made)


def _gate(scripts: Scripts, context: Context, script: Script) -> Result:
    spec = next(gate for gate in GATES if context.step.name.endswith("." + gate.name))
    made = context.output_of("runner.commit")
    context.event("gate.started", gate=spec.name, command=spec.command, tree_sha=made["tree"])
    colour = script.gates[min(context.step.round, len(script.gates)) - 1]
    green = colour == "green" or not spec.required
    receipt = GateResult(
        spec.name, spec.type, spec.command, spec.required, green, 0 if green else 1, 0.5, "it ended", "out\n",
        tree_sha=made["tree"],
    )  # fmt: skip
    output = {"receipt": asdict(receipt), "required": spec.required, "passed": green, "why": "it ended"}
    return Done(output=output) if green else Failed("gate_red", "1 failed", output=output)


_ACTS: dict[str, Callable[[Scripts, Context, Script], Result]] = {
    "runner.admit": _admit,
    "weaver.implement": _implement,
    "runner.commit": _commit,
    "inspector.gate": _gate,
}
