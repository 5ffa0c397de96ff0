-- The spine: projects, runs, jobs, attempts, the fleet, logs and artifacts.
--
-- Hot tables (queue, session, lease, log_record) are small, apart from history, and vacuumed hard. CHECK
-- constraints repeat the invariants of coordinator/core. States and causes are the words of the wire, lower case.
-- Times are timestamptz, written with clock_timestamp(): now() is the start of a transaction that may have
-- waited for a lock.

-- The migrations as they were run, so that a database of another build is refused instead of failing later.
CREATE TABLE schema_script (
    name        text PRIMARY KEY,
    sha256      text NOT NULL
);

CREATE TABLE project (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repository  text NOT NULL UNIQUE,
    name        text NOT NULL,
    weight      double precision NOT NULL DEFAULT 1 CHECK (weight > 0),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE pool (
    name        text PRIMARY KEY,
    paused      boolean NOT NULL DEFAULT false,
    vt          double precision NOT NULL DEFAULT 0,   -- virtual time of the last job claimed
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO pool (name) VALUES ('default');

-- The virtual time of the last job that a project queued in a pool.
CREATE TABLE project_share (
    project_id  bigint NOT NULL REFERENCES project,
    pool        text NOT NULL REFERENCES pool,
    vt          double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (project_id, pool)
);

-- What a job requires of an agent, once for all jobs that require the same.
CREATE TABLE class (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pool        text NOT NULL,
    requires    jsonb NOT NULL,                        -- label -> value
    sandbox     text NOT NULL CHECK (sandbox IN ('any', 'docker', 'bubblewrap', 'host')),
    network     text NOT NULL CHECK (network IN ('full', 'none', 'services')),
    trusted     boolean NOT NULL,
    cpu         double precision NOT NULL DEFAULT 0,   -- of a slot's share; 0: whatever it is
    memory      bigint NOT NULL DEFAULT 0,
    hard_limits boolean NOT NULL DEFAULT false,        -- amounts were asked for: the kernel has to hold the job to them
    UNIQUE (pool, requires, sandbox, network, trusted, cpu, memory, hard_limits)
);

-- Every request that changed something, so that the same request again changes nothing.
CREATE TABLE request (
    id          text PRIMARY KEY CHECK (length(id) BETWEEN 8 AND 64),
    kind        text NOT NULL,
    run_id      bigint,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX request_age ON request (created_at);

CREATE TABLE run (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id      bigint NOT NULL REFERENCES project,
    pipeline        text NOT NULL,
    pipeline_file   text NOT NULL,
    pipeline_text   bytea NOT NULL,
    asked           bytea NOT NULL DEFAULT '',         -- a serialised headrace.v1.CreateRunRequest but for that text
    source          bytea NOT NULL,                    -- a serialised headrace.v1.Source
    bundle          bytea,                             -- SHA-256 of the git bundle that it names
    commit          text NOT NULL,
    event           text NOT NULL,
    trusted         boolean NOT NULL,
    parameters      jsonb NOT NULL,
    context         text NOT NULL DEFAULT '{}',        -- JSON: what its stages' expressions see of the event
    concurrency     text NOT NULL DEFAULT '',          -- JSON: the group that it enters; empty: none
    priority        smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN -10 AND 10),
    state           text NOT NULL CHECK (state IN ('pending', 'running', 'blocked', 'passed', 'failed', 'canceled')),
    canceling       boolean NOT NULL DEFAULT false,
    sentence        text NOT NULL DEFAULT '',
    sequence        bigint NOT NULL DEFAULT 1,         -- of the newest change of the run or one of its jobs
    run_sequence    bigint NOT NULL DEFAULT 1,         -- of the newest change of the run itself
    -- Counters of its jobs, kept under the run's row lock: nothing that decides ever counts a whole run.
    unfinished      integer NOT NULL CHECK (unfinished >= 0),  -- have not ended
    active          integer NOT NULL CHECK (active >= 0),      -- queued or running
    blocked         integer NOT NULL CHECK (blocked >= 0),
    failed          integer NOT NULL CHECK (failed >= 0),
    warned          integer NOT NULL DEFAULT 0 CHECK (warned >= 0),  -- failed under allow_failure
    canceled        integer NOT NULL CHECK (canceled >= 0),
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at      timestamptz,
    ended_at        timestamptz,
    CHECK ((state IN ('passed', 'failed', 'canceled')) = (ended_at IS NOT NULL)),
    CHECK ((state IN ('passed', 'failed', 'canceled')) = (unfinished = 0))
);
CREATE INDEX run_of_project ON run (project_id, id DESC);
CREATE INDEX run_needs_bundle ON run (bundle) WHERE bundle IS NOT NULL AND ended_at IS NULL;

-- Git bundles that clients hand in, noted before they are uploaded.
CREATE TABLE bundle (
    sha256      bytea PRIMARY KEY CHECK (length(sha256) = 32),
    asked_at    timestamptz NOT NULL DEFAULT clock_timestamp()  -- when somebody last came with it
);
CREATE INDEX bundle_age ON bundle (asked_at);

-- A stage and its gate: the gate opens when all jobs of this and all earlier stages have ended.
CREATE TABLE stage (
    run_id      bigint NOT NULL REFERENCES run ON DELETE CASCADE,
    index       integer NOT NULL,
    name        text NOT NULL,
    environment text NOT NULL DEFAULT '',
    unfinished  integer NOT NULL CHECK (unfinished >= 0),  -- its jobs, and the gate before it
    failed      integer NOT NULL DEFAULT 0 CHECK (failed >= 0),
    decider     text NOT NULL DEFAULT '',                  -- key of the first job that counts as failed
    upstream_failed boolean NOT NULL DEFAULT false,        -- one of these jobs has failed by itself, and that counts
    -- The door of a guarded stage: an `if` that is judged when its turn comes, an approval.
    door        text CHECK (door IN ('closed', 'asked', 'approved', 'rejected', 'expired', 'open')),  -- NULL: it has none
    rules       text NOT NULL DEFAULT '',                  -- JSON: its condition and its approval
    url         text NOT NULL DEFAULT '',                  -- of the environment
    decisions   text NOT NULL DEFAULT '[]',                -- JSON: [person, approved, comment], in order
    sentence    text NOT NULL DEFAULT '',
    asked_at    timestamptz,
    expires_at  timestamptz,
    PRIMARY KEY (run_id, index)
);
CREATE INDEX stage_expires ON stage (expires_at) WHERE door = 'asked';

-- The cells of a matrix that has `max_parallel` or `fail_fast`.
CREATE TABLE cells (
    run_id      bigint NOT NULL REFERENCES run ON DELETE CASCADE,
    name        text NOT NULL,                             -- of their job in the file
    max_parallel integer NOT NULL CHECK (max_parallel >= 0),
    fail_fast   boolean NOT NULL,
    active      integer NOT NULL DEFAULT 0 CHECK (active >= 0),
    PRIMARY KEY (run_id, name)
);

CREATE TABLE job (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id      bigint NOT NULL REFERENCES run ON DELETE CASCADE,
    stage       integer NOT NULL,
    place       integer NOT NULL,                      -- in the order of the file
    key         text NOT NULL,
    needs       text[],                                -- NULL: all jobs of all earlier stages
    spec        bytea NOT NULL,                        -- a serialised headrace.v1.JobSpec, handed on as it is
    cls         integer NOT NULL REFERENCES class,
    pool        text NOT NULL,
    at_most_once boolean NOT NULL,
    asks        boolean NOT NULL DEFAULT false,        -- a deployment that asks again after a retry
    environment text NOT NULL DEFAULT '',
    state       text NOT NULL CHECK (state IN ('waiting', 'queued', 'running', 'blocked', 'passed', 'failed', 'canceled', 'skipped')),
    cause       text NOT NULL DEFAULT '',
    sentence    text NOT NULL DEFAULT '',
    unfinished  integer NOT NULL CHECK (unfinished >= 0),  -- dependencies that have not ended
    failed      integer NOT NULL DEFAULT 0 CHECK (failed >= 0),  -- dependencies that count as failed
    decider     text NOT NULL DEFAULT '',
    name        text NOT NULL DEFAULT '',              -- in the file: a matrix makes several keys of one name
    cell        text NOT NULL DEFAULT '',              -- JSON: the cell and its shard; empty: it is no copy
    rules       text NOT NULL DEFAULT '',              -- JSON: what decides whether and how often it runs
    context     text NOT NULL DEFAULT '',              -- JSON: what its condition sees of the event
    wants_needs boolean NOT NULL DEFAULT false,        -- its agent evaluates `needs`
    depth       integer NOT NULL DEFAULT 0 CHECK (depth BETWEEN 0 AND 5),  -- 0: of the file; one that it adds is one deeper
    given       bytea NOT NULL DEFAULT '',             -- JSON: `needs`, as they were when it was queued
    outputs     text NOT NULL DEFAULT '',              -- JSON: of its newest attempt that ended
    upstream_failed boolean NOT NULL DEFAULT false,    -- a dependency, or one of theirs, has failed
    admitted    boolean NOT NULL DEFAULT false,        -- its condition was judged
    cell_place  text NOT NULL DEFAULT '' CHECK (cell_place IN ('', 'held', 'taken')),
    turn        text NOT NULL DEFAULT '' CHECK (turn IN ('', 'run waits', 'waits', 'entered')),  -- with its group, or its run's
    awaits      boolean NOT NULL DEFAULT false,        -- the approval of its stage
    due_at      timestamptz,                           -- the pause before its next try ends
    retried     integer NOT NULL DEFAULT 0,            -- tries by its own rules, since a person last asked for it
    tries       integer NOT NULL DEFAULT 0,            -- attempts that started
    lost        integer NOT NULL DEFAULT 0,            -- of these, since a person last asked for it
    errored     integer NOT NULL DEFAULT 0,
    vt          double precision,                      -- kept over a retry
    sequence    bigint NOT NULL DEFAULT 1,
    queued_at   timestamptz,
    started_at  timestamptz,
    ended_at    timestamptz,
    UNIQUE (run_id, key),
    CHECK (state IN ('waiting', 'blocked', 'skipped', 'canceled', 'failed') OR unfinished = 0)
) WITH (fillfactor = 80);
CREATE INDEX job_due ON job (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX job_cells ON job (run_id, name) WHERE cell <> '';
CREATE INDEX job_changes ON job (run_id, sequence);
CREATE INDEX job_waiting_for_nothing ON job (id) WHERE state = 'waiting' AND unfinished = 0;
CREATE INDEX job_queued ON job (id) WHERE state = 'queued';
-- By what it says, hashed: a sentence may be longer than an index takes.
CREATE INDEX job_reason ON job (cls, md5(sentence)) WHERE state = 'queued';

-- What steps have added to their own runs, in order. A fragment belongs to a step of a job, whatever attempt wrote it.
CREATE TABLE fragment (
    run_id      bigint NOT NULL REFERENCES run ON DELETE CASCADE,
    number      integer NOT NULL CHECK (number > 0),
    job_id      bigint NOT NULL REFERENCES job ON DELETE CASCADE,
    step        integer NOT NULL,
    sha256      bytea NOT NULL CHECK (length(sha256) = 32),
    text        bytea NOT NULL,
    added       integer NOT NULL CHECK (added > 0),    -- jobs
    PRIMARY KEY (run_id, number),
    UNIQUE (job_id, step)
);

CREATE TABLE dependency (
    run_id      bigint NOT NULL,
    job_id      bigint NOT NULL REFERENCES job ON DELETE CASCADE,
    dependent   bigint NOT NULL REFERENCES job ON DELETE CASCADE,
    PRIMARY KEY (job_id, dependent)
);
CREATE INDEX dependency_of ON dependency (dependent);

-- Groups that only so many runs, or jobs, may be in.
CREATE TABLE concurrency_group (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project_id  bigint NOT NULL REFERENCES project,
    trusted     boolean NOT NULL,
    of_jobs     boolean NOT NULL,
    name        text NOT NULL,
    UNIQUE (project_id, trusted, of_jobs, name)
);

-- Who is in a group or waits for a place, in the order of coming. It leaves when it ends.
CREATE TABLE group_member (
    place       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_id    bigint NOT NULL REFERENCES concurrency_group,
    run_id      bigint NOT NULL REFERENCES run ON DELETE CASCADE,
    job_id      bigint REFERENCES job ON DELETE CASCADE,   -- NULL: the run itself
    size        integer NOT NULL CHECK (size > 0),         -- the limit, by its own pipeline file
    when_full   text NOT NULL CHECK (when_full IN ('queue', 'cancel-older', 'cancel-newer')),
    entered     boolean NOT NULL DEFAULT false,
    leaving     boolean NOT NULL DEFAULT false             -- it was told to end
);
CREATE INDEX member_of_group ON group_member (group_id, place);
CREATE INDEX member_waiting ON group_member (group_id) WHERE NOT entered AND NOT leaving;
CREATE UNIQUE INDEX member_run ON group_member (run_id) WHERE job_id IS NULL;
CREATE UNIQUE INDEX member_job ON group_member (job_id) WHERE job_id IS NOT NULL;

-- Claimable now. A row leaves when it is claimed and comes back when the attempt is returned or retried.
CREATE TABLE queue (
    job_id      bigint PRIMARY KEY REFERENCES job ON DELETE CASCADE,
    cls         integer NOT NULL,
    prio        smallint NOT NULL,
    vt          double precision NOT NULL,
    pool        text NOT NULL,
    queued_at   timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX queue_order ON queue (cls, prio DESC, vt, job_id);

CREATE TABLE agent (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    pool        text NOT NULL REFERENCES pool,
    instance    text NOT NULL,
    version     text NOT NULL,
    labels      jsonb NOT NULL,
    slots       integer NOT NULL CHECK (slots > 0),
    slot_cpu    double precision NOT NULL DEFAULT 0,   -- one slot's share; 0: not told
    slot_memory bigint NOT NULL DEFAULT 0,
    sandboxes   jsonb NOT NULL,                        -- [{kind, networks, hard_limits, why_not}]
    drained     boolean NOT NULL DEFAULT false,        -- by a person; stays over a restart
    leaving     boolean NOT NULL DEFAULT false,        -- by its own decision
    hello       bigint NOT NULL DEFAULT 0,             -- number of the newest Hello of this instance
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE session (
    id          uuid PRIMARY KEY,
    agent_id    bigint NOT NULL UNIQUE REFERENCES agent,
    instance    text NOT NULL,
    replica     uuid NOT NULL,
    counter     bigint NOT NULL DEFAULT 0,             -- raised by heartbeats, compared and never trusted as a time
    opened_at   timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_cost_delay = 0);

-- History of claims. The token is compared for equality and never leaves the agent and this database.
CREATE TABLE attempt (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id          bigint NOT NULL REFERENCES job ON DELETE CASCADE,
    run_id          bigint NOT NULL,
    agent_id        bigint NOT NULL REFERENCES agent,
    token           bytea NOT NULL CHECK (length(token) = 16),
    try             integer NOT NULL,
    state           text NOT NULL CHECK (state IN ('leased', 'running', 'passed', 'failed', 'errored', 'timed_out', 'canceled', 'lost', 'returned')),
    cause           text NOT NULL DEFAULT '',
    sentence        text NOT NULL DEFAULT '',
    started_report  text NOT NULL DEFAULT '',
    ended_report    text NOT NULL DEFAULT '',
    steps           bytea NOT NULL DEFAULT '',         -- a serialised headrace.v1.Ended: steps and timings
    leased_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at      timestamptz,
    ended_at        timestamptz,
    out_of_contact_since timestamptz,                  -- of one that held a start permit and was lost: it may run on from here
    CHECK ((state IN ('leased', 'running')) = (ended_at IS NULL))
) WITH (fillfactor = 80);
CREATE INDEX attempt_of_job ON attempt (job_id, id DESC);

-- The right to run an attempt: one row for each that has not ended.
CREATE TABLE lease (
    attempt_id  bigint PRIMARY KEY REFERENCES attempt ON DELETE CASCADE,
    job_id      bigint NOT NULL UNIQUE,                -- never two live attempts of a job
    run_id      bigint NOT NULL,
    agent_id    bigint NOT NULL,
    session_id  uuid,                                  -- NULL: a permitted attempt out of contact
    token       bytea NOT NULL,
    number      bigint NOT NULL,                       -- of the assignment within the session; 0: resumed from Hello
    running     boolean NOT NULL DEFAULT false,
    at_most_once boolean NOT NULL,
    orphaned_at timestamptz,                           -- out of contact since
    permit      text,                                  -- the nonce that holds the start permit
    fencing     bigint NOT NULL DEFAULT 0,             -- HEADRACE_FENCING_TOKEN, made with the permit
    cancel      text CHECK (cancel IN ('cancel', 'kill')),
    cancel_sentence text NOT NULL DEFAULT '',
    CHECK (session_id IS NOT NULL OR permit IS NOT NULL)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX lease_of_session ON lease (session_id);
CREATE INDEX lease_of_run ON lease (run_id);
CREATE INDEX lease_of_agent ON lease (agent_id);

-- Singletons: whoever holds the term repeats it in every write.
CREATE TABLE singleton (
    name        text PRIMARY KEY,
    term        uuid NOT NULL,
    replica     uuid NOT NULL,
    counter     bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

CREATE TABLE environment (
    project_id  bigint NOT NULL REFERENCES project,
    name        text NOT NULL,
    fencing     bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (project_id, name)
);

-- One row a stream of an attempt. `next` is the sequence wanted next.
CREATE TABLE log (
    attempt_id      bigint NOT NULL REFERENCES attempt ON DELETE CASCADE,
    stream          text NOT NULL,
    next            bigint NOT NULL DEFAULT 1,
    bytes           bigint NOT NULL DEFAULT 0,
    final_records   bigint,                            -- told by the outcome
    sealed_at       timestamptz,                       -- nothing can be appended any more
    compacted_to    bigint NOT NULL DEFAULT 0,         -- records up to here are in segments
    compacted_bytes bigint NOT NULL DEFAULT 0,         -- raw bytes up to here are in segments
    PRIMARY KEY (attempt_id, stream),
    CHECK (compacted_to < next AND compacted_bytes <= bytes),
    CHECK (sealed_at IS NULL OR final_records = next - 1)
) WITH (fillfactor = 70);
-- What the sweep and the compaction look through: few, for a log that is sealed and compacted is in neither.
CREATE INDEX log_open ON log (attempt_id) WHERE sealed_at IS NULL;
CREATE INDEX log_to_compact ON log (sealed_at) WHERE sealed_at IS NOT NULL AND next > compacted_to + 1;

-- Records not yet compacted, as they came. They are compressed already, and rows up to a page stay in line.
CREATE TABLE log_record (
    attempt_id  bigint NOT NULL,
    stream      text NOT NULL,
    sequence    bigint NOT NULL,
    bytes_from  bigint NOT NULL,                       -- raw offset; grows with the sequence
    raw_length  integer NOT NULL CHECK (raw_length BETWEEN 0 AND 65536),
    record      bytea NOT NULL,                        -- a serialised headrace.v1.Record
    PRIMARY KEY (attempt_id, stream, sequence)
) WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE log_record ALTER COLUMN record SET STORAGE EXTERNAL;

-- Where sections begin and end: what a reader needs that begins in the middle. At most two rows a section.
CREATE TABLE log_section (
    attempt_id  bigint NOT NULL REFERENCES attempt ON DELETE CASCADE,
    stream      text NOT NULL,
    section     integer NOT NULL,
    opened      boolean NOT NULL,                      -- else closed
    sequence    bigint NOT NULL,
    record      bytea NOT NULL,                        -- a serialised headrace.v1.Record
    PRIMARY KEY (attempt_id, stream, section, opened)
);

CREATE TABLE log_segment (
    attempt_id      bigint NOT NULL REFERENCES attempt ON DELETE CASCADE,
    stream          text NOT NULL,
    first_sequence  bigint NOT NULL,
    last_sequence   bigint NOT NULL,
    bytes_from      bigint NOT NULL,
    bytes_to        bigint NOT NULL,
    key             text,                              -- of the object
    data            bytea,                             -- instead of an object, when it is small
    size            bigint NOT NULL,
    sha256          bytea NOT NULL,
    index           bytea NOT NULL,                    -- where each record stands in the object
    PRIMARY KEY (attempt_id, stream, first_sequence),
    CHECK ((key IS NULL) = (data IS NOT NULL))
);
ALTER TABLE log_segment ALTER COLUMN data SET STORAGE EXTERNAL;

-- Objects on their way into log_segment: a row that grows old names one that nobody will ever need.
CREATE TABLE segment_upload (
    key         text PRIMARY KEY,
    begun_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- A name has one producer in a run: the first job that publishes it.
CREATE TABLE artifact_producer (
    run_id      bigint NOT NULL REFERENCES run ON DELETE CASCADE,
    name        text NOT NULL,
    job_id      bigint NOT NULL REFERENCES job ON DELETE CASCADE,
    PRIMARY KEY (run_id, name)
);

CREATE TABLE artifact (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id      bigint NOT NULL REFERENCES run ON DELETE CASCADE,
    job_id      bigint NOT NULL REFERENCES job ON DELETE CASCADE,
    attempt_id  bigint NOT NULL REFERENCES attempt ON DELETE CASCADE,
    name        text NOT NULL,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz,
    -- expiring: refused for good, and its objects are being deleted; expired: they are gone, and so are the names of its files
    state       text NOT NULL DEFAULT 'there' CHECK (state IN ('there', 'expiring', 'expired')),
    UNIQUE (attempt_id, name)
);
CREATE INDEX artifact_of_run ON artifact (run_id, name, attempt_id DESC);
-- What the sweep looks through: few are due, and few are half gone.
CREATE INDEX artifact_due ON artifact (expires_at) WHERE state = 'there';
CREATE INDEX artifact_expiring ON artifact (id) WHERE state = 'expiring';

CREATE TABLE artifact_file (
    artifact_id bigint NOT NULL REFERENCES artifact ON DELETE CASCADE,
    path        text NOT NULL,
    sha256      bytea NOT NULL CHECK (length(sha256) = 32),
    size        bigint NOT NULL CHECK (size >= 0),
    executable  boolean NOT NULL,
    PRIMARY KEY (artifact_id, path)
);
