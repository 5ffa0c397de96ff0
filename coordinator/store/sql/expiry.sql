-- expire: what is refused from now on for good, a bounded bite. Their time has been over for an hour: no signed request for them is good any more. A living attempt may yet publish the same objects under another name, so it has to be over. The time is that of the statement, so that the index is used
WITH due AS (
    SELECT x.id FROM artifact x JOIN attempt a ON a.id = x.attempt_id
    WHERE x.state = 'there' AND x.expires_at < statement_timestamp() - interval '1 hour' AND a.ended_at IS NOT NULL
      AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $1)
    ORDER BY x.expires_at LIMIT 100 FOR UPDATE OF x SKIP LOCKED
)
UPDATE artifact SET state = 'expiring' WHERE id = ANY(array(SELECT id FROM due)) -- by key: a join may read the whole table
RETURNING id;

-- expiring: those whose objects have to be deleted, also what another sweep has left
SELECT id, run_id, attempt_id FROM artifact WHERE state = 'expiring' ORDER BY id LIMIT 20;

-- unneeded: the objects of an artifact that no other one of its attempt names
SELECT f.sha256 FROM artifact_file f WHERE f.artifact_id = $1
EXCEPT
SELECT f.sha256 FROM artifact x JOIN artifact_file f ON f.artifact_id = x.id WHERE x.attempt_id = $2 AND x.state = 'there';

-- expired: its objects are gone, and now the names of its files; the row stays, to say so
WITH over AS (
    UPDATE artifact SET state = 'expired' WHERE id = $1 AND state = 'expiring'
      AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $2)
    RETURNING id
)
DELETE FROM artifact_file f USING over o WHERE f.artifact_id = o.id;

-- old_bundles: nobody has handed them in for a week, and no unfinished run needs them. Held while their objects are deleted, so that who hands one in again waits, and is told the truth
SELECT b.sha256 FROM bundle b
WHERE b.asked_at < statement_timestamp() - interval '7 days'
  AND NOT EXISTS (SELECT 1 FROM run r WHERE r.bundle = b.sha256 AND r.ended_at IS NULL)
  AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $1)
ORDER BY b.asked_at LIMIT 50 FOR UPDATE OF b SKIP LOCKED;

-- groups: a bite of the groups behind an id, and whether anybody is in each or waits for a place there
SELECT g.id, m.used IS NOT NULL AS used
FROM (SELECT id FROM concurrency_group WHERE id > $1 ORDER BY id LIMIT 500) g
LEFT JOIN LATERAL (SELECT true AS used FROM group_member WHERE group_id = g.id LIMIT 1) m ON true
ORDER BY g.id;

-- forget_groups: of those that were found empty, under a lock that keeps everybody out who would join
DELETE FROM concurrency_group g
WHERE g.id = ANY($1::bigint[]) AND NOT EXISTS (SELECT 1 FROM group_member m WHERE m.group_id = g.id)
  AND EXISTS (SELECT 1 FROM singleton WHERE name = 'expiry' AND term = $2);

-- forget_bundles: their objects are gone
DELETE FROM bundle WHERE sha256 = ANY($1::bytea[]);
