"""Contract of the OpenClaw client against a gateway that speaks recorded frames and misbehaves on request."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.clients import openclaw_turn
from app.clients.device_identity import load_or_create
from app.clients.openclaw import PINNED_VERSION, GatewayUnavailable, OpenClaw, ready, session_key
from app.clients.openclaw_frames import RETRY_AFTER, judge_error, judge_final, tool_event
from app.clients.openclaw_record import RunRecord
from app.clients.websocket import MAX_MESSAGE
from app.types import ConfigInvalid, EngineEvent, Permanent, RunResult, RunSpec
from tests.worlds.gateway import (
    AWAIT_ABORT,
    BINARY,
    DROP,
    FakeGateway,
    Item,
    await_event,
    hanging,
    raw,
    streamed,
    turn,
    until,
)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[FakeGateway]:
    (tmp_path / "worktrees" / "wt").mkdir(parents=True)
    with FakeGateway(tmp_path / "worktrees") as server:
        yield server


def spec_for(gateway: FakeGateway, **more: Any) -> RunSpec:
    values: dict[str, Any] = {
        "run_id": "mosaic-7-implement-3",
        "session": session_key("write", "7-3"),
        "profile": "write",
        "workdir": str(gateway.workspace / "wt"),
        "prompt": "Round 1 of 3\nFix it.",
        "system": "",
        "deadline_s": 60.0,
        "stall_s": 30.0,
    }
    return RunSpec(**{**values, **more})


def client_of(gateway: FakeGateway) -> OpenClaw:
    return OpenClaw(gateway.url, gateway.token, identity=gateway.workspace.parent / "keys" / "device.pem")


def run(gateway: FakeGateway, play: Sequence[Item] | None = None, **more: Any) -> tuple[RunResult, list[EngineEvent]]:
    if play is not None:
        gateway.play = play
    events: list[EngineEvent] = []
    return client_of(gateway).run(spec_for(gateway, **more), events.append, lambda: False), events


def final_of(play: Sequence[Item]) -> dict[str, Any]:
    """A copy of the final frame of a turn, to be changed."""
    frame: dict[str, Any] = json.loads(json.dumps(play[-1]))
    return frame


# ---------------------------------------------------------------- a turn that goes well


def test_a_turn_is_asked_for_with_directory_mode_and_our_run_id(gateway: FakeGateway) -> None:
    result, _ = run(gateway, label="job 7", system="The rules.")
    assert result.outcome == "completed"
    create, agent = gateway.asked("sessions.create")[0], gateway.asked("agent")[0]
    assert (create["agentId"], create["permissionMode"]) == ("weaver", "workspace")
    assert create["cwd"] == str(gateway.workspace / "wt")
    assert agent["idempotencyKey"] == "mosaic-7-implement-3"
    assert agent["sessionKey"] == create["key"] == "agent:weaver:mosaic-7-3"
    assert agent["extraSystemPrompt"] == "The rules."
    assert agent["timeout"] > 60
    connect = gateway.asked("connect")[0]
    assert connect["scopes"] == ["operator.read", "operator.write"]


def test_the_reading_profile_uses_the_reading_agent_and_mode(gateway: FakeGateway) -> None:
    run(gateway, profile="read", session=session_key("read", "7-3"))
    create = gateway.asked("sessions.create")[0]
    assert (create["agentId"], create["permissionMode"]) == ("runner", "read-only")


@pytest.mark.parametrize("profile", ["read", "write+exec", ""])
def test_a_profile_cannot_borrow_the_session_of_another_agent(gateway: FakeGateway, profile: str) -> None:
    with pytest.raises(Permanent, match="cannot run in the session"):
        run(gateway, profile=profile)
    assert gateway.requests == []


def test_the_result_carries_usage_tools_and_boot(gateway: FakeGateway) -> None:
    result, events = run(gateway)
    assert (result.text, result.stop_reason, result.error) == ("Done: wrote the file.", "stop", "")
    assert (result.tools_ok, result.tool_calls, result.tool_failures) == (("write",), 1, 0)
    assert result.usage.total == result.usage.input + result.usage.output > 0
    assert result.usage.cost_usd > 0
    assert 0 < result.session_tokens < result.usage.total
    assert result.boot_id == gateway.boot_id
    last = events[-1]
    assert (last.kind, last.data["total"], last.data["context"]) == ("usage", result.usage.total, result.session_tokens)


def test_events_name_tools_and_paths_but_carry_no_file_body(gateway: FakeGateway) -> None:
    _, events = run(gateway)
    kinds = [event.kind for event in events if event.kind != "usage"]
    assert kinds == ["started", "model", "tool_start", "tool_end", "model", "text", "finishing"] or kinds == [
        "started", "model", "tool_start", "tool_end", "model", "text", "text", "finishing",
    ]  # fmt: skip
    start, end = (next(e.data for e in events if e.kind == kind) for kind in ("tool_start", "tool_end"))
    assert (start["tool"], start["path"]) == ("write", "hello.txt")
    assert (end["tool"], end["ok"], end["path"]) == ("write", True, "hello.txt")
    assert "content" not in json.dumps([dict(start), dict(end)])


def test_refused_tools_are_counted_with_a_short_reason(gateway: FakeGateway) -> None:
    result, events = run(gateway, turn("readonly"))
    failed = [event.data for event in events if event.kind == "tool_end" and not event.data["ok"]]
    assert result.tool_failures == len(failed) >= 1
    assert all(0 < len(data["note"]) <= 200 for data in failed)


def test_a_patch_is_told_by_its_paths() -> None:
    patch = "*** Begin Patch\n*** Add File: a.py\n+secret body\n*** Update File: b/c.py\n@@\n-x\n+y\n*** End Patch"
    event = tool_event({"phase": "start", "name": "apply_patch", "toolCallId": "1", "args": {"input": patch}})
    assert event is not None
    assert event.data["path"] == "a.py, b/c.py"


def test_long_names_and_notes_are_cut() -> None:
    start = tool_event({"phase": "start", "name": "write", "args": {"path": "x" * 5000}})
    text = {"content": [{"type": "text", "text": "y" * 5000}]}
    end = tool_event({"phase": "result", "name": "read", "isError": True, "result": text})
    assert start is not None and end is not None
    assert (len(start.data["path"]), len(end.data["note"])) == (300, 200)


def test_events_of_other_runs_and_unknown_families_are_ignored(gateway: FakeGateway) -> None:
    play = turn("write")
    foreign = [json.loads(json.dumps(item).replace("@RUN@", "another-run")) for item in turn("readonly")[1:-1]]
    odd: list[Item] = [
        {"type": "event", "event": "tick", "payload": {"ts": 1}},
        {"type": "event", "event": "brand.new", "payload": None},
        {"type": "event", "event": "agent", "payload": {"runId": "@RUN@", "stream": "hologram", "data": {"phase": 1}}},
        {"type": "event", "event": "agent", "payload": {"runId": "@RUN@", "stream": "tool", "data": "text"}},
        {
            "type": "event",
            "event": "agent",
            "payload": {"runId": "@RUN@", "stream": "tool", "data": {"phase": "result"}},
        },
        {"type": "res", "id": "999", "ok": True, "payload": {}},
        {"type": "mystery"},
    ]
    plain, _ = run(gateway)
    result, events = run(gateway, [play[0], *foreign, *odd, *play[1:]])
    assert (result.outcome, result.usage) == ("completed", plain.usage)
    assert result.tools_ok[-1] == "write"
    assert "ls" not in json.dumps([dict(event.data) for event in events])


def test_lost_events_do_not_matter(gateway: FakeGateway) -> None:
    """Sequence numbers have gaps; the final frame alone decides."""
    play = turn("write")
    result, events = run(gateway, [play[0], play[-1]])
    assert (result.outcome, result.text) == ("completed", "Done: wrote the file.")
    assert result.usage.total > 0
    assert [event.kind for event in events] == ["usage"]


def test_a_stored_answer_without_accepted_is_a_result(gateway: FakeGateway) -> None:
    result, _ = run(gateway, [turn("write")[-1]])
    assert result.outcome == "completed"


def test_labels_never_collide_between_sessions(gateway: FakeGateway) -> None:
    """OpenClaw refuses a label that another session bears."""
    run(gateway, label="job 7")
    result, _ = run(gateway, label="job 7", session=session_key("write", "7-4"), run_id="mosaic-7-implement-4")
    assert result.outcome == "completed"


def feed(record: RunRecord, items: Sequence[Item]) -> None:
    for item in items:
        if isinstance(item, dict) and item["type"] == "event":
            record.take(item["event"], item["payload"])


def test_the_record_counts_each_model_call_of_its_own_run_as_it_happens() -> None:
    mine, other = RunRecord("@RUN@", lambda _event: None), RunRecord("another-run", lambda _event: None)
    for record in (mine, other):
        feed(record, turn("write"))
    final = final_of(turn("write"))["payload"]["result"]["meta"]["agentMeta"]
    assert mine.usage.total == final["usage"]["total"]
    assert mine.usage.cost_usd == pytest.approx(final["costUsd"])
    assert mine.context == final["lastCallUsage"]["total"]
    assert (other.usage.total, other.tools_ok, other.model_calls) == (0, [], 0)


def test_an_answer_of_the_model_ends_its_outage() -> None:
    record = RunRecord("@RUN@", lambda _event: None)
    feed(record, turn("err500"))
    assert (record.failure, record.outage >= 30) == ("server_error", True)
    feed(record, turn("write"))
    assert (record.failure, record.outage) == ("", 0.0)


# ---------------------------------------------------------------- success is more than `ok`


def test_ok_with_another_stop_reason_is_a_failure(gateway: FakeGateway) -> None:
    play = turn("write")
    final = final_of(play)
    final["payload"]["result"]["meta"]["stopReason"] = "toolUse"
    result, _ = run(gateway, [*play[:-1], final])
    assert (result.outcome, result.stop_reason) == ("failed", "toolUse")


@pytest.mark.parametrize(
    "change",
    [
        {"payloads": [{"text": "Exec failed", "isError": True}]},
        {"meta": {"stopReason": "stop", "error": {"kind": "incomplete_turn", "message": "cut off"}}},
        {"meta": {"stopReason": "stop", "aborted": True}},
        {"meta": {"stopReason": None}},
        {"meta": None},
    ],
)
def test_ok_with_an_error_inside_is_a_failure(gateway: FakeGateway, change: dict[str, Any]) -> None:
    play = turn("write")
    final = final_of(play)
    final["payload"]["result"].update(change)
    result, _ = run(gateway, [*play[:-1], final])
    assert result.outcome == "failed"
    assert result.error


# ---------------------------------------------------------------- the model fails


@pytest.mark.parametrize(
    ("recorded", "outcome", "least"),
    [("err400", "rejected", None), ("err401", "engine_unavailable", 60), ("err401_blocked", "engine_unavailable", 60)],
)
def test_recorded_model_errors(gateway: FakeGateway, recorded: str, outcome: str, least: float | None) -> None:
    result, _ = run(gateway, turn(recorded))
    assert result.outcome == outcome
    assert result.error
    assert (result.retry_after is None) if least is None else (result.retry_after or 0) >= least


def test_a_model_that_keeps_failing_is_given_up_early(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenClaw goes on for up to 90 s; the client stops when the next try lies too far ahead.

    The tape is played without its pauses, so that only the announced one before the sixth try (21 s) counts.
    """
    monkeypatch.setattr(openclaw_turn, "MODEL_PATIENCE", 10.0)
    play = turn("err500")
    retries = [item for item in play if streamed("run_status", "retrying")(item)]  # type: ignore[arg-type]
    assert len(retries) >= 6
    waiting = until(play, lambda frame: frame == retries[4])
    result, events = run(gateway, [*waiting, AWAIT_ABORT, turn("aborted")[-1]])
    assert result.outcome == "engine_unavailable"
    assert "server_error" in result.error
    assert result.retry_after == RETRY_AFTER["server_error"]
    assert gateway.asked("sessions.abort")[0] == {"key": spec_for(gateway).session, "runId": "mosaic-7-implement-3"}
    assert [event.data["retry"] for event in events if "retry" in event.data] == [1, 2, 3, 4, 5]


def test_a_model_that_recovers_is_waited_for(gateway: FakeGateway) -> None:
    play, good = turn("err500"), turn("write")
    first = next(item for item in play if streamed("run_status", "retrying")(item))  # type: ignore[arg-type]
    result, _ = run(gateway, [*until(play, lambda frame: frame == first), *good[1:]])
    assert result.outcome == "completed"
    assert gateway.asked("sessions.abort") == []


def test_openclaws_own_retries_are_left_alone_once_the_agent_has_worked(gateway: FakeGateway) -> None:
    worked, failing = until(turn("write"), streamed("tool", "result")), turn("err500")[1:]
    looked_often, seen = threading.Event(), 0
    gateway.play = [*worked, *failing[:-1], await_event(looked_often), failing[-1]]

    def look() -> bool:
        nonlocal seen
        seen += 1
        if seen > 4:
            looked_often.set()
        return False

    result = client_of(gateway).run(spec_for(gateway), lambda _event: None, look)
    assert result.outcome == "engine_unavailable"
    assert gateway.asked("sessions.abort") == []


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        *((reason, "engine_unavailable") for reason in RETRY_AFTER),
        ("format", "rejected"),
        ("model_not_found", "rejected"),
        ("context_overflow", "failed"),
        ("empty_response", "failed"),
        ("unknown", "failed"),
    ],
)
def test_every_word_for_a_failed_model_has_its_outcome(reason: str, outcome: str) -> None:
    verdict = judge_error("UNAVAILABLE", "text", reason, reached_model=True)
    assert verdict.outcome == outcome
    assert (verdict.retry_after is not None) == (outcome == "engine_unavailable")


@pytest.mark.parametrize(
    ("code", "reached", "outcome"),
    [
        ("INVALID_REQUEST", False, "rejected"),
        ("FORBIDDEN", False, "engine_unavailable"),
        ("UNAVAILABLE", False, "engine_unavailable"),
        ("UNAVAILABLE", True, "failed"),
        ("SOMETHING_NEW", False, "failed"),
    ],
)
def test_error_codes_without_a_model_reason(code: str, reached: bool, outcome: str) -> None:
    assert judge_error(code, "text", "", reached_model=reached).outcome == outcome


def test_openclaws_own_timeout_and_a_foreign_abort() -> None:
    by_model = judge_final({"status": "timeout", "result": {"meta": {"timeoutPhase": "provider"}}}, "")
    by_others = judge_final({"status": "timeout", "summary": "aborted"}, "")
    assert (by_model.outcome, by_others.outcome) == ("engine_unavailable", "lost")


# ---------------------------------------------------------------- we end it


def test_cancel_aborts_by_key_and_run_and_waits_for_the_end(gateway: FakeGateway) -> None:
    gateway.play = hanging()
    worked = threading.Event()

    def see(event: EngineEvent) -> None:
        if event.kind == "tool_end":
            worked.set()

    result = client_of(gateway).run(spec_for(gateway), see, worked.is_set)
    assert (result.outcome, result.error) == ("cancelled", "The turn was cancelled.")
    assert result.tools_ok == ("write",)
    assert result.usage.total > 0
    assert gateway.asked("sessions.abort")[0] == {"key": spec_for(gateway).session, "runId": "mosaic-7-implement-3"}


def test_a_job_that_is_cancelled_already_never_reaches_the_gateway(gateway: FakeGateway) -> None:
    result = client_of(gateway).run(spec_for(gateway), print, lambda: True)
    assert result.outcome == "cancelled"
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("limit", "outcome"),
    [
        ({"deadline_s": 0.5}, "timed_out"),
        ({"stall_s": 0.5}, "stalled"),
        ({"token_limit": 100}, "budget_exhausted"),
        ({"cost_limit": 0.0001}, "budget_exhausted"),
    ],
)
def test_limits_end_a_turn(gateway: FakeGateway, limit: dict[str, Any], outcome: str) -> None:
    result, _ = run(gateway, hanging(), **limit)
    assert result.outcome == outcome
    assert "did not confirm" not in result.error
    assert gateway.asked("sessions.abort")


def test_a_turn_within_its_limits_is_left_alone(gateway: FakeGateway) -> None:
    result, _ = run(gateway, token_limit=1_000_000, cost_limit=5.0)
    assert result.outcome == "completed"
    assert gateway.asked("sessions.abort") == []


def test_an_abort_that_is_not_confirmed_is_repeated_and_said(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openclaw_turn, "ABORT_EVERY", 0.2)
    monkeypatch.setattr(openclaw_turn, "ABORT_LIMIT", 1.0)
    result, _ = run(gateway, [*hanging()[:2], AWAIT_ABORT], deadline_s=0.3)
    assert result.outcome == "timed_out"
    assert "did not confirm" in result.error
    assert len(gateway.asked("sessions.abort")) >= 2


def test_a_turn_that_ends_well_after_our_abort_counts_as_aborted(gateway: FakeGateway) -> None:
    result, _ = run(gateway, [*hanging()[:2], AWAIT_ABORT, *turn("write")[1:]], deadline_s=0.3)
    assert result.outcome == "timed_out"


def test_an_error_of_the_caller_aborts_the_turn_and_is_passed_on(gateway: FakeGateway) -> None:
    gateway.play = hanging()

    def fail(_event: EngineEvent) -> None:
        raise LookupError("the lease is lost")

    with pytest.raises(LookupError, match="the lease is lost"):
        client_of(gateway).run(spec_for(gateway), fail, lambda: False)
    assert gateway.asked("sessions.abort")


# ---------------------------------------------------------------- the connection fails


@pytest.mark.parametrize("ending", [DROP, BINARY, raw("{this is not JSON"), raw("[1, 2]"), raw("[" * 100_000)])
def test_a_connection_that_ends_or_turns_to_garbage_loses_the_turn(gateway: FakeGateway, ending: Item) -> None:
    result, _ = run(gateway, [*turn("write")[:6], ending])
    assert result.outcome == "lost"
    assert "may still be running" in result.error
    assert result.boot_id == gateway.boot_id


def test_a_message_without_end_loses_the_turn(gateway: FakeGateway) -> None:
    endless = raw('{"type": "event", "event": "tick", "payload": "' + "x" * MAX_MESSAGE + '"}')
    result, _ = run(gateway, [turn("write")[0], endless, *turn("write")[1:]])
    assert result.outcome == "lost"


def test_a_connection_that_drops_before_accepted_is_lost_too(gateway: FakeGateway) -> None:
    """The request was sent: nobody can know whether the turn began."""
    result, _ = run(gateway, [DROP])
    assert result.outcome == "lost"


@pytest.mark.parametrize("greeting", ["http", "garbage", "close"])
def test_a_gateway_that_does_not_greet_is_unavailable(gateway: FakeGateway, greeting: str) -> None:
    gateway.greeting = greeting
    result, _ = run(gateway)
    assert result.outcome == "engine_unavailable"
    assert result.retry_after
    assert gateway.asked("agent") == []


@pytest.mark.parametrize("greeting", ["mute", "silent"])
def test_a_silent_gateway_is_given_up(gateway: FakeGateway, greeting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.clients.openclaw_connection.CONNECT_TIMEOUT", 0.5)
    gateway.greeting = greeting
    result, _ = run(gateway)
    assert result.outcome == "engine_unavailable"


def test_no_gateway_at_all() -> None:
    result = OpenClaw("ws://127.0.0.1:9", "token").run(
        RunSpec("r", session_key("write", "x"), "write", "/", "p", "", 5.0, 5.0), print, lambda: False
    )
    assert result.outcome == "engine_unavailable"
    assert "mosaic engine" in result.error
    assert not ready("ws://127.0.0.1:9/")


def test_a_wrong_token_says_which_setting(gateway: FakeGateway) -> None:
    client = OpenClaw(gateway.url, "another")
    result = client.run(spec_for(gateway), print, lambda: False)
    assert result.outcome == "engine_unavailable"
    assert "MOSAIC_OPENCLAW_TOKEN" in result.error
    assert "another" not in result.error
    health = client.health()
    assert (health.ok, "MOSAIC_OPENCLAW_TOKEN" in health.detail) == (False, True)


@pytest.mark.parametrize("version", ["2026.9.5", "2026.10.1", ""])
def test_another_version_is_refused(gateway: FakeGateway, version: str) -> None:
    gateway.version = version
    result, _ = run(gateway)
    assert result.outcome == "engine_unavailable"
    assert PINNED_VERSION in result.error
    assert gateway.asked("sessions.create") == []


def test_missing_scopes_are_refused(gateway: FakeGateway) -> None:
    gateway.granted = ("operator.read",)
    result, _ = run(gateway)
    assert result.outcome == "engine_unavailable"
    assert "operator.write" in result.error


def test_a_directory_outside_the_workspace_is_refused(gateway: FakeGateway, tmp_path: Path) -> None:
    result, _ = run(gateway, workdir=str(tmp_path))
    assert result.outcome == "engine_unavailable"
    assert gateway.asked("agent") == []


def test_a_session_that_is_less_confined_than_asked_is_not_used(gateway: FakeGateway) -> None:
    gateway.mode = "full"
    result, _ = run(gateway)
    assert result.outcome == "engine_unavailable"
    assert "'full'" in result.error
    assert gateway.asked("agent") == []


# ---------------------------------------------------------------- other questions


def test_abort_is_repeatable_and_clears_what_waits(gateway: FakeGateway) -> None:
    client, session = client_of(gateway), spec_for(gateway).session
    assert not client.abort(session)
    assert not client.abort(session, "mosaic-7-implement-3")
    expected = [{"key": session, "clearQueued": True}, {"key": session, "runId": "mosaic-7-implement-3"}]
    assert gateway.asked("sessions.abort") == expected


def test_settle_ends_a_turn_that_the_gateway_resumed_by_itself(gateway: FakeGateway) -> None:
    client, session = client_of(gateway), spec_for(gateway).session
    run(gateway)
    gateway.keeps_running = 2
    assert client.settle(session, 20.0)
    assert gateway.keeps_running == 0
    assert len(gateway.asked("sessions.abort")) == 3


def test_settle_waits_for_a_turn_that_is_about_to_be_resumed(gateway: FakeGateway) -> None:
    """Right after a restart there is nothing to abort yet, but the session still counts as running."""
    client, session = client_of(gateway), spec_for(gateway).session
    run(gateway)
    gateway.interrupted = 2
    assert client.settle(session, 20.0)
    assert len(gateway.asked("sessions.abort")) == 3


def test_settle_is_unsure_while_something_runs_or_nobody_answers(gateway: FakeGateway) -> None:
    client, session = client_of(gateway), spec_for(gateway).session
    run(gateway)
    gateway.keeps_running = 10_000
    assert not client.settle(session, 0.5)
    gateway.greeting = "http"
    assert not client.settle(session, 0.5)


def test_settle_of_an_unknown_session_is_done(gateway: FakeGateway) -> None:
    assert client_of(gateway).settle("agent:weaver:mosaic-never", 5.0)


def test_a_restart_is_visible_in_the_boot_id(gateway: FakeGateway) -> None:
    client = client_of(gateway)
    before = client.health()
    gateway.restart()
    after = client.health()
    assert (before.ok, after.ok, before.version) == (True, True, PINNED_VERSION)
    assert before.boot_id != after.boot_id


def test_describe_and_delete(gateway: FakeGateway) -> None:
    client, session = client_of(gateway), spec_for(gateway).session
    assert client.describe(session) is None
    run(gateway)
    state = client.describe(session)
    assert state is not None
    assert (state.running, state.mode, state.workdir) == (False, "workspace", str(gateway.workspace / "wt"))
    assert state.context_tokens > 0
    assert client.delete(session)
    assert not client.delete(session)
    assert client.describe(session) is None


def test_other_questions_raise_when_the_gateway_is_away() -> None:
    client = OpenClaw("ws://127.0.0.1:9", "token")
    for ask in (client.abort, client.describe, client.delete):
        with pytest.raises(GatewayUnavailable):
            ask("agent:weaver:mosaic-1")


# ---------------------------------------------------------------- the device key


def test_the_device_key_is_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "device.pem"
    first = load_or_create(path)
    assert load_or_create(path).device_id == first.device_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["device.pem"]


def test_a_spoilt_device_key_is_said(tmp_path: Path) -> None:
    path = tmp_path / "device.pem"
    path.write_text("not a key")
    with pytest.raises(ConfigInvalid, match="delete it to get a new one"):
        load_or_create(path)


def test_many_writers_agree_on_one_device_key(tmp_path: Path) -> None:
    path, found, gate = tmp_path / "device.pem", [], threading.Barrier(8)

    def load() -> None:
        gate.wait()
        found.append(load_or_create(path).device_id)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
