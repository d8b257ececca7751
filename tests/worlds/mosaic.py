"""Mosaic itself, as its users run it: `mosaic serve` with all its real processes, on free ports."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.rows import dict_row

from app.clients.openclaw import ready as engine_ready
from app.postgres import Cluster
from app.processes import bound_to_us
from tests.worlds.openclaw import free_port

# The brakes against runaway nights are open: tests ask for more than any person would.
OPEN_LIMITS = """[defaults.limits]
per_user_hour = 10000
per_issue_day = 10000
per_repository_hour = 100000
per_repository_day = 1000000
failures_in_a_row = 10000

[ceilings.limits]
per_user_hour = 10000
per_issue_day = 10000
per_repository_hour = 100000
per_repository_day = 1000000
failures_in_a_row = 10000
"""
ROOT = Path(__file__).resolve().parent.parent.parent
START_LIMIT = 120.0
T = TypeVar("T")


class Mosaic:
    """`Mosaic(data, forge_url, bot_token, ...).start()`; then `.url`, `.sql()`, `.job()`, `.kill("control")`."""

    def __init__(
        self,
        data: Path,
        forge_url: str,
        bot_token: str,
        *,
        model_url: str = "",
        authz_token: str = "",
        config: str = 'repositories = ["*/*"]\n',
        secret: str = "",
        port: int = 0,
        max_agents: int = 2,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.root = ROOT  # where the code is that runs
        self.data, self.port, self.engine_port = data, port or free_port(), free_port()
        self.secret = secret or secrets.token_hex(24)
        self.url = f"http://127.0.0.1:{self.port}"
        data.mkdir(parents=True, exist_ok=True)
        self.config = data / "server.toml"
        self.config.write_text(config)
        self.log_path = data / "mosaic.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.model_url = model_url
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "MOSAIC_DATA_DIR": str(data / "var"),
            "MOSAIC_LISTEN": f"127.0.0.1:{self.port}",
            "MOSAIC_GITEA_URL": forge_url,
            "MOSAIC_GITEA_TOKEN": bot_token,
            "MOSAIC_GITEA_WEBHOOK_SECRET": self.secret,
            "MOSAIC_CONFIG": str(self.config),
            "MOSAIC_OPENCLAW_URL": f"ws://127.0.0.1:{self.engine_port}/",
            "MOSAIC_WORKERS": "2",
            "MOSAIC_MAX_AGENTS": str(max_agents),
        }
        if authz_token:
            self.env["MOSAIC_GITEA_AUTHZ_TOKEN"] = authz_token
        if model_url:
            self.env |= {
                "MOSAIC_MODEL_API": "openai-completions",
                "MOSAIC_MODEL_BASE_URL": f"{model_url}/v1",
                "MOSAIC_MODEL_API_KEY": "scripted-model-key",
                "MOSAIC_MODEL_ID": "scripted",
                "MOSAIC_MODEL_CONTEXT_WINDOW": "128000",
                "MOSAIC_MODEL_COST_INPUT": "1.0",
                "MOSAIC_MODEL_COST_OUTPUT": "2.0",
            }
        self.env |= dict(extra or {})

    @property
    def host(self) -> str:
        """The name of this data directory among several on one database; "" before its first start."""
        file = self.data / "var" / "host"
        return file.read_text().strip() if file.exists() else ""

    # ------------------------------------------------------------ life

    def start(self, say: Callable[[str], None] = lambda _: None) -> Mosaic:
        log = self.log_path.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve"],
            cwd=self.root,
            env=self.env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=bound_to_us(signal.SIGTERM),  # a killed test or demo leaves nothing running
        )
        log.close()
        self.until(self._web_answers, "the web process", START_LIMIT)
        say("database and web are up")
        self.until(self._consumers_ready, "the consumers", START_LIMIT)
        say("the consumers are up")
        if self.model_url:
            self.until(lambda: engine_ready(self.env["MOSAIC_OPENCLAW_URL"]), "the engine", START_LIMIT)
            say("the engine is up")
        return self

    def _web_answers(self) -> bool:
        with (
            suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer,
        ):
            return int(answer.status) == 200
        return False

    def _consumers_ready(self) -> bool:
        mine = self.sql("select distinct pool from workers where ended_at is null and host = %s", self.host)
        pools = {row["pool"] for row in mine}
        return pools >= {"control", "agents", "gates"} and bool(self.sql("select 1 as yes from users where is_self"))

    def stop(self) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        self.process = None

    def __enter__(self) -> Mosaic:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def pid(self, role: str) -> int:
        """The process of a role: the child of the supervisor that runs it."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            with suppress(OSError):
                words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
                line = " ".join(words)
                if words[-2:-1] == [role] or (role == "engine" and "openclaw" in line):
                    return int(child)
                if role == "web" and "app.web:create_app()" in line:
                    return int(child)
        raise LookupError(f"no process of role {role} runs")

    def kill(self, role: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid(role), number)

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    # ------------------------------------------------------------ looking

    def until(self, look: Callable[[], T | None], what: str, timeout: float = 60.0) -> T:
        """Look again and again until there is something; fails with the end of the log."""
        end = time.monotonic() + timeout
        while not (found := look()):
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"mosaic ended while waiting for {what}:\n{self.tail()}")
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout:g} s for {what}:\n{self.tail()}")
            time.sleep(0.03)
        return found

    def sql(self, statement: str, *params: Any) -> list[dict[str, Any]]:
        """Rows as the runtime role sees them; [] while the database is away."""
        try:
            url = self.env.get("MOSAIC_DATABASE_URL") or Cluster(self.data / "var").app_url
            with psycopg.connect(url, row_factory=dict_row, connect_timeout=5) as connection:
                return connection.execute(statement, params).fetchall()  # type: ignore[arg-type]
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable, OSError):
            return []

    def job(self, repository: str, number: int | None = None) -> dict[str, Any] | None:
        """The newest job of a repository, or of one of its issues."""
        rows = self.sql(
            "select * from runner_jobs where repository = %s and (%s::int is null or number = %s) "
            "order by id desc limit 1",
            repository,
            number,
            number,
        )
        return rows[0] if rows else None

    def ended(self, repository: str, number: int | None = None, timeout: float = 90.0) -> dict[str, Any]:
        """The newest job of an issue once it has ended."""

        def look() -> dict[str, Any] | None:
            job = self.job(repository, number)
            return job if job and job["finished_at"] else None

        return self.until(look, f"the end of the job of {repository}#{number}", timeout)

    def steps(self, job_id: int) -> list[dict[str, Any]]:
        return self.sql("select * from job_steps where job_id = %s order by ord, name, round, attempt", job_id)

    def events(self, job_id: int) -> list[dict[str, Any]]:
        rows = self.sql("select * from job_events where job_id = %s order by seq", job_id)
        return [{**row, "data": json.loads(row["data"])} for row in rows]
