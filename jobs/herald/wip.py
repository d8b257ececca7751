"""Work that was kept of a stopped job, put on the forge as a branch to look at: on request, and never over another.

Its one rule: no CI runs it, for nothing has judged it. Its commit is in the mirror of one host: its herald does it.
"""

from __future__ import annotations

from app.clients.git import Git
from app.guard_rails import starts_ci
from app.ledger import effects
from app.ledger.chain import transaction
from app.queries import host_alive
from app.queue import ring
from app.types import Permanent, Pool
from app.voice_pr import skips_ci
from jobs.herald.branches import Conflict
from jobs.herald.comments import Outcome
from jobs.herald.place import Delivery

AWAY_SECONDS = 10.0  # until it is looked again whether the host is back


def push_kept(delivery: Delivery) -> Outcome:
    """Push the kept commit to its branch, which is new or holds that very commit."""
    target, job = delivery.target, delivery.job
    assert job is not None
    sha, branch = target["sha"], target["branch"]

    def call(repository: str) -> str:
        git = delivery.clients.forge_git(job.repository_id, repository, push=True)
        if not (git.mirror / "HEAD").is_file() or git.resolve(target["ref"]) != sha:
            raise Permanent(f"What was kept of job {job.id} is not on this machine any more.", code="nothing_kept")
        _must_start_nothing(git, target["start"], sha)
        there = git.remote_head(branch)
        if there is None:
            delivery.fence()
            outcome = git.push(sha, branch, None)
            there = git.remote_head(branch) if outcome == "conflict" else sha
        else:
            outcome = "same"
        if there != sha:
            raise Conflict(f"There is another branch {branch} on the forge. Delete or rename it, then ask again.")
        return outcome

    return sha, {"sha": sha, "branch": branch, "outcome": delivery.in_repository(call)}


def _must_start_nothing(git: Git, start: str, sha: str) -> None:
    """`[skip ci]` keeps a push from starting CI, and nothing else: a workflow may also begin with a new branch."""
    if not skips_ci(git.message(sha)):
        raise Permanent(f"The commit {sha[:12]} was kept without `[skip ci]` and would start CI.", code="starts_ci")
    changed = [change.path for change in git.changes(start, sha) if starts_ci(change.path)]
    if changed:
        raise Permanent(f"The work changes what the forge runs by itself: {', '.join(changed[:5])}.", code="starts_ci")


def passed_on(delivery: Delivery) -> bool:
    """Whether a claimed effect belongs to another host: a herald there is called, or it waits for one."""
    host = delivery.target.get("host")
    if host in (None, delivery.clients.worker.host):
        return False
    effect = delivery.effect
    if host_alive(host, "control"):
        with transaction():
            effects.pass_on(effect)
            ring(Pool.CONTROL, "herald.deliver", effect["id"], host=host)
        return True
    why = f"The work is kept on {host}, and Mosaic does not run there now."
    if effects.overdue(effect):
        effects.fail(effect, why, "host_gone")
    else:
        effects.postpone(effect, AWAY_SECONDS, why, "host_gone")
    return True
