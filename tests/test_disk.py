"""A full disk is the machine's fault: work waits for space and goes on by itself, and nothing half-made stays behind.

The disk is a small tmpfs that is really full; git, PostgreSQL, the control steps and the practice Gitea are real.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app import checks, disk, outcome, queries, stitcher
from app.clients.git import Git
from app.clients.git_env import Output
from app.clients.git_errors import local_failure, remote_failure
from app.clients.git_halves import drop_halves
from app.ledger import breaker, effects
from app.models import execute
from app.sandbox import Limits, run
from app.types import DiskFull, Done, MosaicError, Permanent, StepStatus, Transient
from app.voice import status_comment
from jobs import tasks
from jobs.herald.deliver import no_room
from tests import spine
from tests.proof.disk_full import full
from tests.test_effects import World, live, practice, row_of, step_of, world

__all__ = ["live", "practice", "world"]  # fixtures
MB = 1024 * 1024
WHEN = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MB. Who is not root mounts it in a namespace of a process of his own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0755", "mosaic-test", str(folder)]
    if os.geteuid() == 0:
        subprocess.run(mount, check=True)
        yield folder
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return
    script = '"$@" && echo there && exec sleep 600'
    holder = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *mount],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "there\n"
    yield Path(f"/proc/{holder.pid}/root{folder}")
    holder.kill()
    holder.wait()
    holder.stdout.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository of 12 MB that cannot be compressed."""
    folder = tmp_path / "source"
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", "-b", "main", str(folder)], check=True)
    for number in range(3):
        (folder / f"f{number}").write_bytes(os.urandom(4 * MB))
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    return folder


def left(mirror: Path) -> list[str]:
    return [path.name for path in mirror.glob("objects/**/tmp_*")]


def copied(source: Path, mirror: Path) -> Git:
    """A mirror on the small disk with the objects of `source`, and its head."""
    subprocess.run(["git", "clone", "-q", "--bare", "--no-local", str(source), str(mirror)], check=True)
    return Git(mirror, None)


# ---------------------------------------------------------------- which errors say so


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), True),
        (psycopg.errors.DiskFull("could not extend file"), True),
        (DiskFull("git add could not write"), True),
        (MosaicError("bwrap: Can't mkdir: No space left on device", code="sandbox_unavailable"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (Transient("Gitea answered 507: No space left on device"), False),
        (Permanent("remote: fatal: No space left on device"), False),
        (psycopg.OperationalError("the connection is closed"), False),
        (MosaicError("bwrap: no namespaces", code="sandbox_unavailable"), False),
    ],
)
def test_which_errors_say_that_our_disk_is_full(error: Exception, ours: bool) -> None:
    assert disk.full(error) is ours
    try:
        try:
            raise error
        except Exception as first:
            raise ValueError("it was like that") from first
    except ValueError as second:
        assert disk.full(second) is ours, "whatever was made of it"


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        ("fatal: unable to write loose object file: No space left on device", True),
        ("fatal: sha1 file '/x/m.git/./objects/pack/tmp_pack_1' write error. Out of diskspace", True),
        ("error: unable to write file f1\nerror: unable to write file f2", True),
        ("fatal: update_ref failed for ref 'refs/heads/x': couldn't write '/x/refs/heads/x.lock'", True),
        ("error: unable to write file f1: Permission denied", False),
        ("remote: fatal: write error: No space left on device", False),
    ],
)
def test_what_git_says_of_a_full_disk(said: str, ours: bool) -> None:
    output = Output(128, b"", said)
    assert disk.full(local_failure("add", output)) is ours
    assert disk.full(remote_failure("fetch", output)) is ours
    assert not disk.full(remote_failure("push", output, write=True)), "nothing is written here"


# ---------------------------------------------------------------- git on a disk that is really full


def test_a_fetch_without_room_is_no_fault_of_the_forge_and_leaves_nothing(world: World, small: Path) -> None:
    files: dict[str, str | bytes] = {f"f{number}": os.urandom(4 * MB) for number in range(3)}
    repo = world.forge.make_repo(world.alice.login, "large", files)
    world.forge.collaborator(repo, world.bot.login)
    clients = replace(world.clients, settings=replace(world.clients.settings, data_dir=small))
    git = clients.forge_git(1, repo)
    git.ensure()
    with full(small):
        for _ in range(3):
            with pytest.raises((DiskFull, OSError)) as caught:
                git.fetch()
            assert disk.full(caught.value)
        assert left(git.mirror) == [] and queries.breaker().failures == 0
    git.fetch()
    assert git.resolve("refs/heads/main")


def test_a_checkout_and_a_commit_without_room_succeed_when_there_is_some(small: Path, source: Path) -> None:
    git = copied(source, small / "m.git")
    head = git.resolve("refs/heads/main")
    assert head is not None
    work, index = small / "work", small / "index"
    with full(small), pytest.raises((DiskFull, OSError)) as caught:
        git.checkout(head, work, index=index)
    assert disk.full(caught.value)
    subprocess.run(["rm", "-rf", str(work)], check=True)
    slim = small / "slim"
    slim.mkdir()
    (slim / "new").write_bytes(os.urandom(2 * MB))
    person = ("a", "a@example.org")
    with full(small), pytest.raises((DiskFull, OSError)) as caught:
        git.commit(slim, small / "slim-index", head, "m", person, person, WHEN)
    assert disk.full(caught.value) and left(git.mirror) == []
    assert git.commit(slim, small / "slim-index", head, "m", person, person, WHEN) is not None
    with full(small), pytest.raises((DiskFull, OSError)) as caught:
        git.keep(head, "refs/mosaic/job-1/base")
    assert disk.full(caught.value)
    git.keep(head, "refs/mosaic/job-1/base")


@pytest.mark.parametrize(
    "name", ["No space left on device/git~1", "it's/unable to write's/git~1", "git~1/No space left on device"]
)
def test_a_name_that_an_agent_gave_is_not_the_state_of_the_disk(tmp_path: Path, source: Path, name: str) -> None:
    """What git refuses to take it names; a job that waited for space because of that would hold its slot for a day."""
    git = copied(source, tmp_path / "m.git")
    head = git.resolve("refs/heads/main")
    assert head is not None
    odd = tmp_path / "work" / name
    odd.parent.mkdir(parents=True)
    odd.touch()
    person = ("a", "a@example.org")
    with pytest.raises(Permanent) as caught:
        git.commit(tmp_path / "work", tmp_path / "index", head, "m", person, person, WHEN)
    assert caught.value.code == "policy_violation"


def test_what_another_git_is_writing_is_left_alone(small: Path) -> None:
    pack = small / "objects" / "pack"
    pack.mkdir(parents=True)
    (pack / "tmp_pack_old").write_bytes(b"x")
    with (pack / "tmp_pack_new").open("wb"):
        assert drop_halves(small) == 1
        assert left(small) == ["tmp_pack_new"]
    assert drop_halves(small) == 1 and drop_halves(small) == 0


# ---------------------------------------------------------------- a gate


def test_a_gate_that_the_machine_has_no_room_for_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays below what it may use; the reserve of the machine is what is gone."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr("app.sandbox._DISK_RESERVE", disk.free(work) - 32 * MB)
    command = "for i in $(seq 10); do dd if=/dev/zero of=f$i bs=1M count=16 2>/dev/null; done; sleep 100"
    ran = run(command, work=work, limits=Limits(60, disk_mb=4096))
    assert (ran.no_room, ran.disk_full, ran.exit_code) == (True, False, None)


# ---------------------------------------------------------------- jobs


def perform(world: World, step: int, work: Any) -> None:
    """A control consumer hears the step's bell and does this work."""
    row = queries.step(step)
    assert row is not None
    tasks.perform(step, {row.name: tasks.Task(work)}, world.clients, go_on=0.0)


def raising(error: Exception) -> Any:
    def work(context: Any) -> Any:
        raise error

    return work


def test_a_job_waits_for_space_and_then_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.ask()
    world.work(job, upto="runner.checkout")
    [step] = spine.ready_steps(job)
    perform(world, step, raising(OSError(errno.ENOSPC, "No space left on device")))
    row = step_of(job, "runner.checkout")
    assert (row["status"], row["reason"], row["attempt"], row["crashes"], row["faults"]) == (
        "pending", "disk_full", 1, 0, 1
    )  # fmt: skip
    monkeypatch.setattr("app.disk.LEAST", 1 << 62)
    for faults in (2, 3, 4):
        execute("update job_steps set run_after = null where id = %s", step)
        stitcher.sweep()
        perform(world, step, raising(AssertionError("it begins without space")))
        row = step_of(job, "runner.checkout")
        assert (row["status"], row["reason"], row["faults"]) == ("pending", "disk_full", faults)
        paused = queries.events(job)[-1].data["retry_in"]
        assert paused == outcome.BACKOFF_SECONDS[faults - 1]
    found, waits = queries.job(job), queries.waiting_for(job)
    assert found is not None and waits is not None and "mosaic gc" in waits.sentence
    assert "the disk of Mosaic's machine" in waits.sentence
    text = status_comment(found, queries.steps(job), link="http://m/1", waiting=waits)
    assert "Worktree prepared: waits for space on the disk of Mosaic's machine" in text
    monkeypatch.undo()
    execute("update job_steps set run_after = null where id = %s", step)
    stitcher.sweep()
    assert world.work(job) == "completed"
    done = [one for one in queries.steps(job) if one.name == "runner.checkout"]
    assert [(one.attempt, one.status) for one in done] == [(1, StepStatus.COMPLETED)]
    assert spine.broken_links(job) == []


def test_a_job_that_waits_for_space_for_too_long_ends_as_such(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.ask()
    world.work(job, upto="runner.checkout")
    monkeypatch.setattr("app.disk.LEAST", 1 << 62)
    world.work(job)
    execute("update runner_jobs set deadline_at = clock_timestamp() - interval '1 hour' where id = %s", job)
    stitcher.sweep()
    found = queries.job(job)
    assert found is not None and found.reason is None, "its time stands still"
    execute("update runner_jobs set forge_wait_since = clock_timestamp() - %s * interval '1 hour' where id = %s",
            breaker.MAX_OUTAGE_HOURS + 1, job)  # fmt: skip
    stitcher.sweep()
    assert world.work(job) == "failed"
    found = queries.job(job)
    assert found is not None and found.reason == "disk_full" and "MiB are free" in found.detail
    assert "(`disk_full`)" in world.said()[-1] and "mosaic gc" in world.said()[-1]


def test_an_unexplained_failure_on_a_short_disk_is_the_disks(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = world.ask()
    world.work(job, upto="runner.checkout")
    [step] = spine.ready_steps(job)

    def work(context: Any) -> Any:
        monkeypatch.setattr("app.disk.LEAST", 1 << 62)  # it filled up while this ran
        raise Permanent("git read-tree failed: exit code 128", code="git_failed")

    perform(world, step, work)
    row = step_of(job, "runner.checkout")
    assert (row["status"], row["reason"]) == ("pending", "disk_full")
    assert "exit code 128" in caplog.text and "exit code" not in row["detail"]


def test_the_last_words_do_not_wait_for_space(world: World) -> None:
    job = world.ask()
    world.work(job, upto="runner.setup")
    stitcher.cancel(job, "gitea:alice")
    world.work(job, upto="runner.keep")
    [keep] = spine.ready_steps(job)
    perform(world, keep, raising(OSError(errno.ENOSPC, "No space left on device")))
    assert step_of(job, "runner.keep")["status"] == "failed"
    assert world.work(job) == "cancelled"


def test_news_that_find_our_disk_full_wait_and_are_no_dead_letters(world: World) -> None:
    job = world.ask()
    world.work(job, upto="runner.snapshot")
    row = row_of(f"job:{job}:status")
    claimed = effects.claim(row["id"], world.clients.worker.id)
    if claimed is None:
        execute("update effects set next_at = clock_timestamp() where id = %s", row["id"])
        claimed = effects.claim(row["id"], world.clients.worker.id)
    assert claimed is not None
    no_room(claimed, "No space left on device")
    after = row_of(row["key"])
    assert (after["state"], after["code"], after["worker_id"]) == ("planned", "disk_full", None)
    execute("update effects set waiting_since = clock_timestamp() - interval '25 hours', next_at = now() "
            "where id = %s", row["id"])  # fmt: skip
    claimed = effects.claim(row["id"], world.clients.worker.id)
    assert claimed is not None
    no_room(claimed, "No space left on device")
    assert (row_of(row["key"])["state"], row_of(row["key"])["code"]) == ("failed", "disk_full")


def test_the_operator_is_told(small: Path) -> None:
    found = checks.disk(small)
    assert (found.state, "wait for space (`disk_full`)" in found.said) == ("fail", True) and "mosaic gc" in found.next
    assert disk.short(small / "not" / "there").startswith("48 MiB are free")


def test_done_is_done_though_the_disk_is_short(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = world.ask()
    world.work(job, upto="runner.checkout")
    [step] = spine.ready_steps(job)

    def work(context: Any) -> Done:
        monkeypatch.setattr("app.disk.LEAST", 1 << 62)
        return Done(output={"fence": 1})

    perform(world, step, work)
    assert step_of(job, "runner.checkout")["status"] == "completed"
