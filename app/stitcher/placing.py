"""On which host the files of a job are made. A job has one host at a time."""

from __future__ import annotations

from app import queries
from app.ledger.chain import Entry
from app.queries import Host


def place(job: Entry) -> None:
    """Of several hosts, choose the one with the most room for a job that starts; the lock on starting is held.

    With one host there is nothing to choose: the job's first file step binds it.
    """
    hosts = queries.live_hosts()
    if len(hosts) > 1 and job["host"] is None:
        found = best(job, hosts)
        if found:
            job.set(host=found.name)


def best(job: Entry, hosts: tuple[Host, ...], *, closing: bool = False) -> Host | None:
    """The able host with the most free slots; saved work that the job goes on with lies on one host alone.

    A job that only has to be closed (`closing`) needs no more than a control consumer.
    """
    able = [host for host in hosts if host.able or (closing and "control" in host.pools)]
    saved = (job["metadata"].get("continues") or {}).get("host")
    at_home = [host for host in able if host.name == saved]
    return max(at_home or able, key=lambda host: (host.room - host.jobs, -host.jobs, host.name), default=None)
