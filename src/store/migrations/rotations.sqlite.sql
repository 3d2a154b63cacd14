-- Rotations of keys. No foreign keys: these tables must not make a statement of another application fail.

CREATE TABLE IF NOT EXISTS keystile_rotations (
    predecessor_id integer NOT NULL UNIQUE, -- a key is rotated once
    successor_id integer NOT NULL UNIQUE,
    limit_id integer NOT NULL, -- the first key of the chain, whose id requests are counted under
    ends_at timestamp NOT NULL, -- when the predecessor ends, as it was decided
    predecessor_requests integer, -- total_requests of the predecessor at the rotation
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS keystile_rotations_limit_id ON keystile_rotations (limit_id);
-- Copies of a key's budgets. What is used of a budget is the sum over the rows with the same first one.
CREATE TABLE IF NOT EXISTS keystile_rotated_budgets (
    budget_id integer NOT NULL UNIQUE,
    first_id integer NOT NULL,
    key_id integer NOT NULL
);
CREATE INDEX IF NOT EXISTS keystile_rotated_budgets_first_id ON keystile_rotated_budgets (first_id);
CREATE INDEX IF NOT EXISTS keystile_rotated_budgets_key_id ON keystile_rotated_budgets (key_id)
