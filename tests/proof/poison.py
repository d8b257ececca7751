"""Scenario: a job whose step kills its worker, each time. It is given up after three crashes; the others go on."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from tests.proof.agent import POISON
from tests.proof.place import RULES, Place, place
from tests.proof.rest import settle
from tests.proof.tally import Tally
from tests.proof.verdict import audit, judge

OTHERS = 12


def poison(path: Path) -> Tally:
    tally, began = Tally("poison job"), time.monotonic()
    with place(path) as here:
        here.agent.on_poison = lambda job: _kill_worker(here, job, tally)
        bad = here.repository("poison", {".mosaic.toml": RULES, POISON: "the worker that holds this dies\n"})
        repos = [here.repository(f"healthy-{n}") for n in range(OTHERS // 2)]
        asked: dict[str, dict[int, int | None]] = {repo: {here.ask(repo): None} for repo in [bad, *repos]}
        for repo in repos:
            asked[repo][here.ask(repo)] = None
        settle(here, OTHERS + 1, 240)
        judge(here, asked, tally)
        audit(here, tally)
        _look(here, bad, tally)
    tally.seconds = time.monotonic() - began
    return tally


def _kill_worker(here: Place, job: int, tally: Tally) -> None:
    """The process that runs the agent's step of this job now."""
    rows = here.mosaic.sql(
        "select w.pid from job_steps s join workers w on w.id = s.worker_id "
        "where s.job_id = %s and s.name = 'weaver.implement' and s.status = 'running'",
        job,
    )
    for row in rows:
        with suppress(ProcessLookupError):
            os.kill(row["pid"], signal.SIGKILL)
            tally.kills += 1


def _look(here: Place, bad: str, tally: Tally) -> None:
    rows = here.mosaic.sql("select repository, status, reason from runner_jobs")
    ends = {row["reason"] for row in rows if row["repository"] == bad}
    tally.expect(ends == {"crashed"}, f"the poison job ended {ends}, not crashed")
    worse = [row for row in rows if row["repository"] != bad and row["reason"] != "done"]
    tally.expect(not worse, f"{len(worse)} healthy jobs ended badly: {worse[:2]}")
    crashes = here.mosaic.sql(
        "select max(s.crashes) as worst from job_steps s join runner_jobs j on j.id = s.job_id where j.repository = %s",
        bad,
    )[0]["worst"]
    tally.expect(crashes == 3 == tally.kills, f"given up after {crashes} crashes and {tally.kills} kills, not after 3")
    delay = here.mosaic.sql(
        "select max(extract(epoch from finished_at - created_at))::float as s from runner_jobs where repository <> %s",
        bad,
    )[0]["s"]
    tally.notes.append(f"the slowest of {OTHERS} healthy jobs beside it took {delay:.1f} s from mention to end")
