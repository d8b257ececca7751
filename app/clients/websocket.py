"""A WebSocket client for one thread. Its one rule: no call blocks longer than the time it was given.

It is built on wsproto (the protocol without input and output): the common client reads in a thread of its own, waits
for a silent server without limit, and spins when the server closes during the handshake.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from typing import Any
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Message, Ping, RejectConnection, Request, TextMessage
from wsproto.utilities import ProtocolError

MAX_MESSAGE = 32 * 2**20  # bytes; the gateway announces 25 MiB as its own limit
SEND_TIMEOUT = 20.0
CHUNK = 65_536


class SocketClosed(Exception):
    """The connection is over, or never came to be; str() says how."""


class WebSocket:
    """One text connection to a `ws://` or `wss://` address; SocketClosed when it cannot be made within `timeout`."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._messages: deque[str] = deque()
        self._parts: list[str] = []
        self._size = 0
        self._closed = ""
        self._accepted = False
        try:
            self._socket = _dial(url, timeout)
        except (OSError, ValueError) as error:
            raise SocketClosed(f"cannot connect: {error}") from error
        try:
            self._shake_hands(url, timeout)
        except BaseException:
            self._socket.close()
            raise

    def send(self, text: str) -> None:
        """Send one message; SocketClosed when the other side does not take it."""
        if self._closed:
            raise SocketClosed(self._closed)
        self._write(self._protocol.send(TextMessage(data=text)))

    def receive(self, timeout: float) -> str | None:
        """The next message, or None when none came within `timeout` seconds; SocketClosed at the end."""
        until = time.monotonic() + timeout
        while not self._messages:
            if self._closed:
                raise SocketClosed(self._closed)
            left = until - time.monotonic()
            if left <= 0 or not self._read(left):
                return None
        return self._messages.popleft()

    def close(self) -> None:
        """Say goodbye if that is possible at once, and free the socket. May be called again."""
        try:
            if not self._closed:
                self._socket.settimeout(1.0)
                self._socket.sendall(self._protocol.send(CloseConnection(code=1000)))
        except (OSError, ProtocolError):
            pass  # the other side is gone: there is nobody to say goodbye to
        finally:
            self._closed = self._closed or "closed by us"
            self._socket.close()

    def _shake_hands(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._write(self._protocol.send(Request(host=parts.netloc.rpartition("@")[2], target=target)))
        until = time.monotonic() + timeout
        while not self._accepted:
            if self._closed:
                raise SocketClosed(self._closed)
            left = until - time.monotonic()
            if left <= 0 or not self._read(left):
                raise SocketClosed(f"no answer to the WebSocket handshake within {timeout:g} s")

    def _write(self, data: bytes) -> None:
        try:
            self._socket.settimeout(SEND_TIMEOUT)
            self._socket.sendall(data)
        except OSError as error:
            self._closed = f"sending failed: {error}"
            raise SocketClosed(self._closed) from error

    def _read(self, timeout: float) -> bool:
        """Read once; False when nothing came in time."""
        try:
            self._socket.settimeout(timeout)
            data = self._socket.recv(CHUNK)
        except TimeoutError:
            return False
        except OSError as error:
            self._closed = f"the connection broke: {error}"
            return True
        try:
            self._protocol.receive_data(data or None)
            self._handle_events()
        except ProtocolError as error:
            self._closed = self._closed or f"not a WebSocket: {error}"
        if not data:
            self._closed = self._closed or "the connection was dropped"
        return True

    def _handle_events(self) -> None:
        for event in self._protocol.events():
            if isinstance(event, AcceptConnection):
                self._accepted = True
            elif isinstance(event, RejectConnection):
                self._closed = f"the server answered HTTP {event.status_code} instead of a WebSocket"
            elif isinstance(event, Ping):
                self._write(self._protocol.send(event.response()))
            elif isinstance(event, CloseConnection):
                self._closed = f"closed by the server (code {event.code}{': ' + event.reason if event.reason else ''})"
            elif isinstance(event, Message):
                self._collect(event)

    def _collect(self, event: Message[Any]) -> None:
        if not isinstance(event, TextMessage):
            self._closed = "the server sent binary data"
            return
        self._size += len(event.data)
        if self._size > MAX_MESSAGE:
            self._closed = f"the server sent a message of more than {MAX_MESSAGE} characters"
            return
        self._parts.append(event.data)
        if event.message_finished:
            self._messages.append("".join(self._parts))
            self._parts, self._size = [], 0


def _dial(url: str, timeout: float) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError(f"{url!r} is not a ws:// or wss:// address")
    secure = parts.scheme == "wss"
    plain = socket.create_connection((parts.hostname, parts.port or (443 if secure else 80)), timeout)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not secure:
        return plain
    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
    except OSError:
        plain.close()
        raise
