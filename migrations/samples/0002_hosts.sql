-- Two hosts, one of them gone; the jobs that run have their files on the other.
insert into workers (id, boot_id, host, pid, pool, slots, version, signer, started_at, heartbeat_at, ended_at) values
(901, 'boot-901', 'left-00000000', 901, 'control', 8, 'test', 'd1e5', '2026-11-22 18:00:00+00', '2026-11-22 18:10:00+00', '2026-11-22 18:10:00+00'),
(902, 'boot-902', 'left-00000000', 902, 'agents', 2, 'test', 'd1e5', '2026-11-22 18:00:00+00', '2026-11-22 18:10:00+00', '2026-11-22 18:10:00+00');
update runner_jobs set host = 'here' where status = 'running';
update job_steps set excused = 1 where id = (select max(id) from job_steps where name = 'runner.checkout' and status = 'pending');
