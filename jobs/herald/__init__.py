"""herald: pushes, opens the pull request, comments, sets statuses: every word and byte that leaves.

It runs no model and no repository code. Everything goes plan → look → fence → write → look again → record.
"""

from jobs.herald.deliver import deliver
from jobs.herald.probe import probe
from jobs.herald.publish import publish
from jobs.herald.report import report

__all__ = ["deliver", "probe", "publish", "report"]
