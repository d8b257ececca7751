"""API: pull requests, from opening to merging.

Rule: a PR is an issue with two branches; its shas are read from the real repository.
"""

from __future__ import annotations

import re

from tests.worlds.gitea import state as s
from tests.worlds.gitea.api_issues import (
    announce,
    assignable,
    edit_thread,
    find_issue,
    in_window,
    label_ids,
    new_issue,
    writer,
)
from tests.worlds.gitea.api_repos import person
from tests.worlds.gitea.http import ApiError, Call, Reply, route
from tests.worlds.gitea.payloads import is_draft

PULL = "/repos/{owner}/{repo}/pulls/{number:int}"
CLOSES = re.compile(r"\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?):?\s+#(\d+)", re.IGNORECASE)


def find_pull(call: Call, number: int) -> tuple[s.Issue, s.Pull]:
    issue = call.repo.issues.get(number)
    if issue is None or issue.pull is None:
        raise ApiError(404, f"pull request does not exist [id: 0, issue_id: 0, index: {number}]")
    return issue, issue.pull


def show(call: Call, issue: s.Issue, status: int = 200) -> Reply:
    return Reply(status, call.world.shapes.pull(issue, call.user))


@route("POST", "/repos/{owner}/{repo}/pulls", scope="repository", live=True)
def create(call: Call) -> Reply:
    """409 only while another one for the same branches is open; a PR without commits is accepted."""
    head, base, title = _head(call, call.required("head")), call.required("base"), call.required("title")
    _check_branches(call, head, base)
    head_sha, base_sha = str(call.repo.branch(head)), str(call.repo.branch(base))
    issue = new_issue(call, title, call.text("body"))
    merge_base = call.world.git.merge_base(call.repo.id, base_sha, head_sha) or base_sha
    issue.pull = s.Pull(call.world.state.next_id("pull"), base, head, head_sha, merge_base)
    if writer(call):
        issue.assignees = assignable(call, list(call.body.get("assignees") or []))
        issue.labels = label_ids(call, list(call.body.get("labels") or []))
    call.repo.issues[issue.number] = issue
    call.world.refresh_pull(call.repo, issue)
    call.world.events.opened(issue, call.me)
    announce(call, issue)
    return show(call, issue, 201)


def _head(call: Call, text: str) -> str:
    """`branch` or `owner:branch` of the same repository: this forge has no forks."""
    owner, colon, branch = text.rpartition(":")
    if colon and owner.lower() != call.world.state.user(call.repo.owner_id).login.lower():
        raise ApiError(404, "The target couldn't be found.")
    return branch


def _check_branches(call: Call, head: str, base: str) -> None:
    if head == base:
        raise ApiError(422, "Invalid PullRequest: There are no changes between the head and the base")
    if call.repo.branch(head) is None or call.repo.branch(base) is None:
        raise ApiError(404, "The target couldn't be found.")
    for other in call.world.open_pulls(call.repo):
        if other.pull and (other.pull.head, other.pull.base) == (head, base):
            ids = f"id: {other.pull.id}, issue_id: {other.number}, head_repo_id: {call.repo.id}"
            ids += f", base_repo_id: {call.repo.id}, head_branch: {head}, base_branch: {base}"
            raise ApiError(409, f"pull request already exists for these targets [{ids}]")


@route("GET", "/repos/{owner}/{repo}/pulls", scope="repository", need="read")
def list_pulls(call: Call) -> Reply:
    query = call.request.query
    state, base, poster = query.get("state", "open"), query.get("base_branch"), query.get("poster")
    found = [
        issue
        for issue in reversed(call.repo.issues.values())
        if issue.pull
        and state in {"all", issue.state}
        and (not base or issue.pull.base == base)
        and (not poster or call.world.state.user(issue.user_id).login.lower() == poster.lower())
    ]
    return call.page(in_window(call, found), lambda i: call.world.shapes.pull(i, call.user))


@route("GET", PULL, scope="repository", need="read")
def get(call: Call, number: int) -> Reply:
    return show(call, find_pull(call, number)[0])


@route("GET", f"{PULL}.diff", scope="repository", need="read")
def diff(call: Call, number: int) -> Reply:
    _, pull = find_pull(call, number)
    text = call.world.git.diff(call.repo.id, pull.merge_base, pull.head_sha)
    return Reply(200, raw=text.encode(), headers={"Content-Type": "text/plain; charset=utf-8"})


@route("GET", f"{PULL}/commits", scope="repository", need="read")
def commits(call: Call, number: int) -> Reply:
    _, pull = find_pull(call, number)
    found = call.world.git.rev_list(call.repo.id, f"{pull.merge_base}..{pull.head_sha}")

    def shape(sha: str) -> object:
        commit = call.world.git.commit(call.repo.id, sha)
        return {"sha": sha, "commit": call.world.shapes.file_commit(call.repo, commit)}

    return call.page(found, shape)


@route("GET", "/repos/{owner}/{repo}/pulls/{base}/{head:path}", scope="repository", need="read")
def by_branches(call: Call, base: str, head: str) -> Reply:
    """The oldest one with these branches, in whatever state: it need not be the open one."""
    wanted = (_head(call, head), base)
    for issue in call.repo.issues.values():
        if issue.pull and (issue.pull.head, issue.pull.base) == wanted:
            return show(call, issue)
    raise ApiError(404, "The target couldn't be found.")


@route("PATCH", PULL, scope="repository", live=True)
def edit(call: Call, number: int) -> Reply:
    issue, pull = find_pull(call, number)
    edit_thread(call, issue)
    if call.body.get("labels") is not None and writer(call):
        issue.labels = label_ids(call, list(call.body["labels"]))
        call.world.events.labels(issue, call.me)
    base = call.text("base")
    if base and base != pull.base:
        if call.repo.branch(base) is None:
            raise ApiError(404, f"branch does not exist [name: {base}]")
        pull.base = base
        call.world.refresh_pull(call.repo, issue)
    return show(call, issue, 201)


@route("POST", f"{PULL}/requested_reviewers", scope="repository", need="write", live=True)
def request_review(call: Call, number: int) -> Reply:
    issue, pull = find_pull(call, number)
    for name in call.body.get("reviewers") or []:
        user = call.world.state.user_by_name(str(name))
        if user is None:
            raise ApiError(404, f"User '{name}' not exist")
        if user.id == issue.user_id or not call.world.state.can(user, call.repo, "read"):
            raise ApiError(422, f"user is not a valid reviewer [name: {name}]")
        pull.reviewers = list(dict.fromkeys([*pull.reviewers, user.id]))
        shown = call.world.shapes.user(user)
        events = call.world.events
        events.thread(issue, call.me, "review_request", "review_requested", "sender", reviewer=shown)
    return Reply(201, [])


# ---------------------------------------------------------------- merging


@route("GET", f"{PULL}/merge", scope="repository", need="read")
def is_merged(call: Call, number: int) -> Reply:
    if find_pull(call, number)[1].merged_at is None:
        raise ApiError(404, None)
    return Reply(204)


@route("POST", f"{PULL}/merge", scope="repository", need="write", live=True)
def merge(call: Call, number: int) -> Reply:
    """A real merge commit on the base branch, then one push and one `closed` with `merged: true`."""
    issue, pull = find_pull(call, number)
    if call.required("Do") not in {"merge", "squash"}:
        raise ApiError(405, "not allowed merge method")
    if issue.state == "closed" or is_draft(issue.title):
        raise ApiError(405, "Please try again later" if issue.state == "open" else "")
    base, head = call.repo.branch(pull.base), call.repo.branch(pull.head)
    tree = call.world.git.merge_tree(call.repo.id, base, head) if base and head else None
    if base is None or head is None or tree is None:
        raise ApiError(409, "merge conflict")
    _merge(call, issue, pull, tree, [base] if call.text("Do") == "squash" else [base, head])
    if call.flag("delete_branch_after_merge"):
        call.world.git.set_ref(call.repo.id, f"refs/heads/{pull.head}", None)
        call.world.refs_changed(call.repo, call.me, f"refs/heads/{pull.head}")
    return Reply(200)


def _merge(call: Call, issue: s.Issue, pull: s.Pull, tree: str, parents: list[str]) -> None:
    world, repo = call.world, call.repo
    message = f"{issue.title} (#{issue.number})\n\n{issue.body}\n"
    sha = world.git.commit_tree(repo.id, tree, parents, message, person(call.me))
    world.git.set_ref(repo.id, f"refs/heads/{pull.base}", sha)
    pull.merged_at, pull.merge_sha, pull.merged_by = s.now(), sha, call.me.id
    issue.state, issue.closed, issue.updated = "closed", s.now(), s.now()
    world.refs_changed(repo, call.me, f"refs/heads/{pull.base}")
    world.events.thread(issue, call.me, "", "closed", "sender")
    if pull.base == repo.default_branch:
        for number in CLOSES.findall(issue.body):
            if int(number) in repo.issues:
                world.close(find_issue(call, int(number)), call.me)
