"""Smart HTTP for clone, fetch and push, answered by the real `git http-backend`.

Rule: who may do what is decided here; what a push changed is read from the repository after it.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from tests.worlds.gitea import access
from tests.worlds.gitea import state as s
from tests.worlds.gitea.http import ApiError, Reply, Request

if TYPE_CHECKING:
    from tests.worlds.gitea.world import World

SERVICE = re.compile(r"/([^/]+)/([^/]+?)(?:\.git)?(/info/refs|/git-upload-pack|/git-receive-pack)")
ASK = {"WWW-Authenticate": 'Basic realm="Gitea"'}
PLAIN = {"Content-Type": "text/plain; charset=utf-8"}


class Refused(Exception):
    """A refusal in plain text, as git shows it to the user."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.reply = Reply(status, raw=f"{text}\n".encode(), headers=PLAIN | (headers or {}))


def serve(world: World, request: Request) -> tuple[Reply, s.User | None] | None:
    """The answer to a git request and who asked; None when the path is not one of git's."""
    match = SERVICE.fullmatch(request.path)
    if match is None:
        return None
    owner, name, service = match.groups()
    pushes = service == "/git-receive-pack" or request.query.get("service") == "git-receive-pack"
    user: s.User | None = None
    try:
        with world.state.lock:
            user, token, _ = _identify(world, request)
            repo = _repo(world, request, owner, name)
            _check(world, repo, user, pushes)
            if token and not access.allows(token, "repository", pushes):
                raise Refused(403, "token does not have the repository scope")
    except Refused as refusal:
        return refusal.reply, user
    if service != "/git-receive-pack":
        return _backend(world, request, repo, service, user, {}), user
    return _push(world, request, repo, service, user), user


def _identify(world: World, request: Request) -> tuple[s.User | None, s.Token | None, bool]:
    try:
        return access.identify(world, request)
    except ApiError as error:
        raise Refused(401, str(error.message), ASK) from error


def _repo(world: World, request: Request, owner: str, name: str) -> s.Repo:
    repo = access.find_repo(world, owner, name)
    if repo is not None:
        return repo
    if target := access.renamed(world, owner, name):
        path = request.raw_path.replace(f"/{owner}/{name}", f"/{world.state.full_name(target)}", 1)
        query = f"?{request.query_string}" if request.query_string else ""
        raise Refused(301, "moved", {"Location": f"{world.url}{path}{query}"})
    raise Refused(404, "Repository not found")


def _check(world: World, repo: s.Repo, user: s.User | None, pushes: bool) -> None:
    """A reader passes here even with a push: it is refused by the pre-receive hook, as Gitea does."""
    if user is None and (pushes or repo.private):
        raise Refused(401, "Unauthorized", ASK)
    if not world.state.can(user, repo, "read"):
        raise Refused(404, "Repository not found")
    if pushes and repo.archived:
        raise Refused(
            403, "This repo is archived. You can view files and clone it, but cannot push or open issues/pull-requests."
        )


def _push(world: World, request: Request, repo: s.Repo, service: str, user: s.User | None) -> Reply:
    """One push at a time for each repository; its events are out before git has its answer."""
    if user is None:
        raise RuntimeError("a push without a user must have been refused before")
    extra = {"PRACTICE_PROTECTED": " ".join(glob for glob, push in repo.protected.items() if not push)}
    if not world.state.can(user, repo, "write"):
        extra = {"PRACTICE_DENY": "Gitea: User permission denied for writing."}
    with repo.push_lock:
        reply = _backend(world, request, repo, service, user, extra)
        with world.state.lock:
            if repo.id in world.state.repos:
                world.refs_changed(repo, user)
    return reply


def _backend(
    world: World, request: Request, repo: s.Repo, service: str, user: s.User | None, extra: dict[str, str]
) -> Reply:
    env = world.git.env() | extra
    env |= {
        "GIT_PROJECT_ROOT": str(world.git.root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": f"/{repo.id}.git{service}",
        "REQUEST_METHOD": request.method,
        "QUERY_STRING": request.query_string,
        "CONTENT_TYPE": request.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(request.body)),
        "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
        "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        "REMOTE_USER": user.login if user else "",
        "REMOTE_ADDR": "127.0.0.1",
    }
    done = subprocess.run(["git", "http-backend"], input=request.body, capture_output=True, env=env, check=False)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    fields = [line.partition(": ") for line in head.decode(errors="replace").split("\r\n")]
    headers = {name: value for name, _, value in fields}
    status = int(headers.pop("Status", "200 OK").split()[0])
    return Reply(status, raw=body, headers=headers)
