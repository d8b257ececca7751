"""Where things lie under the data directory. Paths are made of numeric ids, never of names that somebody chose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.private_files import private_dir


@dataclass(frozen=True, slots=True)
class Paths:
    data: Path

    def make(self) -> None:
        """Make the directories of code and output: nobody but Mosaic's account may pass into them."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("mirrors", "worktrees", "indexes", "checkouts", "setup"):
            private_dir(self.data / name, None)

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
