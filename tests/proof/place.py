"""The place of a scenario: a practice Gitea in a process of its own, the fast agent, `mosaic serve`, more consumers.

Rule: everything that is started here ends with the place, and what it left behind is looked for.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from app.postgres import Cluster
from app.processes import bound_to_us
from app.serve import child_environment
from tests.proof.agent import TOKEN, Agent
from tests.worlds.forge import Account, Forge
from tests.worlds.mosaic import OPEN_LIMITS, ROOT, Mosaic

EVENTS = ("issues", "issue_comment", "pull_request_comment", "pull_request")
RULES = 'version = 1\n[[gates]]\nname = "test"\ntype = "test"\ncommand = "true"\n'
# A proof asks for more than any person would: the brakes against runaway nights are open here.
CONFIG = f'repositories = ["*/*"]\n\n{OPEN_LIMITS}'
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Place:
    """`with place(path) as here:`; then `here.mosaic`, `here.forge`, `here.more("control")`."""

    def __init__(self, path: Path, stack: ExitStack, *, config: str = CONFIG, extra: Mapping[str, str] | None = None):
        self.path = path
        admin = secrets.token_hex(20)
        self.gitea, url = _practice_gitea(path / "gitea", admin)
        stack.callback(_end, self.gitea)
        self.forge = Forge(url, admin, control=True, prefix="")
        self.bot, self.people = self.forge.make_user("mosaic"), [self.forge.make_user(n) for n in ("alice", "bob")]
        self.agent = Agent(path / "mosaic" / "var" / "worktrees")
        stack.enter_context(self.agent)
        engine = {"MOSAIC_OPENCLAW_URL": self.agent.url, "MOSAIC_OPENCLAW_TOKEN": TOKEN}
        self.mosaic = Mosaic(
            path / "mosaic",
            url,
            self.bot.token,
            authz_token=admin,  # mentions that are found without a webhook say nothing of the person's rights
            config=config,
            max_agents=4,
            extra={**engine, **(extra or {})},
        )
        self.more: list[Consumer] = []
        stack.callback(self._stop)

    @property
    def alice(self) -> Account:
        return self.people[0]

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.mosaic.data / "var")

    def repository(self, name: str, files: Mapping[str, str] | None = None, *, hook: bool = True) -> str:
        """A tiny repository that the bot may write to, with its webhook."""
        repo = self.forge.make_repo(self.alice.login, name, files or {".mosaic.toml": RULES, "README": "x\n"})
        for person in (self.bot, *self.people[1:]):
            self.forge.collaborator(repo, person.login, "write")
        if hook:
            self.hook(repo)
        return repo

    def hook(self, repo: str) -> int:
        return self.forge.hook(repo, f"{self.mosaic.url}/webhooks/gitea", self.mosaic.secret, EVENTS)

    def ask(self, repo: str, by: Account | None = None, text: str = "fix this") -> int:
        """An issue that mentions the bot; its number."""
        person = by or self.alice
        body = f"@{self.bot.login} {text}\n"
        return int(self.forge.open_issue(person.token, repo, "Something is wrong", body)["number"])

    def add(self, role: str) -> Consumer:
        """One more consumer of a pool, beside those of `mosaic serve`."""
        consumer = Consumer(role, self.mosaic, self.path / f"{role}-{len(self.more)}.log")
        self.more.append(consumer)
        return consumer

    def _stop(self) -> None:
        for consumer in self.more:
            consumer.stop()
        self.mosaic.stop()


class Consumer:
    """A `mosaic run ROLE` process that is started again when it has ended, as a supervisor does."""

    def __init__(self, role: str, mosaic: Mosaic, log: Path) -> None:
        self.role, self._mosaic, self._log = role, mosaic, log
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Bound to the thread that calls: it ends with it."""
        self.starts += 1
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "run", self.role],
                cwd=ROOT,
                env=child_environment(self.role, self._mosaic.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=bound_to_us(signal.SIGKILL),
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def place(path: Path, **more: Any) -> Iterator[Place]:
    """A started place; on the way out everything is ended, newest first."""
    path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        here = Place(path, stack, **more)
        here.mosaic.start()
        yield here


def _practice_gitea(data: Path, admin: str) -> tuple[subprocess.Popen[str], str]:
    data.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.worlds.gitea", "--data", str(data)],
        cwd=ROOT,
        env={**os.environ, "PRACTICE_ADMIN_TOKEN": admin},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=bound_to_us(signal.SIGTERM),
    )
    assert process.stdout is not None
    ready = process.stdout.readline().split()
    if ready[:1] != ["READY"]:
        raise RuntimeError("the practice Gitea did not start")
    return process, ready[1]


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
