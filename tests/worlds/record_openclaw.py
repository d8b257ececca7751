"""Record what the real gateway says, as tapes for the fake one: `python -m tests.worlds.record_openclaw`.

To be run again when the pinned version changes. A tape is the list of frames that one connection received, with the
answers named by the method they answer, and with everything that identifies a machine or opens a door taken out.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.clients.device_identity import load_or_create
from app.clients.openclaw import session_key
from app.clients.openclaw_connection import Connection, Frame, GatewayRefused, GatewayUnavailable
from tests.worlds.model import ScriptedModel
from tests.worlds.openclaw import RealGateway

TAPES = Path(__file__).resolve().parent.parent / "fixtures" / "openclaw"
WORKTREES = "/srv/mosaic/worktrees"
PRIVATE = frozenset(
    {"snapshot", "features", "pluginSurfaceUrls", "recoveryScope", "controlUiWidgetKinds", "systemPromptReport"}
)
NOISE = frozenset({"health", "presence", "skills.changed", "chat.metadata.changed", "session.sharing.evidence"})
KEPT_OF_A_MESSAGE = ("sessionKey", "agentId", "message", "messageSeq")


class Recorder(Connection):
    """A connection that keeps every frame it receives in `frames`."""

    def __init__(self, gateway: RealGateway, frames: list[dict[str, Any]], token: str | None = None) -> None:
        self.frames = frames
        self.methods: dict[str, str] = {}
        super().__init__(gateway.url, token or gateway.token, load_or_create(None))

    def send(self, method: str, params: Mapping[str, Any]) -> str:
        number = super().send(method, params)
        self.methods[number] = method
        return number

    def receive(self, timeout: float) -> Frame | None:
        frame = super().receive(timeout)
        if frame is not None and frame.get("event") not in NOISE:
            self.frames.append({**frame, "id": self.methods[str(frame["id"])]} if "id" in frame else dict(frame))
        return frame


class Session:
    """The directory and the gateway that tapes are recorded with."""

    def __init__(self, gateway: RealGateway, home: Path) -> None:
        self.gateway, self.home = gateway, home

    def turn(self, name: str, script: str, *, abort_after: str = "", limit: float = 200.0) -> None:
        """Record one turn; `abort_after` names the stream after whose first result the turn is aborted."""
        session, run_id = session_key("write", name), f"mosaic-{name}-1"
        tree = self.home / "worktrees" / name
        tree.mkdir(parents=True)
        (tree / "a.txt").write_text("one\n")
        with Recorder(self.gateway, []) as line:
            create = {"key": session, "agentId": "weaver", "cwd": str(tree), "permissionMode": "workspace"}
            line.call("sessions.create", {**create, "label": f"mosaic-{name} a label"})
            line.call("sessions.messages.subscribe", {"key": session})
            number = line.send("agent", _agent(session, run_id, script))
            for frame in _until(line, limit):
                if abort_after and _is_result(frame, abort_after):
                    abort_after = ""
                    line.send("sessions.abort", {"key": session, "runId": run_id})
                if frame.get("id") == number and frame.get("payload", {}).get("status") != "accepted":
                    break
            line.call("sessions.describe", {"key": session})
            self.save(name, line.frames, {str(tree): f"{WORKTREES}/tape", session: "@SESSION@", run_id: "@RUN@"})

    def save(self, name: str, frames: list[dict[str, Any]], words: Mapping[str, str]) -> None:
        """Write a tape. `words` are put in place of what differs between recordings, the longest text first."""
        text = json.dumps([_clean(frame) for frame in frames], indent=1)
        for old, new in [*words.items(), (str(self.home), "/srv/mosaic")]:
            text = text.replace(old, new)
        assert self.gateway.token not in text
        (TAPES / f"{name}.json").write_text(text + "\n")


def _agent(session: str, run_id: str, script: str) -> dict[str, Any]:
    head = {"message": f"[[script:{script}]]", "sessionKey": session, "agentId": "weaver"}
    return {**head, "idempotencyKey": run_id, "timeout": 300, "deliver": False}


def _until(line: Recorder, limit: float) -> Iterator[Frame]:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        frame = line.receive(0.2)
        if frame is not None:
            yield frame


def _is_result(frame: Frame, stream: str) -> bool:
    payload = frame.get("payload") or {}
    data = payload.get("data") or {}
    return payload.get("stream") == stream and data.get("phase") in ("result", "model")


def _clean(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("event") == "session.message":
        value = {**value, "payload": {key: value["payload"][key] for key in KEPT_OF_A_MESSAGE}}
    return {key: _clean(item) for key, item in value.items() if key not in PRIVATE}


@contextmanager
def _session(home: Path, model: ScriptedModel) -> Iterator[Session]:
    with RealGateway(home / "worktrees", model.url, state_dir=home / "state") as gateway:
        yield Session(gateway, home)


def _refused(tape: Session, name: str, method: str, params: Mapping[str, Any], token: str | None = None) -> None:
    """Record an answer that is a refusal."""
    frames: list[dict[str, Any]] = []
    with suppress(GatewayUnavailable, GatewayRefused), Recorder(tape.gateway, frames, token) as line:
        line.call(method, params)
    tape.save(name, frames, {})


def main() -> None:
    TAPES.mkdir(parents=True, exist_ok=True)
    with ScriptedModel() as model, tempfile.TemporaryDirectory() as place:
        home = Path(place)
        with _session(home, model) as tape:
            tape.turn("write", "write path=hello.txt body=hi")
            tape.turn("readonly", "readonly")
            tape.turn("aborted", "write_then_hang s=60", abort_after="tool")
            tape.turn("err400", "err400")
            tape.turn("err500", "err500")
            outside = {"key": "agent:weaver:mosaic-x", "agentId": "weaver", "cwd": "/", "permissionMode": "workspace"}
            _refused(tape, "create_outside", "sessions.create", outside)
            _refused(tape, "wrong_token", "health", {}, token="0" * 64)
            tape.turn("err401", "err401")
            tape.turn("err401_blocked", "hello")
    print(f"recorded {len(list(TAPES.glob('*.json')))} tapes in {TAPES}")


if __name__ == "__main__":
    main()
