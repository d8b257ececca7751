"""Two hosts, one database: each has its own data directory, consumers and gateway. One of them is killed."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pytest
from psycopg import sql

from app.postgres import Cluster
from tests.worlds.forge import Forge
from tests.worlds.gateway import FakeGateway, Frame, Item, await_event, turn
from tests.worlds.gitea import PracticeGitea
from tests.worlds.mosaic import Mosaic
from tests.worlds.town import CALC, CONFIG, EVENTS

pytestmark = [pytest.mark.slow, pytest.mark.practice]
GATEWAY_TOKEN = "g" * 40


class Machine:
    """One host: Mosaic's processes, and a gateway whose agent repairs calc.py when it is let."""

    def __init__(
        self, path: Path, stack: ExitStack, env: dict[str, str], forge_url: str, bot: str, secret: str
    ) -> None:
        self.go_on = Event()
        self.turns = 0
        gateway = stack.enter_context(FakeGateway(path / "var" / "worktrees", token=GATEWAY_TOKEN, play=self.play))
        stack.callback(self.go_on.set)
        extra = {**env, "MOSAIC_OPENCLAW_URL": gateway.url, "MOSAIC_OPENCLAW_TOKEN": GATEWAY_TOKEN}
        self.mosaic = Mosaic(path, forge_url, bot, config=CONFIG, secret=secret, extra=extra)
        stack.callback(self.mosaic.stop)

    def play(self, session: Frame) -> Iterator[Item]:
        self.turns += 1
        yield await_event(self.go_on)
        file = Path(session["sessionRoot"]) / "calc.py"
        file.write_text(file.read_text().replace("a - b", "a + b"))
        yield from turn("write")

    def kill_all(self) -> None:
        """The power fails: every process of the host dies at once."""
        assert self.mosaic.process is not None
        roots = [self.mosaic.process.pid, *(self.mosaic.pid(role) for role in ("web", "control", "gates", "agents"))]
        for pid in roots:
            os.killpg(pid, signal.SIGKILL)
        self.mosaic.process.wait()


class Hosts:
    """Two machines on one database and one forge."""

    def __init__(self, path: Path, cluster: Cluster, stack: ExitStack) -> None:
        name = f"hosts_{secrets.token_hex(4)}"
        with psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("create database {} template mosaic owner mosaic_owner").format(sql.Identifier(name))
            )
        token = secrets.token_hex(20)
        self.practice = PracticeGitea(path / "gitea", token).start()
        stack.callback(self.practice.stop)
        self.forge = Forge(self.practice.url, token, control=True)
        self.bot, self.alice = self.forge.make_user("mosaic"), self.forge.make_user("alice")
        env = {
            "MOSAIC_DATABASE_URL": cluster.url("mosaic_app", name),
            "MOSAIC_DATABASE_OWNER_URL": cluster.url("mosaic_owner", name),
            "MOSAIC_SECRET_KEY": "s" * 48,
        }
        self.secret = secrets.token_hex(24)
        self.one, self.two = (
            Machine(path / name, stack, env, self.practice.url, self.bot.token, self.secret) for name in ("one", "two")
        )
        self.one.mosaic.start()
        self.two.mosaic.start()

    def repo(self, name: str) -> str:
        repo = self.forge.make_repo(self.alice.login, f"calc-{name}", CALC, False)
        self.forge.collaborator(repo, self.bot.login, "write")
        self.forge.hook(repo, f"{self.two.mosaic.url}/webhooks/gitea", self.secret, EVENTS)
        return repo

    def ask(self, repo: str) -> int:
        number = int(self.forge.open_issue(self.alice.token, repo, "add() subtracts", "It should add.")["number"])
        self.forge.comment(self.alice.token, repo, number, f"@{self.bot.login} fix this")
        return number

    def machine_of(self, repo: str) -> Machine:
        found = self.two.mosaic.until(lambda: self._host(repo), f"a host for {repo}")
        return self.one if found == self.one.mosaic.host else self.two

    def _host(self, repo: str) -> str | None:
        job = self.two.mosaic.job(repo)
        return job["host"] if job else None


@pytest.fixture
def hosts(tmp_path: Path, cluster: Cluster) -> Iterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(tmp_path, cluster, stack)


def test_work_spreads_and_the_jobs_of_a_killed_host_end_on_the_other(hosts: Hosts) -> None:
    repos = [hosts.repo(str(number)) for number in range(2)]
    numbers = [hosts.ask(repo) for repo in repos]
    at = {repo: hosts.machine_of(repo) for repo in repos}
    assert {machine.mosaic.host for machine in at.values()} == {hosts.one.mosaic.host, hosts.two.mosaic.host}
    mosaic = hosts.two.mosaic
    mosaic.until(lambda: hosts.one.turns and hosts.two.turns, "both agents to be at work")
    lost = next(repo for repo, machine in at.items() if machine is hosts.one)

    hosts.one.kill_all()
    hosts.two.go_on.set()
    jobs = {repo: mosaic.ended(repo, number, timeout=180) for repo, number in zip(repos, numbers, strict=True)}

    assert {(job["status"], job["reason"]) for job in jobs.values()} == {("completed", "done")}
    job = jobs[lost]
    assert job["host"] == hosts.two.mosaic.host
    moved = [event for event in mosaic.events(job["id"]) if event["kind"] == "host.lost"]
    told = {"host": hosts.one.mosaic.host, "to": hosts.two.mosaic.host, "round": 1}
    assert [event["data"] for event in moved] == [told]
    steps = mosaic.steps(job["id"])
    assert {
        step["host"] for step in steps if step["name"] in ("runner.commit", "herald.publish", "inspector.gate.test")
    } == {hosts.two.mosaic.host}
    assert all(step["attempt"] - step["excused"] == 1 for step in steps), "the loss of a host is no attempt"
    for repo, number in zip(repos, numbers, strict=True):
        one_of_everything(hosts, repo, number)


def one_of_everything(hosts: Hosts, repo: str, number: int) -> None:
    mosaic = hosts.two.mosaic
    mosaic.until(lambda: not mosaic.sql("select 1 from effects where state = 'planned'"), "the last words")
    assert set(hosts.forge.branches(repo)) == {"main", f"mosaic/issue-{number}"}
    [pull] = hosts.forge.pulls(repo)
    assert hosts.forge.statuses(repo, pull["head"]["sha"]) == {"mosaic/job": "success", "mosaic/test": "success"}
    assert hosts.forge.file(repo, "calc.py", pull["head"]["ref"]) == b"def add(a, b):\n    return a + b\n"
    said: list[dict[str, Any]] = [
        comment for comment in hosts.forge.comments(repo, number) if comment["user"]["login"] == hosts.bot.login
    ]
    status, closing = (comment["body"] for comment in said)
    assert status.startswith("**Mosaic finished") and closing.startswith(f"@{hosts.alice.login} Done")
