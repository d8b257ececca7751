"""The world of one run: processes that hear bells, beat and sweep; people who ask; a clock and a forge that misbehave.

One rule: everything that touches the database in the name of Mosaic is an actor; the director only decides who moves.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app import breaker, queries, redact, settings, stitcher
from app.clients import gitea_http
from app.clients.gitea import GiteaClient
from app.context import Clients
from app.edge import UNAVAILABLE, connected
from app.gitea_events import Request, text_hash
from app.ledger import jobs, workers
from app.pipeline import PIPELINES
from app.rules import ServerConfig
from app.types import Command, Pool, Trigger, Verb
from app.worker import Worker
from handlers import mosaic as receiver
from jobs import tasks
from tests.simulation.forge import ALICE, BOT, MOMENT, REPOSITORIES, URL, Forge, Mirror, Wire
from tests.simulation.script import Scripts
from tests.simulation.stage import FOREVER, Actor, Stage, checkpoint, current
from tests.simulation.store import Store

HOST = "here"
WORK = ("work: ", "forge: ", "git: ")  # checkpoints at which the owner of a step or an effect does its work
_SWEEP = sys.modules["app.stitcher.sweep"]  # the name in the package is the function
SLICE = 7.0  # seconds between two heartbeats of a live process
FROZEN = 30.0  # idle seconds in a transaction after which the server ends a session
ROOM = {Pool.CONTROL: 4, Pool.AGENTS: 1, Pool.GATES: 2}
CAST = (
    ("c1", Pool.CONTROL), ("c2", Pool.CONTROL), ("c3", Pool.CONTROL), ("a1", Pool.AGENTS), ("a2", Pool.AGENTS),
    ("g1", Pool.GATES), ("g2", Pool.GATES),
)  # fmt: skip
# The steps with effects, rounds, attempts and closing words; the others differ from runner.commit by their work alone.
SHORT = ("runner.admit", "weaver.implement", "runner.commit", "herald.publish", "herald.report", "runner.cleanup")


class Hands:
    """What a process may use, with the forge in memory at the far end of its wires."""

    def __init__(self, folder: Path) -> None:
        env = {
            "MOSAIC_DATA_DIR": str(folder), "MOSAIC_SECRET_KEY": "s" * 40, "MOSAIC_GITEA_URL": URL,
            "MOSAIC_GITEA_TOKEN": "t" * 40, "MOSAIC_GITEA_WEBHOOK_SECRET": "w" * 40,
        }  # fmt: skip
        self.bound = gitea_http._bound
        # Every client that is made in this process, wherever, talks to the forge in memory.
        gitea_http._bound = lambda session, _: session.mount("http://", Wire(lambda: self.forge))
        self.settings = settings.load("control", env)
        self.server = ServerConfig(repositories=("acme/*",))
        self.forge = Forge()
        self.client = GiteaClient(URL, "t" * 40, guard=breaker.forge)


class VirtualClients(Clients):
    def git(self, repository_id: int) -> Any:
        return Mirror(HANDS[id(self.settings)].forge, repository_id)

    def forge_git(self, repository_id: int, full_name: str, *, push: bool = False) -> Any:
        return self.git(repository_id)


HANDS: dict[int, Hands] = {}


class VirtualWorker(Worker):
    """The real worker; what its threads would do, the director has actors do."""

    def _say_draining(self) -> None:
        if current() is not None:
            super()._say_draining()


class _Bells:
    """Stands where Huey stands: keeps the tasks that `jobs.tasks` registers."""

    def __init__(self) -> None:
        self.tasks: dict[str, Callable[[int], None]] = {}

    def task(self, *, name: str, **_: Any) -> Callable[[Callable[[int], None]], None]:
        return lambda function: self.tasks.__setitem__(name, function)


class Process:
    """One consumer of a pool and the tasks it has in hand."""

    def __init__(self, world: World, name: str, pool: Pool) -> None:
        self.world, self.name, self.pool = world, name, pool
        self.alive, self.frozen = False, False
        self.actors: list[Actor] = []
        self.beating: Actor | None = None
        self.idle_for: dict[Actor, float] = {}
        self.start()

    def start(self) -> None:
        """A new incarnation: registered, with its session lock held."""
        number = next(self.world.boots)
        self.worker = VirtualWorker(self.world.store.url, self.pool.value, ROOM[self.pool], HOST)
        self.worker.boot_id = f"boot{number:04d}"
        self.worker.id = workers.register(
            self.worker.boot_id, HOST, number, self.pool.value, ROOM[self.pool], "test", "signer"
        )
        self._lock("pg_advisory_lock")
        hands = self.world.hands
        clients = VirtualClients(
            hands.settings, hands.server, self.worker, redact.Redactor(()),
            hands.client if self.pool is Pool.CONTROL else None,
        )  # fmt: skip
        bells = _Bells()
        tasks.register(bells, self.pool, clients)  # type: ignore[arg-type]
        self.tasks, self.clients = bells.tasks, clients
        self.alive, self.frozen, self.beating = True, False, None
        self.idle_for = {}

    def _lock(self, function: str) -> None:
        self.world.store.ask(f"select {function}(%s, %s)", workers.LOCK_CLASS, self.worker.id)

    def act(self, name: str, task: Callable[[], Any]) -> Actor:
        actor = Actor(f"{self.name}: {name}", task)
        actor.on_checkpoint = self.world.watcher
        self.actors.append(actor)
        return actor

    @property
    def busy(self) -> list[Actor]:
        self.actors = [actor for actor in self.actors if not actor.over]
        return self.actors

    @property
    def free(self) -> bool:
        working = [actor for actor in self.busy if actor is not self.beating]
        return self.alive and not self.frozen and not self.worker.draining and len(working) < ROOM[self.pool]

    def freeze(self) -> None:
        """SIGSTOP, until `frozen` is False again."""
        self.frozen = True
        self.world.disturbed.add(self.worker.id)

    def kill(self) -> None:
        """kill -9: its tasks end where they are, its session and so its lock are gone."""
        if not self.alive:
            return
        for actor in list(self.actors):
            self.world.stage.kill(actor)
        self.actors, self.alive, self.frozen = [], False, False
        self.world.dead.append(self.worker.id)
        self.world.disturbed.add(self.worker.id)
        self._lock("pg_advisory_unlock")


class World:
    def __init__(self, store: Store, hands: Hands) -> None:
        store.clear()
        self.store, self.hands = store, hands
        hands.forge = self.forge = Forge()
        self.scripts = Scripts()
        self.stage = Stage(store.ask)
        self.boots = itertools.count(1)
        self.requests = itertools.count(1)
        self.complaints: list[str] = []
        self.deadlocks = 0
        self.accepted: dict[int, int] = {}  # object id of a mention → its job, where the receiver said 202
        self.stopped: set[int] = set()  # jobs whose cancellation was accepted
        self.retried: dict[tuple[int, str], int] = {}
        self.clock_was_set = False
        self.elapsed = 0.0  # seconds on the monotonic clock of every process
        self.watcher: Callable[[Actor], None] | None = None  # told of each checkpoint that a process passes
        self.disturbed: set[int] = set()  # workers that were killed, frozen or told to stop
        self.dead: list[int] = []  # workers that were killed and not yet buried by a neighbour
        with self._direct():
            jobs.remember_self(BOT["id"], BOT["login"])
            for number, name in REPOSITORIES.items():
                jobs.remember_repository(number, name, "main", False, "mosaic")
            self.cast = [Process(self, name, pool) for name, pool in CAST]
        self.people: list[Actor] = []

    @contextmanager
    def _direct(self) -> Iterator[None]:
        with connected():
            yield

    # ------------------------------------------------------------ moves

    def run(self, actor: Actor, moves: int = FOREVER) -> bool:
        over = self.stage.run(actor, moves)
        if over:
            self._ended(actor)
        return over

    def _ended(self, actor: Actor) -> None:
        if actor.error is not None and not isinstance(actor.error, UNAVAILABLE):
            raise actor.error  # a task that finds its session cut off ends so; whoever hears its bell again does it
        if actor.killed:
            for process in self.cast:
                if actor in process.actors:
                    process.kill()

    def run_to_work(self, actor: Actor) -> None:
        """Until the actor is about to do what it has claimed."""
        while not actor.over and not actor.blocked and not actor.where.startswith(WORK):
            self.run(actor, 1)

    @property
    def movable(self) -> list[Actor]:
        """Who may move now: not frozen, not waiting for a lock."""
        found = [actor for process in self.cast if not process.frozen for actor in process.busy]
        self.people = [actor for actor in self.people if not actor.over]
        return [actor for actor in found + self.people if not actor.blocked]

    def finish_all(self) -> None:
        """Everybody who can goes on to the end of what they do."""
        for _ in range(200):
            found = self.movable
            if not found:
                return
            for actor in found:
                if not actor.over:
                    self.run(actor)
        raise AssertionError("actors wait for each other: " + "; ".join(f"{a.name} {a.where}" for a in self.movable))

    # ------------------------------------------------------------ what people ask

    def person(self, name: str, task: Callable[[], Any]) -> Actor:
        def act() -> Any:
            with connected():
                return task()

        actor = Actor(name, act)
        self.people.append(actor)
        return actor

    def mention(self, number: int, object_id: int, repository_id: int = 1, moves: int = FOREVER) -> Actor:
        """Gitea delivers a mention to the receiver; the same object id again is the same mention."""
        text = f"@mosaic fix this {object_id}"
        trigger = Trigger(
            kind="comment", repository_id=repository_id, repository=REPOSITORIES[repository_id], number=number,
            is_pull=False, object_id=object_id, actor_id=ALICE["id"], actor=ALICE["login"], text=text,
            text_sha256=text_hash(text), permission="write", at=MOMENT, issue_title=f"Issue {number}",
        )  # fmt: skip
        found = Request(trigger, (Command(Verb.FIX, "fix this"),), f"comment:{object_id}")
        delivery = f"delivery-{next(self.requests):08d}"

        def receive() -> None:
            answer, status = receiver._accepted(delivery, "issue_comment", b"{}", found)  # type: ignore[misc]
            assert status == 202
            job = answer.get("job")
            if job is not None:
                before = self.accepted.setdefault(object_id, job)
                assert before == job, f"mention {object_id} made the jobs {before} and {job}"
            else:
                assert answer.get("duplicate")
                self.accepted.setdefault(object_id, 0)

        actor = self.person(f"mention {object_id}", receive)
        self.run(actor, moves)
        return actor

    def cancel(self, job: int, moves: int = FOREVER) -> None:
        def ask() -> None:
            if stitcher.cancel(job, "gitea:alice"):
                self.stopped.add(job)

        self.run(self.person(f"cancel {job}", ask), moves)

    def retry(self, job: int, key: str, moves: int = FOREVER) -> None:
        def ask() -> None:
            old = queries.job(job)
            if old is None or not old.status.terminal:
                return
            new = stitcher.retry(old, actor="gitea:alice", actor_id=7, login="alice", key=key)
            if new is not None:
                assert (job, key) not in self.retried, f"one retry of job {job} made two jobs"
                self.retried[(job, key)] = new

        self.run(self.person(f"retry {job}", ask), moves)

    # ------------------------------------------------------------ bells, beats, sweeps

    def bells(self) -> list[dict[str, Any]]:
        rows = self.store.ask("select id, queue, data from huey_task order by priority desc, id")
        return [{"row": row["id"], "queue": row["queue"], **json.loads(bytes(row["data"]))} for row in rows]

    def lose(self, bell: dict[str, Any]) -> None:
        self.store.ask("delete from huey_task where id = %s", bell["row"])

    def hear(self, bell: dict[str, Any], process: Process, moves: int = FOREVER, *, keep: bool = False) -> Actor:
        """A process takes a bell from the queue and does what it says; `keep` = it hangs there for another time."""
        if not keep:
            self.lose(bell)
        task = process.tasks[bell["task"]]
        actor = process.act(_name(bell), lambda: task(bell["id"]))
        self.run(actor, moves)
        return actor

    def rung_again(self, actor: Actor) -> dict[str, Any] | None:
        """The bell that calls for the same work as the one that this actor has heard."""
        return next((bell for bell in self.bells() if actor.name.endswith(f": {_name(bell)}")), None)

    def listener(self, bell: dict[str, Any], turn: int = 0) -> Process | None:
        found = [one for one in self.cast if f"mosaic-{one.pool.value}" == bell["queue"] and one.free]
        return found[turn % len(found)] if found else None

    def work(self, bells: int, turn: int = 0) -> int:
        """Up to so many bells are heard and answered to the end; how many were."""
        heard = 0
        for _ in range(bells):
            found = next(((b, p) for b in self.bells() if (p := self.listener(b, turn + heard))), None)
            if found is None:
                return heard
            self.hear(*found)
            heard += 1
        return heard

    def beat(self, process: Process) -> None:
        if not process.alive or process.frozen or process.beating in process.busy:
            return
        process.beating = process.act("heartbeat", lambda: process.worker._look(renew=True))
        self.run(process.beating)

    def sweep(self, process: Process, moves: int = FOREVER) -> None:
        def look() -> None:
            with connected():
                stitcher.sweep()

        self.run(process.act("sweep", look), moves)

    def bury(self, process: Process, moves: int = FOREVER) -> None:
        """A control worker that watched one that was killed takes over at once."""
        number = self.dead.pop(0)

        def bury() -> None:
            with connected():
                stitcher.bury(number)

        self.run(process.act(f"bury {number}", bury), moves)

    # ------------------------------------------------------------ what happens to processes and to time

    def set_clock(self, seconds: float) -> None:
        """Somebody sets the server's clock: leases, pauses and deadlines are nearer or farther at once."""
        self.clock_was_set = True
        self.store.move_clock(seconds)

    def drain(self, process: Process) -> None:
        self.disturbed.add(process.worker.id)
        process.worker.drain()
        self.run(process.act("drain", process.worker._say_draining))

    def tick(self, seconds: float) -> None:
        """Time passes: who lives beats, who was killed is started again, who is frozen in a transaction is cut off."""
        self._leave_transactions()
        while seconds > 0:
            part = min(seconds, SLICE - self.elapsed % SLICE)
            self.store.move_clock(part)
            self.elapsed += part
            seconds -= part
            for process in self.cast:
                self._age(process, part)
            if self.elapsed % SLICE == 0:
                for process in self.cast:
                    self.beat(process) if process.busy else None
        # Who has nothing in hand renews no lease; that it lives is said for all of them at once.
        idle = [one.worker.id for one in self.cast if one.alive and not one.frozen and not one.busy]
        self.store.ask(
            "update workers set heartbeat_at = clock_timestamp(), ended_at = null where id in "
            "(select id from workers where id = any(%s) for update skip locked)",
            idle,
        )
        for process in self.cast:
            self._restart(process)

    def _restart(self, process: Process) -> None:
        if process.alive and process.worker.draining and not process.frozen:
            self.run(process.act("hand back", lambda: tasks.hand_back(process.worker)))
            process.kill()  # its time is over; what stop() would write, the sweep finds out
        if not process.alive:
            with self._direct():
                process.start()

    def _age(self, process: Process, seconds: float) -> None:
        if not process.frozen:
            return
        for actor in process.busy:
            if not actor.in_transaction or actor.blocked:
                process.idle_for.pop(actor, None)
                continue
            process.idle_for[actor] = process.idle_for.get(actor, 0.0) + seconds
            if process.idle_for[actor] > FROZEN:
                process.idle_for.pop(actor)
                self.stage.hang_up(actor)

    def _leave_transactions(self) -> None:
        """A process that runs does not stand still inside a transaction while seconds pass."""
        for _ in range(500):
            found = [actor for actor in self.movable if actor.in_transaction]
            if not found:
                return
            for actor in found:
                self.run(actor, 1)
        raise AssertionError("a transaction does not end: " + "; ".join(f"{a.name} {a.where}" for a in self.movable))

    # ------------------------------------------------------------ the end

    def quiesce(self, *, heal: bool = True) -> None:
        """Everything heals. All jobs must end, and all that was planned must be done, in a bounded time."""
        if heal:
            self.forge.away, self.forge.fates = False, []
        for process in self.cast:
            process.frozen = False
        self.finish_all()
        quiet = 0
        for turn in range(400):
            self.finish_all()
            while self.work(50, turn):
                self.finish_all()
            if self._at_rest():
                quiet += 1
                if quiet > 1:
                    return
            self.tick(3.0 if turn % 5 else (60.0 if turn < 100 else 900.0))
            self.sweep(next(one for one in self.cast if one.pool is Pool.CONTROL and one.free))
        raise AssertionError(f"not everything ended: {self.unfinished()}")

    def _at_rest(self) -> bool:
        return not self.unfinished() and not self.bells()

    def unfinished(self) -> list[Any]:
        return self.store.ask(
            "select 'job ' || id as what, status, reason from runner_jobs where finished_at is null union all "
            "select 'effect ' || key, state, error from effects where state = 'planned'"
        )

    def close(self) -> None:
        """End every actor, so that no thread and no lock outlives the run."""
        for actor in self.people:
            self.stage.kill(actor)
        for process in self.cast:
            process.kill()


def _name(bell: dict[str, Any]) -> str:
    return f"{bell['task']} {bell['id']}"


# ---------------------------------------------------------------- what a simulation puts in place


class _Complaints(logging.Handler):
    """What the code itself calls an error, unless the database was away."""

    def __init__(self, world: Callable[[], World | None]) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        world = self._world()
        error = record.exc_info[1] if record.exc_info else None
        if world is None:
            return
        if error is not None and "deadlock detected" in str(error):
            world.deadlocks += 1
        elif error is not None and not isinstance(error, UNAVAILABLE):
            world.complaints.append(f"{record.getMessage()}: {error!r}")


class Simulation:
    """The patches that last as long as a database: virtual time for actors, scripted work, the short pipeline."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.hands = store, Hands(folder)
        HANDS[id(self.hands.settings)] = self.hands
        self.world: World | None = None

    @contextmanager
    def in_place(self) -> Iterator[Simulation]:
        whole, load, patience = PIPELINES["implement"], tasks.load, _SWEEP.PATIENCE_MS
        sleep, monotonic, bound = time.sleep, time.monotonic, self.hands.bound
        handler = _Complaints(lambda: self.world)
        logger = logging.getLogger("mosaic")
        before = (logger.level, logger.propagate)

        def scripted(target: str) -> Callable[..., Any]:
            module, name = target.split(":")
            if module in ("jobs.runner", "jobs.weaver", "jobs.inspector") and name != "obey":
                return lambda context: self.world.scripts.work(context)  # type: ignore[union-attr]
            return load(target)

        def no_sleep(seconds: float) -> None:
            checkpoint("sleep") if current() else sleep(seconds)

        def virtual_seconds() -> float:
            return self.seconds() if current() else monotonic()

        try:
            PIPELINES["implement"] = tuple(row for row in whole if row.name in SHORT)
            tasks.load, _SWEEP.PATIENCE_MS = scripted, 2
            time.sleep, time.monotonic = no_sleep, virtual_seconds
            logger.addHandler(handler)
            logger.setLevel(logging.ERROR)
            logger.propagate = False
            yield self
        finally:
            PIPELINES["implement"], tasks.load, _SWEEP.PATIENCE_MS = whole, load, patience
            time.sleep, time.monotonic, gitea_http._bound = sleep, monotonic, bound
            logger.removeHandler(handler)
            logger.setLevel(before[0])
            logger.propagate = before[1]
            HANDS.pop(id(self.hands.settings), None)

    def seconds(self) -> float:
        return self.world.elapsed if self.world else 0.0

    @contextmanager
    def run(self) -> Iterator[World]:
        _SWEEP._trouble.clear()
        self.world = world = World(self.store, self.hands)
        try:
            yield world
        finally:
            world.close()
            self.world = None
