-- A project may have only so many runs that have not ended: they are counted, up to the bound, when one is made.
CREATE INDEX run_unfinished ON run (project_id) WHERE ended_at IS NULL;
