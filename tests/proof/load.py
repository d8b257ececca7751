"""Scenarios of load: workers told to go in the middle of it, and a crowd of unimportant jobs before important ones."""

from __future__ import annotations

import os
import signal
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from app import stitcher
from app.edge import connected, open_database
from app.gitea_events import text_hash
from app.ledger.chain import transaction
from app.types import Trigger
from tests.proof.place import RULES, Place, place
from tests.proof.rest import settle, until
from tests.proof.tally import Tally
from tests.proof.trouble import supervised
from tests.proof.verdict import audit, judge

AT_WORK = 20
DRAINS = 3
LOW, HIGH = -5, 5
HIGH_JOBS = 10


def drain(path: Path) -> Tally:
    """SIGTERM to every consumer, again and again, while twenty jobs run: nothing crashes, no attempt is spent."""
    tally, began = Tally("drain under load"), time.monotonic()
    with place(path) as here:
        here.agent.slowest = 3.0
        repos = [here.repository(f"drain-{n}") for n in range(AT_WORK)]
        asked: dict[str, dict[int, int | None]] = {repo: {} for repo in repos}
        for _ in range(DRAINS):
            for repo in repos:
                asked[repo][here.ask(repo)] = None
            until(lambda: _running(here) >= AT_WORK / 2, 30)
            tally.expect(_drained(here, _terminate(here)), "a consumer had not ended 90 s after SIGTERM")
        settle(here, AT_WORK * DRAINS, 240)
        judge(here, asked, tally)
        audit(here, tally)
        burned = here.mosaic.sql(
            "select id, name, attempt, crashes, reason from job_steps where crashes > 0 or status = 'failed'"
        )
        handed = here.mosaic.sql(
            "select count(*) as n from job_events where kind = 'step.progress' and data like '%%worker_stopped%%'"
        )
        tally.expect(not burned, f"steps that crashed or failed: {burned[:3]}")
        tally.notes.append(f"{DRAINS} drains of three consumers, {handed[0]['n']} steps handed back")
    tally.seconds = time.monotonic() - began
    return tally


def _consumers(here: Place) -> set[int]:
    return {pid for role, pid in supervised(here) if role in ("control", "agents", "gates")}


def _terminate(here: Place) -> set[int]:
    """One SIGTERM to each, as systemd sends it; a second one would mean: at once."""
    told = _consumers(here)
    for pid in told:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return told


def _drained(here: Place, told: set[int]) -> bool:
    return until(lambda: told.isdisjoint(_consumers(here)), 90) is True


def _running(here: Place) -> int:
    rows = here.mosaic.sql("select count(*) as n from runner_jobs where status = 'running'")
    return rows[0]["n"] if rows else 0


def fairness(path: Path, crowd: int) -> Tally:
    """A crowd of low-priority jobs is there first; important ones come later. Both get their turn."""
    tally, began = Tally(f"{crowd} low against high"), time.monotonic()
    with place(path) as here:
        rules = RULES.replace("version = 1\n", "version = 1\n[limits]\nconcurrent = 6\n")
        repo = here.repository("crowd", {".mosaic.toml": rules})
        _submit(here, repo, crowd, LOW)
        until(lambda: _running(here) >= 4, 60)
        for _ in range(HIGH_JOBS):
            _submit(here, repo, 1, HIGH)
            time.sleep(1.0)
        total = crowd + HIGH_JOBS
        settle(here, total, 120 + 2.0 * crowd)
        waits = here.mosaic.sql(
            "select priority, count(*) as n, count(finished_at) as ended, "
            "max(extract(epoch from started_at - created_at))::float as worst from runner_jobs group by 1 order by 1"
        )
        tally.jobs = sum(row["ended"] for row in waits)
        tally.steps = here.mosaic.sql("select count(*) as n from job_steps where finished_at is not null")[0]["n"]
        if tally.jobs < total:
            tally.lost.append(f"{total - tally.jobs} jobs have not ended")
        for row in waits:
            tally.notes.append(f"priority {row['priority']}: {row['n']} jobs, longest wait {row['worst']:.1f} s")
        worst = {row["priority"]: row["worst"] for row in waits}
        tally.expect(worst.get(HIGH, 1e9) < worst.get(LOW, 0), "an important job waited longer than the crowd")
        audit(here, tally)
    tally.seconds = time.monotonic() - began
    return tally


def _submit(here: Place, repo: str, count: int, priority: int) -> None:
    """What `mosaic submit` does, without a thousand starts of Python."""
    open_database(here.cluster.app_url, "proof")
    number = int(here.forge.call("GET", f"/repos/{repo}")["id"])
    with connected():
        for n in range(count):
            text = f"number {n} of priority {priority}"
            trigger = Trigger(
                kind="cli",
                repository_id=number,
                repository=repo,
                number=None,
                is_pull=False,
                object_id=0,
                actor_id=0,
                actor="operator",
                text=text,
                text_sha256=text_hash(text),
                at=datetime.now(UTC).isoformat(),
            )
            with transaction():
                stitcher.submit(
                    trigger,
                    trigger_key=f"proof:{uuid.uuid4().hex}",
                    instructions=text,
                    requester="cli:operator",
                    priority=priority,
                )
