"""The doorbell. Huey says when to look; the database says what to do.

A message is `{"task": name, "id": number}` and nothing else: losing, doubling or delaying one changes nothing, because
the sweep rings again and every task looks at its row first. Rings join the open transaction, so nobody hears of a
change that is rolled back.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

from huey.api import Huey
from huey.registry import Message
from huey.serializer import Serializer

from app.bell_storage import BellStorage, channel
from app.models import KEEPALIVE, fetch_one, send
from app.types import Pool

# Tasks are registered in jobs/tasks.py and nowhere else: Huey names them after their module.
TASK_MODULE = "jobs.tasks"
CROWD = 1000


class BellSerializer(Serializer):  # type: ignore[misc]
    """JSON instead of Huey's pickle: whoever can write the queue table can ring, but not run code."""

    def _serialize(self, data: Message) -> bytes:
        return bell(data.name.removeprefix(TASK_MODULE + "."), data.args[0])

    def _deserialize(self, data: bytes) -> Message:
        heard = json.loads(data)
        return Message(
            id=str(uuid.uuid4()),
            name=f"{TASK_MODULE}.{heard['task']}",
            args=(int(heard["id"]),),
            kwargs={},
            retries=0,
            retry_delay=0,
        )


class Doorbell(Huey):  # type: ignore[misc]
    """Huey without the parts that would keep a second truth: no results, no revocation, no retries."""

    def is_revoked(self, task: Any, timestamp: Any = None, peek: bool = True) -> bool:
        return False


def bell(task: str, number: int) -> bytes:
    return json.dumps({"task": task, "id": number}).encode()


def doorbell(
    pool: Pool, dsn: str, host: str = "", *, session: str = "", closed: Callable[[], bool] | None = None
) -> Doorbell:
    """The Huey of one pool, for a consumer of that pool on a host. It hears nothing any more once `closed` is True."""
    # Dequeuing needs no fsync: after a crash of PostgreSQL a bell may ring twice, which is harmless.
    return Doorbell(
        queue_name(pool),
        storage_class=BellStorage,
        serializer=BellSerializer(),
        results=False,
        dsn=dsn,
        queues=(queue_name(pool), queue_name(pool, host)),
        closed=closed or (lambda: False),
        create_tables=False,
        read_timeout=3,
        application_name=session or f"mosaic-{pool.value}",
        options=f"-c synchronous_commit=off {KEEPALIVE}",
        keepalives_idle=10,  # who only listens would not notice for hours that the server's machine is gone
        keepalives_interval=5,
        keepalives_count=3,
    )


def queue_name(pool: Pool, host: str = "") -> str:
    return at_host(f"mosaic-{pool.value}", host)


def at_host(queue: str, host: str) -> str:
    """The queue of the same pool that only consumers of one host hear."""
    return f"{queue}@{host}" if host else queue


def ring(pool: Pool, task: str, number: int, priority: float = 0.0, *, host: str = "") -> None:
    """Ring in the open transaction, everywhere or at one host: heard when it commits, forgotten when it rolls back."""
    queue = queue_name(pool, host)
    send(
        "with bell as (insert into huey_task (queue, data, priority) values (%s, %s, %s)) select pg_notify(%s, '')",
        queue,
        bell(task, number),
        priority,
        channel(queue),
    )


def ring_for(statement: str, *params: Any) -> None:
    """Ring for every row of a statement, in the round trip that carries it out.

    `statement` is the inside of a `with` list; its last relation is called `rung` and has the columns
    queue, task, number and priority.
    """
    send(
        f"with {statement}, bell as (insert into huey_task (queue, data, priority) select queue, "
        "convert_to(json_build_object('task', task, 'id', number)::text, 'UTF8'), priority from rung) "
        f"select pg_notify('{channel('')}' || queue, '') from rung group by queue",
        *params,
    )


def forget(host: str) -> None:
    """Take the bells away that nobody at a lost host will hear."""
    send("delete from huey_task where queue = any(%s)", [queue_name(pool, host) for pool in Pool])


def crowded(pool: Pool) -> bool:
    """Whether so many bells hang in a queue that more would only make it longer."""
    row = fetch_one(
        "select count(*) as n from (select 1 from huey_task where split_part(queue, '@', 1) = %s limit %s) q",
        queue_name(pool),
        CROWD,
    )
    return row is not None and int(row["n"]) >= CROWD


def ring_many(pool: Pool, task: str, numbers: list[int]) -> None:
    """Ring for several rows in one statement."""
    if numbers:
        send(
            "with bell as (insert into huey_task (queue, data, priority) select %s, b, 0 from unnest(%s::bytea[]) b) "
            "select pg_notify(%s, '')",
            queue_name(pool),
            [bell(task, n) for n in numbers],
            channel(queue_name(pool)),
        )
