-- share_sessions: claims and reports hold their session's row against Hello and expiry, which take it whole. `free`: what the agent said it has, less what it holds by the books
SELECT s.id, g.slots - (SELECT count(*) FROM lease l WHERE l.session_id = s.id) AS free
FROM session s JOIN agent g ON g.id = s.agent_id
WHERE s.id = ANY($1::uuid[]) ORDER BY s.id FOR KEY SHARE OF s;

-- share_sessions_of: the same for the sessions that hold these attempts
SELECT s.id FROM session s
WHERE s.id IN (SELECT l.session_id FROM lease l WHERE l.attempt_id = ANY($1::bigint[]))
ORDER BY s.id FOR KEY SHARE;

-- make_pool: a pool exists from the first agent that names it, until credentials bind pools
INSERT INTO pool (name) VALUES ($1) ON CONFLICT DO NOTHING;

-- lock_agent: one Hello of an identity at a time; no key column is set, for a claim that refers to the agent must not wait for it
INSERT INTO agent (name, pool, instance, version, labels, slots, sandboxes, leaving, slot_cpu, slot_memory, refusal)
VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7::jsonb, $8, $9, $10, $11)
ON CONFLICT (name) DO UPDATE SET seen_at = clock_timestamp()
RETURNING id, drained OR quarantine <> '' AS drained, instance, hello;

-- session_of_agent: taken whole, so that no claim or report of the old session is under way
SELECT id, instance FROM session WHERE agent_id = $1 FOR UPDATE;

-- write_agent: what the newest session says of it
UPDATE agent SET pool = $2, instance = $3, version = $4, labels = $5::jsonb, slots = $6, sandboxes = $7::jsonb, leaving = $8,
                 slot_cpu = $9, slot_memory = $10, refusal = $11, hello = $12, seen_at = clock_timestamp()
WHERE id = $1;

-- delete_session: fenced by a newer one, expired, or left with nothing in its hands
DELETE FROM session WHERE id = $1;

-- lock_session: waits for claims under way, so that the next statement sees their leases
SELECT id FROM session WHERE id = $1 FOR UPDATE;

-- delete_idle_session: an agent that left; with a living attempt the lease decides instead
DELETE FROM session s WHERE s.id = $1 AND NOT EXISTS (SELECT 1 FROM lease l WHERE l.session_id = s.id)
RETURNING s.agent_id;

-- seen: now, of agents whose sessions are over; alone, for a Hello locks agents before sessions
UPDATE agent SET seen_at = clock_timestamp() WHERE id = ANY($1::bigint[]);

-- insert_session: random id, counter 0
INSERT INTO session (id, agent_id, instance, replica) VALUES ($1, $2, $3, $4);

-- leases_of_agent: what the agent holds by the books, also what is out of contact
SELECT attempt_id, run_id, token, session_id FROM lease WHERE agent_id = $1 ORDER BY attempt_id;

-- resume_leases: the new session takes over what its agent still holds; 0: named in Hello, so always named in heartbeats
UPDATE lease SET session_id = $2, number = 0, orphaned_at = NULL WHERE attempt_id = ANY($1::bigint[]);

-- beat: the counters of all agents of a replica in one statement; locked in id order, as the reaper locks them
WITH held AS (SELECT id FROM session WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE)
UPDATE session SET counter = counter + 1 WHERE id = ANY(array(SELECT id FROM held)) RETURNING id;

-- missing: leases that a heartbeat should have named and did not; and, as strays, what it names and nobody knows
SELECT l.attempt_id, l.run_id, l.session_id, false AS stray
FROM unnest($1::uuid[], $2::bigint[]) AS b(session_id, highest)
JOIN lease l ON l.session_id = b.session_id AND l.number <= b.highest
WHERE l.session_id = ANY($1::uuid[]) -- said twice: the planner then reads by the index
  AND NOT EXISTS ( -- NOT IN stops hashing when an agent names very many
      SELECT 1 FROM unnest($3::uuid[], $4::bigint[]) AS n(session_id, attempt_id)
      WHERE n.session_id = l.session_id AND n.attempt_id = l.attempt_id)
UNION ALL
SELECT n.attempt_id, NULL, n.session_id, true
FROM unnest($3::uuid[], $4::bigint[]) AS n(session_id, attempt_id) JOIN session s ON s.id = n.session_id
WHERE NOT EXISTS (SELECT 1 FROM attempt a WHERE a.id = n.attempt_id AND a.agent_id = s.agent_id);

-- classes: those that have something queued, by loose index scan: one probe a class, whatever the depth
WITH RECURSIVE c AS (
    (SELECT cls FROM queue ORDER BY cls LIMIT 1)
    UNION ALL
    SELECT (SELECT q.cls FROM queue q WHERE q.cls > c.cls ORDER BY q.cls LIMIT 1) FROM c WHERE c.cls IS NOT NULL
)
SELECT k.id, k.pool, k.requires, k.sandbox, k.network, k.trusted, k.cpu, k.memory, k.hard_limits, p.paused
FROM c JOIN class k ON k.id = c.cls JOIN pool p ON p.name = k.pool
ORDER BY k.id;

-- claim: one ordered probe of the index a class; `= ANY` over classes would sort the whole queue. The rows are deleted by key:
-- joined with what was picked, a plan that does not know the limit reads the whole queue
WITH picked AS (
    SELECT q.job_id, q.prio, q.vt
    FROM unnest($1::integer[]) AS c(cls)
    CROSS JOIN LATERAL (
        SELECT i.job_id, i.prio, i.vt FROM queue i
        WHERE i.cls = c.cls ORDER BY i.prio DESC, i.vt, i.job_id LIMIT $2 FOR UPDATE SKIP LOCKED
    ) AS q
    ORDER BY q.prio DESC, q.vt, q.job_id LIMIT $2
)
DELETE FROM queue WHERE job_id = ANY(array(SELECT job_id FROM picked))
RETURNING queue.job_id, queue.cls, queue.prio, queue.vt, queue.pool,
          extract(epoch FROM clock_timestamp() - queue.queued_at)::double precision AS waited;

-- raise_pools: the pool's present is the last job claimed
UPDATE pool SET vt = greatest(pool.vt, u.vt)
FROM unnest($1::text[], $2::double precision[]) AS u(name, vt) WHERE pool.name = u.name;

-- lease: the attempt, its history row and the right to run it, in one statement
WITH given AS (
    SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::bytea[]) AS g(job_id, session_id, number, token)
), made AS (
    INSERT INTO attempt (job_id, run_id, agent_id, token, try, state)
    SELECT g.job_id, j.run_id, s.agent_id, g.token, j.tries + 1, 'leased'
    FROM given g JOIN job j ON j.id = g.job_id JOIN session s ON s.id = g.session_id
    RETURNING id, job_id, run_id, agent_id, token, try
), leased AS (
    INSERT INTO lease (attempt_id, job_id, run_id, agent_id, session_id, token, number, at_most_once)
    SELECT m.id, m.job_id, m.run_id, m.agent_id, g.session_id, m.token, g.number, j.at_most_once
    FROM made m JOIN given g ON g.job_id = m.job_id JOIN job j ON j.id = m.job_id
)
SELECT m.id, m.job_id, m.run_id, m.token, m.try, g.session_id, g.number, j.spec, j.given
FROM made m JOIN given g ON g.job_id = m.job_id JOIN job j ON j.id = m.job_id
ORDER BY g.session_id, g.number;

-- runs_of_attempts: which runs to lock; these columns never change
SELECT id, run_id FROM attempt WHERE id = ANY($1::bigint[]);

-- attempts: as they are under the run lock
SELECT a.id, a.job_id, a.run_id, a.agent_id, a.token, a.state, a.cause, a.sentence, a.started_report, a.ended_report,
       l.cancel IS NOT NULL AS canceling, l.session_id, j.rules, g.errored AS agent_errored
FROM attempt a JOIN job j ON j.id = a.job_id JOIN agent g ON g.id = a.agent_id LEFT JOIN lease l ON l.attempt_id = a.id
WHERE a.id = ANY($1::bigint[]);

-- write_attempts: the history row, with what the agent told
UPDATE attempt SET
    state = u.state, cause = u.cause, sentence = u.sentence, started_report = u.started_report, ended_report = u.ended_report,
    steps = coalesce(u.details, attempt.steps),
    started_at = CASE WHEN u.state NOT IN ('leased', 'returned') THEN coalesce(attempt.started_at, clock_timestamp()) END,
    ended_at = CASE WHEN u.state NOT IN ('leased', 'running') THEN clock_timestamp() END,
    out_of_contact_since = CASE WHEN u.state = 'lost' THEN (
        SELECT coalesce(l.orphaned_at, clock_timestamp()) FROM lease l WHERE l.attempt_id = u.id AND l.permit IS NOT NULL) END
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[])
     AS u(id, state, cause, sentence, started_report, ended_report, details)
WHERE attempt.id = u.id;

-- leases_running: begun by the agent's word
UPDATE lease SET running = true WHERE attempt_id = ANY($1::bigint[]);

-- delete_leases: the attempt is over
DELETE FROM lease WHERE attempt_id = ANY($1::bigint[]);

-- permit: one nonce for ever; the same may ask again. Only what has started: an attempt that had not would be returned and run twice
UPDATE lease SET permit = $3
WHERE attempt_id = $1 AND token = $2 AND at_most_once AND running AND cancel IS NULL AND (permit IS NULL OR permit = $3)
RETURNING fencing, job_id;

-- fence: a number that grows with every permitted deployment of an environment; a failover raises the timeline
INSERT INTO environment AS e (project_id, name, fencing)
SELECT r.project_id, j.environment, ((SELECT timeline_id FROM pg_control_checkpoint())::bigint << 40) + 1
FROM job j JOIN run r ON r.id = j.run_id WHERE j.id = $1
ON CONFLICT (project_id, name)
DO UPDATE SET fencing = greatest(e.fencing + 1, excluded.fencing)
RETURNING fencing;

-- keep_fence: the same permit asked for again gets the same number
UPDATE lease SET fencing = $2 WHERE attempt_id = $1;

-- cancels: what people want ended, of this replica's agents
SELECT attempt_id, session_id, cancel, cancel_sentence FROM lease
WHERE session_id = ANY($1::uuid[]) AND cancel IS NOT NULL;

-- drained: of these agents, by a person or by quarantine
SELECT id FROM agent WHERE id = ANY($1::bigint[]) AND (drained OR quarantine <> '');

-- leaving: by its own decision
UPDATE agent SET leaving = true, refusal = $2 WHERE id = $1;

-- lock_reliances: in a transaction of their own, for a Hello locks agents before sessions, and reports hold sessions
SELECT id, name, errored, quarantine FROM agent WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE;

-- write_reliances: what the core thinks of agents now
UPDATE agent SET errored = u.errored, quarantine = u.quarantine
FROM unnest($1::bigint[], $2::integer[], $3::text[]) AS u(id, errored, quarantine) WHERE agent.id = u.id;

-- counters: the reaper compares them with what it has seen itself, never with a time
SELECT id, counter FROM session;

-- server: which life of which server answers; after a failover another one does
SELECT pg_postmaster_start_time()::text || ' ' || (SELECT timeline_id FROM pg_control_checkpoint());

-- orphans: permitted attempts whose session has ended
SELECT attempt_id FROM lease WHERE session_id IS NULL;

-- expire: the counter and the reaper's own term are repeated, so that a late reaper ends nothing
SELECT s.id, s.agent_id FROM session s
JOIN unnest($1::uuid[], $2::bigint[]) AS u(id, counter) ON u.id = s.id AND u.counter = s.counter
WHERE s.id = ANY($1::uuid[]) AND EXISTS (SELECT 1 FROM singleton WHERE name = 'reaper' AND term = $3)
ORDER BY s.id FOR UPDATE OF s;

-- leases_of_sessions: what their sessions leave behind
SELECT attempt_id, session_id, permit IS NOT NULL AS permitted FROM lease WHERE session_id = ANY($1::uuid[]);

-- orphan_leases: out of contact; their own long lease begins
UPDATE lease SET session_id = NULL, orphaned_at = clock_timestamp() WHERE attempt_id = ANY($1::bigint[]);

-- delete_sessions: expired
DELETE FROM session WHERE id = ANY($1::uuid[]);

-- still_orphans: nobody resumed them, and the reaper is still the reaper
SELECT attempt_id, run_id FROM lease
WHERE attempt_id = ANY($1::bigint[]) AND session_id IS NULL
  AND EXISTS (SELECT 1 FROM singleton WHERE name = 'reaper' AND term = $2);

-- offers: what the connected agents offer, to judge what nobody can take
SELECT a.name, a.pool, a.labels, a.sandboxes, a.slot_cpu, a.slot_memory, a.drained, a.leaving,
       a.quarantine <> '' OR a.refusal <> '' AS quarantined FROM agent a
WHERE EXISTS (SELECT 1 FROM session s WHERE s.agent_id = a.id);

-- queued_with_other_reason: queued jobs whose reason is not that of their class now; a bounded bite of each class at a time
SELECT w.id, w.run_id, u.cls
FROM unnest($1::integer[], $2::text[]) AS u(cls, sentence)
CROSS JOIN LATERAL (
    (SELECT j.id, j.run_id FROM job j JOIN queue q ON q.job_id = j.id
     WHERE j.state = 'queued' AND j.cls = u.cls AND md5(j.sentence) < md5(u.sentence)
     ORDER BY md5(j.sentence) LIMIT 500) -- in the order of the index, or the planner takes another one
    UNION ALL
    (SELECT j.id, j.run_id FROM job j JOIN queue q ON q.job_id = j.id
     WHERE j.state = 'queued' AND j.cls = u.cls AND md5(j.sentence) > md5(u.sentence)
     ORDER BY md5(j.sentence) LIMIT 500)
) AS w;

-- waiting_for_nothing: must find none
SELECT id, run_id FROM job WHERE state = 'waiting' AND unfinished = 0 LIMIT 1000;

-- queued_too_long: of classes that no agent can take, a bounded bite of each. The time is that of the statement, so that the index is used
SELECT w.job_id, j.run_id
FROM unnest($2::integer[]) AS c(cls)
CROSS JOIN LATERAL (
    SELECT q.job_id, q.queued_at FROM queue q
    WHERE q.cls = c.cls AND q.queued_at < statement_timestamp() - make_interval(secs => $1)
    ORDER BY q.queued_at LIMIT 500
) AS w
JOIN job j ON j.id = w.job_id
ORDER BY w.queued_at LIMIT 500;

-- forget_requests: nobody asks again by then; a bounded bite at a time. The time is that of the statement, or the whole index is read
DELETE FROM request WHERE id = ANY(array(
    SELECT id FROM request WHERE created_at < statement_timestamp() - interval '7 days' ORDER BY created_at LIMIT 5000));
