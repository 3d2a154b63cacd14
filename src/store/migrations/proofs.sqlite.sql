-- Proofs that survive a restart. No foreign key: this table must not make a statement of another application fail.
CREATE TABLE IF NOT EXISTS keystile_proofs (
    key_id integer NOT NULL,
    tag text NOT NULL, -- HMAC of the whole API key under the cache secret
    proven_at integer NOT NULL, -- milliseconds since 1970
    seal text NOT NULL, -- HMAC of this row and of the tag of the key's hash
    PRIMARY KEY (key_id, tag)
)
