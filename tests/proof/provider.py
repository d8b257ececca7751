"""Scenario: the real OpenClaw, whose model refuses, stalls and hangs up, and which is itself killed in the middle.

A fault of the provider costs time, never an attempt, and never the job.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.proof.rest import until
from tests.proof.tally import Tally
from tests.proof.verdict import audit
from tests.worlds.town import CONFIG, RIGHT, Story, Town

# What the model does the first times it is asked, by name; then it does the work.
FAULTS: Mapping[str, list[dict[str, Any]]] = {
    "500": [{"status": 500}] * 2,
    "503": [{"status": 503}] * 2,
    "429": [{"status": 429}] * 2,
    "cut": [{"drop": True}] * 2,
    "stall": [{"hang": 8, "text": ""}],
    "all-at-once": [{"status": 500}, {"drop": True}, {"status": 429}],
}
LIMIT = 420.0


def provider(path: Path, rounds: int = 1) -> Tally:
    tally, began = Tally("provider faults"), time.monotonic()
    with Town(path, config=CONFIG) as town:
        asked: dict[str, int] = {}
        for n in range(rounds):
            for name, faults in FAULTS.items():
                story = town.story()
                town.model.scripts[f"{name}-{n}"] = _faulty(faults)
                asked[story.repo] = _ask(story, f"[[script:{name}-{n}]]")
                tally.faults += len(faults)
        story = town.story()
        asked[story.repo] = _killed_engine(story, tally)
        _wait(town, len(asked))
        _judge(town, asked, tally)
        audit(town, tally)
    tally.seconds = time.monotonic() - began
    return tally


def _faulty(faults: list[dict[str, Any]]) -> Callable[[Mapping[str, str]], list[Any]]:
    """A script that plays the faults first, one for each time that it is asked, then the right change."""
    left, lock = list(faults), threading.Lock()

    def play(_: Mapping[str, str]) -> list[Any]:
        with lock:
            return [left.pop(0)] * 50 if left else list(RIGHT[0])

    return play


def _ask(story: Story, marker: str) -> int:
    number = story.issue()
    story.say(number, story.town.mention(f"fix this {marker}"))
    return number


def _killed_engine(story: Story, tally: Tally) -> int:
    """The gateway is killed while its agent waits for the model."""
    pause = story.pause(*RIGHT)
    number = _ask(story, pause.marker)
    pause.at_work()
    story.town.mosaic.kill("engine")
    tally.kills += 1
    pause.go_on()
    return number


def _wait(town: Town, jobs: int) -> None:
    look = "select count(*) as n from runner_jobs where finished_at is not null"
    until(lambda: [row["n"] for row in town.mosaic.sql(look)] == [jobs], LIMIT)
    planned = "select count(*) as n from effects where state = 'planned'"
    until(lambda: [row["n"] for row in town.mosaic.sql(planned)] == [0], 60)


def _judge(town: Town, asked: Mapping[str, int], tally: Tally) -> None:
    rows = town.mosaic.sql("select * from runner_jobs")
    tally.jobs = len(rows)
    tally.steps = town.mosaic.sql("select count(*) as n from job_steps where finished_at is not null")[0]["n"]
    for repo, number in asked.items():
        mine = [row for row in rows if (row["repository"], row["number"]) == (repo, number)]
        tally.doubled += [f"{repo}: {len(mine)} jobs"] * (len(mine) > 1)
        pulls, said = town.forge.pulls(repo), Story(town, repo).said(number)
        if [row["reason"] for row in mine[:1]] != ["done"] or not pulls:
            tally.lost.append(f"{repo}: ended {[row['reason'] for row in mine]} with {len(pulls)} pull requests")
        tally.doubled += [f"{repo}: {len(pulls)} pull requests"] * (len(pulls) > 1)
        tally.doubled += [f"{repo}: {len(said)} comments"] * (len(said) > 2)
    attempts = town.mosaic.sql("select name, attempt from job_steps where name = 'weaver.implement' and attempt > 1")
    tally.expect(not attempts, f"{len(attempts)} attempts of the agent were spent on faults of its provider")
    waits = Counter(row["faults"] for row in town.mosaic.sql("select faults from job_steps where pool = 'agents'"))
    tally.notes.append(f"steps of the agent by how often they were handed back: {dict(sorted(waits.items()))}")
