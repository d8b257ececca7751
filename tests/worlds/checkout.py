"""A real git working copy of a repository on a forge, for stories in which people commit and push.

Rule: the credential is in git's environment only: in no argument, no file, no address.
"""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Checkout:
    """A working copy of one repository, and the one who commits and pushes."""

    forge_url: str
    repo: str
    token: str
    path: Path
    name: str = "Story Teller"
    email: str = "story@example.test"

    def env(self) -> dict[str, str]:
        """The environment of every git command: this person, and no configuration of the machine."""
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(self.forge_url))
        login = base64.b64encode(f"token:{self.token}".encode()).decode()
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.path),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{origin}/.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {login}",
            **{f"GIT_{who}_NAME": self.name for who in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{who}_EMAIL": self.email for who in ("AUTHOR", "COMMITTER")},
        }

    def git(self, *args: str) -> str:
        """One git command that must succeed; its output."""
        done = subprocess.run(
            ["git", *args], cwd=self.path, env=self.env(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise AssertionError(f"git {' '.join(args)} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def commit(self, files: Mapping[str, str | bytes | None], message: str) -> str:
        """Writes files (None removes one; what begins with #! can be run) and commits them; the new sha."""
        for name, content in files.items():
            file = self.path / name
            if content is None:
                file.unlink()
                continue
            data = content.encode() if isinstance(content, str) else content
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            file.chmod(0o755 if data.startswith(b"#!") else 0o644)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def push(self, branch: str, *options: str) -> None:
        """HEAD to a branch of the forge."""
        self.git("push", "-q", *options, "origin", f"HEAD:refs/heads/{branch}")
