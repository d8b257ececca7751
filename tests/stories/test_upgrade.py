"""Upgrade with jobs in flight: the processes of the release before, really run, beside the newest schema.

`fixtures/releases/0001_spine.tar.xz` is the source of that release (named by the last migration that it knows). When a
release changes the schema in another way than by adding, these tests say so.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from app import models, schema
from app.postgres import Cluster
from tests.spine import broken_links
from tests.worlds.mosaic import ROOT, Mosaic
from tests.worlds.town import CALC, Story, Town

pytestmark = [pytest.mark.e2e, pytest.mark.practice]

BEFORE = ROOT / "tests" / "fixtures" / "releases" / "0001_spine.tar.xz"
SERVED = 'repositories = ["*/calc-*"]\n'  # in words that both releases know
RULES = 'version = 1\n[setup]\ncommands = ["sleep {seconds}"]\n[[gates]]\nname = "test"\ncommand = "true"\n'


def unpacked(into: Path) -> Path:
    with tarfile.open(BEFORE) as tar:
        tar.extractall(into, filter="data")
    return into


def slow(town: Town, seconds: int) -> Story:
    """A repository whose setup takes so long."""
    return town.story({**CALC, ".mosaic.toml": RULES.format(seconds=seconds)})


def asked(story: Story) -> int:
    number = story.issue()
    story.say(number, story.town.mention("fix this"))
    return number


def step(mosaic: Mosaic, story: Story, name: str) -> dict[str, Any] | None:
    job = story.job()
    found = [row for row in mosaic.steps(job["id"]) if row["name"] == name] if job else []
    return found[-1] if found else None


def running(story: Story, name: str) -> None:
    mosaic = story.town.mosaic
    mosaic.until(lambda: (row := step(mosaic, story, name)) and row["status"] == "running", f"{name} to run", 90)


def waits_for_engine(story: Story, faults: int) -> None:
    """As far as a job comes without an engine: its agent's step is handed back, and tried again."""
    mosaic = story.town.mosaic
    mosaic.until(
        lambda: (row := step(mosaic, story, "weaver.implement")) and row["faults"] >= faults, "the agent's step", 90
    )


def test_jobs_in_flight_survive_the_upgrade(tmp_path: Path) -> None:
    town = Town(tmp_path, engine=False, config=SERVED)
    mosaic = town.mosaic
    mosaic.root = unpacked(tmp_path / "before")
    name = mosaic.data / "var" / "host"  # that release called itself as its machine is called, and kept no file of it
    name.parent.mkdir(mode=0o700)
    name.write_text(f"{socket.gethostname()}\n")
    with town:
        assert [row["name"] for row in mosaic.sql("select name from schema_migrations")] == ["0001_spine"]
        first = slow(town, 6)
        asked(first)
        running(first, "runner.setup")

        # The schema goes ahead; the processes of the release before work on, with this job and with new ones.
        done = subprocess.run(
            [sys.executable, "-m", "app", "migrate"], cwd=ROOT, env=mosaic.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert {row["name"] for row in mosaic.sql("select name from schema_migrations")} == set(schema.names())
        second, third = slow(town, 0), slow(town, 6)
        number = asked(second)
        second.heard(number, lambda text: "weaver" in text or "agent" in text.lower())
        waits_for_engine(first, 1)
        waits_for_engine(second, 1)
        asked(third)
        running(third, "runner.setup")

        # An orderly stop in the middle of a step; the new processes go on with all three.
        mosaic.stop()
        name.unlink()
        before = {story.repo: 0 for story in (first, second, third)}
        mosaic.root = ROOT
        mosaic.start()
        for story in (first, second):
            row = step(mosaic, story, "weaver.implement")
            before[story.repo] = row["faults"] if row else 0
        waits_for_engine(third, 1)
        for story in (first, second):
            waits_for_engine(story, before[story.repo] + 1)
        interrupted = [row for row in mosaic.events(third.jobs()[0]["id"]) if row["kind"] == "step.progress"]
        assert any(row["data"].get("waiting") == "worker_stopped" for row in interrupted)

        # They end as any other job: with one status comment, and a ledger without a gap.
        for story in (first, second, third):
            story.say(1, town.mention("cancel"))
        for story in (first, second, third):
            job = story.ended(1)
            assert (job["status"], job["reason"]) == ("cancelled", "cancelled_by_user")
            assert all(row["crashes"] == 0 for row in mosaic.steps(job["id"]))
        for story in (first, second, third):
            story.settled()
            said = story.said(1)  # one status comment, edited by both releases, the answer to `cancel`, the closing one
            assert len(said) == 3 and [text.startswith("**The request of") for text in said].count(True) == 1
            assert ["Mosaic was stopped" in text for text in said].count(True) == 1
        with models_of(mosaic):
            for story in (first, second, third):
                assert broken_links(story.jobs()[0]["id"]) == []


def models_of(mosaic: Mosaic) -> Any:
    models.bind(Cluster(mosaic.data / "var").app_url)
    return models.db.connection_context()
