"""A whole town: a forge with people, a scripted model, and Mosaic with all its real processes.

The forge is the practice Gitea, or a real one when REAL_GITEA_URL and REAL_GITEA_ADMIN_TOKEN name it; stories use
nothing but its public API, so they run on both.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.worlds.forge import Account, Forge, Json
from tests.worlds.gitea import PracticeGitea
from tests.worlds.model import ScriptedModel
from tests.worlds.mosaic import OPEN_LIMITS, Mosaic

EVENTS = ("issues", "issue_assign", "issue_label", "issue_comment", "pull_request_comment", "pull_request")
# Only repositories named calc-… are served; people of a story may ask as often as the story needs. What a story keeps
# from the webhook is not found by looking meanwhile: that has stories of its own.
CONFIG = f"""repositories = ["*/calc-*"]

{OPEN_LIMITS}
[reconcile]
seconds = 3600
notification_seconds = 3600
"""
PAUSE_LIMIT = 300.0  # seconds
RULES = 'version = 1\n[[gates]]\nname = "test"\ntype = "test"\ncommand = "python3 -m unittest -v"\n'
CALC: Mapping[str, str] = {
    "calc.py": "def add(a, b):\n    return a - b\n",
    "test_calc.py": "import unittest\n\nfrom calc import add\n\n\nclass AddTest(unittest.TestCase):\n"
    "    def test_add(self):\n        self.assertEqual(add(2, 3), 5)\n",
    ".mosaic.toml": RULES,
}


def edit(path: str, old: str, new: str) -> Json:
    """A model's step: replace a text in a file."""
    return {"tool": "edit", "args": {"path": path, "edits": [{"oldText": old, "newText": new}]}}


def write(path: str, content: str) -> Json:
    return {"tool": "write", "args": {"path": path, "content": content}}


def say(text: str) -> Json:
    return {"text": text}


# What the model does with CALC: right at once; wrong first; never right.
RIGHT = [[edit("calc.py", "a - b", "a + b"), say("add() adds now.")]]
WRONG_FIRST = [
    [edit("calc.py", "a - b", "a * b"), say("It multiplies now.")],
    [edit("calc.py", "a * b", "a + b"), say("add() adds now.")],
]
NEVER = [
    [edit("calc.py", "a - b", "a * b"), say("One.")],
    [edit("calc.py", "a * b", "a // b"), say("Two.")],
    [edit("calc.py", "a // b", "a % b"), say("Three.")],
]
SCRIPTS = {"right": RIGHT, "wrong-first": WRONG_FIRST, "never": NEVER}


@dataclass(eq=False)
class Story:
    """One repository with its people, where a story takes place."""

    town: Town
    repo: str

    def issue(
        self, title: str = "add() subtracts", body: str = "It should add.", *, by: Account | None = None, **more: Any
    ) -> int:
        return int(self.town.forge.open_issue((by or self.town.alice).token, self.repo, title, body, **more)["number"])

    def say(self, number: int, body: str, *, by: Account | None = None) -> Json:
        return self.town.forge.comment((by or self.town.alice).token, self.repo, number, body)

    def ended(self, number: int, timeout: float = 90.0) -> Json:
        return self.town.mosaic.ended(self.repo, number, timeout)

    def script(self, *rounds: Sequence[Json]) -> str:
        """Teach the model what to do in this story from now on; the marker that makes it do so."""
        return self.town.script(self.repo.replace("/", "-"), rounds)

    def pause(self, *rounds: Sequence[Json]) -> Pause:
        """As `script`, but the model keeps silent until `go_on`."""
        pause = Pause(self)

        def play(_: Mapping[str, str]) -> list[list[Json]]:
            pause.asked.set()
            if not pause.open.wait(PAUSE_LIMIT):
                raise TimeoutError("nobody let the model go on")
            return [list(steps) for steps in rounds]

        self.town.model.scripts[pause.name] = play
        return pause

    def job(self, number: int | None = None) -> Json | None:
        return self.town.mosaic.job(self.repo, number)

    def jobs(self) -> list[Json]:
        return self.town.mosaic.sql("select * from runner_jobs where repository = %s order by id", self.repo)

    def nth(self, number: int, count: int, timeout: float = 240.0) -> Json:
        """The job number `count` of an issue, counted from 1, once it has ended."""

        def look() -> Json | None:
            rows = [job for job in self.jobs() if job["number"] == number]
            return rows[count - 1] if len(rows) >= count and rows[count - 1]["finished_at"] else None

        return self.town.mosaic.until(look, f"the end of job {count} of {self.repo}#{number}", timeout)

    def heard(
        self, number: int, what: Callable[[str], bool] = lambda _: True, count: int = 1, timeout: float = 30.0
    ) -> list[str]:
        """The bot's comments on an issue that fit, once there are `count` of them. Markers are cut off."""

        def look() -> list[str] | None:
            found = [text for text in self.said(number) if what(text)]
            return found if len(found) >= count else None

        return self.town.mosaic.until(look, f"{count} comment(s) of the bot on #{number}", timeout)

    def said(self, number: int) -> list[str]:
        """All comments of the bot on an issue now, oldest first, without their hidden markers."""
        comments = self.town.forge.comments(self.repo, number)
        return [
            one["body"].rsplit("\n\n<!-- mosaic:", 1)[0]
            for one in comments
            if one["user"]["login"] == self.town.bot.login
        ]

    def pulls(self) -> list[Json]:
        return self.town.forge.pulls(self.repo)

    def settled(self) -> None:
        """Wait until Mosaic has answered everything: no open delivery, no effect that is due, no open job."""
        self.town.mosaic.until(
            lambda: (
                not self.town.mosaic.sql(
                    "select 1 as yes from deliveries where state = 'command' union all select 1 from effects where "
                    "state = 'planned' union all select 1 from runner_jobs where finished_at is null"
                )
            ),
            "Mosaic to settle",
        )


@dataclass(eq=False)
class Pause:
    """An agent that is at work and waits for its model, as long as the story needs."""

    story: Story
    asked: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return f"pause-{self.story.repo.replace('/', '-')}"

    @property
    def marker(self) -> str:
        return f"[[script:{self.name}]]"

    def at_work(self) -> None:
        """Wait until the agent has asked its model."""
        self.story.town.mosaic.until(self.asked.is_set, "the agent to ask its model", 240.0)

    def go_on(self) -> None:
        self.open.set()


class Town:
    """`with Town(path) as town: story = town.story()`."""

    def __init__(
        self,
        path: Path,
        *,
        engine: bool = True,
        config: str = CONFIG,
        authz: bool = False,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.practice: PracticeGitea | None = None
        url, token = os.environ.get("REAL_GITEA_URL", ""), os.environ.get("REAL_GITEA_ADMIN_TOKEN", "")
        if not url:
            token = secrets.token_hex(20)
            self.practice = PracticeGitea(path / "gitea", token).start()
            url = self.practice.url
        self.forge = Forge(url, token, control=self.practice is not None)
        self.model = ScriptedModel(SCRIPTS).start()
        self.bot = self.forge.make_user("mosaic")
        self.alice, self.bob = self.forge.make_user("alice"), self.forge.make_user("bob")
        authz_token = token if authz else ""
        self.mosaic = Mosaic(
            path / "mosaic",
            url,
            self.bot.token,
            model_url=self.model.url if engine else "",
            config=config,
            authz_token=authz_token,
            extra=extra,
        )
        self._stories = 0

    def __enter__(self) -> Town:
        try:
            self.mosaic.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.mosaic.stop()
        self.model.stop()
        self.forge.cleanup()
        if self.practice:
            self.practice.stop()

    def story(
        self,
        files: Mapping[str, str | bytes] | None = None,
        *,
        private: bool = False,
        hook: bool = True,
        bot_may: str = "write",
        name: str = "calc",
        owner: str = "",
    ) -> Story:
        """A fresh repository (of alice, if no owner is named) with CALC in it, the bot, and a webhook."""
        self._stories += 1
        repo = self.forge.make_repo(owner or self.alice.login, f"{name}-{self._stories}", files or CALC, private)
        self.forge.collaborator(repo, self.bot.login, bot_may)
        if hook:
            self.hook(repo)
        return Story(self, repo)

    def hook(self, target: str) -> int:
        """A webhook to Mosaic, on a repository, an organisation, or ("") the whole forge."""
        return self.forge.hook(target, self.webhook, self.mosaic.secret, EVENTS)

    @property
    def webhook(self) -> str:
        return f"{self.mosaic.url}/webhooks/gitea"

    def script(self, name: str, rounds: Sequence[Sequence[Json]]) -> str:
        """Teach the model a script; the marker that makes it play it."""
        self.model.scripts[name] = [list(steps) for steps in rounds]
        return f"[[script:{name}]]"

    def mention(self, text: str) -> str:
        """`@mosaic text`, with the name that the bot has on this forge."""
        return f"@{self.bot.login} {text}"
