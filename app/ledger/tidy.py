"""Rows that are thrown away after their time: output of steps, bodies of webhooks. Never an event of a job.

One rule: in small transactions, so that nobody waits for them.
"""

from __future__ import annotations

from app.models import execute

_BATCH = 2000


def drop_output(days: int) -> int:
    """Delete the output of steps whose job ended so many days ago; how many pieces."""
    return _again(
        "delete from step_logs where id in (select l.id from step_logs l join job_steps s on s.id = l.step_id "
        "join runner_jobs j on j.id = s.job_id where j.finished_at < clock_timestamp() - %s * interval '1 day' "
        "limit %s)",
        days,
    )


def drop_bodies(days: int) -> int:
    """Forget the bodies of webhooks that were dealt with so many days ago; the deliveries stay, to know them again."""
    return _again(
        "update deliveries set body = null where id in (select id from deliveries where body is not null "
        "and state <> 'command' and received_at < clock_timestamp() - %s * interval '1 day' limit %s)",
        days,
    )


def _again(statement: str, days: int) -> int:
    total = 0
    while True:
        done = execute(statement, days, _BATCH)
        total += done
        if done < _BATCH:
            return total
