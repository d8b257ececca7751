"""Scenario: the disk below everything is full, the database included. Work waits for space and costs nobody anything,
the audit stays whole, and all goes on to a good end when there is space again.

The disk is a small tmpfs of our own, so that no other program of the machine meets its end.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.proof.place import Place, place
from tests.proof.rest import settle
from tests.proof.tally import Tally
from tests.proof.verdict import audit, judge

DISK = 1024 * 1024 * 1024
FULL_SECONDS = 15.0
JOBS = 6


@contextmanager
def small_disk(folder: Path, size: int = DISK) -> Iterator[Path]:
    """A tmpfs on `folder`; needs root."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "mosaic-proof", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """No byte is left below `folder`; afterwards there is space again."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1024 * 1024)):
                pass
        except OSError:
            pass  # that is the point
    try:
        yield
    finally:
        filler.unlink()


def disk_full(path: Path) -> Tally:
    tally, began = Tally("disk full"), time.monotonic()
    if os.geteuid() != 0:
        tally.notes.append("not run: mounting a small disk needs root")
        return tally
    with small_disk(path / "mosaic") as disk, place(path) as here:
        repos = [here.repository(f"full-{n}") for n in range(JOBS)]
        asked: dict[str, dict[int, int | None]] = {repo: {here.ask(repo): None} for repo in repos}
        settle(here, JOBS, 60)
        _while_full(here, disk, asked)
        rested = settle(here, 2 * JOBS, 240)
        for repo in repos:
            asked[repo][here.ask(repo)] = None
        settle(here, 3 * JOBS, 120)
        judge(here, asked, tally)
        audit(here, tally)
        _expect_patience(here, tally)
        last = here.mosaic.sql("select count(*) as n from runner_jobs where reason = 'done' and id > %s", 2 * JOBS)
        tally.expect(bool(last) and last[0]["n"] == JOBS, "a job that came after there was space again did not succeed")
        tally.notes.append(f"full for {FULL_SECONDS:.0f} s under {JOBS} jobs; at rest {rested:.0f} s after")
    tally.seconds = time.monotonic() - began
    return tally


def _expect_patience(here: Place, tally: Tally) -> None:
    """Every job has ended well; none of its attempts was spent and none of its workers counted as crashed."""
    [found] = here.mosaic.sql(
        "select (select count(*) from runner_jobs where reason is distinct from 'done') as bad, "
        "(select count(*) from job_steps where crashes > 0 or attempt - excused > 1) as spent, "
        "(select count(*) from job_events where kind = 'step.progress' and data like %s) as waited",
        '%"waiting":"disk_full"%',
    )
    tally.expect(found["bad"] == 0, f"{found['bad']} jobs did not end well because the disk was full for a while")
    tally.expect(found["spent"] == 0, f"{found['spent']} steps lost an attempt or a worker to the full disk")
    tally.notes.append(f"handed back {found['waited']} times to wait for space")


def _while_full(here: Place, disk: Path, asked: dict[str, dict[int, int | None]]) -> None:
    """Ask, and take the space away while the jobs are at work."""
    for repo in asked:
        asked[repo][here.ask(repo)] = None
    time.sleep(0.5)
    with full(disk):
        time.sleep(FULL_SECONDS)
