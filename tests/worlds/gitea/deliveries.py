"""Sends webhooks the way Gitea does: at most once, never again, by several workers at a time, five seconds each.

Rule: a delivery is marked as sent before the POST; whatever happens then is only written down.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import queue
import socket
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from tests.worlds.gitea.state import Hook

TIMEOUT = 5.0
WORKERS = 4
KEPT_BODY = 1 << 20
GO_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass
class Delivery:
    """One row of a hook's history."""

    uuid: str
    hook_id: int
    level: str
    url: str
    event: str
    event_type: str
    action: str
    payload: str  # the JSON text, which is what was signed
    headers: dict[str, str]
    replay_of: str | None = None
    lost: bool = False  # dropped by a knob: never attempted
    sent: bool = False
    status: int | None = None
    response: str = ""
    error: str = ""
    created: float = field(default_factory=time.time)
    answered: float | None = None

    @property
    def body(self) -> bytes:
        """The JSON itself, or a form that holds it."""
        form = "form" in self.headers["Content-Type"]
        return urlencode({"payload": self.payload}).encode() if form else self.payload.encode()


def go_json(value: Any) -> str:
    """JSON as Go's MarshalIndent writes it: two spaces, text in UTF-8, `<`, `>` and `&` escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    for char, escape in GO_ESCAPES.items():
        text = text.replace(char, escape)
    return text


def sign(secret: str, payload: str, algorithm: str) -> str:
    """The hex HMAC over the JSON text; empty without a secret."""
    return hmac.new(secret.encode(), payload.encode(), algorithm).hexdigest() if secret else ""


def headers_for(hook: Hook, number: str, event: str, event_type: str, payload: str) -> dict[str, str]:
    """Every header of a delivery; the signature headers are there, empty, when the hook has no secret."""
    sha256, sha1 = sign(hook.secret, payload, "sha256"), sign(hook.secret, payload, "sha1")
    out = {"X-Gitea-Signature": sha256, "X-Gogs-Signature": sha256}
    out |= {"X-Hub-Signature": f"sha1={sha1}", "X-Hub-Signature-256": f"sha256={sha256}"}
    for brand in ("Gitea", "Gogs", "GitHub"):
        out |= {f"X-{brand}-Delivery": number, f"X-{brand}-Event": event, f"X-{brand}-Event-Type": event_type}
    out |= {f"X-{brand}-Hook-Installation-Target-Type": hook.level for brand in ("Gitea", "GitHub")}
    out["Content-Type"] = "application/json" if hook.content_type == "json" else "application/x-www-form-urlencoded"
    out |= {"User-Agent": "Go-http-client/1.1", "Connection": "close"}
    return out | ({"Authorization": hook.authorization} if hook.authorization else {})


def refused(url: str, allowed: str) -> str:
    """Why a host may not be called, as the hook's history says it; empty when it may. `*`, `loopback`, `external`."""
    if allowed == "*":
        return ""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    ip = socket.getaddrinfo(parts.hostname, port, proto=socket.IPPROTO_TCP)[0][4][0]
    address = ipaddress.ip_address(ip)
    if (allowed == "loopback" and address.is_loopback) or (allowed == "external" and address.is_global):
        return ""
    hint = "webhook can only call allowed HTTP servers (check your security.ALLOWED_HOST_LIST setting), deny"
    return f"{hint} '{parts.hostname}({ip}:{port})'"


class Deliveries:
    """The sending queue, its history and its knobs."""

    def __init__(self, allowed_hosts: str = "loopback") -> None:
        self.allowed_hosts = allowed_hosts
        self.log: deque[Delivery] = deque(maxlen=2000)
        self._queue: queue.Queue[list[Delivery] | None] = queue.Queue()
        self._state = threading.Condition()
        self._open = 0  # queued, held, delayed or on the wire
        self._lose = 0
        self._delay = 0.0
        self._hold = 0
        self._held: list[Delivery] = []
        self._timers: set[threading.Timer] = set()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(WORKERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        with self._state:
            timers = list(self._timers)
        for timer in timers:
            timer.cancel()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    # ------------------------------------------------------------ in

    def submit(self, hook: Hook, event: str, event_type: str, value: dict[str, Any]) -> Delivery:
        """One delivery for one hook, with an id of its own."""
        payload = go_json(value)
        number = str(uuid.uuid4())
        headers = headers_for(hook, number, event, event_type, payload)
        action = str(value.get("action", ""))
        delivery = Delivery(number, hook.id, hook.level, hook.url, event, event_type, action, payload, headers)
        self._accept(delivery)
        return delivery

    def replay(self, number: str) -> str:
        """The same payload again, under a new id, as the button of the web page does."""
        old = next(d for d in self.log if d.uuid == number)
        new = str(uuid.uuid4())
        headers = {key: new if key.endswith("-Delivery") else value for key, value in old.headers.items()}
        fields = (old.hook_id, old.level, old.url, old.event, old.event_type, old.action, old.payload)
        self._accept(Delivery(new, *fields, headers, replay_of=number))
        return new

    def _accept(self, delivery: Delivery) -> None:
        with self._state:
            self.log.append(delivery)
            if self._lose:
                self._lose -= 1
                delivery.lost = True
                return
            self._open += 1
            if self._hold:
                self._held.append(delivery)
                self._hold -= 1
                if not self._hold:
                    self._release()
            elif self._delay:
                self._later(delivery)
            else:
                self._queue.put([delivery])

    def _later(self, delivery: Delivery) -> None:
        def put() -> None:
            self._queue.put([delivery])
            with self._state:
                self._timers.discard(timer)

        timer = threading.Timer(self._delay, put)
        timer.daemon = True
        self._timers.add(timer)
        timer.start()

    def _release(self) -> None:
        """What was held goes out last first, one after the other."""
        self._queue.put(self._held[::-1])
        self._held = []

    # ------------------------------------------------------------ knobs

    def lose(self, count: int) -> None:
        """The next `count` deliveries are never attempted."""
        with self._state:
            self._lose = count

    def delay(self, seconds: float) -> None:
        """Every further delivery waits this long; 0 ends it."""
        with self._state:
            self._delay = seconds

    def reorder(self, count: int) -> None:
        """The next `count` deliveries are held until all are there, then go out in reverse order."""
        with self._state:
            self._hold = count

    def flush(self) -> None:
        """Lets out what `reorder` still holds."""
        with self._state:
            self._hold = 0
            if self._held:
                self._release()

    def idle(self, timeout: float) -> bool:
        """Waits until nothing is queued, held, delayed or on the wire."""
        with self._state:
            return self._state.wait_for(lambda: self._open == 0, timeout)

    # ------------------------------------------------------------ out

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            for delivery in batch:
                self._send(delivery)
                with self._state:
                    self._open -= 1
                    self._state.notify_all()

    def _send(self, delivery: Delivery) -> None:
        delivery.sent = True
        try:
            if reason := refused(delivery.url, self.allowed_hosts):
                delivery.error = reason
                return
            limit = urllib3.Timeout(total=TIMEOUT)
            with urllib3.PoolManager(retries=False) as pool:  # a connection of its own, which is closed afterwards
                answer = pool.request(
                    "POST",
                    delivery.url,
                    body=delivery.body,
                    headers=delivery.headers,
                    timeout=limit,
                    redirect=False,
                    preload_content=False,
                )
                delivery.response = answer.read(KEPT_BODY).decode(errors="replace")
                delivery.status = answer.status
        except (urllib3.exceptions.HTTPError, OSError) as error:
            delivery.error = str(error)
        finally:
            delivery.answered = time.time()
