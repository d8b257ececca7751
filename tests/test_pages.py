"""The status pages over real HTTP, on a real PostgreSQL, with jobs that the stitcher and the ledger made.

Whatever a stranger wrote is shown as text; whoever is not on this machine sees nothing.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psycopg
import pytest
from werkzeug.test import Client, TestResponse

from app import edge, models, page_job, page_views, queries, schema, stitcher, waiting
from app.ledger import chain, effects, jobs, steps, workers
from app.ledger.chain import entry, transaction
from app.postgres import Cluster
from app.types import (
    REASONS,
    Done,
    Failed,
    GateResult,
    GateSpec,
    HandBack,
    Job,
    JobStatus,
    Phase,
    Result,
    Step,
    StepStatus,
    StepType,
    Trigger,
    Usage,
)
from app.worker import Worker

LOCAL = "http://127.0.0.1:8080"
FORGE = "https://git.example.org/forge"
TREE = "4f1c" * 10
BASE = "9a0b" * 10
GATES = (
    GateSpec("lint", "lint", "ruff check .", order=10),
    GateSpec("test", "test", "python -m pytest -q", order=20),
    GateSpec("coverage", "coverage", "coverage report", required=False, order=20, min=85.0),
)
HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</pre></details><script src=//evil.example></script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "<!-- -->]]><svg onload=alert(1)>",
    "' autofocus onfocus=alert(1) x='",
)
HIDDEN = "\x1b[31mred\x1b[0m \x1b]0;title\x07\u202eevil\u202c\u200b\u2066x\u2069\x00\x08"


# ---------------------------------------------------------------- a web process


@contextmanager
def web_process(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch, *, bound: bool = False
) -> Iterator[Client]:
    """A client of this process as a fresh web process. `bound` = the models know the database already."""
    from app.web import create_app

    for name, value in {
        "DATA_DIR": str(data_dir),
        "DATABASE_URL": database_url,
        "GITEA_URL": FORGE,
        "GITEA_WEBHOOK_SECRET": "a secret of the tests",
        "LISTEN": "127.0.0.1:8080",
    }.items():
        monkeypatch.setenv(f"MOSAIC_{name}", value)
    edge.settings.cache_clear()
    monkeypatch.setattr(edge, "_started", bound)
    try:
        yield create_app().test_client()
    finally:
        edge.settings.cache_clear()


@pytest.fixture
def http(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with web_process(database, tmp_path, monkeypatch, bound=True) as client:
        yield client


def get(http: Client, path: str, **more: Any) -> TestResponse:
    return http.get(path, base_url=more.pop("base_url", LOCAL), **more)


def text(http: Client, path: str, **more: Any) -> str:
    answer = get(http, path, **more)
    assert answer.status_code == 200, answer.text
    return answer.text


# ---------------------------------------------------------------- jobs made by the real stitcher


class Story:
    """Plays the consumers: claims ready steps and records results, through the ledger and the stitcher."""

    def __init__(self) -> None:
        self.worker = workers.register("story", socket.gethostname(), os.getpid(), "control", 4, "test")
        for pool in ("agents", "gates"):
            workers.register(f"story-{pool}", socket.gethostname(), os.getpid(), pool, 4, "test")
        self.object_id = 1000

    def submit(
        self,
        title: str = "Login fails after a password reset",
        text: str = "@mosaic fix this",
        number: int | None = 42,
        repository: str = "acme/shop",
        repository_id: int = 7,
        actor: str = "alice",
        instructions: str = "fix this",
        priority: int = 0,
        is_pull: bool = False,
    ) -> int:
        self.object_id += 1
        trigger = Trigger(
            kind="comment",
            repository_id=repository_id,
            repository=repository,
            number=number,
            is_pull=is_pull,
            object_id=self.object_id,
            actor_id=11,
            actor=actor,
            text=text,
            text_sha256="ab" * 32,
            issue_title=title,
            issue_body=text,
            issue_author="bob",
        )
        with transaction():
            job_id = stitcher.submit(
                trigger, trigger_key=f"test:{self.object_id}", instructions=instructions, priority=priority
            )
        assert job_id is not None
        return job_id

    def claim(self, job_id: int, name: str) -> dict[str, Any]:
        pending = [step for step in queries.steps(job_id) if step.name == name and step.status is StepStatus.PENDING]
        row = steps.claim(pending[-1].id, self.worker, "host-1")
        assert row is not None, f"{name} is not ready"
        return row

    def do(self, job_id: int, name: str, result: Result | None = None, log: str = "") -> None:
        row = self.claim(job_id, name)
        if log:
            steps.log(row["id"], log)
        assert stitcher.record(row, result or Done())

    def admit(self, job_id: int, gates: tuple[GateSpec, ...] = GATES, **facts: Any) -> None:
        limits = {"minutes": 60, "rounds": 3, "attempts": 2, "tokens": 2_000_000, "cost_usd": 5.0, "concurrent": 1}
        self.do(
            job_id,
            "runner.admit",
            Done(
                facts={
                    "branch": f"mosaic/issue-{job_id}",
                    "base_sha": BASE,
                    "default_branch": "main",
                    "gates": [asdict(gate) for gate in gates],
                    "rules": {"limits": limits},
                    **facts,
                }
            ),
        )

    def prepare(self, job_id: int) -> None:
        self.do(job_id, "runner.snapshot")
        self.do(job_id, "runner.checkout", Done({"fence": 3}))
        self.do(job_id, "runner.setup", log="$ pip install -e .\nSuccessfully installed shop-1.4\n")

    def implement(self, job_id: int, calls: int = 14, total: int = 31_400, cost: float = 0.42) -> None:
        row = self.claim(job_id, "weaver.implement")
        steps.event(row, "ai.tool_called", tool="edit", path="shop/session.py", ok=True, note="")
        steps.tokens(row, Usage(input=total - 400, output=400, total=total, cost_usd=cost), Usage())
        assert stitcher.record(row, Done({"text": "Done.", "tool_calls": calls}))
        self.do(job_id, "runner.commit", Done({"tree": TREE, "commit": "c0ffee" * 6 + "abcd"}))
        self.do(job_id, "inspector.policy")

    def gate(self, job_id: int, name: str, passed: bool, output: str = "", why: str = "", **more: Any) -> None:
        spec = next(gate for gate in queries.gates(job_id) if gate.name == name)
        receipt = GateResult(
            name,
            spec.type,
            spec.command,
            spec.required,
            passed,
            0 if passed else 1,
            3.21,
            why or ("It ended with exit code 0." if passed else "It ended with exit code 1."),
            output,
            tree_sha=TREE,
            **more,
        )
        kept = {"receipt": asdict(receipt), "required": spec.required, "passed": passed, "why": receipt.why}
        result = Done(kept) if passed else Failed("gate_red", receipt.why, output=kept)
        self.do(job_id, f"inspector.gate.{name}", result, log=f"$ {spec.command}\n{output}")

    def publish(self, job_id: int, number: int = 57) -> None:
        with transaction():
            key, target = f"job:{job_id}:push", {"repository_id": 7, "branch": "mosaic/issue-42", "sha": "c0ffee" * 6}
            effects.plan_once(key, "push", target, job_id=job_id)
        effect = effects.claim(queries.effect(key)["id"], self.worker)  # type: ignore[index]
        assert effect and effects.done(effect, "mosaic/issue-42", {"sha": "c0ffee" * 6})
        self.do(
            job_id, "herald.publish", Done(facts={"pull_request": number, "head_sha": "c0ffee" * 6}, conclude="done")
        )

    def close(self, job_id: int) -> None:
        self.do(job_id, "herald.report")
        self.do(job_id, "runner.cleanup")

    def whole(self, **more: Any) -> int:
        """A job that needed two rounds."""
        job_id = self.submit(**more)
        self.admit(job_id)
        self.prepare(job_id)
        self.implement(job_id)
        self.gate(job_id, "lint", True, "All checks passed!")
        self.gate(
            job_id, "test", False, "E  assert 302 == 200\n2 failed, 38 passed", counts={"tests": 40, "failures": 2}
        )
        self.gate(job_id, "coverage", False, "TOTAL 81%", why="Coverage is 81.0 %, below 85 %.", coverage=81.0)
        self.implement(job_id, calls=5, total=9_000, cost=0.11)
        for name in ("lint", "test", "coverage"):
            self.gate(job_id, name, True, "ok", counts={"tests": 40} if name == "test" else {})
        self.publish(job_id)
        self.close(job_id)
        return job_id

    def working(self, **more: Any) -> int:
        """A job whose agent is at work."""
        job_id = self.submit(**more)
        self.admit(job_id)
        self.prepare(job_id)
        row = self.claim(job_id, "weaver.implement")
        steps.progress(row, {"calls": 7, "tool": "edit", "path": "shop/session.py", "tokens": 18_250})
        return job_id


@pytest.fixture
def story(database: str) -> Story:
    return Story()


# ---------------------------------------------------------------- reading a page


class Page(HTMLParser):
    """What a browser would make of a page: its elements and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        self.elements.append(("!--", {"data": data}))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    def links(self) -> list[str]:
        return [attrs.get("href") or "" for tag, attrs in self.elements if tag == "a"]

    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.elements if "id" in attrs]


def attribute(page: Page, id: str, name: str) -> str | None:
    return next(attrs.get(name) for _, attrs in page.elements if attrs.get("id") == id)


def of_group(html: str, key: str) -> str:
    """The text of one list of the first page."""
    found = re.search(rf'<section id="group-{key}".*?</section>', html, re.DOTALL)
    return Page(found[0]).text if found else ""


# ---------------------------------------------------------------- the list of jobs


def test_an_empty_mosaic_says_what_to_do(http: Client) -> None:
    page = Page(text(http, "/"))
    assert "No job yet" in page.text
    assert "@mosaic fix this" in page.text
    assert "group-" not in " ".join(page.ids())


def test_jobs_stand_in_their_groups(http: Client, story: Story) -> None:
    done = story.whole()
    running = story.working(title="Prices are rounded twice")
    first = story.submit(title="Add a dark theme", number=60, actor="bob")
    story.admit(first)
    second = story.submit(title="Update the changelog", number=61, actor="carol")
    story.admit(second)
    pending = story.submit(title="A typo", number=62)
    asking = story.submit(title="Rename the table", number=63, repository="acme/core", repository_id=8)
    story.admit(asking)
    with entry(asking) as job:
        jobs.move(job, JobStatus.WAITING)

    html = text(http, "/")
    assert re.findall(r'id="group-(\w+)"', html) == ["ask", "run", "queue", "recent"]
    assert "Rename the table" in of_group(html, "ask")
    assert "Waits for a person" in of_group(html, "ask")
    run = of_group(html, "run")
    assert "Prices are rounded twice acme/shop#42 · asked by alice".replace(" · ", " ") in run
    assert "The agent is at work" in run
    queue = of_group(html, "queue")
    assert queue.index("Add a dark theme") < queue.index("position 1") < queue.index("Update the changelog")
    assert f"Job {running} runs" in queue
    assert queue.index("position 2") < queue.index("A typo") < queue.index("Received")
    recent = of_group(html, "recent")
    assert "Login fails after a password reset" in recent
    assert "pull request #57" in recent
    assert "Done" in recent
    links = Page(html).links()
    assert {f"/jobs/{each}" for each in (done, running, first, second, pending, asking)} <= set(links)
    assert f"{FORGE}/acme/shop/pulls/57" in links


def test_a_queued_job_names_the_one_before_it(http: Client, story: Story) -> None:
    running = story.working()
    low, high = story.submit(title="Low", number=2), story.submit(title="High", number=3, priority=5)
    for each in (low, high):
        story.admit(each)
    with entry(running) as job:
        jobs.conclude(job, "done")  # it no longer holds the repository
    queue = of_group(text(http, "/"), "queue")
    assert queue.index("High") < queue.index("Queued, position 1") < queue.index("Starts in a moment")
    assert queue.index("Low") < queue.index(f"Job {high} comes first")


def test_a_job_that_stopped_shows_its_reason(http: Client, story: Story) -> None:
    job_id = story.submit()
    story.do(job_id, "runner.admit", Failed("config_invalid", ".mosaic.toml, line 12: a gate needs a command"))
    story.close(job_id)
    recent = of_group(text(http, "/"), "recent")
    assert "Stopped config_invalid" in recent
    page = Page(text(http, f"/jobs/{job_id}"))
    assert "The repository's .mosaic.toml is not valid." in page.text
    assert "Correct the line that is named on the default branch, then @mosaic retry ." in page.text
    assert "line 12: a gate needs a command" in page.text


def test_the_bot_is_called_by_its_own_name(http: Client, story: Story) -> None:
    jobs.remember_self(99, "robo")
    assert "@robo fix this" in Page(text(http, "/")).text
    job_id = story.submit()
    story.do(job_id, "runner.admit", Failed("config_invalid", "line 1"))
    assert "@robo retry" in Page(text(http, f"/jobs/{job_id}")).text


def test_more_jobs_than_fit_are_counted(http: Client, story: Story) -> None:
    with transaction():
        models.execute(
            "insert into runner_jobs (pipeline, status, repository_id, repository, requester, requester_id, trigger, "
            "trigger_key) select 'implement', 'queued', n, 'acme/r' || n, 'gitea:a', 1, j.trigger, 'many:' || n "
            "from generate_series(1, 130) n, runner_jobs j where j.id = %s",
            story.submit(),
        )
    queue = of_group(text(http, "/"), "queue")
    assert queue.startswith("Queued 131")
    assert queue.count("Queued, position 1 ") == 100, "each is the first of its repository"
    assert queue.endswith("and 30 more")


# ---------------------------------------------------------------- the page of a job


def test_a_finished_job_shows_everything(http: Client, story: Story) -> None:
    job_id = story.whole()
    html = text(http, f"/jobs/{job_id}")
    page = Page(html)
    assert "All gates are green and the pull request is open." in page.text
    assert {f"{FORGE}/acme/shop/pulls/57", f"{FORGE}/acme/shop/issues/42", f"{FORGE}/acme/shop"} <= set(page.links())
    assert "13 of 13 steps" in page.text
    assert "40k of 2.0M" in page.text  # tokens
    assert "$0.53 of $5.00" in page.text
    assert "Tool calls 19" in page.text
    assert "Round 2 of 3" in page.text
    assert re.findall(r'class="section-title">([^<]*)', html) == ["Preparation", "Round 1", "Round 2", "Delivery"]
    assert f"/jobs/{job_id}/steps/runner.setup%401.1/log" in page.links()
    assert "Branch pushed mosaic/issue-42 at c0ffeec0ff" in page.text


def test_gates_stand_with_their_receipts(http: Client, story: Story) -> None:
    job_id = story.whole()
    html = text(http, f"/jobs/{job_id}")
    gates = Page(re.search(r'<section id="gates".*?</section>', html, re.DOTALL)[0])  # type: ignore[index]
    assert gates.text.startswith("Quality gates Round 2 all 3 green")
    assert "Round 1 2 of 3 red: test, coverage" in gates.text
    assert "python -m pytest -q" in gates.text
    assert "exit code 1 3.2s 2 of 40 tests failed" in gates.text
    assert "coverage 81.0 % not required" in gates.text
    assert "E assert 302 == 200 2 failed, 38 passed" in gates.text
    assert f"tree {TREE[:12]}" in gates.text
    assert f"/jobs/{job_id}/steps/inspector.gate.test%401.1/log" in gates.links()
    outputs = [attrs for tag, attrs in gates.elements if tag == "details" and str(attrs["id"]).startswith("output-")]
    assert len(outputs) == 6
    assert re.findall(r'class="receipt (\w+)"', html) == ["ok", "ok", "ok", "ok", "bad", "ask"]
    assert not any("open" in attrs for attrs in outputs)


def test_the_chain_head_and_the_last_events_are_shown(http: Client, story: Story) -> None:
    job_id = story.whole()
    seq, head = queries.chain_head(job_id)
    events = Page(re.search(r'<section id="events".*', text(http, f"/jobs/{job_id}"), re.DOTALL)[0])  # type: ignore[index]
    last = models.fetch_one("select hash, seq from job_events where job_id = %s order by seq desc limit 1", job_id)
    assert last == {"hash": head, "seq": seq}
    assert f"Newest hash {head}" in events.text
    assert f"{seq} " in events.text
    assert "job.completed" in events.text
    assert "git.pushed" not in events.text
    assert "job.created" in events.text
    row = story.working(repository_id=70, repository="acme/long")
    step = next(step for step in queries.step_rows(row) if step["name"] == "weaver.implement")
    for number in range(80):
        steps.event(step, "ai.tool_called", tool="read", path=f"file-{number}", ok=True)
    events = Page(re.search(r'<section id="events".*', text(http, f"/jobs/{row}"), re.DOTALL)[0])  # type: ignore[index]
    total, _ = queries.chain_head(row)
    assert "file-79" in events.text
    assert "job.created" not in events.text
    assert f"The first {total - 60} are not shown." in events.text


def test_a_working_agent_is_shown_live(http: Client, story: Story) -> None:
    job_id = story.working()
    page = Page(text(http, f"/jobs/{job_id}"))
    assert "Working The agent is at work" in page.text
    assert "edit shop/session.py 7 tool calls 18k tokens last activity" in page.text
    assert "4 of 13 steps" in page.text
    assert "Time limit at" in page.text
    with chain.entry(job_id):
        models.execute(
            "update job_steps set lease_until = clock_timestamp() where job_id = %s and status = 'running'", job_id
        )
    stitcher.sweep()
    page = Page(text(http, f"/jobs/{job_id}"))
    assert "1 worker lost" in page.text
    assert (
        "edit shop/session.py"
        not in Page(re.search(r'id="steps".*?</section>', text(http, f"/jobs/{job_id}"), re.DOTALL)[0]).text
    )  # type: ignore[index]


def test_a_step_that_was_handed_back_says_when_it_is_tried_again(http: Client, story: Story) -> None:
    job_id = story.submit()
    story.admit(job_id)
    story.prepare(job_id)
    story.do(job_id, "weaver.implement", HandBack("engine_unavailable", "The engine closed the connection.", 3000.0))
    page = Page(text(http, f"/jobs/{job_id}"))
    assert re.search(r"Working The agent engine or its model does not answer: try 2 in (50m 00s|49m 5\ds)", page.text)
    assert "handed back 1 time" in page.text
    assert "The engine closed the connection." in page.text


def test_what_the_agent_saw_and_what_not(http: Client, story: Story) -> None:
    job_id = story.working()
    jobs.store_snapshot(
        job_id,
        "5a" * 32,
        {
            "issue_title": "A title",
            "issue_body": "A body",
            "issue_author": "bob",
            "agents_md": "Keep it small.",
            "comments": [{"author": "carol", "body": "It is the cookie", "at": "2026-11-20T10:12:00+00:00"}],
            "excluded": [
                {"what": "comment 9 by mallory", "why": "its author may not give Mosaic work", "sha256": "cd" * 32}
            ],
            "hashes": {"issue": "12" * 32, "comment-8": "34" * 32},
        },
    )
    page = Page(text(http, f"/jobs/{job_id}"))
    for words in (
        "A title A body",
        "carol",
        "It is the cookie",
        "Keep it small.",
        "12" * 32,
        "34" * 32,
        "5a" * 32,
        "comment 9 by mallory because its author may not give Mosaic work",
        "1 comment",
    ):
        assert words in page.text


def test_effects_that_fail_say_why(http: Client, story: Story) -> None:
    job_id = story.submit()
    waiting = effects.claim(queries.effects(job_id)[0]["id"], story.worker)
    assert waiting
    effects.postpone(waiting, 30, "Gitea answered 502", "server_error")
    html = text(http, f"/jobs/{job_id}")
    assert "Reaction (eyes) in #42 planned Gitea answered 502" in Page(html).text
    models.execute("update effects set next_at = clock_timestamp() where job_id = %s", job_id)
    again = effects.claim(waiting["id"], story.worker)
    assert again
    effects.fail(again, "Gitea answered 403", "forge_forbidden")
    page = Page(text(http, f"/jobs/{job_id}"))
    assert "in #42 failed, attempt 2 Gitea answered 403" in page.text


def test_a_retry_points_back(http: Client, story: Story) -> None:
    old = story.whole()
    job = queries.job(old)
    assert job
    new = stitcher.retry(job, actor="gitea:alice", actor_id=11, login="alice", key="1")
    page = Page(text(http, f"/jobs/{new}"))
    assert f"again after job {old}" in page.text
    assert f"/jobs/{old}" in page.links()


# ---------------------------------------------------------------- refreshing


def live(http: Client, job_id: int) -> Page:
    return Page(text(http, f"/jobs/{job_id}/live"))


def test_the_live_part_is_the_part_of_the_page_that_changes(http: Client, story: Story) -> None:
    job_id = story.working()
    whole, part = Page(text(http, f"/jobs/{job_id}")), live(http, job_id)
    assert part.elements[0][1]["id"] == "live"
    assert attribute(part, "live", "data-source") == f"/jobs/{job_id}/live"
    assert [each for each in whole.ids() if each not in part.ids()] == ["connection"]
    assert len(part.ids()) == len(set(part.ids()))
    assert not [tag for tag, _ in part.elements if tag in ("html", "head", "script", "link")]


def test_refreshing_ends_with_the_job(http: Client, story: Story) -> None:
    job_id = story.working()
    assert attribute(live(http, job_id), "live", "data-refresh") == "1500"
    done = story.whole(repository="acme/other", repository_id=8)
    assert attribute(live(http, done), "live", "data-refresh") == "5000"  # comments are still to be written
    assert "/static/live.js" in text(http, f"/jobs/{done}")
    for effect in queries.effects(done):
        claimed = effects.claim(effect["id"], story.worker)
        if claimed:
            effects.done(claimed, "1")
    assert attribute(live(http, done), "live", "data-refresh") == "0"
    html = text(http, f"/jobs/{done}")
    assert "This job has ended; the page is complete." in html
    assert "live.js" not in html
    assert "http-equiv" not in html


def test_reading_needs_no_script(http: Client, story: Story) -> None:
    html = text(http, f"/jobs/{story.working()}")
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in html
    assert "The agent is at work" in Page(html).text


# ---------------------------------------------------------------- logs


def test_a_log_is_plain_text(http: Client, story: Story) -> None:
    job_id = story.whole()
    answer = get(http, f"/jobs/{job_id}/steps/inspector.gate.test@1.1/log")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.text == "$ python -m pytest -q\nE  assert 302 == 200\n2 failed, 38 passed"
    assert get(http, f"/jobs/{job_id}/steps/inspector.gate.test%402.1/log").text == "$ python -m pytest -q\nok"
    assert get(http, f"/jobs/{job_id}/steps/runner.admit@1.1/log").text == "This step has written nothing.\n"


ODD_STEPS = (
    "runner.setup",
    "runner.setup@1.2",
    "runner.setup@9.1",
    "runner.setup@01.1",
    "RUNNER.SETUP@1.1",
    "nothing@1.1",
    "@1.1",
    "%00",
    "runner.setup@1.1%00",
    "runner.setup@1.1%0A",
    "..%2Flog",
    "'%20or%201=1--",
    "x" * 3000,
    "%FF",
)


def test_an_unknown_step_has_no_log(http: Client, story: Story) -> None:
    job_id = story.working()
    assert get(http, f"/jobs/{job_id}/steps/runner.setup@1.1/log").status_code == 200
    for step in ODD_STEPS:
        assert get(http, f"/jobs/{job_id}/steps/{step}/log").status_code == 404, step
    assert get(http, f"/jobs/{job_id + 1}/steps/runner.setup@1.1/log").status_code == 404


# ---------------------------------------------------------------- what strangers write


def hostile_job(story: Story, words: str) -> int:
    """A job in which every text that anybody else writes holds `words`."""
    name = words.replace("\0", "")
    job_id = story.submit(title=words, text=words, instructions=words, actor=name, repository=f"acme/{name}")
    story.admit(job_id, branch=name, base_sha=name, default_branch=name, head_sha=name)
    story.prepare(job_id)
    row = story.claim(job_id, "weaver.implement")
    steps.event(row, "ai.tool_called", tool=words, path=words, ok=True, note=words, **{words: {"deep": [words]}})
    steps.progress(row, {"calls": 1, "tool": words, "path": words, "tokens": 5})
    assert stitcher.record(row, Done({"text": words, "tool_calls": 1}))
    story.do(job_id, "runner.commit", Done({"tree": TREE}))
    story.do(job_id, "inspector.policy", log=words)
    story.gate(job_id, "lint", False, words, why=words, counts={"tests": 3, "failures": 1})
    story.gate(job_id, "test", True, words, why=words)
    story.gate(job_id, "coverage", True, words)
    row = story.claim(job_id, "weaver.implement")
    steps.progress(row, {"calls": 1, "tool": words, "path": words, "tokens": 5})
    story_effect = effects.claim(queries.effects(job_id)[0]["id"], story.worker)
    assert story_effect
    effects.fail(story_effect, words, "forge_forbidden")
    jobs.store_snapshot(
        job_id,
        "5a" * 32,
        {
            "issue_title": words,
            "issue_body": words,
            "issue_author": words,
            "agents_md": words,
            "comments": [{"author": words, "body": words, "at": words}],
            "excluded": [{"what": words, "why": words, "sha256": words}],
            "hashes": {words: words},
        },
    )
    assert stitcher.record(row, Failed("agent_failed", words))
    return job_id


def assert_harmless(html: str) -> None:
    """No element, attribute or address that our own templates would not write."""
    page = Page(html)
    allowed = set(Page(text_of_templates()).tags())
    for tag, attrs in page.elements:
        assert tag in allowed, tag
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style"
            if name in ("href", "src"):
                assert re.match(rf"(/static/|/jobs/\d+|/$|#live$|{re.escape(FORGE)}/)", value or ""), value
    assert [attrs["src"] for tag, attrs in page.elements if tag == "script"] in ([], ["/static/live.js"])


def text_of_templates() -> str:
    return "".join(path.read_text() for path in sorted((Path(page_views.__file__).parent / "templates").glob("*.html")))


@pytest.mark.parametrize("words", HOSTILE)
def test_nothing_that_a_stranger_writes_becomes_markup(http: Client, story: Story, words: str) -> None:
    job_id = hostile_job(story, words)
    html = text(http, f"/jobs/{job_id}")
    assert_harmless(html)
    assert " ".join(words.split()) in Page(html).text
    for path in ("/", f"/jobs/{job_id}/live"):
        assert_harmless(text(http, path))
    log = get(http, f"/jobs/{job_id}/steps/inspector.policy@1.1/log")
    assert log.text == words
    assert log.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_nothing_hidden_reaches_a_reader(http: Client, story: Story) -> None:
    job_id = hostile_job(story, HIDDEN)
    for path in ("/", f"/jobs/{job_id}", f"/jobs/{job_id}/live", f"/jobs/{job_id}/steps/inspector.policy@1.1/log"):
        shown = text(http, path)
        assert "redevilx" in shown.replace(" ", "")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", shown)
        assert not re.search(r"(?<!u001b)\[31m", shown)  # nested data shows the code spelled out


def test_a_wrong_address_on_the_forge_is_quoted(http: Client, story: Story) -> None:
    job_id = story.submit(repository="acme/a b?c#d/../..", number=1)
    links = Page(text(http, f"/jobs/{job_id}")).links()
    assert f"{FORGE}/acme/a%20b%3Fc%23d/../../issues/1" in links


# ---------------------------------------------------------------- what is not there


def test_a_job_that_is_not_there(http: Client) -> None:
    for number in (0, 1, 999999, 2**31, 2**63 - 1, 2**63, 10**400):
        answer = get(http, f"/jobs/{number}")
        assert answer.status_code == 404
        assert f"There is no job {number}" in Page(answer.text).text
        assert get(http, f"/jobs/{number}/live").status_code == 404
        assert get(http, f"/jobs/{number}/steps/runner.setup@1.1/log").status_code == 404


def test_odd_ids_are_not_found(http: Client, story: Story) -> None:
    assert story.submit() == 1
    for path in ("/jobs/-1", "/jobs/abc", "/jobs/1.5", "/jobs/", "/jobs/%00", "/jobs/1/", "/jobs/1%00", "/jobs/0x1"):
        assert get(http, path).status_code == 404, path


def test_pages_only_answer_get(http: Client, story: Story) -> None:
    job_id = story.submit()
    for path in ("/", f"/jobs/{job_id}", f"/jobs/{job_id}/live", "/healthz", "/readyz"):
        assert http.post(path, base_url=LOCAL).status_code == 405


# ---------------------------------------------------------------- who may look

REMOTE = {"environ_overrides": {"REMOTE_ADDR": "192.0.2.7"}}
STRANGERS: dict[str, dict[str, Any]] = {
    "another machine": REMOTE,
    "another machine that claims to be local": {**REMOTE, "headers": {"X-Forwarded-For": "127.0.0.1"}},
    "an unknown address": {"environ_overrides": {"REMOTE_ADDR": ""}},
    "a proxy": {"headers": {"X-Forwarded-For": "192.0.2.7"}},
    "a proxy that says local": {"headers": {"X-Forwarded-For": "127.0.0.1"}},
    "a proxy with the standard header": {"headers": {"Forwarded": "for=192.0.2.7"}},
    "a proxy that names the host": {"headers": {"X-Forwarded-Host": "mosaic.example.org"}},
    "a proxy that names the scheme": {"headers": {"X-Forwarded-Proto": "https"}},
    "a proxy with a real ip": {"headers": {"X-Real-IP": "192.0.2.7"}},
    "a proxy that says so": {"headers": {"Via": "1.1 proxy"}},
    "an empty header": {"headers": {"X-Forwarded-For": ""}},
    "a proxy that keeps the host": {"base_url": "https://mosaic.example.org"},
    "a web site that points its name here": {"base_url": "http://rebound.example:8080"},
    "a name that looks local": {"base_url": "http://127.0.0.1.example.org:8080"},
    "a proxy that was told nothing": {"environ_overrides": {"SERVER_PROTOCOL": "HTTP/1.0"}},
}


def test_nobody_else_sees_that_there_are_pages(http: Client, story: Story) -> None:
    job_id = story.working()
    seen = set()
    for who, how in STRANGERS.items():
        for path in (
            "/",
            f"/jobs/{job_id}",
            f"/jobs/{job_id + 1}",
            f"/jobs/{job_id}/live",
            f"/jobs/{job_id}/steps/runner.setup@1.1/log",
        ):
            answer = get(http, path, **how)
            assert answer.status_code == 404, (who, path)
            seen.add(answer.data)
        assert get(http, "/healthz", **how).status_code == 200
        assert get(http, "/readyz", **how).status_code == 503
    assert len(seen) == 1  # nothing tells a job that is there from one that is not


def test_this_machine_sees_them(http: Client, story: Story) -> None:
    job_id = story.submit()
    for how in (
        {"base_url": "http://localhost:8080"},
        {"base_url": "http://127.0.0.2"},
        {"base_url": "http://[::1]:8080", "environ_overrides": {"REMOTE_ADDR": "::1"}},
        {"environ_overrides": {"REMOTE_ADDR": "127.9.9.9"}},
    ):
        assert get(http, f"/jobs/{job_id}", **how).status_code == 200, how


def test_an_odd_host_is_no_fault_of_ours(http: Client) -> None:
    for host in (
        "",
        "[",
        "[::1",
        "a b",
        "127.0.0.1:x",
        '"',
        "[::1]x",
        "127.0.0.1@evil.example",
        "evil.example#127.0.0.1",
    ):
        assert get(http, "/", headers={"Host": host}).status_code in (400, 404), host


# ---------------------------------------------------------------- headers and form


def test_every_answer_forbids_foreign_content(http: Client, story: Story) -> None:
    job_id = story.whole()
    for path in (
        "/",
        f"/jobs/{job_id}",
        "/jobs/77",
        f"/jobs/{job_id}/live",
        f"/jobs/{job_id}/steps/runner.setup@1.1/log",
    ):
        headers = get(http, path).headers
        rules = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
        assert rules["default-src"] == "'none'"
        assert {rules[each] for each in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
        assert {rules[each] for each in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_the_pages_ask_nobody_else(http: Client, story: Story) -> None:
    page = Page(text(http, f"/jobs/{story.working()}"))
    files = [attrs.get("src") or attrs.get("href") for tag, attrs in page.elements if tag in ("script", "link", "img")]
    assert files
    for file in files:
        assert file and file.startswith("/static/")
        answer = get(http, file)
        assert answer.status_code == 200
        body = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", body), file


def test_templates_trust_nobody() -> None:
    source = text_of_templates()
    assert not re.search(r"\|\s*safe|autoescape|\bstyle=|<style|\son[a-z]+=|<script(?! src=)", source)
    assert not re.search(r"=\{\{|='\{\{", source)  # every attribute stands in double quotes


def test_handlers_work_without_the_application(http: Client, story: Story) -> None:
    """As a single function of a serverless framework would call them."""
    from flask import Request
    from werkzeug.test import EnvironBuilder

    from handlers import pages

    def request(path: str) -> Request:
        return Request(EnvironBuilder(path, base_url=LOCAL, environ_base={"REMOTE_ADDR": "127.0.0.1"}).get_environ())

    job_id = story.working()
    for answer in (
        pages.index(request("/")),
        pages.job(request("/"), job_id=job_id),
        pages.live(request("/"), job_id=job_id),
    ):
        assert answer.status_code == 200  # type: ignore[union-attr]
        assert b"Login fails after a password reset" in answer.data  # type: ignore[union-attr]


# ---------------------------------------------------------------- probes


def lines(answer: TestResponse) -> dict[str, str]:
    """What the database tells; engine and disk are looked at in tests/test_health.py."""
    found: dict[str, str] = answer.json["checks"]  # type: ignore[index]
    return {name: state for name, state in found.items() if name not in ("engine", "disk")}


@contextmanager
def consumer(database: str, pool: str) -> Iterator[Worker]:
    worker = Worker(database, pool, 2)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def test_ready_needs_a_live_consumer_of_every_pool(database: str, http: Client) -> None:
    answer = get(http, "/readyz")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "5"
    assert lines(answer) == {"database": "ok", "migrations": "ok", "control": "fail", "agents": "fail", "gates": "fail"}
    assert answer.json["why"]["agents"] == "No live agents consumer."  # type: ignore[index]
    with consumer(database, "control"), consumer(database, "agents"), consumer(database, "gates") as gates:
        answer = get(http, "/readyz")
        assert (answer.status_code, answer.json["status"]) == (200, "ready")  # type: ignore[index]
        assert lines(answer) == dict.fromkeys(("database", "migrations", "control", "agents", "gates"), "ok")
        workers.drain(gates.id)
        assert lines(get(http, "/readyz"))["gates"] == "fail"


def test_a_consumer_that_died_is_not_counted(database: str, http: Client) -> None:
    """Its row still says that it lives: nobody swept. Its session is gone, and with it its lock."""
    with consumer(database, "control"):
        dead = workers.register("dead", "host", 1, "agents", 2, "test")
        assert queries.workers_alive("agents") == 2
        assert lines(get(http, "/readyz")) == {
            "database": "ok",
            "migrations": "ok",
            "control": "ok",
            "agents": "fail",
            "gates": "fail",
        }
        with psycopg.connect(database, autocommit=True) as session:
            session.execute("select pg_advisory_lock(%s, %s)", (workers.LOCK_CLASS, dead))
            assert lines(get(http, "/readyz"))["agents"] == "ok"


def test_a_database_without_tables_is_not_ready(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True) as admin:
        admin.execute("create database bare owner mosaic_owner")
    bare = cluster.url("mosaic_app", "bare")
    try:
        with web_process(bare, tmp_path, monkeypatch) as http:
            answer = get(http, "/readyz")
            assert answer.status_code == 503
            assert lines(answer) == {
                "database": "ok",
                "migrations": "fail",
                "control": "fail",
                "agents": "fail",
                "gates": "fail",
            }
            assert answer.json["why"]["migrations"].startswith("Not applied: 0001_spine")  # type: ignore[index]
            schema.migrate(cluster.url("mosaic_owner", "bare"), bare)
            assert lines(get(http, "/readyz"))["migrations"] == "ok"
    finally:
        models.db.close_all()
        with psycopg.connect(cluster.url("postgres", "postgres"), autocommit=True) as admin:
            admin.execute("drop database bare with (force)")


def test_alive_and_ready_while_the_database_goes_and_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Cluster(tmp_path)
    own.start()
    try:
        schema.migrate(own.owner_url, own.app_url)
        with web_process(own.app_url, tmp_path, monkeypatch) as http:
            assert lines(get(http, "/readyz"))["database"] == "ok"
            own.stop()
            answer = get(http, "/readyz")
            assert answer.status_code == 503
            assert set(lines(answer).values()) == {"fail"}
            assert answer.json["why"]["database"] == "The database does not answer."  # type: ignore[index]
            assert get(http, "/healthz").json == {"status": "ok"}
            page = get(http, "/")
            assert (page.status_code, page.json["error"]["code"]) == (503, "database_unavailable")  # type: ignore[index]
            assert get(http, "/jobs/1", **REMOTE).status_code == 404
            own.start()
            assert lines(get(http, "/readyz"))["database"] == "ok"
            assert get(http, "/").status_code == 200
    finally:
        models.db.close_all()
        own.stop()


# ---------------------------------------------------------------- colours


def colours(source: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", source))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for text on whatever it stands on."""
    css = (Path(page_views.__file__).parent / "static/mosaic.css").read_text()
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    found = {**colours(light), **(colours(dark) if scheme == "dark" else {})}
    pairs = [(text, ground) for text in ("text", "muted", "accent") for ground in ("ground", "surface", "sunken")]
    for tone in ("ok", "bad", "ask", "run", "off"):
        pairs += [(tone, "surface"), (tone, f"{tone}-soft"), ("text", f"{tone}-soft"), ("muted", f"{tone}-soft")]
        pairs += [("surface", tone)]  # the sign in a disc
    for front, back in pairs:
        assert contrast(found[front], found[back]) >= 4.5, (front, back, contrast(found[front], found[back]))


# ---------------------------------------------------------------- words and order, without a database

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TRIGGER = Trigger("comment", 7, "acme/shop", 42, False, 1, 11, "alice", "fix this", "ab" * 32)
JOB = Job(
    id=5, pipeline="implement", status=JobStatus.RUNNING, repository_id=7, repository="acme/shop", number=42,
    instructions="fix this", requester="gitea:alice", requester_id=11, trigger=TRIGGER, priority=0, access="write",
    reason=None, detail="", retry_of=None, branch=None, base_sha=None, default_branch=None, pull_request=None,
    head_sha=None, cancel_requested=False, created_at=NOON, started_at=None, finished_at=None, deadline_at=None,
    tokens=0, cost_usd=0.0,
)  # fmt: skip


def step_of(name: str, order: int, status: StepStatus, round: int = 1, attempt: int = 1, **more: Any) -> Step:
    phase = Phase.CLEANUP if name in ("herald.report", "runner.cleanup") else Phase.EXECUTION
    kind = StepType.GATE if name.startswith("inspector.gate.") else StepType.COMMAND
    return Step(order * 100 + round * 10 + attempt, 5, name, round, attempt, status, phase, kind, order, **more)


P, R, C, F = StepStatus.PENDING, StepStatus.RUNNING, StepStatus.COMPLETED, StepStatus.FAILED


@pytest.mark.parametrize(("steps", "words"), [
    ([], "Between two steps"),
    ([step_of("runner.setup", 40, R)], "Running the setup commands"),
    ([step_of("runner.setup", 40, C), step_of("weaver.implement", 50, R)], "The agent is at work"),
    ([step_of("weaver.implement", 50, P)], "Waiting for a free agent"),
    ([step_of("inspector.gate.test", 110, P)], "Waiting for a free place to run gates"),
    ([step_of("runner.setup", 40, P)], "Waiting for a free place to run gates"),
    ([step_of("inspector.gate.lint", 110, R), step_of("inspector.gate.test", 110, R)], "Running gates lint, test"),
    ([step_of("inspector.gate.lint", 110, C), step_of("inspector.gate.test", 110, R)], "Running gate test"),
    ([step_of("weaver.implement", 50, P, run_after=NOON + timedelta(seconds=30))],
     "Implementation is tried again in 30s"),
    ([step_of("weaver.implement", 50, P, run_after=NOON - timedelta(seconds=30))], "Waiting for a free agent"),
    ([step_of("weaver.implement", 50, F), step_of("weaver.implement", 50, R, attempt=2)], "The agent is at work"),
    ([step_of("weaver.implement", 50, C), step_of("herald.report", 910, P)], "Between two steps"),
])  # fmt: skip
def test_what_a_running_job_does(steps: list[Step], words: str) -> None:
    assert page_views.state(JOB, steps, NOON) == page_views.State("run", "Working", words)


@pytest.mark.parametrize("code", REASONS)
def test_every_outcome_has_its_tone(code: str) -> None:
    reason = REASONS[code]
    ended = page_views.state(replace(JOB, status=reason.status, reason=code), (), NOON)
    assert ended.tone == {"completed": "ok", "failed": "bad", "cancelled": "off"}[reason.status]
    assert ended.note == ""
    closing = page_views.state(replace(JOB, reason=code), [step_of("herald.report", 910, R)], NOON)
    assert (closing.tone, closing.words, closing.note) == (ended.tone, ended.words, "Reporting the result")


def test_states_without_an_outcome() -> None:
    def state(status: JobStatus, **more: Any) -> page_views.State:
        waits = waiting.queue("acme/shop", 3, [1], [1, 2])
        return page_views.state(replace(JOB, status=status, **more), (), NOON, waits=waits)

    assert state(JobStatus.QUEUED) == page_views.State("idle", "Queued, position 3", "Job 1 runs")
    assert state(JobStatus.PENDING).words == "Received"
    assert state(JobStatus.WAITING).tone == "ask"
    assert state(JobStatus.RUNNING, cancel_requested=True).words == "Stopping"


def test_progress_counts_the_newest_step_of_each_name() -> None:
    steps = [
        step_of("weaver.implement", 50, C),
        step_of("weaver.implement", 50, R, round=2),
        step_of("runner.setup", 40, C),
    ]
    assert page_views.bar(steps) == page_views.Bar(1, 2)


def test_the_timeline_reads_from_top_to_bottom() -> None:
    """A checkout that is made again belongs to the round that needs it."""
    steps = [
        step_of("runner.checkout", 30, C), step_of("runner.checkout", 30, C, round=2),
        step_of("weaver.implement", 50, C), step_of("weaver.implement", 50, F, round=2),
        step_of("weaver.implement", 50, R, round=2, attempt=2),
        step_of("inspector.gate.b", 110, F), step_of("inspector.gate.a", 110, C), step_of("runner.admit", 10, C),
        step_of("herald.publish", 900, P), step_of("runner.cleanup", 920, P),
    ]  # fmt: skip
    shown = [(part.title, [f"{view.label} {view.step.attempt}" for view in part.steps])
             for part in page_job.sections(steps, NOON)]  # fmt: skip
    assert shown == [
        ("Preparation", ["Request checked 1", "Worktree prepared 1"]),
        ("Round 1", ["Implementation 1", "Gate a 1", "Gate b 1"]),
        ("Round 2", ["Worktree prepared 1", "Implementation 1", "Implementation 2"]),
        ("Delivery", ["Pull request 1", "Cleanup 1"]),
    ]


def test_a_job_that_never_got_a_round_has_a_timeline() -> None:
    parts = page_job.sections([step_of("runner.admit", 10, F), step_of("runner.cleanup", 920, P)], NOON)
    assert [(part.title, len(part.steps)) for part in parts] == [("Preparation", 2)]


def test_a_red_gate_that_is_not_required_warns() -> None:
    required, not_required = ({"required": flag} for flag in (True, False))
    parts = page_job.sections([step_of("inspector.gate.a", 110, F, output=required),
                               step_of("inspector.gate.b", 110, F, output=not_required)], NOON)  # fmt: skip
    assert [view.tone for view in parts[0].steps] == ["bad", "ask"]


@pytest.mark.parametrize(("seconds", "words"), [
    (-5, "just now"), (0, "just now"), (9, "just now"), (10, "10 s ago"), (59, "59 s ago"), (60, "1 min ago"),
    (3599, "59 min ago"), (3600, "1 h ago"), (47 * 3600, "47 h ago"), (48 * 3600, "2 days ago")])  # fmt: skip
def test_ages(seconds: int, words: str) -> None:
    assert page_views.ago(NOON - timedelta(seconds=seconds), NOON) == words


def test_sentences_are_cut_at_their_code() -> None:
    assert page_views.spans("Ask `mosaic doctor`, then `@mosaic retry`.") == [
        ("Ask ", False), ("mosaic doctor", True), (", then ", False), ("@mosaic retry", True), (".", False),
    ]  # fmt: skip
    assert page_views.spans("") == []


def test_what_an_event_says_is_short() -> None:
    assert page_views.facts({"a": 1, "none": None, "empty": [], "zero": 0, "no": False, "deep": {"x": [1]}}) == [
        ("a", "1"), ("zero", "0"), ("no", "false"), ("deep", '{"x": [1]}')]  # fmt: skip
    assert len(page_views.facts({"long": "x" * 10_000})[0][1]) == 240


def test_titles_come_from_the_issue_or_the_task() -> None:
    assert page_views.title(replace(JOB, trigger=replace(TRIGGER, issue_title="A title"))) == "A title"
    assert page_views.title(replace(JOB, instructions="\n  \n first line\nsecond")) == "first line"
    assert page_views.title(replace(JOB, instructions="")) == "Job 5"
    assert page_views.title(replace(JOB, instructions="\u202e\u200b")) == "Job 5"


def test_without_a_forge_nothing_is_linked() -> None:
    nowhere, known = page_views.Forge(""), page_views.Forge(FORGE)
    job = replace(JOB, pull_request=3, branch="mosaic/a b")
    assert [nowhere.source(job), nowhere.pull(job), nowhere.repository(job), nowhere.branch(job)] == [""] * 4
    assert known.branch(job) == f"{FORGE}/acme/shop/src/branch/mosaic/a%20b"
    assert known.source(replace(job, trigger=replace(TRIGGER, is_pull=True))) == f"{FORGE}/acme/shop/pulls/42"
    assert known.source(replace(job, number=None)) == ""
