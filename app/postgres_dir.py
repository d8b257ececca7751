"""What the embedded database keeps on disk: made completely or not at all, its passwords, its socket, its one holder.

One rule: only the holder of the lock changes anything here, and a half-made database is never mistaken for a whole one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from app.leftovers import at_work, gone, send, works_in
from app.private_files import is_private, private_dir, write_private
from app.types import MosaicError
from app.unprivileged import CLEAN_ENV, Account, launcher, owner, service_account

MAJOR = "18"
DATABASE = "mosaic"
SUPERUSER, OWNER, APP = "postgres", "mosaic_owner", "mosaic_app"
PORT = 5432  # only a part of the socket's name: the server listens on no network address
SOCKET_LIMIT = 107  # bytes of a unix socket's path (sun_path without its closing zero)
_HBA = "# Written by Mosaic: a password for everyone, over the unix socket only.\nlocal all all scram-sha-256\n"
# Run in single-user mode: one statement per line, the first error ends it. No authentication is needed there.
_SERVER_SQL = """\
create role {owner} login password '{owner_password}'
create role {app} login password '{app_password}'
revoke all on database postgres from public
revoke all on database template1 from public
create database {database} owner {owner} template template0
revoke all on database {database} from public
grant connect on database {database} to {app}
"""
_DATABASE_SQL = """\
alter schema public owner to {owner}
revoke all on schema public from public
grant usage on schema public to {app}
"""


class PostgresDir:
    """The files of one embedded server: `postgres/` (data), `run/` (socket), `keys/postgres-*` (passwords)."""

    def __init__(self, data_dir: Path, binaries: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.pgdata = self.data_dir / "postgres"
        self.binaries = binaries
        self._staging = self.data_dir / "postgres.new"
        self._run = self.data_dir / "run"
        self._keys = self.data_dir / "keys"
        self._elsewhere = self._keys / "postgres-socket-dir"  # where the socket is, when `run/` does not do
        self._lock: int | None = None

    # ------------------------------------------------------------ the lock

    @property
    def held(self) -> bool:
        return self._lock is not None

    def hold(self) -> None:
        """Become the one holder; the kernel lets go when our process ends, however it ends. Raises `database_busy`."""
        if self.held:
            raise MosaicError(f"This process already runs the database in {self.data_dir}.", code="database_busy")
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.data_dir / "postgres.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode().strip() or "unknown"
            os.close(lock)
            raise MosaicError(
                f"Another process (pid {holder}) already runs the database in {self.data_dir}. "
                "Stop it, or choose another directory with MOSAIC_DATA_DIR.",
                code="database_busy",
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock

    def release(self) -> None:
        """Let the next one hold it. The server must have ended: its socket directory elsewhere, if any, is removed."""
        if self._lock is not None:
            with suppress(OSError):  # none, gone, or not empty
                Path(self._elsewhere.read_text().strip()).rmdir()
            os.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------ making it

    def ensure(self) -> None:
        """Make what is missing. The caller holds the lock."""
        if not self.pgdata.exists():
            self._make()
        version = (self.pgdata / "PG_VERSION").read_text().strip()
        if version != MAJOR:
            raise MosaicError(
                f"{self.pgdata} was made by PostgreSQL {version}; this Mosaic brings PostgreSQL {MAJOR}. Take a dump "
                "with the version of Mosaic that made it and load that into a new data directory.",
                code="database_version",
            )
        if os.geteuid() not in (0, self.pgdata.stat().st_uid):
            raise MosaicError(
                f"{self.pgdata} belongs to the account `{owner(self.pgdata).name}`: start Mosaic as that account.",
                code="database_foreign",
            )
        self._mend_passwords()
        self._make_socket_dir()

    def _make(self) -> None:
        """initdb and the first statements in a staging directory; the last act is its renaming."""
        account = service_account()
        send(signal.SIGKILL, at_work(self._staging))
        shutil.rmtree(self._staging, ignore_errors=True)
        self._let_through(account)
        private_dir(self._staging, account)
        data, password_file = self._staging / "data", self._staging / "password"
        passwords = {role: self._stored_password(role) or secrets.token_urlsafe(32) for role in (SUPERUSER, OWNER, APP)}
        write_private(password_file, passwords[SUPERUSER] + "\n", account)
        self._tool(
            account, "initdb", f"--pgdata={data}", f"--username={SUPERUSER}", f"--pwfile={password_file}",
            "--auth-local=scram-sha-256", "--auth-host=reject", "--encoding=UTF8", "--no-locale", "--data-checksums",
            "--no-instructions", needs=self._staging,
        )  # fmt: skip
        write_private(data / "pg_hba.conf", _HBA, account)
        words = {"owner": OWNER, "app": APP, "database": DATABASE}
        secret = {"owner_password": passwords[OWNER], "app_password": passwords[APP]}
        self._single_user(account, data, SUPERUSER, _SERVER_SQL.format(**words, **secret))
        self._single_user(account, data, DATABASE, _DATABASE_SQL.format(**words))
        for role, password in passwords.items():
            self._store_password(role, password)
        data.rename(self.pgdata)
        shutil.rmtree(self._staging)

    def _let_through(self, account: Account | None) -> None:
        """The data directory is Mosaic's own: when it is root's alone, the server's account may pass through it."""
        status = self.data_dir.stat()
        if account is not None and status.st_uid == 0 and status.st_mode & 0o077 == 0:
            os.chown(self.data_dir, -1, account.gid)
            self.data_dir.chmod(0o710)

    # ------------------------------------------------------------ running its programs

    def account(self) -> Account | None:
        """Who runs the server: None = ourselves. The owner of an existing database stays what it is."""
        if os.geteuid() == 0 and self.pgdata.exists() and self.pgdata.stat().st_uid != 0:
            return owner(self.pgdata)
        return service_account()

    def server_command(self, *arguments: str) -> list[str]:
        """The server's whole command line, under its account; it shuts down fast when its parent dies."""
        return self._command(
            self.account(), "postgres", "-D", str(self.pgdata), *arguments, needs=self.pgdata, death_signal="INT"
        )

    def _command(
        self, account: Account | None, program: str, *arguments: str, needs: Path, death_signal: str = "KILL"
    ) -> list[str]:
        binary = self.binaries / program
        catalogue = self.binaries.parent / "share" / "postgresql" / "postgres.bki"
        prefix = launcher(account, program=binary, needs=(catalogue, needs), death_signal=death_signal)
        return [*prefix, str(binary), *arguments]

    def _tool(self, account: Account | None, program: str, *arguments: str, needs: Path, stdin: str = "") -> None:
        argv = self._command(account, program, *arguments, needs=needs)
        done = subprocess.run(argv, env=CLEAN_ENV, cwd="/", input=stdin, capture_output=True, text=True)
        if done.returncode != 0:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
            raise MosaicError(
                f"The database in {self.data_dir} could not be made: {program} ended with {done.returncode}. It said:\n"
                f"{said}\nNothing was kept; look at disk space and permissions, then start again.",
                code="database_init_failed",
            )

    def _single_user(self, account: Account | None, data: Path, database: str, statements: str) -> None:
        quiet = ("-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", "-c", "log_checkpoints=off")
        self._tool(account, "postgres", "--single", *quiet, "-D", str(data), database, needs=data, stdin=statements)

    # ------------------------------------------------------------ passwords

    def password(self, role: str) -> str:
        """Raises `database_missing` when it is not there (yet)."""
        stored = self._stored_password(role)
        if stored is None:
            raise MosaicError(
                f"There is no database in {self.data_dir} yet: `mosaic serve` makes it.", code="database_missing"
            )
        return stored

    def _stored_password(self, role: str) -> str | None:
        try:
            return (self._keys / f"postgres-{role}").read_text().strip() or None
        except FileNotFoundError:
            return None
        except PermissionError:
            raise MosaicError(
                f"The database's keys in {self._keys} belong to another account: start Mosaic as that account.",
                code="database_foreign",
            ) from None

    def _store_password(self, role: str, password: str) -> None:
        self._keys.mkdir(mode=0o700, exist_ok=True)
        target = self._keys / f"postgres-{role}"
        write_private(target.with_suffix(".new"), password + "\n")
        target.with_suffix(".new").rename(target)

    def _mend_passwords(self) -> None:
        """A lost password is replaced: in the database first, so that a crash between the two is mended again."""
        for role in (SUPERUSER, OWNER, APP):
            if self._stored_password(role) is None:
                self.end_server()
                password = secrets.token_urlsafe(32)
                self._single_user(self.account(), self.pgdata, SUPERUSER, f"alter role {role} password '{password}'\n")
                self._store_password(role, password)

    # ------------------------------------------------------------ the socket

    def socket_dir(self) -> Path:
        """Where the socket is: `run/`, or the recorded private directory when that path is too long for a socket."""
        if _fits(self._run):
            return self._run
        try:
            return Path(self._elsewhere.read_text().strip())
        except FileNotFoundError:
            raise MosaicError(
                f"There is no database in {self.data_dir} yet: `mosaic serve` makes it.", code="database_missing"
            ) from None

    def _make_socket_dir(self) -> None:
        account = self.account()
        if _fits(self._run):
            return private_dir(self._run, account)
        folder = self._recorded_dir(account) or Path(tempfile.mkdtemp(prefix="mosaic-"))
        if not _fits(folder):
            folder.rmdir()
            raise MosaicError(
                f"The paths of MOSAIC_DATA_DIR ({self.data_dir}) and of TMPDIR are both too long for a unix socket "
                f"({SOCKET_LIMIT} bytes): shorten one of them.",
                code="socket_path_too_long",
            )
        private_dir(folder, account)
        write_private(self._elsewhere, f"{folder}\n")

    def _recorded_dir(self, account: Account | None) -> Path | None:
        """The directory of last time, made anew if it is gone, so that URLs stay; None when it is another's by now."""
        with suppress(FileNotFoundError):
            folder = Path(self._elsewhere.read_text().strip())
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                return folder
            return folder if is_private(folder, os.geteuid() if account is None else account.uid) else None
        return None

    # ------------------------------------------------------------ the server's process

    def ready(self) -> bool:
        """Whether a server of this directory takes connections (the eighth line of its pid file says so)."""
        lines = self._pid_file()
        return len(lines) > 7 and lines[7].strip() == "ready" and works_in(int(lines[0]), self.pgdata)

    def clear(self) -> None:
        """End what a killed predecessor left running; remove its marks, whose pid may be another's by now."""
        self.end_server()
        for mark in (self.pgdata / "postmaster.pid", *self.socket_dir().glob(f".s.PGSQL.{PORT}*")):
            mark.unlink(missing_ok=True)

    def end_server(self) -> None:
        """End whoever works in the database's directory: fast shutdown, then an immediate one, then kill."""
        lines = self._pid_file()
        postmaster = [int(lines[0])] if lines and works_in(int(lines[0]), self.pgdata) else []
        send(signal.SIGINT, postmaster)  # to the postmaster only: its children take SIGINT for something else
        if gone(self.pgdata, 15.0 if postmaster else 2.0):
            return
        for number in (signal.SIGQUIT, signal.SIGKILL):
            send(number, at_work(self.pgdata))
            if gone(self.pgdata, 5.0):
                return
        raise MosaicError(f"A left-over server in {self.pgdata} cannot be ended.", code="database_busy")

    def _pid_file(self) -> list[str]:
        try:
            lines = (self.pgdata / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, PermissionError):
            return []
        return lines if lines and lines[0].strip().isdigit() else []


def _fits(folder: Path) -> bool:
    """Whether a socket in `folder` can be named: its path is short enough, and libpq splits host lists at commas."""
    path = os.fsencode(folder / f".s.PGSQL.{PORT}")
    return len(path) <= SOCKET_LIMIT and b"," not in path
