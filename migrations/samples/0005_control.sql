insert into turns (scope, who, at) values
('queue:1', 7, '2026-11-22 18:26:43+00'), ('agents:person', 7, '2026-11-22 18:26:43+00');

-- A pause of one repository that holds, one that was ended, and one of everything that was ended.
insert into pauses (id, repository_id, repository, actor, at, ended_by, ended_at) values
(1, 55, 'acme/held', 'gitea:alice', '2026-11-22 18:30:00+00', null, null),
(2, 1, 'acme/calc', 'gitea:alice', '2026-11-22 18:31:00+00', 'gitea:alice', '2026-11-22 18:32:00+00'),
(3, null, '', 'cli:operator', '2026-11-22 18:33:00+00', 'cli:operator', '2026-11-22 18:34:00+00');
select setval('pauses_id_seq', 3);
