"""Every setting of the environment, one row each: name, kind, default, who may hold it, and what it means.

This table is the only list of settings: loading, the filtered environment of each process and the documents all
follow it. A secret is held only by the roles of its row.
"""

from __future__ import annotations

from dataclasses import dataclass

ROLES: tuple[str, ...] = ("web", "control", "agents", "gates", "engine", "stream", "migrate", "cli")

EVERY = frozenset(ROLES)
WEB = frozenset({"web", "cli"})
CONTROL = frozenset({"control", "cli"})
ENGINE = frozenset({"engine", "cli"})
CLI = frozenset({"cli"})
DATABASE = EVERY - {"engine"}
SIGNING = frozenset({"web", "control", "stream", "cli"})
FORGE = frozenset({"web", "control", "stream", "cli"})
GATEWAY = frozenset({"agents", "engine", "cli"})
MODEL = EVERY - {"gates", "migrate"}
SERVED = EVERY - {"migrate"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One row. `bounds` limit a number's value or a text's length; `required` = roles that cannot start without it.

    `default` is written as it would be in the environment; "" = not set. `later` marks a setting whose feature comes
    with a later part: it is checked now and has no effect yet.
    """

    name: str
    kind: str
    default: str
    secret: bool
    roles: frozenset[str]
    doc: str
    field: str = ""
    required: frozenset[str] = frozenset()
    choices: tuple[str, ...] = ()
    bounds: tuple[float, float] = (0, float("inf"))
    example: str = ""
    later: bool = False

    @property
    def attribute(self) -> str:
        """The field of `Settings` that holds the value."""
        return self.field or self.name.removeprefix("MOSAIC_").lower()


_MODEL_APIS = ("openai-completions", "openai-responses", "anthropic-messages", "google-generative-ai", "ollama")
_LEVELS = ("debug", "info", "warning", "error")

SETTINGS: tuple[Setting, ...] = (
    Setting("MOSAIC_LISTEN", "listen", "127.0.0.1:8080", False, EVERY, "Address and port the web process listens on."),
    Setting("MOSAIC_BASE_URL", "url", "", False, EVERY,
            "Address under which people and Gitea reach Mosaic. Not set: made from `MOSAIC_LISTEN`.",
            example="https://mosaic.example.org"),
    Setting("MOSAIC_DATABASE_URL", "database", "", True, DATABASE,
            "PostgreSQL 15 to 18, as the runtime role. Not set: `mosaic serve` runs its own server.",
            example="postgresql://mosaic:PASSWORD@db.example.org/mosaic"),
    Setting("MOSAIC_DATABASE_OWNER_URL", "database", "", True, frozenset({"migrate", "cli"}),
            "The same database as the role that owns the tables; only migrations use it.",
            example="postgresql://mosaic_owner:PASSWORD@db.example.org/mosaic"),
    Setting("MOSAIC_DATA_DIR", "directory", "var", False, EVERY,
            "Directory for mirrors, worktrees, logs, generated keys and the own database server."),
    Setting("MOSAIC_SECRET_KEY", "secret", "", True, SIGNING,
            "Signs markers and sessions. Not set: made once and kept under `keys/` in the data directory.",
            bounds=(32, 4096)),
    Setting("MOSAIC_CONFIG", "file", "", False, SERVED,
            "TOML file with the served repositories, defaults and ceilings. Not set: no repository is served.",
            field="config_path", example="/etc/mosaic/config.toml"),
    Setting("MOSAIC_GITEA_URL", "url", "", False, FORGE,
            "Address of the Gitea or Forgejo server.",
            required=frozenset({"web", "control"}), example="https://git.example.org"),
    Setting("MOSAIC_GITEA_TOKEN", "token", "", True, CONTROL,
            "Access token of the bot's account.",
            required=frozenset({"control"}), example="the token shown once under Settings, Applications"),
    Setting("MOSAIC_GITEA_WEBHOOK_SECRET", "rotating", "", True, WEB,
            "Secret of the webhook, at least 16 characters; two values with a comma between them while rotating.",
            field="webhook_secrets", required=frozenset({"web"}), bounds=(16, 1024),
            example="the output of `openssl rand -hex 32`"),
    Setting("MOSAIC_GITEA_PUSH_TOKEN", "token", "", True, CONTROL,
            "Separate token for pushes. Not set: `MOSAIC_GITEA_TOKEN` pushes."),
    Setting("MOSAIC_GITEA_AUTHZ_TOKEN", "token", "", True, CONTROL,
            "Token of a repository administrator with `read:repository`, used only to ask for a person's permission."),
    Setting("MOSAIC_GITEA_OAUTH_CLIENT_ID", "text", "", False, WEB | {"stream"},
            "Client id for signing in with Gitea.",
            field="oauth_client_id", later=True),
    Setting("MOSAIC_GITEA_OAUTH_CLIENT_SECRET", "token", "", True, WEB,
            "Client secret for signing in with Gitea.",
            field="oauth_client_secret", later=True),
    Setting("MOSAIC_ENGINE", "choice", "gateway", False, GATEWAY,
            "How OpenClaw is driven; `exec` comes with a later part.",
            choices=("gateway", "exec")),
    Setting("MOSAIC_OPENCLAW_URL", "websocket", "ws://127.0.0.1:18789", False, GATEWAY | WEB,
            "WebSocket address of the OpenClaw gateway."),
    Setting("MOSAIC_OPENCLAW_TOKEN", "token", "", True, GATEWAY,
            "Token of the gateway. Not set and the gateway is on this machine: made once and kept under `keys/` in "
            "the data directory.",
            bounds=(16, 1024)),
    Setting("MOSAIC_MODEL_API", "choice", "openai-completions", False, MODEL,
            "Wire format of the model's server.",
            choices=_MODEL_APIS),
    Setting("MOSAIC_MODEL_BASE_URL", "url", "", False, MODEL,
            "Base address of the model's server.",
            required=frozenset({"engine"}), example="https://models.example.org/v1"),
    Setting("MOSAIC_MODEL_API_KEY", "token", "", True, ENGINE, "Key of the model's server, where it wants one."),
    Setting("MOSAIC_MODEL_ID", "text", "", False, MODEL,
            "Name of the model that the agent uses.",
            required=frozenset({"engine"}), example="name-of-the-model"),
    Setting("MOSAIC_MODEL_CONTEXT_WINDOW", "integer", "128000", False, MODEL,
            "Tokens that fit into the model's context window.",
            bounds=(4_000, 100_000_000)),
    Setting("MOSAIC_MODEL_COST_INPUT", "number", "0", False, MODEL,
            "US dollars per million input tokens; 0 = the cost limits see no cost.",
            bounds=(0, 100_000)),
    Setting("MOSAIC_MODEL_COST_OUTPUT", "number", "0", False, MODEL,
            "US dollars per million output tokens.",
            bounds=(0, 100_000)),
    Setting("MOSAIC_WORKERS", "integer", "4", False, EVERY,
            "Steps that this machine's control and gates consumers each run at once.",
            bounds=(1, 256)),
    Setting("MOSAIC_MAX_AGENTS", "integer", "2", False, EVERY,
            "Agents that work at the same time on this machine.",
            bounds=(1, 256)),
    Setting("MOSAIC_CA_BUNDLE", "file", "", False, EVERY,
            "PEM file with the certificate authorities to trust instead of the usual ones.",
            example="/etc/ssl/certs/company.pem"),
    Setting("MOSAIC_TRUSTED_PROXIES", "networks", "", False, WEB | {"stream"},
            "Addresses or networks of the reverse proxies whose `X-Forwarded-*` headers count, with commas between "
            "them.",
            example="127.0.0.1,10.0.0.0/8"),
    Setting("MOSAIC_LOG_LEVEL", "choice", "info", False, EVERY,
            "Least important log line that is written.",
            choices=_LEVELS),
    Setting("MOSAIC_LOG_FORMAT", "choice", "text", False, EVERY,
            "Shape of the log lines.",
            choices=("text", "json")),
    Setting("MOSAIC_METRICS_FROM", "networks", "", False, WEB,
            "Addresses or networks that may read `/metrics` and the details of `/readyz`, besides this machine.",
            example="10.0.0.5,10.1.0.0/24"),
    Setting("MOSAIC_KEEP_DAYS", "integer", "90", False, CONTROL | {"agents"},
            "Days that step output, webhook bodies, saved work, caches and mirrors are kept after their last use.",
            bounds=(1, 36_500)),
    Setting("MOSAIC_ANCHOR_KEY", "secret", "", True, CONTROL,
            "Signs the anchors of the audit chain; the same on every host of one database. Not set: made once and kept "
            "under `keys/` in the data directory.",
            bounds=(32, 4096)),
    Setting("MOSAIC_STREAM_LIMIT", "integer", "100", False, WEB | {"stream"},
            "Live connections that one web process holds open.",
            bounds=(0, 100_000), later=True),
    Setting("MOSAIC_STREAM_URL", "url", "", False, WEB | {"stream"},
            "Address of the separate stream process. Not set: streams come from the base address.",
            later=True),
    Setting("MOSAIC_SLACK_SIGNING_SECRET", "secret", "", True, WEB,
            "Verifies what Slack sends.",
            bounds=(16, 1024), later=True),
    Setting("MOSAIC_SLACK_BOT_TOKEN", "token", "", True, CONTROL,
            "Sends to Slack.",
            later=True),
    Setting("MOSAIC_SLACK_API_BASE", "url", "https://slack.com/api", False, CONTROL,
            "Base address of Slack's API.",
            later=True),
    Setting("MOSAIC_DISCORD_PUBLIC_KEY", "key", "", False, WEB,
            "Verifies what Discord sends: 64 hexadecimal digits.",
            later=True),
    Setting("MOSAIC_DISCORD_APPLICATION_ID", "text", "", False, WEB | CONTROL,
            "Id of the Discord application.",
            later=True),
    Setting("MOSAIC_DISCORD_BOT_TOKEN", "token", "", True, CONTROL,
            "Sends to Discord.",
            later=True),
    Setting("MOSAIC_DISCORD_API_BASE", "url", "https://discord.com/api/v10", False, CONTROL,
            "Base address of Discord's API.",
            later=True),
    Setting("MOSAIC_MATTERMOST_URL", "url", "", False, WEB | CONTROL,
            "Address of the Mattermost server.",
            later=True),
    Setting("MOSAIC_MATTERMOST_TOKEN", "token", "", True, CONTROL,
            "Sends to Mattermost.",
            later=True),
    Setting("MOSAIC_MATTERMOST_COMMAND_TOKENS", "tokens", "", True, WEB,
            "Tokens of the slash commands, with commas between them.",
            bounds=(16, 1024), later=True),
    Setting("MOSAIC_URL", "url", "", False, CLI,
            "Address of a remote Mosaic for the command line.",
            field="server_url", later=True),
    Setting("MOSAIC_API_KEY", "token", "", True, CLI,
            "Key for that remote Mosaic.",
            later=True),
)  # fmt: skip

BY_NAME = {setting.name: setting for setting in SETTINGS}
