-- append: all that waits at a replica in one statement. $1..$7: runs of records that follow one another (attempt, token, stream, first sequence, sequence after the last, place of the first in $9, offset after the last); $8..$12: the records, in the order of the runs (run, offset, raw length, section or NULL with opened or not, bytes). A run is written from the log's `next` on, if that record is in it and its offset fits; otherwise nothing of it is
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
    FROM fitting f JOIN held h ON h.n = f.n
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
SELECT r.n, coalesce(f.next, h.next, 1) AS next, coalesce(f.bytes, h.bytes, 0) AS bytes, h.final_records, f.n IS NOT NULL AS grew
FROM run r LEFT JOIN held h ON h.n = r.n LEFT JOIN fitting f ON f.n = r.n;
