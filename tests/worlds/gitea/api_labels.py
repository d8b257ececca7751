"""API: labels and milestones.

Rule: a hook hears that labels changed, never which.
"""

from __future__ import annotations

import re

from tests.worlds.gitea import state as s
from tests.worlds.gitea.api_issues import find_issue, label_ids
from tests.worlds.gitea.http import ApiError, Call, Reply, route

COLOR = re.compile(r"#?([0-9a-fA-F]{6})")


@route("POST", "/repos/{owner}/{repo}/labels", scope="issue", need="write", live=True)
def create_label(call: Call) -> Reply:
    match = COLOR.fullmatch(call.required("color"))
    if match is None:
        raise ApiError(422, f"Color is invalid: {call.text('color')}")
    fields = (call.required("name"), match.group(1).lower(), call.text("description"), call.flag("exclusive"))
    label = s.Label(call.world.state.next_id("label"), *fields)
    call.repo.labels[label.id] = label
    return Reply(201, call.world.shapes.label(call.repo, label))


@route("GET", "/repos/{owner}/{repo}/labels", scope="issue", need="read")
def list_labels(call: Call) -> Reply:
    labels = sorted(call.repo.labels.values(), key=lambda label: label.name)
    return call.page(labels, lambda label: call.world.shapes.label(call.repo, label))


@route("GET", "/repos/{owner}/{repo}/issues/{number:int}/labels", scope="issue", need="read")
def issue_labels(call: Call, number: int) -> Reply:
    return Reply(200, call.world.shapes.labels_of(find_issue(call, number)))


def _set_labels(call: Call, issue: s.Issue, ids: list[int], action: str = "label_updated") -> None:
    call.world.note_labels(issue, call.me, issue.labels, ids)
    issue.labels, issue.updated = ids, s.now()
    call.world.events.labels(issue, call.me, action)


@route("POST", "/repos/{owner}/{repo}/issues/{number:int}/labels", scope="issue", need="write", live=True)
def add_labels(call: Call, number: int) -> Reply:
    issue = find_issue(call, number)
    new = label_ids(call, list(call.body.get("labels") or []))
    _set_labels(call, issue, list(dict.fromkeys([*issue.labels, *new])))
    return Reply(200, call.world.shapes.labels_of(issue))


@route("PUT", "/repos/{owner}/{repo}/issues/{number:int}/labels", scope="issue", need="write", live=True)
def replace_labels(call: Call, number: int) -> Reply:
    issue = find_issue(call, number)
    _set_labels(call, issue, label_ids(call, list(call.body.get("labels") or [])))
    return Reply(200, call.world.shapes.labels_of(issue))


@route("DELETE", "/repos/{owner}/{repo}/issues/{number:int}/labels", scope="issue", need="write", live=True)
def clear_labels(call: Call, number: int) -> Reply:
    _set_labels(call, find_issue(call, number), [], "label_cleared")
    return Reply(204)


@route("DELETE", "/repos/{owner}/{repo}/issues/{number:int}/labels/{id:int}", scope="issue", need="write", live=True)
def remove_label(call: Call, number: int, id: int) -> Reply:
    issue = find_issue(call, number)
    if id not in call.repo.labels:
        raise ApiError(422, f"label does not exist [label_id: {id}]")
    _set_labels(call, issue, [n for n in issue.labels if n != id])
    return Reply(204)


@route("POST", "/repos/{owner}/{repo}/milestones", scope="issue", need="write", live=True)
def create_milestone(call: Call) -> Reply:
    number = call.world.state.next_id("milestone")
    milestone = s.Milestone(number, call.required("title"), call.text("description"))
    call.repo.milestones[milestone.id] = milestone
    return Reply(201, call.world.shapes.milestone(milestone))
