-- now: the time itself, not that of a transaction which may have waited
SELECT extract(epoch FROM clock_timestamp())::double precision;
