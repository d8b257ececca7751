"""End to end: Mosaic's client, the real pinned OpenClaw gateway, a scripted model. The files have the last word."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app import engine
from app.clients.openclaw import OpenClaw, ready, session_key
from app.types import EngineEvent, RunResult, RunSpec
from tests.worlds.model import ScriptedModel
from tests.worlds.openclaw import RealGateway

pytestmark = pytest.mark.e2e


@dataclass
class World:
    """A gateway, its model, and the directory of the worktrees."""

    gateway: RealGateway
    model: ScriptedModel
    worktrees: Path

    def worktree(self, name: str) -> Path:
        tree = self.worktrees / name
        tree.mkdir()
        (tree / "a.txt").write_text("one\n")
        return tree

    def spec(self, name: str, script: str, *, profile: str = "write", **more: Any) -> RunSpec:
        values: dict[str, Any] = {"deadline_s": 300.0, "stall_s": 120.0, "system": "Rules of this repository.", **more}
        session = session_key(profile, name)
        run_id = values.pop("run_id", f"mosaic-{name}-1")
        workdir = values.pop("workdir", str(self.worktrees / name))
        return RunSpec(run_id, session, profile, workdir, f"Please do it.\n[[script:{script}]]", **values)

    def run(self, spec: RunSpec, seen: list[EngineEvent] | None = None) -> RunResult:
        events: list[EngineEvent] = [] if seen is None else seen
        return self.gateway.client().run(spec, events.append, lambda: False)


class Flag:
    """A cancel flag that an event of the run raises."""

    def __init__(self, when: Callable[[EngineEvent], bool]) -> None:
        self._when = when
        self._raised = threading.Event()

    def see(self, event: EngineEvent) -> None:
        if self._when(event):
            self._raised.set()

    def up(self) -> bool:
        return self._raised.is_set()


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel() as server:
        yield server


@pytest.fixture(scope="module")
def world(model: ScriptedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("openclaw")
    with RealGateway(home / "worktrees", model.url, state_dir=home / "state") as gateway:
        yield World(gateway, model, home / "worktrees")


def test_a_write_turn_changes_the_worktree_and_is_told_step_by_step(world: World) -> None:
    tree = world.worktree("write")
    events: list[EngineEvent] = []
    result = world.run(world.spec("write", "write path=hello.txt body=hi", label="mosaic 42"), events)
    assert (result.outcome, result.error, result.stop_reason) == ("completed", "", "stop")
    assert (tree / "hello.txt").read_text() == "hi\n"
    assert result.text == "Done: wrote the file."
    assert (result.tools_ok, result.tool_calls, result.tool_failures) == (("write",), 1, 0)
    kinds = [event.kind for event in events]
    assert kinds[0] == "started"
    assert kinds.index("tool_start") < kinds.index("tool_end") < kinds.index("finishing")
    assert kinds[-1] == "usage"
    start = next(event.data for event in events if event.kind == "tool_start")
    assert (start["tool"], start["path"]) == ("write", "hello.txt")
    assert "hi" not in json.dumps([dict(event.data) for event in events if event.kind.startswith("tool")])


def test_tokens_and_cost_are_those_of_the_model(world: World) -> None:
    world.worktree("usage")
    result = world.run(world.spec("usage", "write"))
    assert result.usage.total == result.usage.input + result.usage.output
    assert result.usage.output == 2 * 17
    assert result.usage.cost_usd == pytest.approx((result.usage.input + 2 * result.usage.output) / 1e6)
    assert result.usage.input / 2 < result.session_tokens < result.usage.total  # the last of two calls


def test_a_second_round_continues_the_same_conversation(world: World) -> None:
    tree = world.worktree("rounds")
    first = world.run(world.spec("rounds", "two_rounds path=b.txt round=1"))
    assert (tree / "b.txt").read_text() == "first\n"
    second = world.run(world.spec("rounds", "two_rounds path=b.txt round=2", run_id="mosaic-rounds-2"))
    assert (first.outcome, second.outcome) == ("completed", "completed")
    assert (tree / "b.txt").read_text() == "second\n"
    assert second.session_tokens > first.session_tokens
    assert world.model.seen("two_rounds")[-1]["roles"].count("user") == 2


def test_the_agents_get_exactly_their_tools_and_the_rules(world: World) -> None:
    world.worktree("tools-w")
    world.worktree("tools-r")
    world.run(world.spec("tools-w", "nothing"))
    assert world.model.seen("nothing")[-1]["tools"] == ["apply_patch", "edit", "ls", "read", "write"]
    assert "Rules of this repository." in world.model.seen("nothing")[-1]["system"]
    world.run(world.spec("tools-r", "nothing", profile="read"))
    assert world.model.seen("nothing")[-1]["tools"] == ["ls", "read"]


def test_the_reading_agent_cannot_change_anything(world: World) -> None:
    tree = world.worktree("readonly")
    result = world.run(world.spec("readonly", "readonly", profile="read"))
    assert [path.name for path in tree.iterdir()] == ["a.txt"]
    assert (tree / "a.txt").read_text() == "one\n"
    assert result.tools_ok == ("read",)
    assert result.tool_failures == 4


def test_the_writing_agent_cannot_leave_its_worktree(world: World, tmp_path: Path) -> None:
    tree, sibling = world.worktree("escape"), world.worktree("sibling")
    (tmp_path / "secret.txt").write_text("the secret\n")
    (tree / "link").symlink_to(tmp_path)
    script = f"escape outside={tmp_path}/out.txt sibling=../sibling/out.txt read={sibling}/a.txt"
    events: list[EngineEvent] = []
    result = world.run(world.spec("escape", script), events)
    assert result.outcome == "completed"  # the turn itself ends well: only the files can tell
    assert result.tools_ok == ()
    assert result.tool_failures == 6
    assert {path.name for path in tree.iterdir()} == {"a.txt", "link"}
    assert [path.name for path in sibling.iterdir()] == ["a.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
    assert "the secret" not in json.dumps(world.model.seen("escape")[-1]["last"])


def test_a_directory_outside_the_workspace_is_refused(world: World, tmp_path: Path) -> None:
    result = world.run(world.spec("outside", "write", workdir=str(tmp_path)))
    assert result.outcome == "engine_unavailable"
    assert "operator.admin" in result.error
    assert list(tmp_path.iterdir()) == []


def test_cancel_ends_a_turn_that_waits_for_its_model(world: World) -> None:
    world.worktree("cancel")
    flag = Flag(lambda event: event.kind == "tool_end")
    spec = world.spec("cancel", "write_then_hang s=600")
    result = world.gateway.client().run(spec, flag.see, flag.up)
    assert (result.outcome, result.error) == ("cancelled", "The turn was cancelled.")
    assert result.tools_ok == ("write",)
    state = world.gateway.client().describe(spec.session)
    assert state is not None
    assert not state.running


def test_cancel_before_the_turn_has_begun_still_ends_it(world: World) -> None:
    world.worktree("early")
    asked = iter([False])
    spec = world.spec("early", "hang s=600")
    result = world.gateway.client().run(spec, lambda _event: None, lambda: next(asked, True))
    assert (result.outcome, result.error) == ("cancelled", "The turn was cancelled.")
    assert world.gateway.client().settle(spec.session, 20.0)


def test_deadline_stall_and_budget_end_a_turn(world: World) -> None:
    for name in ("deadline", "stall", "tokens", "cost"):
        world.worktree(name)
    results = {
        "deadline": world.run(world.spec("deadline", "hang s=600", deadline_s=2.0)),
        "stall": world.run(world.spec("stall", "hang s=600", stall_s=2.0)),
        "tokens": world.run(world.spec("tokens", "loop n=500", token_limit=9_000)),
        "cost": world.run(world.spec("cost", "loop n=500", cost_limit=0.009)),
    }
    outcomes = {name: result.outcome for name, result in results.items()}
    budget = "budget_exhausted"
    assert outcomes == {"deadline": "timed_out", "stall": "stalled", "tokens": budget, "cost": budget}
    assert 9_000 < results["tokens"].usage.total < 30_000
    assert not any("did not confirm" in result.error for result in results.values())


def test_a_fault_of_the_caller_ends_the_turn(world: World) -> None:
    world.worktree("caller")
    spec = world.spec("caller", "write_then_hang s=600")

    def fail(event: EngineEvent) -> None:
        if event.kind == "tool_end":
            raise LookupError("the lease is lost")

    with pytest.raises(LookupError, match="the lease is lost"):
        world.gateway.client().run(spec, fail, lambda: False)
    state = world.gateway.client().describe(spec.session)
    assert state is not None
    assert not state.running


def test_the_same_run_id_never_runs_twice(world: World) -> None:
    world.worktree("again")
    spec = world.spec("again", "write path=again.txt")
    first = world.run(spec)
    calls = len(world.model.requests)
    second = world.run(spec)
    assert (first.outcome, second.outcome) == ("completed", "completed")
    assert len(world.model.requests) == calls


def test_a_request_that_the_model_refuses_is_rejected(world: World) -> None:
    world.worktree("err400")
    result = world.run(world.spec("err400", "err400"))
    assert (result.outcome, result.retry_after) == ("rejected", None)
    assert len(world.model.seen("err400")) == 1


@pytest.mark.parametrize("script", ["err500", "err429", "drop"])
def test_a_failing_model_is_given_up_before_openclaw_would(world: World, script: str) -> None:
    world.worktree(script)
    result = world.run(world.spec(script, script))
    assert result.outcome == "engine_unavailable"
    assert result.retry_after is not None
    assert result.retry_after >= 30
    assert 2 <= len(world.model.seen(script)) <= 7  # OpenClaw alone would call 9 or 10 times in 80 to 130 s


def test_a_deleted_session_is_gone(world: World) -> None:
    world.worktree("deleted")
    spec = world.spec("deleted", "hello")
    world.run(spec)
    client = world.gateway.client()
    state = client.describe(spec.session)
    assert state is not None
    assert (state.running, state.mode, state.workdir) == (False, "workspace", str(world.worktrees / "deleted"))
    assert client.delete(spec.session)
    assert not client.delete(spec.session)
    assert client.describe(spec.session) is None


def test_a_wrong_token_and_a_missing_gateway_are_told_apart(world: World) -> None:
    world.worktree("token")
    spec = world.spec("token", "write")
    refused = world.gateway.client(token="0" * 64).run(spec, lambda _event: None, lambda: False)
    absent = OpenClaw("ws://127.0.0.1:9/", world.gateway.token).run(spec, lambda _event: None, lambda: False)
    assert (refused.outcome, absent.outcome) == ("engine_unavailable", "engine_unavailable")
    assert "MOSAIC_OPENCLAW_TOKEN" in refused.error
    assert "does not answer" in absent.error
    assert world.gateway.client().health().ok
    assert not world.gateway.client(token="0" * 64).health().ok


def test_the_gateway_keeps_our_configuration_and_no_secret_is_on_the_disk(world: World) -> None:
    settings = world.gateway.settings
    assert json.loads(settings.config_path.read_text()) == engine.gateway_config(settings)
    files = [path for path in settings.state_dir.rglob("*") if path.is_file()]
    secrets = (settings.token.encode(), settings.model_api_key.encode())
    assert len(files) > 5
    assert [path for path in files if any(secret in path.read_bytes() for secret in secrets)] == []
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (settings.state_dir, settings.config_path)}
    assert modes == {0o700, 0o600}


def test_a_killed_gateway_loses_the_turn_and_settle_keeps_it_from_resuming(
    model: ScriptedModel, tmp_path: Path
) -> None:
    with RealGateway(tmp_path / "worktrees", model.url, state_dir=tmp_path / "state") as gateway:
        world = World(gateway, model, tmp_path / "worktrees")
        world.worktree("killed")
        spec = world.spec("killed", "write_then_hang s=600")

        def kill(event: EngineEvent) -> None:
            if event.kind == "tool_end":
                gateway.kill()

        result = gateway.client().run(spec, kill, lambda: False)
        assert result.outcome == "lost"
        assert not ready(gateway.url)
        assert not gateway.client().settle(spec.session, 1.0)
        assert gateway.client().run(spec, print, lambda: False).outcome == "engine_unavailable"
        gateway.restart()
        assert gateway.client().settle(spec.session, 30.0)
        gateway.wait_for_log("main-session restart recovery startup complete")  # now it would have been resumed
        state = gateway.client().describe(spec.session)
        assert state is not None
        assert not state.running
        assert gateway.client().health().boot_id != result.boot_id
        world.worktree("killed-2")
        assert world.run(world.spec("killed-2", "write")).outcome == "completed"
        _one_refused_key_blocks_the_gateway(world)


def _one_refused_key_blocks_the_gateway(world: World) -> None:
    """Last on its own gateway: afterwards the gateway refuses every run for about a minute."""
    world.worktree("err401")
    world.worktree("after401")
    refused = world.run(world.spec("err401", "err401"))
    calls = len(world.model.requests)
    blocked = world.run(world.spec("after401", "write"))
    assert len(world.model.requests) == calls
    for result in (refused, blocked):
        assert result.outcome == "engine_unavailable"
        assert result.retry_after is not None
        assert result.retry_after >= 60
