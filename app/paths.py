"""Where things lie under the data directory. Paths are made of numeric ids, never of names that somebody chose."""

from __future__ import annotations

import os
import re
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.private_files import private_dir, write_private


@dataclass(frozen=True, slots=True)
class Paths:
    data: Path

    def make(self) -> None:
        """Make the directories of code and output: nobody but Mosaic's account may pass into them."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("mirrors", "worktrees", "indexes", "checkouts", "setup"):
            private_dir(self.data / name, None)

    def host_id(self) -> str:
        """The name of this data directory among several on one database, made once. Files of a job lie on one host.

        The machine's name is in it for people to read; it may change, the id does not.
        """
        file = self.data / "host"
        if not file.exists():
            name = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().lower())[:24].strip("-") or "host"
            draft = self.data / f".host-{os.getpid()}"
            write_private(draft, f"{name}-{secrets.token_hex(4)}\n")
            with suppress(FileExistsError):  # another process of this host was faster
                os.link(draft, file)
            draft.unlink()
        return file.read_text().strip()

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
    def audit(self) -> Path:
        """The anchors of the event chains, outside the database."""
        return self.data / "audit"

    @property
    def keys(self) -> Path:
        return self.data / "keys"
