"""stitcher: which step next, retries, rounds, priorities, cancellation. It executes no step.

decide (pure) · advance (makes the moves) · dispatch (admission and doorbells) · requests (submit, cancel, retry) ·
sweep.
"""

from app.stitcher.advance import advance, record, tell
from app.stitcher.requests import cancel, retry, submit
from app.stitcher.sweep import sweep

__all__ = ["advance", "cancel", "record", "retry", "submit", "sweep", "tell"]
