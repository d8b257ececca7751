"""The audit beside a forge: real admission, commit and publication; what stands there once, twice, or no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app import queries
from app.audit import violations
from app.audit_keeper import keep
from app.audit_witness import Key, Witness
from app.models import execute
from tests.test_effects import World, live, practice, world

__all__ = ["live", "practice", "world"]  # the fixtures of the effects' tests
pytestmark = pytest.mark.usefixtures("database")
ROOT = Path(__file__).resolve().parent.parent


def published(world: World) -> int:
    """A job that went its whole way to a pull request, with the delivery that brought it."""
    job = world.ask()
    execute("insert into deliveries (source, delivery_id, state, job_id) values ('gitea', 'd-1', 'job', %s)", job)
    assert world.work(job) == "completed"
    for effect in queries.effects(job):
        world.settled(effect["key"])
    return job


def mosaic(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    settings = world.clients.settings
    env = {
        "PATH": os.environ["PATH"],
        "HOME": "/nowhere",
        "MOSAIC_DATA_DIR": str(settings.data_dir),
        "MOSAIC_DATABASE_URL": str(settings.database_url),
        "MOSAIC_GITEA_URL": settings.gitea_url,
        "MOSAIC_GITEA_TOKEN": settings.gitea_token,
        "MOSAIC_SECRET_KEY": settings.secret_key.decode(),
    }
    command = [sys.executable, "-m", "app", *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def anchored(world: World) -> None:
    witness = Witness(world.clients.paths.audit)
    witness.trust(Key(world.clients.settings.anchor_key).public)
    assert keep(Key(world.clients.settings.anchor_key), witness) == 1


def test_a_published_job_is_clean_here_and_there(world: World) -> None:
    """Its admission is in the ledger, its push names the tree that the gates judged, and each thing is there once."""
    job = published(world)
    assert violations(str(world.clients.settings.database_url)) == []
    [admission] = [event.data for event in queries.events(job) if event.data.get("what") == "admission"]
    [pushed] = [event.data for event in queries.events(job) if event.kind == "git.pushed"]
    [judged] = {gate.tree_sha for _, gate in queries.all_gate_results(job)}
    found = queries.job(job)
    assert found is not None and admission["base"] == found.base_sha and pushed["tree"] == judged
    anchored(world)
    ran = mosaic(world, "audit", "verify", "--remote", "--json")
    said = json.loads(ran.stdout)
    assert (ran.returncode, said["violations"], said["notes"], said["jobs"], said["anchors"]) == (0, [], [], 1, 1), ran


def test_a_push_whose_event_was_lost_is_told_by_who_goes_on(world: World) -> None:
    job = world.ask()
    world.work(job, upto="herald.publish")
    world.fault("POST", "/pulls$", "status", times=1, status=503)
    world.work(job)
    execute("update job_steps set run_after = null, ready_at = now() where name = 'herald.publish'")
    execute("update effects set next_at = now()")
    assert world.work(job) == "completed"
    assert len([event for event in queries.events(job) if event.kind == "git.pushed"]) == 1


def test_a_second_copy_is_a_violation_and_what_people_removed_a_note(world: World) -> None:
    job = published(world)
    anchored(world)
    comments = {row["kind"]: row["external_id"] for row in queries.effects(job) if row["kind"].startswith("comment.")}
    body = next(one for one in world.said() if ":closing:" in one)
    world.forge.comment(world.bot.token, world.repo, world.number, body)  # a copy by the bot itself
    world.forge.comment(world.alice.token, world.repo, world.number, body)  # anybody can write that
    forge = world.clients.forge
    assert forge is not None
    forge.delete_comment(world.repo, int(comments["comment.status"]))
    ran = mosaic(world, "audit", "verify", "--remote")
    assert ran.returncode == 1, ran
    assert f"remote: job {job}: job:{job}:closing stands 2 times" in ran.stdout
    assert f"note: job:{job}:status is not on {world.repo}#{world.number} any more" in ran.stdout
    assert "1 violations" in ran.stdout.splitlines()[-1]


def test_the_command_line_blames_exports_and_refuses_to_erase_without_the_owner(world: World, tmp_path: Path) -> None:
    job = published(world)
    anchored(world)
    found = queries.job(job)
    assert found is not None and found.head_sha
    ran = mosaic(world, "blame", found.head_sha[:8])
    assert ran.returncode == 0 and f"job       {job} (completed, done)" in ran.stdout, ran
    assert f"by gitea:{world.alice.login}" in ran.stdout and f"#{found.pull_request}" in ran.stdout
    ran = mosaic(world, "blame", "deadbeef")
    assert ran.returncode == 1 and "(not_mosaics)" in ran.stderr
    file = tmp_path / "ledger.jsonl"
    file.write_text(mosaic(world, "audit", "export").stdout)
    checked = mosaic(world, "audit", "verify", "--file", str(file), "--witness", str(world.clients.paths.audit))
    assert checked.returncode == 0 and "all is well" in checked.stdout, checked
    file.write_text(file.read_text().replace(world.alice.login, "mallory", 1))
    assert mosaic(world, "audit", "verify", "--file", str(file)).returncode == 1
    ran = mosaic(world, "audit", "redact", str(job), "1", "--why", "x")
    assert ran.returncode == 1 and "(unset)" in ran.stderr and "MOSAIC_DATABASE_OWNER_URL" in ran.stderr
