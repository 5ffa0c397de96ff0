-- renew: the holder shows that it lives
UPDATE singleton SET counter = counter + 1 WHERE name = $1 AND term = $2 RETURNING counter;

-- look: who holds it, and how far the counter is
SELECT term, counter FROM singleton WHERE name = $1;

-- take: nobody has ever held it, or the last holder left
INSERT INTO singleton (name, term, replica) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING term;

-- take_over: term and counter are those that stood still; a holder that moved in the meantime keeps it
UPDATE singleton SET term = $4, replica = $5, counter = counter + 1
WHERE name = $1 AND term = $2 AND counter = $3 RETURNING term;

-- leave: the next may take it at once
DELETE FROM singleton WHERE name = $1 AND term = $2;

-- clear: by a coordinator that knows itself alone, so that it need not wait for its dead forerunner
DELETE FROM singleton;
