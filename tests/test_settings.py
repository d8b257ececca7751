"""The environment: every setting, every fault at once, and each process with the secrets of its role only."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import (
    ROLES,
    SETTINGS,
    Settings,
    SettingsError,
    ensure_generated,
    environment_for,
    foreign_secrets,
    load,
    secrets_of,
    settings_source,
)
from app.settings_source import parse_dotenv

ROOT = Path(__file__).resolve().parent.parent
NEEDED = {
    "MOSAIC_GITEA_URL": "https://git.example.org/",
    "MOSAIC_GITEA_TOKEN": "f" * 40,
    "MOSAIC_GITEA_WEBHOOK_SECRET": "0123456789abcdef",
    "MOSAIC_MODEL_BASE_URL": "https://models.example.org/v1",
    "MOSAIC_MODEL_ID": "small",
}
SECRET_NAMES = {row.name for row in SETTINGS if row.secret}


@pytest.fixture
def base(tmp_path: Path) -> dict[str, str]:
    return {**NEEDED, "MOSAIC_DATA_DIR": str(tmp_path / "var")}


def complaints(role: str, environ: dict[str, str], dotenv: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(role, environ, dotenv=dotenv)
    return [str(problem) for problem in caught.value.problems]


# ---------------------------------------------------------------- values


def test_defaults_and_derived_values(base: dict[str, str], tmp_path: Path) -> None:
    settings = load("web", base)
    assert (settings.listen_host, settings.listen_port) == ("127.0.0.1", 8080)
    assert settings.base_url == "http://127.0.0.1:8080"
    assert settings.database_url is None  # = the embedded server
    assert settings.data_dir == tmp_path / "var"
    assert settings.gitea_url == "https://git.example.org"
    assert settings.webhook_secrets == (b"0123456789abcdef",)
    assert (settings.engine, settings.max_agents, settings.model_context_window) == ("gateway", 2, 128_000)
    assert settings.config_path is None
    assert settings.warnings == ()


def test_every_setting_has_its_field_and_every_field_its_setting() -> None:
    fields = {field.name for field in dataclasses.fields(Settings)} - {"role", "warnings"}
    named = {row.attribute for row in SETTINGS} - {"listen"} | {"listen_host", "listen_port"}
    assert fields == named
    assert len({row.name for row in SETTINGS}) == len(SETTINGS)


def test_a_relative_data_directory_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("gates", {}).data_dir == tmp_path / "var"


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("MOSAIC_LISTEN", "[::1]:0", "listen_port", 0),
        ("MOSAIC_LISTEN", "[::1]:9", "base_url", "http://[::1]:9"),
        ("MOSAIC_LISTEN", "localhost:80", "listen_host", "localhost"),
        ("MOSAIC_OPENCLAW_URL", "wss://engine.example.org", "openclaw_url", "wss://engine.example.org/"),
        ("MOSAIC_LOG_LEVEL", "DEBUG", "log_level", "debug"),
        ("MOSAIC_MODEL_COST_INPUT", "2.50", "model_cost_input", 2.5),
        ("MOSAIC_TRUSTED_PROXIES", "127.0.0.1, 10.1.2.3/8", "trusted_proxies", ("127.0.0.1/32", "10.0.0.0/8")),
        ("MOSAIC_GITEA_WEBHOOK_SECRET", "n" * 16 + " , " + "o" * 16, "webhook_secrets", (b"n" * 16, b"o" * 16)),
        ("MOSAIC_MATTERMOST_COMMAND_TOKENS", "a" * 26 + "," + "b" * 26, "mattermost_command_tokens",
         ("a" * 26, "b" * 26)),
        ("MOSAIC_GITEA_PUSH_TOKEN", "  ", "gitea_push_token", ""),
    ],
)  # fmt: skip
def test_values(base: dict[str, str], name: str, text: str, field: str, value: object) -> None:
    settings = load("cli", {**base, "MOSAIC_OPENCLAW_TOKEN": "t" * 16, name: text})
    assert getattr(settings, field) == value


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("MOSAIC_LISTEN", "8080", 'is "8080". Write host:port, like 127.0.0.1:8080 or [::1]:8080.'),
        ("MOSAIC_LISTEN", "::1:80", 'is "::1:80". Write host:port, like 127.0.0.1:8080 or [::1]:8080.'),
        ("MOSAIC_LISTEN", "a:99999", 'is "a:99999". Write host:port, like 127.0.0.1:8080 or [::1]:8080.'),
        ("MOSAIC_LISTEN", ":80", 'is ":80", which names no host. Write host:port, like 127.0.0.1:8080.'),
        ("MOSAIC_GITEA_URL", "git.example.org", "does not start with https:// or http://. Write it like https://git.example.org."),
        ("MOSAIC_GITEA_URL", "https://", "names no host. Write it like https://git.example.org."),
        ("MOSAIC_GITEA_URL", "https://bot:hunter2@git.example.org",
         "holds a user or a password. Take it out: tokens and passwords have settings of their own."),
        ("MOSAIC_GITEA_URL", "https://git.example.org/?a=b", "holds a ? or #. Write the address up to there."),
        ("MOSAIC_GITEA_URL", "https://git.example.org:port", "is not a valid address. Write it like https://git.example.org."),
        ("MOSAIC_GITEA_URL", "https://git.example\\.org", "is not a valid address. Write it like https://git.example.org."),
        ("MOSAIC_DATABASE_URL", "mysql://root:hunter2@db/mosaic",
         "does not start with postgresql:// or postgres://. Write it like postgresql://mosaic:PASSWORD@db.example.org/mosaic."),
        ("MOSAIC_MAX_AGENTS", "two", 'is "two", which is not a whole number. Write digits only.'),
        ("MOSAIC_MAX_AGENTS", "0", "is 0. Use a number from 1 to 256."),
        ("MOSAIC_MODEL_COST_INPUT", "nan", 'is "nan", which is not a number. Write it like 2.50.'),
        ("MOSAIC_ENGINE", "local", 'is "local". Use one of: gateway, exec.'),
        ("MOSAIC_CONFIG", "/nowhere/x.toml",
         "is /nowhere/x.toml, and there is no such file. Correct the path, or remove the setting."),
        ("MOSAIC_DATA_DIR", "/dev/null",
         "is /dev/null, which is not a directory. Name a directory; it is made when it is absent."),
        ("MOSAIC_TRUSTED_PROXIES", "proxy",
         'is "proxy". Write addresses or networks with commas between them, like 127.0.0.1,10.0.0.0/8.'),
        ("MOSAIC_GITEA_WEBHOOK_SECRET", "short",
         "is too short to be safe: 5 characters. Use at least 16, for example from `openssl rand -hex 32`."),
        ("MOSAIC_GITEA_WEBHOOK_SECRET", "n" * 16 + ",short",
         "is too short to be safe: 5 characters. Use at least 16, for example from `openssl rand -hex 32`."),
        ("MOSAIC_GITEA_WEBHOOK_SECRET", "n" * 16 + ",",
         "holds an empty value. Remove the comma, or write a value on each side of it."),
        ("MOSAIC_GITEA_WEBHOOK_SECRET", ",".join(["n" * 16] * 3),
         "holds 3 values. Write one, or two with a comma between them while rotating."),
        ("MOSAIC_GITEA_TOKEN", "abc\r\nX-Evil: 1",
         "holds a space, a line break or a character that no token has. Copy the token again."),
        ("MOSAIC_DISCORD_PUBLIC_KEY", "xyz",
         "is not a public key. Copy the 64 hexadecimal digits from the platform's page."),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_remedy(base: dict[str, str], name: str, text: str, complaint: str) -> None:
    assert complaints("cli", {**base, name: text}) == [f"{name} {complaint}"]


def test_all_faults_come_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load("web", {"MOSAIC_LISTEN": "x", "MOSAIC_GITEA_WEBHOOK_SECRET": "", "MOSAIC_LOG_FORMAT": "xml"})
    assert str(caught.value) == (
        "Mosaic cannot start as `web`: 4 settings need attention.\n"
        '- MOSAIC_LISTEN is "x". Write host:port, like 127.0.0.1:8080 or [::1]:8080.\n'
        "- MOSAIC_GITEA_URL is not set. It is the address of the Gitea or Forgejo server, for example "
        "https://git.example.org.\n"
        "- MOSAIC_GITEA_WEBHOOK_SECRET is not set. It is the secret of the webhook, at least 16 characters; two values "
        "with a comma between them while rotating, for example the output of `openssl rand -hex 32`.\n"
        '- MOSAIC_LOG_FORMAT is "xml". Use one of: text, json.'
    )
    assert caught.value.code == "settings_invalid"


@given(st.sampled_from(SETTINGS), st.text(alphabet=st.characters(exclude_characters="\0"), max_size=60))
def test_any_text_is_a_value_or_a_named_fault(row: object, text: str) -> None:
    name = row.name  # type: ignore[attr-defined]
    if name == "MOSAIC_DATA_DIR":
        return
    try:
        load("cli", {"MOSAIC_DATA_DIR": "/nonexistent/mosaic", name: text})
    except SettingsError as error:
        assert [problem.name for problem in error.problems] == [name]
        if name in SECRET_NAMES and len(text.strip()) > 8:
            assert text.strip() not in str(error)


# ---------------------------------------------------------------- unknown names, .env


def test_an_unknown_name_is_a_warning_with_the_nearest_one(base: dict[str, str]) -> None:
    extra = {"MOSAIC_GITEA_TOKN": "x", "MOSAIC_PURPLE": "x", "MOSAIC_LISTEN_FILE": "x", "OTHER": "x"}
    assert load("control", {**base, **extra}).warnings == (
        "MOSAIC_GITEA_TOKN is not a setting of Mosaic and has no effect. Did you mean MOSAIC_GITEA_TOKEN?",
        "MOSAIC_LISTEN_FILE is not a setting of Mosaic and has no effect. Did you mean MOSAIC_LISTEN?",
        "MOSAIC_PURPLE is not a setting of Mosaic and has no effect.",
    )


def test_dotenv_lines() -> None:
    text = (
        "\ufeff# comment\n\nA=1\nexport B = two words # comment\r\nC='single # \\n kept' # c\n"
        'D="double \\"q\\" \\\\ \\n end"\nE=\nF=a#b\nA=2\nbad line\nG="open\nH=\'x\' y\n'
    )
    found = parse_dotenv(text)
    assert found.values == {
        "A": "2",
        "B": "two words",
        "C": "single # \\n kept",
        "D": 'double "q" \\ \n end',
        "E": "",
        "F": "a#b",
    }
    assert found.faults == (
        (10, "is not of the form NAME=VALUE"),
        (11, "has a quote that is not closed, or text after the closing quote"),
        (12, "has a quote that is not closed, or text after the closing quote"),
    )


@given(st.text())
def test_any_dotenv_text_is_read_or_faulted(text: str) -> None:
    found = parse_dotenv(text)
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in found.values)


@given(st.text(alphabet=st.characters(exclude_characters="'\n", exclude_categories=["Cs"])))
def test_single_quotes_keep_a_value(value: str) -> None:
    assert parse_dotenv(f"A='{value}' # c").values == {"A": value}


def test_the_environment_wins_over_dotenv_in_either_spelling(base: dict[str, str], tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("from-file\n")
    dotenv = tmp_path / ".env"
    dotenv.write_text("MOSAIC_GITEA_TOKEN=from-dotenv\nMOSAIC_LISTEN=127.0.0.1:1\nMOSAIC_MAX_AGENTS=5\nPATH=/evil\n")
    dotenv.chmod(0o600)
    environ = {**base, "MOSAIC_GITEA_TOKEN": "", "MOSAIC_GITEA_TOKEN_FILE": str(secret), "MOSAIC_LISTEN": "127.0.0.1:2"}
    settings = load("control", environ, dotenv=dotenv)
    assert (settings.gitea_token, settings.listen_port, settings.max_agents) == ("from-file", 2, 5)
    assert "PATH" not in settings_source(environ, dotenv)
    assert settings.warnings == ()


def test_a_dotenv_with_secrets_that_others_can_read_is_a_warning(base: dict[str, str], tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("MOSAIC_MODEL_API_KEY=abc\n")
    dotenv.chmod(0o644)
    expected = f"{dotenv} holds secrets and can be read by other accounts: run `chmod 600 {dotenv}`."
    assert load("gates", base, dotenv=dotenv).warnings == (expected,)


def test_a_bad_dotenv_stops_the_start_without_showing_its_content(base: dict[str, str], tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("hunter2\n")
    fault = (
        f"{dotenv} line 1 is not of the form NAME=VALUE. Write NAME=VALUE; put a value with spaces or # into quotes."
    )
    assert complaints("gates", base, dotenv) == [fault]
    with pytest.raises(SettingsError):
        settings_source(base, dotenv)
    dotenv.write_bytes(b"A=\xff\n")
    assert complaints("gates", base, dotenv) == [
        f"{dotenv} cannot be read as UTF-8 text. Correct the file, or remove it."
    ]


# ---------------------------------------------------------------- secrets


def test_a_secret_may_come_from_a_file(base: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "hook"
    file.write_text("0123456789abcdef-new\n")
    environ = {name: value for name, value in base.items() if name != "MOSAIC_GITEA_WEBHOOK_SECRET"}
    environ["MOSAIC_GITEA_WEBHOOK_SECRET_FILE"] = str(file)
    assert load("web", environ).webhook_secrets == (b"0123456789abcdef-new",)
    both = {**environ, "MOSAIC_GITEA_WEBHOOK_SECRET": "x" * 20}
    assert complaints("web", both) == [
        "MOSAIC_GITEA_WEBHOOK_SECRET and MOSAIC_GITEA_WEBHOOK_SECRET_FILE are both set. Keep one of them."
    ]
    file.write_text("\n")
    assert complaints("web", environ) == [
        f"MOSAIC_GITEA_WEBHOOK_SECRET is empty in the file {file}. Write the value into the file."
    ]
    file.unlink()
    assert complaints("web", environ) == [
        f"MOSAIC_GITEA_WEBHOOK_SECRET cannot be read from the file {file}. "
        "Correct MOSAIC_GITEA_WEBHOOK_SECRET_FILE or the file."
    ]


def everything(base: dict[str, str]) -> dict[str, str]:
    """An environment in which every secret is set to a value of its own."""
    values = {name: f"canary-{name.lower()}-{'x' * 32}" for name in SECRET_NAMES}
    values["MOSAIC_DATABASE_URL"] = "postgresql://mosaic:canary%2Druntime@db/mosaic"
    values["MOSAIC_DATABASE_OWNER_URL"] = "postgresql://owner:canary-owner-pass@db/mosaic"
    return {**base, **values}


HELD = {
    "web": {
        "DATABASE_URL", "SECRET_KEY", "GITEA_WEBHOOK_SECRET", "GITEA_OAUTH_CLIENT_SECRET", "SLACK_SIGNING_SECRET",
        "MATTERMOST_COMMAND_TOKENS",
    },
    "control": {
        "DATABASE_URL", "SECRET_KEY", "GITEA_TOKEN", "GITEA_PUSH_TOKEN", "GITEA_AUTHZ_TOKEN", "ANCHOR_KEY",
        "SLACK_BOT_TOKEN", "DISCORD_BOT_TOKEN", "MATTERMOST_TOKEN",
    },
    "agents": {"DATABASE_URL", "OPENCLAW_TOKEN"},
    "gates": {"DATABASE_URL"},
    "engine": {"OPENCLAW_TOKEN", "MODEL_API_KEY"},
    "stream": {"DATABASE_URL", "SECRET_KEY"},
    "migrate": {"DATABASE_URL", "DATABASE_OWNER_URL"},
    "cli": {name.removeprefix("MOSAIC_") for name in SECRET_NAMES},
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_a_role_holds_its_own_secrets_and_no_others(base: dict[str, str], role: str) -> None:
    environ = everything(base)
    settings = load(role, environ)
    held = {row.name.removeprefix("MOSAIC_") for row in SETTINGS if row.secret and getattr(settings, row.attribute)}
    assert held == HELD[role]
    assert "canary" not in repr(settings)
    foreign = {f"MOSAIC_{name}" for name in HELD["cli"] - HELD[role]}
    assert set(foreign_secrets(role, environ)) == foreign


@pytest.mark.parametrize("role", ROLES)
def test_the_environment_of_a_role_holds_no_foreign_secret(base: dict[str, str], role: str, tmp_path: Path) -> None:
    environ = {**everything(base), "HOME": "/home/m", "AWS_SECRET": "canary-aws", "MOSAIC_GITEA_TOKEN_FILE": "/x"}
    child = environment_for(role, {**environ, "PATH": os.environ["PATH"]})
    # The kernel's own record of a real process that was started so.
    command = [sys.executable, "-c", "print(open('/proc/self/environ').read())"]
    seen = subprocess.run(command, env=child, capture_output=True, text=True, check=True).stdout
    names = {entry.partition("=")[0] for entry in seen.strip().split("\0")} - {"LC_CTYPE"}
    secret = {name for name in names if name.removesuffix("_FILE") in SECRET_NAMES}
    expected = {f"MOSAIC_{name}" for name in HELD[role]}
    assert secret - {"MOSAIC_GITEA_TOKEN_FILE"} == expected
    assert ("MOSAIC_GITEA_TOKEN_FILE" in secret) == ("GITEA_TOKEN" in HELD[role])
    assert {"PATH", "HOME", "MOSAIC_DATA_DIR"} <= names
    assert "AWS_SECRET" not in names
    assert foreign_secrets(role, child) == ()


def test_secrets_for_the_redactor(base: dict[str, str]) -> None:
    settings = load("gates", {**base, "MOSAIC_DATABASE_URL": "postgresql://m:p%40ssword@db/x"})
    assert secrets_of(settings) == ("postgresql://m:p%40ssword@db/x", "p%40ssword", "p@ssword")
    short = load("gates", {**base, "MOSAIC_DATABASE_URL": "postgresql://m:m@db/x"})
    assert secrets_of(short) == ("postgresql://m:m@db/x",)
    web = load("web", {**base, "MOSAIC_GITEA_WEBHOOK_SECRET": "n" * 16 + "," + "o" * 17, "MOSAIC_SECRET_KEY": "k" * 32})
    assert secrets_of(web) == ("k" * 32, "o" * 17, "n" * 16)


# ---------------------------------------------------------------- generated keys


def test_keys_are_made_once_and_kept_to_ourselves(base: dict[str, str], tmp_path: Path) -> None:
    first = load("web", base)
    again = load("control", base)
    assert first.secret_key == again.secret_key
    assert re.fullmatch(rb"[0-9a-f]{64}", first.secret_key)
    path = tmp_path / "var" / "keys" / "MOSAIC_SECRET_KEY"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(os.listdir(path.parent)) == ["MOSAIC_ANCHOR_KEY", "MOSAIC_SECRET_KEY"]
    assert load("agents", base).openclaw_token == load("engine", base).openclaw_token != ""
    assert load("gates", base).secret_key == b""


def test_processes_that_start_together_agree_on_a_key(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from app.settings import ensure_generated\n"
        "sys.stdin.read(1)\n"
        "print(ensure_generated(pathlib.Path(sys.argv[1]))['MOSAIC_SECRET_KEY'].read_text())"
    )

    def run(number: int) -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "var")]
        return subprocess.run(command, cwd=ROOT, input="x", capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(run, range(6)))) == 1
    with ThreadPoolExecutor(16) as pool:  # threads of one process meet within the same instant
        for attempt in range(50):
            made = pool.map(
                lambda _, at=attempt: ensure_generated(tmp_path / str(at))["MOSAIC_SECRET_KEY"].read_text(), range(16)
            )
            assert len(set(made)) == 1
    leftovers = [name for name in os.listdir(tmp_path / "0" / "keys") if name.startswith(".")]
    assert leftovers == []


def test_a_key_that_others_can_read_is_refused(base: dict[str, str], tmp_path: Path) -> None:
    load("web", base)
    path = tmp_path / "var" / "keys" / "MOSAIC_SECRET_KEY"
    path.chmod(0o644)
    assert complaints("web", base) == [
        f"MOSAIC_SECRET_KEY is not set and could not be made: {path} can be read by other accounts; remove it, and a "
        f"new key is made. Set it, or put right the directory {path.parent}."
    ]


def test_the_command_line_makes_no_keys(base: dict[str, str], tmp_path: Path) -> None:
    settings = load("cli", {"MOSAIC_DATA_DIR": base["MOSAIC_DATA_DIR"]})
    assert (settings.secret_key, settings.openclaw_token) == (b"", "")
    assert not (tmp_path / "var").exists()
    made = load("web", base)
    assert load("cli", base).secret_key == made.secret_key


def test_no_token_is_made_for_a_gateway_elsewhere(base: dict[str, str]) -> None:
    environ = {**base, "MOSAIC_OPENCLAW_URL": "wss://engine.example.org"}
    assert complaints("agents", environ) == [
        "MOSAIC_OPENCLAW_TOKEN is not set, and the gateway is on another machine. "
        "Set it to the token of the gateway that MOSAIC_OPENCLAW_URL names."
    ]


# ---------------------------------------------------------------- single rules


def test_a_wildcard_address_without_a_public_one_is_a_warning(base: dict[str, str]) -> None:
    settings = load("web", {**base, "MOSAIC_LISTEN": "0.0.0.0:80"})
    assert settings.base_url == "http://127.0.0.1:80"
    assert settings.warnings == (
        "MOSAIC_BASE_URL is not set while Mosaic listens on every address: links in comments will point to "
        "http://127.0.0.1:80. Set it to the address that people use.",
    )


def test_migrations_need_both_database_roles(base: dict[str, str]) -> None:
    url = {"MOSAIC_DATABASE_URL": "postgresql://m@db/x"}
    fix = "Migrations need both: the owner changes the tables, and the runtime role is granted its rights."
    assert complaints("migrate", {**base, **url}) == [
        f"MOSAIC_DATABASE_OWNER_URL is not set although MOSAIC_DATABASE_URL is. {fix}"
    ]
    owner = {"MOSAIC_DATABASE_OWNER_URL": "postgresql://o@db/x"}
    assert complaints("migrate", {**base, **owner}) == [
        f"MOSAIC_DATABASE_URL is not set although MOSAIC_DATABASE_OWNER_URL is. {fix}"
    ]
    assert load("migrate", {**base, **url, **owner}).database_owner_url == "postgresql://o@db/x"
    assert load("migrate", base).database_owner_url is None


def test_an_unknown_role_is_refused() -> None:
    assert complaints("root", {}) == [
        "The role is not known. Use one of: web, control, agents, gates, engine, stream, migrate, cli."
    ]


# ---------------------------------------------------------------- documents


def test_every_setting_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    rows = {cells[1]: cells for line in text.splitlines() if (cells := [cell.strip() for cell in line.split("|")])[1:]}
    for row in SETTINGS:
        _, _, default, readers, meaning, _ = rows[f"`{row.name}`"]
        assert default == (f"`{row.default}`" if row.default else "")
        roles = [role for role in ROLES if role in row.roles and role != "cli"]
        assert readers == ("all" if len(roles) == len(ROLES) - 1 else ", ".join(roles) or "command line")
        assert meaning.startswith("**Secret.** ") == row.secret
        assert meaning.endswith("*(later)*") == row.later
        assert row.doc in meaning
    named = set(re.findall(r"MOSAIC_[A-Z_]+", text)) - {"MOSAIC_"}
    assert named == {row.name for row in SETTINGS}


def test_the_example_file_names_every_setting_with_its_default(base: dict[str, str], tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text()
    opened = parse_dotenv(re.sub(r"(?m)^#(?=MOSAIC_)", "", text))
    assert opened.faults == ()
    assert opened.values == {row.name: row.default for row in SETTINGS}
    copy = tmp_path / ".env"
    copy.write_text(text)
    assert load("gates", {"MOSAIC_DATA_DIR": base["MOSAIC_DATA_DIR"]}, dotenv=copy).warnings == ()
    for role in ("web", "control", "engine"):  # what is to be filled in is open, the rest is commented out
        needed = {row.name for row in SETTINGS if role in row.required}
        assert needed <= set(parse_dotenv(text).values)
