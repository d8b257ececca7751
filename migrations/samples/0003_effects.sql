-- What a Mosaic at migration 0003 may hold beside the rows of 0001: the breaker of an outage, one effect that waits for
-- the end of it, a dead letter, one that was given up, and one whose second look is still to come.

insert into circuit_breakers (service, state, failures, since, code, detail, opened_at, closed_at, probes, next_probe_at, probe_until, fence) values
('forge', 'closed', 2, '2026-11-22 19:00:00+00', 'server_error', 'GET /user: Gitea answered 502.', '2026-11-22 18:50:00+00', '2026-11-22 18:52:00+00', 0, NULL, NULL, 4);

insert into effects (id, key, job_id, delivery_id, kind, target, state, external_id, result, wanted, told, attempts, next_at, rung_at, worker_id, lease_until, fence, error, created_at, done_at, code, waiting_since, failed_at, failed_in, dropped_at, unsure, settle_at, settled) values
(301, 'sample:waits', 6, NULL, 'comment.closing', '{"number": 7, "repository": "acme/other", "repository_id": 9}', 'planned', NULL, '{}', 1, 0, 3, '2026-11-22 19:01:00+00', NULL, NULL, NULL, 3, 'PATCH: no connection', '2026-11-22 18:59:00+00', NULL, 'unreachable', '2026-11-22 19:00:00+00', NULL, NULL, NULL, true, NULL, 0),
(302, 'sample:dead', 2, NULL, 'comment.closing', '{"number": 4, "repository": "acme/calc", "repository_id": 1}', 'failed', NULL, '{}', 1, 0, 1, '2026-11-22 19:00:00+00', NULL, NULL, NULL, 1, 'Gitea answered 403 (locked)', '2026-11-22 18:59:00+00', NULL, 'forge_forbidden', NULL, '2026-11-22 19:00:00+00', 'failed', NULL, false, NULL, 0),
(303, 'sample:dropped', 2, NULL, 'comment.status', '{"number": 4, "repository_id": 1}', 'failed', NULL, '{}', 1, 0, 1, '2026-11-22 19:00:00+00', NULL, NULL, NULL, 1, 'Gitea answered 423 (archived)', '2026-11-22 18:59:00+00', NULL, 'dropped', NULL, '2026-11-22 19:00:00+00', 'failed', '2026-11-22 19:05:00+00', false, NULL, 0),
(304, 'sample:settles', 1, NULL, 'comment.closing', '{"number": 3, "repository": "acme/calc", "repository_id": 1}', 'done', '71', '{}', 1, 1, 0, '2026-11-22 19:00:00+00', NULL, NULL, NULL, 2, '', '2026-11-22 18:59:00+00', '2026-11-22 19:00:00+00', '', NULL, NULL, NULL, NULL, false, '2026-11-22 19:10:00+00', 1);

update runner_jobs set forge_wait_since = '2026-11-22 19:00:00+00' where id = 6;
