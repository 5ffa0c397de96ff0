-- Matrices whose values come from expressions over `needs`: jobs that are to be expanded, and what they were expanded
-- with. Two tables of their own: nothing that was there changes, so the version before runs on beside this one.

-- Due now. A row goes when the cells are there; whoever finds one may do it, and does it under the run's lock.
CREATE TABLE expansion_due (
    job_id      bigint PRIMARY KEY REFERENCES job ON DELETE CASCADE,
    run_id      bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- What the expressions gave the last time: whatever is planned of the run later is planned with these.
CREATE TABLE expansion (
    job_id      bigint PRIMARY KEY REFERENCES job ON DELETE CASCADE,
    run_id      bigint NOT NULL REFERENCES run ON DELETE CASCADE,
    lists       text NOT NULL,                         -- JSON: values by key of the matrix
    revision    integer NOT NULL DEFAULT 1 CHECK (revision > 0)  -- raised each time
);
CREATE INDEX expansion_of_run ON expansion (run_id);
