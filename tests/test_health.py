"""/readyz and /metrics: what they say, to whom, and that counters never go back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client, TestResponse

from app import edge, metrics, queries
from app.ledger import effects, inbox
from app.models import execute
from app.types import Done, Failed, HandBack, Pool
from handlers import health
from tests import spine
from tests.worlds.openclaw import free_port

LOCAL = "http://127.0.0.1:8080"
MONITOR = {"environ_overrides": {"REMOTE_ADDR": "10.1.2.3"}, "base_url": "http://mosaic.internal:8080"}
STRANGERS: dict[str, dict[str, Any]] = {
    "another machine": {"environ_overrides": {"REMOTE_ADDR": "192.0.2.7"}},
    "a monitor behind a proxy": {**MONITOR, "headers": {"X-Forwarded-For": "10.1.2.3"}},
    "a local proxy": {"headers": {"X-Forwarded-For": "127.0.0.1"}},
    "an unknown address": {"environ_overrides": {"REMOTE_ADDR": ""}},
    "a name that points here": {"base_url": "http://rebound.example:8080"},
}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def http(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    from app.web import create_app

    for name, value in {
        "DATA_DIR": str(tmp_path),
        "DATABASE_URL": database,
        "GITEA_URL": "http://127.0.0.1:3000",
        "GITEA_WEBHOOK_SECRET": "a secret of the tests",
        "OPENCLAW_URL": f"ws://127.0.0.1:{free_port()}",
        "METRICS_FROM": "10.1.0.0/16,2001:db8::1",
    }.items():
        monkeypatch.setenv(f"MOSAIC_{name}", value)
    edge.settings.cache_clear()
    health._collector.cache_clear()
    monkeypatch.setattr(edge, "_started", True)
    monkeypatch.setattr(health, "_engine", health.Kept(health._engine._ask, 0.0))
    yield create_app().test_client()
    edge.settings.cache_clear()
    health._collector.cache_clear()


def get(http: Client, path: str, **how: Any) -> TestResponse:
    return http.get(path, base_url=how.pop("base_url", LOCAL), **how)


def scraped(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, tuple(sorted(labels.items()))))


# ---------------------------------------------------------------- who may look


def test_strangers_learn_ready_or_not_and_nothing_else(http: Client) -> None:
    for who, how in STRANGERS.items():
        answer = get(http, "/readyz", **how)
        assert (answer.status_code, answer.json) == (503, {"status": "not ready"}), who
        assert get(http, "/healthz", **how).json == {"status": "ok"}, who
        answer = get(http, "/metrics", **how)
        assert answer.status_code == 404 and b"mosaic_" not in answer.data, who


def test_this_machine_and_the_monitors_see_all(http: Client) -> None:
    for how in ({}, MONITOR, {**MONITOR, "environ_overrides": {"REMOTE_ADDR": "2001:db8::1"}}):
        assert get(http, "/readyz", **how).json["next"]["control"].startswith("Start Mosaic")  # type: ignore[index]
        assert get(http, "/metrics", **how).status_code == 200
    assert get(http, "/", **MONITOR).status_code == 404  # figures, not pages


# ---------------------------------------------------------------- ready


def test_each_check_says_what_to_do(http: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = get(http, "/readyz").json  # type: ignore[assignment]
    assert set(found["checks"]) == {"database", "migrations", *(pool.value for pool in Pool), "engine", "disk"}
    assert found["checks"]["disk"] == "ok" and found["checks"]["engine"] == "warn"
    assert all(found["next"][name] for name, state in found["checks"].items() if state != "ok")
    monkeypatch.setenv("MOSAIC_MODEL_ID", "some-model")
    edge.settings.cache_clear()
    assert get(http, "/readyz").json["checks"]["engine"] == "fail"  # type: ignore[index]


def test_a_full_disk_is_not_ready(http: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.checks.LEAST_DISK", 1 << 62)
    monkeypatch.setattr("app.checks.LOW_DISK", 1 << 62)
    found: dict[str, Any] = get(http, "/readyz").json  # type: ignore[assignment]
    assert found["checks"]["disk"] == "fail" and "mosaic gc" in found["next"]["disk"]


def test_a_database_that_only_reads_is_not_ready(http: Client) -> None:
    execute("set default_transaction_read_only = on")
    try:
        assert get(http, "/readyz").json["checks"]["database"] == "fail"  # type: ignore[index]
    finally:
        execute("set default_transaction_read_only = off")


# ---------------------------------------------------------------- metrics


def test_the_figures_are_those_of_the_database(http: Client) -> None:
    worker = spine.worker()
    done, red = spine.submit(), spine.submit()
    spine.work(done, worker)
    spine.work(
        red, worker, {"inspector.gate.test": lambda _: Failed("gate_red", "1 failed", output={"required": True})}
    )
    waiting = spine.submit()
    execute(
        "update job_steps set ready_at = clock_timestamp() - interval '50 seconds' where job_id = %s "
        "and ready_at is not null",
        waiting,
    )
    inbox.receive("gitea", "delivery-1", dedup_key=None, event="issues", state="ignored")
    effects.plan("some-key", "a.kind", {}, job_id=waiting)
    found = scraped(get(http, "/metrics").text)
    assert {name for name, *_ in found} >= {"mosaic_hop_seconds_bucket", "mosaic_disk_free_bytes"}
    assert value(found, "mosaic_jobs", status="pending") == 1
    assert value(found, "mosaic_jobs_ended_total", status="completed", reason="done") == 1
    assert value(found, "mosaic_jobs_ended_total", status="failed", reason="gates_failed") == 1
    ended = queries.steps(done) + queries.steps(red)
    gates = [step for step in ended if step.name == "inspector.gate.test" and step.status == "failed"]
    assert value(found, "mosaic_steps_ended_total", step="inspector.gate", result="failed") == len(gates) == 2
    assert 49 < (value(found, "mosaic_queue_age_seconds", pool="control") or 0) < 120
    assert value(found, "mosaic_queue_depth", pool="control") == 1
    assert value(found, "mosaic_queue_depth", pool="agents") == 0
    assert value(found, "mosaic_deliveries_total", state="ignored") == 1
    assert value(found, "mosaic_effects", kind="a.kind", state="planned") == 1
    assert value(found, "mosaic_breaker_open", service="forge") == 0
    hops = value(found, "mosaic_hop_seconds_count", pool="agents")
    assert hops == value(found, "mosaic_hop_seconds_bucket", pool="agents", le="+Inf") and hops
    text = get(http, "/metrics").text
    assert "acme" not in text and "alice" not in text and "calc" not in text


def test_every_metric_is_of_the_table_and_every_label_is_named_there(http: Client) -> None:
    spine.work(spine.submit(), spine.worker())
    effects.plan("some-key", "comment.status", {})
    inbox.receive("gitea", "delivery-1", dedup_key=None, event="issues", state="ignored")
    families = {family.name: family for family in text_string_to_metric_families(get(http, "/metrics").text)}
    assert set(families) == set(metrics.METRICS)
    for name, family in families.items():
        kind, _, labels = metrics.METRICS[name]
        assert family.type == kind
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(labels), sample


def test_counters_agree_between_processes_and_never_go_back(http: Client, tmp_path: Path) -> None:
    """One process that was there all the time, and one that starts now: what was counted is not counted twice."""
    worker, old = spine.worker(), metrics.Database(tmp_path)
    before: Samples = {}
    for turn in range(4):
        job = spine.submit()
        again = [True]

        def hand_back_once(_: dict[str, Any], again: list[bool] = again) -> Done | HandBack:
            return HandBack("engine_unavailable", "away", 0.0) if again and again.pop() else Done()

        spine.work(job, worker, {"weaver.implement": hand_back_once})
        inbox.receive("gitea", f"delivery-{turn}", dedup_key=None, event="issues", state="job")
        if turn % 2:  # all that there is has settled: the mark moves on
            execute("update runner_jobs set finished_at = finished_at - interval '1 hour'")
            execute("update deliveries set received_at = received_at - interval '1 hour'")
        here = scraped(metrics.text(old).decode())
        there = scraped(metrics.text(metrics.Database(tmp_path)).decode())
        counters = {key for key in here if key[0].endswith(("_total", "_count", "_sum", "_bucket"))}
        assert counters and {key: here[key] for key in counters} == pytest.approx({key: there[key] for key in counters})
        assert all(here[key] >= before[key] - 1e-9 for key in counters & before.keys())
        assert value(here, "mosaic_jobs_ended_total", status="completed", reason="done") == turn + 1
        assert value(here, "mosaic_deliveries_total", state="job") == turn + 1
        before = here
    assert old._jobs.known > 0 and old._deliveries.known > 0


def test_an_open_job_holds_the_mark_back(http: Client, tmp_path: Path) -> None:
    worker, collector = spine.worker(), metrics.Database(tmp_path)
    waiting, done = spine.submit(), spine.submit()
    spine.work(done, worker)
    execute("update runner_jobs set finished_at = finished_at - interval '1 hour' where id = %s", done)
    metrics.text(collector)
    assert collector._jobs.known < waiting
    spine.work(waiting, worker)
    found = scraped(metrics.text(collector).decode())
    assert value(found, "mosaic_jobs_ended_total", status="completed", reason="done") == 2


def test_a_scrape_of_many_jobs_is_cheap_once_they_have_settled(http: Client, tmp_path: Path) -> None:
    """What has settled is not read again: the second scrape finds nothing above the mark."""
    spine.work(spine.submit(), spine.worker())
    execute("update runner_jobs set finished_at = finished_at - interval '1 hour'")
    collector = metrics.Database(tmp_path)
    first = metrics.text(collector)
    from app.queries import of_operations

    assert of_operations.ended_steps(collector._steps.known, None) == []
    assert scraped(metrics.text(collector).decode()).keys() == scraped(first.decode()).keys()


def test_the_engine_is_not_asked_at_every_probe() -> None:
    asked: list[int] = []

    def ask() -> health.Check:
        asked.append(1)
        return health.Check("engine", "ok", "")

    kept = health.Kept(ask, 3600.0)
    assert kept() == kept() and len(asked) == 1
