"""A database that came back from a dump: what has to be different on another host and server, and how to undo it.

One rule: `ADAPT` runs in the transaction of the dump, so that nobody ever sees one without the other.
"""

from __future__ import annotations

import psycopg

# What the old host had saved lies in the mirrors of the new one. Transaction numbers mean nothing on another server:
# 1 = ended before (2 = and the last anchor had not seen it yet), and old anchors saw up to 3 (app/ledger/anchors.py).
ADAPT = b"""
update public.job_steps set host = :'new' where name = 'runner.keep' and host = :'old';
select to_regclass('public.audit_anchors') is not null as anchored \\gset
\\if :anchored
alter table public.job_events disable trigger user;
alter table public.audit_anchors disable trigger user;
update public.job_events set xid = case when exists (
    select from (select * from public.audit_anchors order by seq desc limit 1) last where job_events.id <= last.max_id
    and (not pg_visible_in_snapshot(job_events.xid, (last.body::jsonb ->> 'snapshot')::pg_snapshot)
    or (job_events.xid = '2' and last.high_xid = '3'))
) then '2' else '1' end::xid8;
update public.audit_anchors set low_xid = '2', high_xid = '3';
alter table public.job_events enable trigger user;
alter table public.audit_anchors enable trigger user;
\\endif
"""
# What a dump makes, in the order in which it can be dropped: the kind, and a query for the quoted names.
_MADE = (
    ("table", "select oid::regclass::text from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"),
    (
        "sequence",
        "select oid::regclass::text from pg_class where relnamespace = 'public'::regnamespace and relkind = 'S'",
    ),
    ("routine", "select oid::regprocedure::text from pg_proc where pronamespace = 'public'::regnamespace"),
)


def empty(url: str) -> None:
    """Take out again what was loaded into a database that was empty."""
    with psycopg.connect(url) as connection:
        for kind, names in _MADE:
            for (name,) in connection.execute(names).fetchall():
                connection.execute(f"drop {kind} if exists {name} cascade")
