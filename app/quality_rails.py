"""What is good enough: which gates hold for a job, and what a gate's run is worth.

One rule: a gate is green only when something was measured and it was right; whatever is missing or unreadable is red.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from app import reports, runner_output
from app.continuation import continuation, count_text
from app.gate_detection import detect
from app.neutral import code, plain, shortened
from app.redact import Redactor
from app.sandbox import Ran
from app.types import GateResult, GateSpec

__all__ = ["continuation", "detect", "effective", "gates_hash", "verdict"]

OUTPUT_LIMIT = 20_000  # characters of output kept with a result
_PATTERN_SECONDS = 5.0
_COUNTED = ("test", "coverage")  # types whose gates must have run at least one test, where that can be told


# ---------------------------------------------------------------- which gates hold


def effective(server: Sequence[GateSpec], repository: Sequence[GateSpec]) -> tuple[GateSpec, ...]:
    """All gates of both, in the order they run.

    A name that is in both: where command, report and expectation agree (or one side says nothing) it is one gate with
    the stricter of every field: required if either says so, the higher minimum, the shorter time limit. Where they
    differ, both run, the repository's under `<name>-repository`: neither side can replace what the other demands.
    """
    gates: dict[str, GateSpec] = {}
    for gate in (*server, *repository):
        other = gates.get(gate.name)
        if other is None:
            gates[gate.name] = gate
        elif _agree(other, gate):
            gates[gate.name] = _stricter(other, gate)
        else:
            name = _free_name(gate.name, gates)
            gates[name] = replace(gate, name=name)
    return tuple(sorted(gates.values(), key=lambda gate: (gate.order, gate.name)))


def _agree(one: GateSpec, other: GateSpec) -> bool:
    pairs = ((one.report, other.report), (one.expect, other.expect))
    return one.command.strip() == other.command.strip() and all(a == b or not a or not b for a, b in pairs)


def _stricter(one: GateSpec, other: GateSpec) -> GateSpec:
    minima = [gate.min for gate in (one, other) if gate.min is not None]
    return replace(
        one,
        required=one.required or other.required,
        timeout=min(one.timeout, other.timeout),
        expect=one.expect or other.expect,
        report=one.report or other.report,
        min=max(minima, default=None),
    )


def _free_name(name: str, taken: Mapping[str, GateSpec]) -> str:
    """At most 40 characters, as every gate's name."""
    for number in range(1, len(taken) + 2):
        suffix = "-repository" + (f"-{number}" if number > 1 else "")
        candidate = name[: 40 - len(suffix)] + suffix
        if candidate not in taken:
            break
    return candidate


def gates_hash(gates: Iterable[GateSpec]) -> str:
    """SHA-256 (hex) over the definitions, whatever their order."""
    rows = sorted((asdict(gate) for gate in gates), key=lambda row: str(row["name"]))
    return hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ---------------------------------------------------------------- what a run is worth


@dataclass(frozen=True, slots=True)
class _Measured:
    counts: Mapping[str, int]
    none_ran: bool
    coverage: float | None
    problem: str = ""  # why the declared report does not count


def verdict(
    spec: GateSpec, ran: Ran | None, report: bytes | None, tree_sha: str, *, redactor: Redactor | None = None
) -> GateResult:
    """Green or red, and in one sentence why.

    ran: None when there is no result at all. report: content of the declared report file, None when it is not there.
    The output is kept without terminal codes and secrets, at most 20,000 characters, mostly from its end.
    """
    if ran is None:
        return GateResult(
            spec.name,
            spec.type,
            spec.command,
            spec.required,
            False,
            None,
            0.0,
            "It has no result.",
            "",
            tree_sha=tree_sha,
        )
    output = plain(ran.output)
    measured = _measure(spec, output, report)
    problem = _problem(spec, ran, output, measured)
    hide = (redactor or Redactor()).text
    return GateResult(
        name=spec.name,
        type=spec.type,
        command=spec.command,
        required=spec.required,
        passed=not problem,
        exit_code=ran.exit_code,
        seconds=round(ran.seconds, 3),
        why=hide(problem or _praise(spec, measured)),
        output=shortened(hide(output), OUTPUT_LIMIT),
        counts=dict(measured.counts),
        coverage=measured.coverage,
        tree_sha=tree_sha,
        timed_out=ran.timed_out,
    )


def _measure(spec: GateSpec, output: str, report: bytes | None) -> _Measured:
    """From the declared report where there is one; what it does not speak of, from what the runner said."""
    said = runner_output.read(output)
    if not spec.report:
        return _measured(said.counts, said.none_ran, said.coverage)
    if report is None:
        return _Measured({}, False, None, f"The report `{spec.report}` was not written.")
    try:
        read = reports.parse(report)
    except reports.ReportUnreadable as error:
        return _Measured({}, False, None, f"The report `{spec.report}` cannot be used: {error}")
    if read.kind == "junit":
        return _measured(read.counts, not read.counts["tests"], said.coverage)
    return _measured(said.counts, said.none_ran, read.coverage)


def _measured(counts: Mapping[str, int], none_ran: bool, coverage: float | None) -> _Measured:
    """A run that skipped all its tests ran none."""
    skipped_all = 0 < counts.get("tests", 0) <= counts.get("skipped", 0)
    return _Measured(counts, none_ran or skipped_all, coverage)


def _problem(spec: GateSpec, ran: Ran, output: str, measured: _Measured) -> str:
    """The first thing that is wrong; "" when nothing is. What decides most comes first."""
    checks: tuple[Callable[[], str], ...] = (
        lambda: _stopped(spec, ran),
        lambda: _no_tests(spec, ran, measured),
        lambda: (
            f"The command ended with exit code {ran.exit_code}{count_text(measured.counts)}." if ran.exit_code else ""
        ),
        lambda: measured.problem,
        lambda: _failures(measured),
        lambda: _unexpected(spec, output),
        lambda: _uncovered(spec, measured),
    )
    return next(filter(None, (check() for check in checks)), "")


def _stopped(spec: GateSpec, ran: Ran) -> str:
    if ran.timed_out:
        return f"It did not finish within {spec.timeout} seconds."
    if ran.cancelled:
        return "It was cancelled."
    if ran.disk_full:
        return "It was stopped because it filled the disk."
    return "It ended without an exit code." if ran.exit_code is None else ""


def _no_tests(spec: GateSpec, ran: Ran, measured: _Measured) -> str:
    counted = spec.type in _COUNTED or "tests" in measured.counts
    if measured.none_ran and counted:
        return "No test ran."
    pytest_found_nothing = ran.exit_code == 5 and "pytest" in spec.command
    return "No test ran: pytest collected none." if pytest_found_nothing else ""


def _failures(measured: _Measured) -> str:
    bad = measured.counts.get("failures", 0) + measured.counts.get("errors", 0)
    return (
        f"{bad} of {measured.counts.get('tests', 0)} tests failed, although the command ended with exit code 0."
        if bad
        else ""
    )


def _unexpected(spec: GateSpec, output: str) -> str:
    if not spec.expect or _expected(spec.expect, output):
        return ""
    return f"The output does not contain what is expected ({code(spec.expect)})."


def _expected(expect: str, output: str) -> bool:
    """Text, or `/pattern/` (Python's syntax, `^` and `$` at line ends).

    A pattern is tried in a process of its own: one that backtracks without end is killed and counts as not found.
    """
    if not (len(expect) > 2 and expect.startswith("/") and expect.endswith("/")):
        return expect in output
    program = "import re, sys; sys.exit(0 if re.search(sys.argv[1], sys.stdin.buffer.read().decode(), re.M) else 9)"
    argv = [sys.executable, "-I", "-S", "-c", program, expect[1:-1]]
    try:
        done = subprocess.run(
            argv,
            input=output.encode("utf-8", "replace"),
            capture_output=True,
            timeout=_PATTERN_SECONDS,
            env={},
            check=False,
        )
    except (subprocess.TimeoutExpired, ValueError):
        return False
    return done.returncode == 0


def _uncovered(spec: GateSpec, measured: _Measured) -> str:
    if spec.min is None:
        return ""
    coverage = measured.coverage
    if coverage is None or not 0 <= coverage <= 100:
        return f"Coverage could not be measured; at least {spec.min:g} % is demanded."
    return f"Coverage is {coverage:g} %; at least {spec.min:g} % is demanded." if coverage < spec.min else ""


def _praise(spec: GateSpec, measured: _Measured) -> str:
    covered = f", coverage {measured.coverage:g} %" if measured.coverage is not None else ""
    return f"The command ended with exit code 0{count_text(measured.counts)}{covered}."
