"""A job whose host is lost in a later round: real git, the real steps, two data directories; the test is the agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app import queries, stitcher
from app.context import Context
from app.ledger import steps
from app.models import execute
from app.types import Done, Failed
from app.voice import status_comment
from app.worker import Held, Worker
from jobs.weaver import _conversation, _prompt
from tests import spine
from tests.test_wip import HALF, RIGHT, Desk, wrote
from tests.worlds.forge import Forge
from tests.worlds.gitea import PracticeGitea
from tests.worlds.town import CALC

POOLS = ("control", "agents", "gates")
FIRST = "I multiply now."
RED = Failed("gate_red", "1 failed", output={"required": True})


class Two:
    """A desk on host one, and the same repository at a desk on host two with a data directory of its own."""

    def __init__(self, database: str, practice: PracticeGitea, place: Path, stack: ExitStack) -> None:
        self.stacks = {name: stack.enter_context(ExitStack()) for name in ("one", "two")}
        crew = {name: self._crew(name, database) for name in ("one", "two")}
        forge = Forge(practice.url, "a" * 40, control=True)
        stack.callback(forge.cleanup)
        (place / "one").mkdir()
        self.one = Desk(forge, practice.url, place / "one", crew["one"], dict(CALC))
        mine = dataclasses.replace(self.one.clients.settings, data_dir=place / "two")
        self.two = Desk.__new__(Desk)
        self.two.__dict__ |= self.one.__dict__
        self.two.worker = crew["two"]
        self.two.clients = dataclasses.replace(self.one.clients, settings=mine, worker=crew["two"])
        self.two.clients.paths.make()
        self.two.git = self.two.clients.git(self.one.id)

    def _crew(self, name: str, database: str) -> Worker:
        workers = [Worker(database, pool, 4, name) for pool in POOLS]
        for worker in workers:
            worker.start()
            self.stacks[name].callback(worker.stop)
        return workers[0]

    def lose_one(self) -> None:
        """The first host is gone, for longer than anybody waits."""
        self.stacks["one"].close()
        execute("update workers set ended_at = clock_timestamp() - interval '1 hour' where host = 'one'")
        stitcher.sweep()


@pytest.fixture
def hosts(database: str, tmp_path: Path) -> Iterator[Two]:
    with ExitStack() as stack:
        practice = PracticeGitea(tmp_path / "gitea", "a" * 40).start()
        stack.callback(practice.stop)
        yield Two(database, practice, tmp_path, stack)


def prompt(desk: Desk, job: int) -> str:
    """What the agent would read in its next turn; the turn itself stays to be done."""
    row = queries.step(spine.ready_steps(job)[0])
    assert row is not None and row.name == "weaver.implement"
    stored = next(one for one in queries.step_rows(job) if one["id"] == row.id)
    context = Context({**stored, "host": desk.worker.host}, desk.clients, Held(row.id, row.fence, False))
    return _prompt(context, _conversation(context)[1])


def red_round(desk: Desk, job: int, text: str, said: str) -> None:
    """The agent writes this, and its gate is red: up to the agent's next turn."""
    desk.work(job, wrote({"calc.py": text}, Done(output={"text": said})), until="inspector.gate.test")
    row = steps.claim(spine.ready_steps(job)[0], desk.worker.id, desk.worker.host)
    assert row is not None
    assert stitcher.record(row, RED)
    desk.work(job, until="weaver.implement")


def test_the_agent_on_the_other_host_begins_with_the_request_and_a_clean_tree(hosts: Two) -> None:
    one, two = hosts.one, hosts.two
    job = one.ask()
    one.work(job, until="runner.checkout")
    execute("update runner_jobs set host = 'one' where id = %s", job)
    red_round(one, job, HALF, FIRST)
    before = prompt(one, job)
    assert "round 2" in before.lower() and FIRST in before, "where the work is, it goes on"

    hosts.lose_one()
    two.work(job, until="weaver.implement")
    assert one.job(job).host == "two"
    assert (two.worktree(job) / "calc.py").read_text() == CALC["calc.py"]
    begun = prompt(two, job)
    assert FIRST not in begun and "What was done so far" not in begun and "is red" not in begun
    assert begun.startswith("Round 1 of ")
    shown = status_comment(one.job(job), queries.steps(job), link="http://mosaic.test/jobs/1")
    assert (
        "The machine with the files was lost, and what was done in 1 round with it. The agent starts again from the "
        "beginning; its rounds count from there."
    ) in shown

    red_round(two, job, HALF, "Multiplied.")
    again = prompt(two, job)
    assert "round 2" in again.lower() and "Multiplied." in again, "its own second round"
    assert two.work(job, wrote({"calc.py": RIGHT}, Done(output={"text": "It adds."}))) == "completed"
    done = one.job(job)
    assert done.reason == "done" and two.file(done.head_sha or "", "calc.py") == RIGHT
    receipts = one.forge.call("GET", f"/repos/{one.repo}/pulls/{done.pull_request}")["body"]
    assert "inspector.gate.test@3.1/log" in receipts
