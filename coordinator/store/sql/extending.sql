-- basis: what an extension is planned by, for whoever holds the attempt (a quick step may be over before its start is recorded); nothing is locked, for planning takes its time
SELECT a.run_id, a.job_id, j.key, j.depth, r.asked, r.pipeline_text, r.trusted
FROM attempt a JOIN job j ON j.id = a.job_id JOIN run r ON r.id = a.run_id
WHERE a.id = $1 AND a.token = $2 AND a.state IN ('leased', 'running');

-- still_lives: the same question under the run's lock, where outcomes are recorded
SELECT job_id FROM attempt WHERE id = $1 AND token = $2 AND state IN ('leased', 'running');

-- fragments: what was added to a run, in order
SELECT f.job_id, f.step, f.sha256, f.text, f.added, j.name, j.pool
FROM fragment f JOIN job j ON j.id = f.job_id WHERE f.run_id = $1 ORDER BY f.number;

-- insert_fragment: once a job and step; its number is taken under the run's lock
INSERT INTO fragment (run_id, number, job_id, step, sha256, text, added) VALUES ($1, $2, $3, $4, $5, $6, $7);

-- revision: how often a run has grown, and its matrices have changed: whether something else came while this was planned
SELECT ((SELECT count(*) FROM fragment WHERE run_id = $1)
        + (SELECT coalesce(sum(revision), 0) FROM expansion WHERE run_id = $1))::bigint;

-- lists: what matrices from expressions have come to
SELECT j.key, e.lists FROM expansion e JOIN job j ON j.id = e.job_id WHERE e.run_id = $1 ORDER BY e.job_id;

-- lift_stages: first out of the way, because the key is checked row by row
UPDATE stage SET index = -1 - u.after FROM unnest($2::integer[], $3::integer[]) AS u(before, after)
WHERE stage.run_id = $1 AND stage.index = u.before;

-- lower_stages: to their new numbers, which nobody has any more
UPDATE stage SET index = -1 - index WHERE run_id = $1 AND index < 0;

-- move_jobs: with their stages, and with a sequence of their own, so that watchers see them move
UPDATE job SET stage = u.after, sequence = $4 FROM unnest($2::integer[], $3::integer[]) AS u(before, after)
WHERE job.run_id = $1 AND job.stage = u.before;

-- make_doors: of stages that had none, because none of their jobs could run
UPDATE stage SET door = 'closed', rules = u.rules FROM unnest($2::integer[], $3::text[]) AS u(index, rules)
WHERE stage.run_id = $1 AND stage.index = u.index;

-- next_place: where added jobs stand in their run, behind all others
SELECT coalesce(max(place) + 1, 0) FROM job WHERE run_id = $1;

-- bump_run: the stages of a run have changed, which no state shows
UPDATE run SET sequence = sequence + 1, run_sequence = sequence + 1 WHERE id = $1 RETURNING sequence;
