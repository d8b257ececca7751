"""deploy/: each file is read by the program that it is for where that is there, and checked by structure always."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from app.settings import load
from app.settings_source import parse_dotenv
from app.settings_table import BY_NAME, SETTINGS

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
UNITS = ("mosaic.service", "mosaic@.service", "mosaic.target")
ROLES = ("web", "control", "agents", "gates", "engine")
# What bubblewrap needs: namespaces, mounts, its own /proc (nothing may lie over ours), and its own host name.
MUST_STAY_OPEN = (
    "ProtectKernelTunables",
    "ProtectKernelLogs",
    "ProtectProc",
    "ProcSubset",
    "ProtectHostname",
    "PrivateUsers",
    "RestrictSUIDSGID",  # takes openat2 away, which OpenClaw opens its files with
)
EXPOSURE_LIMIT = 3.5


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "systemd" / name)
    return parser


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


# ---------------------------------------------------------------- systemd


@pytest.mark.parametrize("name", UNITS[:2])
def test_a_unit_is_hardened_as_far_as_the_sandbox_allows(name: str) -> None:
    service = unit(name)["Service"]
    assert service["NoNewPrivileges"] == "yes" and service["CapabilityBoundingSet"] == ""
    assert set(service["RestrictNamespaces"].split()) == {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"}
    assert {"@mount", "unshare", "setns", "clone3", "pivot_root", "sethostname"} < set(
        service["SystemCallFilter"].split()
    )
    assert not [key for key in MUST_STAY_OPEN if key in service] and "MemoryDenyWriteExecute" not in service
    assert service["User"] == "mosaic" and service["KillSignal"] == "SIGTERM" and service["KillMode"] == "mixed"
    assert "EnvironmentFile" in service and not re.search("TOKEN|SECRET|PASSWORD", service["Environment"])


def test_an_orderly_stop_has_the_time_it_needs() -> None:
    """Up to 30 s for each of the five processes and the database, one after the other."""
    assert int(unit("mosaic.service")["Service"]["TimeoutStopSec"]) >= 6 * 30


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_unit(name: str) -> None:
    parser = unit(name)
    assert parser.sections()[0] == "Unit" and parser["Install"]["WantedBy"]
    if shutil.which("systemd-analyze"):
        said = run("systemd-analyze", "verify", "--man=no", str(DEPLOY / "systemd" / name)).stderr
        odd = [line for line in said.splitlines() if "mosaic" in line and "is not executable" not in line]
        assert odd == []


@pytest.mark.parametrize("name", UNITS[:2])
def test_the_exposure_stays_low(name: str) -> None:
    if not shutil.which("systemd-analyze"):
        return  # the directives themselves are checked above
    said = run("systemd-analyze", "security", "--offline=true", str(DEPLOY / "systemd" / name)).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found and float(found[1]) <= EXPOSURE_LIMIT


def test_the_settings_of_the_service_are_real(tmp_path: Path) -> None:
    text = (DEPLOY / "mosaic.env.example").read_text()
    values = parse_dotenv(text).values
    assert set(values) <= set(BY_NAME)
    needed = {row.name for row in SETTINGS for role in ROLES if role in row.required}
    assert needed <= set(values)
    (tmp_path / "server.toml").touch()
    filled = {
        **values,
        "MOSAIC_CONFIG": str(tmp_path / "server.toml"),
        "MOSAIC_DATA_DIR": str(tmp_path),
        "MOSAIC_GITEA_TOKEN": "f" * 40,
        "MOSAIC_GITEA_WEBHOOK_SECRET": "0123456789abcdef",
        "MOSAIC_MODEL_ID": "some-model",
    }
    for role in ROLES:
        assert load(role, filled).warnings == ()


# ---------------------------------------------------------------- proxies


def test_nginx_takes_its_file(tmp_path: Path) -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    assert text.count("{") == text.count("}")
    passed = re.findall(r"location (?:= )?(\S+) \{\s*proxy_pass", text)
    assert passed == ["/webhooks/", "/healthz", "/readyz"] and "return 404" in text
    assert "client_max_body_size 1m;" in text and "proxy_request_buffering on;" in text
    if not (shutil.which("nginx") and shutil.which("openssl")):
        return
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    asked = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=mosaic.example.org"
    made = run("openssl", *asked.split(), "-keyout", str(key), "-out", str(cert))
    assert made.returncode == 0, made.stderr
    text = text.replace("/etc/ssl/mosaic/fullchain.pem", str(cert)).replace("/etc/ssl/mosaic/key.pem", str(key))
    (tmp_path / "mosaic.conf").write_text(text)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/log; events {{}}\nhttp {{ include {tmp_path}/mosaic.conf; }}\n"
    )
    tried = run("nginx", "-t", "-q", "-c", str(tmp_path / "nginx.conf"))
    assert tried.returncode == 0, tried.stderr


def test_caddy_takes_its_file() -> None:
    text = (DEPLOY / "Caddyfile").read_text()
    assert text.count("{") == text.count("}") and "respond 404" in text and "max_size 1MB" in text
    assert re.findall(r"handle (\S+) \{\n\t\treverse_proxy", text) == ["/webhooks/*", "@probes"]
    if shutil.which("caddy"):
        tried = run("caddy", "validate", "--adapter", "caddyfile", "--config", str(DEPLOY / "Caddyfile"))
        assert tried.returncode == 0, tried.stderr


# ---------------------------------------------------------------- containers


def services() -> dict[str, str]:
    """The text of each service of the compose file."""
    text = (DEPLOY / "compose" / "compose.yaml").read_text()
    body = text[text.index("\nservices:\n") : text.index("\nvolumes:\n")]
    names = re.findall(r"^  (\w+):", body, re.MULTILINE)
    parts = re.split(r"^  \w+:.*$", body, flags=re.MULTILINE)[1:]
    return dict(zip(names, parts, strict=True))


def test_each_container_holds_the_secrets_of_its_role_only() -> None:
    text = (DEPLOY / "compose" / "compose.yaml").read_text()
    assert "\t" not in text
    found = services()
    assert set(found) == {"db", "gitea", "migrate", *ROLES}
    common = set(re.findall(r"^  (MOSAIC_\w+):", text[: text.index("\nservices:")], re.MULTILINE))
    for role in ROLES:
        assert f"command: [run, {role}]" in found[role]
        held = set(re.findall(r"^      (MOSAIC_\w+):", found[role], re.MULTILINE))
        foreign = [name for name in held if BY_NAME[name].secret and role not in BY_NAME[name].roles]
        assert foreign == []
        needed = {row.name for row in SETTINGS if role in row.required}
        assert needed <= held | common
        assert role == "web" or 'network_mode: "service:web"' in found[role]  # the gateway listens on loopback only
    assert "unconfined" in found["gates"] and text.count("seccomp=unconfined") == 1


def test_compose_asks_for_nothing_that_its_example_does_not_name() -> None:
    text = (DEPLOY / "compose" / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+)", text))
    assert asked == set(parse_dotenv((DEPLOY / "compose" / "mosaic.env.example").read_text()).values)
    for port in re.findall(r'ports: \["([^"]+)"\]', text):
        assert port.startswith("127.0.0.1:")  # what others may reach is a proxy's business


def test_gitea_may_call_mosaic_and_nothing_else_of_the_network() -> None:
    assert re.findall(r"ALLOWED_HOST_LIST: (.*)", services()["gitea"]) == ["web"]


def test_the_operators_command_takes_settings_as_systemd_does(tmp_path: Path) -> None:
    """Nothing is expanded or run; the command at the end is replaced by one that tells its environment."""
    script = (DEPLOY / "mosaic-as-operator").read_text()
    start = script.index("exec setpriv")
    (tmp_path / "mosaic").write_text(script[:start] + "exec env -0\n")
    (tmp_path / "common.env").write_text(
        "# a comment\nMOSAIC_A=pa$HOME`id` x\nMOSAIC_B='single $x'\nMOSAIC_C=\"double\"\nMOSAIC_D=\nMOSAIC_E=a=b"
    )
    (tmp_path / "operator.env").write_text("MOSAIC_F=of the operator\n")
    env = {"PATH": "/usr/bin:/bin", "ETC_OF_MOSAIC": str(tmp_path)}
    done = subprocess.run(["sh", str(tmp_path / "mosaic")], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)
    assert {name: found[f"MOSAIC_{name}"] for name in "ABCDEF"} == {
        "A": "pa$HOME`id` x",
        "B": "single $x",
        "C": "double",
        "D": "",
        "E": "a=b",
        "F": "of the operator",
    }
    assert found["MOSAIC_DATA_DIR"] == "/var/lib/mosaic"
    env["ETC_OF_MOSAIC"] = str(tmp_path / "none")
    none = subprocess.run(["sh", str(tmp_path / "mosaic")], env=env, capture_output=True, text=True, timeout=30)
    assert none.returncode == 1 and "run this as root" in none.stderr


def test_compose_reads_as_yaml() -> None:
    """By the tool itself, where it is there."""
    if shutil.which("docker") and run("docker", "compose", "version").returncode == 0:
        example = str(DEPLOY / "compose" / "mosaic.env.example")
        filled = [
            "docker",
            "compose",
            "--env-file",
            example,
            "-f",
            str(DEPLOY / "compose" / "compose.yaml"),
            "config",
            "-q",
        ]
        assert "required variable" in run(*filled).stderr  # nothing is filled in yet, and it says so


def test_the_image_holds_what_mosaic_runs_on_and_runs_as_nobody() -> None:
    text = (DEPLOY / "compose" / "Dockerfile").read_text()
    for package in ("app", "handlers", "jobs", "migrations"):
        assert f"COPY {package} {package}" in text
    assert "\nUSER mosaic\n" in text and "requirements.txt" in text and "ci --ignore-scripts" in text


@pytest.mark.parametrize("script", [DEPLOY / "compose" / "roles.sh", DEPLOY / "mosaic-as-operator"])
def test_scripts_are_shell(script: Path) -> None:
    assert run("sh", "-n", str(script)).returncode == 0 and script.stat().st_mode & 0o111
