"""API: the server, users, tokens, organisations."""

from __future__ import annotations

import re
from typing import Any

from tests.worlds.gitea import state as s
from tests.worlds.gitea.api_repos import delete_repo_now
from tests.worlds.gitea.http import ApiError, Call, Reply, route

REACTIONS = ("+1", "-1", "laugh", "hooray", "confused", "heart", "rocket", "eyes")
CATEGORIES = ("activitypub", "admin", "misc", "notification", "organization", "package", "issue", "repository", "user")
SCOPES = {f"{level}:{name}" for level in ("read", "write") for name in CATEGORIES} | {"all", "public-only"}
NAME = re.compile(r"[A-Za-z0-9](?:[-._]?[A-Za-z0-9])*")


@route("GET", "/version", scope=None, need="none")
def version(call: Call) -> Reply:
    return Reply(200, {"version": call.world.version})


@route("GET", "/settings/api", scope=None, need="none")
def settings_api(call: Call) -> Reply:
    sizes = {
        "default_git_trees_per_page": 1000,
        "default_max_blob_size": 10485760,
        "default_max_response_size": 104857600,
    }
    return Reply(200, {"max_response_items": 50, "default_paging_num": 30} | sizes)


@route("GET", "/settings/ui", scope=None, need="none")
def settings_ui(call: Call) -> Reply:
    return Reply(
        200, {"default_theme": "gitea-auto", "allowed_reactions": list(REACTIONS), "custom_emojis": ["git", "gitea"]}
    )


# ---------------------------------------------------------------- users


@route("GET", "/user", scope="user")
def me(call: Call) -> Reply:
    return Reply(200, call.world.shapes.user(call.me, call.me))


@route("GET", "/users/search", scope="user", need="none")
def search(call: Call) -> Reply:
    query = call.request.query
    text, uid = query.get("q", "").lower(), query.get("uid", "")
    users = [u for u in call.world.state.users.values() if not u.is_org and text in u.login.lower()]
    if uid.isdigit() and int(uid) > 0:
        users = [u for u in users if u.id == int(uid)]
    reply = call.page(users, lambda u: call.world.shapes.user(u, call.user))
    reply.payload = {"data": reply.payload, "ok": True}
    return reply


@route("GET", "/users/{name}", scope="user", need="none")
def get_user(call: Call, name: str) -> Reply:
    return Reply(200, call.world.shapes.user(_user(call, name), call.user))


@route("POST", "/admin/users", scope="admin", need="site")
def create_user(call: Call) -> Reply:
    name, email = call.required("username"), call.required("email")
    if not call.text("password"):
        raise ApiError(400, "password is required")
    _free_name(call, name)
    fields = {"email": email, "full_name": call.text("full_name"), "password": call.text("password")}
    user = call.world.state.add_user(name, **fields)
    return Reply(201, call.world.shapes.user(user, call.me))


@route("PATCH", "/admin/users/{name}", scope="admin", need="site")
def edit_user(call: Call, name: str) -> Reply:
    user = _user(call, name)
    user.is_admin = call.flag("admin", user.is_admin)
    user.full_name, user.email = call.text("full_name", user.full_name), call.text("email", user.email)
    user.password = call.text("password", user.password)
    return Reply(200, call.world.shapes.user(user, call.me))


@route("DELETE", "/admin/users/{name}", scope="admin", need="site")
def delete_user(call: Call, name: str) -> Reply:
    user = _user(call, name)
    if user.is_org:
        raise ApiError(422, f"{name} is an organization not a user")
    if user.id == call.me.id:
        raise ApiError(422, "you cannot delete yourself")
    owned = [r for r in call.world.state.repos.values() if r.owner_id == user.id]
    if owned and call.request.query.get("purge") != "true":
        raise ApiError(422, f"user still has ownership of repositories [uid: {user.id}]")
    for repo in owned:
        delete_repo_now(call, repo)
    _forget(call.world.state, user)
    return Reply(204)


def _forget(state: s.State, user: s.User) -> None:
    del state.users[user.id]
    state.tokens = {secret: t for secret, t in state.tokens.items() if t.user_id != user.id}
    state.hooks = {n: h for n, h in state.hooks.items() if not (h.level == "organization" and h.owner == user.id)}
    for repo in state.repos.values():
        repo.collaborators.pop(user.id, None)
        for issue in repo.issues.values():
            issue.assignees = [n for n in issue.assignees if n != user.id]


def _user(call: Call, name: str) -> s.User:
    user = call.world.state.user_by_name(name)
    if user is None:
        raise ApiError(404, f"user redirect does not exist [name: {name}]")
    return user


def _free_name(call: Call, name: str) -> None:
    if not NAME.fullmatch(name):
        raise ApiError(422, f"name is invalid [{name}]: must be valid alpha or numeric or dash(-_) or dot characters")
    if call.world.state.user_by_name(name):
        raise ApiError(422, f"user already exists [name: {name}]")


# ---------------------------------------------------------------- tokens


def _token(token: s.Token, call: Call, secret: str = "") -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "sha1": secret,
        "token_last_eight": token.secret[-8:],
        "scopes": list(token.scopes),
        "created_at": call.world.shapes.time(token.created),
        "last_used_at": "0001-01-01T00:00:00Z",
    }


@route("POST", "/users/{name}/tokens", scope="user", need="none")
def create_token(call: Call, name: str) -> Reply:
    """Needs a password, not a token; the secret is shown this once."""
    if not call.by_password:
        raise ApiError(401, "auth required")
    user = _user(call, name)
    if call.me.id != user.id and not call.me.is_admin:
        raise ApiError(403, "doer should be the site admin or be same as the contextUser")
    title, scopes = call.required("name"), call.body.get("scopes") or []
    if any(t.name == title for t in call.world.state.tokens.values() if t.user_id == user.id):
        raise ApiError(400, "access token name has been used already")
    if not scopes:
        raise ApiError(400, "access token must have a scope")
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise ApiError(400, f"invalid access token scope: {unknown[0]}")
    token = call.world.state.add_token(user, title, tuple(scopes))
    return Reply(201, _token(token, call, token.secret))


@route("GET", "/token", scope=None, since=(1, 27))
def current_token(call: Call) -> Reply:
    call.me  # noqa: B018 - refuses whoever is not signed in
    if call.token is None:
        raise ApiError(404, "not authenticated by a token")
    return Reply(200, _token(call.token, call))


# ---------------------------------------------------------------- organisations


def _new_org(call: Call, owner: s.User) -> Reply:
    name = call.required("username")
    _free_name(call, name)
    org = call.world.state.add_user(name, email=call.text("email"), is_org=True, members={owner.id})
    org.full_name = call.text("full_name")
    return Reply(201, call.world.shapes.org(org))


@route("POST", "/orgs", scope="organization")
def create_org(call: Call) -> Reply:
    return _new_org(call, call.me)


@route("POST", "/admin/users/{name}/orgs", scope="admin", need="site")
def create_org_for(call: Call, name: str) -> Reply:
    return _new_org(call, _user(call, name))


def find_org(call: Call, name: str, owner: bool = False) -> s.User:
    """The organisation; `owner` demands that the caller owns it."""
    org = call.world.state.user_by_name(name)
    if org is None or not org.is_org:
        raise ApiError(404, "The target couldn't be found.")
    if owner and call.me.id not in org.members and not call.me.is_admin:
        raise ApiError(403, "Must be an organization owner")
    return org


@route("GET", "/orgs/{org}", scope="organization", need="none")
def get_org(call: Call, org: str) -> Reply:
    return Reply(200, call.world.shapes.org(find_org(call, org)))


@route("DELETE", "/orgs/{org}", scope="organization")
def delete_org(call: Call, org: str) -> Reply:
    found = find_org(call, org, owner=True)
    if any(r.owner_id == found.id for r in call.world.state.repos.values()):
        raise ApiError(500, f"user still has ownership of repositories [uid: {found.id}]")
    _forget(call.world.state, found)
    return Reply(204)
