"""`mosaic audit verify --remote`: of each thing that Mosaic wrote, exactly one stands on the forge, by its account.

What people have removed or changed since is a note; a second copy is a violation. Only reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from app.audit_invariants import Violation
from app.clients.gitea import GiteaClient
from app.clients.gitea_types import Comment
from app.queries import of_audit
from app.queries.of_audit import Connection
from app.types import MosaicError

Mark = Callable[[int, int, str, str], str]  # repository id, issue, kind, owner → the signed marker
Noted = Violation | str


def remote(connection: Connection, forge: GiteaClient, mark: Mark) -> Iterator[Noted]:
    """Violations and notes, place by place. `mark` makes the markers that our own comments carry."""
    bot = forge.me().id
    for repository_id, number, effects in of_audit.told(connection):
        name = _name(forge, repository_id)
        if name is None:
            yield f"repository {repository_id} is gone: {len(effects)} comments on #{number} cannot be looked at"
            continue
        try:
            comments = [one for one in forge.comments(name, number) if one.user.id == bot]
        except MosaicError as error:
            yield f"the comments of {name}#{number} cannot be read: {error}"
            continue
        taken = {effect["external_id"] for effect in effects}
        for effect in effects:
            yield from _comment(effect, comments, taken, mark, f"{name}#{number}")
    for pull in of_audit.pulls(connection):
        yield from _pull(forge, pull, bot)


def _name(forge: GiteaClient, repository_id: int) -> str | None:
    found = forge.repository_by_id(repository_id)
    return found.full_name if found else None


def _comment(
    effect: dict[str, Any], comments: list[Comment], taken: set[str], mark: Mark, where: str
) -> Iterator[Noted]:
    kind = str(effect["kind"]).removeprefix("comment.")
    owner = f"job-{effect['job_id']}" if effect["job_id"] else f"delivery-{effect['delivery_id']}"
    sign = mark(effect["repository_id"], effect["number"], kind, owner)
    ours = [one.id for one in comments if one.body.rstrip().endswith(sign)]
    copies = [one for one in ours if str(one) != effect["external_id"]]
    if copies and str(ours[0]) != str(effect["external_id"]) and len(ours) == 1 and str(ours[0]) not in taken:
        yield f"{effect['key']} was comment {effect['external_id']} on {where}; it is comment {ours[0]} now"
    elif copies:
        detail = f"{effect['key']} stands {len(ours)} times on {where}: comments {', '.join(map(str, ours))}"
        yield Violation("remote", detail, effect["job_id"], {"comments": ours})
    elif not any(str(one.id) == effect["external_id"] for one in comments):
        yield f"{effect['key']} is not on {where} any more: somebody has deleted comment {effect['external_id']}"


def _pull(forge: GiteaClient, pull: dict[str, Any], bot: int) -> Iterator[Noted]:
    name = _name(forge, pull["repository_id"])
    if name is None:
        yield f"repository {pull['repository_id']} is gone, and pull request #{pull['number']} with it"
        return
    found = forge.pull(name, pull["number"])
    if found is None:
        yield f"pull request #{pull['number']} of {name} is gone"
    elif found.user.id != bot:
        detail = f"pull request #{found.number} of {name} is by {found.user.login}"
        yield Violation("remote", detail, pull["job_id"], {"pull_request": found.number})
    else:
        yield from _copies(forge, name, pull, bot)
        yield from _branch(forge, name, pull, found.state == "open")


def _copies(forge: GiteaClient, name: str, pull: dict[str, Any], bot: int) -> Iterator[Noted]:
    """Gitea refuses a second open pull request for the same branches; a copy of ours would still be seen here."""
    same = [one.number for one in forge.find_pulls(name, pull["branch"], pull["base"]) if one.user.id == bot]
    if len(same) > 1:
        detail = f"{pull['branch']} of {name} has {len(same)} open pull requests by the bot"
        yield Violation("remote", detail, pull["job_id"], {"pull_requests": same})


def _branch(forge: GiteaClient, name: str, pull: dict[str, Any], open_: bool) -> Iterator[Noted]:
    head = forge.branch(name, pull["branch"])
    if head is None and open_:
        yield f"branch {pull['branch']} of {name} is gone"
    elif head is not None and head not in pull["pushed"]:
        yield f"branch {pull['branch']} of {name} holds {head[:12]}, which Mosaic did not push"
