"""mosaic gc: what goes, what stays, and that it happens once a day and by one process only."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import gc, queries
from app.clients import git_bundle
from app.ledger import inbox, steps
from app.models import execute, fetch
from app.paths import Paths
from tests import spine
from tests.test_backup import commit

DAYS = 30
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    made = Paths(tmp_path / "var")
    made.make()
    yield made


def ended(days: float = 0.0, **more: object) -> int:
    """A job that ended so many days ago."""
    job = spine.submit(**more)
    spine.work(job, spine.worker())
    execute("update runner_jobs set finished_at = finished_at - %s * interval '1 day' where id = %s", days, job)
    return job


def aged(path: Path, days: float) -> Path:
    then = time.time() - days * gc.DAY
    os.utime(path, (then, then))
    return path


def place(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text("x" * 100)
    return path


def collected(paths: Paths, *, dry: bool = False) -> dict[str, gc.Freed]:
    return {freed.what: freed for freed in gc.Collector(paths, DAYS, dry).files()}


def test_worktrees_go_with_their_job_and_not_before(paths: Paths) -> None:
    old, fresh, running = ended(1), ended(), spine.submit()
    crashed = place(paths.worktree(old, 3))
    index = paths.index(old, 3)
    index.write_text("index")
    checkout = place(paths.checkout(old, 9, 4))
    stay = [
        place(paths.worktree(fresh, 1)),  # its last steps may still be at work
        place(paths.worktree(running, 1)),
        place(paths.worktree(old + 10_000, 1)),  # nobody knows that job: not ours to judge
        place(paths.worktrees / "notes"),
    ]
    before = collected(paths, dry=True)
    assert crashed.exists() and index.exists() and checkout.exists()
    assert collected(paths) == before
    assert (before["worktrees of ended jobs"].count, before["gate checkouts of ended jobs"].count) == (2, 1)
    assert before["worktrees of ended jobs"].bytes >= 105
    assert not crashed.exists() and not index.exists() and not checkout.exists()
    assert all(path.exists() for path in stay)


def test_a_job_that_ended_while_a_step_still_runs_keeps_its_files(paths: Paths) -> None:
    job, worker = spine.submit(), spine.worker()
    row = steps.claim(spine.ready_steps(job)[0], worker, "here")
    assert row
    execute(
        "update runner_jobs set status = 'failed', finished_at = clock_timestamp() - interval '1 day' where id = %s",
        job,
    )
    tree = place(paths.worktree(job, 1))
    collected(paths)
    assert tree.exists()


def test_a_hostile_worktree_is_removed_and_nothing_it_points_at(paths: Paths, tmp_path: Path) -> None:
    outside = place(tmp_path / "outside")
    tree = place(paths.worktree(ended(1), 1))
    (tree / "link").symlink_to(outside)
    (tree / "locked").mkdir(mode=0o000)
    collected(paths)
    assert not tree.exists() and (outside / "file").exists()


def test_setup_caches_go_when_nobody_used_them_for_long(paths: Paths) -> None:
    unused, used, wanted, filled = (place(paths.setup_cache(name)) for name in ("unused", "used", "wanted", "filled"))
    for cache in (unused, wanted, filled):
        aged(cache, DAYS + 1)
    job = spine.submit()
    execute("update job_steps set output = '{\"cache\": \"wanted\"}' where job_id = %s and name = 'runner.setup'", job)
    with (paths.setup_cache("filled.lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert collected(paths)["setup caches"].count == 1
    assert not unused.exists() and used.exists() and wanted.exists() and filled.exists()


def test_kept_commits_of_old_jobs_go_and_those_that_somebody_continues_stay(paths: Paths) -> None:
    old, continued, fresh = ended(DAYS + 1), ended(DAYS + 1), ended(1)
    going_on = spine.submit()
    execute("update runner_jobs set retry_of = %s where id = %s", continued, going_on)
    mirror = paths.mirror(1)
    for name in (f"wip/{old}", f"job-{old}/start", f"job-{old}/round-1", f"wip/{continued}", f"wip/{fresh}", "other/x"):
        commit(mirror, f"refs/mosaic/{name}")
    assert collected(paths)["kept commits of old jobs"].count == 3
    assert set(git_bundle.kept_refs(mirror)) == {
        f"refs/mosaic/wip/{continued}",
        f"refs/mosaic/wip/{fresh}",
        "refs/mosaic/other/x",
    }


def test_mirrors_of_repositories_without_recent_jobs_go(paths: Paths) -> None:
    ended(DAYS + 1, repository_id=1)
    ended(1, repository_id=2)
    spine.submit(repository_id=3)
    for number in (1, 2, 3, 4):
        commit(paths.mirror(number), "refs/mosaic/other/x")
        aged(paths.mirror(number) / "HEAD", 2)
    aged(paths.mirror(4) / "HEAD", 0)  # made a moment ago, for a job that nobody sees yet
    assert collected(paths)["mirrors of unused repositories"].count == 1
    assert [paths.mirror(number).exists() for number in (1, 2, 3, 4)] == [False, True, True, True]
    assert [path.name for path in (paths.data / "mirrors").iterdir() if path.name.startswith(".")] == []


def test_a_mirror_that_is_needed_again_meanwhile_stays(paths: Paths) -> None:
    commit(paths.mirror(1), "refs/mosaic/other/x")
    assert not git_bundle.remove_mirror(paths.mirror(1), lambda: False)
    assert paths.mirror(1).exists()


def test_old_output_and_bodies_go_and_the_ledger_stays(paths: Paths) -> None:
    old, fresh = ended(DAYS + 1), ended(1)
    for job in (old, fresh):
        steps.log(queries.steps(job)[0].id, "what it wrote")
    for name, state in (("done", "job"), ("open", "command")):
        inbox.receive("gitea", f"delivery-{name}", dedup_key=None, event="issues", state=state, body=b"body")
    execute("update deliveries set received_at = received_at - interval '60 days'")
    inbox.receive("gitea", "delivery-new", dedup_key=None, event="issues", state="job", body=b"body")
    events = fetch("select count(*) as n from job_events")
    dry = list(gc.Collector(paths, DAYS, True).rows())
    assert len(fetch("select 1 from step_logs")) == 2
    assert list(gc.Collector(paths, DAYS).rows()) == dry
    assert [(freed.count, freed.bytes) for freed in dry] == [(1, 13), (1, 4)]
    assert queries.log(queries.steps(old)[0].id) == "" and queries.log(queries.steps(fresh)[0].id) == "what it wrote"
    bodies = {row["delivery_id"]: row["body"] for row in fetch("select delivery_id, body from deliveries")}
    assert bodies["delivery-done"] is None and bodies["delivery-open"] and bodies["delivery-new"]
    assert fetch("select count(*) as n from job_events") == events and spine.broken_links(old) == []


def test_leftovers_of_killed_processes_go(paths: Paths) -> None:
    old, fresh = place(paths.data / ".backup-old"), place(paths.data / ".backup-fresh")
    operators = aged(place(paths.data / "backup-2026"), 400)
    half = place(paths.data / "mirrors" / ".7.git-abc")
    aged(old, 2)
    aged(half, 2)
    assert collected(paths)["leftovers of killed processes"].count == 2
    assert not old.exists() and not half.exists() and fresh.exists()
    assert operators.exists(), "whoever keeps backups here loses none"


# ---------------------------------------------------------------- once a day


def test_it_happens_once_a_day_and_not_at_the_first_start(tmp_path: Path) -> None:
    done: list[int] = []

    def work() -> list[gc.Freed]:
        done.append(1)
        return [gc.Freed("things", 1, 1)]

    assert not gc.once_a_day("control", tmp_path, work)
    aged(tmp_path / "gc-control.stamp", 1.1)
    assert gc.once_a_day("control", tmp_path, work)
    assert not gc.once_a_day("control", tmp_path, work) and done == [1]


def test_one_process_of_a_machine_is_elected(tmp_path: Path) -> None:
    gc.once_a_day("control", tmp_path, list)
    aged(tmp_path / "gc-control.stamp", 2)
    with (tmp_path / "gc-control.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not gc.once_a_day("control", tmp_path, list)
    assert gc.once_a_day("control", tmp_path, list)


def test_what_broke_off_is_done_again(tmp_path: Path) -> None:
    gc.once_a_day("control", tmp_path, list)
    aged(tmp_path / "gc-control.stamp", 2)

    def broken() -> list[gc.Freed]:
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        gc.once_a_day("control", tmp_path, broken)
    assert gc.once_a_day("control", tmp_path, list)
