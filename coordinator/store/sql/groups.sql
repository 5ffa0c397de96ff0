-- make_groups: from their first members on; ordered, as all locks of several rows
INSERT INTO concurrency_group (project_id, trusted, of_jobs, name)
SELECT DISTINCT r.project_id, r.trusted, u.job_id IS NOT NULL, u.name
FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS u(run_id, job_id, name) JOIN run r ON r.id = u.run_id
ORDER BY 1, 2, 3, 4
ON CONFLICT DO NOTHING;

-- join: at the end of those that are there; whoever is there already keeps its place
INSERT INTO group_member (group_id, run_id, job_id, size, when_full)
SELECT g.id, r.id, u.job_id, u.size, u.when_full
FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::integer[], $5::text[])
     WITH ORDINALITY AS u(run_id, job_id, name, size, when_full, number)
JOIN run r ON r.id = u.run_id
JOIN concurrency_group g ON g.project_id = r.project_id AND g.trusted = r.trusted AND g.of_jobs = (u.job_id IS NOT NULL)
                            AND g.name = u.name
ORDER BY u.number
ON CONFLICT DO NOTHING;

-- crowded: groups in which somebody waits, a bounded bite at a time
SELECT DISTINCT group_id FROM group_member WHERE NOT entered AND NOT leaving LIMIT 200;

-- runs_in_group: those that a look at the group may touch: locked before the group, in id order
SELECT run_id FROM group_member WHERE group_id = $1 ORDER BY place LIMIT 500;

-- lock_group: one look at a time
SELECT id FROM concurrency_group WHERE id = $1 FOR UPDATE;

-- members: in the order of coming, with whether each is in a deployment, be it between two of its tries
SELECT m.place, m.run_id, m.job_id, m.size, m.when_full, m.entered, m.leaving, coalesce(j.key, 'run ' || m.run_id) AS name,
       EXISTS (SELECT 1 FROM job d WHERE d.run_id = m.run_id AND d.at_most_once
               AND (d.state IN ('queued', 'running') OR d.due_at IS NOT NULL)
               AND (m.job_id IS NULL OR d.id = m.job_id)) AS deploys
FROM group_member m LEFT JOIN job j ON j.id = m.job_id
WHERE m.group_id = $1 ORDER BY m.place LIMIT 500;

-- run_waits: under its lock, without which nobody enters
SELECT EXISTS (SELECT 1 FROM group_member WHERE run_id = $1 AND job_id IS NULL AND NOT entered);

-- entered: they have their places
UPDATE group_member SET entered = true WHERE place = ANY($1::bigint[]);

-- leaving: they were told to end
UPDATE group_member SET leaving = true WHERE place = ANY($1::bigint[]);
