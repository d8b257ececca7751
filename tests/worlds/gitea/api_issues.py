"""API: issues, their labels, assignees, milestones and locks. Issues and pull requests share their numbers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.worlds.gitea import state as s
from tests.worlds.gitea.http import ApiError, Call, Reply, route
from tests.worlds.gitea.mentions import mentioned


def find_issue(call: Call, number: int) -> s.Issue:
    issue = call.repo.issues.get(number)
    if issue is None:
        raise ApiError(404, f"issue does not exist [id: 0, repo_id: {call.repo.id}, index: {number}]")
    return issue


def writer(call: Call) -> bool:
    return call.world.state.can(call.user, call.repo, "write")


def cut_title(title: str) -> str:
    """A title has at most 255 characters."""
    return title if len(title) <= 255 else title[:254] + "…"


def since(call: Call, key: str = "since") -> float | None:
    text = call.request.query.get(key)
    if not text:
        return None
    try:
        return datetime.fromisoformat(text.replace(" ", "+")).timestamp()
    except ValueError as error:
        raise ApiError(422, f'parsing time "{text}": {error}') from error


def in_window(call: Call, items: list[Any]) -> list[Any]:
    """What was updated within `since` and `before`, both inclusive."""
    low, high = since(call), since(call, "before")
    return [i for i in items if (low is None or i.updated >= low) and (high is None or i.updated <= high)]


# ---------------------------------------------------------------- one issue


@route("POST", "/repos/{owner}/{repo}/issues", scope="issue", live=True)
def create(call: Call) -> Reply:
    """Labels, milestone and assignees of someone without write permission are silently left out."""
    title = call.required("title")
    issue = new_issue(call, title, call.text("body"))
    if writer(call):
        issue.assignees = assignable(call, list(call.body.get("assignees") or []))
        issue.labels = label_ids(call, list(call.body.get("labels") or []))
        issue.milestone = call.body.get("milestone") or None
    call.repo.issues[issue.number] = issue
    call.world.note_labels(issue, call.me, [], issue.labels)
    for user_id in issue.assignees:
        call.world.note_assignee(issue, call.me, user_id, False)
    call.world.events.opened(issue, call.me)
    announce(call, issue)
    return Reply(201, call.world.shapes.issue(issue, call.me))


def new_issue(call: Call, title: str, body: str) -> s.Issue:
    """A numbered record that is not stored yet."""
    repo = call.repo
    repo.last_number += 1
    number = call.world.state.next_id("issue")
    return s.Issue(number, repo.id, repo.last_number, call.me.id, cut_title(title), body)


def announce(call: Call, issue: s.Issue) -> None:
    call.world.notify(issue, call.me, mentioned(call.world.state, issue.body, call.me))


@route("GET", "/repos/{owner}/{repo}/issues", scope="issue", need="read")
def list_issues(call: Call) -> Reply:
    """Issues and pull requests together unless `type` says otherwise; open ones unless `state` does."""
    query = call.request.query
    state, kind = query.get("state", "open"), query.get("type", "")
    labels = {name for name in query.get("labels", "").split(",") if name}
    found = [
        issue
        for issue in reversed(call.repo.issues.values())
        if state in {"all", issue.state}
        and (kind not in {"issues", "pulls"} or (kind == "pulls") == (issue.pull is not None))
        and labels <= {call.repo.labels[n].name for n in issue.labels if n in call.repo.labels}
        and query.get("q", "").lower() in f"{issue.title}\n{issue.body}".lower()
        and _by(call, query.get("created_by"), [issue.user_id])
        and _by(call, query.get("assigned_by"), issue.assignees)
    ]
    return call.page(in_window(call, found), lambda i: call.world.shapes.issue(i, call.user))


def _by(call: Call, name: str | None, ids: list[int]) -> bool:
    user = call.world.state.user_by_name(name) if name else None
    return not name or (user is not None and user.id in ids)


@route("GET", "/repos/{owner}/{repo}/issues/{number:int}", scope="issue", need="read")
def get(call: Call, number: int) -> Reply:
    return Reply(200, call.world.shapes.issue(find_issue(call, number), call.user))


@route("PATCH", "/repos/{owner}/{repo}/issues/{number:int}", scope="issue", live=True)
def edit(call: Call, number: int) -> Reply:
    issue = find_issue(call, number)
    edit_thread(call, issue)
    return Reply(201, call.world.shapes.issue(issue, call.me))


def edit_thread(call: Call, issue: s.Issue) -> None:
    """What PATCH of an issue and of a PR have in common: 403 without a body, one delivery for each thing changed."""
    if call.me.id != issue.user_id and not writer(call):
        raise ApiError(403, None)
    version = call.body.get("content_version")
    if version is not None and version != issue.content_version:
        raise ApiError(409, "content version mismatch")
    _edit_text(call, issue)
    if writer(call):
        if call.body.get("assignees") is not None:
            assign(call, issue, assignable(call, list(call.body["assignees"])))
        _edit_milestone(call, issue)
    if value := call.text("state"):
        if issue.pull and issue.pull.merged_at:
            raise ApiError(412, "cannot change state of this pull request, it was already merged")
        call.world.set_state(issue, call.me, value)


def _edit_text(call: Call, issue: s.Issue) -> None:
    title, body = cut_title(call.text("title", issue.title)), call.text("body", issue.body)
    for key, old, new in (("title", issue.title, title), ("body", issue.body, body)):
        if old == new:
            continue
        setattr(issue, key, new)
        issue.updated = s.now()
        issue.content_version += key == "body"
        if key == "title":
            call.world.note(issue, call.me, f"changed title from {old} to {new}", event="change_title")
        call.world.events.thread(issue, call.me, "", "edited", "author", changes={key: {"from": old}})


def _edit_milestone(call: Call, issue: s.Issue) -> None:
    if "milestone" not in call.body:
        return
    new = call.body["milestone"] or None
    if new != issue.milestone:
        issue.milestone = new
        action = "milestoned" if new else "demilestoned"
        call.world.events.thread(issue, call.me, "milestone", action, "sender")


@route("DELETE", "/repos/{owner}/{repo}/issues/{number:int}", scope="issue", need="admin", live=True)
def delete(call: Call, number: int) -> Reply:
    issue, state = find_issue(call, number), call.world.state
    if call.world.at_least(1, 25):
        call.world.events.thread(issue, call.me, "", "deleted", "owner")
    del call.repo.issues[number]
    for rows in (state.comments, state.reviews, state.notifications):
        for row in [r for r in rows.values() if (r.repo_id, r.number) == (call.repo.id, number)]:
            rows.pop(row.id)
    return Reply(204)


@route("PUT", "/repos/{owner}/{repo}/issues/{number:int}/lock", scope="issue", need="write", live=True)
def lock(call: Call, number: int) -> Reply:
    find_issue(call, number).locked = True
    return Reply(204)


@route("DELETE", "/repos/{owner}/{repo}/issues/{number:int}/lock", scope="issue", need="write", live=True)
def unlock(call: Call, number: int) -> Reply:
    find_issue(call, number).locked = False
    return Reply(204)


def label_ids(call: Call, wanted: list[Any]) -> list[int]:
    """Ids or names, not both; unknown ones are silently dropped."""
    if len({type(item) for item in wanted}) > 1:
        raise ApiError(400, "labels should be an array of strings or integers")
    return [n for n, label in call.repo.labels.items() if n in wanted or label.name in wanted]


# ---------------------------------------------------------------- assignees


def assignable(call: Call, names: list[str]) -> list[int]:
    """The ids of users who may be assigned; an unknown one is 422."""
    ids = []
    for name in names:
        user = call.world.state.user_by_name(str(name))
        if user is None:
            raise ApiError(422, f"Assignee does not exist: [name: {name}]")
        if user.is_org or not call.world.state.can(user, call.repo, "read"):
            raise ApiError(422, f"user is not valid assignee [name: {name}]")
        ids.append(user.id)
    return list(dict.fromkeys(ids))


def assign(call: Call, issue: s.Issue, ids: list[int]) -> None:
    """Replaces the assignees: one delivery for each that came or went, none of which says who."""
    for user_id in [n for n in issue.assignees if n not in ids] + [n for n in ids if n not in issue.assignees]:
        gone = user_id in issue.assignees
        issue.assignees = [n for n in issue.assignees if n != user_id] if gone else [*issue.assignees, user_id]
        issue.updated = s.now()
        call.world.note_assignee(issue, call.me, user_id, gone)
        call.world.events.thread(issue, call.me, "assign", "unassigned" if gone else "assigned", "sender")
    call.world.notify(issue, call.me, set())


@route(
    "POST", "/repos/{owner}/{repo}/issues/{number:int}/assignees", scope="issue", need="write", live=True, since=(1, 27)
)
def add_assignees(call: Call, number: int) -> Reply:
    issue = find_issue(call, number)
    assign(call, issue, [*issue.assignees, *assignable(call, list(call.body.get("assignees") or []))])
    return Reply(201, call.world.shapes.issue(issue, call.me))


@route(
    "DELETE",
    "/repos/{owner}/{repo}/issues/{number:int}/assignees",
    scope="issue",
    need="write",
    live=True,
    since=(1, 27),
)
def remove_assignees(call: Call, number: int) -> Reply:
    issue = find_issue(call, number)
    gone = assignable(call, list(call.body.get("assignees") or []))
    assign(call, issue, [n for n in issue.assignees if n not in gone])
    return Reply(200, call.world.shapes.issue(issue, call.me))
