"""A gateway that speaks OpenClaw's protocol 4 from recorded tapes, and misbehaves on request.

It is as strict as the real one: it checks token, device signature, parameters, labels and scopes. What it says of a
turn is a list of items: recorded frames, and the actions below. Nothing of Mosaic is imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, Request, TextMessage
from wsproto.utilities import ProtocolError

TAPES = Path(__file__).resolve().parent.parent / "fixtures" / "openclaw"
VERSION = "2026.9.6"
SCOPES = ("operator.read", "operator.write", "operator.admin")
AGENT_PARAMETERS = {
    "message", "sessionKey", "agentId", "idempotencyKey", "timeout", "deliver", "extraSystemPrompt",
}  # fmt: skip
CREATE_PARAMETERS = {"key", "agentId", "cwd", "label", "permissionMode"}

Frame = dict[str, Any]


@dataclass(frozen=True)
class Action:
    """Something that a turn does instead of sending a frame."""

    name: str  # drop | await_abort | await | raw | binary
    text: str = ""
    event: threading.Event | None = None


Item = Frame | Action
Play = Callable[[Frame], Iterable[Item]]  # what a turn does, made for the session that it belongs to
DROP, AWAIT_ABORT, BINARY = Action("drop"), Action("await_abort"), Action("binary")


def raw(text: str) -> Action:
    """A message that is sent as it is."""
    return Action("raw", text)


def await_event(event: threading.Event) -> Action:
    """Say nothing more until the test sets the event."""
    return Action("await", event=event)


def tape(name: str) -> list[Frame]:
    """The frames that one connection received, as recorded from the real gateway."""
    frames: list[Frame] = json.loads((TAPES / f"{name}.json").read_text())
    return frames


def answer(name: str, method: str) -> Frame:
    """The recorded (first) answer to a method."""
    return next(frame for frame in tape(name) if frame.get("id") == method)


def turn(name: str) -> list[Item]:
    """What a tape holds of the turn itself: from `accepted` to the final answer."""
    frames = tape(name)
    marks = [index for index, frame in enumerate(frames) if frame.get("id") == "agent"]
    items: list[Item] = [frame for frame in frames[marks[0] : marks[-1] + 1] if frame.get("id") != "sessions.abort"]
    return items


def until(items: Sequence[Item], wanted: Callable[[Frame], bool]) -> list[Item]:
    """The items up to and with the first frame that is wanted."""
    index = next(i for i, item in enumerate(items) if isinstance(item, dict) and wanted(item))
    return list(items[: index + 1])


def streamed(stream: str, phase: str) -> Callable[[Frame], bool]:
    """Picks `agent` events, e.g. streamed("tool", "result")."""

    def wanted(frame: Frame) -> bool:
        payload = frame.get("payload") or {}
        return payload.get("stream") == stream and (payload.get("data") or {}).get("phase") == phase

    return wanted


def hanging() -> list[Item]:
    """A turn that writes a file, waits for its model, and ends when it is aborted."""
    items = turn("aborted")
    head = until(items, streamed("tool", "result"))
    return [*head, AWAIT_ABORT, *items[len(head) :]]


@dataclass
class FakeGateway:
    """`with FakeGateway(workspace) as gateway:`; set the fields before a client connects."""

    workspace: Path  # sessions must work inside
    token: str = "fake-token"
    version: str = VERSION
    granted: tuple[str, ...] = SCOPES
    greeting: str = "challenge"  # challenge | mute (no handshake) | silent (no challenge) | http | garbage | close
    play: Sequence[Item] | Play = field(default_factory=lambda: turn("write"))
    mode: str = ""  # permission mode that sessions get, whatever was asked
    keeps_running: int = 0  # how many aborts find a run that was resumed by the gateway itself
    interrupted: int = 0  # how many looks find a turn that a restart interrupted and that is about to be resumed
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)  # label -> session key
    sessions: dict[str, Frame] = field(default_factory=dict)

    def __enter__(self) -> FakeGateway:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: list[_Line] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for line in self._lines:
            line.drop()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._listener.getsockname()[1]}"

    def restart(self) -> None:
        """What clients see of a restart: their connections end, and the boot id is another one."""
        self.boot_id = str(uuid.uuid4())
        for line in self._lines:
            line.drop()

    def asked(self, method: str) -> list[dict[str, Any]]:
        """The parameters of every request for a method, in order."""
        return [params for name, params in self.requests if name == method]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            line = _Line(self, connection)
            self._lines.append(line)
            threading.Thread(target=line.serve, daemon=True).start()


class _Line:
    """One client's connection."""

    def __init__(self, gateway: FakeGateway, connection: socket.socket) -> None:
        self._gateway = gateway
        self._socket = connection
        self._protocol = WSConnection(ConnectionType.SERVER)
        self._lock = threading.Lock()
        self._aborted = threading.Event()
        self._nonce = str(uuid.uuid4())
        self._scopes: tuple[str, ...] = ()
        self._subscribed: set[str] = set()
        self._text = ""

    def drop(self) -> None:
        """The connection ends as when the program was killed: without a goodbye."""
        self._aborted.set()
        with suppress(OSError):  # it may have ended already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def serve(self) -> None:
        try:
            while data := self._socket.recv(65_536):
                self._protocol.receive_data(data)
                for event in self._protocol.events():
                    self._on_event(event)
        except (OSError, ProtocolError):
            pass  # the client went away
        finally:
            self.drop()

    def _on_event(self, event: object) -> None:
        if isinstance(event, Request):
            self._greet()
        elif isinstance(event, TextMessage):
            self._text += event.data
            if event.message_finished:
                request, self._text = json.loads(self._text), ""
                self._on_request(request)
        elif isinstance(event, CloseConnection):
            self.drop()

    def _greet(self) -> None:
        greeting = self._gateway.greeting
        if greeting == "http":
            self._write(RejectConnection(status_code=503, has_body=False))
        elif greeting == "close":
            self.drop()
        elif greeting != "mute":
            self._write(AcceptConnection())
            if greeting == "garbage":
                self._write(TextMessage(data="{this is not JSON"))
            elif greeting == "challenge":
                payload = {"nonce": self._nonce, "ts": 1_795_000_000_000}
                self.send({"type": "event", "event": "connect.challenge", "payload": payload})

    def _write(self, event: Any) -> None:
        with self._lock:
            self._socket.sendall(self._protocol.send(event))

    def send(self, frame: Mapping[str, Any]) -> None:
        self._write(TextMessage(data=json.dumps(frame)))

    def _on_request(self, request: Frame) -> None:
        method, params = str(request["method"]), dict(request.get("params") or {})
        self._gateway.requests.append((method, params))
        handlers: dict[str, Callable[[dict[str, Any]], Frame | None]] = {
            "connect": self._connect,
            "sessions.create": self._create,
            "sessions.messages.subscribe": self._subscribe,
            "sessions.abort": self._abort,
            "sessions.describe": self._describe,
            "sessions.delete": self._delete,
            "agent": lambda p: self._agent(str(request["id"]), p),
        }
        result = handlers[method](params) if method in handlers else _error("INVALID_REQUEST", f"unknown {method}")
        if result is not None:
            self.send({**result, "type": "res", "id": request["id"]})

    # ------------------------------------------------------------ methods

    def _connect(self, params: dict[str, Any]) -> Frame:
        if params["auth"]["token"] != self._gateway.token:
            return answer("wrong_token", "connect")
        if not _proven(params, self._nonce):
            return _error("INVALID_REQUEST", "device signature invalid", "DEVICE_AUTH_INVALID")
        if not params["minProtocol"] <= 4 <= params["maxProtocol"]:
            return _error("INVALID_REQUEST", "protocol mismatch")
        self._scopes = tuple(scope for scope in params["scopes"] if scope in self._gateway.granted)
        hello = answer("write", "connect")
        server = {**hello["payload"]["server"], "version": self._gateway.version, "bootId": self._gateway.boot_id}
        auth = {**hello["payload"]["auth"], "scopes": list(self._scopes)}
        return _ok({**hello["payload"], "server": server, "auth": auth})

    def _create(self, params: dict[str, Any]) -> Frame:
        key, label, root = params["key"], params.get("label"), os.path.realpath(params["cwd"])
        if unknown := params.keys() - CREATE_PARAMETERS:
            return _error("INVALID_REQUEST", f"unexpected property {sorted(unknown)}")
        if not Path(root).is_relative_to(os.path.realpath(self._gateway.workspace)):
            return answer("create_outside", "sessions.create")
        if label and self._gateway.labels.setdefault(label, key) != key:
            return _error("INVALID_REQUEST", f"label already in use: {label}")
        recorded = answer("write", "sessions.create")["payload"]
        mode = self._gateway.mode or params["permissionMode"]
        entry = {**recorded["entry"], "sessionRoot": root, "permissionMode": mode}
        self._gateway.sessions[key] = {"key": key, "status": "done", "sessionRoot": root, "permissionMode": mode}
        return _ok({**recorded, "key": key, "entry": entry})

    def _subscribe(self, params: dict[str, Any]) -> Frame:
        self._subscribed.add(params["key"])
        return _ok({"subscribed": True, "key": params["key"]})

    def _abort(self, params: dict[str, Any]) -> Frame:
        if "key" not in params:
            return _error("INVALID_REQUEST", 'session key "main" has no explicit owner')
        session = self._gateway.sessions.get(params["key"], {})
        if self._gateway.keeps_running:
            self._gateway.keeps_running -= 1
            return _ok({"ok": True, "abortedRunId": "resumed", "status": "aborted"})
        if session.get("status") != "running":
            return _ok({"ok": True, "abortedRunId": None, "status": "no-active-run"})
        self._aborted.set()
        return _ok({"ok": True, "abortedRunId": params.get("runId"), "status": "aborted"})

    def _describe(self, params: dict[str, Any]) -> Frame:
        session = self._gateway.sessions.get(params["key"])
        if session is None:
            return _ok({"session": None})
        recorded = answer("write", "sessions.describe")["payload"]["session"]
        status = "running" if self._gateway.keeps_running or self._gateway.interrupted else session["status"]
        self._gateway.interrupted = max(0, self._gateway.interrupted - 1)
        return _ok({"session": {**recorded, **session, "status": status}})

    def _delete(self, params: dict[str, Any]) -> Frame:
        if "operator.admin" not in self._scopes:
            return _error("FORBIDDEN", "missing scope: operator.admin", "MISSING_SCOPE")
        return _ok({"ok": True, "deleted": self._gateway.sessions.pop(params["key"], None) is not None})

    def _agent(self, number: str, params: dict[str, Any]) -> Frame | None:
        if unknown := params.keys() - AGENT_PARAMETERS:
            return _error("INVALID_REQUEST", f"unexpected property {sorted(unknown)}")
        if params["sessionKey"].split(":")[1] != params["agentId"]:
            return _error("INVALID_REQUEST", "agent does not own the session")
        self._gateway.sessions[params["sessionKey"]]["status"] = "running"
        threading.Thread(target=self._play, args=(number, params), daemon=True).start()
        return None

    def _play(self, number: str, params: dict[str, Any]) -> None:
        """Send the items of the turn, with this run's names in place of the recorded ones."""
        session = self._gateway.sessions[params["sessionKey"]]
        play = self._gateway.play
        try:
            for item in play(session) if callable(play) else play:
                if isinstance(item, Action):
                    self._act(item)
                elif item.get("event") != "session.message" or params["sessionKey"] in self._subscribed:
                    self.send(_named(item, number, params))
        except (OSError, ProtocolError):
            pass  # the client went away, or an action ended the connection
        finally:
            session["status"] = "done"

    def _act(self, action: Action) -> None:
        if action.name == "drop":
            self.drop()
        elif action.name == "await_abort":
            self._aborted.wait()
        elif action.event is not None:
            action.event.wait()
        elif action.name == "raw":
            self._write(TextMessage(data=action.text))
        else:
            self._write(BytesMessage(data=b"\x00\x01"))


def _named(frame: Frame, number: str, params: Mapping[str, Any]) -> Frame:
    text = json.dumps(frame).replace("@RUN@", params["idempotencyKey"]).replace("@SESSION@", params["sessionKey"])
    named: Frame = json.loads(text)
    return {**named, "id": number} if named.get("id") == "agent" else named


def _ok(payload: Mapping[str, Any]) -> Frame:
    return {"ok": True, "payload": payload}


def _error(code: str, message: str, detail: str = "") -> Frame:
    details = {"details": {"code": detail}} if detail else {}
    return {"ok": False, "error": {"code": code, "message": message, **details}}


def _proven(params: Mapping[str, Any], nonce: str) -> bool:
    """Whether the device signed who it is, what it asks for, with which token, and for our challenge."""
    device, client = params.get("device") or {}, params["client"]
    public = _unbase64(device.get("publicKey", ""))
    if not public or hashlib.sha256(public).hexdigest() != device.get("id") or device.get("nonce") != nonce:
        return False
    fields: Iterable[str] = (
        "v3", device["id"], client["id"], client["mode"], params["role"], ",".join(params["scopes"]),
        str(device["signedAt"]), params["auth"]["token"], nonce, client["platform"], "",
    )  # fmt: skip
    try:
        key = Ed25519PublicKey.from_public_bytes(public)
        key.verify(_unbase64(device["signature"]), "|".join(fields).encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
