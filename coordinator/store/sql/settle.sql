-- lock_runs: the run's row lock is what makes the last two jobs of a stage see each other; id order, so that two batches never lock crosswise
SELECT id, state, canceling, sentence, unfinished, active, blocked, failed, warned, canceled, concurrency
FROM run WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE;

-- jobs: the rows that events are about, read under the run lock
SELECT id, run_id, key, stage, state, cause, sentence, unfinished, failed, decider, at_most_once, asks, tries, lost, errored,
       upstream_failed, rules, admitted, cell_place, awaits, retried, turn
FROM job WHERE id = ANY($1::bigint[]);

-- dependents: who names one of these jobs in its needs; retried runs have dependents that are over already
SELECT d.job_id AS source, j.id, j.run_id, j.key, j.stage, j.state, j.cause, j.sentence, j.unfinished, j.failed, j.decider,
       j.at_most_once, j.asks, j.tries, j.lost, j.errored,
       j.upstream_failed, j.rules, j.admitted, j.cell_place, j.awaits, j.retried, j.turn
FROM dependency d JOIN job j ON j.id = d.dependent
WHERE d.job_id = ANY($1::bigint[]) AND j.state = 'waiting'
ORDER BY d.job_id, j.id;

-- gates: all gates of these runs, a handful each
SELECT run_id, index, unfinished, failed, decider, upstream_failed, door FROM stage WHERE run_id = ANY($1::bigint[]) ORDER BY run_id, index;

-- behind: jobs of a stage without needs, waiting for the gate before it
SELECT j.id, j.run_id, j.key, j.stage, j.state, j.cause, j.sentence, j.unfinished, j.failed, j.decider,
       j.at_most_once, j.asks, j.tries, j.lost, j.errored,
       j.upstream_failed, j.rules, j.admitted, j.cell_place, j.awaits, j.retried, j.turn
FROM unnest($1::bigint[], $2::integer[]) AS w(run_id, stage)
JOIN job j ON j.run_id = w.run_id AND j.stage = w.stage
WHERE j.needs IS NULL AND j.state = 'waiting'
ORDER BY j.run_id, j.place;

-- write_runs: one sequence number for all that changes in a run in this transaction; times once, by the database's clock
UPDATE run SET
    state = u.state, canceling = u.canceling, sentence = u.sentence,
    unfinished = u.unfinished, active = u.active, blocked = u.blocked, failed = u.failed, warned = u.warned,
    canceled = u.canceled,
    sequence = run.sequence + 1,
    run_sequence = CASE WHEN (u.state, u.canceling, u.sentence) IS DISTINCT FROM (run.state, run.canceling, run.sentence)
                        THEN run.sequence + 1 ELSE run.run_sequence END,
    started_at = CASE WHEN u.state = 'pending' THEN NULL
                      WHEN run.ended_at IS NOT NULL AND u.state NOT IN ('passed', 'failed', 'canceled') THEN clock_timestamp() -- a retry
                      ELSE coalesce(run.started_at, clock_timestamp()) END,
    ended_at = CASE WHEN u.state IN ('passed', 'failed', 'canceled') THEN coalesce(run.ended_at, clock_timestamp()) END
FROM unnest($1::bigint[], $2::text[], $3::boolean[], $4::text[], $5::integer[], $6::integer[], $7::integer[], $8::integer[], $9::integer[],
            $10::integer[])
     AS u(id, state, canceling, sentence, unfinished, active, blocked, failed, warned, canceled)
WHERE run.id = u.id
RETURNING run.id, run.sequence;

-- write_jobs: a job that goes back to the queue loses its times; vt is kept once it is set
UPDATE job SET
    state = u.state, cause = u.cause, sentence = u.sentence, unfinished = u.unfinished, failed = u.failed,
    decider = u.decider, asks = u.asks, tries = u.tries, lost = u.lost, errored = u.errored,
    upstream_failed = u.upstream_failed, admitted = u.admitted, cell_place = u.cell_place, awaits = u.awaits, retried = u.retried,
    turn = u.turn,
    due_at = CASE WHEN u.pause_ms > 0 THEN clock_timestamp() + make_interval(secs => u.pause_ms / 1000.0) END,
    sequence = u.sequence, vt = coalesce(job.vt, u.vt),
    queued_at = CASE WHEN u.state = 'queued' AND (job.state <> 'queued' OR job.queued_at IS NULL) THEN clock_timestamp()
                     WHEN u.state = 'waiting' THEN NULL ELSE job.queued_at END,
    started_at = CASE WHEN u.state = 'running' THEN clock_timestamp()
                      WHEN u.state IN ('waiting', 'queued') THEN NULL ELSE job.started_at END,
    ended_at = CASE WHEN u.state IN ('passed', 'failed', 'canceled', 'skipped') THEN clock_timestamp() END
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::integer[], $7::text[], $8::boolean[],
            $9::integer[], $10::integer[], $11::integer[], $12::boolean[], $13::boolean[], $14::text[], $15::boolean[], $16::integer[],
            $17::text[], $18::bigint[], $19::bigint[], $20::double precision[])
     AS u(id, state, cause, sentence, unfinished, failed, decider, asks, tries, lost, errored, upstream_failed, admitted, cell_place,
          awaits, retried, turn, pause_ms, sequence, vt)
WHERE job.id = u.id;

-- write_gates: counters of stages
UPDATE stage SET unfinished = u.unfinished, failed = u.failed, decider = u.decider, upstream_failed = u.upstream_failed
FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::integer[], $5::text[], $6::boolean[])
     AS u(run_id, index, unfinished, failed, decider, upstream_failed)
WHERE stage.run_id = u.run_id AND stage.index = u.index;

-- queueing: what decides a job's place in the queue, and whether its project has a share of the pool yet
SELECT j.id, j.cls, j.pool, j.vt, r.priority, r.project_id, p.weight,
       EXISTS (SELECT 1 FROM project_share s WHERE s.project_id = r.project_id AND s.pool = j.pool) AS shared
FROM job j JOIN run r ON r.id = j.run_id JOIN project p ON p.id = r.project_id
WHERE j.id = ANY($1::bigint[]) ORDER BY j.id;

-- make_shares: a project's share of a pool exists from its first job there
INSERT INTO project_share (project_id, pool)
SELECT * FROM unnest($1::bigint[], $2::text[]) AS s(project_id, pool)
ON CONFLICT DO NOTHING;

-- lock_shares: virtual times are read and raised under this lock; ordered, as all locks of several rows
SELECT s.project_id, s.pool, s.vt, p.vt AS pool_vt
FROM project_share s JOIN pool p ON p.name = s.pool
JOIN unnest($1::bigint[], $2::text[]) AS w(project_id, pool) ON w.project_id = s.project_id AND w.pool = s.pool
ORDER BY s.project_id, s.pool FOR UPDATE OF s;

-- enqueue: from the commit on these jobs can be claimed; a row that is there already stays. Their projects go on behind their own last jobs, and a job that is queued as it is made keeps its place over a retry
WITH place AS (
    SELECT * FROM unnest($1::bigint[], $2::integer[], $3::smallint[], $4::double precision[], $5::text[]) AS q(job_id, cls, prio, vt, pool)
), raised AS (
    UPDATE project_share s SET vt = u.vt
    FROM unnest($6::bigint[], $7::text[], $8::double precision[]) AS u(project_id, pool, vt)
    WHERE s.project_id = u.project_id AND s.pool = u.pool
), timed AS (
    UPDATE job SET vt = p.vt FROM place p WHERE job.id = p.job_id AND job.vt IS NULL
)
INSERT INTO queue (job_id, cls, prio, vt, pool) SELECT * FROM place
ON CONFLICT (job_id) DO NOTHING;

-- hold_queued: waits for claims under way; a row that does not come back was claimed, and its lease can be read now
SELECT job_id FROM queue WHERE job_id = ANY($1::bigint[]) ORDER BY job_id FOR UPDATE;

-- unqueue: no longer claimable
DELETE FROM queue WHERE job_id = ANY($1::bigint[]);

-- stage_jobs: all jobs of a stage that has a door
SELECT j.id, j.run_id, j.key, j.stage, j.state, j.cause, j.sentence, j.unfinished, j.failed, j.decider,
       j.at_most_once, j.asks, j.tries, j.lost, j.errored,
       j.upstream_failed, j.rules, j.admitted, j.cell_place, j.awaits, j.retried, j.turn
FROM unnest($1::bigint[], $2::integer[]) AS w(run_id, stage)
JOIN job j ON j.run_id = w.run_id AND j.stage = w.stage
ORDER BY j.run_id, j.place;

-- doors: where they stand, what they ask for, and what their expressions see
SELECT s.run_id, s.index, s.name, s.door, s.rules, s.decisions, s.sentence, r.context
FROM unnest($1::bigint[], $2::integer[]) AS w(run_id, stage)
JOIN stage s ON s.run_id = w.run_id AND s.index = w.stage
JOIN run r ON r.id = s.run_id;

-- outputs_before: of jobs of earlier stages, for what a stage's expressions look at
SELECT j.run_id, j.name, j.outputs
FROM unnest($1::bigint[], $2::integer[]) AS w(run_id, stage)
JOIN job j ON j.run_id = w.run_id AND j.stage < w.stage
WHERE j.cell = '' AND j.outputs <> '';

-- write_doors: the question is asked from now on
UPDATE stage SET
    door = u.door, decisions = u.decisions, sentence = u.sentence,
    asked_at = CASE WHEN u.door = 'asked' THEN coalesce(stage.asked_at, clock_timestamp()) WHEN u.door = 'closed' THEN NULL ELSE stage.asked_at END,
    expires_at = CASE WHEN u.door = 'asked' THEN coalesce(stage.expires_at, clock_timestamp() + make_interval(secs => u.timeout_ms / 1000.0)) END
FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::bigint[])
     AS u(run_id, index, door, decisions, sentence, timeout_ms)
WHERE stage.run_id = u.run_id AND stage.index = u.index;

-- groups: cells that have a bound, or end at the first failure
SELECT c.run_id, c.name, c.max_parallel, c.fail_fast, c.active
FROM unnest($1::bigint[], $2::text[]) AS w(run_id, name) JOIN cells c ON c.run_id = w.run_id AND c.name = w.name;

-- group_jobs: those that are not over
SELECT j.id, j.run_id, j.name, j.key, j.stage, j.state, j.cause, j.sentence, j.unfinished, j.failed, j.decider,
       j.at_most_once, j.asks, j.tries, j.lost, j.errored,
       j.upstream_failed, j.rules, j.admitted, j.cell_place, j.awaits, j.retried, j.turn
FROM unnest($1::bigint[], $2::text[]) AS w(run_id, name)
JOIN job j ON j.run_id = w.run_id AND j.name = w.name AND j.cell <> ''
WHERE j.state IN ('waiting', 'queued', 'running', 'blocked')
ORDER BY j.run_id, j.place;

-- write_groups: how many cells are under way
UPDATE cells SET active = u.active
FROM unnest($1::bigint[], $2::text[], $3::integer[]) AS u(run_id, name, active)
WHERE cells.run_id = u.run_id AND cells.name = u.name;

-- contexts: what the conditions of these jobs see of their event
SELECT id, context FROM job WHERE id = ANY($1::bigint[]);

-- needs_of: how the needs of these jobs have ended; not what stands for the job itself, nor cells that there are no more
SELECT d.dependent, n.id, n.name, n.key, n.state, n.cell, n.outputs, n.rules
FROM dependency d JOIN job n ON n.id = d.job_id JOIN job j ON j.id = d.dependent
WHERE d.dependent = ANY($1::bigint[]) AND (n.name <> j.name OR j.cell = '') AND n.cause <> 'cell_vanished' ORDER BY d.dependent, n.place;

-- want_needs: of the jobs that are queued now, those whose agent evaluates `needs`
SELECT id FROM job WHERE id = ANY($1::bigint[]) AND wants_needs;

-- give_needs: as they are at this moment; a later try sees the same
UPDATE job SET given = u.given FROM unnest($1::bigint[], $2::bytea[]) AS u(id, given) WHERE job.id = u.id;

-- keep_outputs: of the attempt that has ended now
UPDATE job SET outputs = u.outputs FROM unnest($1::bigint[], $2::text[]) AS u(id, outputs) WHERE job.id = u.id;

-- cancel_leases_of: agents are asked to end these jobs
UPDATE lease SET cancel = coalesce(cancel, 'cancel'), cancel_sentence = u.sentence
FROM unnest($1::bigint[], $2::text[]) AS u(job_id, sentence) WHERE lease.job_id = u.job_id;

-- due: pauses that are over, a bounded bite at a time. The time is that of the statement, or all that pause are read
SELECT id, run_id FROM job WHERE due_at <= statement_timestamp() ORDER BY due_at LIMIT 500;

-- still_due: the same, under the run lock
SELECT id FROM job WHERE id = ANY($1::bigint[]) AND due_at <= clock_timestamp() AND state = 'waiting';

-- expired_doors: approvals that nobody gave in time
SELECT run_id, index FROM stage WHERE door = 'asked' AND expires_at <= statement_timestamp() ORDER BY expires_at LIMIT 100;

-- leave_group: runs that are over, and jobs that are
DELETE FROM group_member WHERE (job_id IS NULL AND run_id = ANY($1::bigint[])) OR job_id = ANY($2::bigint[]) RETURNING group_id;

-- expand: jobs whose cells are to be made now
INSERT INTO expansion_due (job_id, run_id) SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS u(job_id, run_id)
ON CONFLICT DO NOTHING;

-- expand_no_more: those that were, and are not
DELETE FROM expansion_due WHERE job_id = ANY($1::bigint[]);
