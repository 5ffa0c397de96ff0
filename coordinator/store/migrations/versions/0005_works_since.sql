-- The oldest revision whose code works on what a script leaves. A version that finds the database newer than itself
-- starts if it is no older than the greatest of these: in a rolling upgrade replicas of both versions come and go.
ALTER TABLE schema_script ADD COLUMN works_since text;
