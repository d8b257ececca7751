"""The settings of one process: read once from the environment (and `.env`), checked, frozen.

A process holds the secrets of its role and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from app.settings_keys import GENERATED, ensure_generated, key_path, read_key
from app.settings_source import Problem, SettingsError, Source, read_source, settings_source, unknown_names
from app.settings_table import BY_NAME, ROLES, SETTINGS, Setting
from app.settings_values import Invalid, Value, absent, is_loopback, parse

__all__ = [
    "ROLES",
    "SETTINGS",
    "Problem",
    "Setting",
    "Settings",
    "SettingsError",
    "ensure_generated",
    "environment_for",
    "foreign_secrets",
    "load",
    "secrets_of",
    "settings_source",
]

INHERITED = ("PATH", "LANG", "TZ", "HOME")  # the names that a process gets besides the settings of its role
_SECRET_FILE_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a role. A secret of another role is "", b"", () or None here, whatever the environment holds.

    `database_url` is None when the embedded server is used. Costs are US dollars per million tokens.
    """

    role: str
    listen_host: str
    listen_port: int
    base_url: str
    database_url: str | None = field(repr=False)
    database_owner_url: str | None = field(repr=False)
    data_dir: Path
    secret_key: bytes = field(repr=False)
    config_path: Path | None
    gitea_url: str
    gitea_token: str = field(repr=False)
    webhook_secrets: tuple[bytes, ...] = field(repr=False)
    gitea_push_token: str = field(repr=False)
    gitea_authz_token: str = field(repr=False)
    oauth_client_id: str
    oauth_client_secret: str = field(repr=False)
    engine: str
    openclaw_url: str
    openclaw_token: str = field(repr=False)
    model_api: str
    model_base_url: str
    model_api_key: str = field(repr=False)
    model_id: str
    model_context_window: int
    model_cost_input: float
    model_cost_output: float
    workers: int
    max_agents: int
    ca_bundle: Path | None
    trusted_proxies: tuple[str, ...]
    metrics_from: tuple[str, ...]
    log_level: str
    log_format: str
    keep_days: int
    anchor_key: bytes = field(repr=False)
    stream_limit: int
    stream_url: str
    slack_signing_secret: bytes = field(repr=False)
    slack_bot_token: str = field(repr=False)
    slack_api_base: str
    discord_public_key: str
    discord_application_id: str
    discord_bot_token: str = field(repr=False)
    discord_api_base: str
    mattermost_url: str
    mattermost_token: str = field(repr=False)
    mattermost_command_tokens: tuple[str, ...] = field(repr=False)
    server_url: str
    api_key: str = field(repr=False)
    warnings: tuple[str, ...] = ()


# ---------------------------------------------------------------- loading


def load(role: str, environ: Mapping[str, str], *, dotenv: Path | None = None) -> Settings:
    """The settings of a process of that role.

    Makes the keys that Mosaic can make itself when they are absent. SettingsError lists everything that is wrong at
    once; what is merely odd (an unknown name, a `.env` that others can read) is in `Settings.warnings`.
    """
    if role not in ROLES:
        raise SettingsError(role, (Problem("The role", "is not known", f"Use one of: {', '.join(ROLES)}."),))
    source = read_source(environ, dotenv)
    values: dict[str, Any] = {row.attribute: _value(row, role, source) for row in SETTINGS}
    values["listen_host"], values["listen_port"] = values.pop("listen")
    settings = Settings(role=role, **values)
    settings = _with_base_url(settings, source)
    settings = _with_generated_keys(settings, source)
    _check_databases(settings, source)
    if source.problems:
        raise SettingsError(role, tuple(source.problems))
    return replace(settings, warnings=(*source.warnings, *unknown_names(source.values)))


def _value(setting: Setting, role: str, source: Source) -> Value:
    """The value for this role; a fault is noted in `source` and the default stands in, so that loading goes on."""
    default = parse(setting, setting.default) if setting.default else absent(setting)
    if role not in setting.roles:
        return default
    try:
        text = _text_of(setting, source.values)
        if text:
            return parse(setting, text)
        if role in setting.required:
            raise Invalid("is not set", _how_to_set(setting))
    except Invalid as fault:
        source.problems.append(Problem(setting.name, fault.what, fault.fix))
    return default


def _text_of(setting: Setting, values: Mapping[str, str]) -> str:
    """What the environment says, from the variable or from the file that NAME_FILE names; "" = nothing."""
    text, path = values.get(setting.name, "").strip(), values.get(f"{setting.name}_FILE", "").strip()
    if not path or not setting.secret:
        return text
    if text:
        raise Invalid(f"and {setting.name}_FILE are both set", "Keep one of them.")
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(_SECRET_FILE_LIMIT).decode("utf-8").strip()
    except (OSError, ValueError):
        raise Invalid(f"cannot be read from the file {path}", f"Correct {setting.name}_FILE or the file.") from None
    if not content:
        raise Invalid(f"is empty in the file {path}", "Write the value into the file.")
    return content


def _how_to_set(setting: Setting) -> str:
    meaning = setting.doc[0].lower() + setting.doc[1:].rstrip(".")
    example = f", for example {setting.example}" if setting.example else ""
    return f"It is the {meaning}{example}."


def _with_base_url(settings: Settings, source: Source) -> Settings:
    if settings.base_url:
        return settings
    host, port = settings.listen_host, settings.listen_port
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
        if settings.role in ("web", "control"):
            source.warnings.append(
                "MOSAIC_BASE_URL is not set while Mosaic listens on every address: links in comments will point to "
                f"http://{host}:{port}. Set it to the address that people use."
            )
    return replace(settings, base_url=f"http://{f'[{host}]' if ':' in host else host}:{port}")


def _with_generated_keys(settings: Settings, source: Source) -> Settings:
    for name in GENERATED:
        setting = BY_NAME[name]
        faulty = any(problem.name in (name, "MOSAIC_DATA_DIR") for problem in source.problems)
        if settings.role not in setting.roles or getattr(settings, setting.attribute) or faulty:
            continue
        if name == "MOSAIC_OPENCLAW_TOKEN" and not _engine_is_local(settings):
            if settings.role != "cli":
                fix = "Set it to the token of the gateway that MOSAIC_OPENCLAW_URL names."
                source.problems.append(Problem(name, "is not set, and the gateway is on another machine", fix))
            continue
        try:
            settings = replace(settings, **{setting.attribute: _generated(setting, settings)})
        except (OSError, Invalid) as fault:
            fix = f"Set it, or put right the directory {settings.data_dir / 'keys'}."
            source.problems.append(Problem(name, f"is not set and could not be made: {fault}", fix))
    return settings


def _engine_is_local(settings: Settings) -> bool:
    return is_loopback(urlsplit(settings.openclaw_url).hostname or "")


def _generated(setting: Setting, settings: Settings) -> Any:
    """The key that Mosaic made; a command line only reads it, since it may run far from the server."""
    path = key_path(settings.data_dir, setting.name)
    if settings.role == "cli" and not path.exists():
        return absent(setting)
    if settings.role != "cli":
        ensure_generated(settings.data_dir, (setting.name,))
    return parse(setting, read_key(path))


def _check_databases(settings: Settings, source: Source) -> None:
    if settings.role != "migrate" or bool(settings.database_url) == bool(settings.database_owner_url):
        return
    name, other = "MOSAIC_DATABASE_OWNER_URL", "MOSAIC_DATABASE_URL"
    if settings.database_owner_url:
        name, other = other, name
    if not any(problem.name == name for problem in source.problems):
        fix = "Migrations need both: the owner changes the tables, and the runtime role is granted its rights."
        source.problems.append(Problem(name, f"is not set although {other} is", fix))


# ---------------------------------------------------------------- what leaves this module


def environment_for(role: str, source: Mapping[str, str]) -> dict[str, str]:
    """The environment to start a process of that role with: PATH, LANG, TZ, HOME and the settings of the role only.

    A process started so has no foreign secret in /proc/self/environ. Secrets given by file stay file names.
    """
    rows = [row for row in SETTINGS if role in row.roles]
    allowed = {*INHERITED, *(row.name for row in rows), *(f"{row.name}_FILE" for row in rows if row.secret)}
    return {name: value for name, value in source.items() if name in allowed}


def foreign_secrets(role: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The names of secrets in `environ` that this role must not hold: start it again with `environment_for`."""
    rows = [row for row in SETTINGS if row.secret and role not in row.roles]
    names = (name for row in rows for name in (row.name, f"{row.name}_FILE"))
    return tuple(name for name in names if environ.get(name))


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Every secret value this process holds, longest first, for the redactor; passwords within URLs also alone.

    A database password of less than 6 characters is left to its URL: replacing it everywhere would garble all text.
    """
    found: set[str] = set()
    for setting in SETTINGS:
        if setting.secret:
            found.update(_texts(getattr(settings, setting.attribute)))
    for url in (settings.database_url, settings.database_owner_url):
        password = urlsplit(url or "").password or ""
        found.update(text for text in (password, unquote(password)) if len(text) >= 6)
    return tuple(sorted(found - {""}, key=lambda text: (-len(text), text)))


def _texts(value: Value) -> tuple[str, ...]:
    if isinstance(value, tuple):
        return tuple(text for part in value for text in _texts(part))
    if isinstance(value, bytes):
        return (value.decode(),)
    return (value,) if isinstance(value, str) else ()
