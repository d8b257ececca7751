"""Small pages at the addresses that Gitea gives: repository, issue, pull request, file, so that a person can look.

Rule: everything that anyone wrote is escaped; the pages only show.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

from tests.worlds.gitea import access
from tests.worlds.gitea import state as s
from tests.worlds.gitea.http import ApiError, Reply, Request
from tests.worlds.gitea.payloads import is_draft

if TYPE_CHECKING:
    from tests.worlds.gitea.world import World

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
article{border:1px solid #ccd;border-radius:6px;margin:1rem 0}article>header{background:#f4f5fa;padding:.4rem .8rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0;padding:.8rem;font:14px/1.45 ui-monospace,monospace}
table{border-collapse:collapse}td{padding:.15rem .8rem .15rem 0}.add{color:#176f2c}.del{color:#b02a2a}"""
PAGE = re.compile(r"/([^/]+)/([^/]+)(?:/(issues|pulls|commit|src/branch|raw/branch)/(.+))?/?")
HIDDEN = re.compile(r"<!--.*?-->", re.DOTALL)
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


def serve(world: World, request: Request) -> Reply:
    """The page of a path. Only what an anonymous visitor may see, unless a credential came along."""
    if request.path == "/":
        return _html("Practice Gitea", _home(world))
    match = PAGE.fullmatch(request.path)
    if request.method != "GET" or match is None:
        return _html("Not found", "<p>There is no such page.</p>", 404)
    try:
        user, _, _ = access.identify(world, request)
    except ApiError:
        user = None
    repo = access.find_repo(world, match[1], match[2])
    if repo is None and (target := access.renamed(world, match[1], match[2])):
        return Reply(301, headers={"Location": request.raw_path.replace(match[2], target.name, 1)})
    if repo is None or not world.state.can(user, repo, "read"):
        return _html("Not found", "<p>There is no such page.</p>", 404)
    return _route(world, repo, match[3], match[4])


def _route(world: World, repo: s.Repo, kind: str | None, rest: str) -> Reply:
    name = world.state.full_name(repo)
    if kind is None:
        return _html(name, _repo(world, repo))
    if kind in {"issues", "pulls"}:
        diff = rest.endswith(".diff")
        number = rest.removesuffix(".diff")
        issue = repo.issues.get(int(number)) if number.isdigit() else None
        if issue is None:
            return _html("Not found", "<p>There is no such issue.</p>", 404)
        if diff and issue.pull:
            text = world.git.diff(repo.id, issue.pull.merge_base, issue.pull.head_sha)
            return Reply(200, raw=text.encode(), headers={"Content-Type": "text/plain; charset=utf-8"})
        return _html(f"{issue.title} #{issue.number} - {name}", _issue(world, repo, issue))
    if kind == "commit":
        sha = world.git.resolve(repo.id, rest)
        text = world.git.text(repo.id, "show", "--stat", "--patch", sha) if sha else ""
        return _html(f"{rest[:10]} - {name}", _diff(text), 200 if sha else 404)
    return _file(world, repo, rest)


def _html(title: str, body: str, status: int = 200) -> Reply:
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title><style>{STYLE}</style>"
    return Reply(status, raw=f"{head}<h1>{escape(title)}</h1>{body}</html>".encode(), headers=dict(HEADERS))


def _link(url: str, text: str) -> str:
    return f"<a href='{escape(url)}'>{escape(text)}</a>"


def _home(world: World) -> str:
    rows = [r for r in world.state.repos.values() if not r.private]
    return "<ul>" + "".join(f"<li>{_link(world.shapes.web(r), world.state.full_name(r))}</li>" for r in rows) + "</ul>"


def _repo(world: World, repo: s.Repo) -> str:
    branches = [ref[11:] for ref in sorted(repo.refs) if ref.startswith("refs/heads/")]
    threads = [(i, "PR" if i.pull else "issue") for i in reversed(repo.issues.values())]
    issues = "".join(
        f"<li>{_link(world.shapes.issue_web(i), f'#{i.number} {i.title}')} {kind}, {escape(i.state)}</li>"
        for i, kind in threads
    )
    sha = repo.branch(repo.default_branch)
    entries = world.git.tree(repo.id, sha, "") if sha else []
    files = "".join(
        f"<li>{_link(world.shapes.web(repo, f'/src/branch/{repo.default_branch}/{e.path}'), e.path)}</li>"
        for e in entries
    )
    clone = f"<p><code>git clone {escape(world.shapes.web(repo, '.git'))}</code></p>"
    lists = f"<h2>Issues</h2><ul>{issues}</ul><h2>Files</h2><ul>{files}</ul>"
    return f"{clone}<p>Branches: {escape(', '.join(branches))}</p>{lists}"


def _post(world: World, user_id: int, at: int, body: str, anchor: str) -> str:
    """One contribution, as preformatted text; hidden comments stay hidden, as in rendered Markdown."""
    who = escape(world.state.user(user_id).login)
    text = escape(HIDDEN.sub("", body).strip())
    head = f"<header><b>{who}</b> {escape(str(world.shapes.time(at)))}</header>"
    return f"<article id='{anchor}'>{head}<pre>{text}</pre></article>"


def _issue(world: World, repo: s.Repo, issue: s.Issue) -> str:
    labels = ", ".join(str(label["name"]) for label in world.shapes.labels_of(issue))
    draft = " draft" if issue.pull and is_draft(issue.title) else ""
    back = _link(world.shapes.web(repo), world.state.full_name(repo))
    parts = [f"<p>{back}: <b>{escape(issue.state)}{draft}</b> {escape(labels)}</p>"]
    parts.append(_post(world, issue.user_id, issue.created, issue.body, f"issue-{issue.id}"))
    for comment in world.state.comments_of(issue, "plain", "review", "code"):
        where = f"{comment.path}:{comment.line}\n\n" if comment.path else ""
        parts.append(_post(world, comment.user_id, comment.created, where + comment.body, f"issuecomment-{comment.id}"))
        names = [name for _, name, _ in repo.reactions.get(("comment", comment.id), [])]
        parts.append(f"<p>{escape(' '.join(names))}</p>" if names else "")
    return "".join(parts) + (_pull(world, repo, issue.pull) if issue.pull else "")


def _pull(world: World, repo: s.Repo, pull: s.Pull) -> str:
    sha = repo.branch(pull.head) or pull.head_sha
    rows = [r for r in world.state.statuses if (r.repo_id, r.sha) == (repo.id, sha)]
    latest = {row.context: row for row in rows}.values()
    cells = "".join(
        f"<tr><td>{escape(r.state)}</td><td>{escape(r.context)}</td><td>{escape(r.description)}</td></tr>"
        for r in latest
    )
    diff = world.git.diff(repo.id, pull.merge_base, sha)
    where = f"<p><code>{escape(pull.head)}</code> into <code>{escape(pull.base)}</code> at {escape(sha[:10])}</p>"
    return f"{where}<h2>Checks</h2><table>{cells}</table><h2>Changes</h2>{_diff(diff)}"


def _diff(text: str) -> str:
    def line(row: str) -> str:
        kind = {"+": "add", "-": "del"}.get(row[:1], "")
        return f"<span class='{kind}'>{escape(row)}</span>" if kind else escape(row)

    return "<article><pre>" + "\n".join(line(row) for row in text.split("\n")) + "</pre></article>"


def _file(world: World, repo: s.Repo, rest: str) -> Reply:
    """`<branch>/<path>`, where the branch may hold slashes."""
    names = [ref[11:] for ref in repo.refs if ref.startswith("refs/heads/") and rest.startswith(f"{ref[11:]}/")]
    branch = max(names, key=len, default="")
    found = world.git.file(repo.id, f"refs/heads/{branch}", rest[len(branch) + 1 :]) if branch else None
    if found is None or found[1] != "blob":
        return _html("Not found", "<p>There is no such file.</p>", 404)
    return _html(rest, f"<article><pre>{escape(found[2].decode(errors='replace'))}</pre></article>")
