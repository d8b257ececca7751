"""The HTTP server of the practice Gitea: reads requests, finds who answers them, writes replies.

Rule: bound to 127.0.0.1; a request body is always read to its end, so that connections can be kept alive.
"""

from __future__ import annotations

import socket
import threading
import time
import traceback
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.worlds.gitea import (
    access,
    api_code,
    api_comments,
    api_hooks,
    api_issues,
    api_labels,
    api_pulls,
    api_repos,
    api_reviews,
    api_users,
    control,
    git_http,
    pages,
)
from tests.worlds.gitea.faults import Fault
from tests.worlds.gitea.http import ApiError, Call, Cut, Reply, Request, find_route
from tests.worlds.gitea.state import User
from tests.worlds.gitea.world import World

API = "/api/v1"
# Importing these modules fills the table of routes.
CALLS = (api_code, api_comments, api_hooks, api_issues, api_labels, api_pulls, api_repos, api_reviews, api_users)
NO_BODY = {204, 304}


class Handler(BaseHTTPRequestHandler):
    """One connection; the server it belongs to holds the forge."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = -1
    server: Listener

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline() not in {b"\r\n", b"\n", b""}:
            pass
        return b"".join(parts)

    def _read(self) -> Request:
        headers = {key.lower(): value for key, value in self.headers.items()}
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = self._chunks()
        else:
            body = self.rfile.read(int(headers.get("content-length", 0)))
        path, _, query = self.path.partition("?")
        return Request(self.command, path, query, headers, body)

    def _serve(self) -> None:
        try:
            reply = self.server.gitea.answer(self._read(), self.server.is_control)
        except Cut as cut:
            if cut.reply:
                self._write(cut.reply, half=True)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._write(reply)

    def _write(self, reply: Reply, half: bool = False) -> None:
        body = b"" if reply.status in NO_BODY else reply.body()
        headers = dict(reply.headers)
        headers.setdefault("Content-Type", "application/json;charset=utf-8")
        headers.setdefault("Cache-Control", "max-age=0, private, must-revalidate, no-transform")
        self.send_response(reply.status)
        for key, value in headers.items():
            self.send_header(key, value)
        if reply.status not in NO_BODY:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """The request log of the world takes its place."""

    MessageClass = Message


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, gitea: PracticeGitea, port: int, is_control: bool) -> None:
        self.gitea = gitea
        self.is_control = is_control
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no fault; anything else is."""
        text = traceback.format_exc()
        if "ConnectionResetError" not in text and "BrokenPipeError" not in text:
            self.gitea.world.report(text)


class PracticeGitea:
    """A forge that serves: `start()`, `url`, `stop()`; knobs: `world.deliveries`, `world.faults`, `down()`, `up()`."""

    def __init__(self, data: Path, admin_token: str, *, port: int = 0, allowed_hosts: str = "loopback") -> None:
        self.world = World(data, admin_token, allowed_hosts=allowed_hosts)
        self.port = port
        self.control_url = ""
        self._is_down = False
        self._main: Listener | None = None
        self._control: Listener | None = None

    @property
    def url(self) -> str:
        return self.world.url

    def start(self) -> PracticeGitea:
        self.world.start()
        self._control = self._listen(0, True)
        self.control_url = f"http://127.0.0.1:{self._control.server_port}"
        self._main = self._listen(self.port, False)
        self.port = self._main.server_port
        self.world.url = f"http://127.0.0.1:{self.port}"
        return self

    def _listen(self, port: int, is_control: bool) -> Listener:
        listener = Listener(self, port, is_control)
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        return listener

    @staticmethod
    def _close(listener: Listener | None) -> None:
        if listener is not None:
            listener.shutdown()
            listener.server_close()

    def stop(self) -> None:
        self._is_down = True
        self._close(self._main)
        self._close(self._control)
        self.world.stop()

    def down(self) -> None:
        """From now on every new connection is refused and every open one is cut; the control port still answers."""
        self._is_down = True
        listener, self._main = self._main, None
        self._close(listener)

    def up(self) -> None:
        """Back on the same port, with everything it knew."""
        if self._main is None:
            self._main = self._listen(self.port, False)
        self._is_down = False

    def knob(self, name: str, **arguments: Any) -> Any:
        """What `POST /_control/<name>` does, for the process that holds the forge."""
        return control.knobs(self)[name](**arguments)

    # ------------------------------------------------------------ answering

    def answer(self, request: Request, is_control: bool) -> Reply:
        """One request through the knobs, then to whoever serves its path; written down in the request log."""
        if request.raw_path.startswith("/_control/"):
            return control.serve(self, request)
        if is_control:
            return Reply(404)
        if self._is_down:
            raise Cut
        started = time.time()
        row = {"method": request.method, "path": request.path, "query": request.query_string, "at": started}
        row |= {"user": None, "status": None}
        self.world.requests.append(row)
        fault = self.world.faults.take(request.method, request.path)
        reply, user = self._hit(fault) or self._route(request)
        if fault and fault.kind == "status_after":
            reply = self._said(fault)
        row |= {
            "user": user.login if user else None,
            "status": reply.status,
            "ms": round((time.time() - started) * 1e3, 2),
        }
        if self._is_down or (fault and fault.kind == "cut_after"):
            row["status"] = None
            raise Cut
        if fault and fault.kind == "cut_body":
            raise Cut(reply)
        return reply

    def _hit(self, fault: Fault | None) -> tuple[Reply, User | None] | None:
        """What a knob answers in the place of the forge, if it does."""
        if fault is None or fault.kind in {"cut_after", "cut_body", "status_after"}:
            return None
        if fault.kind == "cut_before":
            raise Cut
        if fault.kind == "stall":
            self.world.stopping.wait(fault.seconds)
            return None
        return self._said(fault), None

    @staticmethod
    def _said(fault: Fault) -> Reply:
        return Reply(fault.status, {"message": fault.message, "url": ""}, headers=dict(fault.headers))

    def _route(self, request: Request) -> tuple[Reply, User | None]:
        if request.raw_path.startswith(f"{API}/"):
            return self._api(request)
        if served := git_http.serve(self.world, request):
            return served
        with self.world.state.lock:
            return pages.serve(self.world, request), None

    def _api(self, request: Request) -> tuple[Reply, User | None]:
        call = Call(self.world, request, None, None)
        with self.world.state.lock:
            try:
                return self._call(call), call.user
            except ApiError as error:
                return self._error(error, call.user), call.user
            except Exception:  # noqa: BLE001 - reported, and the test that looks at `errors` fails
                self.world.report(traceback.format_exc())
                return self._error(ApiError(500, "the practice forge failed"), call.user), call.user

    def _call(self, call: Call) -> Reply:
        request = call.request
        method = "GET" if request.method == "HEAD" else request.method
        found = find_route(method, request.raw_path.removeprefix(API))
        call.user, call.token, call.by_password = access.identify(self.world, request)
        if found is None or not self.world.at_least(*found[0].since):
            raise ApiError(404, "The target couldn't be found.")
        row, values = found
        access.authorise(call, row, values)
        return row.handler(call, **values)

    def _error(self, error: ApiError, user: User | None) -> Reply:
        """`{"message", "url"}`; the reason of a 500 is told to site admins only."""
        if error.message is None:
            return Reply(error.status, headers=error.headers)
        told = error.message if error.status != 500 or (user and user.is_admin) else ""
        return Reply(error.status, {"message": told, "url": f"{self.world.url}/api/swagger"}, headers=error.headers)
