"""The whole product under load on loopback: acknowledgement of webhooks, a burst, the first visible answer, idling."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import signal
import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.machine import cpu_seconds, pss
from bench.report import Figure, quantile
from tests.proof.place import EVENTS, Place, place
from tests.proof.trouble import children, supervised
from tests.worlds.mailbox import Letter, Mailbox

RATE = 50  # deliveries a second
SECONDS = 10
CONNECTIONS = 8
BURST = 200
VISIBLE = 40
REST_SECONDS = 20.0  # after the start, before it counts as idle
IDLE_SECONDS = 60.0  # as long as a round of the look-out for lost mentions
PADDING = "x" * 6000  # a delivery has about 12 kB


class Front:
    """A place whose webhooks the bench hands over itself."""

    def __init__(self, here: Place, box: Mailbox) -> None:
        self.here, self._box = here, box
        self.repo = here.repository("front", hook=False)
        here.forge.hook(self.repo, box.url, here.mosaic.secret, EVENTS)
        self._letter = self.issue()[1]
        self._next = 10_000_000

    def issue(self) -> tuple[int, Letter]:
        """An issue that mentions the bot, and the delivery that tells of it."""
        number = self.here.ask(self.repo)
        [letter] = self._box.wait("issues opened")
        return number, letter

    def invented(self, *, mention: bool = True) -> tuple[bytes, dict[str, str]]:
        """A signed delivery of another issue, which no forge holds: its job is refused after the acknowledgement."""
        payload: dict[str, Any] = json.loads(self._letter.body)
        self._next += 1
        issue = payload["issue"]
        issue["id"], issue["number"] = self._next, self._next % 10**9
        issue["body"] = f"{f'@{self.here.bot.login} fix this' if mention else 'Nobody is asked.'}\n{PADDING}"
        body = json.dumps(payload, indent=2).encode()
        return body, {
            "Content-Type": "application/json",
            "X-Gitea-Event": "issues",
            "X-Gitea-Event-Type": "issues",
            "X-Gitea-Delivery": str(uuid.uuid4()),
            "X-Gitea-Signature": hmac.new(self.here.mosaic.secret.encode(), body, hashlib.sha256).hexdigest(),
        }

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.here.mosaic.port, timeout=30)

    def stored(self) -> int:
        return int(self.here.mosaic.sql("select count(*) as n from deliveries")[0]["n"])


def hand(line: http.client.HTTPConnection, letter: tuple[bytes, dict[str, str]]) -> tuple[float, int]:
    """(milliseconds to the answer, its status)."""
    began = time.perf_counter()
    line.request("POST", "/webhooks/gitea", *letter)
    answer = line.getresponse()
    answer.read()
    return (time.perf_counter() - began) * 1000, answer.status


@contextmanager
def front(path: Path) -> Iterator[Front]:
    with place(path) as here, Mailbox() as box:
        yield Front(here, box)


def paced(made: Front, every: int) -> list[tuple[float, int]]:
    """Deliveries at a steady rate over kept connections; one in `every` mentions the bot. Times and statuses."""
    letters = [made.invented(mention=n % every == 0) for n in range(RATE * SECONDS)]
    found: list[tuple[float, int]] = []
    start = time.monotonic() + 0.2

    def send(first: int) -> None:
        line = made.connection()
        for n in range(first, len(letters), CONNECTIONS):
            time.sleep(max(0.0, start + n / RATE - time.monotonic()))
            found.append(hand(line, letters[n]))
        line.close()

    threads = [threading.Thread(target=send, args=(n,)) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def ack(made: Front) -> list[Figure]:
    """With the consumers stopped, then at work."""
    consumers = [pid for role, pid in supervised(made.here) if role in ("control", "agents", "gates")]
    paced(made, 10**9)  # warm
    figures = []
    for name, every, stopped in (
        ("consumers stopped, every delivery a mention", 1, True),
        ("consumers at work, one mention in 25", 25, False),
        ("consumers at work, every delivery a mention", 1, False),
    ):
        if stopped:
            _signal(consumers, signal.SIGSTOP)
        before = made.stored()
        try:
            found = paced(made, every)
        finally:
            _signal(consumers, signal.SIGCONT)
        figures.append(_acked(name, found, made.stored() - before, judged=stopped or every > 1))
        _quiet(made)
    return figures


def _acked(name: str, found: list[tuple[float, int]], stored: int, *, judged: bool) -> Figure:
    times = [ms for ms, _ in found]
    good = {status for _, status in found} == {202} and stored == len(found)
    middle, worst = statistics.median(times), quantile(times, 0.99)
    return Figure(
        f"webhook ack at {RATE}/s, verified and committed; {name}",
        "p99 ≤ 15 ms" if judged else "",
        f"p50 {middle:.1f} ms, p99 {worst:.1f} ms of {len(times)}, {stored} stored",
        worst <= 15 and good if judged else None,
        {"p50_ms": middle, "p99_ms": worst, "stored": float(stored)},
    )


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def _quiet(made: Front) -> None:
    """Until every job has ended and everything is said."""
    look = (
        "select (select count(*) from runner_jobs where finished_at is null) + "
        "(select count(*) from effects where state = 'planned') as n"
    )
    made.here.mosaic.until(lambda: made.here.mosaic.sql(look) == [{"n": 0}], "the jobs of the load to end", 300)


def burst(made: Front) -> Figure:
    """All at once, each over a connection of its own."""
    letters = [made.invented() for _ in range(BURST)]
    before, barrier = made.stored(), threading.Barrier(BURST + 1)

    def send(letter: tuple[bytes, dict[str, str]]) -> tuple[float, int, float]:
        line = made.connection()
        line.connect()
        barrier.wait()
        ms, status = hand(line, letter)
        line.close()
        return ms, status, time.monotonic()

    with ThreadPoolExecutor(BURST) as pool:
        waiting = [pool.submit(send, letter) for letter in letters]
        barrier.wait()
        began = time.monotonic()
        found = [one.result() for one in waiting]
    seconds = max(ended for _, _, ended in found) - began
    stored = made.stored() - before
    jobs = made.here.mosaic.sql("select count(*) - count(distinct trigger_key) as n from runner_jobs")[0]["n"]
    refused = sum(status != 202 for _, status, _ in found)
    good = seconds <= 0.3 and stored == BURST and not refused and not jobs
    _quiet(made)
    return Figure(
        f"burst of {BURST} deliveries at once",
        "all durable ≤ 0.3 s, 0 lost, 0 duplicate jobs",
        f"{seconds:.2f} s, {BURST - stored} lost, {jobs} duplicate jobs, {refused} not accepted",
        good,
        {"seconds": seconds, "lost": float(BURST - stored), "duplicates": float(jobs)},
    )


def visible(made: Front) -> Figure:
    """From handing over a mention to the arrival of the reaction at the forge, one job at a time."""
    times, line = [], made.connection()
    line.connect()
    for _ in range(VISIBLE):
        number, letter = made.issue()
        headers = {name: value for name, value in letter.headers.items() if name.startswith("x-")}
        began = time.time()
        hand(line, (letter.body, {**headers, "Content-Type": "application/json"}))
        _quiet(made)  # asking the forge what it has seen would keep it from seeing more
        times.append((_reaction(made, number) - began) * 1000)
    middle, worst = statistics.median(times), quantile(times, 0.99)
    return Figure(
        "mention → first visible acknowledgement leaves us",
        "p50 ≤ 10 ms, p99 ≤ 50 ms",
        f"p50 {middle:.1f} ms, p99 {worst:.1f} ms of {VISIBLE}",
        middle <= 10 and worst <= 50,
        {"p50_ms": middle, "p99_ms": worst},
    )


def _reaction(made: Front, number: int) -> float:
    """When the forge was asked for the reaction on this issue."""
    path = f"/repos/{made.repo}/issues/{number}/reactions"

    def look() -> float | None:
        rows = made.here.forge.knob("requests")
        fits = (row["at"] for row in reversed(rows) if row["method"] == "POST" and row["path"].endswith(path))
        return next(fits, None)

    return made.here.forge.until(look, "the reaction")


def idle(made: Front) -> list[Figure]:
    """Memory and processor time of all our processes while nothing happens; not PostgreSQL, not the engine."""
    process = made.here.mosaic.process
    assert process is not None
    roles: dict[str, list[int]] = {"supervisor": [process.pid]}
    for role, pid in supervised(made.here):
        if role in ("web", "control", "agents", "gates"):
            roles[role] = [pid, *children(pid)]
    pids = [pid for group in roles.values() for pid in group]
    time.sleep(REST_SECONDS)
    before = cpu_seconds(pids)
    time.sleep(IDLE_SECONDS)
    share = (cpu_seconds(pids) - before) / IDLE_SECONDS * 100
    memory = {role: pss(group) for role, group in roles.items()}
    total = sum(memory.values())
    split = ", ".join(f"{role} {size:.0f}" for role, size in memory.items())
    return [
        Figure("idle memory of all our processes (PSS)", "≤ 400 MB", f"{total:.0f} MB ({split})", total <= 400,
               {"mb": total, **memory}),
        Figure("idle processor time of all our processes", "≤ 0.5 % of a core", f"{share:.2f} %", share <= 0.5,
               {"percent": share}),
    ]  # fmt: skip
