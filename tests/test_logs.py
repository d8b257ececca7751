"""Log lines: which job and step they are about, in text and in JSON, and that no secret passes."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.logs import Lines, about, enveloped
from app.postgres import Cluster
from app.processes import Child, Supervisor
from app.redact import Redactor
from tests.test_cli import ROOT, environment
from tests.worlds.openclaw import free_port

SECRET = "hunter2-hunter2-hunter2"


def line(shape: str, message: str = "it happened", error: BaseException | None = None) -> str:
    record = logging.LogRecord(
        "mosaic.x", logging.INFO, "", 1, message, (), (type(error), error, None) if error else None
    )
    return Lines(Redactor((SECRET,)), shape, "control").format(record)


def test_lines_say_what_they_are_about() -> None:
    with about(job=42, step="weaver.implement@1.1"):
        assert line("text").endswith("INFO mosaic.x: job=42 step=weaver.implement@1.1 it happened")
        with about(effect=7):
            found = json.loads(line("json"))
        assert "effect" not in json.loads(line("json"))
    assert (found["job"], found["step"], found["effect"]) == (42, "weaver.implement@1.1", 7)
    assert (found["process"], found["level"], found["message"]) == ("control", "INFO", "it happened")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found["at"])
    assert "job" not in json.loads(line("json")) and line("text").endswith("mosaic.x: it happened")


def test_other_threads_are_about_something_else() -> None:
    seen: list[str] = []
    with about(job=1):
        thread = threading.Thread(target=lambda: seen.append(line("text")))
        thread.start()
        thread.join()
    assert "job=" not in seen[0]


@pytest.mark.parametrize("shape", ["text", "json"])
def test_no_secret_passes(shape: str) -> None:
    with about(step=f"step-{SECRET}"):
        text = line(shape, f"token {SECRET}", ValueError(f"with {SECRET}"))
    assert SECRET not in text and "ValueError" in text
    assert shape == "text" or json.loads(text)


def test_what_is_not_json_is_put_into_an_object() -> None:
    own = b'{"process": "web", "a": 1}'
    assert enveloped(b"web", own) == own
    nested = b'{"a":' + b"[" * 20_000 + b"}"
    for odd in (b"plain", b"{not json}", b"\xff\xfe", b"", nested):
        found = json.loads(enveloped(b"postgres", odd))
        assert (found["process"], found["message"]) == ("postgres", odd.decode("utf-8", "replace"))


def test_a_child_cannot_speak_for_another() -> None:
    """The engine prints words of models and strangers."""
    for forged in (b'{"process":"control","job":1,"message":"x"}', b'{"job":1}'):
        found = json.loads(enveloped(b"engine", forged))
        assert (found["process"], found["message"], "job" in found) == ("engine", forged.decode(), False)


def test_a_message_of_several_lines_forges_no_line() -> None:
    first, *more = line("text", "git said: no\n2026-01-01 00:00:00,000 INFO mosaic.x: job=1 all is well").splitlines()
    assert first.endswith("git said: no") and all(one.startswith("    ") for one in more)


def test_the_supervisor_writes_nothing_but_objects_when_asked() -> None:
    output = io.BytesIO()
    child = Child("odd", ["sh", "-c", 'echo plain; echo \'{"process": "odd", "own": 1}\'; exit 3'], restart=False)
    assert Supervisor([child], output=output, shape=enveloped).run() == 3
    found = [json.loads(text) for text in output.getvalue().splitlines()]
    assert found[1] == {"process": "odd", "own": 1} and found[0]["process"] == "odd"
    assert {each.get("process") for each in found[2:]} == {"mosaic"}


def test_gunicorn_speaks_json_too(tmp_path: Path) -> None:
    """The real web process, its master's lines included; it takes a stop in order."""
    with Cluster(tmp_path / "var").opened():
        port = free_port()
        env = environment(
            tmp_path,
            MOSAIC_LISTEN=f"127.0.0.1:{port}",
            MOSAIC_LOG_FORMAT="json",
            MOSAIC_GITEA_URL="http://127.0.0.1:1",
            MOSAIC_GITEA_WEBHOOK_SECRET="0123456789abcdef",
            PYTHONUNBUFFERED="1",
        )
        with subprocess.Popen(
            [sys.executable, "-m", "app", "run", "web"],
            cwd=ROOT,
            env=env,
            stdout=-1,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout
            texts = []
            for text in process.stdout:
                texts.append(text)
                if "Booting worker" in text and sum("Booting worker" in each for each in texts) == 2:
                    os.kill(process.pid, signal.SIGTERM)
    lines = [json.loads(text) for text in texts]
    assert process.returncode == 0
    assert {each["process"] for each in lines} == {"web"} and {each["logger"] for each in lines} >= {"gunicorn.error"}
