"""What must hold after every run, read from the database and from the forge. Each function yields what is wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from app import audit, queries, stitcher
from app.pipeline import BACK_TO, PIPELINES
from jobs import herald
from tests import spine
from tests.simulation.world import World

MAX_CRASHES = 3
ENDED = frozenset({"step.completed", "step.failed", "step.cancelled"})


def check(world: World) -> None:
    """Raises with everything that does not hold. To be called when the world is at rest."""
    with world._direct():
        rows = _Rows(world)
        wrong = [what for rule in RULES for what in rule(world, rows)]
    wrong += [f"audit: {one}" for one in audit.violations(world.store.url)]
    assert not wrong, "\n".join(wrong[:20])


class _Rows:
    def __init__(self, world: World) -> None:
        self.jobs = world.store.ask("select * from runner_jobs order by id")
        self.steps = world.store.ask("select * from job_steps order by id")
        self.effects = world.store.ask("select * from effects order by id")
        self.events: dict[int, list[Any]] = {job["id"]: list(queries.events(job["id"])) for job in self.jobs}
        self.of_job: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for step in self.steps:
            self.of_job[step["job_id"]].append(step)


def _key(step: dict[str, Any]) -> str:
    return f"{step['name']}@{step['round']}.{step['attempt']}"


def nothing_is_lost(world: World, rows: _Rows) -> Iterator[str]:
    """Every accepted mention and retry has its job, every job has ended, its closing steps too."""
    known = {job["id"]: job for job in rows.jobs}
    for object_id, number in world.accepted.items():
        found = [job["id"] for job in rows.jobs if job["trigger"]["object_id"] == object_id and not job["retry_of"]]
        if len(found) != 1 or number not in (0, found[0]):
            yield f"mention {object_id} was accepted as job {number}; its jobs: {found}"
    yield from (f"the retry {key} of {old} is gone" for (old, key), new in world.retried.items() if new not in known)
    for job in rows.jobs:
        if job["finished_at"] is None:
            yield f"job {job['id']} has not ended: {job['status']}"
        closing = [row.name for row in PIPELINES[job["pipeline"]] if row.always]
        for name in closing:
            last = max(
                (s for s in rows.of_job[job["id"]] if s["name"] == name), key=lambda s: (s["round"], s["attempt"])
            )
            poisoned = world.scripts.by_number.get(job["number"]) is not None and (
                world.scripts.by_number[job["number"]].poison == name
            )
            if last["status"] != ("failed" if poisoned else "completed"):
                yield f"job {job['id']}: {_key(last)} is {last['status']}"
        open_steps = [_key(s) for s in rows.of_job[job["id"]] if s["status"] in ("pending", "running")]
        yield from (f"job {job['id']} has ended, its step {key} has not" for key in open_steps)


def one_owner(world: World, rows: _Rows) -> Iterator[str]:
    """The events of a step tell one story: a fence is given once, only its holder ends the step, and only once."""
    for job in rows.jobs:
        fences: set[int] = set()
        state: dict[str, tuple[str, int]] = {}
        for event in rows.events[job["id"]]:
            if event.step is None:
                continue
            was, fence = state.get(event.step, ("pending", 0))
            tell = f"job {job['id']} event {event.seq} {event.kind} of {event.step}, which was {was} under {fence}"
            if event.kind == "step.started":
                if was != "pending":
                    yield tell
                if event.data["fence"] in fences or event.data["fence"] <= max(fences, default=0):
                    yield f"{tell}: fence {event.data['fence']} is not new"
                fences.add(event.data["fence"])
                state[event.step] = ("running", event.data["fence"])
            elif event.kind == "worker.lost":
                if was != "running" or event.data["fence"] <= fence:
                    yield tell
                fences.add(event.data["fence"])
                state[event.step] = ("pending", event.data["fence"])
            elif event.kind in ENDED:
                crashed = event.kind == "step.failed" and event.data.get("reason") == "crashed" and was == "pending"
                if not crashed and (was, fence) != ("running", event.data["fence"]):
                    yield f"{tell}: ended by fence {event.data['fence']}"
                state[event.step] = (event.kind.removeprefix("step."), event.data["fence"])
            elif event.kind == "step.skipped":
                if was != "pending":
                    yield tell
                state[event.step] = ("skipped", fence)
            elif event.kind == "step.progress" and "waiting" in event.data:
                if (was, fence) != ("running", event.data["fence"]):
                    yield tell
                state[event.step] = ("pending", fence)
            elif (was, event.kind) != ("running", event.kind):
                yield f"{tell}: told by somebody who does not run it"
        for step in rows.of_job[job["id"]]:
            told = state.get(_key(step), ("pending", 0))[0]
            if told != step["status"]:
                yield f"job {job['id']}: {_key(step)} is {step['status']}, its events say {told}"


def the_living_keep_their_steps(world: World, rows: _Rows) -> Iterator[str]:
    """A step is taken only from who was killed, frozen or told to stop, or when somebody set the clock."""
    for job in rows.jobs:
        for event in rows.events[job["id"]]:
            if event.kind == "worker.lost" and event.data["worker"] not in world.disturbed and not world.clock_was_set:
                yield f"job {job['id']}: {event.step} was taken from worker {event.data['worker']}, which was well"


def in_order(world: World, rows: _Rows) -> Iterator[str]:
    """No step of a round starts before everything that comes before it in that round has ended."""
    for job in rows.jobs:
        place = {_key(s): (s["ord"], s["round"], s["name"]) for s in rows.of_job[job["id"]]}
        open_now: dict[str, tuple[int, int, str]] = {}
        for event in rows.events[job["id"]]:
            if event.step is None or event.step not in place:
                continue
            if event.kind == "step.started":
                mine = place[event.step]
                beside = [key for key, other in open_now.items() if other[0] != mine[0]]
                if beside:
                    yield f"job {job['id']}: {event.step} started while {beside} ran"
                open_now[event.step] = mine
            elif event.kind in ENDED or event.kind == "worker.lost" or "waiting" in event.data:
                open_now.pop(event.step, None)


def counted_right(world: World, rows: _Rows) -> Iterator[str]:
    """Attempts, rounds, crashes and faults are what the events say, and within their limits."""
    for job in rows.jobs:
        events = rows.events[job["id"]]
        lost = Counter(event.step for event in events if event.kind == "worker.lost")
        waits = Counter(event.step for event in events if "waiting" in event.data)
        allowed = {row.name: row.attempts for row in PIPELINES[job["pipeline"]]} | {BACK_TO: 2}
        for step in rows.of_job[job["id"]]:
            key = _key(step)
            if (step["crashes"], step["faults"]) != (lost[key], waits[key]):
                yield (
                    f"job {job['id']}: {key} counts {step['crashes']} crashes and {step['faults']} faults, the events "
                    f"{lost[key]} and {waits[key]}"
                )
            if step["crashes"] > MAX_CRASHES:
                yield f"job {job['id']}: {key} crashed {step['crashes']} times"
            if step["round"] > 2 or step["attempt"] - step["excused"] > allowed.get(step["name"], 2):
                yield f"job {job['id']}: {key} is beyond its limits"
            if step["attempt"] > 1:
                before = [
                    s for s in rows.of_job[job["id"]]
                    if (s["name"], s["round"], s["attempt"]) == (step["name"], step["round"], step["attempt"] - 1)
                ]  # fmt: skip
                if not before or before[0]["status"] != "failed":
                    yield f"job {job['id']}: {key} is there, but the attempt before it did not fail"
        starts = [event for event in events if event.kind == "job.started"]
        if len(starts) > 1:
            yield f"job {job['id']} started {len(starts)} times"


def chain_is_whole(world: World, rows: _Rows) -> Iterator[str]:
    yield from (f"the chain of job {job['id']} is broken at {at}" for job in rows.jobs
                if (at := spine.broken_links(job["id"])))  # fmt: skip


def cancel_wins(world: World, rows: _Rows) -> Iterator[str]:
    """Who was told that the job stops finds it cancelled, and no working step starts after that."""
    for job in rows.jobs:
        if job["id"] in world.stopped and (job["status"], job["reason"]) != ("cancelled", "cancelled_by_user"):
            yield f"job {job['id']} was to stop, and is {job['status']} ({job['reason']})"
        if job["reason"] == "cancelled_by_user" and job["cancel_requested_at"] is None:
            yield f"job {job['id']} was cancelled by nobody"
        for step in rows.of_job[job["id"]]:
            asked = job["cancel_requested_at"]
            late = asked is not None and step["started_at"] is not None and step["started_at"] > asked
            if late and step["phase"] != "cleanup" and not world.clock_was_set:
                yield f"job {job['id']}: {_key(step)} started after the job was to stop"


def right_outcome(world: World, rows: _Rows) -> Iterator[str]:
    """A job ends as its script says, unless it was stopped, ran out of time or its workers kept dying."""
    for job in rows.jobs:
        script = world.scripts.by_number.get(job["number"])
        if script is None or job["reason"] in ("cancelled_by_user", "timed_out", "engine_unavailable"):
            continue
        if job["reason"] == "crashed" and any(s["crashes"] >= MAX_CRASHES for s in rows.of_job[job["id"]]):
            continue
        if job["reason"] == "forge_unavailable" and world.clock_was_set:
            continue  # the deadline passed at once
        if job["reason"] != script.outcome:
            yield f"job {job['id']} ended as {job['reason']} ({job['detail']}), its script says {script.outcome}"
        if job["reason"] == "done":
            results = {g.name: g for g in queries.gate_results(job["id"])}
            if not results or not results["test"].passed:
                yield f"job {job['id']} is done without a green gate"


def one_of_each_outside(world: World, rows: _Rows) -> Iterator[str]:
    """On the forge: one status and one closing comment per job, one pull request per branch, nothing of nobody."""
    forge = world.forge
    owners: Counter[str] = Counter()
    for one in forge.comments.values():
        owners[one["body"].rstrip().rsplit("\n", 1)[-1].split(":", 1)[-1].rsplit(":", 1)[0]] += 1
    for job in rows.jobs:
        closing = owners.pop(f"closing:job-{job['id']}", 0)
        if closing != 1:
            yield f"job {job['id']} has {closing} closing comments"
    for one, number in [(key, key) for key in forge.comments]:
        tellers = [e["job_id"] for e in rows.effects if e["kind"] == "comment.status" and e["external_id"] == str(one)]
        if tellers:  # who retries takes the comment over: the newest speaks in it
            mark = f"status:job-{max(tellers)}"
            if owners.pop(mark, 0) != 1:
                yield f"status comment {number} of the jobs {tellers} is not marked {mark}, or not alone"
    yield from (f"comments that belong to nobody: {owner} × {count}" for owner, count in owners.items())
    goals = Counter((one["repository_id"], one["head"]) for one in forge.pulls.values() if one["state"] == "open")
    yield from (f"{count} pull requests on {goal}" for goal, count in goals.items() if count != 1)
    for branch, head in forge.branches.items():
        pushed = [e for e in rows.effects if e["kind"] == "push" and e["result"].get("sha") == head]
        if not pushed:
            yield f"{branch} stands at {head[:8]}, which no effect has pushed"
    for job in rows.jobs:
        if job["reason"] == "done":
            place = (job["repository_id"], job["branch"])
            if place not in forge.branches or goals[place] != 1:
                yield f"job {job['id']} is done, but there is no pull request of {place}"
            if job["pull_request"] not in forge.pulls:
                yield f"job {job['id']} names pull request {job['pull_request']}"


def effects_are_done(world: World, rows: _Rows) -> Iterator[str]:
    ids = Counter(
        (e["kind"], e["external_id"]) for e in rows.effects if e["kind"] in ("comment.closing", "comment.reply")
    )
    yield from (f"two effects claim {what}" for what, count in ids.items() if count > 1)
    for effect in rows.effects:
        abandoned = effect["kind"] in ("push", "pull_request") and _ended_otherwise(rows, effect["job_id"])
        if effect["state"] != "done" and not abandoned:
            yield f"effect {effect['key']} is {effect['state']}: {effect['error']}"
        if effect["state"] == "done" and not effect["external_id"]:
            yield f"effect {effect['key']} is done and names nothing"
        told = effect["state"] == "done" and effect["kind"].startswith("comment.")
        if told and int(effect["external_id"]) not in world.forge.comments:
            yield f"effect {effect['key']} names comment {effect['external_id']}, which is gone"


def _ended_otherwise(rows: _Rows, job_id: int) -> bool:
    return any(job["id"] == job_id and job["reason"] != "done" for job in rows.jobs)


def the_last_word_stands(world: World, rows: _Rows) -> Iterator[str]:
    """What the status comments say is what they would say now: no late write has put an old text over a new one."""
    clients = next(one.clients for one in world.cast if one.clients.forge is not None)
    before = {key: one["body"] for key, one in world.forge.comments.items()}
    for effect in rows.effects:
        if effect["kind"] == "comment.status" and effect["state"] == "done":
            job = next(job for job in rows.jobs if job["id"] == effect["job_id"])
            if any(other["retry_of"] == job["id"] for other in rows.jobs):
                continue  # its comment tells of the retry by now
            world.store.ask("update effects set result = result - 'sha256' where id = %s", effect["id"])
            stitcher.tell(effect["job_id"], at_once=True)
            world.store.ask("update effects set next_at = '2000-01-01' where id = %s", effect["id"])
            herald.deliver(effect["id"], clients)
            said, now = before.get(int(effect["external_id"])), world.forge.comments[int(effect["external_id"])]["body"]
            if said != now:
                yield f"the status comment of job {effect['job_id']} said\n{said}\ninstead of\n{now}"


def no_complaints(world: World, rows: _Rows) -> Iterator[str]:
    """Nothing that the code itself calls an error, and no deadlock between its own transactions."""
    yield from (f"logged as an error: {text}" for text in world.complaints)
    if world.deadlocks:
        yield f"{world.deadlocks} deadlocks"


RULES = (
    one_owner,
    the_living_keep_their_steps,
    in_order,
    nothing_is_lost,
    counted_right,
    chain_is_whole,
    cancel_wins,
    right_outcome,
    one_of_each_outside,
    effects_are_done,
    the_last_word_stands,
    no_complaints,
)
