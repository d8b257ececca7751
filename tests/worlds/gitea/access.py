"""Who is asking, and may they: tokens, passwords, scopes, repositories that are invisible, renamed or archived.

Rule: the order of the refusals is Gitea's: bad credential 401, scope 403, invisible 404, not signed in 401,
too little right 403, archived 423.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING
from urllib.parse import quote

from tests.worlds.gitea.http import ApiError, Call, Request, Route
from tests.worlds.gitea.state import Repo, Token, User

if TYPE_CHECKING:
    from tests.worlds.gitea.world import World

BAD_CREDENTIAL = "invalid username, password or token"
REFUSALS = {
    "write": "user should have a permission to write to a repo",
    "admin": "user should be an owner or a collaborator with admin write of a repository",
    "site": "user should be the site admin",
}


def identify(world: World, request: Request) -> tuple[User | None, Token | None, bool]:
    """The user of a request, the token used, and whether a password was used. A bad credential is 401."""
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if not kind:
        return None, None, False
    if kind.lower() in {"token", "bearer"}:
        return _by_token(world, value.strip())
    if kind.lower() == "basic":
        return _by_basic(world, value)
    raise ApiError(401, BAD_CREDENTIAL)


def _by_token(world: World, secret: str) -> tuple[User, Token, bool]:
    token = world.state.tokens.get(secret)
    user = world.state.users.get(token.user_id) if token else None
    if token is None or user is None:
        raise ApiError(401, BAD_CREDENTIAL)
    return user, token, False


def _by_basic(world: World, value: str) -> tuple[User, Token | None, bool]:
    """A token as password (the user name is not looked at), a token as user name, or a real password."""
    try:
        name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ApiError(401, BAD_CREDENTIAL) from error
    secret = name if password in {"", "x-oauth-basic"} else password
    if secret in world.state.tokens:
        return _by_token(world, secret)
    user = world.state.user_by_name(name)
    if user is None or not user.password or user.password != password:
        raise ApiError(401, BAD_CREDENTIAL)
    return user, None, True


def allows(token: Token | None, scope: str, write: bool) -> bool:
    """Write includes read; a password carries no scopes and may do everything."""
    if token is None or "all" in token.scopes:
        return True
    return f"write:{scope}" in token.scopes or (not write and f"read:{scope}" in token.scopes)


def check_scope(token: Token | None, scopes: str | None, method: str) -> None:
    """Every named scope is needed; the level follows the HTTP method, even where a POST only reads."""
    write = method not in {"GET", "HEAD", "OPTIONS"}
    for scope in (scopes or "").split():
        if token is None or allows(token, scope, write):
            continue
        need = f"{'write' if write else 'read'}:{scope}"
        held = ",".join(token.scopes)
        message = f"token does not have at least one of required scope(s), required=[{need}], token scope={held}"
        raise ApiError(403, message)


def sudo(call: Call) -> None:
    """`?sudo=` or the Sudo header: a site admin acts as somebody else."""
    name = call.request.query.get("sudo") or call.request.headers.get("sudo")
    if not name or call.user is None:
        return
    if not call.user.is_admin:
        raise ApiError(403, "Only administrators allowed to sudo.")
    target = call.world.state.user_by_name(name)
    if target is None:
        raise ApiError(404, f"user does not exist [uid: 0, name: {name}]")
    call.user = target


def find_repo(world: World, owner: str, name: str) -> Repo | None:
    user = world.state.user_by_name(owner)
    return world.state.repo_by_name(user, name) if user else None


def renamed(world: World, owner: str, name: str) -> Repo | None:
    """The repository that used to have this name."""
    user = world.state.user_by_name(owner)
    target = world.state.redirects.get((user.id, name.lower())) if user else None
    return world.state.repos.get(target) if target else None


def resolve_repo(call: Call, owner: str, name: str) -> Repo:
    """The repository of the path: 301 to its new name, 404 where the caller may not see it."""
    repo = find_repo(call.world, owner, name)
    if repo is None and (target := renamed(call.world, owner, name)):
        raise moved(call.world, call.request, f"/{owner}/{name}", target)
    if repo is None or not call.world.state.can(call.user, repo, "read"):
        raise ApiError(404, "The target couldn't be found.")
    return repo


def moved(world: World, request: Request, old: str, repo: Repo) -> ApiError:
    """301 to the new path, with the query, whatever the method was."""
    new = request.raw_path.replace(old, f"/{quote(world.state.full_name(repo))}", 1)
    query = f"?{request.query_string}" if request.query_string else ""
    return ApiError(301, None, {"Location": f"{new}{query}"})


def authorise(call: Call, row: Route, values: dict[str, object]) -> None:
    """Everything that is checked before a handler runs."""
    check_scope(call.token, row.scope, call.request.method)
    sudo(call)
    if "owner" in values and "repo" in values:
        call._repo = resolve_repo(call, str(values.pop("owner")), str(values.pop("repo")))
    if row.need == "none":
        return
    if row.need == "read" and call.request.method == "GET":
        return
    me = call.me
    if row.need == "site" and not me.is_admin:
        raise ApiError(403, REFUSALS["site"])
    if row.need in {"write", "admin"} and not call.world.state.can(me, call.repo, row.need):
        raise ApiError(403, REFUSALS[row.need])
    if row.live and call.repo.archived:
        raise ApiError(423, "repo is archived")
