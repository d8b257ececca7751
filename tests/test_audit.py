"""The audit on real histories: what is whole is clean, and each way to tamper with it is named by its invariant."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from app import audit, audit_anchors, models, queries, stitcher
from app.audit import leaks, verify, verify_export, violations
from app.audit_export import export
from app.audit_invariants import INVARIANTS
from app.audit_keeper import keep
from app.audit_witness import Key, Witness, WitnessError
from app.blame import blame, told
from app.ledger import anchors, effects, steps
from app.ledger.chain import entry, link
from app.ledger.redactions import erase
from app.models import execute, fetch, fetch_one
from app.paths import Paths
from app.quality_rails import gates_hash
from app.redact import Redactor
from app.rules import ServerConfig, effective
from app.types import Done, Failed, GateResult, GateSpec, HandBack, MosaicError
from tests import spine

KEY = Key(b"k" * 32)
TREE, SHA = "7" * 40, "5" * 40


@dataclass
class World:
    """A database with a history, the superuser's way into it, and a witness."""

    url: str
    superuser: str
    witness: Witness
    job: int = 0
    other: int = 0

    def forge(self, *statements: str) -> None:
        """Change rows with every trigger and foreign key asleep."""
        with psycopg.connect(self.superuser, autocommit=True) as connection:
            connection.execute("set session_replication_role = replica")
            for statement in statements:
                connection.execute(statement.encode())

    def alter(self, *statements: str) -> None:
        with psycopg.connect(self.superuser, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def found(self) -> set[str]:
        """The invariants that are broken."""
        return {one.invariant for one in verify(self.url, witness=self.witness.file.parent).violations}

    def anchor(self) -> int | None:
        return keep(KEY, self.witness)

    def seq(self, kind: str) -> int:
        return next(event.seq for event in queries.events(self.job) if event.kind == kind)


def gate(row: dict[str, Any], green: bool = True) -> Done | Failed:
    why = "exit code 0" if green else "1 failed"
    receipt = GateResult("test", "test", "make test", True, green, 0 if green else 1, 1.5, why, "out", tree_sha=TREE)
    output = {"required": True, "receipt": {name: getattr(receipt, name) for name in receipt.__slots__}}
    return Done(output=output) if green else Failed("gate_red", "1 failed", output=output)


def commit(row: dict[str, Any]) -> Done:
    return Done(output={"commit": SHA, "tree": TREE, "start": "0" * 40, "files": 1}, facts={"head_sha": SHA})


GATES = [asdict(GateSpec("test", "test", "true"))]
RULES = effective(ServerConfig(), None)


def admit(row: dict[str, Any]) -> Done:
    gates = gates_hash([GateSpec(**gate) for gate in GATES])
    checked(row)
    steps.event(row, "guard.allowed", what="admission", base="0" * 40, rules_sha256=RULES.sha256, gates_sha256=gates)
    return spine.admitted(row["job_id"], rules=RULES.to_json(), gates=GATES)


def checked(row: dict[str, Any]) -> None:
    steps.event(row, "authz.checked", actor_id=7, login="alice", source="payload", permission="write", allowed=True)


def publish(row: dict[str, Any]) -> Done:
    """As herald does it: plan, claim, do, record; then say so."""
    job = row["job_id"]
    checked(row)
    done(f"job:{job}:push", "push", {"repository_id": 1, "branch": "b"}, SHA, job, {"sha": SHA, "branch": "b"})
    steps.event(row, "git.pushed", branch="b", sha=SHA, outcome="pushed")
    done(f"job:{job}:pull", "pull_request", {"repository_id": 1}, "5", job, {"number": 5})
    return Done(output={"pull_request": 5}, facts={"pull_request": 5}, conclude="done")


def done(key: str, kind: str, target: dict[str, Any], external: str, job: int, result: dict[str, Any]) -> None:
    number = effects.plan(key, kind, target, job_id=job)
    claimed = effects.claim(number, spine.worker())
    assert claimed is not None and effects.done(claimed, external, result)


def report(row: dict[str, Any]) -> Done:
    job = row["job_id"]
    target = {"repository_id": 1, "number": job}
    done(f"job:{job}:closing", "comment.closing", target, f"9{job}", job, {})
    done(f"job:{job}:status", "comment.status", target, f"8{job}", job, {})
    return Done(output={"said": 1})


SCRIPT: spine.Script = {
    "runner.admit": admit,
    "inspector.gate.test@1.1": lambda row: gate(row, green=False),
    "inspector.gate.test": gate,
    "runner.commit": commit,
    "herald.publish": publish,
    "herald.report": report,
}


def delivered(job: int) -> None:
    execute(
        "insert into deliveries (source, delivery_id, state, job_id) values ('gitea', %s, 'job', %s)", f"d-{job}", job
    )


@pytest.fixture
def world(cluster: Any, database: str, tmp_path: Path) -> Iterator[World]:
    """Two jobs that went through two rounds to a push, one cancelled, one that waits; anchored three times."""
    superuser = cluster.url("postgres", str(conninfo_to_dict(database)["dbname"]))
    made = World(database, superuser, Witness(tmp_path / "audit"))
    made.witness.trust(KEY.public)
    me = spine.worker()
    made.job, made.other, stopped, _ = (spine.submit(repository_id=number) for number in (1, 2, 3, 4))
    for job in (made.job, made.other):
        delivered(job)
        assert spine.work(job, me, SCRIPT) == "completed"
        made.anchor()
    stitcher.cancel(stopped, "gitea:alice")
    spine.work(stopped, me)
    made.anchor()
    yield made


def test_a_true_history_is_clean(world: World) -> None:
    found = verify(world.url, witness=world.witness.file.parent)
    assert found.violations == [] and found.notes == []
    assert (found.jobs, found.anchors) == (4, 3)
    assert found.events == sum(row["n"] for row in fetch("select count(*) as n from job_events"))


def test_the_quick_form_is_the_same(world: World) -> None:
    assert violations(world.url) == violations(world.url, data_dir=world.witness.file.parent.parent) == []


# ---------------------------------------------------------------- tampering: invariant and how


def chain_again(world: World, job: int, *, but: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> None:
    """Recompute every hash of a job after a change, head included: what a forger does who knows the chain."""
    prev, rows = "", queries.event_rows(job)
    for row in rows:
        row = but(dict(row)) if but else row
        fields = (row["kind"], row["at"], row["actor"], row["step"], row["data"])
        digest = link(prev, job, row["seq"], *fields)
        data = str(row["data"]).replace("'", "''")
        world.forge(
            f"update job_events set data = '{data}', actor = '{row['actor']}', kind = '{row['kind']}', "
            f"prev = '{prev}', hash = '{digest}' where job_id = {job} and seq = {row['seq']}"
        )
        prev = digest
    head = f"event_hash = '{prev}', event_seq = {len(rows)}"
    world.forge(f"update runner_jobs set {head} where id = {job}")


def edit_a_body(world: World) -> None:
    world.forge(f"update job_events set data = '{{}}' where job_id = {world.job} and kind = 'step.completed'")


def edit_a_kind(world: World) -> None:
    world.forge(f"update job_events set kind = 'gate.passed' where job_id = {world.job} and kind = 'gate.failed'")


def edit_a_moment(world: World) -> None:
    world.forge(f"update job_events set at = at - interval '1 hour' where job_id = {world.job} and seq = 3")


def delete_in_the_middle(world: World) -> None:
    world.forge(f"delete from job_events where job_id = {world.job} and seq = 5")


def delete_in_the_middle_and_count_again(world: World) -> None:
    world.forge(
        f"delete from job_events where job_id = {world.job} and kind = 'continuation.forced'",
        "with numbered as (select id, row_number() over (order by seq) as n from job_events "
        f"where job_id = {world.job}) update job_events e set seq = -n from numbered where numbered.id = e.id",
        f"update job_events set seq = -seq where job_id = {world.job}",
    )
    chain_again(world, world.job)


def leave_a_gap(world: World) -> None:
    """Every hash fits, and so does the head: one number is missing."""
    last = queries.chain_head(world.job)[0]
    world.forge(f"delete from job_events where job_id = {world.job} and kind = 'continuation.forced'")
    chain_again(world, world.job)
    world.forge(f"update runner_jobs set event_seq = {last} where id = {world.job}")


def cut_the_tail(world: World) -> None:
    """With the head of the job put right: only the anchor knows better."""
    world.forge(
        f"delete from job_events where job_id = {world.job} and seq > {world.seq('job.completed') - 1}",
        f"update runner_jobs j set event_seq = e.seq, event_hash = e.hash from job_events e where e.job_id = j.id "
        f"and j.id = {world.job} and e.seq = (select max(seq) from job_events where job_id = {world.job})",
    )


def delete_a_whole_job(world: World) -> None:
    tables = ("job_events", "effects", "gate_results", "deliveries", "job_steps")
    world.forge(*(f"delete from {table} where job_id = {world.job}" for table in tables))
    world.forge(f"delete from runner_jobs where id = {world.job}")


def leave_only_the_events(world: World) -> None:
    world.forge(f"delete from runner_jobs where id = {world.job}")


def rewrite_everything(world: World) -> None:
    def other(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "actor": str(row["actor"]).replace("alice", "mallory")}

    world.forge("update runner_jobs set requester = 'gitea:mallory'")
    for job in (world.job, world.other):
        chain_again(world, job, but=other)


def put_one_in_between(world: World) -> None:
    world.forge(
        f"update job_events set seq = -seq - 1 where job_id = {world.job} and seq >= 4",
        f"update job_events set seq = -seq where job_id = {world.job} and seq < 0",
        "insert into job_events (job_id, seq, kind, at, actor, data, prev, hash) "
        f"values ({world.job}, 4, 'authz.checked', now(), 'system:worker', '{{\"allowed\":true}}', '', '')",
        f"update runner_jobs set event_seq = event_seq + 1 where id = {world.job}",
    )
    chain_again(world, world.job)


def put_one_at_the_end(world: World) -> None:
    """What even the runtime role can do."""
    execute(
        "insert into job_events (job_id, seq, kind, at, actor, data, prev, hash) "
        "values (%s, 1000, 'job.created', now(), 'x', '{}', '', '')",
        world.job,
    )


def erase_a_body_unseen(world: World) -> None:
    body = fetch_one("select data from job_events where job_id = %s and seq = 2", world.job)
    assert body is not None
    digest = hashlib.sha256(body["data"].encode()).hexdigest()
    erased = f'{{"redacted":"{digest}"}}'
    world.forge(f"update job_events set data = '{erased}' where job_id = {world.job} and seq = 2")


def drop_the_trigger(world: World) -> None:
    world.alter("drop trigger job_events_no_change on job_events")


def disable_the_trigger(world: World) -> None:
    world.alter("alter table job_events disable trigger job_events_no_truncate")


def make_the_trigger_listen_to_replicas_only(world: World) -> None:
    world.alter("alter table audit_anchors enable replica trigger audit_anchors_no_change")


def hollow_the_trigger_out(world: World) -> None:
    world.alter(
        "create or replace function job_events_append_only() returns trigger language plpgsql as "
        "$$ begin return new; end $$"
    )


def weaken_the_trigger(world: World) -> None:
    world.alter(
        "drop trigger job_events_no_change on job_events",
        "create trigger job_events_no_change before update on job_events for each row "
        "execute function job_events_append_only()",
    )


def drop_an_index(world: World) -> None:
    world.alter("drop index runner_jobs_branch")


def widen_an_index(world: World) -> None:
    world.alter(
        "drop index runner_jobs_branch",
        "create unique index runner_jobs_branch on runner_jobs (repository_id, branch) where id < 0",
    )


def cut_the_file_of_anchors(world: World) -> None:
    lines = world.witness.file.read_text().splitlines(keepends=True)
    world.witness.file.write_text("".join(lines[:1] + lines[2:]))


def change_the_file_of_anchors(world: World) -> None:
    text = world.witness.file.read_text()
    world.witness.file.write_text(text.replace('\\"seq\\":2', '\\"seq\\":9', 1))


def change_an_anchor(world: World) -> None:
    world.forge("update audit_anchors set body = replace(body, '\"events\":', '\"events\":1') where seq = 2")


def sign_an_anchor_with_another_key(world: World) -> None:
    row = fetch_one("select body from audit_anchors where seq = 3")
    assert row is not None
    key, signature = Key(b"m" * 32).sign(row["body"].encode())
    world.forge(f"update audit_anchors set key = '{key}', signature = '{signature}' where seq = 3")


def sign_in_the_name_of_the_key(world: World) -> None:
    row = fetch_one("select body from audit_anchors where seq = 3")
    assert row is not None
    world.forge(f"update audit_anchors set signature = '{Key(b'm' * 32).sign(row['body'].encode())[1]}' where seq = 3")


def forget_the_last_anchor(world: World) -> None:
    world.forge("delete from audit_anchors where seq = 3")


def forget_an_anchor_in_the_middle(world: World) -> None:
    world.forge("delete from audit_anchors where seq = 2")


def open_again(world: World) -> None:
    world.alter("alter table runner_jobs drop constraint runner_jobs_check")
    world.forge(f"update runner_jobs set finished_at = null where id = {world.job}")


def give_an_owner(world: World) -> None:
    world.alter("alter table job_steps drop constraint job_steps_check")
    world.forge("update job_steps set worker_id = 1, lease_until = now() where name = 'runner.setup'")


def set_(table: str, change: str, where: str) -> Callable[[World], None]:
    def act(world: World) -> None:
        key = "id" if table == "runner_jobs" else "job_id"
        world.forge(f"update {table} set {change} where {key} = {world.job} and {where}")

    act.__name__ = f"{table} set {change} where {where}"
    return act


LINT = 'gates = gates || \'[{"name": "lint", "type": "lint", "command": "x"}]\''
TAMPERING: tuple[tuple[str, Callable[[World], None]], ...] = (
    ("chain", edit_a_body),
    ("chain", edit_a_kind),
    ("chain", edit_a_moment),
    ("chain", delete_in_the_middle),
    ("chain", leave_a_gap),
    ("anchored", delete_in_the_middle_and_count_again),
    ("anchored", cut_the_tail),
    ("job_status", cut_the_tail),
    ("anchored", delete_a_whole_job),
    ("orphans", leave_only_the_events),
    ("anchored", rewrite_everything),
    ("anchored", put_one_in_between),
    ("chain", put_one_at_the_end),
    ("redaction", erase_a_body_unseen),
    ("triggers", drop_the_trigger),
    ("triggers", disable_the_trigger),
    ("triggers", make_the_trigger_listen_to_replicas_only),
    ("triggers", hollow_the_trigger_out),
    ("triggers", weaken_the_trigger),
    ("indexes", drop_an_index),
    ("indexes", widen_an_index),
    ("anchors", cut_the_file_of_anchors),
    ("witness", cut_the_file_of_anchors),
    ("anchors", change_the_file_of_anchors),
    ("anchors", change_an_anchor),
    ("witness", change_an_anchor),
    ("anchors", sign_an_anchor_with_another_key),
    ("anchors", sign_in_the_name_of_the_key),
    ("witness", forget_the_last_anchor),
    ("anchors", forget_an_anchor_in_the_middle),
    ("job_status", set_("runner_jobs", "status = 'failed'", "true")),
    ("job_status", set_("runner_jobs", "reason = 'answered'", "true")),
    ("terminal", set_("runner_jobs", "reason = null", "true")),
    ("terminal", open_again),
    ("job_facts", set_("runner_jobs", "requester = 'gitea:mallory'", "true")),
    ("job_facts", set_("runner_jobs", "number = 4711", "true")),
    ("fence", set_("runner_jobs", "fence = fence + 1", "true")),
    ("green_push", set_("job_steps", "output = output - 'commit'", "name = 'runner.commit'")),
    ("green_push", set_("job_steps", "output = output || '{\"tree\": \"x\"}'", "name = 'runner.commit'")),
    ("green_push", set_("runner_jobs", LINT, "true")),
    ("step_status", set_("job_steps", "status = 'failed'", "name = 'runner.setup'")),
    ("step_status", set_("job_steps", "name = 'runner.other'", "name = 'runner.setup'")),
    ("fence", set_("job_steps", "fence = fence + 1", "name = 'runner.setup'")),
    ("counts", set_("job_steps", "crashes = 2", "name = 'runner.setup'")),
    ("counts", set_("job_steps", "faults = 1", "name = 'runner.setup'")),
    ("counts", set_("job_steps", "reason = 'crashed', status = 'failed'", "name = 'runner.setup'")),
    ("attempts", set_("job_steps", "attempt = 2", "name = 'runner.setup'")),
    ("terminal", set_("job_steps", "status = 'pending'", "name = 'runner.cleanup'")),
    ("one_owner", give_an_owner),
    ("receipts", set_("gate_results", "passed = true", "not passed")),
    ("receipts", set_("gate_results", "tree_sha = 'x'", "passed")),
    ("effects", set_("effects", "external_id = null", "kind = 'push'")),
    ("effects", set_("effects", "external_id = ''", "kind = 'comment.closing'")),
    ("effects", set_("effects", "told = 0", "kind = 'pull_request'")),
    ("effect_once", set_("effects", "external_id = '82'", "kind = 'comment.status'")),
    ("last_words", set_("effects", "kind = 'comment.reply'", "kind = 'comment.closing'")),
    ("authority", set_("deliveries", "job_id = null", "true")),
    ("admission", set_("runner_jobs", "base_sha = 'f'", "true")),
    ("admission", set_("runner_jobs", "rules = jsonb_set(rules, '{limits,rounds}', '9')", "true")),
    ("admission", set_("runner_jobs", "rules = '{}'", "true")),
    ("admission", set_("runner_jobs", "gates = jsonb_set(gates, '{0,command}', '\"exit 0\"')", "true")),
    ("admission", set_("runner_jobs", "gates = '[]'", "true")),
)  # fmt: skip


@pytest.mark.parametrize(("invariant", "tamper"), TAMPERING, ids=lambda one: getattr(one, "__name__", one))
def test_tampering_is_named(world: World, invariant: str, tamper: Callable[[World], None]) -> None:
    assert world.found() == set()
    tamper(world)
    assert invariant in world.found()


def test_what_was_anchored_and_is_gone_is_named_one_by_one(world: World) -> None:
    last = queries.chain_head(world.job)[0]
    cut_the_tail(world)
    assert f"anchored: job {world.job}: event {last} was anchored and is not there" in map(str, violations(world.url))
    assert f"anchored: anchor 3 counted {total() + 1} events; {total()} of them are there" in map(
        str, violations(world.url)
    )


def total() -> int:
    return sum(row["n"] for row in fetch("select count(*) as n from job_events"))


def test_work_after_the_last_word_is_named(world: World) -> None:
    tell(world.job, "job.retried", by=99)
    assert world.found() == set()
    tell(world.job, "gate.started", "inspector.gate.test@2.1", gate="test")
    assert world.found() == {"terminal"}


def test_a_secret_in_an_event_is_named(world: World) -> None:
    known = Redactor(["hunter2-hunter2"])
    assert list(leaks(world.url, known)) == []
    tell(world.other, "job.retried", by=99, note="aHVudGVyMi1odW50ZXIy")  # in base64
    last = queries.chain_head(world.other)[0]
    assert [str(one) for one in leaks(world.url, known)] == [
        f"secrets: job {world.other}: event {last} (job.retried) holds a secret"
    ]


# ---------------------------------------------------------------- histories that a faulty engine would make


def claimed(job: int, name: str, worker: int, script: spine.Script | None = None) -> dict[str, Any]:
    """Drive a job until that step is claimed."""
    while True:
        row = steps.claim(spine.ready_steps(job)[0], worker, "here")
        assert row is not None
        if row["name"] == name:
            return row
        assert stitcher.record(row, spine.outcome(row, script or {}))


def tell(job: int, kind: str, step: str | None = None, **data: Any) -> None:
    """Append an event as the ledger does it: chain and head are right, only the story is wrong."""
    with entry(job) as locked:
        locked.event(kind, step=step, **data)


WRONG_STORIES: tuple[tuple[str, Callable[[int], None]], ...] = (
    ("done_once", lambda job: tell(job, "step.completed", "runner.admit@1.1", fence=1)),
    ("done_once", lambda job: tell(job, "step.started", "runner.admit@1.1", fence=99, worker=1)),
    ("fence", lambda job: tell(job, "step.started", "runner.setup@1.1", fence=1, worker=1)),
    ("fence", lambda job: tell(job, "step.completed", "weaver.implement@1.1", fence=1)),
    ("step_status", lambda job: tell(job, "step.completed", "runner.commit@1.1", fence=1)),
    ("step_status", lambda job: tell(job, "step.skipped", "runner.admit@1.1", why="x")),
    ("step_status", lambda job: tell(job, "worker.lost", "runner.commit@1.1", fence=99, crashes=1)),
    ("step_status", lambda job: tell(job, "step.progress", "runner.commit@1.1", fence=9, waiting="x")),
    ("one_order", lambda job: tell(job, "step.started", "runner.commit@1.1", fence=99, worker=1)),
    ("order", lambda job: tell(job, "step.started", "herald.publish@1.1", fence=99, worker=1)),
    ("job_status", lambda job: tell(job, "job.created")),
    ("job_status", lambda job: tell(job, "job.queued")),
    ("job_status", lambda job: tell(job, "job.completed", reason="done")),
    ("terminal", lambda job: tell(job, "job.failed", reason="crashed")),
    ("authority", lambda job: tell(job, "git.pushed", "herald.publish@1.1", sha=SHA, tree=TREE)),
    ("green_push", lambda job: tell(job, "git.pushed", "herald.publish@1.1", sha=SHA, tree=TREE)),
    ("receipts", lambda job: tell(job, "gate.passed", "inspector.gate.test@1.1", tree_sha=TREE, exit_code=0)),
    ("redaction", lambda job: tell(job, "audit.redacted", seq=1, body_sha256="x")),
    ("admission", lambda job: tell(job, "guard.allowed", what="admission", base="x", gates_sha256="z")),
)  # fmt: skip


@pytest.mark.parametrize(("invariant", "story"), WRONG_STORIES)
def test_a_story_that_cannot_be_is_named(database: str, invariant: str, story: Callable[[int], None]) -> None:
    """The agent runs: admit to setup are done, nothing else has begun."""
    job = spine.submit()
    claimed(job, "weaver.implement", spine.worker())
    assert violations(database) == []
    story(job)
    assert invariant in {one.invariant for one in violations(database)}


def test_a_lost_step_that_begins_again_too_early_is_named(database: str) -> None:
    job, me = spine.submit(), spine.worker()
    row = claimed(job, "weaver.implement", me)
    execute("update job_steps set lease_until = clock_timestamp() - interval '1 minute' where status = 'running'")
    stitcher.sweep()
    execute("delete from job_steps where name in ('runner.checkout', 'runner.setup') and status = 'pending'")
    execute("update job_steps set ready_at = now(), rung_at = null where id = %s", row["id"])
    assert steps.claim(row["id"], me, "here") is not None
    assert [one.detail for one in violations(database) if one.invariant == "order"] == [
        f"weaver.implement@1.1 began again before {name} had run again" for name in ("runner.checkout", "runner.setup")
    ]


@pytest.mark.parametrize(
    ("invariant", "change"),
    [
        ("one_order", "update job_steps set status = 'running', worker_id = 1, lease_until = now(), fence = 9 "
         "where name = 'runner.commit'"),
        ("one_branch", "update runner_jobs set status = 'running', reason = null, branch = 'b'"),
        ("one_owner", "update job_steps set worker_id = null, lease_until = null where status = 'running'"),
        ("one_owner", "update job_steps set worker_id = worker_id + 1 where status = 'running'"),
        ("attempts", "insert into job_steps (job_id, name, round, attempt, phase, type, pool, ord) "
         "select job_id, name, round, 2, phase, type, pool, ord from job_steps where status = 'running'"),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_named(cluster: Any, database: str, invariant: str, change: str) -> None:
    claimed(spine.submit(), "weaver.implement", spine.worker())
    spine.submit()
    superuser = cluster.url("postgres", str(conninfo_to_dict(database)["dbname"]))
    world = World(database, superuser, Witness(Path("/nonexistent")))
    world.alter("drop index runner_jobs_branch", "alter table job_steps drop constraint job_steps_check")
    world.forge(change)
    assert invariant in {one.invariant for one in violations(database)}


def test_every_invariant_is_broken_by_some_test() -> None:
    elsewhere = {"secrets", "remote"}  # with a test of their own
    named = {name for name, _ in TAMPERING} | {name for name, _ in WRONG_STORIES} | {"one_branch"}
    assert named | elsewhere == set(INVARIANTS)


# ---------------------------------------------------------------- true stories that look odd


def test_faults_losses_and_rounds_are_no_violations(database: str) -> None:
    job, me = spine.submit(), spine.worker()
    faults = iter([HandBack("engine_unavailable", "x", 0.0, ("runner.checkout", "runner.setup")), None])

    def agent(row: dict[str, Any]) -> Any:
        return next(faults, None) or spine.outcome(row, {})

    claimed(job, "weaver.implement", me)
    execute("update job_steps set lease_until = clock_timestamp() - interval '1 minute' where status = 'running'")
    stitcher.sweep()
    assert violations(database) == []
    spine.work(job, me, {"weaver.implement": agent, "inspector.gate.test@1.1": lambda row: gate(row, green=False)})
    found = queries.job(job)
    assert found is not None and found.status.value == "completed"
    assert violations(database) == []


def test_a_poisoned_step_and_a_retry_are_no_violations(database: str) -> None:
    job, me = spine.submit(), spine.worker()
    for _ in range(3):
        assert steps.claim(spine.ready_steps(job)[0], me, "here") is not None
        execute("update job_steps set lease_until = clock_timestamp() - interval '1 minute' where status = 'running'")
        stitcher.sweep()
    assert spine.work(job, me) == "failed"
    old = queries.job(job)
    assert old is not None
    new = stitcher.retry(old, actor="gitea:alice", actor_id=7, login="alice", key="1")
    assert new is not None and spine.work(new, me) == "completed"
    assert violations(database) == []


# ---------------------------------------------------------------- anchors


def test_an_anchor_names_what_grew_and_nothing_else(world: World) -> None:
    assert world.anchor() is None
    with entry(world.other) as job:
        job.event("job.retried", by=99)
    assert world.anchor() == 4
    newest = list(world.witness.anchors())[-1].content()
    assert [head[0] for head in newest["heads"]] == [world.other]
    assert newest["events"] == sum(row["n"] for row in fetch("select count(*) as n from job_events"))
    assert world.found() == set()


def test_events_that_commit_out_of_order_are_anchored(world: World) -> None:
    """A transaction that began before an anchor and ends after it: its rows have lower ids than the anchor has seen."""
    with psycopg.connect(world.url) as slow:
        rows = slow.execute(
            "insert into job_events (job_id, seq, kind, at, actor, data, prev, hash) "
            "values (%s, 999, 'x', now(), 'x', '{}', '', '') returning id",
            (world.job,),
        ).fetchall()
        for _ in range(2):
            with entry(world.other) as job:
                job.event("job.retried", by=99)
            world.anchor()
        slow.commit()
    assert world.anchor() == 6
    newest = list(world.witness.anchors())[-1].content()
    assert [head[0] for head in newest["heads"]] == [world.job] and newest["max_id"] > rows[0][0]
    assert newest["events"] == sum(row["n"] for row in fetch("select count(*) as n from job_events"))
    assert world.anchor() is None


def test_only_one_anchors_at_a_time_and_not_too_often(world: World) -> None:
    with entry(world.other) as job:
        job.event("job.retried", by=99)
    assert keep(KEY, world.witness, not_within=3600.0) is None
    with psycopg.connect(world.url) as busy:
        busy.execute("select pg_advisory_xact_lock(%s)", (anchors._ANCHOR,))
        assert world.anchor() is None
    assert world.anchor() == 4


def test_a_second_host_fills_its_own_file(world: World, tmp_path: Path) -> None:
    second = Witness(tmp_path / "second")
    second.trust(KEY.public)
    assert keep(KEY, second) is None
    assert second.file.read_bytes() == world.witness.file.read_bytes()
    assert second.file.stat().st_mode & 0o777 == 0o600
    lines = second.file.read_text().splitlines(keepends=True)
    second.file.write_text("".join(lines[:2]))
    assert verify(world.url, witness=second.file.parent).violations == []  # it is filled up once a minute
    keep(KEY, second)
    assert second.file.read_bytes() == world.witness.file.read_bytes()


def test_two_processes_of_a_host_fill_the_same_file(world: World) -> None:
    """Whoever looked at the end of the file before the other wrote finds its anchors there: no contradiction."""
    last = world.witness.last()
    assert last is not None
    with entry(world.other) as job:
        job.event("job.retried", by=99)
    assert world.anchor() == 4
    assert world.witness.follow(queries.anchors(last.seq)) == 0
    with pytest.raises(WitnessError):
        world.witness.follow(queries.anchors(5))


def test_a_half_written_line_never_counted(world: World) -> None:
    whole = world.witness.file.read_bytes()
    world.witness.file.write_bytes(whole[:-40])  # a crash, or a full disk
    assert [one.seq for one in world.witness.anchors()] == [1, 2] and world.found() == set()
    assert keep(KEY, world.witness) is None and world.witness.file.read_bytes() == whole
    world.witness.file.write_bytes(whole[:30])
    assert world.witness.last() is None
    keep(KEY, world.witness)
    assert world.witness.file.read_bytes() == whole


def test_a_file_that_stays_behind_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = world.witness.file.read_text().splitlines(keepends=True)
    world.witness.file.write_text("".join(lines[:1]))
    assert world.found() == set()
    monkeypatch.setattr(audit_anchors, "LAG", timedelta(0))
    assert world.found() == {"witness"}


def test_the_file_never_takes_what_contradicts_it(world: World) -> None:
    before = world.witness.file.read_bytes()
    world.forge("update audit_anchors set signature = 'x' where seq = 3")
    with pytest.raises(WitnessError):
        world.anchor()
    world.forge("delete from audit_anchors")
    with entry(world.other) as job:
        job.event("job.retried", by=99)
    with pytest.raises(WitnessError):
        world.anchor()
    assert world.witness.file.read_bytes() == before and "witness" in world.found()


def test_the_runtime_role_cannot_change_anchors(world: World) -> None:
    for statement in ("update audit_anchors set body = ''", "delete from audit_anchors", "truncate audit_anchors"):
        with psycopg.connect(world.url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)
    owner = world.superuser.replace("postgres:", "postgres:", 1)
    for statement in ("update audit_anchors set body = ''", "delete from audit_anchors", "truncate audit_anchors"):
        with psycopg.connect(owner) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


# ---------------------------------------------------------------- erasing a body


def as_owner(world: World, cluster: Any) -> str:
    return str(cluster.url("mosaic_owner", str(conninfo_to_dict(world.url)["dbname"])))


def test_a_body_is_erased_and_the_chain_still_verifies(world: World, cluster: Any) -> None:
    seq = world.seq("git.pushed")
    runtime = models.db.obj
    models.bind(as_owner(world, cluster))
    with models.db.connection_context():
        digest = erase(world.job, seq, "cli:root", "a name that had to go")
        for again, code in (
            (seq, "not_erasable"),
            (99, "not_found"),
            (queries.chain_head(world.job)[0], "not_erasable"),
        ):
            with pytest.raises(MosaicError) as refused:
                erase(world.job, again, "cli:root", "x")
            assert refused.value.code == code
        event = queries.events(world.job)[-1]
        assert (event.kind, event.actor, dict(event.data)) == (
            "audit.redacted",
            "cli:root",
            {"seq": seq, "body_sha256": digest, "why": "a name that had to go"},
        )
        assert SHA not in str(queries.events(world.job)[seq - 1].data)
    models.db.close_all()
    models.db.initialize(runtime)
    assert world.found() == set()


def test_the_runtime_role_erases_nothing(world: World) -> None:
    with pytest.raises(Exception, match="permission denied"):
        erase(world.job, 2, "cli:root", "x")
    assert world.found() == set()


@pytest.mark.parametrize(
    "statement",
    [
        "update job_events set data = '{}' where job_id = 1 and seq = 2",
        "update job_events set data = '{\"redacted\":\"' || repeat('0', 64) || '\"}' where job_id = 1 and seq = 2",
        "update job_events set data = %s, actor = 'x' where job_id = 1 and seq = 2",
        "update job_events set data = %s where job_id = 1 and seq = 3",
        "delete from job_events where job_id = 1 and seq = 2",
    ],
)
def test_the_owner_can_make_no_other_change(world: World, cluster: Any, statement: str) -> None:
    row = fetch_one("select data from job_events where job_id = 1 and seq = 2")
    assert row is not None
    right = f'{{"redacted":"{hashlib.sha256(row["data"].encode()).hexdigest()}"}}'
    with (
        psycopg.connect(as_owner(world, cluster)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("select set_config('mosaic.redact', '1:2', true)")
        connection.execute(statement.encode(), (right,) if "%s" in statement else None)


@pytest.mark.parametrize("named", ["", "1:3", "2:2"])
def test_a_body_gives_way_only_where_the_transaction_names_its_event(world: World, cluster: Any, named: str) -> None:
    row = fetch_one("select data from job_events where job_id = 1 and seq = 2")
    assert row is not None
    right = f'{{"redacted":"{hashlib.sha256(row["data"].encode()).hexdigest()}"}}'
    with psycopg.connect(as_owner(world, cluster)) as connection:
        connection.execute("select set_config('mosaic.redact', %s, true)", (named,))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("update job_events set data = %s where job_id = 1 and seq = 2", (right,))


# ---------------------------------------------------------------- the export


def test_an_export_verifies_without_the_database(world: World, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    file.write_bytes(b"".join(export(world.url)))
    found = verify_export(file, world.witness.file.parent)
    assert (found.violations, found.notes, found.jobs, found.anchors) == ([], [], 4, 3)
    first = json.loads(file.read_text().splitlines()[0])
    assert list(first) == ["id", "job_id", "seq", "kind", "at", "actor", "step", "data", "prev", "hash"]
    assert first["id"] == f"{world.job}-1" and first["data"]["source"] == "comment"


@pytest.mark.parametrize(
    ("invariant", "change"),
    [
        ("chain", lambda lines: [lines[0].replace("alice", "mallory"), *lines[1:]]),
        ("chain", lambda lines: [lines[0], *lines[2:]]),
        ("chain", lambda lines: [lines[0], lines[2], lines[1], *lines[3:]]),
        ("anchored", lambda lines: [line for line in lines if '"kind":"job.completed"' not in line]),
    ],
)
def test_a_changed_export_is_named(
    world: World, tmp_path: Path, invariant: str, change: Callable[[list[str]], list[str]]
) -> None:
    file = tmp_path / "export.jsonl"
    lines = b"".join(export(world.url)).decode().splitlines(keepends=True)
    file.write_text("".join(change(lines)))
    assert invariant in {one.invariant for one in verify_export(file, world.witness.file.parent).violations}


def test_a_part_of_an_export_is_judged_for_what_it_holds(world: World, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    file.write_bytes(b"".join(list(export(world.url, job=world.job))[5:]))
    found = verify_export(file, world.witness.file.parent)
    assert found.violations == [] and found.notes == [f"job {world.job} begins at event 6"] and found.jobs == 1
    since = queries.events(world.other)[-1].at
    assert {json.loads(line)["job_id"] for line in export(world.url, since=since)} >= {world.other}
    assert world.job not in {json.loads(line)["job_id"] for line in export(world.url, since=since)}
    file.write_text("nonsense\n")
    with pytest.raises(MosaicError) as refused:
        verify_export(file)
    assert refused.value.code == "export_unreadable"


# ---------------------------------------------------------------- blame


def pushed_something_else(world: World, sha: str) -> None:
    where = "where job_id = %s and kind = 'push'"
    execute(f"update effects set result = result || %s::jsonb {where}", json.dumps({"sha": sha}), world.other)


def test_from_a_commit_back_to_who_asked(world: World, tmp_path: Path) -> None:
    pushed_something_else(world, "6666")
    execute(
        "update job_steps set output = output || '{\"commit\": \"6666\"}' where job_id = %s and name = 'runner.commit'",
        world.other,
    )
    found = blame(SHA[:7], Paths(tmp_path), "http://mosaic")
    assert (found["commit"], found["job"], found["asked"]["by"]) == (SHA, world.job, "gitea:alice")
    assert found["rules"]["gates"] == ["test"] and [gate["passed"] for gate in found["gates"]] == [False, True]
    assert found["rounds"] == 2 and found["rights"][-1]["allowed"] and found["ledger"]["anchor"]["seq"] == 1
    said = "\n".join(told(found))
    assert all(word in said for word in (SHA, "gitea:alice", "test: green", TREE, "anchor 1", "#5"))


def test_what_is_not_mosaics_is_said_to_be_so(world: World, tmp_path: Path) -> None:
    for text, code in (("abcdef", "not_mosaics"), ("xyz", "bad_commit"), ("5%", "bad_commit"), (SHA[:8], "")):
        try:
            blame(text, Paths(tmp_path), "")
            assert code == ""
        except MosaicError as error:
            assert error.code == code
    pushed_something_else(world, "5555a")
    with pytest.raises(MosaicError) as refused:
        blame("5555", Paths(tmp_path), "")
    assert refused.value.code == "ambiguous_commit"


def test_many_events_are_checked_by_several_processes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = verify(world.url, witness=world.witness.file.parent)
    monkeypatch.setattr(audit, "CHUNK", 1)
    monkeypatch.setattr(audit, "MANY", 0)
    heard: list[int] = []
    parts = verify(world.url, witness=world.witness.file.parent, progress=heard.append)
    assert (parts.events, parts.jobs, parts.violations) == (whole.events, whole.jobs, [])
    assert heard[-1] == whole.events and len(heard) == 4
    cut_the_tail(world)
    assert {"anchored", "job_status"} <= world.found()
