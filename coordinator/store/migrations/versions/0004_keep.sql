-- Runs are deleted when their time is over, a bounded bite at a time; what looks for time that is over reads little.
-- Additions alone: the version before works on.

-- From then on there is no such run, for good; its objects and rows go an hour later.
ALTER TABLE run ADD COLUMN forgotten_at timestamptz CHECK (forgotten_at IS NULL OR ended_at IS NOT NULL);
-- What the sweep looks through: the oldest that are over, and the few that are half gone.
CREATE INDEX run_over ON run (ended_at) WHERE ended_at IS NOT NULL AND forgotten_at IS NULL;
CREATE INDEX run_forgotten ON run (forgotten_at) WHERE forgotten_at IS NOT NULL;

-- What has waited too long for an agent that could take it: looked for again and again beside a million that have not.
CREATE INDEX queue_waited ON queue (cls, queued_at);

-- A row that goes takes with it those that refer to it: without these each would read a whole table.
CREATE INDEX artifact_of_job ON artifact (job_id);
CREATE INDEX producer_of_job ON artifact_producer (job_id);
CREATE INDEX member_of_run ON group_member (run_id);
