"""stitcher: which step next, retries, rounds, priorities, cancellation. It executes no step.

decide (pure) · advance (makes the moves) · dispatch (admission and doorbells) · requests (submit, cancel, retry,
continue) · pausing · sweep.
"""

from app.stitcher.advance import Taker, advance, record, tell
from app.stitcher.pausing import pause, resume
from app.stitcher.requests import cancel, push_saved, retry, submit
from app.stitcher.sweep import bury, idle_sweep, release, sweep

__all__ = [
    "Taker",
    "advance",
    "bury",
    "cancel",
    "idle_sweep",
    "pause",
    "push_saved",
    "record",
    "release",
    "resume",
    "retry",
    "submit",
    "sweep",
    "tell",
]
