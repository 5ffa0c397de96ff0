-- remember_request: whoever inserts it does the work, and both commit together; the same request again finds the row, also while the first is under way
INSERT INTO request (id, kind, run_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING id;

-- run_of_request: what the first of these requests made
SELECT run_id FROM request WHERE id = $1 AND kind = $2;

-- unfinished: what a project has under way, counted no further than the bound; by its repository, or by one of its runs.
SELECT count(*) AS runs, coalesce(sum(unfinished), 0)::bigint AS jobs
FROM (SELECT unfinished FROM run
      WHERE ended_at IS NULL
        AND project_id = CASE WHEN $2::bigint = 0 THEN (SELECT id FROM project WHERE repository = $1)
                              ELSE (SELECT project_id FROM run WHERE id = $2) END
      LIMIT $3) AS r;

-- allocate: ids before rows, because a job's spec names them
SELECT nextval(pg_get_serial_sequence('run', 'id')) AS run_id,
       array(SELECT nextval(pg_get_serial_sequence('job', 'id')) FROM generate_series(1, $1::integer)) AS job_ids;

-- make_project: by its first run, or its id; one that is there as it should be is not locked, or all runs of a project would be made one after another
WITH known AS (
    SELECT id FROM project WHERE repository = $1 AND name = $2
), made AS (
    INSERT INTO project (repository, name) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM known)
    ON CONFLICT (repository) DO UPDATE SET name = excluded.name
    RETURNING id
)
SELECT id FROM known UNION ALL SELECT id FROM made;

-- pools: those that exist, of these
SELECT name FROM pool WHERE name = ANY($1::text[]);

-- all_pools: for the sentence that names them
SELECT name FROM pool ORDER BY name;

-- make_classes: once for all jobs that require the same
INSERT INTO class (pool, requires, sandbox, network, trusted, cpu, memory, hard_limits)
SELECT * FROM unnest($1::text[], $2::jsonb[], $3::text[], $4::text[], $5::boolean[], $6::double precision[], $7::bigint[], $8::boolean[])
    AS c(pool, requires, sandbox, network, trusted, cpu, memory, hard_limits)
ON CONFLICT DO NOTHING;

-- classes: in the order asked
SELECT k.id FROM unnest($1::text[], $2::jsonb[], $3::text[], $4::text[], $5::boolean[], $6::double precision[], $7::bigint[], $8::boolean[])
     WITH ORDINALITY AS c(pool, requires, sandbox, network, trusted, cpu, memory, hard_limits, place)
JOIN class k USING (pool, requires, sandbox, network, trusted, cpu, memory, hard_limits)
ORDER BY c.place;

-- count_queued_classes: bounded, because every claim probes each of them
WITH RECURSIVE c AS (
    (SELECT cls FROM queue ORDER BY cls LIMIT 1)
    UNION ALL
    SELECT (SELECT q.cls FROM queue q WHERE q.cls > c.cls ORDER BY q.cls LIMIT 1) FROM c WHERE c.cls IS NOT NULL
)
SELECT count(cls) FROM c;

-- insert_run: with the counters of its first rows
INSERT INTO run (id, project_id, pipeline, pipeline_file, pipeline_text, source, commit, event, trusted, parameters, priority, state,
                 unfinished, active, blocked, failed, canceled, bundle, context, concurrency, asked)
OVERRIDING SYSTEM VALUE
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21);

-- insert_stages: with their gates, and the doors of those that are guarded
INSERT INTO stage (run_id, index, name, environment, unfinished, failed, decider, door, rules, url)
SELECT $1, * FROM unnest($2::integer[], $3::text[], $4::text[], $5::integer[], $6::integer[], $7::text[], $8::text[], $9::text[], $10::text[])
    AS s(index, name, environment, unfinished, failed, decider, door, rules, url);

-- insert_cells: matrices with a bound, or that end at the first failure; one that is expanded anew has its row
INSERT INTO cells (run_id, name, max_parallel, fail_fast)
SELECT $1, * FROM unnest($2::text[], $3::integer[], $4::boolean[]) AS c(name, max_parallel, fail_fast)
ON CONFLICT DO NOTHING;

-- insert_jobs: all that come at once in one statement; `needs` comes as JSON because arrays of arrays must be square
INSERT INTO job (id, run_id, stage, place, key, needs, spec, cls, pool, at_most_once, environment, state, unfinished, failed, decider,
                 upstream_failed, depth, vt, queued_at, name, cell, rules, context, wants_needs)
OVERRIDING SYSTEM VALUE
SELECT j.id, $1, j.stage, j.place, j.key,
       CASE WHEN j.needs IS NULL THEN NULL ELSE array(SELECT jsonb_array_elements_text(j.needs)) END,
       j.spec, j.cls, j.pool, j.at_most_once, j.environment, j.state, j.unfinished, j.failed, j.decider,
       j.upstream_failed, j.depth, NULL, CASE WHEN j.state = 'queued' THEN clock_timestamp() END,
       j.name, j.cell, j.rules, j.context, j.wants_needs
FROM unnest($2::bigint[], $3::integer[], $4::integer[], $5::text[], $6::jsonb[], $7::bytea[], $8::integer[], $9::text[], $10::boolean[],
            $11::text[], $12::text[], $13::integer[], $14::integer[], $15::text[], $16::boolean[], $17::integer[], $18::text[],
            $19::text[], $20::text[], $21::text[], $22::boolean[])
     AS j(id, stage, place, key, needs, spec, cls, pool, at_most_once, environment, state, unfinished, failed, decider,
          upstream_failed, depth, name, cell, rules, context, wants_needs);

-- insert_dependencies: the edges of `needs`; stages have gates instead, or their edges would be a product
INSERT INTO dependency (run_id, job_id, dependent)
SELECT $1, * FROM unnest($2::bigint[], $3::bigint[]) AS d(job_id, dependent);

-- leases_of_run: what agents hold of it
SELECT attempt_id, job_id, cancel FROM lease WHERE run_id = $1;

-- cancel_leases: a second cancel kills
UPDATE lease SET cancel = CASE WHEN cancel IS NULL THEN 'cancel' ELSE 'kill' END, cancel_sentence = $2
WHERE job_id = ANY($1::bigint[]);

-- jobs_of_run: all of them, for what a person asked about the whole run
SELECT id, run_id, key, stage, state, cause, sentence, unfinished, failed, decider, at_most_once, asks, tries, lost, errored,
       upstream_failed, rules, admitted, cell_place, awaits, retried, turn
FROM job WHERE run_id = $1 ORDER BY place;

-- edges_of_run: who waits for whom; a job with an empty list waits for nothing
SELECT j.id, array(SELECT d.job_id FROM dependency d WHERE d.dependent = j.id ORDER BY d.job_id) AS needs
FROM job j WHERE j.run_id = $1 AND j.needs IS NOT NULL;

-- stages_of_run: in order
SELECT index, name, environment, unfinished, failed, decider, upstream_failed, door, rules, url, decisions, sentence, asked_at, expires_at
FROM stage WHERE run_id = $1 ORDER BY index;

-- bump_run: something about the run changed that is no job
UPDATE run SET sequence = sequence + 1, run_sequence = sequence + 1 WHERE id = $1;

-- run: as it is shown
SELECT r.id, p.name AS project, p.repository, r.pipeline, r.source, r.event, r.state, r.sentence, r.sequence, r.run_sequence, r.parameters, r.warned,
       r.created_at, r.started_at, r.ended_at
FROM run r JOIN project p ON p.id = r.project_id WHERE r.id = $1 AND r.forgotten_at IS NULL;

-- newest_run: of a repository
SELECT r.id FROM run r JOIN project p ON p.id = r.project_id WHERE p.repository = $1 AND r.forgotten_at IS NULL ORDER BY r.id DESC LIMIT 1;

-- list_runs: newest first; an empty repository means all
SELECT r.id, p.name AS project, p.repository, r.pipeline, r.source, r.event, r.state, r.sentence, r.sequence, r.run_sequence, r.parameters, r.warned,
       r.created_at, r.started_at, r.ended_at
FROM run r JOIN project p ON p.id = r.project_id
WHERE ($1 = '' OR r.project_id = (SELECT id FROM project WHERE repository = $1)) AND ($2::bigint = 0 OR r.id < $2)
  AND r.forgotten_at IS NULL
ORDER BY r.id DESC LIMIT $3;

-- jobs_changed: all that changed behind a sequence number, oldest change first
SELECT id, key, name, cell, stage, needs, state, cause, sentence, pool, sequence, place, queued_at, started_at, ended_at, outputs, due_at,
       rules
FROM job WHERE run_id = $1 AND sequence > $2 ORDER BY sequence, place;

-- attempts_shown: those that started, and living ones; a returned one never was
SELECT a.id, a.job_id, a.try, a.state, g.name AS agent, a.cause, a.sentence, a.steps, a.leased_at, a.started_at, a.ended_at,
       coalesce((SELECT l.bytes FROM log l WHERE l.attempt_id = a.id AND l.stream = 'main'), 0) AS log_bytes
FROM attempt a JOIN agent g ON g.id = a.agent_id
WHERE a.job_id = ANY($1::bigint[]) AND a.state <> 'returned' ORDER BY a.id;

-- with_cells: of these jobs, which stand for cells, those that have some
SELECT DISTINCT j.id FROM job j JOIN job c ON c.run_id = j.run_id AND c.name = j.name AND c.cell <> ''
WHERE j.id = ANY($1::bigint[]);

-- group_of_run: the one that it enters
SELECT concurrency FROM run WHERE id = $1;

-- reset_doors: closed again by a retry; whoever decided has to decide again
UPDATE stage SET door = 'closed', decisions = '[]', sentence = '', asked_at = NULL, expires_at = NULL
WHERE run_id = $1 AND index = ANY($2::integer[]);

-- reset_cells: counted anew by a retry
UPDATE cells SET active = u.active FROM unnest($2::text[], $3::integer[]) AS u(name, active)
WHERE cells.run_id = $1 AND cells.name = u.name;

-- asked_stages: of a run, those that wait for an approval
SELECT index, name FROM stage WHERE run_id = $1 AND door = 'asked' ORDER BY index;

-- may_still_run: deployments of these that were lost, and how long they may go on out of contact, in seconds
SELECT j.key, ceil(extract(epoch FROM max(a.out_of_contact_since) - clock_timestamp()) + $2)::integer AS rest
FROM job j JOIN attempt a ON a.job_id = j.id
WHERE j.id = ANY($1::bigint[]) AND a.out_of_contact_since > clock_timestamp() - make_interval(secs => $2)
GROUP BY j.id, j.key ORDER BY j.id LIMIT 1;
