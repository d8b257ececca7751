"""API: repositories, their settings, their collaborators, and who may do what."""

from __future__ import annotations

import re
from dataclasses import replace

from tests.worlds.gitea import state as s
from tests.worlds.gitea.gitstore import Person
from tests.worlds.gitea.http import ApiError, Call, Reply, route

NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
SELF_ONLY = (
    "Only admins can query all permissions, repo admins can query all repo permissions, "
    "collaborators can query only their own"
)


def show(call: Call, repo: s.Repo, status: int = 200) -> Reply:
    return Reply(status, call.world.shapes.repo(repo, call.world.shapes.rights(call.user, repo), call.user))


def person(user: s.User) -> Person:
    """How a user signs commits."""
    return Person(user.full_name or user.login, user.email)


# ---------------------------------------------------------------- repositories


def _create(call: Call, owner: s.User) -> Reply:
    world, name = call.world, call.required("name")
    if not NAME.fullmatch(name) or name in {".", ".."}:
        raise ApiError(422, f"[Name]: AlphaDashDot: {name}")
    if world.state.repo_by_name(owner, name):
        raise ApiError(409, "The repository with the same name already exists.")
    repo = s.Repo(world.state.next_id("repo"), owner.id, name, call.flag("private"), call.text("description"))
    repo.default_branch = call.text("default_branch") or "main"
    world.git.create(repo.id, repo.default_branch)
    world.state.repos[repo.id] = repo
    world.state.redirects.pop((owner.id, name.lower()), None)
    _copy_default_hooks(world.state, repo)
    world.events.repository(repo, call.me, "created")
    if call.flag("auto_init"):
        files: dict[str, bytes | None] = {"README.md": f"# {name}\n\n{repo.description}".encode()}
        world.git.write(repo.id, repo.default_branch, None, "Initial commit\n", person(call.me), files)
        repo.refs = world.git.refs(repo.id)  # the first commit of an initialised repository tells no hook
    return show(call, repo, 201)


def _copy_default_hooks(state: s.State, repo: s.Repo) -> None:
    for hook in [h for h in state.hooks.values() if h.level == "default"]:
        number = state.next_id("hook")
        state.hooks[number] = replace(hook, id=number, level="repository", owner=repo.id, events=set(hook.events))


@route("GET", "/user/repos", scope="user repository")
def list_own(call: Call) -> Reply:
    """What the caller owns, works on as a collaborator, or reaches through a team; public ones of others are not."""
    state, me = call.world.state, call.me
    found = [
        repo
        for repo in state.repos.values()
        if me.id in {repo.owner_id, *repo.collaborators, *state.user(repo.owner_id).members}
    ]
    return call.page(found, lambda r: call.world.shapes.repo(r, call.world.shapes.rights(me, r), me))


@route("POST", "/user/repos", scope="user repository")
def create_own(call: Call) -> Reply:
    return _create(call, call.me)


@route("POST", "/admin/users/{name}/repos", scope="admin", need="site")
def create_for(call: Call, name: str) -> Reply:
    owner = call.world.state.user_by_name(name)
    if owner is None:
        raise ApiError(404, f"user redirect does not exist [name: {name}]")
    return _create(call, owner)


@route("POST", "/orgs/{org}/repos", scope="organization repository")
def create_in_org(call: Call, org: str) -> Reply:
    owner = call.world.state.user_by_name(org)
    if owner is None or not owner.is_org:
        raise ApiError(422, f"org does not exist [name: {org}]")
    if call.me.id not in owner.members and not call.me.is_admin:
        raise ApiError(403, "Given user is not allowed to create repository in organization.")
    return _create(call, owner)


@route("GET", "/repos/{owner}/{repo}", scope="repository", need="read")
def get_repo(call: Call) -> Reply:
    return show(call, call.repo)


@route("GET", "/repositories/{id:int}", scope="repository", need="none")
def get_by_id(call: Call, id: int) -> Reply:
    repo = call.world.state.repos.get(id)
    if repo is None or not call.world.state.can(call.user, repo, "read"):
        raise ApiError(404, "The target couldn't be found.")
    return show(call, repo)


@route("PATCH", "/repos/{owner}/{repo}", scope="repository", need="admin")
def edit_repo(call: Call) -> Reply:
    """Of an archived repository nothing can be changed but that."""
    repo, world = call.repo, call.world
    if call.text("name") and call.text("name") != repo.name:
        _rename(call, repo, call.text("name"))
    repo.private = call.flag("private", repo.private)
    repo.description = call.text("description", repo.description)
    repo.archived = call.flag("archived", repo.archived)
    branch = call.text("default_branch")
    if branch and branch != repo.default_branch:
        if repo.refs and repo.branch(branch) is None:
            raise ApiError(404, f"branch does not exist [name: {branch}]")
        repo.default_branch = branch
        world.git.set_default_branch(repo.id, branch)
    return show(call, repo)


def _rename(call: Call, repo: s.Repo, name: str) -> None:
    """The old name redirects from now on; no hook hears of it."""
    state = call.world.state
    owner = state.user(repo.owner_id)
    taken = state.repo_by_name(owner, name)
    if taken is not None and taken is not repo:
        raise ApiError(422, f"repo name is already taken [name: {name}]")
    state.redirects.pop((owner.id, name.lower()), None)
    state.redirects[(owner.id, repo.name.lower())] = repo.id
    repo.name = name


@route("DELETE", "/repos/{owner}/{repo}", scope="repository")
def delete_repo(call: Call) -> Reply:
    if not call.world.state.can(call.me, call.repo, "owner"):
        raise ApiError(403, "user should be an owner of a repository")
    delete_repo_now(call, call.repo)
    return Reply(204)


def delete_repo_now(call: Call, repo: s.Repo) -> None:
    """Removes the repository and everything that hangs on it; owner's and system hooks hear of it."""
    state = call.world.state
    call.world.events.repository(repo, call.me, "deleted")
    del state.repos[repo.id]
    state.redirects = {key: n for key, n in state.redirects.items() if n != repo.id}
    state.hooks = {n: h for n, h in state.hooks.items() if not (h.level == "repository" and h.owner == repo.id)}
    state.comments = {n: c for n, c in state.comments.items() if c.repo_id != repo.id}
    state.reviews = {n: r for n, r in state.reviews.items() if r.repo_id != repo.id}
    state.notifications = {n: m for n, m in state.notifications.items() if m.repo_id != repo.id}
    state.statuses = [row for row in state.statuses if row.repo_id != repo.id]
    call.world.git.delete(repo.id)


# ---------------------------------------------------------------- collaborators


def _known(call: Call, name: str, status: int) -> s.User:
    user = call.world.state.user_by_name(name)
    if user is None:
        raise ApiError(status, f"user redirect does not exist [name: {name}]")
    return user


@route("GET", "/repos/{owner}/{repo}/collaborators", scope="repository")
def collaborators(call: Call) -> Reply:
    users = [call.world.state.user(n) for n in call.repo.collaborators]
    return call.page(users, lambda u: call.world.shapes.user(u, call.user))


@route("GET", "/repos/{owner}/{repo}/collaborators/{name}", scope="repository")
def is_collaborator(call: Call, name: str) -> Reply:
    """Only explicit collaborators: not the owner, not an admin."""
    if _known(call, name, 422).id in call.repo.collaborators:
        return Reply(204)
    raise ApiError(404, None)


@route("PUT", "/repos/{owner}/{repo}/collaborators/{name}", scope="repository", need="admin", live=True)
def add_collaborator(call: Call, name: str) -> Reply:
    user, level = _known(call, name, 422), call.text("permission") or "write"
    if level not in {"read", "write", "admin"}:
        raise ApiError(422, "invalid permission")
    call.repo.collaborators[user.id] = level
    return Reply(204)


@route("DELETE", "/repos/{owner}/{repo}/collaborators/{name}", scope="repository", need="admin", live=True)
def remove_collaborator(call: Call, name: str) -> Reply:
    call.repo.collaborators.pop(_known(call, name, 422).id, None)
    return Reply(204)


@route("GET", "/repos/{owner}/{repo}/collaborators/{name}/permission", scope="repository")
def permission(call: Call, name: str) -> Reply:
    """About oneself anyone may ask; about others only an admin of the repository or of the site."""
    state = call.world.state
    if name.lower() != call.me.login.lower() and not state.can(call.me, call.repo, "admin"):
        raise ApiError(403, SELF_ONLY)
    user = _known(call, name, 404)
    level = state.level(user, call.repo)
    shown = call.world.shapes.user(user, call.me)
    return Reply(200, {"permission": level, "role_name": level, "user": shown})


# ---------------------------------------------------------------- branch protection


@route("POST", "/repos/{owner}/{repo}/branch_protections", scope="repository", need="admin", live=True)
def protect(call: Call) -> Reply:
    rule = call.text("rule_name") or call.required("branch_name")
    if rule in call.repo.protected:
        raise ApiError(403, "Branch protection already exist")
    call.repo.protected[rule] = call.flag("enable_push")
    return Reply(201, {"rule_name": rule, "branch_name": rule, "enable_push": call.repo.protected[rule]})


@route("GET", "/repos/{owner}/{repo}/branch_protections", scope="repository", need="admin")
def protections(call: Call) -> Reply:
    rows = call.repo.protected.items()
    return Reply(200, [{"rule_name": rule, "branch_name": rule, "enable_push": push} for rule, push in rows])


@route("DELETE", "/repos/{owner}/{repo}/branch_protections/{rule:path}", scope="repository", need="admin", live=True)
def unprotect(call: Call, rule: str) -> Reply:
    if call.repo.protected.pop(rule, None) is None:
        raise ApiError(404, "The target couldn't be found.")
    return Reply(204)
