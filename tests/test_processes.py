"""The supervisor with real children: order, output, restarts, and that nothing outlives it."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.processes import Child, Supervisor

ROOT = Path(__file__).parent.parent
PATIENCE = 60.0  # seconds; only a broken supervisor takes so long
SLEEPER = 'Child("sleeper", ["sleep", "600"])'


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class Run:
    """A supervisor as a real process of its own; `children` is source text of Child(...) expressions."""

    def __init__(self, *children: str, before: str = "", env: dict[str, str] | None = None, tty: bool = False) -> None:
        source = (
            "import signal, sys, os, pathlib, app.processes\nfrom app.processes import Child, Supervisor\n"
            f"{before}\nsys.exit(Supervisor([{', '.join(children)}]).run())"
        )
        self.reader, writer = pty.openpty() if tty else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", source], cwd=ROOT, stdout=writer, stderr=writer, env={**os.environ, **(env or {})}
        )
        os.close(writer)
        self.text = ""
        self.deadline = time.monotonic() + PATIENCE

    def read(self) -> bool:
        """Take in what comes next; False at the end of the output."""
        left = self.deadline - time.monotonic()
        assert left > 0 and select.select([self.reader], [], [], left)[0], f"nothing more came: {self.text[-2000:]}"
        try:
            data = os.read(self.reader, 65536)
        except OSError:  # the other end of a terminal was closed
            data = b""
        self.text += data.decode()
        return bool(data)

    def until(self, *words: str) -> str:
        """Read on until all `words` were printed."""
        while not all(word in self.text for word in words):
            assert self.read(), f"ended without {words}: {self.text}"
        return self.text

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        while self.read():
            pass
        return self.process.wait(PATIENCE)

    def pid(self, name: str) -> int:
        """The number that child `name` printed as its first line `pid N`."""
        mark = f"{name:<6} | pid "
        self.until(mark)
        while "\n" not in self.text.partition(mark)[2]:
            assert self.read()
        return int(self.text.partition(mark)[2].split()[0])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.reader)


@pytest.fixture
def supervise() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*children: str, **options: object) -> Run:
        runs.append(Run(*children, **options))  # type: ignore[arg-type]
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def shell(name: str, script: str, more: str = "") -> str:
    return f"Child({name!r}, ['sh', '-c', {script!r}]{more and ', ' + more})"


# ---------------------------------------------------------------- output


def test_every_line_of_output_carries_the_name_of_its_child(supervise: Callable[..., Run]) -> None:
    run = supervise(shell("a", "echo one; echo two >&2; printf half", "restart=False"))
    assert run.end() == 0
    assert [line for line in run.text.splitlines() if line.startswith("a ")] == [
        "a      | one", "a      | two", "a      | half",
    ]  # fmt: skip


def test_an_endless_line_is_passed_on_in_pieces(supervise: Callable[..., Run]) -> None:
    run = supervise(shell("a", "head -c 300000 /dev/zero | tr '\\0' x", "restart=False"))
    assert run.end() == 0
    pieces = [line.removeprefix("a      | ") for line in run.text.splitlines() if line.startswith("a ")]
    assert "".join(pieces) == "x" * 300_000
    assert max(map(len, pieces)) < 200_000


@pytest.mark.parametrize("tty", [True, False])
def test_colour_is_for_terminals_only(supervise: Callable[..., Run], tty: bool) -> None:
    run = supervise(shell("a", "echo hello", "restart=False"), tty=tty)
    run.end()
    assert "hello" in run.text
    assert ("\x1b[" in run.text) is tty


# ---------------------------------------------------------------- start and environment


def test_the_next_child_starts_when_the_one_before_is_ready(supervise: Callable[..., Run], tmp_path: Path) -> None:
    mark = str(tmp_path / "ready")
    run = supervise(
        shell("first", f"sleep 0.3; echo ready; touch {mark}; exec sleep 600", f"after=pathlib.Path({mark!r}).exists"),
        shell("second", "echo here"),
    )
    run.until("second | here")
    assert run.text.index("ready") < run.text.index("here")


def test_a_child_that_does_not_become_ready_ends_the_start(supervise: Callable[..., Run]) -> None:
    run = supervise(
        shell("slow", "exec sleep 600", "after=lambda: False, ready_timeout=0.2"), shell("never", "echo started")
    )
    assert run.end() == 1
    assert "slow was not ready after 0.2 s" in run.text
    assert "started" not in run.text


def test_a_missing_program_is_named(supervise: Callable[..., Run]) -> None:
    run = supervise(SLEEPER, 'Child("web", ["/no/such/program"])')
    assert run.end() == 127
    assert "web cannot be started" in run.text
    assert "/no/such/program" in run.text


def test_a_start_that_its_preparation_refuses_is_reported(supervise: Callable[..., Run]) -> None:
    refuse = "from app.types import MosaicError\ndef refuse(): raise MosaicError('the disk is full')"
    run = supervise('Child("db", ["true"], before=refuse)', before=refuse)
    assert run.end() == 127
    assert "db cannot be started: the disk is full" in run.text


def test_a_child_gets_exactly_its_own_environment(supervise: Callable[..., Run]) -> None:
    child = 'Child("a", ["/usr/bin/env"], env={"ONLY": "this"}, restart=False)'
    run = supervise(child, env={"MOSAIC_GITEA_TOKEN": "secret"})
    run.end()
    assert [line for line in run.text.splitlines() if line.startswith("a ")] == ["a      | ONLY=this"]


# ---------------------------------------------------------------- restarts


def test_a_child_that_ends_is_started_again_ever_later(supervise: Callable[..., Run]) -> None:
    run = supervise(shell("a", "echo up; exit 3"))
    run.until("in 0.1 s", "in 0.2 s", "in 0.4 s")
    assert "a ended (exit code 3): starting it again" in run.text
    assert run.text.count("| up") >= 3


def test_a_child_that_lived_long_enough_starts_again_at_once(supervise: Callable[..., Run]) -> None:
    run = supervise(shell("a", "echo up; exit 3"), before="app.processes.SETTLED = 0.0")
    while run.text.count("in 0.1 s") < 3:
        assert run.read()
    assert "in 0.2 s" not in run.text


def test_what_a_dead_child_left_in_its_group_is_killed_before_the_restart(supervise: Callable[..., Run]) -> None:
    run = supervise(shell("a", "sleep 600 & echo pid $!; kill -9 $$"))
    left = run.pid("a")
    run.until("a ended (signal SIGKILL)")
    wait_for(lambda: not alive(left))
    assert run.process.poll() is None


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 5", 5), ("kill -TERM $$", 128 + 15)])
def test_the_end_of_a_foreground_child_is_the_end_of_all(supervise: Callable[..., Run], script: str, code: int) -> None:
    run = supervise(shell("other", "echo pid $$; exec sleep 600"), shell("main", script, "restart=False"))
    other = run.pid("other")
    assert run.end() == code
    assert not alive(other)


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_children_in_reverse_order(supervise: Callable[..., Run], number: signal.Signals) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo pid $$; while :; do sleep 0.02; done"
    run = supervise(*(shell(name, script) for name in ("one", "two", "three")))
    pids = [run.pid(name) for name in ("one", "two", "three")]
    run.send(number)
    assert run.end() == 0
    assert [line.split()[0] for line in run.text.splitlines() if line.endswith("bye")] == ["three", "two", "one"]
    assert not any(map(alive, pids))


def test_each_child_gets_the_stop_signal_that_it_asked_for(supervise: Callable[..., Run]) -> None:
    script = "trap 'echo fast; exit 0' INT; echo pid $$; while :; do sleep 0.02; done"
    run = supervise(shell("db", script, "stop_signal=signal.SIGINT"))
    run.pid("db")
    run.send(signal.SIGTERM)
    assert run.end() == 0
    assert "fast" in run.text


def test_a_stubborn_child_and_its_offspring_are_killed(supervise: Callable[..., Run]) -> None:
    script = "trap '' TERM; sh -c 'echo pid $$; sleep 600'"
    run = supervise(shell("a", script, "stop_timeout=0.2"))
    offspring = run.pid("a")
    run.send(signal.SIGTERM)
    assert run.end() == 0
    assert "a did not end in time: killed" in run.text
    wait_for(lambda: not alive(offspring))


def test_a_second_signal_does_not_wait(supervise: Callable[..., Run]) -> None:
    script = "trap 'echo no' TERM; echo pid $$; while :; do sleep 0.02; done"
    run = supervise(shell("a", script, "stop_timeout=3600"))
    stubborn = run.pid("a")
    run.send(signal.SIGTERM)
    run.until("a      | no")
    run.send(signal.SIGTERM)
    assert run.end() == 0
    wait_for(lambda: not alive(stubborn))


def test_a_second_signal_asks_for_a_quick_end_and_a_third_one_kills(supervise: Callable[..., Run]) -> None:
    script = "trap 'echo slow' TERM; trap 'echo quick' INT; echo pid $$; while :; do sleep 0.02; done"
    run = supervise(shell("a", script, "stop_timeout=3600"))
    stubborn = run.pid("a")
    for heard in ("slow", "quick"):
        run.send(signal.SIGTERM)
        run.until(f"a      | {heard}")
        assert alive(stubborn)
    run.send(signal.SIGTERM)
    assert run.end() == 0 and "a did not end in time: killed" in run.text
    assert not alive(stubborn)


def test_the_children_of_a_killed_supervisor_die_with_it(supervise: Callable[..., Run]) -> None:
    run = supervise(shell("a", "trap '' TERM INT HUP; echo pid $$; while :; do sleep 0.02; done"))
    child = run.pid("a")
    run.send(signal.SIGKILL)
    wait_for(lambda: not alive(child))


def test_stop_works_from_another_thread_and_signals_are_given_back(tmp_path: Path) -> None:
    mark, output = tmp_path / "up", io.BytesIO()
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    supervisor = Supervisor([Child("a", ["sh", "-c", f"echo up; touch '{mark}'; exec sleep 600"])], output=output)

    def stop_when_up() -> None:
        wait_for(mark.exists)
        supervisor.stop()

    thread = threading.Thread(target=stop_when_up)
    thread.start()
    assert supervisor.run() == 0
    thread.join()
    assert output.getvalue() == b"a      | up\n"
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
