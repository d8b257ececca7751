"""`mosaic doctor`: everything that must hold, looked at from outside the processes, one line each.

One rule: it changes nothing, and a check that breaks off is a failed check, never the end of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urlsplit

from app import checks, queries, sandbox_probe, serve
from app.checks import FAIL, OK, WARN, Check
from app.clients import gitea_insight
from app.clients.openclaw import PINNED_VERSION, OpenClaw
from app.edge import connected, database_url, open_database
from app.queries import of_operations
from app.rules import ServerConfig
from app.settings import Settings, SettingsError
from app.settings_values import is_loopback
from app.types import MosaicError, Permanent

log = logging.getLogger("mosaic.doctor")
SKEW = 30.0  # seconds: beyond this the moments in comments and the signatures' times mislead
OLDEST_GITEA = (1, 22)
QUIET_HOURS = 24.0


def examine(settings: Settings) -> Iterator[Check]:
    """Every check, in the order in which a newcomer should mend them."""
    yield from _tried("settings", lambda: [_settings()])
    yield from _tried("repositories", lambda: [_repositories(settings)])
    yield from _tried("disk", lambda: [checks.disk(settings.data_dir)])
    yield from _tried("database", lambda: _database(settings))
    yield from _tried("gitea", lambda: _gitea(settings))
    yield from _tried("model", lambda: [_model(settings)])
    yield from _tried("engine", lambda: [_engine(settings)])
    yield from _tried("sandbox", lambda: [_sandbox()])


def _tried(name: str, look: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    try:
        yield from look()
    except MosaicError as error:
        yield Check(name, FAIL, str(error), "Do that, then run `mosaic doctor` again.")
    except Exception as error:
        log.debug("the check %s broke off", name, exc_info=True)
        yield Check(
            name, FAIL, f"The check broke off: {type(error).__name__}: {error}", "Mend that, then run it again."
        )


# ---------------------------------------------------------------- this machine


def _settings() -> Check:
    """Each role is loaded from its own environment, as `mosaic serve` would."""
    try:
        serve.require_settings(serve.source())
    except SettingsError as error:
        return Check(
            "settings",
            FAIL,
            " ".join(map(str, error.problems)),
            "Correct them where the service has them; docs/settings.md.",
        )
    return Check("settings", OK, "All processes of `mosaic serve` could start.")


def _repositories(settings: Settings) -> Check:
    served = ServerConfig.load(settings.config_path).repositories
    if served:
        return Check("repositories", OK, f"Served: {', '.join(served[:5])}{' …' if len(served) > 5 else ''}")
    action = 'Name a file in MOSAIC_CONFIG with `repositories = ["owner/*"]`.'
    return Check("repositories", WARN, "No repository is served.", action)


def _model(settings: Settings) -> Check:
    if not (settings.model_base_url and settings.model_id):
        action = "Set MOSAIC_MODEL_BASE_URL and MOSAIC_MODEL_ID, unless the engine runs on another machine."
        return Check("model", WARN, "No model is configured.", action)
    said = f"{settings.model_id} at {settings.model_base_url} ({settings.model_api})."
    if not (settings.model_cost_input or settings.model_cost_output):
        return Check("model", WARN, f"{said} Its prices are 0.", "Set MOSAIC_MODEL_COST_*, or cost limits see no cost.")
    return Check("model", OK, said)


def _engine(settings: Settings) -> Check:
    found = checks.engine(settings)
    if found.state != OK or not settings.openclaw_token:
        return found
    health = OpenClaw(settings.openclaw_url, settings.openclaw_token).health()
    if not health.ok:
        return Check("engine", FAIL, health.detail, "Check MOSAIC_OPENCLAW_TOKEN on both sides.")
    if health.version != PINNED_VERSION:
        action = f"Run OpenClaw {PINNED_VERSION}: `npm ci --ignore-scripts` in Mosaic's directory."
        return Check("engine", FAIL, f"The gateway is OpenClaw {health.version}.", action)
    return Check("engine", OK, f"The gateway is ready, OpenClaw {health.version}.")


def _sandbox() -> Check:
    probe = sandbox_probe.probe()
    if probe.ok:
        return Check("sandbox", OK, f"bubblewrap {probe.version} holds against all attempts to break out.")
    action = "Install bubblewrap and allow it user namespaces (docs/operations.md, “Install”)."
    return Check("sandbox", FAIL, "; ".join(probe.failures), action)


# ---------------------------------------------------------------- the database and what it knows


def _database(settings: Settings) -> Iterator[Check]:
    url = database_url(settings)
    if not serve.reachable(url):
        action = "Start Mosaic (`systemctl start mosaic`), or check MOSAIC_DATABASE_URL and the server's log."
        yield Check("database", FAIL, "The database does not answer.", action)
        return
    open_database(url, "doctor")
    with connected():
        yield checks.writable()
        found = checks.migrations()
        yield found
        if found.state != OK:
            return
        yield from checks.consumers()
        yield checks.transactions()
        yield from _breakers()
        yield _dead()
        yield _webhook(settings)


def _breakers() -> Iterator[Check]:
    for row in of_operations.breakers():
        if row["state"] != "closed":
            said = f"Nothing is sent to the {row['service']} for {row['age'] / 60:.0f} minutes: {row['code']}."
            yield Check("breaker", WARN, said, "It closes by itself when the other side answers; see `gitea` below.")
            return
    yield Check("breaker", OK, "Closed: Gitea is being asked.")


def _dead() -> Check:
    count = of_operations.dead_effects()
    if count == 0:
        return Check("effects", OK, "No write to the outside was given up.")
    return Check("effects", WARN, f"{count} were given up.", "`mosaic effects` lists them and how to replay them.")


def _webhook(settings: Settings) -> Check:
    """Gitea does not tell a bot about its webhooks: what can be seen here is whether they come."""
    found = queries.now(), of_operations.last_delivery()
    hint = (
        f"Gitea: Settings, Webhooks, {settings.base_url}/webhooks/gitea, “Test delivery”. Refused there: its app.ini "
        f"needs `[webhook] ALLOWED_HOST_LIST = {urlsplit(settings.base_url).hostname}`."
    )
    if found[1] is None:
        return Check("webhook", WARN, "No webhook has come yet.", hint)
    ago = float(found[1]["ago"])
    said = f"The last one came {_long(ago)} ago."
    return Check("webhook", OK, said) if ago < QUIET_HOURS * 3600 else Check("webhook", WARN, said, hint)


def _long(seconds: float) -> str:
    return f"{seconds / 3600:.0f} hours" if seconds >= 7200 else f"{seconds / 60:.0f} minutes"


# ---------------------------------------------------------------- Gitea


def _gitea(settings: Settings) -> Iterator[Check]:
    if not settings.gitea_url:
        yield Check("gitea", FAIL, "MOSAIC_GITEA_URL is not set.", "Set it to the address of your Gitea.")
        return
    bundle = str(settings.ca_bundle) if settings.ca_bundle else None
    try:
        server = gitea_insight.server(settings.gitea_url, bundle)
    except Permanent as error:
        yield Check("gitea", FAIL, str(error), "See that Gitea runs and that MOSAIC_GITEA_URL is right.")
        return
    yield _version(settings, server.version)
    yield _clock(server.ahead)
    yield _token(settings, bundle)


def _version(settings: Settings, version: str) -> Check:
    said = f"{settings.gitea_url} answers, version {version}."
    numbers = tuple(int(part) if part.isdigit() else 0 for part in version.split("+")[0].split(".")[:2])
    if numbers < OLDEST_GITEA and "gitea" not in version:
        return Check("gitea", WARN, said, f"Mosaic is tried with {'.'.join(map(str, OLDEST_GITEA))} and newer.")
    if is_loopback(urlsplit(settings.base_url).hostname or "") and not is_loopback(
        urlsplit(settings.gitea_url).hostname or ""
    ):
        action = "Set MOSAIC_BASE_URL to the address under which people and Gitea reach Mosaic."
        return Check("gitea", WARN, f"{said} Links in comments point to {settings.base_url}.", action)
    return Check("gitea", OK, said)


def _clock(ahead: float | None) -> Check:
    if ahead is None:
        return Check("clock", WARN, "Gitea does not tell the time.", "Let its proxy pass on the Date header.")
    if abs(ahead) <= SKEW:
        return Check("clock", OK, "Gitea's clock and ours agree.")
    said = f"Gitea's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} ours."
    return Check("clock", WARN, said, "Let both machines set their clocks by NTP.")


def _token(settings: Settings, bundle: str | None) -> Check:
    if not settings.gitea_token:
        return Check("token", FAIL, "MOSAIC_GITEA_TOKEN is not set.", "Make one for the bot's account (README).")
    try:
        bearer = gitea_insight.bearer(settings.gitea_url, settings.gitea_token, bundle)
    except MosaicError as error:
        return Check("token", FAIL, str(error), "Make a new token for the bot's account (README).")
    if bearer.missing:
        action = "Make a new token for the bot's account with all scopes that the README names."
        return Check("token", FAIL, f"It lacks {', '.join(bearer.missing)}.", action)
    if bearer.is_admin:
        action = "Use an ordinary account: whoever gets this token owns the Gitea."
        return Check("token", WARN, f"{bearer.login} is an administrator of Gitea.", action)
    return Check("token", OK, f"It belongs to {bearer.login} and has the scopes it needs.")
