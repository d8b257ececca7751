"""Where an effect goes: the repository by its id, under the name that it has today."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from app import queries
from app.clients.gitea import GiteaClient
from app.context import Clients
from app.ledger import effects
from app.types import Job, Permanent

T = TypeVar("T")


@dataclass
class Delivery:
    """One claimed effect and what is needed to carry it out."""

    effect: dict[str, Any]
    clients: Clients

    @property
    def target(self) -> dict[str, Any]:
        target: dict[str, Any] = self.effect["target"]
        return target

    @property
    def forge(self) -> GiteaClient:
        assert self.clients.forge is not None
        return self.clients.forge

    @property
    def job(self) -> Job | None:
        return queries.job(self.effect["job_id"]) if self.effect["job_id"] else None

    def fence(self) -> None:
        """Right before a write: is the effect still ours?"""
        effects.check(self.effect)

    def in_repository(self, call: Callable[[str], T]) -> T:
        """Call with the repository's name; when it has moved, once more with its name of today."""
        job = self.job
        name = self.target.get("repository") or (job.repository if job else "")
        try:
            return call(name)
        except Permanent as error:
            if error.code != "moved":
                raise
        found = self.forge.repository_by_id(self.target["repository_id"])
        if found is None:
            raise Permanent(f"The repository {name} is gone.", status=404)
        return call(found.full_name)
