"""A driver for any Gitea, practice or real: people, repositories, hooks, what people do; by the public API only.

Rule: everything made here has the prefix of this run in its name, and `cleanup` removes all of it.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urljoin

import requests

from tests.worlds.checkout import Checkout

Json = dict[str, Any]
T = TypeVar("T")
SCOPES = ["write:repository", "write:issue", "write:user", "write:notification", "write:organization"]
TIMEOUT = (5, 60)


class ForgeError(AssertionError):
    """A call that the story needs was refused; `status` is the HTTP status."""

    def __init__(self, method: str, path: str, answer: requests.Response) -> None:
        super().__init__(f"{method} {path} answered {answer.status_code}: {answer.text[:500]}")
        self.status = answer.status_code


class Account(NamedTuple):
    """A user of the forge and the token to act as that user."""

    login: str
    id: int
    token: str


class Forge:
    """One forge as a site admin sees it. `control` = the practice forge, whose knobs can be turned."""

    def __init__(self, url: str, admin_token: str, *, control: bool, prefix: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.admin_token = admin_token
        self.control = control
        self.control_url = self.url
        self.prefix = f"t{secrets.token_hex(3)}-" if prefix is None else prefix
        self._http = requests.Session()
        self._http.trust_env = False
        self._tokens: dict[str, str] = {}
        self._undo: list[str] = []
        if control:
            self.control_url = self.knob("info")["control_url"]

    # ------------------------------------------------------------ the wire

    def send(self, method: str, path: str, token: str | None = None, **more: Any) -> requests.Response:
        """One API call as the holder of `token` (None: the site admin; "": nobody); redirects are not followed."""
        key = self.admin_token if token is None else token
        headers = {"Authorization": f"token {key}"} if key else {}
        url = f"{self.url}/api/v1{path}"
        return self._http.request(method, url, headers=headers, timeout=TIMEOUT, allow_redirects=False, **more)

    def call(self, method: str, path: str, token: str | None = None, body: Json | None = None, **query: Any) -> Any:
        """A call that must succeed: its JSON, or None for an empty answer."""
        answer = self.send(method, path, token, json=body, params=query)
        if not answer.ok or answer.is_redirect:
            raise ForgeError(method, path, answer)
        return answer.json() if answer.content else None

    def pages(self, path: str, token: str | None = None, **query: Any) -> Iterator[Json]:
        """Every row of a list that comes in pages."""
        page = 1
        while rows := self.call("GET", path, token, page=page, limit=50, **query):
            yield from rows
            if len(rows) < 50:
                return
            page += 1

    def knob(self, name: str, **arguments: Any) -> Any:
        """Turns a knob of the practice forge (see its control endpoints)."""
        if not self.control:
            raise RuntimeError(f"a real forge has no knob {name!r}: this story is for the practice forge only")
        headers = {"Authorization": f"token {self.admin_token}"}
        answer = self._http.post(
            f"{self.control_url}/_control/{name}", json=arguments, headers=headers, timeout=TIMEOUT
        )
        if not answer.ok:
            raise ForgeError("POST", f"/_control/{name}", answer)
        return answer.json()

    def until(self, look: Callable[[], T | None], what: str, timeout: float = 30.0) -> T:
        """Looks again and again until there is something; fails with `what` after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not (found := look()):
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout:g} s for {what}")
            time.sleep(0.05)
        return found

    # ------------------------------------------------------------ people

    def make_user(self, name: str, admin: bool = False, scopes: Sequence[str] = SCOPES) -> Account:
        """A user with a password, and a token made with it. An admin's token may do everything."""
        login, password = f"{self.prefix}{name}", secrets.token_urlsafe(16) + "aA1!"
        body = {
            "username": login,
            "email": f"{login}@example.test",
            "password": password,
            "must_change_password": False,
        }
        user = self.call("POST", "/admin/users", body=body)
        self._undo.append(f"/admin/users/{login}?purge=true")
        if admin:
            self.call("PATCH", f"/admin/users/{login}", body={"login_name": login, "source_id": 0, "admin": True})
        token = self.make_token(login, password, ["all"] if admin else scopes)
        self._tokens[login] = token
        return Account(login, user["id"], token)

    def make_token(self, login: str, password: str, scopes: Sequence[str], name: str = "story") -> str:
        """Tokens are made with a password, not with a token."""
        path, body = f"/users/{login}/tokens", {"name": name, "scopes": list(scopes)}
        answer = self._http.post(f"{self.url}/api/v1{path}", json=body, auth=(login, password), timeout=TIMEOUT)
        if not answer.ok:
            raise ForgeError("POST", path, answer)
        return str(answer.json()["sha1"])

    def make_org(self, name: str, owner: Account) -> str:
        org = f"{self.prefix}{name}"
        self.call("POST", "/orgs", owner.token, {"username": org})
        self._tokens[org] = owner.token
        self._undo.append(f"/orgs/{org}")
        return org

    def permission(self, repo: str, login: str) -> str:
        return str(self.call("GET", f"/repos/{repo}/collaborators/{login}/permission")["permission"])

    # ------------------------------------------------------------ repositories and hooks

    def make_repo(self, owner: str, name: str, files: Mapping[str, str | bytes], private: bool = False) -> str:
        """`owner/name`, its default branch `main` holding `files` in one commit pushed by its owner."""
        body = {"name": name, "private": private, "default_branch": "main"}
        is_org = self.send("GET", f"/orgs/{owner}").ok
        self.call("POST", f"/orgs/{owner}/repos" if is_org else f"/admin/users/{owner}/repos", body=body)
        repo = f"{owner}/{name}"
        self._undo.append(f"/repos/{repo}")
        if files:
            self._first_push(repo, self._tokens.get(owner, self.admin_token), files)
        return repo

    def _first_push(self, repo: str, token: str, files: Mapping[str, str | bytes]) -> None:
        with tempfile.TemporaryDirectory() as place:
            checkout = Checkout(self.url, repo, token, Path(place))
            checkout.git("init", "-q", "--initial-branch=main")
            checkout.git("remote", "add", "origin", f"{self.url}/{repo}.git")
            checkout.commit(files, "Begin")
            checkout.push("main")

    def collaborator(self, repo: str, user: str, permission: str = "write") -> None:
        """`permission`: read, write, admin."""
        self.call("PUT", f"/repos/{repo}/collaborators/{user}", body={"permission": permission})

    def hook(
        self, target: str, url: str, secret: str, events: Sequence[str] = ("issues", "issue_comment"), **more: Any
    ) -> int:
        """An active JSON hook on `owner/name`, on an organisation, or (`""`) on the whole system; its id."""
        config = {"url": url, "content_type": more.pop("content_type", "json"), "secret": secret}
        where = f"/repos/{target}" if "/" in target else f"/orgs/{target}" if target else "/admin"
        if not target:
            config["is_system_webhook"] = "true"
        body = {"type": "gitea", "config": config, "events": list(events), "active": True} | more
        number = int(self.call("POST", f"{where}/hooks", body=body)["id"])
        if not target:
            self._undo.append(f"/admin/hooks/{number}")
        return number

    # ------------------------------------------------------------ what people do

    def open_issue(self, token: str, repo: str, title: str, body: str = "", **more: Any) -> Json:
        """`more`: labels (ids), assignees (logins), milestone (id)."""
        return dict(self.call("POST", f"/repos/{repo}/issues", token, {"title": title, "body": body} | more))

    def edit_issue(self, token: str, repo: str, number: int, **changes: Any) -> Json:
        return dict(self.call("PATCH", f"/repos/{repo}/issues/{number}", token, changes))

    def issue(self, repo: str, number: int) -> Json:
        return dict(self.call("GET", f"/repos/{repo}/issues/{number}"))

    def comment(self, token: str, repo: str, number: int, body: str) -> Json:
        return dict(self.call("POST", f"/repos/{repo}/issues/{number}/comments", token, {"body": body}))

    def edit_comment(self, token: str, repo: str, comment: int, body: str) -> Json:
        return dict(self.call("PATCH", f"/repos/{repo}/issues/comments/{comment}", token, {"body": body}))

    def delete_comment(self, token: str, repo: str, comment: int) -> None:
        self.call("DELETE", f"/repos/{repo}/issues/comments/{comment}", token)

    def assign(self, token: str, repo: str, number: int, *logins: str) -> Json:
        """Replaces the assignees."""
        return self.edit_issue(token, repo, number, assignees=list(logins))

    def make_label(self, repo: str, name: str, color: str = "#00aabb") -> int:
        return int(self.call("POST", f"/repos/{repo}/labels", body={"name": name, "color": color})["id"])

    def label(self, token: str, repo: str, number: int, *names: str) -> list[Json]:
        """Puts labels on, making those that the repository does not have."""
        known = {row["name"]: row["id"] for row in self.pages(f"/repos/{repo}/labels")}
        ids = [known.get(name) or self.make_label(repo, name) for name in names]
        return list(self.call("POST", f"/repos/{repo}/issues/{number}/labels", token, {"labels": ids}))

    def open_pull(self, token: str, repo: str, head: str, base: str, title: str, body: str = "") -> Json:
        fields = {"head": head, "base": base, "title": title, "body": body}
        return dict(self.call("POST", f"/repos/{repo}/pulls", token, fields))

    def merge(self, token: str, repo: str, number: int) -> None:
        """Waits until the forge has found out that the PR can be merged."""
        self.until(lambda: self.pull(repo, number)["mergeable"], f"pull request {number} to be mergeable")
        self.call("POST", f"/repos/{repo}/pulls/{number}/merge", token, {"Do": "merge"})

    # ------------------------------------------------------------ what there is to see

    def comments(self, repo: str, number: int) -> list[Json]:
        return list(self.call("GET", f"/repos/{repo}/issues/{number}/comments"))

    def reactions(self, repo: str, number: int, comment: int | None = None) -> list[tuple[str, str]]:
        """(login, reaction) on an issue, or on one of its comments."""
        where = f"comments/{comment}" if comment else str(number)
        rows = self.call("GET", f"/repos/{repo}/issues/{where}/reactions") or []
        return [(row["user"]["login"], row["content"]) for row in rows]

    def pull(self, repo: str, number: int) -> Json:
        return dict(self.call("GET", f"/repos/{repo}/pulls/{number}"))

    def pulls(self, repo: str, state: str = "all") -> list[Json]:
        return list(self.pages(f"/repos/{repo}/pulls", state=state))

    def statuses(self, repo: str, sha: str) -> dict[str, str]:
        """The latest state of each context at a commit."""
        rows = self.pages(f"/repos/{repo}/commits/{sha}/statuses")
        latest: dict[str, Json] = {}
        for row in sorted(rows, key=lambda row: row["id"]):
            latest[row["context"]] = row
        return {context: str(row["status"]) for context, row in latest.items()}

    def branches(self, repo: str) -> dict[str, str]:
        """Names with their shas."""
        return {row["name"]: row["commit"]["id"] for row in self.pages(f"/repos/{repo}/branches")}

    def file(self, repo: str, path: str, ref: str) -> bytes | None:
        answer = self.send("GET", f"/repos/{repo}/raw/{quote(path)}", params={"ref": ref})
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        return answer.content

    # ------------------------------------------------------------ git

    def clone(self, token: str, repo: str, place: Path, branch: str = "") -> Checkout:
        """A real clone, made as the holder of `token`."""
        checkout = Checkout(self.url, repo, token, place)
        place.mkdir(parents=True, exist_ok=True)
        checkout.git("clone", "-q", *(["--branch", branch] if branch else []), f"{self.url}/{repo}.git", ".")
        return checkout

    def cleanup(self) -> None:
        """Removes everything that was made, newest first; what is already gone is no matter."""
        for path in reversed(self._undo):
            answer = self.send("DELETE", path)
            if answer.status_code == 301:  # renamed by a story
                answer = self.send("DELETE", urljoin(path, answer.headers["Location"]).split("/api/v1", 1)[1])
            if answer.status_code not in {204, 404}:
                raise ForgeError("DELETE", path, answer)
        self._undo.clear()
        self._http.close()
