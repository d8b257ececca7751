-- What a Mosaic at migration 0004 may hold: two repositories read up to a moment, one of which was refused, a request
-- that was found by looking, and the worker that looks.

insert into reconcile_cursors (repository_id, source, read_to, not_before, looked_at, failures, retry_at, error) values
(0, 'repositories', '2026-11-22 18:30:00+00', '2026-11-22 18:00:00+00', '2026-11-22 18:30:01+00', 0, NULL, ''),
(0, 'notifications', '2026-11-22 18:30:00+00', '2026-11-22 18:00:00+00', '2026-11-22 18:30:01+00', 0, NULL, ''),
(1, 'comments', '2026-11-22 18:29:00+00', '2026-11-22 18:00:00+00', '2026-11-22 18:30:02+00', 0, NULL, ''),
(1, 'issues', '2026-11-22 18:29:30+00', '2026-11-22 18:00:00+00', '2026-11-22 18:30:02+00', 0, NULL, ''),
(9, 'comments', '2026-11-22 18:00:00+00', '2026-11-22 18:00:00+00', '2026-11-22 18:30:03+00', 2, '2026-11-22 18:34:03+00', 'GET /repos/acme/other/issues/comments: Gitea answered 404.'),
(9, 'issues', '2026-11-22 18:00:00+00', '2026-11-22 18:00:00+00', '2026-11-22 18:30:03+00', 2, '2026-11-22 18:34:03+00', 'GET /repos/acme/other/issues: Gitea answered 404.');

insert into reconciler (worker_id, lease_until, began_at, completed_at, retry_at, failures, error) values
(1, '2026-11-22 18:30:33+00', '2026-11-22 18:30:01+00', '2026-11-22 18:30:03+00', NULL, 0, '');

insert into deliveries (source, delivery_id, dedup_key, event, state, trigger, via) values
('gitea', 'poll-comment-4004', 'comment:4004:0123', 'issue_comment', 'answered', '{"kind": "comment", "object_id": 4004, "actor_id": 7, "text": "@mosaic status"}', 'poll');
