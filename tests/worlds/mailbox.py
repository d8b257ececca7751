"""A receiver of webhooks that keeps what a forge sends, so that a story can hand it to Mosaic when and as often as
it likes.

Rule: the bytes are never touched; only the delivery's own id may be a new one, as after a click on "replay".
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests

ANSWER_LIMIT = 30.0


@dataclass(frozen=True)
class Letter:
    """One delivery as the forge sent it."""

    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def payload(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def what(self) -> str:
        """`issue_comment created`: the fine event and the action."""
        return f"{self.headers['x-gitea-event-type']} {self.payload.get('action', '')}".strip()

    @property
    def by(self) -> str:
        return str(self.payload["sender"]["login"])

    def hand(self, url: str, *, new_id: bool = False) -> requests.Response:
        """Deliver it: with its own id, or with a new one."""
        headers = {name: value for name, value in self.headers.items() if name.startswith("x-")}
        headers["content-type"] = self.headers["content-type"]
        if new_id:
            headers["x-gitea-delivery"] = str(uuid.uuid4())
        with requests.Session() as http:
            http.trust_env = False
            return http.post(url, data=self.body, headers=headers, timeout=ANSWER_LIMIT)


class Mailbox:
    """`with Mailbox() as box: forge.hook(repo, box.url, secret)`; then `box.wait("issues opened")`."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []
        self._news = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.box = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Mailbox:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def keep(self, letter: Letter) -> None:
        with self._news:
            self._letters.append(letter)
            self._news.notify_all()

    def wait(self, *wanted: str, by: str = "", timeout: float = 60.0) -> list[Letter]:
        """One letter for each of the words, in their order; a letter is given out once. `by` = who did it."""
        end = time.monotonic() + timeout
        return [self._take(what, by, end) for what in wanted]

    def _take(self, what: str, by: str, end: float) -> Letter:
        with self._news:
            while not (found := next((one for one in self._letters if one.what == what and by in ("", one.by)), None)):
                if not self._news.wait(end - time.monotonic()):
                    raise AssertionError(f"no {what!r} came; there are {[letter.what for letter in self._letters]}")
            self._letters.remove(found)
            return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    box: Mailbox


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.box.keep(Letter({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(202)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """What came is kept, not printed."""
