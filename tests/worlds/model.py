"""A scripted model server that speaks the OpenAI chat API. It keeps no state: a retried request gets the same answer.

A script is chosen by `[[script:NAME key=value ...]]` in the last user message that holds a marker. The step within the
script is the number of assistant messages after that user message. A script with several rounds is told which round it
is by `round=N` in the marker, else by a line `Round N of M` in the same message, else by the number of earlier user
messages that hold a marker. Run it alone with `python -m tests.worlds.model --port 0 [--scripts FILE] [--log FILE]`.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.worlds.model_scripts import BUILTIN

Step = Mapping[str, Any]
Script = Sequence[Any]  # a list of steps, or a list of rounds that are lists of steps
Scripts = Mapping[str, Script | Callable[[Mapping[str, str]], Script]]

MARKER = re.compile(r"\[\[script:([\w.-]+)((?:\s+[\w.-]+=[^\s\]]+)*)\s*\]\]")
ROUND = re.compile(r"^\s*(?:#+\s*)?Round (\d+) of \d+", re.MULTILINE)
ERROR_TYPES = {400: "invalid_request_error", 401: "invalid_api_key", 429: "rate_limit_exceeded"}
OUTPUT_TOKENS = 17


@dataclass(frozen=True, slots=True)
class Choice:
    """What a request asks of the server."""

    script: str
    round: int
    step: int
    args: Mapping[str, str]
    index: int  # of the user message that holds the marker; -1 without one


def text_of(content: Any) -> str:
    """The text of a message: a string, or a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [] if isinstance(part, dict))


def choose(messages: Sequence[Mapping[str, Any]]) -> Choice:
    """Which script, round and step the conversation has reached."""
    marked = [i for i, m in enumerate(messages) if m.get("role") == "user" and MARKER.search(text_of(m.get("content")))]
    if not marked:
        return Choice("hello", 1, sum(m.get("role") == "assistant" for m in messages), {}, -1)
    index, text = marked[-1], text_of(messages[marked[-1]].get("content"))
    name, words = MARKER.findall(text)[-1]
    args = dict(word.split("=", 1) for word in words.split())
    line = ROUND.search(text)
    number = int(args.get("round") or (line.group(1) if line else len(marked)))
    step = sum(1 for m in messages[index + 1 :] if m.get("role") == "assistant")
    return Choice(name, max(number, 1), step, args, index)


def pick(scripts: Scripts, choice: Choice) -> Step:
    """The step to play; beyond the end of a script its last step is repeated, beyond its last round the last round."""
    script = scripts.get(choice.script)
    if script is None:
        return {"status": 400, "message": f"no script named {choice.script}"}
    steps: Any = script(choice.args) if callable(script) else script
    if steps and isinstance(steps[0], (list, tuple)):
        steps = steps[min(choice.round, len(steps)) - 1]
    step: Step = steps[min(choice.step, len(steps) - 1)] if steps else {"text": "Nothing to do."}
    return step


def load_scripts(path: Path) -> dict[str, Any]:
    """Scripts from a JSON file (name -> steps), or from a Python file that defines SCRIPTS."""
    if path.suffix == ".py":
        return dict(runpy.run_path(str(path))["SCRIPTS"])
    return dict(json.loads(path.read_text(encoding="utf-8")))


class ScriptedModel:
    """The server in this process: `with ScriptedModel({...}) as model: model.url`."""

    def __init__(self, scripts: Scripts | None = None, *, port: int = 0, log: Path | None = None) -> None:
        self.scripts: dict[str, Any] = {**BUILTIN, **(scripts or {})}
        self.requests: list[dict[str, Any]] = []
        self.left: list[dict[str, Any]] = []  # clients that went away while a step kept them waiting: script, at
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._log = log
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.model = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Where it listens, without a path; the API is under `/v1`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> ScriptedModel:
        self._thread.start()
        return self

    def stop(self) -> None:
        self.closing.set()  # ends the steps that hang
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> ScriptedModel:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def record(self, line: dict[str, Any]) -> None:
        """Keep one request for assertions; also as a JSON line in the log file."""
        with self._lock:
            self.requests.append(line)
            if self._log:
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def seen(self, script: str) -> list[dict[str, Any]]:
        """The requests that played a script, in order."""
        with self._lock:
            return [line for line in self.requests if line["script"] == script]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    model: ScriptedModel


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        """Requests are recorded as data, not printed."""

    def do_GET(self) -> None:
        if self.path.endswith("/models"):
            self._json(200, {"object": "list", "data": [{"id": "scripted", "object": "model"}]})
        else:
            self._json(404, {"error": {"message": "not found"}})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            request = json.loads(raw)
            choice = choose(request.get("messages", []))
            step = pick(self.server.model.scripts, choice)
        except Exception as error:  # noqa: BLE001 - it would look like a broken connection, and be retried for minutes
            self._json(400, {"error": {"message": f"scripted model: {error!r}", "type": "invalid_request_error"}})
            return
        self.server.model.record(_summary(request, choice, self.headers.get("authorization", "")))
        try:
            self._play(step, choice, request, len(raw))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client went away: that is what an abort looks like from here

    def _play(self, step: Step, choice: Choice, request: Mapping[str, Any], size: int) -> None:
        if self._gone(float(step.get("wait", 0)) + float(step.get("hang", 0)), choice):
            self.close_connection = True
        elif "status" in step:
            self._error(step)
        elif step.get("drop"):
            self.close_connection = True
            self.connection.close()
        elif request.get("stream"):
            self._stream(step, choice, request, size)
        else:
            self._whole(step, choice, request, size)

    def _gone(self, seconds: float, choice: Choice) -> bool:
        """Keep the client waiting; True when it went away, or the server is closing."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._wait(min(0.05, max(end - time.monotonic(), 0.001))):
                return True
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                self.server.model.left.append({"script": choice.script, "at": time.time()})
                return True
        return False

    def _wait(self, seconds: float) -> bool:
        """True when the server is closing."""
        return seconds > 0 and self.server.model.closing.wait(seconds)

    def _error(self, step: Step) -> None:
        status = int(step["status"])
        kind = ERROR_TYPES.get(status, "server_error")
        body = {"error": {"message": step.get("message", f"scripted {kind}"), "type": kind, "code": kind}}
        self._json(status, body, {"retry-after": "1"} if status == 429 else {})

    def _json(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _whole(self, step: Step, choice: Choice, request: Mapping[str, Any], size: int) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": step.get("text")}
        if "tool" in step:
            message["tool_calls"] = [_tool_call(step, choice)]
        choices = [{"index": 0, "message": message, "finish_reason": "tool_calls" if "tool" in step else "stop"}]
        head = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.get("model"),
        }
        self._json(200, {**head, "choices": choices, "usage": _usage(size)})

    def _stream(self, step: Step, choice: Choice, request: Mapping[str, Any], size: int) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        head = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request.get("model"),
        }
        self._delta(head, {"role": "assistant", "content": ""})
        if "tool" in step:
            self._delta(head, {"tool_calls": [{"index": 0, **_tool_call(step, choice)}]})
        else:
            for word in re.findall(r"\S+\s*", str(step.get("text", ""))):
                self._delta(head, {"content": word})
                if self._wait(float(step.get("delay", 0))):
                    return
        self._delta(head, {}, "tool_calls" if "tool" in step else "stop")
        self._event({**head, "choices": [], "usage": _usage(size)})
        self.wfile.write(b"data: [DONE]\n\n")

    def _delta(self, head: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None = None) -> None:
        self._event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def _event(self, body: Mapping[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()


def _tool_call(step: Step, choice: Choice) -> dict[str, Any]:
    function = {"name": step["tool"], "arguments": json.dumps(step.get("args", {}))}
    return {"id": f"call_{choice.index}_{choice.step}", "type": "function", "function": function}


def _usage(size: int) -> dict[str, int]:
    """A quarter of the request's bytes as input tokens: deterministic, and it grows with the conversation."""
    prompt = max(1, size // 4)
    return {"prompt_tokens": prompt, "completion_tokens": OUTPUT_TOKENS, "total_tokens": prompt + OUTPUT_TOKENS}


def _summary(request: Mapping[str, Any], choice: Choice, authorization: str) -> dict[str, Any]:
    messages = request.get("messages", [])
    system = [text_of(m.get("content")) for m in messages if m.get("role") in ("system", "developer")]
    return {
        "at": time.time(),
        "script": choice.script,
        "round": choice.round,
        "step": choice.step,
        "model": request.get("model"),
        "authorization": authorization,
        "roles": [m.get("role") for m in messages],
        "tools": sorted(tool.get("function", {}).get("name", "") for tool in request.get("tools") or []),
        "system": "\n".join(system),
        "last": [text_of(m.get("content"))[:4000] for m in messages[-3:]],
        "text": "\n".join(text_of(m.get("content")) for m in messages)[:200_000],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A scripted model server for tests and the demo.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--scripts", type=Path, help="JSON file, or Python file that defines SCRIPTS")
    parser.add_argument("--log", type=Path, help="append one JSON line per request")
    options = parser.parse_args(arguments)
    scripts = load_scripts(options.scripts) if options.scripts else {}
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with ScriptedModel(scripts, port=options.port, log=options.log) as model:
        print(f"READY {model.url}", flush=True)
        done.wait()


if __name__ == "__main__":
    main()
