"""API: hooks of repositories, organisations and the system, and notifications.

Rule: `active` is false unless said otherwise, and an edit that names no events leaves only push.
"""

from __future__ import annotations

from typing import Any

from tests.worlds.gitea import state as s
from tests.worlds.gitea.api_issues import in_window, since
from tests.worlds.gitea.api_users import find_org
from tests.worlds.gitea.events import wanted
from tests.worlds.gitea.http import ApiError, Call, Reply, route

REPO, ORG, SYSTEM = "/repos/{owner}/{repo}/hooks", "/orgs/{org}/hooks", "/admin/hooks"


def shown(call: Call, hook: s.Hook) -> dict[str, Any]:
    """The secret and the authorization header never come back."""
    return {
        "id": hook.id,
        "type": "gitea",
        "branch_filter": hook.branch_filter,
        "config": {"content_type": hook.content_type, "url": hook.url},
        "events": sorted(hook.events),
        "authorization_header": "",
        "active": hook.active,
        "updated_at": call.world.shapes.time(hook.updated),
        "created_at": call.world.shapes.time(hook.created),
    }


def _create(call: Call, level: str, owner: int) -> Reply:
    config = call.body.get("config") or {}
    if call.text("type") not in {"gitea", "gogs"}:
        raise ApiError(422, "Invalid hook type")
    for key in ("url", "content_type"):
        if not config.get(key):
            raise ApiError(422, f"Missing config option: {key}")
    if config["content_type"] not in {"json", "form"}:
        raise ApiError(422, "Invalid content type")
    events = wanted(list(call.body.get("events") or []))
    fields = (level, owner, str(config["url"]), str(config["content_type"]), str(config.get("secret") or ""), events)
    hook = s.Hook(call.world.state.next_id("hook"), *fields, call.flag("active"), call.text("branch_filter"))
    hook.authorization = call.text("authorization_header")
    call.world.state.hooks[hook.id] = hook
    return Reply(201, shown(call, hook))


def _list(call: Call, level: str, owner: int) -> Reply:
    rows = [h for h in call.world.state.hooks.values() if (h.level, h.owner) == (level, owner)]
    return call.page(rows, lambda hook: shown(call, hook))


def _find(call: Call, level: str, owner: int, id: int) -> s.Hook:
    hook = call.world.state.hooks.get(id)
    if hook is None or (hook.level, hook.owner) != (level, owner):
        raise ApiError(404, "The target couldn't be found.")
    return hook


def _edit(call: Call, hook: s.Hook) -> Reply:
    """Cannot change the secret; whatever is not named falls back to its default."""
    config = call.body.get("config") or {}
    hook.url, hook.content_type = config.get("url", hook.url), config.get("content_type", hook.content_type)
    hook.events = wanted(list(call.body.get("events") or []))
    hook.branch_filter = call.text("branch_filter")
    hook.authorization = call.text("authorization_header")
    hook.active = call.flag("active", hook.active)
    hook.updated = s.now()
    return Reply(200, shown(call, hook))


def _delete(call: Call, hook: s.Hook) -> Reply:
    del call.world.state.hooks[hook.id]
    return Reply(204)


@route("POST", REPO, scope="repository", need="admin")
def create_repo_hook(call: Call) -> Reply:
    return _create(call, "repository", call.repo.id)


@route("GET", REPO, scope="repository", need="admin")
def list_repo_hooks(call: Call) -> Reply:
    return _list(call, "repository", call.repo.id)


@route("GET", f"{REPO}/{{id:int}}", scope="repository", need="admin")
def get_repo_hook(call: Call, id: int) -> Reply:
    return Reply(200, shown(call, _find(call, "repository", call.repo.id, id)))


@route("PATCH", f"{REPO}/{{id:int}}", scope="repository", need="admin")
def edit_repo_hook(call: Call, id: int) -> Reply:
    return _edit(call, _find(call, "repository", call.repo.id, id))


@route("DELETE", f"{REPO}/{{id:int}}", scope="repository", need="admin")
def delete_repo_hook(call: Call, id: int) -> Reply:
    return _delete(call, _find(call, "repository", call.repo.id, id))


@route("POST", f"{REPO}/{{id:int}}/tests", scope="repository", need="admin")
def test_repo_hook(call: Call, id: int) -> Reply:
    """A push that never was, to this hook only, of the newest commit of the default branch."""
    hook, repo, shapes = _find(call, "repository", call.repo.id, id), call.repo, call.world.shapes
    sha = repo.branch(repo.default_branch)
    commit = shapes.commit(repo, sha) if sha else None
    who = shapes.user(call.me)
    payload = {
        "ref": f"refs/heads/{repo.default_branch}",
        "before": sha or s.ZERO_SHA,
        "after": sha or s.ZERO_SHA,
        "compare_url": "",
        "commits": [commit] if commit else [],
        "total_commits": int(commit is not None),
        "head_commit": commit,
        "repository": shapes.repo(repo, shapes.rights(call.me, repo)),
        "pusher": who,
        "sender": who,
    }
    call.world.deliveries.submit(hook, "push", "push", payload)
    return Reply(204)


@route("POST", ORG, scope="organization")
def create_org_hook(call: Call, org: str) -> Reply:
    return _create(call, "organization", find_org(call, org, owner=True).id)


@route("GET", ORG, scope="organization")
def list_org_hooks(call: Call, org: str) -> Reply:
    return _list(call, "organization", find_org(call, org, owner=True).id)


@route("PATCH", f"{ORG}/{{id:int}}", scope="organization")
def edit_org_hook(call: Call, org: str, id: int) -> Reply:
    return _edit(call, _find(call, "organization", find_org(call, org, owner=True).id, id))


@route("DELETE", f"{ORG}/{{id:int}}", scope="organization")
def delete_org_hook(call: Call, org: str, id: int) -> Reply:
    return _delete(call, _find(call, "organization", find_org(call, org, owner=True).id, id))


@route("POST", SYSTEM, scope="admin", need="site")
def create_system_hook(call: Call) -> Reply:
    """Without `config.is_system_webhook` it is only a default, which sends nothing by itself."""
    system = str((call.body.get("config") or {}).get("is_system_webhook", "")).lower() == "true"
    return _create(call, "system" if system else "default", 0)


@route("GET", SYSTEM, scope="admin", need="site")
def list_system_hooks(call: Call) -> Reply:
    return _list(call, "system", 0)


@route("PATCH", f"{SYSTEM}/{{id:int}}", scope="admin", need="site")
def edit_system_hook(call: Call, id: int) -> Reply:
    return _edit(call, _find(call, "system", 0, id))


@route("DELETE", f"{SYSTEM}/{{id:int}}", scope="admin", need="site")
def delete_system_hook(call: Call, id: int) -> Reply:
    return _delete(call, _find(call, "system", 0, id))


# ---------------------------------------------------------------- notifications


def _mine(call: Call, statuses: set[str]) -> list[s.Notification]:
    def status(note: s.Notification) -> str:
        return "pinned" if note.pinned else "unread" if note.unread else "read"

    rows = [n for n in call.world.state.notifications.values() if n.user_id == call.me.id and status(n) in statuses]
    return in_window(call, sorted(rows, key=lambda n: (-n.updated, -n.id)))


@route("GET", "/notifications", scope="notification")
def notifications(call: Call) -> Reply:
    """Unread and pinned ones, unless `all` or `status-types` says otherwise."""
    query = call.request.query
    names = {"unread", "pinned", "read"} if query.get("all") == "true" else {"unread", "pinned"}
    if "status-types" in query:
        names = set(call.request.query_values("status-types"))
    kinds = {kind.lower() for kind in call.request.query_values("subject-type")}
    rows = [call.world.shapes.notification(note, call.me) for note in _mine(call, names)]
    rows = [row for row in rows if not kinds or str(row["subject"]["type"]).lower() in kinds]
    return call.page(rows, lambda row: row)


@route("GET", "/notifications/new", scope="notification")
def new_notifications(call: Call) -> Reply:
    return Reply(200, {"new": len(_mine(call, {"unread"}))})


@route("PUT", "/notifications", scope="notification")
def read_notifications(call: Call) -> Reply:
    """Those that were not touched after `last_read_at`."""
    last = since(call, "last_read_at")
    changed = [note for note in _mine(call, {"unread"}) if last is None or note.updated <= last]
    for note in changed:
        note.unread = False
    return Reply(205, [call.world.shapes.notification(note, call.me) for note in changed])


@route("PATCH", "/notifications/threads/{id:int}", scope="notification")
def read_notification(call: Call, id: int) -> Reply:
    note = call.world.state.notifications.get(id)
    if note is None or note.user_id != call.me.id:
        raise ApiError(404, "The target couldn't be found.")
    note.unread = False
    return Reply(205, call.world.shapes.notification(note, call.me))
