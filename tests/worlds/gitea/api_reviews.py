"""API: reviews of pull requests, their line comments, and the replies below them.

Rule: the text of a line comment is in no webhook; a pending review is seen by its author only.
"""

from __future__ import annotations

from typing import Any

from tests.worlds.gitea import state as s
from tests.worlds.gitea.api_comments import refuse_locked, tell
from tests.worlds.gitea.api_pulls import PULL, find_pull
from tests.worlds.gitea.http import ApiError, Call, Reply, route

EVENTS = {"APPROVED": "APPROVED", "REQUEST_CHANGES": "REQUEST_CHANGES", "COMMENT": "COMMENT"}


def _reviews(call: Call, issue: s.Issue) -> list[s.Review]:
    mine = call.user.id if call.user else 0
    rows = call.world.state.reviews.values()
    found = [r for r in rows if (r.repo_id, r.number) == (issue.repo_id, issue.number)]
    return [r for r in found if r.state != "PENDING" or r.user_id == mine]


def _find(call: Call, number: int, id: int) -> tuple[s.Issue, s.Review]:
    issue, _ = find_pull(call, number)
    review = next((r for r in _reviews(call, issue) if r.id == id), None)
    if review is None:
        raise ApiError(404, "The target couldn't be found.")
    return issue, review


def _check(call: Call, issue: s.Issue, state: str, body: str, comments: list[Any]) -> None:
    if state in {"APPROVED", "REQUEST_CHANGES"} and issue.user_id == call.me.id:
        word = "approve" if state == "APPROVED" else "reject"
        raise ApiError(422, f"{word} your own pull is not allowed")
    if state == "COMMENT" and not body.strip() and not comments:
        raise ApiError(422, "review event COMMENT requires a body or a comment")


def _submit(call: Call, issue: s.Issue, review: s.Review) -> None:
    """A submitted review is told; a pending one is not."""
    if review.state == "PENDING":
        return
    if review.body:
        call.world.add_comment(issue, call.me, review.body, "review", review_id=review.id)
    issue.updated = s.now()
    call.world.events.reviewed(review, issue, call.me)


@route("POST", f"{PULL}/reviews", scope="repository", live=True)
def create(call: Call, number: int) -> Reply:
    """200, not 201. Any event that is not known makes a draft that nobody else sees."""
    issue, pull = find_pull(call, number)
    state, body = EVENTS.get(call.text("event"), "PENDING"), call.text("body")
    comments = list(call.body.get("comments") or [])
    _check(call, issue, state, body, comments)
    commit = call.text("commit_id") or call.repo.branch(pull.head) or pull.head_sha
    review = s.Review(call.world.state.next_id("review"), call.repo.id, number, call.me.id, state, body, commit)
    call.world.state.reviews[review.id] = review
    for line in comments:
        place = {"path": str(line.get("path") or ""), "commit_id": commit, "review_id": review.id}
        lines = {"line": int(line.get("new_position") or 0), "old_line": int(line.get("old_position") or 0)}
        call.world.add_comment(issue, call.me, str(line.get("body") or ""), "code", **place, **lines)
    _submit(call, issue, review)
    return Reply(200, call.world.shapes.review(review, call.me))


@route("GET", f"{PULL}/reviews", scope="repository", need="read")
def list_reviews(call: Call, number: int) -> Reply:
    issue, _ = find_pull(call, number)
    return call.page(_reviews(call, issue), lambda r: call.world.shapes.review(r, call.user))


@route("GET", f"{PULL}/reviews/{{id:int}}", scope="repository", need="read")
def get(call: Call, number: int, id: int) -> Reply:
    return Reply(200, call.world.shapes.review(_find(call, number, id)[1], call.user))


@route("POST", f"{PULL}/reviews/{{id:int}}", scope="repository", live=True)
def submit(call: Call, number: int, id: int) -> Reply:
    issue, review = _find(call, number, id)
    if review.state != "PENDING":
        raise ApiError(422, "only pending review can be submitted")
    state = EVENTS.get(call.text("event"), "PENDING")
    lines = [c for c in call.world.state.comments_of(issue, "code") if c.review_id == review.id]
    _check(call, issue, state, call.text("body"), lines)
    review.state, review.body, review.submitted = state, call.text("body"), s.now()
    _submit(call, issue, review)
    return Reply(200, call.world.shapes.review(review, call.me))


@route("GET", f"{PULL}/reviews/{{id:int}}/comments", scope="repository", need="read")
def review_comments(call: Call, number: int, id: int) -> Reply:
    """Not in pages."""
    issue, review = _find(call, number, id)
    lines = [c for c in call.world.state.comments_of(issue, "code") if c.review_id == review.id]
    return Reply(200, [call.world.shapes.review_comment(c, call.user) for c in lines])


@route("POST", f"{PULL}/comments/{{id:int}}/replies", scope="repository", live=True, since=(1, 27))
def reply(call: Call, number: int, id: int) -> Reply:
    """A reply in a thread: told as an issue comment, though no plain comment has its id."""
    issue, _ = find_pull(call, number)
    parent = call.world.state.comments.get(id)
    if parent is None or parent.kind != "code" or (parent.repo_id, parent.number) != (call.repo.id, number):
        raise ApiError(404, "The target couldn't be found.")
    refuse_locked(call, issue)
    place: dict[str, Any] = {"review_id": parent.review_id, "path": parent.path, "commit_id": parent.commit_id}
    lines = {"line": parent.line, "old_line": parent.old_line}
    comment = call.world.add_comment(issue, call.me, call.required("body"), "code", **place, **lines)
    tell(call, issue, comment)
    return Reply(201, call.world.shapes.review_comment(comment, call.me))


@route("POST", "/repos/{owner}/{repo}/pulls/comments/{id:int}/resolve", scope="repository", need="write", since=(1, 26))
def resolve(call: Call, id: int) -> Reply:
    """Told to nobody."""
    comment = call.world.state.comments.get(id)
    if comment is None or comment.repo_id != call.repo.id:
        raise ApiError(404, "The target couldn't be found.")
    if comment.kind != "code":
        raise ApiError(400, "not a code comment")
    return Reply(204)
