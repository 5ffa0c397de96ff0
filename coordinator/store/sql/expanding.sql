-- due: jobs whose cells are to be made, a bounded bite at a time; nothing is locked, for planning takes its time
SELECT job_id FROM expansion_due ORDER BY job_id LIMIT 100;

-- basis: what an expansion is planned by; no row: another replica has done it, or it is not due any more
SELECT d.run_id, d.job_id, j.key, j.depth, r.asked, r.pipeline_text, r.trusted
FROM expansion_due d JOIN job j ON j.id = d.job_id JOIN run r ON r.id = d.run_id WHERE d.job_id = $1;

-- still_due: the same question under the run's lock
SELECT run_id FROM expansion_due WHERE job_id = $1;

-- cells: those that the run has of this job, also those that its matrix has no more
SELECT c.id, c.cell FROM job j JOIN job c ON c.run_id = j.run_id AND c.name = j.name AND c.cell <> '' WHERE j.id = $1;

-- keep_lists: what its expressions have given, and that they were asked once more
INSERT INTO expansion (job_id, run_id, lists) VALUES ($1, $2, $3)
ON CONFLICT (job_id) DO UPDATE SET lists = excluded.lists, revision = expansion.revision + 1;

-- need_more: jobs that are there and wait for cells that are new
UPDATE job SET needs = array(SELECT jsonb_array_elements_text(u.needs))
FROM unnest($1::bigint[], $2::jsonb[]) AS u(id, needs) WHERE job.id = u.id;
