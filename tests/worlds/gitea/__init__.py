"""A practice Gitea: real HTTP, real git, and the habits of the real one, good and bad."""

from tests.worlds.gitea.faults import Fault
from tests.worlds.gitea.server import PracticeGitea

__all__ = ["Fault", "PracticeGitea"]
