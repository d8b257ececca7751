"""A fast agent: the practice gateway, whose turns write one file into the worktree they are given.

A turn goes on when its client is gone, as the real gateway's does: a worker that was killed leaves a zombie behind that
still writes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.worlds.gateway import FakeGateway, Frame, Item, streamed, turn, until

TOKEN = "5eed" * 16
WRITTEN = "answer.txt"
POISON = "POISON"  # a worktree that holds this file kills the worker that brings it


class Agent(FakeGateway):
    """`with Agent(worktrees, slowest=1.0) as agent:`; each turn takes up to `slowest` seconds."""

    def __init__(self, workspace: Path, *, slowest: float = 0.6, seed: int = 1) -> None:
        super().__init__(workspace, token=TOKEN)
        self.slowest, self.turns = slowest, 0
        self.on_poison: Callable[[int], None] = lambda job: None
        self._random = random.Random(seed)
        frames = [frame for frame in turn("write") if isinstance(frame, dict) and _of_the_turn(frame)]
        self._before = until(frames, streamed("tool", "start"))
        self._after = frames[len(self._before) :]
        self.play = self.work

    def work(self, session: Frame) -> Iterator[Item]:
        """Begin, think, write the file, say so."""
        self.turns += 1
        root, job = Path(session["sessionRoot"]), session["key"].rpartition("mosaic-")[2].split("-")[0]
        yield from self._before
        if (root / POISON).exists():
            self.on_poison(int(job))
        time.sleep(self._random.uniform(0.02, self.slowest))
        # One name for all jobs, another content for each: every job must bring its own change and no other's.
        try:
            (root / WRITTEN).write_text(f"{job}\n")
        except OSError:  # a full disk, or a worktree that is gone: the tool fails, and the turn ends without a change
            (root / WRITTEN).unlink(missing_ok=True)
            yield from map(_failed, self._after)
            return
        yield from self._after


def _failed(frame: Frame) -> Frame:
    """The frame with the tool's result as one of a tool that failed; any other as it is."""
    told = frame.get("payload", {})
    if told.get("stream") != "tool" or told.get("data", {}).get("phase") != "result":
        return frame
    return {**frame, "payload": {**told, "data": {**told["data"], "isError": True}}}


def _of_the_turn(frame: Frame) -> bool:
    """Without the gateway's news about itself: the same frames a thousand times teach nothing."""
    return frame.get("event") not in ("task", "cron", "update.available", "sessions.changed")
