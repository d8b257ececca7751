"""The scripted model's own contract: the same request always gets the same answer, in the right round and step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.worlds.model import ScriptedModel

SCRIPTS = {
    "repair": [
        [{"tool": "write", "args": {"path": "x", "content": "1"}}, {"text": "first"}],
        [{"tool": "edit", "args": {"path": "x"}}, {"text": "second"}],
    ]
}


@pytest.fixture
def model(tmp_path: Path) -> Iterator[ScriptedModel]:
    with ScriptedModel(SCRIPTS, log=tmp_path / "model.log") as server:
        yield server


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


AGENT: dict[str, Any] = {"role": "assistant", "content": "done"}
TOOL: dict[str, Any] = {"role": "tool", "content": "ok"}


def ask(model: ScriptedModel, *messages: dict[str, Any]) -> dict[str, Any]:
    body = {"model": "scripted", "messages": list(messages)}
    response = requests.post(f"{model.url}/v1/chat/completions", json=body, timeout=10)
    message: dict[str, Any] = response.json()["choices"][0]["message"]
    return message


def tool_of(message: dict[str, Any]) -> str:
    return str(message["tool_calls"][0]["function"]["name"]) if message.get("tool_calls") else str(message["content"])


ISSUE = "The issue says: [[script:repair]]"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user(ISSUE)], "write"),
        ([user(ISSUE), AGENT, TOOL], "first"),
        ([user(ISSUE), AGENT, TOOL, AGENT, user(f"Round 2 of 3\n{ISSUE}")], "edit"),  # the same conversation
        ([user(ISSUE), AGENT, TOOL, AGENT, user(ISSUE)], "edit"),  # the same conversation, no line
        ([user(f"# Round 2 of 3\n{ISSUE}")], "edit"),  # a fresh session with a full hand-over
        ([user(f"Round 1 of 3\n{ISSUE}")], "write"),
        ([user(f"Round 9 of 9\n{ISSUE}"), AGENT], "second"),  # beyond the last round: the last one
        ([user("[[script:repair round=2]]")], "edit"),
        ([user(ISSUE), AGENT, TOOL, user("<<<internal context>>>")], "first"),  # a user message without a marker
        ([user([{"type": "text", "text": ISSUE}])], "write"),  # type: ignore[arg-type]
    ],
)
def test_round_and_step_come_from_the_conversation_alone(
    model: ScriptedModel, messages: list[dict[str, Any]], expected: str
) -> None:
    assert tool_of(ask(model, *messages)) == expected
    assert tool_of(ask(model, *messages)) == expected


def test_a_stream_says_the_same_as_a_whole_answer(model: ScriptedModel) -> None:
    body = {"model": "scripted", "messages": [user("[[script:hello]]")], "stream": True}
    response = requests.post(f"{model.url}/v1/chat/completions", json=body, timeout=10)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    words = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
    assert "".join(words) == ask(model, user("[[script:hello]]"))["content"]
    assert chunks[-1]["usage"]["total_tokens"] > 17


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_errors_have_their_status(model: ScriptedModel, status: int) -> None:
    body = {"messages": [user(f"[[script:err{status}]]")]}
    response = requests.post(f"{model.url}/v1/chat/completions", json=body, timeout=10)
    assert response.status_code == status
    assert ("retry-after" in response.headers) == (status == 429)


def test_a_script_that_nobody_knows_is_an_error_not_a_silence(model: ScriptedModel) -> None:
    body = {"messages": [user("[[script:unheard-of]]")]}
    response = requests.post(f"{model.url}/v1/chat/completions", json=body, timeout=10)
    assert (response.status_code, "unheard-of" in response.text) == (400, True)
    assert requests.post(f"{model.url}/v1/chat/completions", data=b"{", timeout=10).status_code == 400


def test_requests_are_kept_for_assertions(model: ScriptedModel, tmp_path: Path) -> None:
    ask(model, {"role": "system", "content": "Rules."}, user(ISSUE))
    [line] = model.seen("repair")
    assert (line["round"], line["step"], line["system"], line["roles"]) == (1, 0, "Rules.", ["system", "user"])
    assert json.loads((tmp_path / "model.log").read_text()) == line


def test_it_runs_alone_with_scripts_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "scripts.json").write_text(json.dumps({"greet": [{"text": "good day"}]}))
    arguments = [sys.executable, "-m", "tests.worlds.model", "--port", "0", "--scripts", str(tmp_path / "scripts.json")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        word, url = process.stdout.readline().split()
        body = {"messages": [user("[[script:greet]]")]}
        answer = requests.post(f"{url}/v1/chat/completions", json=body, timeout=10).json()
        process.terminate()
        assert (word, process.wait(10)) == ("READY", 0)
    assert answer["choices"][0]["message"]["content"] == "good day"
