"""Backup and restore with real databases, keys and mirrors: what comes back, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app import audit, backup, models, queries, schema, stitcher
from app.archive import MANIFEST, BadArchive, unpack
from app.audit_keeper import keep
from app.audit_witness import Key, Witness
from app.clients import git_bundle
from app.clients.git import Git
from app.models import fetch
from app.paths import Paths
from app.postgres import Cluster
from app.settings import Settings, load
from app.settings_keys import ensure_generated
from app.types import MosaicError
from tests import spine

WHO = {f"GIT_{role}_{what}": "t@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def settings_of(data: Path, **more: str) -> Settings:
    return load("cli", {"MOSAIC_DATA_DIR": str(data), **{f"MOSAIC_{name}": value for name, value in more.items()}})


def commit(mirror: Path, ref: str) -> str:
    """A commit that exists in this mirror only."""
    git = Git(mirror, None)
    git.ensure()
    env = {"PATH": os.environ["PATH"], "GIT_DIR": str(mirror), **WHO}
    tree = subprocess.run(["git", "mktree"], env=env, input="", capture_output=True, text=True, check=True).stdout
    made = subprocess.run(["git", "commit-tree", tree.strip(), "-m", ref], env=env, capture_output=True, text=True)
    git.keep(made.stdout.strip(), ref)
    return made.stdout.strip()


@dataclass
class Original:
    settings: Settings
    cluster: Cluster
    file: Path
    manifest: dict[str, Any]
    done: int
    running: int
    saved: str


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Original]:
    """A Mosaic with a finished job, one whose step runs, and saved work; the backup was taken while it ran."""
    home = tmp_path_factory.mktemp("original")
    data = home / "var"
    (home / "server.toml").write_text('repositories = ["acme/*"]\n')
    Paths(data).make()
    with Cluster(data).opened() as cluster:
        schema.migrate(cluster.owner_url, cluster.app_url)
        ensure_generated(data)
        models.bind(cluster.app_url)
        with models.db.connection_context():
            done, running = spine.submit(), spine.submit()
            worker = spine.worker()
            spine.work(done, worker)
            assert spine.steps.claim(spine.ready_steps(running)[0], worker, "here")
        saved = commit(Paths(data).mirror(1), "refs/mosaic/wip/1")
        (Paths(data).audit).mkdir(mode=0o700, exist_ok=True)
        (Paths(data).audit / "anchors.jsonl").write_text('{"seq": 1}\n')
        settings = settings_of(data, CONFIG=str(home / "server.toml"))
        file = home / "backup.tar.gz"
        manifest = backup.backup(settings, file)
        models.db.close_all()
        yield Original(settings, cluster, file, manifest, done, running, saved)


def rewritten(
    original: Original, into: Path, change: Callable[[tarfile.TarInfo, bytes], tuple[str, bytes] | None]
) -> Path:
    """A copy of the backup with some members changed (new name, new bytes) or left out (None)."""
    with tarfile.open(original.file) as old, tarfile.open(into, "w:gz") as new:
        for member in old:
            reader = old.extractfile(member)
            assert reader
            made = change(member, reader.read())
            if made is not None:
                member.name, member.size = made[0], len(made[1])
                new.addfile(member, io.BytesIO(made[1]))
    return into


def refused(settings: Settings, file: Path, *words: str) -> None:
    with pytest.raises(MosaicError) as error:
        backup.restore(settings, file)
    assert all(word in str(error.value) for word in words), str(error.value)
    left = list(settings.data_dir.iterdir()) if settings.data_dir.is_dir() else []
    assert left == []  # the same command can be given again


# ---------------------------------------------------------------- what comes back


def test_the_file_is_private_and_holds_no_password_of_the_database(original: Original) -> None:
    assert stat.S_IMODE(original.file.stat().st_mode) == 0o600
    names = set(original.manifest["files"])
    assert {
        "database.dump",
        "keys/MOSAIC_SECRET_KEY",
        "config/server.toml",
        "audit/anchors.jsonl",
        "git/1.bundle",
    } <= names
    assert not any(name.startswith("keys/postgres-") for name in names)
    assert list(original.settings.data_dir.glob(".backup-*")) == []


def test_all_comes_back_and_the_running_step_goes_on(original: Original, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "var")
    backup.restore(settings, original.file)
    data = settings.data_dir
    for name in ("keys/MOSAIC_SECRET_KEY", "audit/anchors.jsonl"):
        assert (data / name).read_bytes() == (original.settings.data_dir / name).read_bytes()
        assert stat.S_IMODE((data / name).stat().st_mode) == 0o600
    assert (data / "server.toml").read_text() == 'repositories = ["acme/*"]\n'
    mirror = Paths(data).mirror(1)
    assert git_bundle.kept_refs(mirror) == ("refs/mosaic/wip/1",)
    assert Git(mirror, None).resolve("refs/mosaic/wip/1") == original.saved
    with Cluster(data).opened() as cluster:
        models.bind(cluster.app_url)
        with models.db.connection_context():
            assert queries.job(original.done).status == "completed"  # type: ignore[union-attr]
            assert spine.broken_links(original.done) == [] == spine.broken_links(original.running)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                psycopg.connect(cluster.app_url).execute("delete from job_events")
            [before] = fetch("select fence, crashes from job_steps where status = 'running'")
            fetch("update workers set started_at = started_at - interval '1 minute' returning id")
            stitcher.sweep()
            [after] = fetch(
                "select status, fence, crashes from job_steps where job_id = %s and ord = 10", original.running
            )
            assert after["status"] == "pending" and after["fence"] > before["fence"]
            assert spine.work(original.running, spine.worker()) == "completed"
        models.db.close_all()


def test_it_comes_back_into_a_server_of_ones_own(original: Original, cluster: Cluster, tmp_path: Path) -> None:
    with psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True) as admin:
        admin.execute("create database restored owner mosaic_owner")
    own = {
        "DATABASE_URL": cluster.url("mosaic_app", "restored"),
        "DATABASE_OWNER_URL": cluster.url("mosaic_owner", "restored"),
    }
    try:
        backup.restore(settings_of(tmp_path / "var", **own), original.file)
        with psycopg.connect(own["DATABASE_URL"]) as connection:
            assert connection.execute("select count(*) from runner_jobs").fetchone() == (2,)
        refused(settings_of(tmp_path / "other", **own), original.file, "holds tables")
    finally:
        with psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True) as admin:
            admin.execute("drop database restored with (force)")


def test_a_restore_that_fails_half_way_leaves_nothing_and_can_be_given_again(
    original: Original, cluster: Cluster, tmp_path: Path
) -> None:
    """The server refuses to grant anything, which is seen only once the tables are there."""
    own = {"DATABASE_URL": cluster.url("mosaic_app", "half"), "DATABASE_OWNER_URL": cluster.url("mosaic_owner", "half")}
    settings = settings_of(tmp_path / "var", **own)
    made = "select relname::text from pg_class where relnamespace = 'public'::regnamespace union all "
    made += "select proname from pg_proc where pronamespace = 'public'::regnamespace"
    with psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True) as admin:
        admin.execute("create database half owner mosaic_owner")
        try:
            with psycopg.connect(cluster.url("postgres", "half"), autocommit=True) as there:
                there.execute(
                    "create schema guard; create function guard.no() returns event_trigger language plpgsql as "
                    "$$ begin raise 'no grants today'; end $$; "
                    "create event trigger no on ddl_command_start when tag in ('GRANT') execute function guard.no()"
                )
                refused(settings, original.file, "no grants today")
                assert there.execute(made).fetchall() == []  # type: ignore[arg-type]
                there.execute("drop event trigger no")
            backup.restore(settings, original.file)
            with psycopg.connect(own["DATABASE_URL"]) as connection:
                assert connection.execute("select count(*) from runner_jobs").fetchone() == (2,)
        finally:
            admin.execute("drop database half with (force)")


def test_saved_work_is_found_on_the_new_host(original: Original, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "var")
    old = Paths(original.settings.data_dir).host_id()
    with Cluster(original.settings.data_dir).opened() as cluster, psycopg.connect(cluster.owner_url) as connection:
        connection.execute(
            "update job_steps set name = 'runner.keep', host = %s where job_id = %s and ord = 10", (old, original.done)
        )
        connection.commit()
        file = tmp_path / "kept.tar.gz"
        backup.backup(original.settings, file)
    backup.restore(settings, file)
    with Cluster(settings.data_dir).opened() as cluster, psycopg.connect(cluster.owner_url) as connection:
        hosts = connection.execute("select host from job_steps where name = 'runner.keep'").fetchall()
    assert hosts == [(Paths(settings.data_dir).host_id(),)] and hosts != [(old,)]


def test_the_audit_goes_on_where_transactions_have_other_numbers(tmp_path: Path) -> None:
    """Anchors name the transactions that they saw; the new server counts its own from the beginning."""
    data, key = tmp_path / "old" / "var", Key(b"k" * 32)
    Paths(data).make()
    with Cluster(data).opened() as cluster:
        schema.migrate(cluster.owner_url, cluster.app_url)
        with psycopg.connect(cluster.owner_url, autocommit=True) as connection:
            for _ in range(3000):
                connection.execute("select pg_current_xact_id()")
        models.bind(cluster.app_url)
        Witness(Paths(data).audit).trust(key.public)
        begun, over = threading.Event(), threading.Event()
        late = threading.Thread(target=_submitted_slowly, args=(begun, over))
        late.start()
        assert begun.wait(10)
        with models.db.connection_context():
            spine.submit()
            assert keep(key, Witness(Paths(data).audit)) == 1  # it cannot see the job that is not committed yet
            over.set()
            late.join()
            spine.submit()
        models.db.close_all()
        assert audit.violations(cluster.owner_url, data_dir=data) == []
        backup.backup(settings_of(data), tmp_path / "backup.tar.gz")
    settings = settings_of(tmp_path / "var")
    backup.restore(settings, tmp_path / "backup.tar.gz")
    with Cluster(settings.data_dir).opened() as cluster:
        assert audit.violations(cluster.owner_url, data_dir=settings.data_dir) == []
        models.bind(cluster.app_url)
        with models.db.connection_context():
            for number in (2, 3):
                spine.submit()
                assert keep(key, Witness(Paths(settings.data_dir).audit)) == number
                assert audit.violations(cluster.owner_url, data_dir=settings.data_dir) == []
            assert keep(key, Witness(Paths(settings.data_dir).audit)) is None  # nothing is counted again
        models.db.close_all()


def _submitted_slowly(begun: threading.Event, over: threading.Event) -> None:
    with models.db.connection_context(), models.db.atomic():
        spine.submit()
        assert fetch("select 1 as sent")  # what waited for the commit has reached the server, too
        begun.set()
        over.wait(30)


def test_what_happens_during_the_dump_does_not_put_the_witness_ahead_of_the_table(
    original: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump, file = backup._dump, original.settings.data_dir / "audit" / "anchors.jsonl"

    def slow(*arguments: Any) -> dict[str, Any]:
        made = dump(*arguments)
        file.write_text(before + '{"seq": 2}\n')  # the keeper adds an anchor that the dump has not
        return made

    before = file.read_text()
    monkeypatch.setattr(backup, "_dump", slow)
    backup.backup(original.settings, tmp_path / "other.tar.gz")
    with tarfile.open(tmp_path / "other.tar.gz") as tar:
        reader = tar.extractfile("audit/anchors.jsonl")
        assert reader and reader.read().decode() == before
    file.write_text(before)


# ---------------------------------------------------------------- what is refused


def test_nothing_is_restored_over_another_mosaic(original: Original, tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(MosaicError) as error:
        backup.restore(settings_of(tmp_path), original.file)
    assert error.value.code == "not_empty" and [path.name for path in tmp_path.iterdir()] == ["keep"]


def test_no_backup_is_written_over_another_file(original: Original, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    with pytest.raises(MosaicError) as error:
        backup.backup(original.settings, there)
    assert error.value.code == "exists" and there.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_said_before_any_work(original: Original, tmp_path: Path) -> None:
    with pytest.raises(MosaicError, match=r"is no directory that .* may write") as error:
        backup.backup(original.settings, tmp_path / "missing" / "backup.tar.gz")
    assert error.value.code == "unwritable"
    (tmp_path / "file").touch()
    with pytest.raises(MosaicError, match=r"is no directory that .* may write"):
        backup.restore(settings_of(tmp_path / "file" / "var"), original.file)


def test_damage_is_seen_before_anything_is_put_back(original: Original, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "var")

    def flipped(member: tarfile.TarInfo, body: bytes) -> tuple[str, bytes]:
        return member.name, body[:-1] + bytes([body[-1] ^ 1]) if member.name == "database.dump" else body

    def without(member: tarfile.TarInfo, body: bytes) -> tuple[str, bytes] | None:
        return None if member.name.startswith("keys/") else (member.name, body)

    def outside(member: tarfile.TarInfo, body: bytes) -> tuple[str, bytes]:
        if member.name == MANIFEST:
            said = json.loads(body)
            said["files"]["../../escaped"] = said["files"].pop("config/server.toml")
            return member.name, json.dumps(said).encode()
        return ("../../escaped" if member.name == "config/server.toml" else member.name), body

    def newer(member: tarfile.TarInfo, body: bytes) -> tuple[str, bytes]:
        return member.name, body.replace(b'"0001_spine"', b'"9999_later"') if member.name == MANIFEST else body

    refused(settings, rewritten(original, tmp_path / "1", flipped), "database.dump", "checksum")
    refused(settings, rewritten(original, tmp_path / "2", without), "lacks keys/")
    refused(settings, rewritten(original, tmp_path / "3", outside), "escaped")
    refused(settings, rewritten(original, tmp_path / "4", newer), "newer Mosaic", "9999_later")
    assert not (tmp_path / "escaped").exists() and not (tmp_path.parent / "escaped").exists()
    whole = original.file.read_bytes()
    (tmp_path / "5").write_bytes(whole[: len(whole) // 2])
    refused(settings, tmp_path / "5")
    (tmp_path / "6").write_bytes(gzip.compress(b"not a tar"))
    refused(settings, tmp_path / "6")
    refused(settings, tmp_path / "none", "none")


def test_a_link_in_a_backup_is_refused(tmp_path: Path) -> None:
    said = json.dumps({"format": 1, "files": {"link": {"size": 0, "sha256": ""}}}).encode()
    with tarfile.open(tmp_path / "evil", "w:gz") as tar:
        head = tarfile.TarInfo(MANIFEST)
        head.size = len(said)
        tar.addfile(head, io.BytesIO(said))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "into").mkdir()
    with pytest.raises(BadArchive):
        unpack(tmp_path / "evil", tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


def test_where_no_mosaic_ran_there_is_nothing_to_back_up_and_nothing_is_made(tmp_path: Path, cluster: Cluster) -> None:
    data, file = tmp_path / "var", tmp_path / "backup.tar.gz"
    with pytest.raises(MosaicError) as none:
        backup.backup(settings_of(data), file)
    assert none.value.code == "database_missing" and not data.exists() and not file.exists()
    with pytest.raises(MosaicError) as empty:
        backup.backup(settings_of(data, DATABASE_URL=cluster.url("postgres", "postgres")), file)
    assert empty.value.code == "database_empty" and not file.exists()
