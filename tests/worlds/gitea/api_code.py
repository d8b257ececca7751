"""API: branches, files, commit statuses.

Rule: what is written here is written with git, and tells hooks exactly what a push would.
"""

from __future__ import annotations

import base64
import binascii

from tests.worlds.gitea import state as s
from tests.worlds.gitea.api_repos import person
from tests.worlds.gitea.gitstore import Entry
from tests.worlds.gitea.http import ApiError, Call, Reply, route

# ---------------------------------------------------------------- branches


@route("GET", "/repos/{owner}/{repo}/branches", scope="repository", need="read")
def list_branches(call: Call) -> Reply:
    names = sorted((ref[11:], sha) for ref, sha in call.repo.refs.items() if ref.startswith("refs/heads/"))
    return call.page(names, lambda row: call.world.shapes.branch(call.repo, row[0], row[1], call.user))


@route("GET", "/repos/{owner}/{repo}/branches/{branch:path}", scope="repository", need="read")
def get_branch(call: Call, branch: str) -> Reply:
    sha = call.repo.branch(branch)
    if sha is None:
        raise ApiError(404, f"branch does not exist [repo_id: {call.repo.id} name: {branch}]")
    return Reply(200, call.world.shapes.branch(call.repo, branch, sha, call.user))


@route("POST", "/repos/{owner}/{repo}/branches", scope="repository", need="write", live=True)
def create_branch(call: Call) -> Reply:
    name, git = call.required("new_branch_name"), call.world.git
    sha = _start(call)
    if call.repo.branch(name):
        raise ApiError(409, "The branch already exists.")
    if f"refs/tags/{name}" in call.repo.refs:
        raise ApiError(409, "The branch with the same tag already exists.")
    if any(
        ref.startswith(f"refs/heads/{name}/") or f"refs/heads/{name}".startswith(f"{ref}/") for ref in call.repo.refs
    ):
        raise ApiError(409, "The branch conflicts with an existing one.")
    if len(name) > 100 or not git.valid_branch(name):
        raise ApiError(422, "[NewBranchName]: GitRefName")
    git.set_ref(call.repo.id, f"refs/heads/{name}", sha)
    call.world.refs_changed(call.repo, call.me, f"refs/heads/{name}")
    return Reply(201, call.world.shapes.branch(call.repo, name, sha, call.user))


def _start(call: Call) -> str:
    """Where a new branch begins: an unknown branch is 404, an unknown ref is 500."""
    old = call.text("old_branch_name")
    if old:
        sha = call.repo.branch(old)
        if sha is None:
            raise ApiError(404, "The old branch does not exist")
        return sha
    found = call.world.git.resolve(call.repo.id, call.text("old_ref_name") or call.repo.default_branch)
    if found is None:
        raise ApiError(500, f"object does not exist [id: {call.text('old_ref_name')}]")
    return found


@route("DELETE", "/repos/{owner}/{repo}/branches/{branch:path}", scope="repository", need="write", live=True)
def delete_branch(call: Call, branch: str) -> Reply:
    if call.repo.branch(branch) is None:
        raise ApiError(404, f"branch does not exist [repo_id: {call.repo.id} name: {branch}]")
    if branch == call.repo.default_branch:
        raise ApiError(403, "can not delete default branch")
    if call.world.protected(call.repo, branch):
        raise ApiError(403, "branch protected")
    call.world.git.set_ref(call.repo.id, f"refs/heads/{branch}", None)
    call.world.refs_changed(call.repo, call.me, f"refs/heads/{branch}")
    return Reply(204)


# ---------------------------------------------------------------- files

CONTENTS = "/repos/{owner}/{repo}/contents/{path:path}"


def _commit_of(call: Call) -> tuple[str, str]:
    """(name, sha) of the ref that a read asks for."""
    ref = call.request.query.get("ref") or call.repo.default_branch
    sha = call.world.git.resolve(call.repo.id, ref)
    if sha is None:
        raise ApiError(404, f"object does not exist [id: {ref}, rel_path: ]")
    return ref, sha


@route("GET", "/repos/{owner}/{repo}/contents", scope="repository", need="read")
def get_root(call: Call) -> Reply:
    return get_contents(call, "")


@route("GET", CONTENTS, scope="repository", need="read")
def get_contents(call: Call, path: str) -> Reply:
    """One file with its content, or the entries of a directory without."""
    (ref, sha), git, repo = _commit_of(call), call.world.git, call.repo
    found = git.file(repo.id, sha, path)
    if found is None:
        raise ApiError(404, f"object does not exist [id: , rel_path: {path}]")
    if found[1] == "tree":
        entries = git.tree(repo.id, sha, path)
        return Reply(200, [call.world.shapes.file(repo, ref, sha, entry, None) for entry in entries])
    entry = Entry("100644", "blob", found[0], len(found[2]), path)
    return Reply(200, call.world.shapes.file(repo, ref, sha, entry, found[2]))


@route("GET", "/repos/{owner}/{repo}/raw/{path:path}", scope="repository", need="read")
def get_raw(call: Call, path: str) -> Reply:
    _, sha = _commit_of(call)
    found = call.world.git.file(call.repo.id, sha, path)
    if found is None or found[1] != "blob":
        raise ApiError(404, f"object does not exist [id: , rel_path: {path}]")
    tag = f'"{found[0]}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=300", "Content-Type": "text/plain; charset=utf-8"}
    if call.request.headers.get("if-none-match") == tag:
        return Reply(304, headers=headers)
    return Reply(200, raw=found[2], headers=headers)


@route("POST", CONTENTS, scope="repository", need="write", live=True)
def create_file(call: Call, path: str) -> Reply:
    return _write(call, path, create=True)


@route("PUT", CONTENTS, scope="repository", need="write", live=True)
def update_file(call: Call, path: str) -> Reply:
    """Without a sha it creates, and answers 201."""
    return _write(call, path, create=not call.text("sha"))


@route("DELETE", CONTENTS, scope="repository", need="write", live=True)
def delete_file(call: Call, path: str) -> Reply:
    call.required("sha")
    return _write(call, path, create=False, content=None)


def _decoded(call: Call) -> bytes:
    try:
        return base64.b64decode(call.text("content"), validate=True)
    except binascii.Error as error:
        raise ApiError(422, str(error)) from error


def _write(call: Call, path: str, create: bool, content: bytes | None = b"") -> Reply:
    """One commit with one file changed, on `branch` or on a new branch that starts there."""
    repo, git = call.repo, call.world.git
    data = None if content is None else _decoded(call)
    branch = call.text("branch") or repo.default_branch
    parent, target = repo.branch(branch), call.text("new_branch") or branch
    if parent is None and repo.refs:
        raise ApiError(404, f"branch does not exist [name: {branch}]")
    if call.world.protected(repo, target):
        raise ApiError(403, f"branch is protected [name: {target}]")
    old = git.file(repo.id, parent, path) if parent else None
    if create and old is not None:
        raise ApiError(422, f"repository file already exists [path: {path}]")
    if not create and old is None:
        raise ApiError(404, f"object does not exist [id: , rel_path: {path}]")
    if not create and old is not None and old[0] != call.text("sha"):
        raise ApiError(422, f"sha does not match [given: {call.text('sha')}, expected: {old[0]}]")
    verb = "Delete" if data is None else "Add" if create else "Update"
    message = call.text("message") or f"{verb} {path}\n"
    sha = git.write(repo.id, target, parent, message, person(call.me), {path: data})
    call.world.refs_changed(repo, call.me, f"refs/heads/{target}")
    blob = git.file(repo.id, sha, path)
    entry = Entry("100644", "blob", blob[0], len(blob[2]), path) if blob else None
    shown = call.world.shapes.file(repo, target, sha, entry, blob[2]) if entry and blob else None
    commit = call.world.shapes.file_commit(repo, git.commit(repo.id, sha))
    return Reply(201 if create else 200, {"content": shown, "commit": commit, "verification": None})


# ---------------------------------------------------------------- commit statuses


@route("POST", "/repos/{owner}/{repo}/statuses/{sha}", scope="repository", need="write")
def create_status(call: Call, sha: str) -> Reply:
    """Only ever adds. An unknown sha is 500; the state is not checked, but must fit seven characters."""
    full, state = call.world.git.resolve(call.repo.id, sha), call.text("state")
    if full is None or len(state) > 7:
        raise ApiError(500, f"object does not exist [id: {sha}, rel_path: ]")
    rows = call.world.state.statuses
    index = sum((row.repo_id, row.sha) == (call.repo.id, full) for row in rows) + 1
    fields = (call.text("context") or "default", call.text("target_url"), call.text("description"), call.me.id)
    status = s.CommitStatus(call.world.state.next_id("status"), index, call.repo.id, full, state, *fields)
    rows.append(status)
    call.world.events.status(status, call.me)
    return Reply(201, call.world.shapes.status(status, call.me))


def _statuses(call: Call, ref: str) -> tuple[str, list[s.CommitStatus]]:
    sha = call.world.git.resolve(call.repo.id, ref)
    if sha is None:
        raise ApiError(404, f"object does not exist [id: {ref}, rel_path: ]")
    found = [row for row in call.world.state.statuses if (row.repo_id, row.sha) == (call.repo.id, sha)]
    return sha, found[::-1]


@route("GET", "/repos/{owner}/{repo}/commits/{ref:path}/status", scope="repository", need="read")
def combined(call: Call, ref: str) -> Reply:
    """The latest of each context."""
    sha, rows = _statuses(call, ref)
    latest = {row.context: row for row in reversed(rows)}
    return Reply(200, call.world.shapes.combined(call.repo, sha, list(latest.values()), call.user))


@route("GET", "/repos/{owner}/{repo}/commits/{ref:path}/statuses", scope="repository", need="read")
def history(call: Call, ref: str) -> Reply:
    return call.page(_statuses(call, ref)[1], lambda row: call.world.shapes.status(row, call.user))


@route("GET", "/repos/{owner}/{repo}/statuses/{ref:path}", scope="repository", need="read")
def history_of_sha(call: Call, ref: str) -> Reply:
    return history(call, ref)
