-- live: the attempt, if this is its token and it is not over; nothing is locked
SELECT run_id, job_id FROM attempt WHERE id = $1 AND token = $2 AND state IN ('leased', 'running');

-- hold_run: before anything is published. Outcomes are recorded under the run's row lock, so that none can come between
SELECT r.id FROM run r JOIN attempt a ON a.run_id = r.id WHERE a.id = $1 FOR KEY SHARE OF r;

-- claim_name: the row lock serialises two jobs that publish one name; the first one has it
INSERT INTO artifact_producer AS p (run_id, name, job_id) VALUES ($1, $2, $3)
ON CONFLICT (run_id, name) DO UPDATE SET job_id = p.job_id
RETURNING job_id;

-- publish: once an attempt and name
INSERT INTO artifact (run_id, job_id, attempt_id, name, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + $5::interval)
ON CONFLICT (attempt_id, name) DO NOTHING RETURNING id;

-- publish_files: all files of an artifact in one statement
INSERT INTO artifact_file (artifact_id, path, sha256, size, executable)
SELECT $1, f.path, f.sha256, f.size, f.executable
FROM unnest($2::text[], $3::bytea[], $4::bigint[], $5::boolean[]) AS f(path, sha256, size, executable);

-- published: what an attempt has published under a name
SELECT id FROM artifact WHERE attempt_id = $1 AND name = $2;

-- files: of some artifacts, in order of their paths
SELECT artifact_id, path, sha256, size, executable FROM artifact_file
WHERE artifact_id = ANY($1::bigint[]) ORDER BY artifact_id, path COLLATE "C";

-- newest: the newest attempt's artifact of a name
SELECT x.id, x.name, x.run_id, x.job_id, x.attempt_id, j.key AS job, a.try, x.published_at, x.expires_at,
       x.state <> 'there' OR coalesce(x.expires_at <= clock_timestamp(), false) AS expired
FROM artifact x JOIN job j ON j.id = x.job_id JOIN attempt a ON a.id = x.attempt_id
WHERE x.run_id = $1 AND x.name = $2 AND EXISTS (SELECT 1 FROM run r WHERE r.id = $1 AND r.forgotten_at IS NULL)
ORDER BY x.attempt_id DESC LIMIT 1;

-- newest_of_run: the newest attempt's artifact of each name
SELECT DISTINCT ON (x.name) x.id, x.name, x.run_id, x.job_id, x.attempt_id, j.key AS job, a.try, x.published_at, x.expires_at,
       x.state <> 'there' OR coalesce(x.expires_at <= clock_timestamp(), false) AS expired
FROM artifact x JOIN job j ON j.id = x.job_id JOIN attempt a ON a.id = x.attempt_id
WHERE x.run_id = $1 ORDER BY x.name, x.attempt_id DESC;

-- depends_on: whether job $1 depends on job $2, by its needs, theirs and so on; who names no needs depends on all earlier stages
WITH RECURSIVE reached AS (
    SELECT j.id, j.stage, j.needs FROM job j WHERE j.id = $1
    UNION
    SELECT p.id, p.stage, p.needs FROM reached r JOIN dependency d ON d.dependent = r.id JOIN job p ON p.id = d.job_id
)
SELECT EXISTS (SELECT 1 FROM reached r WHERE r.id = $2 AND r.id <> $1)
    OR EXISTS (
        SELECT 1 FROM job p JOIN job j ON j.id = $1 AND j.run_id = p.run_id
        WHERE p.id = $2 AND p.stage < (SELECT max(r.stage) FROM reached r WHERE r.needs IS NULL)
    );

-- run_exists: whether there is such a run
SELECT 1 FROM run WHERE id = $1 AND forgotten_at IS NULL;

-- job_key: for sentences
SELECT key FROM job WHERE id = $1;

-- hand_in: somebody comes with a bundle; waits for a sweep that is deleting it
INSERT INTO bundle (sha256) VALUES ($1) ON CONFLICT (sha256) DO UPDATE SET asked_at = clock_timestamp();

-- source: where the code of an attempt's run comes from
SELECT r.source FROM run r WHERE r.id = $1;
