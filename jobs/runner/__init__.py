"""runner: admits (authorises), gathers context, prepares the worktree, commits the agent's work with Mosaic's own git.

It writes nothing to the forge.
"""

from jobs.runner.admit import admit, introduce
from jobs.runner.lookout import look_out
from jobs.runner.obey import obey
from jobs.runner.setup import setup
from jobs.runner.snapshot import snapshot
from jobs.runner.wip import keep
from jobs.runner.worktree import checkout, cleanup, commit

__all__ = ["admit", "checkout", "cleanup", "commit", "introduce", "keep", "look_out", "obey", "setup", "snapshot"]
