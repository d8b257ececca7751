"""What comes of a turn: each outcome of the engine as the result of the step. No engine, no database."""

from __future__ import annotations

import re

import pytest

from app.types import REASONS, Cancelled, Done, Failed, HandBack, Result, RunResult
from jobs.weaver import BACKOFF, FRESH, judge

SESSION = "agent:weaver:mosaic-7-3"
WORKED = {"tool_calls": 2}


def ran(outcome: str, **more: object) -> RunResult:
    return RunResult(outcome, **more)  # type: ignore[arg-type]


TABLE: list[tuple[RunResult, int, Result]] = [
    # the turn itself failed: by its own time, activity or budget, once and for all
    (ran("timed_out", error="limit"), 0, Failed("timed_out", "limit")),
    (ran("stalled", error="silence", **WORKED), 0, Failed("stalled", "silence")),
    (ran("budget_exhausted", error="1200 of 1000"), 0, Failed("budget_exhausted", "1200 of 1000")),
    # the agent's own error: another attempt may do better
    (ran("failed", error="boom"), 0, Failed("agent_failed", "boom", retryable=True)),
    (
        ran("failed", stop_reason="toolUse"),
        0,
        Failed("agent_failed", "The agent stopped with toolUse.", retryable=True),
    ),
    (ran("failed"), 0, Failed("agent_failed", "The agent stopped with an error.", retryable=True)),
    # the request was refused: the same one will be refused again
    (ran("rejected", error="400"), 0, Failed("engine_rejected", "400")),
    # the engine is at fault: later again, by its own word for when, on a fresh worktree once the agent has worked
    (
        ran("engine_unavailable", error="401", retry_after=90.0),
        4,
        HandBack("engine_unavailable", "401", 90.0),
    ),
    (ran("engine_unavailable", error="away"), 0, HandBack("engine_unavailable", "away", BACKOFF[0])),
    (ran("engine_unavailable", error="away"), 1, HandBack("engine_unavailable", "away", BACKOFF[1])),
    (ran("engine_unavailable", error="away"), 1000, HandBack("engine_unavailable", "away", BACKOFF[-1])),
    (
        ran("engine_unavailable", error="503", retry_after=30.0, **WORKED),
        0,
        HandBack("engine_unavailable", "503", 30.0, FRESH),
    ),
    # the connection broke: nobody knows what the agent has done to the worktree
    (ran("lost", error="cut"), 0, HandBack("engine_unavailable", "cut", BACKOFF[0], FRESH)),
    (ran("lost"), 2, HandBack("engine_unavailable", "The engine dropped the connection.", BACKOFF[2], FRESH)),
]


@pytest.mark.parametrize(("turn", "faults", "result"), TABLE, ids=lambda value: getattr(value, "outcome", None))
def test_a_turn_that_did_not_succeed(turn: RunResult, faults: int, result: Result) -> None:
    assert judge(turn, SESSION, faults) == result
    assert getattr(result, "reason", "") in REASONS


def test_a_completed_turn_keeps_what_the_next_round_needs() -> None:
    turn = RunResult(
        "completed", text="x" * 9000, session_tokens=4200, tool_calls=3, tool_failures=1, boot_id="b1", seconds=1.26
    )
    assert judge(turn, SESSION, 0) == Done(
        output={
            "text": "x" * 8000,
            "session": SESSION,
            "session_tokens": 4200,
            "boot_id": "b1",
            "tool_calls": 3,
            "seconds": 1.3,
        }
    )


def test_a_stopped_turn_is_nobodys_failure() -> None:
    with pytest.raises(Cancelled):
        judge(ran("cancelled", error="The turn was cancelled.", **WORKED), SESSION, 0)


def test_every_outcome_that_the_engine_may_give_is_judged_here() -> None:
    """The outcomes are listed in the description of RunResult, the only place that names them all."""
    listed = (RunResult.__doc__ or "").split("outcome:")[1]
    named = {word.strip(" .\n") for word in re.sub(r"\([^)]*\)", "", listed).split("|")}
    assert named == {turn.outcome for turn, _, _ in TABLE} | {"completed", "cancelled"}


def test_the_pauses_grow_and_stay_within_a_minute() -> None:
    assert list(BACKOFF) == sorted(BACKOFF) and BACKOFF[0] > 0 and BACKOFF[-1] <= 60
