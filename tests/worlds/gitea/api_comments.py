"""API: comments and reactions.

Rule: listing the comments of one issue ignores paging; listing those of the repository does not.
"""

from __future__ import annotations

from tests.worlds.gitea import state as s
from tests.worlds.gitea.api_issues import find_issue, in_window, writer
from tests.worlds.gitea.api_users import REACTIONS
from tests.worlds.gitea.http import ApiError, Call, Reply, route
from tests.worlds.gitea.mentions import mentioned

COMMENTS = "/repos/{owner}/{repo}/issues/{number:int}/comments"
COMMENT = "/repos/{owner}/{repo}/issues/comments/{id:int}"


@route("POST", COMMENTS, scope="issue", live=True)
def create(call: Call, number: int) -> Reply:
    """Needs only read. An unknown issue is 500, not 404."""
    body = call.required("body")
    issue = call.repo.issues.get(number)
    if issue is None:
        raise ApiError(500, f"issue does not exist [id: 0, repo_id: {call.repo.id}, index: {number}]")
    refuse_locked(call, issue)
    comment = call.world.add_comment(issue, call.me, body, "plain")
    tell(call, issue, comment)
    return Reply(201, call.world.shapes.comment(comment, call.me))


def refuse_locked(call: Call, issue: s.Issue) -> None:
    if issue.locked and not writer(call):
        raise ApiError(403, "This conversation has been locked and limited to collaborators.")


def tell(call: Call, issue: s.Issue, comment: s.Comment) -> None:
    """A new comment: deliveries and notifications."""
    issue.updated = s.now()
    call.world.events.comment(comment, call.me, "created")
    call.world.notify(issue, call.me, mentioned(call.world.state, comment.body, call.me), comment)


@route("GET", COMMENTS, scope="issue", need="read")
def list_of_issue(call: Call, number: int) -> Reply:
    """All of them, whatever `page` and `limit` say; an unknown issue is 500."""
    issue = call.repo.issues.get(number)
    if issue is None:
        raise ApiError(500, "issue does not exist")
    found = in_window(call, call.world.state.comments_of(issue, "plain"))
    shown = [call.world.shapes.comment(comment, call.user) for comment in found]
    return Reply(200, shown, headers={"X-Total-Count": str(len(shown))})


@route("GET", "/repos/{owner}/{repo}/issues/comments", scope="issue", need="read")
def list_of_repo(call: Call) -> Reply:
    """Plain comments only, in pages."""
    rows = call.world.state.comments.values()
    found = in_window(call, [c for c in rows if c.repo_id == call.repo.id and c.kind == "plain"])
    return call.page(found, lambda c: call.world.shapes.comment(c, call.user), link=False)


@route("GET", "/repos/{owner}/{repo}/issues/{number:int}/timeline", scope="issue", need="read")
def timeline(call: Call, number: int) -> Reply:
    """Comments and what was done, but no line comments; all of it unless a page is asked for. Unknown issue: 500."""
    issue = call.repo.issues.get(number)
    if issue is None:
        raise ApiError(500, "issue does not exist")
    found = in_window(call, call.world.state.comments_of(issue, "plain", "review", "system"))
    return Reply(200, [call.world.shapes.happening(one, call.user) for one in found])


def find_comment(call: Call, id: int) -> s.Comment:
    comment = call.world.state.comments.get(id)
    if comment is None or comment.repo_id != call.repo.id:
        raise ApiError(404, f"comment does not exist [id: {id}, issue_id: 0]")
    return comment


@route("GET", COMMENT, scope="issue", need="read")
def get(call: Call, id: int) -> Reply:
    """204 for whatever is no plain comment, such as a reply below a line comment."""
    comment = find_comment(call, id)
    if comment.kind != "plain":
        return Reply(204)
    return Reply(200, call.world.shapes.comment(comment, call.user))


@route("PATCH", COMMENT, scope="issue", live=True)
def edit(call: Call, id: int) -> Reply:
    """The same text again is 200 and told to nobody."""
    body, comment = call.required("body"), find_comment(call, id)
    _refuse_others(call, comment)
    if comment.kind == "system":
        return Reply(204)
    old = comment.body
    if body != old:
        comment.body, comment.updated = body, s.now()
        call.world.events.comment(comment, call.me, "edited", {"body": {"from": old}})
    return Reply(200, call.world.shapes.comment(comment, call.me))


@route("DELETE", COMMENT, scope="issue", live=True)
def delete(call: Call, id: int) -> Reply:
    comment = find_comment(call, id)
    _refuse_others(call, comment)
    if comment.kind == "system":
        raise ApiError(400, None)
    del call.world.state.comments[id]
    call.world.events.comment(comment, call.me, "deleted")
    return Reply(204)


def _refuse_others(call: Call, comment: s.Comment) -> None:
    if call.me.id != comment.user_id and not writer(call):
        raise ApiError(403, None)


# ---------------------------------------------------------------- reactions

Key = tuple[str, int]


def _rows(call: Call, key: Key) -> Reply:
    shapes = call.world.shapes
    rows = call.repo.reactions[key]
    return Reply(
        200,
        [
            {
                "user": shapes.user(call.world.state.user(user), call.user),
                "content": name,
                "created_at": shapes.time(at),
            }
            for user, name, at in rows
        ],
    )


def _react(call: Call, key: Key, issue: s.Issue) -> Reply:
    """201 when it is new, 200 when it was there; no hook hears of it."""
    name = call.text("content")
    if issue.locked and not writer(call):
        raise ApiError(403, "This conversation has been locked and limited to collaborators.")
    if name not in REACTIONS:
        raise ApiError(403, f"'{name}' is not an allowed reaction")
    rows = call.repo.reactions[key]
    known = next((row for row in rows if row[:2] == (call.me.id, name)), None)
    row = known or (call.me.id, name, s.now())
    if known is None:
        rows.append(row)
    shapes = call.world.shapes
    shown = {"user": shapes.user(call.me, call.me), "content": name, "created_at": shapes.time(row[2])}
    return Reply(200 if known else 201, shown)


def _unreact(call: Call, key: Key) -> Reply:
    rows = call.repo.reactions[key]
    rows[:] = [row for row in rows if row[:2] != (call.me.id, call.text("content"))]
    return Reply(204 if call.world.at_least(1, 26) else 200)


def _comment_issue(call: Call, id: int) -> s.Issue:
    return find_issue(call, find_comment(call, id).number)


@route("GET", f"{COMMENT}/reactions", scope="issue", need="read")
def comment_reactions(call: Call, id: int) -> Reply:
    return _rows(call, ("comment", find_comment(call, id).id))


@route("POST", f"{COMMENT}/reactions", scope="issue", live=True)
def react_to_comment(call: Call, id: int) -> Reply:
    return _react(call, ("comment", id), _comment_issue(call, id))


@route("DELETE", f"{COMMENT}/reactions", scope="issue", live=True)
def unreact_to_comment(call: Call, id: int) -> Reply:
    find_comment(call, id)
    return _unreact(call, ("comment", id))


ISSUE = "/repos/{owner}/{repo}/issues/{number:int}"


@route("GET", f"{ISSUE}/reactions", scope="issue", need="read")
def issue_reactions(call: Call, number: int) -> Reply:
    return _rows(call, ("issue", find_issue(call, number).id))


@route("POST", f"{ISSUE}/reactions", scope="issue", live=True)
def react_to_issue(call: Call, number: int) -> Reply:
    issue = find_issue(call, number)
    return _react(call, ("issue", issue.id), issue)


@route("DELETE", f"{ISSUE}/reactions", scope="issue", live=True)
def unreact_to_issue(call: Call, number: int) -> Reply:
    return _unreact(call, ("issue", find_issue(call, number).id))
