"""Where things lie under the data directory. Paths are made of numeric ids, never of names that somebody chose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    data: Path

    def mirror(self, repository_id: int) -> Path:
        """The bare repository that Mosaic alone writes."""
        return self.data / "mirrors" / f"{repository_id}.git"

    @property
    def worktrees(self) -> Path:
        """The parent of all worktrees: the agents' workspace."""
        return self.data / "worktrees"

    def worktree(self, job_id: int, fence: int) -> Path:
        return self.worktrees / f"{job_id}-{fence}"

    def index(self, job_id: int, fence: int) -> Path:
        """git's index of a worktree, kept where the agent cannot reach it."""
        return self.data / "indexes" / f"{job_id}-{fence}"

    def checkout(self, job_id: int, step_id: int, fence: int) -> Path:
        """A fresh checkout for one run of one gate."""
        return self.data / "checkouts" / f"{job_id}-{step_id}-{fence}"

    def setup_cache(self, key: str) -> Path:
        return self.data / "setup" / key

    @property
    def engine_state(self) -> Path:
        return self.data / "engine"

    @property
    def keys(self) -> Path:
        return self.data / "keys"
