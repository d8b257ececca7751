"""What a git that found the disk full leaves in a mirror: half-written objects and packs, which git never removes.

Each try would leave more of them, until the space that somebody makes is gone again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_HALVES = ("objects/??/tmp_obj_*", "objects/pack/tmp_*", "objects/pack/.tmp-*", "objects/tmp_*")


def drop_halves(mirror: Path) -> int:
    """Removes them, except those that a process of this machine has open; how many."""
    found = [path for pattern in _HALVES for path in mirror.glob(pattern) if path.is_file()]
    if not found:
        return 0
    busy, dropped = set(_open_files()), 0
    for path in found:
        if os.path.realpath(path) not in busy:
            path.unlink(missing_ok=True)
            dropped += 1
    return dropped


def _open_files() -> Iterator[str]:
    """Every file that a process has open, as far as we may see."""
    for entry in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # it has ended, or is not ours to look at: then it is none of our gits either
            for name in os.listdir(entry):
                with suppress(OSError):
                    yield os.readlink(entry / name)
