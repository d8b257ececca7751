"""One authenticated connection to the OpenClaw gateway (protocol 4). Its one rule: whoever answers is checked first.

Frames are JSON texts: `{type: req, id, method, params}` out, `{type: res, id, ok, payload | error}` and
`{type: event, event, payload}` in. The gateway sends every client the events of all runs: filter by run id.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from app.clients.device_identity import DeviceIdentity
from app.clients.websocket import SocketClosed, WebSocket
from app.types import Permanent, Transient

PINNED_VERSION = "2026.9.6"
PROTOCOL = 4
ROLE = "operator"
RUN_SCOPES = ("operator.read", "operator.write")
ADMIN_SCOPES = (*RUN_SCOPES, "operator.admin")  # only to delete a session: the gateway asks for it
CLIENT = {"id": "gateway-client", "version": "1", "platform": "linux", "mode": "backend"}  # ids are a closed list
CONNECT_TIMEOUT = 10.0
CALL_TIMEOUT = 30.0

Frame = Mapping[str, Any]
ADVICE = "Ask the operator to check MOSAIC_OPENCLAW_URL and that `mosaic engine` runs."


class GatewayUnavailable(Transient):
    """The gateway cannot be reached or used as it is; the text says why and what to do."""

    code = "engine_unavailable"


class GatewayRefused(Permanent):
    """The gateway answered a request with an error; `rpc_code` is its own word, e.g. INVALID_REQUEST."""

    code = "engine_rejected"

    def __init__(self, message: str, *, rpc_code: str, reason: str) -> None:
        super().__init__(message)
        self.rpc_code = rpc_code
        self.reason = reason  # the more precise word, e.g. MISSING_SCOPE; may be empty


class ConnectionLost(GatewayUnavailable):
    """The connection ended, or carried something that is not the protocol."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What the gateway said of itself: `boot_id` changes with every start of the gateway."""

    version: str
    boot_id: str
    scopes: tuple[str, ...]


class Connection:
    """Opened on creation: raises GatewayUnavailable with a cause that a person can act on."""

    def __init__(self, url: str, token: str, identity: DeviceIdentity, *, scopes: tuple[str, ...] = RUN_SCOPES) -> None:
        self._ids = itertools.count(1)
        try:
            self._socket = WebSocket(url, CONNECT_TIMEOUT)
        except SocketClosed as error:
            raise GatewayUnavailable(f"The OpenClaw gateway at {url} does not answer: {error}. {ADVICE}") from error
        try:
            self.hello = self._introduce(token, identity, scopes)
        except BaseException:
            self._socket.close()
            raise

    def send(self, method: str, params: Mapping[str, Any]) -> str:
        """Send a request; returns its id. The answer comes through `receive`."""
        number = str(next(self._ids))
        try:
            self._socket.send(json.dumps({"type": "req", "id": number, "method": method, "params": params}))
        except SocketClosed as error:
            raise ConnectionLost(f"The connection to the OpenClaw gateway ended: {error}.") from error
        return number

    def receive(self, timeout: float) -> Frame | None:
        """The next frame, or None after `timeout` seconds."""
        try:
            text = self._socket.receive(timeout)
        except SocketClosed as error:
            raise ConnectionLost(f"The connection to the OpenClaw gateway ended: {error}.") from error
        if text is None:
            return None
        try:
            frame = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConnectionLost(f"The OpenClaw gateway sent something that is not JSON: {text[:80]!r}.") from error
        if not isinstance(frame, dict):
            raise ConnectionLost("The OpenClaw gateway sent a frame that is not an object.")
        return frame

    def call(self, method: str, params: Mapping[str, Any], timeout: float = CALL_TIMEOUT) -> Mapping[str, Any]:
        """Send a request and wait for its answer, passing over everything else; returns the payload."""
        number = self.send(method, params)
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            frame = self.receive(left)
            if frame and frame.get("type") == "res" and frame.get("id") == number:
                return payload_of(frame, method)
        raise GatewayUnavailable(f"The OpenClaw gateway did not answer {method} within {timeout:g} s.")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _introduce(self, token: str, identity: DeviceIdentity, scopes: tuple[str, ...]) -> Hello:
        challenge = self._challenge()
        params = {
            "minProtocol": PROTOCOL,
            "maxProtocol": PROTOCOL,
            "client": CLIENT,
            "role": ROLE,
            "scopes": list(scopes),
            "caps": ["tool-events"],
            "auth": {"token": token},
            "device": identity.proof(CLIENT, ROLE, scopes, token, challenge),
            "locale": "en-US",
            "userAgent": "mosaic",
        }
        try:
            hello = _read_hello(self.call("connect", params, CONNECT_TIMEOUT))
        except GatewayRefused as error:
            raise GatewayUnavailable(_why_refused(error)) from error
        _check(hello, scopes)
        return hello

    def _challenge(self) -> Mapping[str, Any]:
        until = time.monotonic() + CONNECT_TIMEOUT
        while (left := until - time.monotonic()) > 0:
            frame = self.receive(left)
            if frame and frame.get("event") == "connect.challenge" and isinstance(frame.get("payload"), dict):
                challenge: Mapping[str, Any] = frame["payload"]
                return challenge
        raise GatewayUnavailable(f"The program at that address does not speak OpenClaw's protocol. {ADVICE}")


def payload_of(frame: Frame, method: str) -> Mapping[str, Any]:
    """The payload of an answer; GatewayRefused when it is an error."""
    payload = frame.get("payload")
    if frame.get("ok") is True:
        return payload if isinstance(payload, dict) else {}
    error = frame.get("error")
    error = error if isinstance(error, dict) else {}
    details = error.get("details")
    reason = str(details.get("code", "")) if isinstance(details, dict) else ""
    text = str(error.get("message", "no reason given"))[:500]
    raise GatewayRefused(f"OpenClaw refused {method}: {text}", rpc_code=str(error.get("code", "")), reason=reason)


def _read_hello(payload: Mapping[str, Any]) -> Hello:
    server, auth = payload.get("server"), payload.get("auth")
    server = server if isinstance(server, dict) else {}
    scopes = auth.get("scopes") if isinstance(auth, dict) else []
    granted = tuple(str(scope) for scope in scopes) if isinstance(scopes, list) else ()
    return Hello(str(server.get("version", "")), str(server.get("bootId", "")), granted)


def _check(hello: Hello, scopes: tuple[str, ...]) -> None:
    if hello.version != PINNED_VERSION:
        raise GatewayUnavailable(
            f"The gateway runs OpenClaw {hello.version or 'of unknown version'}, but this Mosaic works with "
            f"{PINNED_VERSION} only. Ask the operator to start it with `mosaic engine`."
        )
    missing = [scope for scope in scopes if scope not in hello.scopes]
    if missing:
        raise GatewayUnavailable(
            f"The OpenClaw gateway did not grant {', '.join(missing)}. Ask the operator to start it with "
            "`mosaic engine`, which configures it for Mosaic."
        )


def _why_refused(error: GatewayRefused) -> str:
    if error.reason.startswith("AUTH_") or "unauthorized" in str(error):
        return (
            "The OpenClaw gateway refused the token. Ask the operator to compare MOSAIC_OPENCLAW_TOKEN on both sides."
        )
    return f"The OpenClaw gateway refused the connection: {error} {ADVICE}"
