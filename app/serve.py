"""All processes of one host: `mosaic serve` runs them under one supervisor, `mosaic run ROLE` becomes one of them.

Every process is started with the environment of its role only, so that no secret stands where it is not needed.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import psycopg

from app import engine, logs, schema
from app.clients.openclaw import ready as engine_ready
from app.edge import database_url
from app.paths import Paths
from app.postgres import Cluster
from app.processes import Child, Supervisor
from app.settings import (
    Problem,
    Settings,
    SettingsError,
    environment_for,
    foreign_secrets,
    load,
    settings_source,
)
from app.settings_keys import ensure_generated
from app.types import MosaicError, Pool

DOTENV = Path(".env")
ROOT = Path(__file__).resolve().parent.parent
LEFTOVER_SECONDS = 3.0  # a web worker of a Mosaic that was killed may listen for so long
log = logging.getLogger("mosaic.serve")


def source() -> dict[str, str]:
    """The environment with what `.env` adds to it."""
    return settings_source(os.environ, DOTENV)


def run_role(role: str) -> int:
    """Become the process of a role. Starts itself again first when the environment holds secrets of other roles."""
    everything = source()
    if foreign_secrets(role, os.environ):
        os.execve(sys.executable, [sys.executable, "-m", "app", "run", role], child_environment(role, everything))
    settings = load(role, os.environ, dotenv=DOTENV)
    logs.configure(settings)
    for warning in settings.warnings:
        log.warning("%s", warning)
    if role == "web":
        _become_web(settings)
    if role == "engine":
        engine.run(engine_settings(settings))
    from jobs.tasks import consume

    consume(settings, Pool(role))
    return 0


def child_environment(role: str, everything: Mapping[str, str]) -> dict[str, str]:
    kept = environment_for(role, everything)
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def _become_web(settings: Settings) -> NoReturn:
    """gunicorn with many threads: a silent connection holds one for 5 s. The pool bounds the database."""
    bind = f"[{settings.listen_host}]" if ":" in settings.listen_host else settings.listen_host
    os.execv(
        sys.executable,
        [
            sys.executable,
            "-m",
            "gunicorn",
            "-k",
            "gthread",
            "-w",
            "2",
            "--threads",
            "32",
            "--no-control-socket",
            "--graceful-timeout",
            "10",
            "--access-logfile",
            "/dev/null",
            "--logger-class",
            "app.gunicorn_log.Lines",
            "-b",
            f"{bind}:{settings.listen_port}",
            "--chdir",
            str(Path.cwd()),
            "--pythonpath",
            str(ROOT),
            "app.web:create_app()",
        ],
    )


def engine_settings(settings: Settings) -> engine.EngineSettings:
    """The gateway's settings: it listens where MOSAIC_OPENCLAW_URL points."""
    paths = Paths(settings.data_dir)
    return engine.EngineSettings(
        port=urlsplit(settings.openclaw_url).port or 18790,
        token=settings.openclaw_token,
        workspace=paths.worktrees,
        state_dir=paths.engine_state,
        model_api=settings.model_api,
        model_base_url=settings.model_base_url,
        model_api_key=settings.model_api_key,
        model_id=settings.model_id,
        context_window=settings.model_context_window,
        cost_input=settings.model_cost_input,
        cost_output=settings.model_cost_output,
        ca_bundle=settings.ca_bundle,
    )


@contextmanager
def database(settings: Settings) -> Iterator[tuple[str, str, Cluster | None]]:
    """(owner URL, runtime URL, the embedded cluster) for single commands; runs the embedded server if nobody does."""
    if settings.database_url:
        yield settings.database_owner_url or settings.database_url, settings.database_url, None
        return
    with Cluster(settings.data_dir).opened() as cluster:
        yield cluster.owner_url, cluster.app_url, cluster


def migrate() -> list[str]:
    """`mosaic migrate`: bring the database up to date."""
    settings = load("migrate", os.environ, dotenv=DOTENV)
    with database(settings) as (owner, app, _):
        return schema.migrate(owner, app)


def serve() -> int:
    """`mosaic serve`: everything on this host, until SIGTERM or Ctrl-C."""
    everything = source()
    settings = load("cli", os.environ, dotenv=DOTENV)
    logs.configure(settings)
    require_settings(everything)
    require_free(settings.listen_host, settings.listen_port)
    ensure_generated(settings.data_dir)
    engine_first, others = engine_child(everything), children(everything)
    if everything.get("MOSAIC_DATABASE_URL") or everything.get("MOSAIC_DATABASE_URL_FILE"):
        migrate()
        return Supervisor([*engine_first, *others], shape=shape_of(settings)).run()
    with Cluster(settings.data_dir).supervised() as server:
        cluster = Cluster(settings.data_dir)
        first = replace(server, after=_migrated(cluster, server.after))
        return Supervisor([*engine_first, first, *others], shape=shape_of(settings)).run()


def shape_of(settings: Settings) -> Callable[[bytes, bytes], bytes] | None:
    """How the supervisor passes on a child's line: None = behind the child's name; JSON lines name it themselves."""
    return logs.enveloped if settings.log_format == "json" else None


def require_settings(everything: Mapping[str, str]) -> None:
    """Raise SettingsError with what any process here would complain of, before one of them is started.

    Each role is loaded from its own environment, as it will be; nothing of it is kept.
    """
    problems: dict[str, Problem] = {}
    for role in ("web", "control", "gates", "agents", *(["engine"] if has_model(everything) else [])):
        try:
            load(role, child_environment(role, everything))
        except SettingsError as error:
            problems |= {str(problem): problem for problem in error.problems}
    if problems:
        raise SettingsError("serve", tuple(problems.values()))


def require_free(host: str, port: int) -> None:
    """Raise before anything is started when the web process could not listen: it would try again and again unseen."""
    end = time.monotonic() + LEFTOVER_SECONDS
    while (error := _bound(host, port)) is not None:
        if error.errno != errno.EADDRINUSE or time.monotonic() > end:
            raise MosaicError(
                f"Mosaic cannot listen on {host}:{port}: {error.strerror}. Is it running already? Otherwise set "
                "MOSAIC_LISTEN to another address.",
                code="address_unusable",
            ) from None
        time.sleep(0.1)


def _bound(host: str, port: int) -> OSError | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _migrated(cluster: Cluster, running: Callable[[], bool] | None) -> Callable[[], bool]:
    """Ready = the server answers and its schema is up to date."""
    done = False

    def check() -> bool:
        nonlocal done
        if not done and (running is None or running()):
            schema.migrate(cluster.owner_url, cluster.app_url)
            done = True
        return done

    return check


def children(everything: Mapping[str, str]) -> list[Child]:
    """The processes of this host besides database and engine."""
    return [_child(role, everything) for role in ("web", "control", "gates", "agents")]


def engine_child(everything: Mapping[str, str]) -> list[Child]:
    """The gateway, if a model is configured here. It takes longest to start, so it is started first."""
    if has_model(everything):
        return [replace(_child("engine", everything), stop_timeout=10.0)]
    log.warning("No model is configured (MOSAIC_MODEL_BASE_URL, MOSAIC_MODEL_ID): the engine is not started here.")
    return []


def has_model(everything: Mapping[str, str]) -> bool:
    """Whether a model is configured here, and so the gateway runs here."""
    return bool(everything.get("MOSAIC_MODEL_BASE_URL") or everything.get("MOSAIC_MODEL_ID"))


def _child(role: str, everything: Mapping[str, str]) -> Child:
    return Child(role, [sys.executable, "-m", "app", "run", role], env=child_environment(role, everything))


def wait_for_engine(url: str) -> bool:
    return engine_ready(url)


def reachable(url: str) -> bool:
    """Whether the database answers."""
    try:
        with psycopg.connect(url, connect_timeout=3):
            return True
    except psycopg.Error:
        return False


__all__ = ["MosaicError", "database", "database_url", "migrate", "run_role", "serve"]
