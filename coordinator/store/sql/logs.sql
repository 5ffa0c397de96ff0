-- append: all that waits at a replica in one statement. $1..$7: runs of records that follow one another (attempt, token, stream, first sequence, sequence after the last, place of the first in $9, offset after the last); $8..$13: the records, in the order of the runs (run, offset, raw length, section it opens or closes or NULL, whether it opens it, bytes). A run is written from the log's `next` on, if that record is in it and its offset fits; otherwise nothing of it is
WITH run AS (
    SELECT r.n, r.attempt_id, r.stream, r.first, r.next, r.place, r.bytes
    FROM unnest($1::bigint[], $2::bytea[], $3::text[], $4::bigint[], $5::bigint[], $6::integer[], $7::bigint[])
         WITH ORDINALITY AS r(attempt_id, token, stream, first, next, place, bytes, n)
    JOIN attempt a ON a.id = r.attempt_id AND a.token = r.token AND a.state <> 'returned'
), held AS (
    SELECT r.n, l.next, l.bytes, l.final_records
    FROM run r JOIN log l ON l.attempt_id = r.attempt_id AND l.stream = r.stream
    ORDER BY l.attempt_id, l.stream FOR UPDATE OF l
), created AS (
    INSERT INTO log AS l (attempt_id, stream, next, bytes)
    SELECT r.attempt_id, r.stream, r.next, r.bytes FROM run r
    WHERE r.first = 1 AND ($9::bigint[])[r.place] = 0 AND NOT EXISTS (SELECT 1 FROM held h WHERE h.n = r.n)
    ORDER BY r.attempt_id, r.stream
    ON CONFLICT DO NOTHING
    RETURNING l.attempt_id, l.stream
), fitting AS (
    SELECT r.n, r.attempt_id, r.stream, r.first, r.next, r.bytes, h.next AS wanted
    FROM run r JOIN held h ON h.n = r.n
    WHERE r.first <= h.next AND h.next < r.next AND ($9::bigint[])[r.place + (h.next - r.first)::integer] = h.bytes
      AND (h.final_records IS NULL OR r.next - 1 <= h.final_records)
    UNION ALL
    SELECT r.n, r.attempt_id, r.stream, r.first, r.next, r.bytes, 1
    FROM run r JOIN created c ON c.attempt_id = r.attempt_id AND c.stream = r.stream
), advanced AS (
    UPDATE log l SET next = f.next, bytes = f.bytes,
        sealed_at = CASE WHEN l.final_records = f.next - 1 THEN clock_timestamp() END
    FROM fitting f
    WHERE l.attempt_id = f.attempt_id AND l.stream = f.stream
), record AS (
    SELECT f.attempt_id, f.stream, f.first + (u.i - r.place) AS sequence, u.bytes_from, u.raw_length, u.section, u.opened, u.record, f.wanted
    FROM unnest($8::integer[], $9::bigint[], $10::integer[], $11::integer[], $12::boolean[], $13::bytea[])
         WITH ORDINALITY AS u(n, bytes_from, raw_length, section, opened, record, i)
    JOIN fitting f ON f.n = u.n JOIN run r ON r.n = u.n
), recorded AS (
    INSERT INTO log_record (attempt_id, stream, sequence, bytes_from, raw_length, record)
    SELECT attempt_id, stream, sequence, bytes_from, raw_length, record FROM record WHERE sequence >= wanted
), sectioned AS (
    INSERT INTO log_section (attempt_id, stream, section, opened, sequence, record)
    SELECT attempt_id, stream, section, opened, sequence, record FROM record
    WHERE section IS NOT NULL AND sequence >= wanted ORDER BY sequence
    ON CONFLICT DO NOTHING
)
SELECT r.n, coalesce(f.next, h.next, 1) AS next, coalesce(f.bytes, h.bytes, 0) AS bytes, h.final_records, f.bytes - coalesce(h.bytes, 0) AS added
FROM run r LEFT JOIN held h ON h.n = r.n LEFT JOIN fitting f ON f.n = r.n;

-- state: how far a log has come; a stream without a row is over with its attempt, or an hour after it was lost
SELECT l.next, l.bytes, l.sealed_at IS NOT NULL AS sealed, l.compacted_to,
       a.ended_at IS NOT NULL AND (a.state <> 'lost' OR a.ended_at < clock_timestamp() - interval '1 hour') AS over
FROM attempt a LEFT JOIN log l ON l.attempt_id = a.id AND l.stream = $2
WHERE a.id = $1;

-- page: at most 512 records and 1 MiB of them (and one); lengths are known without reading what is stored out of line
SELECT p.sequence, p.record FROM (
    SELECT r.sequence, r.record, sum(length(r.record)) OVER (ORDER BY r.sequence) - length(r.record) AS before
    FROM log_record r WHERE r.attempt_id = $1 AND r.stream = $2 AND r.sequence >= $3
    ORDER BY r.sequence LIMIT 512
) p WHERE p.before < 1048576 ORDER BY p.sequence;

-- find_attempt: the newest attempt of a job that began, or the one that was its try $3
SELECT j.id AS job_id, j.state IN ('passed', 'failed', 'canceled', 'skipped') AS ended, a.id AS attempt_id, a.try
FROM job j LEFT JOIN LATERAL (
    SELECT t.id, t.try FROM attempt t
    WHERE t.job_id = j.id AND t.state NOT IN ('leased', 'returned') AND ($3 = 0 OR t.try = $3)
    ORDER BY t.id DESC LIMIT 1
) a ON true
WHERE j.run_id = $1 AND j.key = $2 AND EXISTS (SELECT 1 FROM run r WHERE r.id = $1 AND r.forgotten_at IS NULL);

-- begin: the first record that touches raw offset $3 or lies behind it; for compacted ones the first of its segment. Offsets grow with sequences, so halving finds it without an index of its own
WITH RECURSIVE halved(lo, hi) AS (
    SELECT compacted_to + 1, next FROM log WHERE attempt_id = $1 AND stream = $2
    UNION ALL
    SELECT CASE WHEN m.behind THEN m.lo ELSE m.middle + 1 END, CASE WHEN m.behind THEN m.middle ELSE m.hi END
    FROM (
        SELECT h.lo, h.hi, (h.lo + h.hi) / 2 AS middle, (
            SELECT r.bytes_from >= $3 OR r.bytes_from + r.raw_length > $3 FROM log_record r
            WHERE r.attempt_id = $1 AND r.stream = $2 AND r.sequence = (h.lo + h.hi) / 2
        ) AS behind
        FROM halved h WHERE h.lo < h.hi OFFSET 0  -- or each step would look twice
    ) m
)
SELECT coalesce(
    (SELECT min(s.first_sequence) FROM log_segment s WHERE s.attempt_id = $1 AND s.stream = $2 AND s.bytes_to >= $3),
    (SELECT lo FROM halved WHERE lo >= hi),
    1
);

-- sections_before: openings and closings before a record; sections are bounded, and so is this
SELECT record FROM log_section WHERE attempt_id = $1 AND stream = $2 AND sequence < $3 ORDER BY sequence;

-- segment_of: the segment that holds a record
SELECT first_sequence, last_sequence, bytes_from, key, size, index, data FROM log_segment
WHERE attempt_id = $1 AND stream = $2 AND first_sequence <= $3 AND last_sequence >= $3
ORDER BY first_sequence DESC LIMIT 1;

-- close: an outcome told how many records a stream has; it is sealed if they are there, else when they come. A log never shrinks
INSERT INTO log AS l (attempt_id, stream, final_records, sealed_at)
SELECT t.attempt_id, t.stream, t.records, CASE WHEN t.records = 0 THEN clock_timestamp() END
FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS t(attempt_id, stream, records)
ORDER BY t.attempt_id, t.stream
ON CONFLICT (attempt_id, stream) DO UPDATE SET
    final_records = greatest(excluded.final_records, l.next - 1),
    sealed_at = CASE WHEN excluded.final_records < l.next THEN clock_timestamp() END
WHERE l.sealed_at IS NULL;

-- close_unnamed: streams that the outcome did not name end where they are
UPDATE log l SET final_records = l.next - 1, sealed_at = clock_timestamp()
WHERE l.attempt_id = ANY($1::bigint[]) AND l.sealed_at IS NULL AND l.final_records IS NULL;

-- lost: the log of a lost attempt exists, so that a reader is told when it ends
INSERT INTO log (attempt_id, stream) SELECT a, 'main' FROM unnest($1::bigint[]) AS a ORDER BY a ON CONFLICT DO NOTHING;

-- hand_in: the agents of attempts that are over have no more than so many records of their logs: sealed, if all of them are there
WITH held AS (
    SELECT l.attempt_id, l.stream
    FROM unnest($1::bigint[], $2::bytea[], $3::text[], $4::bigint[]) AS h(attempt_id, token, stream, records)
    JOIN attempt a ON a.id = h.attempt_id AND a.token = h.token AND a.ended_at IS NOT NULL
    JOIN log l ON l.attempt_id = h.attempt_id AND l.stream = h.stream
    WHERE l.sealed_at IS NULL AND l.next - 1 = h.records
    ORDER BY l.attempt_id, l.stream FOR UPDATE OF l
)
UPDATE log l SET final_records = l.next - 1, sealed_at = clock_timestamp()
FROM held h WHERE l.attempt_id = h.attempt_id AND l.stream = h.stream
RETURNING l.attempt_id;

-- seal_forsaken: a lost attempt whose agent did not hand in its spool within the hour; any other within the day
WITH forsaken AS (
    SELECT l.attempt_id, l.stream FROM log l JOIN attempt a ON a.id = l.attempt_id
    WHERE l.sealed_at IS NULL AND a.ended_at < clock_timestamp() - CASE
        WHEN a.state IN ('lost', 'returned') THEN interval '1 hour' ELSE interval '1 day' END
    ORDER BY l.attempt_id, l.stream LIMIT 1000 FOR UPDATE OF l SKIP LOCKED
)
UPDATE log l SET final_records = l.next - 1, sealed_at = clock_timestamp()
FROM forsaken f
WHERE l.attempt_id = f.attempt_id AND l.stream = f.stream AND l.sealed_at IS NULL
  AND EXISTS (SELECT 1 FROM singleton WHERE name = 'compactor' AND term = $1)
RETURNING l.attempt_id;

-- sealed_to_compact: the oldest of the sealed logs with hot records
SELECT l.attempt_id, a.run_id, l.stream, l.compacted_to, l.compacted_bytes, l.next, l.bytes, true AS sealed
FROM log l JOIN attempt a ON a.id = l.attempt_id
WHERE l.sealed_at IS NOT NULL AND l.next > l.compacted_to + 1
ORDER BY l.sealed_at LIMIT $1;

-- open_to_compact: living logs with a segment's worth of bytes or records beside the newest part
SELECT l.attempt_id, a.run_id, l.stream, l.compacted_to, l.compacted_bytes, l.next, l.bytes, false AS sealed
FROM log l JOIN attempt a ON a.id = l.attempt_id
WHERE l.sealed_at IS NULL AND (l.bytes - l.compacted_bytes >= $1 OR l.next - l.compacted_to > $2)
ORDER BY l.attempt_id, l.stream LIMIT $3;

-- begin_upload: said before the object is written, so that a crash leaves nothing that nobody knows of
INSERT INTO segment_upload (key) VALUES ($1);

-- end_upload: the object is gone again
DELETE FROM segment_upload WHERE key = ANY($1::text[]);

-- stray_uploads: nobody can still be at work on them
SELECT key FROM segment_upload WHERE begun_at < clock_timestamp() - interval '1 hour' ORDER BY begun_at LIMIT 100;

-- swap: the segment for its records, in one statement, only by the compactor of this term, for a log as it was seen, and never with an object so old that the sweep may be at it
WITH moved AS (
    UPDATE log l SET compacted_to = $4, compacted_bytes = $6
    WHERE l.attempt_id = $1 AND l.stream = $2 AND l.compacted_to = $3 - 1 AND l.compacted_bytes = $5 AND l.next > $4
      AND EXISTS (SELECT 1 FROM singleton WHERE name = 'compactor' AND term = $12)
      AND ($7::text IS NULL OR EXISTS (
          SELECT 1 FROM segment_upload u WHERE u.key = $7 AND u.begun_at > clock_timestamp() - interval '30 minutes'
      ))
    RETURNING l.attempt_id
), emptied AS (
    DELETE FROM log_record r USING moved m
    WHERE r.attempt_id = m.attempt_id AND r.attempt_id = $1 AND r.stream = $2 AND r.sequence BETWEEN $3 AND $4
), uploaded AS (
    DELETE FROM segment_upload u USING moved m WHERE u.key = $7
)
INSERT INTO log_segment (attempt_id, stream, first_sequence, last_sequence, bytes_from, bytes_to, key, data, size, sha256, index)
SELECT m.attempt_id, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 FROM moved m
RETURNING first_sequence;

-- small_records: the hot records of many small logs at once; each log has an upper bound of its own
SELECT w.n, r.record
FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[]) WITH ORDINALITY AS w(attempt_id, stream, first, next, n)
JOIN log_record r ON r.attempt_id = w.attempt_id AND r.stream = w.stream AND r.sequence >= w.first AND r.sequence < w.next
ORDER BY w.n, r.sequence;

-- swap_small: as swap, for many segments that are kept in their rows; logs are locked in order, as appending does it
WITH segment AS (
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::bytea[], $9::bytea[])
        AS s(attempt_id, stream, first_sequence, last_sequence, bytes_from, bytes_to, data, sha256, index)
), held AS (
    SELECT s.* FROM segment s JOIN log l ON l.attempt_id = s.attempt_id AND l.stream = s.stream
    WHERE l.compacted_to = s.first_sequence - 1 AND l.compacted_bytes = s.bytes_from AND l.next > s.last_sequence
      AND EXISTS (SELECT 1 FROM singleton WHERE name = 'compactor' AND term = $10)
    ORDER BY l.attempt_id, l.stream FOR UPDATE OF l
), moved AS (
    UPDATE log l SET compacted_to = h.last_sequence, compacted_bytes = h.bytes_to
    FROM held h WHERE l.attempt_id = h.attempt_id AND l.stream = h.stream
), emptied AS (
    DELETE FROM log_record r USING held h
    WHERE r.attempt_id = h.attempt_id AND r.stream = h.stream AND r.sequence BETWEEN h.first_sequence AND h.last_sequence
)
INSERT INTO log_segment (attempt_id, stream, first_sequence, last_sequence, bytes_from, bytes_to, key, data, size, sha256, index)
SELECT h.attempt_id, h.stream, h.first_sequence, h.last_sequence, h.bytes_from, h.bytes_to, NULL, h.data, length(h.data), h.sha256, h.index
FROM held h
RETURNING attempt_id;
