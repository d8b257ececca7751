"""The engine's configuration and environment, without starting it: what the gateway may know and do."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app import engine
from app.clients.openclaw import PINNED_VERSION


@pytest.fixture
def settings(tmp_path: Path) -> engine.EngineSettings:
    return engine.EngineSettings(
        port=18789,
        token="t0ken" * 8,
        workspace=tmp_path / "worktrees",
        state_dir=tmp_path / "engine",
        model_api="openai-completions",
        model_base_url="https://models.example.org/v1",
        model_api_key="m0del-key" * 4,
        model_id="vendor/some-model",
        context_window=200_000,
        cost_input=1.5,
        cost_output=6.0,
        root=tmp_path / "root",
    )


def install(root: Path, version: str) -> None:
    home = root / "node_modules" / "openclaw"
    home.mkdir(parents=True)
    (home / "package.json").write_text(json.dumps({"name": "openclaw", "version": version}))


def test_the_agents_have_files_only(settings: engine.EngineSettings) -> None:
    config = engine.gateway_config(settings)
    agents = config["agents"]["entries"]
    assert set(agents) == {"runner", "weaver"}
    assert agents["runner"]["tools"]["allow"] == ["read", "ls"]
    assert agents["weaver"]["tools"]["allow"] == ["read", "ls", "write", "edit", "apply_patch"]
    for agent in agents.values():
        assert "group:runtime" in agent["tools"]["deny"]
        assert agent["tools"]["exec"] == {"mode": "deny"}
        assert agent["workspace"] == str(settings.workspace)
    assert {"write", "edit", "apply_patch"} <= set(agents["runner"]["tools"]["deny"])
    tools = config["tools"]
    assert tools["fs"] == {"workspaceOnly": True}
    assert tools["web"] == {"search": {"enabled": False}, "fetch": {"enabled": False}}
    assert (config["plugins"], config["cron"]) == ({"enabled": False}, {"enabled": False})
    assert config["gateway"]["bind"] == "loopback"


def test_the_model_is_the_only_one_and_priced(settings: engine.EngineSettings) -> None:
    config = engine.gateway_config(settings)
    assert config["models"]["mode"] == "replace"
    [(name, provider)] = config["models"]["providers"].items()
    [model] = provider["models"]
    assert config["agents"]["defaults"]["model"]["primary"] == f"{name}/vendor/some-model"
    assert (provider["baseUrl"], provider["api"]) == (settings.model_base_url, settings.model_api)
    assert (model["contextWindow"], model["cost"]["input"], model["cost"]["output"]) == (200_000, 1.5, 6.0)


def test_no_secret_is_in_the_configuration_or_on_the_command_line(settings: engine.EngineSettings) -> None:
    install(settings.root, PINNED_VERSION)
    text = json.dumps(engine.gateway_config(settings)) + " ".join(engine.command(settings)) + repr(settings)
    assert settings.token not in text
    assert settings.model_api_key not in text


def test_every_reference_to_the_environment_is_filled(settings: engine.EngineSettings) -> None:
    config = engine.gateway_config(settings)
    references = [config["gateway"]["auth"]["token"], config["models"]["providers"]["mosaic"]["apiKey"]]
    environment = engine.environment(settings, {})
    assert [environment[reference["id"]] for reference in references] == [settings.token, settings.model_api_key]
    assert engine.environment(replace(settings, model_api_key=""), {})[references[1]["id"]]


def test_only_path_and_language_are_inherited(settings: engine.EngineSettings) -> None:
    ours = {"PATH": "/bin", "LANG": "de_DE.UTF-8", "MOSAIC_GITEA_TOKEN": "forge", "HTTP_PROXY": "x", "HOME": "/h"}
    environment = engine.environment(settings, ours)
    assert (environment["PATH"], environment["LANG"]) == ("/bin", "de_DE.UTF-8")
    assert not {"MOSAIC_GITEA_TOKEN", "HTTP_PROXY"} & environment.keys()
    assert environment["HOME"].startswith(str(settings.state_dir))
    assert "NODE_EXTRA_CA_CERTS" not in environment
    with_ca = engine.environment(replace(settings, ca_bundle=Path("/etc/ca.pem")), ours)
    assert with_ca["NODE_EXTRA_CA_CERTS"] == "/etc/ca.pem"


def test_the_configuration_is_private_even_where_it_was_not(settings: engine.EngineSettings) -> None:
    settings.state_dir.mkdir(mode=0o755)
    settings.config_path.write_text("{}")
    settings.config_path.chmod(0o644)
    path = engine.write_config(settings)
    assert path == settings.config_path
    assert json.loads(path.read_text()) == engine.gateway_config(settings)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for directory in (settings.state_dir, settings.state_dir / "tmp", settings.state_dir / "cwd"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert sorted(path.parent.glob("*.new")) == []


@pytest.mark.parametrize("version", ["2026.9.5", "2026.9.60", "2027.1.1"])
def test_another_version_is_refused(settings: engine.EngineSettings, version: str) -> None:
    install(settings.root, version)
    with pytest.raises(engine.EngineUnusable, match=rf"{version}.*{PINNED_VERSION}.*npm ci"):
        engine.command(settings)


def test_a_missing_openclaw_is_said_with_the_remedy(settings: engine.EngineSettings) -> None:
    with pytest.raises(engine.EngineUnusable, match="npm ci --ignore-scripts"):
        engine.openclaw_script(settings.root)


def test_an_unfinished_installation_is_said_with_the_remedy(settings: engine.EngineSettings) -> None:
    """A service that may not write to its code could never finish it."""
    install(settings.root, PINNED_VERSION)
    (settings.root / "node_modules" / "openclaw" / ".openclaw-lifecycle-pending").touch()
    with pytest.raises(engine.EngineUnusable, match="not finished: run `make setup`"):
        engine.command(settings)


def test_set_up_leaves_an_openclaw_that_needs_to_write_nothing() -> None:
    """The name of the mark is OpenClaw's own, so that a new version cannot change it unseen."""
    home = engine.ROOT / "node_modules" / "openclaw"
    names = (home / "scripts" / "lib" / "package-lifecycle-marker.mjs").read_text()
    assert f'"{engine._UNFINISHED}"' in names and not (home / engine._UNFINISHED).exists()


def test_run_becomes_the_gateway_with_nothing_inherited(settings: engine.EngineSettings) -> None:
    """A stand-in for OpenClaw's start script tells what it was given; Node, exec and environment are real."""
    install(settings.root, PINNED_VERSION)
    tell = "console.log(JSON.stringify([process.argv.slice(2), process.cwd(), process.env, process.umask()]))"
    (settings.root / "node_modules" / "openclaw" / "openclaw.mjs").write_text(tell)
    program = (
        f"import pathlib; PosixPath = pathlib.Path\nfrom app import engine\nengine.run(engine.{_source(settings)})"
    )
    inherited = {**os.environ, "MOSAIC_GITEA_TOKEN": "forge", "NODE_OPTIONS": "--no-such-option"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=inherited, capture_output=True, text=True, cwd=engine.ROOT
    )
    assert done.returncode == 0, done.stderr
    arguments, directory, environment, umask = json.loads(done.stdout)
    assert (arguments, directory, umask) == (["gateway"], str(settings.state_dir / "cwd"), 0o077)
    assert environment == engine.environment(settings)


def _source(settings: engine.EngineSettings) -> str:
    """The settings as an expression, secrets included."""
    return f"EngineSettings(**{ {name: getattr(settings, name) for name in settings.__slots__}!r})"


def test_the_lock_file_names_the_pinned_version_and_no_registry() -> None:
    root = engine.ROOT
    wanted = json.loads((root / "package.json").read_text())["dependencies"]
    lock = json.loads((root / "package-lock.json").read_text())["packages"]
    assert wanted == {"openclaw": PINNED_VERSION}
    assert lock["node_modules/openclaw"]["version"] == PINNED_VERSION
    entries = [entry for path, entry in lock.items() if path and not entry.get("link")]
    assert not any("resolved" in entry for entry in entries)
    assert all(entry.get("integrity") or entry.get("inBundle") for entry in entries)


def test_a_wedged_gateway_is_ended_and_no_other_process_is(tmp_path: Path) -> None:
    assert engine.wedged("Agent database execution admission is closed")
    assert not engine.wedged("LLM request failed: provider rejected the request")
    assert not engine.kill_wedged(tmp_path), "nothing is written there"
    process = subprocess.Popen(["sleep", "60"])
    try:
        started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (tmp_path / engine.PID_FILE).write_text(f"{process.pid} {int(started) - 1}")
        assert not engine.kill_wedged(tmp_path) and process.poll() is None, "another process of the same number"
        (tmp_path / engine.PID_FILE).write_text(f"{process.pid} {started}")
        assert engine.kill_wedged(tmp_path)
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
