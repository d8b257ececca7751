"""Gitea is away for some seconds while jobs are under way: nothing breaks, it is left alone, and all arrives once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from app.ledger.breaker import THRESHOLD
from tests.worlds.mosaic import ROOT
from tests.worlds.town import Story, Town

pytestmark = [pytest.mark.e2e, pytest.mark.practice]
JOBS = 6
EVERYTHING = {"method": ".*", "path": ".*", "kind": "status", "times": 1_000_000, "status": 503}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """A town without an engine: its jobs come as far as the agent's step and wait there."""
    with Town(tmp_path_factory.mktemp("quiet"), engine=False) as running:
        yield running


def command(town: Town, *words: str) -> subprocess.CompletedProcess[str]:
    """`mosaic …` as the operator of this town types it."""
    return subprocess.run(
        [sys.executable, "-m", "app", *words], cwd=ROOT, env=town.mosaic.env, capture_output=True, text=True, timeout=60
    )


def state(town: Town) -> tuple[str, int]:
    """Of the breaker: its state and how many probes have failed."""
    rows = town.mosaic.sql("select state, probes from circuit_breakers")
    return (rows[0]["state"], rows[0]["probes"]) if rows else ("closed", 0)


def asked(town: Town) -> Counter[str]:
    """How often each path of the API and of git was asked for since the practice forge started."""
    return Counter(row["path"] for row in town.forge.knob("requests"))


def at_rest(town: Town) -> bool:
    busy = "select 1 from job_steps where status = 'running' and pool = 'control' union all "
    return not town.mosaic.sql(f"{busy} select 1 from effects where lease_until is not null")


def test_an_outage_delays_news_and_breaks_no_job(quiet: Town) -> None:
    mosaic, forge, story = quiet.mosaic, quiet.forge, quiet.story()
    numbers = [story.issue(title=f"task {n}") for n in range(JOBS)]
    asks = {number: story.say(number, quiet.mention("fix this"))["id"] for number in numbers}
    jobs = mosaic.until(lambda: rows if len(rows := story.jobs()) == JOBS else None, "the jobs")
    forge.knob("fault", **EVERYTHING)
    try:
        for job in jobs[:THRESHOLD]:
            assert command(quiet, "cancel", str(job["id"])).returncode == 0
        mosaic.until(lambda: state(quiet)[0] != "closed", "the breaker to open")
        mosaic.until(lambda: at_rest(quiet), "what is under way to rest")
        before = asked(quiet)
        mosaic.until(lambda: state(quiet)[1] >= 3, "three probes to fail")
        assert set(asked(quiet) - before) <= {"/api/v1/user"}  # the probes, and nothing else
        shown = command(quiet, "effects").stdout
        assert "forge   left alone since" in shown and "(server_error)" in shown
    finally:
        forge.knob("clear_faults")
    mosaic.until(lambda: state(quiet)[0] == "closed", "the breaker to close")
    assert command(quiet, "cancel", str(jobs[-1]["id"])).returncode == 0
    ended = [story.nth(number, 1) for number in numbers]
    assert {job["reason"] for job in ended} == {"cancelled_by_user"}
    story.settled()
    for number in numbers:
        once(story, number, asks[number])
    assert mosaic.sql("select key, error from effects where state = 'failed'") == []
    assert command(quiet, "effects").stdout.endswith("nothing waits, nothing is dead\n")


def once(story: Story, number: int, request: int) -> None:
    """One sign on the request, one closing comment, at most one status comment, and it shows the end."""
    bot = story.town.bot.login
    assert story.town.forge.reactions(story.repo, number, request) == [(bot, "eyes")]
    said = story.said(number)
    closing = [text for text in said if text.startswith("@")]
    assert len(closing) == 1 and len(said) <= 2, said
