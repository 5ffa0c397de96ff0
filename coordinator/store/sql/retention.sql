-- forget: runs that have been over for so many seconds, a bounded bite; from now on there are none such. One that an agent may yet report about is kept, and one that is retried at this moment. The time is that of the statement, so that the index is used
WITH due AS (
    SELECT r.id FROM run r
    WHERE r.ended_at < statement_timestamp() - make_interval(secs => $2) AND r.ended_at IS NOT NULL AND r.forgotten_at IS NULL
      AND NOT EXISTS (SELECT 1 FROM lease l WHERE l.run_id = r.id)
      AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $1)
    ORDER BY r.ended_at LIMIT 100 FOR UPDATE OF r SKIP LOCKED
)
UPDATE run SET forgotten_at = clock_timestamp() WHERE id = ANY(array(SELECT id FROM due)) -- by key: a join may read the whole table
RETURNING id;

-- forgotten: those whose objects and rows have to go, also what another sweep has left; no signed request for them is good any more
SELECT id FROM run WHERE forgotten_at < statement_timestamp() - interval '1 hour' AND forgotten_at IS NOT NULL
ORDER BY forgotten_at LIMIT 20;

-- is_forgotten: under the run's lock
SELECT forgotten_at IS NOT NULL FROM run WHERE id = $1;

-- files: some objects of a run's artifacts
SELECT f.artifact_id, x.attempt_id, f.path, f.sha256 FROM artifact x JOIN artifact_file f ON f.artifact_id = x.id
WHERE x.run_id = $1 LIMIT 1000;

-- delete_files: their objects are gone
DELETE FROM artifact_file f USING unnest($1::bigint[], $2::text[]) AS u(artifact_id, path)
WHERE f.artifact_id = u.artifact_id AND f.path = u.path
  AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $3);

-- close_logs: a bite of a run's logs takes no record and no segment any more. A compaction under way would else name a new object whose row goes with its attempt, and nobody would know of the object
UPDATE log SET final_records = next - 1, sealed_at = coalesce(sealed_at, clock_timestamp()), compacted_to = next - 1, compacted_bytes = bytes
WHERE attempt_id = ANY(array(
    SELECT l.attempt_id FROM job j JOIN attempt a ON a.job_id = j.id JOIN log l ON l.attempt_id = a.id
    WHERE j.run_id = $1 AND (l.sealed_at IS NULL OR l.next > l.compacted_to + 1)
      AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $2) LIMIT 1000))
  AND (sealed_at IS NULL OR next > compacted_to + 1);

-- segments: some objects of a run's logs
SELECT s.attempt_id, s.stream, s.first_sequence, s.key
FROM job j JOIN attempt a ON a.job_id = j.id JOIN log_segment s ON s.attempt_id = a.id
WHERE j.run_id = $1 AND s.key IS NOT NULL LIMIT 1000;

-- delete_segments: their objects are gone
DELETE FROM log_segment s USING unnest($1::bigint[], $2::text[], $3::bigint[]) AS u(attempt_id, stream, first_sequence)
WHERE s.attempt_id = u.attempt_id AND s.stream = u.stream AND s.first_sequence = u.first_sequence
  AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $4);

-- delete_records: a bite of hot rows, which no foreign key takes along
DELETE FROM log_record WHERE ctid = ANY(array(
    SELECT r.ctid FROM job j JOIN attempt a ON a.job_id = j.id JOIN log_record r ON r.attempt_id = a.id
    WHERE j.run_id = $1 AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $2) LIMIT 5000));

-- delete_jobs: a bite of jobs, with their attempts, logs, edges, fragments and what is left of artifacts
DELETE FROM job WHERE id = ANY(array(
    SELECT id FROM job WHERE run_id = $1 AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $2)
    ORDER BY id LIMIT 200));

-- delete_run: with its stages and cells. Requests are kept as long as all others: who asks again is told the same. So is the count of an environment's deployments
DELETE FROM run WHERE id = $1 AND forgotten_at IS NOT NULL
  AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $2);
