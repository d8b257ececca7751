"""What a client asks before each exchange, whether the other side is worth asking, and tells how it went."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

# Entered before an exchange: raises `Outage` while the other side is known to be away. Left with the error, if any.
Guard = Callable[[], AbstractContextManager[None]]


def unguarded() -> AbstractContextManager[None]:
    return nullcontext()
