-- tell: a statement of its own, never inside a transaction that does work
SELECT pg_notify($1, $2);

-- probe: whether the connection that listens lives
SELECT 1;
