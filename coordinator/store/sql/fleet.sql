-- agents: all that were ever here, with what they do now; who is connected is seen at this moment
SELECT a.id, a.name, a.pool, a.labels, a.slots, a.version, a.sandboxes, a.drained, a.leaving, a.quarantine, a.refusal,
       EXISTS (SELECT 1 FROM session s WHERE s.agent_id = a.id) AS connected,
       CASE WHEN EXISTS (SELECT 1 FROM session s WHERE s.agent_id = a.id) THEN clock_timestamp() ELSE a.seen_at END AS seen_at,
       array(SELECT l.run_id || ' ' || j.key FROM lease l JOIN job j ON j.id = l.job_id WHERE l.agent_id = a.id ORDER BY l.attempt_id) AS jobs
FROM agent a ORDER BY a.name;

-- drain: by a person; stays over restarts of agent and coordinator. Undone, it lifts a quarantine too
UPDATE agent SET drained = $2,
                 quarantine = CASE WHEN $2 THEN quarantine ELSE '' END, errored = CASE WHEN $2 THEN errored ELSE 0 END
WHERE name = $1 RETURNING id;

-- near_agents: for the sentence about a name that does not exist
SELECT name FROM agent ORDER BY name LIMIT 200;

-- pools: with what stands before them; the queue is read once for all of them
SELECT p.name, p.paused,
       (SELECT count(*) FROM agent a JOIN session s ON s.agent_id = a.id WHERE a.pool = p.name) AS agents,
       (SELECT coalesce(sum(a.slots), 0) FROM agent a JOIN session s ON s.agent_id = a.id WHERE a.pool = p.name) AS slots,
       (SELECT count(*) FROM lease l JOIN agent a ON a.id = l.agent_id WHERE a.pool = p.name) AS busy,
       coalesce(w.queued, 0) AS queued
FROM pool p LEFT JOIN (SELECT pool, count(*) AS queued FROM queue GROUP BY pool) w ON w.pool = p.name
ORDER BY p.name;

-- pause: stays until it is resumed
UPDATE pool SET paused = $2 WHERE name = $1 RETURNING name;

-- lost_sight: must be 0: at-least-once attempts that run without a live session
SELECT count(*) FROM lease l
WHERE NOT l.at_most_once AND NOT EXISTS (SELECT 1 FROM session s WHERE s.id = l.session_id);

-- waiting_for_nothing: must be 0
SELECT count(*) FROM job WHERE state = 'waiting' AND unfinished = 0;

-- queued_without_place: must be 0: queued by its state, yet neither claimable nor claimed
SELECT count(*) FROM job j
WHERE j.state = 'queued' AND NOT EXISTS (SELECT 1 FROM queue q WHERE q.job_id = j.id)
  AND NOT EXISTS (SELECT 1 FROM lease l WHERE l.job_id = j.id);
