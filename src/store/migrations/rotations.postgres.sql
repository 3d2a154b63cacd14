-- Rotations of keys. No foreign keys: these tables must not make a statement of another application fail.

CREATE TABLE IF NOT EXISTS keystile_rotations (
    predecessor_id bigint PRIMARY KEY, -- a key is rotated once
    successor_id bigint NOT NULL UNIQUE,
    limit_id bigint NOT NULL, -- the first key of the chain, whose id requests are counted under
    ends_at timestamptz NOT NULL, -- when the predecessor ends, as it was decided
    predecessor_requests bigint, -- total_requests of the predecessor at the rotation
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS keystile_rotations_limit_id ON keystile_rotations (limit_id);
-- Copies of a key's budgets. What is used of a budget is the sum over the rows with the same first one.
CREATE TABLE IF NOT EXISTS keystile_rotated_budgets (
    budget_id bigint PRIMARY KEY,
    first_id bigint NOT NULL,
    key_id bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS keystile_rotated_budgets_first_id ON keystile_rotated_budgets (first_id);
CREATE INDEX IF NOT EXISTS keystile_rotated_budgets_key_id ON keystile_rotated_budgets (key_id);
-- Every look-up reads them. They hold only ids and times.
GRANT SELECT ON keystile_rotations, keystile_rotated_budgets TO PUBLIC
