-- What a Mosaic at migration 0007 may hold beside the rows before: a push that its job ended without.

insert into effects (id, key, job_id, kind, target, state, wanted, told, attempts, next_at, fence, error, created_at, code, failed_at, failed_in, dropped_at) values
(310, 'sample:not-wanted', 3, 'push', '{"branch": "mosaic/issue-4", "repository_id": 1, "sha": "1111111111111111111111111111111111111111"}', 'failed', 1, 0, 1, '2026-11-22 19:00:00+00', 2, 'The job was failed before this was done.', '2026-11-22 18:59:00+00', 'not_wanted', '2026-11-22 19:00:00+00', 'failed', '2026-11-22 19:00:00+00');
