"""`decide` is pure: situations and what it answers, and random lives of jobs that all come to an end."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from app.pipeline import BACK_TO, plan
from app.stitcher.decide import (
    Again,
    Conclude,
    Facts,
    Finish,
    NextRound,
    Queue,
    Ready,
    Skip,
    Start,
    decide,
    latest,
)
from app.types import REASONS, GateSpec, JobStatus, Step, StepStatus

GATES = (
    GateSpec("lint", "lint", "true", order=1),
    GateSpec("test", "test", "true", order=2),
    GateSpec("docs", "custom", "true", required=False, order=2),
)
ROWS = plan("implement", GATES)
NAMES = [row.name for row in ROWS]
RUNNING = Facts(JobStatus.RUNNING)


def step(name: str, status: str, *, round: int = 1, attempt: int = 1, **more: object) -> Step:
    row = next(row for row in ROWS if row.name == name)
    base = Step(
        NAMES.index(name) + 1 + 100 * (round - 1) + 1000 * (attempt - 1),
        1,
        name,
        round,
        attempt,
        StepStatus(status),
        row.phase,
        row.type,
        row.order,
    )
    return replace(base, **more)  # type: ignore[arg-type]


def upto(name: str, *rest: Step) -> tuple[Step, ...]:
    """Everything before `name` completed, `rest` as given, the others pending."""
    given = {one.name for one in rest}
    before = [step(one, "completed") for one in NAMES[: NAMES.index(name)] if one not in given]
    after = [step(one, "pending") for one in NAMES[NAMES.index(name) :] if one not in given]
    return (*before, *rest, *after)


def test_admission_comes_first_and_alone() -> None:
    assert decide(Facts(JobStatus.PENDING), ROWS, upto("runner.admit")) == (Ready((1,)),)


def test_an_admitted_job_is_queued_then_starts_then_works() -> None:
    admitted = upto("runner.snapshot")
    assert decide(Facts(JobStatus.PENDING), ROWS, admitted) == (Queue(),)
    assert decide(Facts(JobStatus.QUEUED), ROWS, admitted) == (Start(),)
    assert decide(RUNNING, ROWS, admitted) == (Ready((2,)),)


def test_a_running_step_is_waited_for() -> None:
    assert decide(RUNNING, ROWS, upto(BACK_TO, step(BACK_TO, "running"))) == ()


def test_gates_of_one_order_are_ready_together() -> None:
    waiting = upto("inspector.gate.docs")
    ready = decide(RUNNING, ROWS, waiting)
    assert ready == (Ready((NAMES.index("inspector.gate.docs") + 1, NAMES.index("inspector.gate.test") + 1)),)


def test_all_gates_run_before_the_agent_is_sent_back() -> None:
    red = step("inspector.gate.lint", "failed", reason="gate_red", output={"required": True})
    assert isinstance(decide(RUNNING, ROWS, upto("inspector.gate.docs", red))[0], Ready)


def red_round(round: int, *, required: bool = True) -> tuple[Step, ...]:
    name = "inspector.gate.test" if required else "inspector.gate.docs"
    red = step(name, "failed", round=round, reason="gate_red", output={"required": required})
    others = [step(one, "completed", round=round) for one in NAMES if one.startswith("inspector.gate.") and one != name]
    loop = [step(one, "completed", round=round) for one in (BACK_TO, "runner.commit", "inspector.policy")]
    setup = [step(one, "completed") for one in NAMES[:4]]
    rest = [step(one, "pending") for one in ("herald.publish", "herald.report", "runner.cleanup")]
    return (*setup, *loop, *others, red, *rest)


def test_a_red_required_gate_forces_the_next_round() -> None:
    [move] = decide(RUNNING, ROWS, red_round(1))
    assert isinstance(move, NextRound)
    assert (move.round, move.red) == (2, ("test",))
    assert [row.name for row in move.specs] == [
        name for name in NAMES if name in (BACK_TO, "runner.commit", "inspector.policy") or ".gate." in name
    ]


def test_red_in_the_last_round_concludes_with_the_names() -> None:
    assert decide(replace(RUNNING, rounds=2), ROWS, red_round(2)) == (Conclude("gates_failed", "Red: test"),)


def test_a_red_gate_that_is_not_required_changes_nothing() -> None:
    assert decide(RUNNING, ROWS, red_round(1, required=False)) == (Ready((NAMES.index("herald.publish") + 1,)),)


def test_a_gate_that_could_not_run_is_not_a_red_gate() -> None:
    broken = step("inspector.gate.lint", "failed", reason="sandbox_unavailable", detail="no bwrap")
    assert decide(RUNNING, ROWS, upto("inspector.gate.docs", broken)) == (Conclude("sandbox_unavailable", "no bwrap"),)


def test_a_policy_violation_sends_back_at_once_and_ends_at_the_limit() -> None:
    red = step("inspector.policy", "failed", reason="policy_violation", detail="- tox.ini")
    [move] = decide(RUNNING, ROWS, upto("inspector.gate.lint", red))
    assert isinstance(move, NextRound)
    assert decide(replace(RUNNING, rounds=1), ROWS, upto("inspector.gate.lint", red)) == (
        Conclude("policy_violation", "- tox.ini"),
    )


def test_own_failures_are_tried_again_up_to_the_limit() -> None:
    failed = step(BACK_TO, "failed", reason="agent_failed", detail="boom", output={"retryable": True})
    [move] = decide(RUNNING, ROWS, upto("runner.commit", failed))
    assert isinstance(move, Again) and (move.spec.name, move.round, move.attempt) == (BACK_TO, 1, 2)
    assert decide(replace(RUNNING, attempts=1), ROWS, upto("runner.commit", failed)) == (
        Conclude("agent_failed", "boom"),
    )
    final = replace(failed, output={"retryable": False})
    assert decide(RUNNING, ROWS, upto("runner.commit", final)) == (Conclude("agent_failed", "boom"),)


def test_cancel_and_deadline_conclude_before_anything_else() -> None:
    now = upto(BACK_TO, step(BACK_TO, "running"))
    assert decide(replace(RUNNING, cancel_requested=True), ROWS, now) == (Conclude("cancelled_by_user"),)
    assert decide(replace(RUNNING, deadline_passed=True), ROWS, now) == (Conclude("timed_out"),)


def test_a_job_that_spent_its_time_waiting_for_the_engine_says_so() -> None:
    waiting = step(BACK_TO, "pending", faults=3, reason="engine_unavailable", detail="refused")
    late = replace(RUNNING, deadline_passed=True)
    assert decide(late, ROWS, upto(BACK_TO, waiting)) == (Conclude("engine_unavailable", "refused"),)


def test_a_concluded_job_skips_what_is_left_waits_for_what_runs_and_closes() -> None:
    concluded = replace(RUNNING, reason="timed_out")
    [skip] = decide(concluded, ROWS, upto(BACK_TO, step(BACK_TO, "running")))
    assert isinstance(skip, Skip)
    assert set(skip.step_ids) == {NAMES.index(name) + 1 for name in NAMES[NAMES.index(BACK_TO) + 1 : -2]}
    working = [step(name, "completed") for name in NAMES[:-3]]
    stopping = (
        *working[:-1],
        step(NAMES[-4], "running"),
        step("herald.publish", "skipped"),
        step("herald.report", "pending"),
        step("runner.cleanup", "pending"),
    )
    assert decide(concluded, ROWS, stopping) == ()
    stopped = (
        *working,
        step("herald.publish", "skipped"),
        step("herald.report", "pending"),
        step("runner.cleanup", "pending"),
    )
    assert decide(concluded, ROWS, stopped) == (Ready((NAMES.index("herald.report") + 1,)),)


def test_a_job_ends_with_the_status_of_its_reason_even_when_cleaning_up_fails() -> None:
    ended = tuple(step(name, "failed" if name == "runner.cleanup" else "completed") for name in NAMES)
    for reason in REASONS.values():
        assert decide(replace(RUNNING, reason=reason.code), ROWS, ended) == (Finish(reason.status),)


@given(st.data())
def test_every_life_of_a_job_ends(data: st.DataObject) -> None:
    """Whatever the steps do, no job runs in a circle and none stops without an outcome."""
    facts, steps, ids = Facts(JobStatus.PENDING, rounds=2), {one.id: one for one in upto("runner.admit")}, 10_000
    for _ in range(400):
        moves = decide(facts, ROWS, tuple(steps.values()))
        assert moves, "nothing runs and nothing is to be done"
        move = moves[0]
        match move:
            case Queue():
                facts = replace(facts, status=JobStatus.QUEUED)
            case Start():
                facts = replace(facts, status=JobStatus.RUNNING)
            case Conclude(reason):
                facts = replace(facts, reason=reason)
            case Finish(status):
                assert status.terminal
                assert all(one.status.terminal for one in latest(steps.values()).values())
                return
            case Skip(step_ids):
                for number in step_ids:
                    steps[number] = replace(steps[number], status=StepStatus.SKIPPED)
            case Again(spec, round, attempt):
                ids += 1
                steps[ids] = replace(step(spec.name, "pending"), id=ids, round=round, attempt=attempt)
            case NextRound(round, specs):
                for spec in specs:
                    for old in [one for one in steps.values() if one.name == spec.name and not one.status.terminal]:
                        steps[old.id] = replace(old, status=StepStatus.SKIPPED)
                    ids += 1
                    steps[ids] = replace(step(spec.name, "pending"), id=ids, round=round)
            case Ready(step_ids):
                for number in step_ids:
                    steps[number] = _outcome(data, steps[number])
                if data.draw(st.integers(0, 15)) == 0:
                    facts = replace(facts, cancel_requested=True)
    raise AssertionError("the job did not end")


def _outcome(data: st.DataObject, one: Step) -> Step:
    kind = data.draw(st.sampled_from(["completed"] * 6 + ["retryable", "failed", "red"]))
    if kind == "completed":
        return replace(one, status=StepStatus.COMPLETED)
    if kind == "red" and ".gate." in one.name:
        return replace(one, status=StepStatus.FAILED, reason="gate_red", output={"required": True})
    if kind == "red" and one.name == "inspector.policy":
        return replace(one, status=StepStatus.FAILED, reason="policy_violation")
    return replace(one, status=StepStatus.FAILED, reason="internal_error", output={"retryable": kind == "retryable"})
