"""The sandbox with real bubblewrap and real processes: what a hostile command tries, and what is left of it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import sandbox_profile
from app.sandbox import Limits, Ran, SandboxUnavailable, discard, run
from app.sandbox_host import cgroups
from app.sandbox_probe import probe
from app.types import MosaicError

ROOT = os.geteuid() == 0
PYTHON = os.path.realpath(sys.executable)
PREFIX = Path(os.path.realpath(sys.base_prefix))
TOOLS = [] if PREFIX.is_relative_to("/usr") else [PREFIX]
REPOSITORY = Path(__file__).resolve().parents[1]
QUICK = Limits(seconds=60)
HOLD = "exec 9<lock; flock -s 9; "  # every child inherits the lock, and only the death of all of them frees it


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work tree below a directory that nobody but its owner may enter, as in a data directory."""
    closed = tmp_path / "closed"
    tree = closed / "data" / "tree"
    tree.mkdir(parents=True)
    closed.chmod(0o700)
    (tree / "lock").touch()
    return tree


def python(work: Path, script: str, limits: Limits = QUICK, **more: object) -> Ran:
    (work / "script.py").write_text(textwrap.dedent(script))
    return run(f"'{PYTHON}' -I -S script.py", work=work, limits=limits, tools=TOOLS, **more)  # type: ignore[arg-type]


def lock_is_free(path: Path) -> bool:
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


# ---------------------------------------------------------------- what a command gets


def test_a_command_runs_in_the_tree_and_its_files_stay(work: Path) -> None:
    (work / "in.txt").write_text("seen")
    ran = run("cat in.txt; pwd; echo out >new.txt; exit 7", work=work, limits=QUICK)
    assert (ran.exit_code, ran.output) == (7, "seen/work\n")
    assert (ran.timed_out, ran.cancelled, ran.truncated, ran.disk_full) == (False, False, False, False)
    assert (work / "new.txt").read_text() == "out\n"


def test_the_tree_goes_back_to_its_owner_without_setuid_bits(work: Path) -> None:
    run("mkdir -p a/b; cp /bin/true a/b/x; chmod 4755 a/b/x; ln -s /etc/passwd a/link", work=work, limits=QUICK)
    for path in (work, work / "a", work / "a/b", work / "a/b/x", work / "a/link"):
        assert path.lstat().st_uid == os.geteuid()
    if ROOT:
        assert not (work / "a/b/x").stat().st_mode & 0o6000
    assert Path("/etc/passwd").stat().st_uid == 0


def test_on_the_host_it_is_an_unprivileged_account(work: Path) -> None:
    owners: list[int] = []
    command = "touch mine; cat /proc/self/status; sleep 600"
    ran = run(
        command,
        work=work,
        limits=QUICK,
        cancelled=lambda: bool(owners),
        on_output=lambda _: owners.append((work / "mine").stat().st_uid),
    )
    assert set(owners) == {65530 if ROOT else os.geteuid()}
    for right in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{right}:\t0000000000000000\n" in ran.output
    assert "NoNewPrivs:\t1" in ran.output and "Groups:\t1000" not in ran.output


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137), ("no-such-command", 127)]
)
def test_exit_codes(work: Path, command: str, code: int) -> None:
    assert run(command, work=work, limits=QUICK).exit_code == code


def test_environment_is_fixed_plus_ours(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSAIC_GITEA_TOKEN", "canary-5b1f9c")
    ran = run(
        "env; cat /proc/*/environ | tr '\\0' '\\n'; cat /proc/1/cmdline",
        work=work,
        limits=QUICK,
        env={"SEEN": "a b;$(c)"},
        path=["/work/.venv/bin"],
    )
    assert "SEEN=a b;$(c)\n" in ran.output and "PATH=/work/.venv/bin:/usr/local" in ran.output
    assert "canary" not in ran.output and "MOSAIC_" not in ran.output
    assert str(work.parent) not in ran.output


def test_input_is_empty_and_only_three_files_are_open(work: Path) -> None:
    assert run("cat; ls /proc/$$/fd", work=work, limits=QUICK).output.split() == ["0", "1", "2"]


def test_it_may_close_its_output_and_go_on(work: Path) -> None:
    ran = run("exec >&- 2>&-; sleep 0.3; echo yes >done", work=work, limits=QUICK)
    assert ran.exit_code == 0 and (work / "done").read_text() == "yes\n"


def test_output_comes_as_it_is_made(work: Path) -> None:
    pieces: list[str] = []
    go_on = work / "go-on"

    def take(text: str) -> None:
        pieces.append(text)
        go_on.touch()

    command = "printf 'gr\\303'; while ! test -e go-on; do sleep 0.02; done; printf '\\274n'"
    ran = run(command, work=work, limits=QUICK, on_output=take)
    assert ran.output == "".join(pieces) == "grün" and len(pieces) > 1


def test_output_keeps_head_and_tail(work: Path) -> None:
    ran = run("echo first; yes filler | head -n 200000; echo last", work=work, limits=Limits(60, output_bytes=10_000))
    assert ran.truncated and ran.output.startswith("first\n") and ran.output.endswith("filler\nlast\n")
    assert "bytes left out ...]" in ran.output and len(ran.output) < 10_100


def test_endless_output_is_stopped_by_the_time_limit(work: Path) -> None:
    ran = run("yes", work=work, limits=Limits(1, output_bytes=1000))
    assert ran.timed_out and ran.truncated and len(ran.output) < 1100


def test_a_failing_listener_ends_the_run(work: Path) -> None:
    def broken(text: str) -> None:
        raise RuntimeError("listener")

    with pytest.raises(RuntimeError, match="listener"):
        run(HOLD + "echo x; sleep 600", work=work, limits=QUICK, on_output=broken)
    assert lock_is_free(work / "lock")


# ---------------------------------------------------------------- escapes

HELD = "HELD"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Things on the host that a command must not reach."""
    canary = tmp_path / "canary"
    canary.write_text("canary-content")
    sleeper = subprocess.Popen(["/bin/sleep", "600"])
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX) as named:
        tcp.bind(("127.0.0.1", 0))
        unix.bind(f"\0mosaic-test-{os.getpid()}")
        named.bind(str(tmp_path / "socket"))
        for listener in (tcp, unix, named):
            listener.listen()
        yield {
            "canary": str(canary),
            "port": str(tcp.getsockname()[1]),
            "abstract": f"mosaic-test-{os.getpid()}",
            "socket": str(tmp_path / "socket"),
            "pid": str(sleeper.pid),
        }
        assert sleeper.poll() is None, "a command killed a process of the host"
    sleeper.kill()
    sleeper.wait()


ESCAPES = {
    "tcp to the host's loopback": "socket.create_connection(('127.0.0.1', int(host['port'])), 3)",
    "tcp to the host over ipv6": "socket.create_connection(('::1', int(host['port'])), 3)",
    "direct address": "socket.create_connection(('192.0.2.1', 80), 3)",
    "name": "socket.create_connection(('example.org', 80), 3)",
    "abstract socket": "socket.socket(socket.AF_UNIX).connect('\\0' + host['abstract'])",
    "named socket": "socket.socket(socket.AF_UNIX).connect(host['socket'])",
    "packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "file of the host": "open(host['canary'])",
    "link out of the tree": "os.symlink(host['canary'], 'out'); open('out')",
    "relative path out of the tree": "open('../../../../../../../../..' + host['canary'])",
    "root of the first process": "open('/proc/1/root' + host['canary'])",
    "password hashes": "open('/etc/shadow')",
    "home of root": "os.listdir('/root/.ssh')",
    "write to /usr": "open('/usr/mosaic', 'w')",
    "write to /etc": "open('/etc/mosaic', 'w')",
    "write to /etc/passwd": "open('/etc/passwd', 'a')",
    "write to /": "os.mkdir('/mosaic')",
    "write to /dev": "open('/dev/mosaic', 'w')",
    "write to a kernel setting": "open('/proc/sys/kernel/core_pattern', 'w')",
    "sysrq": "open('/proc/sysrq-trigger', 'w').write('h')",
    "device node": "os.mknod('disk', 0o60600, os.makedev(254, 0))",
    "mount": "call('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
    "remount": "call('mount', None, b'/usr', None, 0x1020, None)",
    "unmount": "call('umount2', b'/usr', 2)",
    "chroot": "os.chroot('/tmp')",
    "user namespace": "call('unshare', 0x10000000)",
    "mount namespace": "call('unshare', 0x00020000)",
    "pid namespace": "call('unshare', 0x20000000)",
    "signal to the host": "os.kill(int(host['pid']), 9)",
    "trace of a process of the host": "call('ptrace', 16, int(host['pid']), 0, 0)",
    "root account": "os.setuid(0)",
    "host name": "socket.sethostname('mosaic')",
    "module": "call('syscall', 313, 0, b'', 0)",
    "higher limit": "resource.setrlimit(resource.RLIMIT_NPROC, (100000, 100000))",
    "terminal": "open('/dev/tty')",
    "descriptor of the launcher": "[os.fstat(n) for n in range(3, 256) if n != own][0]",
}


@pytest.mark.parametrize("attempt", ESCAPES.values(), ids=ESCAPES)
def test_escapes_fail(work: Path, host: dict[str, str], attempt: str) -> None:
    script = f"""
        import ctypes, os, resource, socket
        libc, host, own = ctypes.CDLL(None, use_errno=True), {host!r}, None
        def call(name, *arguments):
            if getattr(libc, name)(*arguments) == -1:
                raise OSError(ctypes.get_errno(), name)
        try:
            {attempt}
        except (OSError, IndexError, ValueError) as error:
            print("{HELD}", error)
        """
    ran = python(work, script)
    assert ran.output.startswith(HELD), ran.output


def test_killing_everything_kills_only_itself(work: Path, host: dict[str, str]) -> None:
    assert run("kill -9 -1; echo still here", work=work, limits=QUICK).exit_code is not None


def test_processes_of_the_host_are_invisible(work: Path) -> None:
    pids = [int(pid) for pid in run("ls /proc", work=work, limits=QUICK).output.split() if pid.isdigit()]
    assert max(pids) < 20


def test_the_network_is_there_when_asked_for(work: Path, host: dict[str, str]) -> None:
    script = f"import socket; socket.create_connection(('127.0.0.1', {host['port']}), 5); print('connected')"
    assert python(work, script, network=True).output == "connected\n"
    assert "ConnectionRefusedError" in python(work, script).output


def test_it_has_a_loopback_of_its_own(work: Path) -> None:
    script = """
        import socket
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(("localhost", server.getsockname()[1]), 5).close()
        print("served")
        """
    assert python(work, script).output == "served\n"


# ---------------------------------------------------------------- laid over the tree


def test_protected_paths_cannot_be_written_removed_or_moved(work: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "workflows").mkdir(parents=True)
    (base / "workflows" / "ci.yml").write_text("from base")
    (base / "conftest.py").write_text("from base")
    for path in (base, *base.rglob("*")):
        path.chmod(0o777)  # so that nothing but the mount protects it
    (work / ".gitea" / "workflows").mkdir(parents=True)
    (work / ".gitea" / "workflows" / "ci.yml").write_text("from the agent")
    (work / "conftest.py").write_text("from the agent")
    over = {".gitea/workflows": base / "workflows", "conftest.py": base / "conftest.py", "/opt/base": base}
    tries = [
        "echo x >conftest.py",
        "rm -f conftest.py",
        "mv conftest.py other.py",
        "echo x >.gitea/workflows/ci.yml",
        "rm -rf .gitea/workflows/ci.yml",
        "mv .gitea/workflows .gitea/other",
        "mv .gitea elsewhere",
        "ln -sf /dev/null conftest.py",
        "chmod 777 conftest.py",
        "echo x >/opt/base/new",
    ]
    command = "; ".join(f"({attempt}) 2>/dev/null && echo 'DONE {attempt}'" for attempt in tries)
    ran = run(
        f"{command}; cat conftest.py .gitea/workflows/ci.yml /opt/base/conftest.py",
        work=work,
        limits=QUICK,
        read_only=over,
    )
    assert ran.output == "from base" * 3
    assert (work / "conftest.py").read_text() == "from the agent"


def test_a_tool_keeps_its_path_and_is_read_only(work: Path, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    (tool / "bin").mkdir(parents=True)
    (tool / "bin" / "hello").write_text("#!/bin/sh\necho hello from $0\n")
    (tool / "bin" / "hello").chmod(0o755)
    ran = run('hello; touch $0 "$(command -v hello)x"', work=work, limits=QUICK, tools=[tool], path=[str(tool / "bin")])
    assert f"hello from {tool}/bin/hello\n" in ran.output
    assert not (tool / "bin" / "hellox").exists()


def test_a_directory_made_in_setup_is_at_the_same_place_in_a_gate(work: Path, tmp_path: Path) -> None:
    run(
        "mkdir -p .venv/bin; printf '#!/work/.venv/bin/sh\\necho works\\n' >.venv/bin/tool; cp /bin/sh .venv/bin/sh; "
        "chmod +x .venv/bin/tool",
        work=work,
        limits=QUICK,
    )
    gate = tmp_path / "gate"
    gate.mkdir()
    ran = run("tool", work=gate, limits=QUICK, read_only={".venv": work / ".venv"}, path=["/work/.venv/bin"])
    assert ran.output == "works\n"


@pytest.mark.parametrize("target", ["../x", "/", ".", "/proc/x", "/dev/x", "/usr", "a/../../x"])
def test_targets_outside_are_refused(work: Path, tmp_path: Path, target: str) -> None:
    with pytest.raises(MosaicError, match="mounted at"):
        run("true", work=work, limits=QUICK, read_only={target: tmp_path})


def test_links_are_not_followed_when_mounting(work: Path, tmp_path: Path) -> None:
    (work / "folder").symlink_to("/etc")
    with pytest.raises(MosaicError, match="symbolic link"):
        run("true", work=work, limits=QUICK, read_only={"folder/mosaic": tmp_path})
    with pytest.raises(MosaicError, match="symbolic link"):
        run("true", work=work, limits=QUICK, read_only={"folder": tmp_path})
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(MosaicError, match="symbolic link"):
        run("true", work=work, limits=QUICK, read_only={"x": tmp_path / "link"})
    with pytest.raises(MosaicError, match="missing"):
        run("true", work=tmp_path / "none", limits=QUICK)
    assert not Path("/etc/mosaic").exists()


# ---------------------------------------------------------------- limits


def test_detached_children_die_at_the_time_limit(work: Path) -> None:
    ran = run(HOLD + "setsid sh -c 'setsid sleep 600 & sleep 600' & sleep 600", work=work, limits=Limits(1))
    assert ran.timed_out and ran.exit_code is None
    assert lock_is_free(work / "lock")


def test_detached_children_die_when_the_command_ends(work: Path) -> None:
    ran = run(HOLD + "setsid sleep 600 >/dev/null 2>&1 & exit 3", work=work, limits=QUICK)
    assert ran.exit_code == 3 and not ran.timed_out
    assert lock_is_free(work / "lock")


def test_cancelling_ends_the_whole_tree(work: Path) -> None:
    started = threading.Event()
    command = HOLD + "setsid sleep 600 & trap '' TERM INT HUP; echo started; sleep 600"
    ran = run(command, work=work, limits=Limits(60), cancelled=started.is_set, on_output=lambda _: started.set())
    assert ran.cancelled and ran.exit_code is None and not ran.timed_out
    assert lock_is_free(work / "lock")


def test_nothing_outlives_a_worker_that_is_killed(work: Path) -> None:
    script = f"""
        import sys; sys.path.insert(0, {str(REPOSITORY)!r})
        from pathlib import Path
        from app.sandbox import Limits, run
        run({HOLD!r} + "setsid sleep 600 & echo started; sleep 600", work=Path({str(work)!r}), limits=Limits(500),
            on_output=lambda text: print(text, flush=True))
        """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == "started\n"
        assert not lock_is_free(work / "lock")
        worker.kill()
    assert subprocess.run(["flock", "-w", "20", str(work / "lock"), "true"]).returncode == 0


def test_a_fork_bomb_is_bounded_and_ends(work: Path) -> None:
    script = """
        import os, time
        made = 0
        try:
            while made < 500:
                if os.fork() == 0:
                    time.sleep(600)
                made += 1
        except BlockingIOError:
            print(made)
        """
    assert 10 < int(python(work, script, Limits(60, processes=40)).output) < 40
    bomb = run(HOLD + "bomb() { bomb | bomb & }; bomb; sleep 600", work=work, limits=Limits(2, processes=40))
    assert bomb.timed_out and lock_is_free(work / "lock")


def test_parallel_runs_do_not_share_their_process_limit(work: Path, tmp_path: Path) -> None:
    trees = [tmp_path / str(number) for number in range(3)]
    done: list[Ran] = []

    def one(tree: Path) -> None:
        tree.mkdir()
        command = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.5 & done; wait; echo fine"
        done.append(run(command, work=tree, limits=Limits(60, processes=18)))

    threads = [threading.Thread(target=one, args=(tree,)) for tree in trees]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ran.output for ran in done] == ["fine\n"] * 3


def test_memory_of_a_process_is_bounded(work: Path) -> None:
    script = "block = bytearray(300 * 1024 * 1024); print(len(block))"
    assert "MemoryError" in python(work, script, Limits(60, memory_mb=128)).output
    assert python(work, script, Limits(60, memory_mb=1024)).output == "314572800\n"


def test_files_are_bounded(work: Path) -> None:
    limits = Limits(60, file_mb=1, tmp_mb=4)
    many = "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=/tmp/$i bs=64k count=16; done"
    ran = run(f"dd if=/dev/zero of=big bs=64k count=64; {many}", work=work, limits=limits)
    assert (work / "big").stat().st_size == 1024 * 1024
    assert "No space left on device" in ran.output


def test_the_disk_is_bounded(work: Path) -> None:
    command = HOLD + "for i in $(seq 24); do dd if=/dev/zero of=f$i bs=1M count=16 2>/dev/null; done; sleep 100"
    ran = run(command, work=work, limits=Limits(120, disk_mb=96))
    assert ran.disk_full and ran.exit_code is None and lock_is_free(work / "lock")


def test_any_tree_can_be_removed(work: Path) -> None:
    deep = """
        import os
        for _ in range(3000):
            os.mkdir("d"); os.chdir("d")
        """
    assert python(work, deep).exit_code == 0
    run("mkdir -p locked/in; touch locked/in/f; chmod 000 locked/in locked", work=work, limits=QUICK)
    discard(work)
    assert not work.exists()
    discard(work)


def test_nothing_is_left_on_the_host(work: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    run("true", work=work, limits=QUICK)
    run("sleep 60", work=work, limits=Limits(0.2))
    assert Path("/proc/self/mountinfo").read_text() == before
    own = f"mosaic-{os.getpid()}-"
    assert not [path for path in Path("/sys/fs/cgroup").rglob(f"{own}*") if path.is_dir()]
    open_files = len(os.listdir("/proc/self/fd"))
    run("true", work=work, limits=QUICK)
    assert len(os.listdir("/proc/self/fd")) == open_files


# ---------------------------------------------------------------- other launchers


def as_nobody(task: Callable[[], object]) -> object:
    """What `task` returns in a copy of this process that is an ordinary account (needs root)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            answer = task()
        except BaseException as error:  # noqa: BLE001  the copy must never return into pytest
            answer = repr(error)
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = json.load(pipe)
    os.waitpid(child, 0)
    return answer


def test_an_ordinary_account_can_run_it_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = Path("/var/tmp") / f"mosaic-test-{os.getpid()}"
    place.mkdir(mode=0o755)
    (place / "tree").mkdir()
    (place / "tree" / "lock").touch()

    def task() -> list[object]:
        tree = place / "tree"
        ran = run(HOLD + "id -u; touch mine; setsid sleep 600 & exit 4", work=tree, limits=QUICK)
        owner = (tree / "mine").stat().st_uid
        return [ran.exit_code, [ran.output.strip(), str(owner)], lock_is_free(tree / "lock")]

    try:
        if ROOT:
            for path in (place, place / "tree", place / "tree" / "lock"):
                os.chown(path, 65534, 65534)
        me = "65534" if ROOT else str(os.geteuid())
        answer = as_nobody(task) if ROOT else task()
        assert answer == [4, ["1000", me], True]
    finally:
        discard(place)


def test_groups_of_killed_workers_are_swept_up(work: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = []
    with cgroups(QUICK) as groups:
        for group in groups:
            left.append(group.parent.with_name(f"mosaic-{gone.pid}-1"))
            left[-1].mkdir()
        run("true", work=work, limits=QUICK)
        assert [path for path in left if path.exists()] == []
        assert all(group.exists() for group in groups)


def test_without_bubblewrap_nothing_runs(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_profile, "_SYSTEM_PATH", str(tmp_path))
    with pytest.raises(SandboxUnavailable, match="install bubblewrap") as raised:
        run("touch ran", work=work, limits=QUICK)
    assert raised.value.code == "sandbox_unavailable" and not (work / "ran").exists()


def test_where_namespaces_are_refused_nothing_runs(work: Path) -> None:
    """The sandbox itself is such a place: bubblewrap is installed in it and may not make a namespace."""
    script = """
        import sys; sys.path.insert(0, "/opt/mosaic")
        from pathlib import Path
        from app.sandbox import Limits, SandboxUnavailable, run
        Path("tree").mkdir()
        try:
            run("touch ran", work=Path("tree"), limits=Limits(60))
        except SandboxUnavailable as error:
            print(error.code, Path("tree/ran").exists(), error)
        """
    (work / "script.py").write_text(textwrap.dedent(script))
    ran = run(
        f"'{PYTHON}' script.py", work=work, limits=QUICK, tools=TOOLS, read_only={"/opt/mosaic/app": REPOSITORY / "app"}
    )
    assert ran.output.startswith("sandbox_unavailable False The sandbox does not work here: "), ran.output
    assert "AppArmor" in ran.output


def test_the_typed_choice_runs_without_a_sandbox(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSAIC_GITEA_TOKEN", "canary-5b1f9c")
    command = 'pwd; env; ulimit -n; test -d "$HOME" && echo home; exit 5'
    ran = run(command, work=work, limits=Limits(60, files=99), insecure=True, env={"SEEN": "yes"})
    assert ran.exit_code == 5 and ran.output.startswith(f"{work}\n") and ran.output.endswith("99\nhome\n")
    assert "SEEN=yes" in ran.output and "canary" not in ran.output


@pytest.mark.parametrize("ending", ["exit 0", "sleep 600"])
def test_the_typed_choice_still_kills_detached_children(work: Path, ending: str) -> None:
    command = HOLD + f"setsid sh -c 'setsid sleep 600 & sleep 600' & setsid sleep 600 & sleep 0.1; {ending}"
    ran = run(command, work=work, limits=Limits(2), insecure=True)
    assert ran.timed_out == (ending != "exit 0")
    assert lock_is_free(work / "lock")


# ---------------------------------------------------------------- probe


def test_the_probe_holds_here() -> None:
    done = probe()
    assert done.ok and done.failures == () and done.backend == "bubblewrap" and done.version


def test_the_probe_sees_an_open_network() -> None:
    done = probe(lambda command, **how: run(command, network=True, **how))
    assert not done.ok and len(done.failures) == 1 and "network" in done.failures[0]


def test_the_probe_sees_that_there_is_no_sandbox_at_all() -> None:
    def bare(command: str, *, work: Path, **_: object) -> Ran:
        said = work / "said"  # a file and no pipe: the child that stays would keep a pipe open
        with said.open("w") as file:
            done = subprocess.run(["/bin/sh", "-c", command], cwd=work, stdout=file, stderr=file)
        return Ran(done.returncode, 0.0, said.read_text(), False, False, False)

    said = "\n".join(probe(bare).failures)
    wanted = ["network", "files of the host", "environment", "namespace", "detached child"] + (
        ["read-only"] if ROOT else []
    )
    assert [word for word in wanted if word not in said] == []


def test_the_probe_counts_silence_as_failure() -> None:
    done = probe(lambda command, **how: run("exit 1", **how))
    assert not done.ok and len(done.failures) == 6


def test_start_up_time_is_measured(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = []
    for _ in range(20):
        began = time.monotonic()
        assert run("true", work=work, limits=QUICK).exit_code == 0
        times.append((time.monotonic() - began) * 1000)
    times.sort()
    with capsys.disabled():
        print(f" start-up of 20 runs: p50 {times[10]:.0f} ms, p95 {times[18]:.0f} ms ", end="")
