"""Every point at which a process can die: one job, one blow at the k-th checkpoint, for each k.

Where the state machine searches, this counts: no checkpoint of the scenario is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation import invariants
from tests.simulation.forge import FATES
from tests.simulation.script import Script
from tests.simulation.stage import Actor, die
from tests.simulation.world import Process, Simulation, World

BLOWS = ("kill", "freeze", "overtake", "linger", "cancel")


class Blow:
    """Strikes the process that passes the k-th checkpoint.

    kill: kill -9; freeze: SIGSTOP until all the others are done; overtake: SIGSTOP until another has begun the same.
    linger: it lives and beats, and is only slow: nobody may take its work; cancel: a person stops the job just then.
    """

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at, self.passed = kind, at, 0
        self.struck: Actor | None = None
        self.places: list[str] = []

    def __call__(self, actor: Actor) -> None:
        self.passed += 1
        self.places.append(actor.where)
        if self.passed != self.at + 1 or self.struck is not None:
            return
        self.struck = actor
        if self.kind == "kill":
            die()
        actor.moves = 0


def _begin(world: World, blow: Blow) -> None:
    world.scripts.by_number[1] = Script(gates=("red", "green"))
    world.watcher = blow
    world.mention(1, 11)


def _go_on(world: World, blow: Blow) -> None:
    """Answer bells one by one, with a heartbeat and a sweep now and then, until nothing is left to do."""
    for turn in range(60):
        if world.work(1, turn) == 0:
            if not world.unfinished():
                return
            world.tick(3.0)
            world.sweep(next(one for one in world.cast if one.pool.value == "control" and one.free))
        _freeze(world, blow)


def _freeze(world: World, blow: Blow) -> None:
    actor = blow.struck
    if blow.kind == "kill" or actor is None or actor.over:
        return
    process = _owner(world, actor)
    if process is not None and blow.kind == "linger":
        for _ in range(3):  # between two of its heartbeats, too
            world.tick(6.0)
            world.sweep(next(one for one in world.cast if one.pool.value == "control" and one.free))
            world.work(40)  # the others go on meanwhile, to the job's end where they can
        world.run(actor)
    elif process is not None and blow.kind == "cancel":
        for row in world.store.ask("select id from runner_jobs"):
            world.cancel(row["id"])
        world.tick(1.0)
        world.run(actor)
    elif process is not None and not process.frozen:
        process.freeze()
        world.tick(33.0)
        if blow.kind == "overtake":
            _overtake(world, process, actor)


def _overtake(world: World, process: Process, actor: Actor) -> None:
    world.sweep(next(one for one in world.cast if one.pool.value == "control" and one.free))
    bell = world.rung_again(actor)
    other = world.listener(bell) if bell else None
    second = world.hear(bell, other, 1) if bell and other else None
    if second is not None:
        world.run_to_work(second)
    process.frozen = False
    world.run(actor)
    if second is not None:
        world.run(second)


def _owner(world: World, actor: Actor) -> Process | None:
    return next((one for one in world.cast if actor in one.actors), None)


def strike(simulation: Simulation, kind: str, at: int) -> int:
    """One run with one blow, checked; how many checkpoints it passed."""
    with simulation.run() as world:
        blow = Blow(kind, at)
        _begin(world, blow)
        _go_on(world, blow)
        world.watcher = None
        world.quiesce()
        invariants.check(world)
        return blow.passed


def places(simulation: Simulation, word: str = "") -> list[int]:
    """The checkpoints of the scenario, or those at which `word` is under way."""
    with simulation.run() as world:
        blow = Blow("none", -1)
        _begin(world, blow)
        _go_on(world, blow)
        return [at for at, place in enumerate(blow.places) if word in place]


def writes(simulation: Simulation) -> int:
    """How many requests of the scenario change the forge."""
    with simulation.run() as world:
        _begin(world, Blow("none", -1))
        world.quiesce()
        return world.forge.writes


def trouble(simulation: Simulation, at: int, fate: str) -> None:
    """One run in which the answer to one write is lost, or it is refused for now."""
    with simulation.run() as world:
        _begin(world, Blow("none", -1))
        world.forge.fates = [*[""] * at, fate]
        world.quiesce(heal=False)
        invariants.check(world)


def all_troubles(simulation: Simulation) -> Iterator[tuple[int, str]]:
    for at in range(writes(simulation)):
        for fate in FATES:
            yield at, fate
