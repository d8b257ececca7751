"""runner.admit: what needs the network before any work: is the request real, allowed, and within the rules."""

from __future__ import annotations

import logging
from dataclasses import asdict

from app import authority, quality_rails, queries
from app.authority import Authority
from app.budget import daily_left
from app.clients.git import Git
from app.clients.gitea import GiteaClient
from app.clients.gitea_types import Repository
from app.context import Clients, Context
from app.guard_rails import Decision
from app.ledger import jobs
from app.rules import RULES_FILES, Rules, effective, parse_rules, stricter
from app.types import ConfigInvalid, Done, Failed, GateSpec, Job, MosaicError, Result
from jobs.runner.branch import Branch, choose_branch
from jobs.runner.breakers import tripped
from jobs.runner.evidence import verify

log = logging.getLogger("mosaic.runner")
_RULES_LIMIT = 64 * 1024


class Refuse(MosaicError):
    """The job is not admitted; `code` is a reason of app/types.py. `bot` = no person asked."""

    def __init__(self, message: str, *, code: str, bot: bool = False) -> None:
        super().__init__(message, code=code)
        self.bot = bot


def introduce(clients: Clients) -> None:
    """Learn which account is our own, so that the receiver can drop the bot's own actions."""
    assert clients.forge is not None
    try:
        me = clients.forge.me()
    except MosaicError as error:
        log.warning("Gitea does not say who this bot is (%s); it is asked again at the first job", error)
        return
    from app.edge import connected

    with connected():
        jobs.remember_self(me.id, me.login)


def admit(context: Context) -> Result:
    """Queue the job or refuse it, visibly. Its output says who asked, from which source, with which rules."""
    try:
        return _admit(context)
    except Refuse as refusal:
        return Failed(refusal.code, str(refusal), output={"bot": True} if refusal.bot else {})
    except ConfigInvalid as error:
        return Failed("config_invalid", str(error))


def _admit(context: Context) -> Result:
    job, forge = context.job, context.forge
    if queries.self_id() is None:
        introduce(context.clients)
    repository = _served(context, forge)
    who = authority.ask(
        context.clients, repository.full_name, job.trigger.actor_id, job.trigger.actor, job.trigger.permission
    )
    if job.trigger.kind == "cli" and job.requester.startswith("cli:"):  # not when a person on the forge retries it
        who = Authority("operator", "admin", job.trigger.actor, job.trigger.actor_id)
    _early(who)
    again = job.retry_of is not None
    polled = job.metadata.get("found") == "poll"
    why_not = verify(forge, repository.full_name, job.trigger, queries.self_id(), again=again, polled=polled)
    if why_not:
        raise Refuse(why_not, code="not_found")
    git, base = _base(context, repository)
    rules = _rules(context, git, base, repository.full_name)
    who = authority.known_as(rules, who)
    decision = authority.judge(context, rules, who)
    if who.bot:
        _person_first(job, decision)
    if who.source != "operator":
        _within(decision.allowed, decision.why, rules, job, base)
    _affordable(context, rules)
    gates = _gates(context, git, base, rules, repository.full_name)
    branch = choose_branch(context, forge, repository, rules.bot.branch_prefix)
    jobs.remember_repository(
        repository.id, repository.full_name, repository.default_branch, repository.private, rules.bot.trigger_label
    )
    judged_by = {"base": base, "rules_sha256": rules.sha256, "gates_sha256": quality_rails.gates_hash(gates)}
    context.event("guard.allowed", what="admission", **judged_by)  # so that no row can say otherwise later
    return Done(
        output={"authority": who.as_json(), "gates": [gate.name for gate in gates], **judged_by},
        facts=_facts(repository, base, branch, rules, gates, who),
    )


def _facts(
    repository: Repository, base: str, branch: Branch, rules: Rules, gates: tuple[GateSpec, ...], who: Authority
) -> dict[str, object]:
    """The columns of the job that admission fixes."""
    return {
        "repository": repository.full_name,
        "default_branch": repository.default_branch,
        "base_sha": base,
        "branch": branch.name,
        "pull_request": branch.pull_request,
        "rules": rules.to_json(),
        "gates": [asdict(gate) for gate in gates],
        "authority": who.as_json(),
    }


def _served(context: Context, forge: GiteaClient) -> Repository:
    """The repository as it is today, by id: names change."""
    repository = forge.repository_by_id(context.job.repository_id)
    if repository is None:
        raise Refuse("The repository is gone, or Mosaic's account may not see it.", code="forge_forbidden")
    if not context.clients.server.serves(repository.full_name):
        raise Refuse(f"{repository.full_name} is not on the server's list.", code="not_served")
    if repository.archived:
        raise Refuse("The repository is archived.", code="repository_unusable")
    if repository.empty:
        raise Refuse("The repository is empty: there is nothing to start from.", code="repository_unusable")
    return repository


def _early(who: Authority) -> None:
    """Turn strangers away before anything is fetched for them."""
    if who.source == "unknown" and who.permission is None:
        raise Refuse(
            f"Mosaic cannot tell what {who.login} may do here. Set MOSAIC_GITEA_AUTHZ_TOKEN, or make the bot an "
            "administrator of the repository.",
            code="rights_unknown",
        )
    if who.permission == "none":
        raise Refuse(f"{who.login} has no access to this repository.", code="refused")


def _base(context: Context, repository: Repository) -> tuple[Git, str]:
    """Fetch the mirror; it and the head of the default branch, kept for this job."""
    git = context.clients.forge_git(repository.id, repository.full_name)
    git.ensure()
    git.fetch()
    base = git.resolve(f"refs/heads/{repository.default_branch}")
    if base is None:
        raise Refuse(f"The default branch {repository.default_branch} does not exist.", code="repository_unusable")
    git.keep(base, f"refs/mosaic/job-{context.job.id}/base")
    return git, base


def _rules(context: Context, git: Git, base: str, repository: str) -> Rules:
    """The effective rules, from the default branch and nowhere else; of a retry, the stricter of then and now."""
    server, found = context.clients.server, None
    for path in RULES_FILES:
        raw = git.read(base, path, _RULES_LIMIT)
        if raw is not None:
            found = parse_rules(raw.decode("utf-8", "replace"), path)
            break
    rules = effective(server, found, repository)
    before = queries.rules(context.job.retry_of) if context.job.retry_of else None
    return stricter(Rules.from_json(before), rules) if before else rules


def _person_first(job: Job, decision: Decision) -> None:
    """Two bots that answer each other would never end: after a bot's job on an issue a person has to ask there."""
    if not decision.allowed:
        raise Refuse(decision.why, code="refused", bot=True)
    others = queries.issue_jobs(job.repository_id, job.number) if job.number is not None else ()
    before = next((one for one in others if one.id != job.id and one.base_sha is not None), None)
    if before is not None and queries.asked_by_bot(before.id):
        said = f"A bot asked for job {before.id} here as well: a person has to ask before a bot may ask again."
        raise Refuse(said, code="refused", bot=True)


def _within(allowed: bool, why: str, rules: Rules, job: Job, base: str) -> None:
    if not rules.bot.enabled:
        raise Refuse(
            "Mosaic is switched off for this repository (`[bot] enabled = false`).", code="repository_unusable"
        )
    if not allowed:
        raise Refuse(why, code="refused")
    if job.trigger.kind == "assigned" and not rules.bot.trigger_on_assign:
        raise Refuse(
            "This repository does not start jobs by assignment: mention Mosaic instead.", code="repository_unusable"
        )
    breaker = tripped(job, rules.limits, base)
    if breaker:
        raise Refuse(breaker[1], code=breaker[0])


def _affordable(context: Context, rules: Rules) -> None:
    used_up = daily_left(context, rules)[1]
    if used_up:
        raise Refuse(used_up, code="daily_budget_exhausted")


def _gates(context: Context, git: Git, base: str, rules: Rules, repository: str) -> tuple[GateSpec, ...]:
    """Effective gates: server and repository, or what the repository's own files suggest."""
    own = rules.gates
    if not own:
        files = {entry.path for entry in git.list_tree(base)}
        own = quality_rails.detect(files, lambda path: git.read(base, path, 256 * 1024))
    gates = quality_rails.effective(queries.server_gates(repository), own)
    if not any(gate.required for gate in gates) and not rules.bot.allow_ungated:
        raise Refuse("No gate is configured, and none could be detected.", code="no_gates")
    return gates
