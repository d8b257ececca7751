"""`mosaic backup` and `mosaic restore`: everything of a Mosaic that cannot be fetched again, as one file.

One rule: what a restored instance needs is in the file or on the forge; what the file holds is as secret as the keys.

In it: the database (one snapshot), the keys, the server's TOML file, the audit anchors, and of this machine's mirrors
what exists nowhere else. Not in it: mirrors (they are fetched again), worktrees and caches (made again), `.env`.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app import restored, schema, serve
from app.archive import BadArchive, files_below, pack, unpack
from app.clients import git_bundle
from app.edge import database_url
from app.paths import Paths
from app.postgres import Cluster
from app.private_files import private_dir
from app.settings import Settings
from app.types import MosaicError
from app.unprivileged import CLEAN_ENV
from app.worker import VERSION

_OWN_DATABASE = "postgres-"  # its passwords are made anew with every embedded database
_BELLS = "huey_*"  # the doorbell's tables: the sweep rings again for what is due
_DUMP = ("--format=custom", "--compress=0", "--no-owner", "--no-privileges", f"--exclude-table-data={_BELLS}")
_SCRIPT = ("--no-owner", "--no-privileges")
_RUN = ("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction", "--output=/dev/null")
_UNKNOWN_BEFORE_17 = b"SET transaction_timeout = 0;\n"  # the one line that the tools of 18 write and 15 refuses


# ---------------------------------------------------------------- taking it


def backup(settings: Settings, target: Path) -> dict[str, Any]:
    """Write a backup while everything goes on; its manifest. Raises MosaicError and leaves no half file."""
    if target.exists():
        raise MosaicError(f"{target} is there already. Name another file.", code="exists")
    _require_writable(target.parent)
    database_url(settings)  # raises `database_missing` before a new, empty one would be made
    with _staging(settings.data_dir) as staging:
        _keep_files(settings, staging)  # before the dump: no anchor of the file may be missing in the table
        with serve.database(settings) as (owner, _, _cluster):
            database = _dump(settings, owner, staging / "database.dump")
        repositories = _keep_refs(Paths(settings.data_dir), staging / "git")
        return pack(
            staging,
            target,
            {
                "mosaic": VERSION,
                "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "host": socket.gethostname(),
                "host_id": Paths(settings.data_dir).host_id(),
                "base_url": settings.base_url,
                "database": database,
                "repositories": repositories,
            },
        )


@contextmanager
def _staging(data_dir: Path) -> Iterator[Path]:
    """A private directory on the disk of the data, gone at the end."""
    with suppress(OSError):
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_writable(data_dir)
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=data_dir) as name:
        yield Path(name)


def _require_writable(folder: Path) -> None:
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise MosaicError(
            f"{folder} is no directory that {getpass.getuser()} may write. Make it, with that account as its owner, "
            "and give the same command again.",
            code="unwritable",
        )


def _dump(settings: Settings, url: str, into: Path) -> dict[str, Any]:
    """The whole database as one snapshot, by pg_dump."""
    _require_reachable(url)
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("select to_regclass('schema_migrations')").fetchone() == (None,):
            raise MosaicError("The database is empty: there is nothing to back up yet.", code="database_empty")
        applied = [row[0] for row in connection.execute("select name from schema_migrations order by name")]
        version = connection.info.server_version
    _tool(settings, "pg_dump", url, *_DUMP, f"--file={into}")
    return {"migrations": applied, "server": version}


def _keep_files(settings: Settings, staging: Path) -> None:
    paths = Paths(settings.data_dir)
    for folder, name in ((paths.keys, "keys"), (paths.audit, "audit")):
        for file in files_below(folder) if folder.is_dir() else ():
            if not file.startswith(_OWN_DATABASE):
                _copy(folder / file, staging / name / file)
    if settings.config_path:
        _copy(settings.config_path, staging / "config" / "server.toml")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o600)


def _keep_refs(paths: Paths, folder: Path) -> dict[str, list[str]]:
    """{repository id: refs}: the commits that Mosaic made and that may not be on the forge, with their history."""
    kept: dict[str, list[str]] = {}
    folder.mkdir(mode=0o700)
    for mirror in sorted((paths.data / "mirrors").glob("[0-9]*.git")):
        refs = git_bundle.kept_refs(mirror)
        if refs:
            git_bundle.write_bundle(mirror, refs, folder / f"{mirror.stem}.bundle")
            kept[mirror.stem] = list(refs)
    return kept


# ---------------------------------------------------------------- putting it back


def restore(settings: Settings, source: Path) -> dict[str, Any]:
    """Fill an empty data directory and an empty database from a backup, and bring the schema up to date.

    Its manifest. Raises MosaicError before anything is touched when the place is not empty or the file is not whole;
    what fails later is undone, so that the same command can be given again. The database comes last and as one
    transaction: whoever is killed before has an empty one, whoever is killed after has all of it. Steps
    that ran when the backup was made are taken back by the sweep as those of lost workers.
    """
    data = settings.data_dir
    if data.is_dir() and any(data.iterdir()):
        raise MosaicError(
            f"{data} is not empty. A backup is restored into a new data directory (MOSAIC_DATA_DIR), never over "
            "another Mosaic. If it holds only what a killed `mosaic restore` left, empty it and try again.",
            code="not_empty",
        )
    if settings.database_url:
        _require_reachable(settings.database_url)
        _require_empty(settings.database_owner_url or settings.database_url)
    with _staging(data) as staging:
        manifest = unpack(source, staging)
        _require_known(manifest, source)
        try:
            _put_back(settings, staging, manifest)
        except BaseException:
            _clear(data, staging)
            raise
    return manifest


def _require_known(manifest: Mapping[str, Any], source: Path) -> None:
    unknown = sorted(set(manifest["database"]["migrations"]) - set(schema.names()))
    if unknown:
        raise BadArchive(
            f"{source} was made by a newer Mosaic ({manifest['mosaic']}, with {', '.join(unknown)}). Install that one."
        )


def _require_reachable(url: str) -> None:
    if not serve.reachable(url):
        raise MosaicError(
            "The database does not answer. See that it runs and that MOSAIC_DATABASE_URL and MOSAIC_DATABASE_OWNER_URL "
            "are right.",
            code="database_unavailable",
        )


def _require_empty(url: str) -> None:
    _require_reachable(url)
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone()
    if found and found[0]:
        raise MosaicError(
            "The database that MOSAIC_DATABASE_URL names holds tables. A backup is restored into an empty one, never "
            "over another Mosaic. Name an empty one, or drop that one and create it anew if nobody needs it.",
            code="not_empty",
        )


def _put_back(settings: Settings, staging: Path, manifest: Mapping[str, Any]) -> None:
    for name in ("keys", "audit"):
        if (staging / name).is_dir():
            (staging / name).rename(settings.data_dir / name)
    if (staging / "config" / "server.toml").is_file():
        _copy(staging / "config" / "server.toml", settings.data_dir / "server.toml")
    paths = Paths(settings.data_dir)
    private_dir(paths.data / "mirrors", None)
    for bundle in sorted((staging / "git").glob("*.bundle")) if (staging / "git").is_dir() else ():
        git_bundle.read_bundle(paths.mirror(int(bundle.stem)), bundle)
    hosts = {"old": str(manifest.get("host_id", "")), "new": paths.host_id()}
    with serve.database(settings) as (owner, app, _):
        _load(settings, owner, staging, hosts)
        try:
            schema.migrate(owner, app)
        except psycopg.Error as error:
            restored.empty(owner)
            raise MosaicError(
                f"The database refused what a restore needs: {error.diag.message_primary or error}. Nothing of the "
                "backup was kept. Mend that, and give the same command again.",
                code="restore_refused",
            ) from error
        except BaseException:
            restored.empty(owner)
            raise


def _load(settings: Settings, url: str, staging: Path, hosts: Mapping[str, str]) -> None:
    """The dump into an empty database, whole or not at all; by way of a script, so that 15 to 18 take it.

    Jobs that ran on the old host are taken over as from any lost host.
    """
    script, runnable = staging / "all.sql", staging / "database.sql"
    _run(settings, ["pg_restore", *_SCRIPT, f"--file={script}", str(staging / "database.dump")], {})
    with script.open("rb") as source, runnable.open("wb") as target:
        for line in source:
            if line == _UNKNOWN_BEFORE_17:
                break
            target.write(line)
        shutil.copyfileobj(source, target)
        target.write(restored.ADAPT)
    script.unlink()
    names = [f"--set={name}={value}" for name, value in hosts.items()]
    _tool(settings, "psql", url, *_RUN, *names, f"--file={runnable}")


def _clear(data: Path, staging: Path) -> None:
    """After a failure the directory is empty again, so that the same command can be given once more."""
    for path in data.iterdir():
        if path != staging:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


# ---------------------------------------------------------------- PostgreSQL's tools


def _tool(settings: Settings, program: str, url: str, *arguments: str) -> None:
    """Run a program against `url`. The password goes by the environment: a command line is public."""
    words = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    password = words.pop("password", "")
    argv = [program, "--no-password", f"--dbname={make_conninfo('', **words)}", *arguments]
    _run(settings, argv, {"PGPASSWORD": password} if password else {})


def _run(settings: Settings, argv: list[str], env: Mapping[str, str]) -> None:
    passed = {name: os.environ[name] for name in ("PGPASSFILE",) if name in os.environ}
    done = subprocess.run(
        [str(Cluster(settings.data_dir).binaries / argv[0]), *argv[1:]],
        env={**CLEAN_ENV, "HOME": "/nonexistent", **passed, **env},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        said = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise MosaicError(f"{argv[0]} failed: {said}", code="database_tool_failed")
