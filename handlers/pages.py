"""pages: the read-only status pages. They show; they change nothing.

One rule: nobody signs in yet, so the pages answer only someone on this machine; to everybody else they do not exist.
That is a request whose address and `Host` are loopback and that no proxy forwarded. A proxy on this machine that hides
itself completely (HTTP/1.1, `Host` rewritten, no `X-Forwarded-*`, `Forwarded`, `Via`) cannot be told from a browser
here: do not let such a one pass on more than `/webhooks/` and the probes.
"""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

from flask import Request, Response
from flask.typing import ResponseReturnValue
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app import page_job, page_views, queries, voice_format
from app.edge import Handler, Refusal, edge, failure, settings
from app.local import is_local
from app.neutral import plain
from app.page_views import Forge
from app.types import Job

HOME = Path(__file__).resolve().parent.parent / "app"
SHOWN_EVENTS = 60
LOG_LIMIT = 400_000  # characters; a step keeps no more
_REFRESH, _REFRESH_LIST, _REFRESH_CLOSING = 1500, 3000, 5000  # milliseconds
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def _harmless(value: Any) -> Any:
    """What a template is about to write: text without terminal codes and hidden characters. Escaping comes after."""
    return plain(value) if type(value) is str else value


templates = Environment(
    loader=FileSystemLoader(HOME / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_harmless,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.filters |= {
    "ago": page_views.ago,
    "brief": voice_format.brief_duration,
    "duration": voice_format.duration,
    "facts": page_views.facts,
    "plural": voice_format.plural,
    "short": voice_format.short,
    "spans": page_views.spans,
    "utc": page_views.utc,
}
templates.globals |= {"page": page_views, "parts": page_job}


# ---------------------------------------------------------------- who may look


def local_only(handler: Handler) -> Handler:
    """404 for everybody who is not on this machine, before anything else is looked at."""

    @wraps(handler)
    def call(request: Request, **path: Any) -> ResponseReturnValue:
        if not is_local(request):
            return failure(404, "not_found", "There is no such page.")
        return handler(request, **path)

    return call


# ---------------------------------------------------------------- pages


@local_only
@edge
def index(request: Request) -> ResponseReturnValue:
    """`GET /`: the jobs that need somebody, run, wait, and the last ones that ended."""
    running, queue = queries.jobs(status=["running"], limit=100), queries.queued_jobs(100)
    pending, waiting = queries.jobs(status=["pending"], limit=100), queries.jobs(status=["waiting"], limit=100)
    recent = queries.jobs(status=["completed", "failed", "cancelled"], limit=25)
    steps = queries.steps_of([job.id for job in (*running, *pending)])
    now = queries.now()
    waits = queries.waiting_of([job.id for job in (*running, *queue, *pending)])
    groups = page_views.groups(running, queue, pending, waiting, recent, steps, queries.job_counts(), now, waits)
    return _html("index.html", groups=groups, now=now, forge=_forge(), bot=_bot(), refresh=_REFRESH_LIST)


@local_only
@edge
def job(request: Request, job_id: int) -> ResponseReturnValue:
    """`GET /jobs/N`: everything that is known about one job; 404 when there is none."""
    found = queries.job(job_id)
    return _missing(job_id) if found is None else _html("job.html", **_view(found))


@local_only
@edge
def live(request: Request, job_id: int) -> ResponseReturnValue:
    """`GET /jobs/N/live`: the part of that page that changes, as an HTML fragment."""
    found = queries.job(job_id)
    if found is None:
        raise Refusal(404, "not_found", f"There is no job {job_id}.")
    return _html("job_live.html", **_view(found))


@local_only
@edge
def log(request: Request, job_id: int, step: str) -> ResponseReturnValue:
    """`GET /jobs/N/steps/<name>@<round>.<attempt>/log`: what the step wrote, as plain text."""
    found = next((each for each in queries.steps(job_id) if each.key == step), None)
    if found is None:
        raise Refusal(404, "not_found", "There is no such step in this job.")
    text = plain(queries.log(found.id, LOG_LIMIT)) or "This step has written nothing.\n"
    return Response(text, headers=_HEADERS, content_type="text/plain; charset=utf-8")


def _view(job: Job) -> dict[str, Any]:
    """All that the templates of a job ask for."""
    now, steps, logged = queries.now(), queries.steps(job.id), queries.logged_steps(job.id)
    progress, effects = queries.progress(job.id), queries.effects(job.id)
    seq, head = queries.chain_head(job.id)
    events = queries.events(job.id, after=max(0, seq - SHOWN_EVENTS), limit=SHOWN_EVENTS)
    settled = page_job.settled(job, effects)
    return {
        "job": job,
        "now": now,
        "forge": _forge(),
        "bot": _bot(),
        "limits": page_job.limits(queries.rules(job.id)),
        "state": page_views.state(job, steps, now, waits=queries.waiting_for(job.id)),
        "reason": voice_format.reason_of(job),
        "bar": page_views.bar(steps),
        "progress": progress,
        "sections": page_job.sections(steps, now, logged=logged, progress=progress, events=events),
        "calls": page_job.tool_calls(steps, progress),
        "round": max((step.round for step in steps), default=1),
        "rounds": page_job.rounds(queries.all_gate_results(job.id), steps, logged),
        "effects": effects,
        "snapshot": page_job.seen(queries.snapshot(job.id)),
        "snapshot_sha256": queries.snapshot_sha256(job.id),
        "events": events[::-1],
        "chain": {"seq": seq, "head": head},
        "settled": settled,
        "refresh": 0 if settled else _REFRESH_CLOSING if job.status.terminal else _REFRESH,
    }


def _forge() -> Forge:
    return Forge(settings().gitea_url)


def _bot() -> str:
    return queries.self_login() or "mosaic"


def _missing(job_id: int) -> ResponseReturnValue:
    return _html("missing.html", job_id=job_id, refresh=0), 404


def _html(template: str, **view: Any) -> Response:
    return Response(
        templates.get_template(template).render(**view), headers=_HEADERS, content_type="text/html; charset=utf-8"
    )
