"""One Huey task per row of the pipeline table, and the consumer process of each pool. The composition root of the work.

A task carries the id of a row. It claims the row, does the work with the lease renewed behind it, and records the
result.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from huey.consumer import Consumer

from app import breaker, disk, gc, queue, stitcher
from app.audit_keeper import keeping
from app.clients.gitea import GiteaClient
from app.clients.openclaw import OpenClaw
from app.context import Clients, Context, Work
from app.edge import UNAVAILABLE, connected, database_url, open_database, redactor_of
from app.ledger import slots, steps, workers
from app.ledger.chain import transaction, use_redactor
from app.logs import about
from app.outcome import internal, no_room, of_error
from app.paths import Paths
from app.pipeline import KEEP, PIPELINES, StepSpec
from app.rules import ServerConfig
from app.settings import Settings
from app.stitcher.advance import Taker
from app.stitcher.dispatch import dispatch, task_of
from app.types import Cancelled, Done, Failed, HandBack, LostLease, MosaicError, Pool, Result, StepType
from app.worker import Worker

log = logging.getLogger("mosaic.tasks")
CONTROL_SLOTS = 8
GATE_SECONDS = 7_500.0  # a gate has its own limit of at most two hours; this one is for a sandbox that hangs
_LOOK_SECONDS = 0.1  # how often a consumer that ends looks whether it shall end at once
RECORD_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, *[10.0] * 12)  # seconds between the tries to record a result

NICE = 10  # whoever waits for an acknowledgement or a page comes before the work; gates and git inherit it
SWITCH_SECONDS = 0.001  # a thread that computes makes room for one whose answer has come, five times sooner than usual
GO_ON_SECONDS = 0.1  # so long a worker goes on with a job's next steps; then whoever else waits has its turn

# Tasks beside the steps: (pool, name) → the function that takes the row's id.
ERRANDS = (
    (Pool.CONTROL, "stitcher.advance", "app.stitcher:advance"),
    (Pool.CONTROL, "stitcher.tell", "app.stitcher:tell"),
    (Pool.CONTROL, "herald.deliver", "jobs.herald:deliver"),
    (Pool.CONTROL, "herald.probe", "jobs.herald:probe"),
    (Pool.CONTROL, "runner.obey", "jobs.runner:obey"),
)
ABOUT = {  # what an errand's number is, in the log
    "stitcher.advance": "job",
    "stitcher.tell": "job",
    "herald.deliver": "effect",
    "herald.probe": "probe",
    "runner.obey": "delivery",
}


@dataclass(frozen=True, slots=True)
class Task:
    """What one kind of step does, what to run again first when it was lost half-way, the seconds it may take."""

    work: Work
    redo: tuple[str, ...] = ()
    seconds: float = GATE_SECONDS


def load(target: str) -> Callable[..., Any]:
    module, name = target.split(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def step_targets(pool: Pool) -> dict[str, tuple[str, StepSpec | None]]:
    """Task name → (module:function, its row) for the steps of a pool. Gates share one task."""
    tables = (*PIPELINES.values(), (KEEP,))
    rows = {row.name: (row.target, row) for table in tables for row in table if row.pool is pool}
    gates: dict[str, tuple[str, StepSpec | None]] = {"inspector.gate": ("jobs.inspector:gate", None)}
    return {**rows, **(gates if pool is Pool.GATES else {})}


def perform(step_id: int, tasks: Mapping[str, Task], clients: Clients, *, go_on: float = GO_ON_SECONDS) -> None:
    """Claim the step, do its work, record what came of it; for `go_on` seconds go on with the job's next steps."""
    worker = clients.worker
    if worker.draining:
        return slots.decline(step_id)  # or it would be handed back and claimed again until this process ends
    row = steps.claim(step_id, worker.id, worker.host)
    if row is not None and (row["type"] == StepType.AI_ACTION or row["pool"] != Pool.CONTROL):
        with suppress(*UNAVAILABLE):  # the step is ours by now: it does not lie still for a comment
            stitcher.tell(row["job_id"])
    until = time.monotonic() + go_on
    while row is not None:  # None: taken by somebody else, cancelled, or not due: the bell was late
        taker = stitcher.Taker(worker.id, worker.host)
        carry_out(row, tasks[task_of(row["name"])], clients, taker if row["pool"] == Pool.CONTROL else None, until)
        row = taker.took


def carry_out(row: dict[str, Any], task: Task, clients: Clients, taker: Taker | None, until: float) -> None:
    """Do the work of a claimed step and record the result; after `until` the next step waits for its bell."""
    with (
        about(job=row["job_id"], step=steps.key_of(row)),
        clients.worker.holding(row, interruptible=row["pool"] != Pool.CONTROL, seconds=task.seconds) as held,
    ):
        context = Context(row, clients, held)
        result = attempt(context, task.work, task.redo)
        if result is not None:
            goes_on = isinstance(result, Done) and not clients.worker.draining and time.monotonic() < until
            settle(context, result, taker if goes_on else None)


def settle(context: Context, result: Result, taker: Taker | None = None) -> None:
    """Record the result; one that cannot be stored ends the step as an internal error.

    While the database is away it is tried again under a renewed lease: the work is not done twice for a restart.
    """
    row = context.row
    try:
        insist(context.flush)
        insist(lambda: record(row, result, taker))
    except UNAVAILABLE:
        raise  # the lease lapses, and the sweep takes the step back
    except Exception as error:
        log.exception("the result of %s of job %s cannot be recorded", steps.key_of(row), row["job_id"])
        broken = internal(error)
        if taker:
            taker.took = None  # that was rolled back
        insist(lambda: record(row, broken))


def insist(write: Callable[[], None]) -> None:
    """Until it is written. While the disk of the database is full there is no end to it: nobody else could do more."""
    pauses = iter(RECORD_PAUSES)
    while True:
        try:
            return write()
        except UNAVAILABLE as error:
            pause = RECORD_PAUSES[-1] if disk.full(error) else next(pauses, None)
            if pause is None:
                raise
            log.warning("the database is away, trying again in %s s: %s", pause, error)
            time.sleep(pause)


def record(row: dict[str, Any], result: Result, taker: Taker | None = None) -> None:
    """One try. A commit whose answer was lost may have given us the next step: then it is not left lying."""
    before = taker.took if taker else None
    if taker:
        taker.took = None
    try:
        if stitcher.record(row, result, taker):
            return
        log.warning("%s of job %s was lost; its result is dropped", steps.key_of(row), row["job_id"])
        if taker and before and steps.holds(taker.worker_id, before):
            taker.took = before
    except UNAVAILABLE:
        if taker:
            taker.took = taker.took or before  # the next try has to know of it, however many come to nothing
        raise


def attempt(context: Context, work: Work, redo: tuple[str, ...]) -> Result | None:
    """Run the work; every error becomes a result. None when the step was lost and nothing may be recorded."""
    try:
        result: Result = no_room(context) or work(context)
    except LostLease:
        return None
    except Cancelled:
        result = Failed("cancelled")
    except Exception as error:  # noqa: BLE001 (it becomes the result, and is logged where it is ours)
        result = of_error(context, error, redo)
    if context.held.why == "lost":
        return None
    if context.held.why == "drain" and not isinstance(result, Done):
        return HandBack("worker_stopped", "The worker was stopped; another one goes on.", 0.0, redo)
    if context.held.why == "late" and not isinstance(result, Done | HandBack):
        return Failed("timed_out", "The step took longer than it may.")
    if context.held.why == "cancel" and context.held.interruptible and not isinstance(result, HandBack):
        return Failed("cancelled", getattr(result, "detail", ""))
    return result  # what a control step has done is recorded even when a cancel came meanwhile


def build_clients(settings: Settings, pool: Pool, worker: Worker) -> Clients:
    """The edges this pool may use, from the secrets it holds."""
    redactor = redactor_of(settings)
    use_redactor(redactor)
    server = ServerConfig.load(settings.config_path)
    bundle = str(settings.ca_bundle) if settings.ca_bundle else None
    forge = authz = engine = None
    if pool is Pool.CONTROL:
        forge = GiteaClient(settings.gitea_url, settings.gitea_token, ca_bundle=bundle, guard=breaker.forge)
        if settings.gitea_authz_token:
            authz = GiteaClient(settings.gitea_url, settings.gitea_authz_token, ca_bundle=bundle, guard=breaker.forge)
    if pool is Pool.AGENTS:
        if settings.engine != "gateway":
            raise MosaicError("MOSAIC_ENGINE=exec is not there yet. Use gateway.", code="not_yet")
        engine = OpenClaw(
            settings.openclaw_url, settings.openclaw_token, identity=settings.data_dir / "keys" / "engine-device.key"
        )
    return Clients(settings, server, worker, redactor, forge, authz, engine)


def register(huey: queue.Doorbell, pool: Pool, clients: Clients) -> None:
    """Make the Huey tasks of a pool."""
    tasks = {
        name: Task(load(target), row.redo, row.timeout) if row else Task(load(target))
        for name, (target, row) in step_targets(pool).items()
    }

    def run(step_id: int) -> None:
        with connected():
            perform(step_id, tasks, clients)

    for name in tasks:
        huey.task(name=name)(run)
    for home, name, target in ERRANDS:
        if home is pool:
            errand = load(target)

            def go(number: int, errand: Callable[..., Any] = errand, name: str = name) -> None:
                with connected(), about(**{ABOUT.get(name, "number"): number}):
                    errand(number) if name.startswith("stitcher.") else errand(number, clients)

            huey.task(name=name)(go)


def slots_of(settings: Settings, pool: Pool) -> int:
    if pool is Pool.AGENTS:
        return settings.max_agents
    return CONTROL_SLOTS if pool is Pool.CONTROL else max(1, settings.workers)


class PoolConsumer(Consumer):  # type: ignore[misc]
    """Huey's consumer, told to end by any signal, however often: the worker hands back what can be handed back.

    What cannot be interrupted has time to end; SIGINT leaves it none. A signal never raises into what runs here: Huey's
    own second one would, and a process that ends half-way through handing back counts as a crash.
    """

    worker: Worker
    at_once = False

    def _handle_signal(self, signum: int, frame: Any) -> None:
        self.at_once = self.at_once or signum == signal.SIGINT
        self._signum, self._restart, self._graceful = signum, False, True
        if not self.worker.draining:
            self.worker.drain()

    def _join_workers(self) -> bool:
        deadline = time.monotonic() + self.shutdown_timeout
        threads = [thread for _, thread in self.worker_threads] + [self.scheduler]
        while (left := [thread for thread in threads if thread.is_alive()]) and not self.at_once:
            if time.monotonic() > deadline:
                break
            left[0].join(_LOOK_SECONDS)
        return not left


def consume(settings: Settings, pool: Pool) -> None:
    """Run the consumer of a pool until it is told to stop."""
    os.nice(NICE)
    sys.setswitchinterval(SWITCH_SECONDS)
    url, paths = database_url(settings), Paths(settings.data_dir)
    paths.make()
    worker = Worker(url, pool.value, slots_of(settings, pool), paths.host_id(), signer_of(settings, pool))
    open_database(url, worker.session)
    clients = build_clients(settings, pool, worker)
    huey = doorbell(pool, worker, url)
    register(huey, pool, clients)
    with at_work(worker, pool):
        if pool is Pool.CONTROL:
            load("jobs.runner:introduce")(clients)
            load("jobs.runner:look_out")(clients)
        if pool is not Pool.GATES:
            gc.start(pool.value, settings)
        log.info("%s consumer %s is ready (%s slots)", pool.value, worker.id, worker.slots)
        with keeping(settings, when=pool is Pool.CONTROL):
            run(huey, worker)


def doorbell(pool: Pool, worker: Worker, url: str) -> queue.Doorbell:
    """The Huey of a consumer. Once the worker drains, it takes no bell that it would not answer."""
    return queue.doorbell(pool, url, worker.host, session=worker.session, closed=lambda: worker.draining)


@contextmanager
def at_work(worker: Worker, pool: Pool) -> Iterator[None]:
    """The worker is registered and its slots are given away; at the end what it still holds is handed back."""
    with connected():
        signs_elsewhere = worker.signer and workers.other_signer(worker.host, worker.signer)
    if signs_elsewhere:
        raise MosaicError(
            f"Host {signs_elsewhere} uses another MOSAIC_SECRET_KEY on the same database: neither would find the "
            "comments of the other again. Give all hosts the same key, then start again.",
            code="key_differs",
        )
    control = pool is Pool.CONTROL
    worker.start(stitcher.idle_sweep if control else None, stitcher.bury if control else None)
    try:
        with connected(), transaction():
            dispatch(pool)  # there are more slots now than a moment ago
        yield
    finally:
        hand_back(worker)
        worker.stop()
        sys.stdout.flush()


def hand_back(worker: Worker) -> None:
    """What did not end in time goes back, so that it counts as no crash."""
    for step_id, fence in worker.left():
        try:
            with connected():
                stitcher.release(step_id, fence)
        except UNAVAILABLE as error:
            log.warning("step %s could not be handed back; its lease lapses: %s", step_id, error)


def run(huey: queue.Doorbell, worker: Worker, seconds: float = 25.0) -> None:
    """Hear bells until SIGTERM; what runs then has `seconds` to end, or until SIGINT."""
    consumer = PoolConsumer(
        huey,
        workers=worker.slots,
        periodic=False,
        worker_type="thread",
        graceful_signal="TERM",
        shutdown_timeout=seconds,
        max_delay=1.0,
        health_check_interval=10,
        scheduler_interval=60,  # nothing of ours is in Huey's schedule
    )
    consumer.worker = worker
    consumer._stop_flag_timeout = 0.5  # how often Huey looks whether a signal came; ten times a second, if it may
    consumer._set_signal_handlers()  # Huey sets them after its threads have begun to take steps
    consumer.run()


def signer_of(settings: Settings, pool: Pool) -> str:
    """A fingerprint of the key that signs our markers on the forge; "" where there is no key."""
    key = settings.secret_key if pool is Pool.CONTROL else b""
    return hashlib.sha256(b"mosaic.signer.v1:" + key).hexdigest()[:12] if key else ""
