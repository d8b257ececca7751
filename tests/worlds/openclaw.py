"""The real OpenClaw gateway as a child process, started exactly as `mosaic engine` starts it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from app import engine
from app.clients.openclaw import OpenClaw

START_LIMIT = 90.0  # seconds; about 10 on two idle cores
STOP_LIMIT = 20.0


def free_port() -> int:
    """A port that was free a moment ago: the gateway cannot choose one by itself and report it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealGateway:
    """`RealGateway(workspace, model_url, state_dir=...).start()`; then `.url`, `.token`, `.client()`."""

    def __init__(
        self,
        workspace: Path,
        model_url: str,
        *,
        state_dir: Path,
        token: str | None = None,
        context_window: int = 128_000,
        cost: tuple[float, float] = (1.0, 2.0),
    ) -> None:
        self.settings = engine.EngineSettings(
            port=free_port(),
            token=token or secrets.token_hex(32),
            workspace=workspace,
            state_dir=state_dir,
            model_api="openai-completions",
            model_base_url=f"{model_url}/v1",
            model_api_key="scripted-model-key",
            model_id="scripted",
            context_window=context_window,
            cost_input=cost[0],
            cost_output=cost[1],
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.start_seconds = 0.0

    @property
    def url(self) -> str:
        return engine.gateway_url(self.settings)

    @property
    def token(self) -> str:
        return self.settings.token

    @property
    def log(self) -> Path:
        return self.settings.state_dir / "gateway.out"

    def client(self, token: str | None = None) -> OpenClaw:
        """A Mosaic client for this gateway."""
        return OpenClaw(self.url, token or self.token, identity=self.settings.state_dir / "mosaic-device.pem")

    def start(self) -> RealGateway:
        """Start and wait until it is ready; RuntimeError with the end of its log when it is not."""
        began = time.monotonic()
        engine.write_config(self.settings)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                engine.command(self.settings),
                env=engine.environment(self.settings),
                cwd=self.settings.state_dir / "cwd",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_ready(began)
        self.start_seconds = time.monotonic() - began
        return self

    def _wait_ready(self, began: float) -> None:
        assert self.process is not None
        while not engine.ready(self.url):
            if self.process.poll() is not None or time.monotonic() - began > START_LIMIT:
                self.kill()
                tail = self.log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"the gateway did not become ready (exit {self.process}):\n{tail}")
            time.sleep(0.1)

    def wait_for_log(self, text: str) -> None:
        """Wait until the gateway has logged a text; RuntimeError when it does not."""
        until = time.monotonic() + START_LIMIT
        while text not in self.log.read_text(errors="replace"):
            if time.monotonic() > until:
                raise RuntimeError(f"the gateway did not log {text!r}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it politely, then by force: with a run under way it would wait for minutes."""
        if self.process is None:
            return
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_LIMIT)
        self.kill()

    def kill(self) -> None:
        """What a crash looks like: the gateway and its helper processes are gone at once."""
        if self.process is None:
            return
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def restart(self) -> RealGateway:
        """Start again on the same address and state, as a supervisor would."""
        self.kill()
        return self.start()

    def fresh(self, name: str) -> RealGateway:
        """A second gateway for the same workspace and model with a state of its own (a 401 blocks a whole state)."""
        other = RealGateway.__new__(RealGateway)
        other.settings = replace(self.settings, port=free_port(), state_dir=self.settings.state_dir.with_name(name))
        other.process, other.start_seconds = None, 0.0
        return other

    def _signal(self, number: int) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):  # it may have ended already
            os.killpg(self.process.pid, number)

    def __enter__(self) -> RealGateway:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
