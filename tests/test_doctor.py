"""mosaic doctor against a practice Gitea, a database that is there or not, and tokens that are wrong in many ways."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import doctor
from app.checks import Check
from app.clients import gitea_insight
from app.clients.gitea_insight import NEEDED
from app.types import MosaicError
from tests.test_cli import ROOT, environment
from tests.worlds.forge import Forge
from tests.worlds.gitea import PracticeGitea
from tests.worlds.openclaw import free_port

SECRET = "a-webhook-secret-of-the-tests"


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    token = secrets.token_hex(20)
    practice = PracticeGitea(tmp_path_factory.mktemp("gitea"), token).start()
    yield Forge(practice.url, token, control=True)
    practice.stop()


def run(path: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    more = {f"MOSAIC_{name}": value for name, value in settings.items()}
    more.setdefault("MOSAIC_OPENCLAW_URL", f"ws://127.0.0.1:{free_port()}")
    return subprocess.run(
        [sys.executable, "-m", "app", "doctor", *words],
        cwd=ROOT,
        env=environment(path, **more),
        capture_output=True,
        text=True,
        timeout=120,
    )


def report(ran: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(ran.stdout)}


def test_a_machine_without_anything_is_told_everything_at_once(tmp_path: Path) -> None:
    ran = run(tmp_path)
    assert ran.returncode == 1 and ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert [line for line in lines if line.startswith("fail  settings")] and "→" in lines[1]
    assert [line for line in lines if line.startswith("fail  gitea")]
    found = report(run(tmp_path, "--json"))
    assert all(check["next"] for check in found.values() if check["state"] != "ok")


def test_gitea_and_the_token_are_looked_at_and_no_secret_is_shown(forge: Forge, tmp_path: Path) -> None:
    bot = forge.make_user("mosaic")
    ran = run(tmp_path, "--json", GITEA_URL=forge.url, GITEA_TOKEN=bot.token, GITEA_WEBHOOK_SECRET=SECRET)
    found = report(ran)
    assert {name: found[name]["state"] for name in ("settings", "gitea", "clock", "token")} == {
        "settings": "ok",
        "gitea": "ok",
        "clock": "ok",
        "token": "ok",
    }
    assert bot.login in found["token"]["said"] and "version" in found["gitea"]["said"]
    assert found["database"]["state"] == "fail" and ran.returncode == 1
    assert bot.token not in ran.stdout + ran.stderr and SECRET not in ran.stdout + ran.stderr


@pytest.mark.parametrize("lacking", NEEDED)
def test_a_missing_scope_is_named(forge: Forge, lacking: str) -> None:
    kind, _, group = lacking.partition(":")
    held = [scope for scope in NEEDED if scope != lacking] + ([f"read:{group}"] if kind == "write" else [])
    bot = forge.make_user(f"lacks-{kind}-{group}", scopes=held)
    assert gitea_insight.bearer(forge.url, bot.token, None).missing == (lacking,)


def test_asking_for_scopes_changes_nothing(forge: Forge) -> None:
    bot = forge.make_user("quiet")
    repo = forge.make_repo(bot.login, "calc", {"a": "b"})
    assert gitea_insight.bearer(forge.url, bot.token, None).missing == ()
    assert forge.pages(f"/repos/{repo}/issues") is not None and list(forge.pages(f"/repos/{repo}/issues")) == []


def test_a_token_that_is_refused_is_a_failure(forge: Forge) -> None:
    with pytest.raises(MosaicError):
        gitea_insight.bearer(forge.url, "0" * 40, None)


def test_a_gitea_that_is_away_is_a_failure_with_an_action(tmp_path: Path) -> None:
    settings = {"GITEA_TOKEN": "0" * 40, "GITEA_WEBHOOK_SECRET": SECRET}
    found = report(run(tmp_path, "--json", GITEA_URL=f"http://127.0.0.1:{free_port()}", **settings))
    assert found["gitea"]["state"] == "fail" and "MOSAIC_GITEA_URL" in found["gitea"]["next"]


def test_clocks_that_differ_are_told() -> None:
    assert doctor._clock(3.0).state == "ok"
    behind = doctor._clock(-90.0)
    assert behind.state == "warn" and "90 s behind ours" in behind.said
    assert doctor._clock(None).state == "warn"


def test_a_check_that_breaks_off_does_not_end_the_others() -> None:
    def broken() -> list[Check]:
        raise ZeroDivisionError("oops")

    [check] = doctor._tried("some", broken)
    assert check.state == "fail" and "oops" in check.said
