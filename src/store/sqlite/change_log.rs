//! The statements with which SQLite reads its log of changes, and the evidence that the log is complete.

/// The schema cookie: SQLite raises it with every change of tables and triggers.
pub(super) const FINGERPRINT: &str = "(SELECT CAST(schema_version AS TEXT) FROM pragma_schema_version)";

/// An expression for the file's history and the changes that a statement saw. Two histories that share their change
/// numbers, since the file was restored, differ in the random number of their newest entry. The sequence outlives the
/// entries that are pruned.
pub(super) const POSITION: &str = "(SELECT printf('%d/%d:%d:', l.nonce, l.n, l.n) FROM (
    SELECT COALESCE((SELECT nonce FROM keystile_changes ORDER BY id DESC LIMIT 1), 0) AS nonce,
        1 + COALESCE((SELECT MAX(seq) FROM sqlite_sequence WHERE name = 'keystile_changes'), 0) AS n) l)";

/// Selects the evidence, as JSON, and the entries since a change number (`?1`); `?2` is the newest entry of the previous
/// read, `?3` the triggers that there must be, as a JSON array of their names and statements.
pub(super) fn read(limit: usize) -> String {
    format!(
        "SELECT 'evidence', json_object(
            'is_replica', json('false'),
            'identity', '',
            'next', 1 + COALESCE((SELECT MAX(seq) FROM sqlite_sequence WHERE name = 'keystile_changes'), 0),
            'tables', {FINGERPRINT},
            'anchor', (SELECT printf('%d:%d', id, nonce) FROM keystile_changes ORDER BY id DESC LIMIT 1),
            'anchor_is_there', json(CASE WHEN EXISTS (SELECT 1 FROM keystile_changes
                WHERE id = CAST(?2 AS INTEGER) AND printf('%d:%d', id, nonce) = ?2) THEN 'true' ELSE 'false' END),
            'untriggered', json((SELECT json_group_array(json_extract(n.value, '$.name')) FROM json_each(?3) n
                WHERE NOT EXISTS (SELECT 1 FROM sqlite_schema t WHERE t.type = 'trigger'
                    AND t.name = json_extract(n.value, '$.name') AND t.sql = json_extract(n.value, '$.sql')))),
            'unwatched', json('[]'),
            'compares_dropped', json('false'),
            'hides_rows', json('false'),
            'lost_writes', json('false'),
            'notifies', json('false')
        ), {POSITION}, '', NULL, NULL, NULL
        UNION ALL SELECT * FROM (SELECT 'entry', prefix, user_id, key_id, id,
                CAST((julianday('now') - julianday(changed_at)) * 86400 AS TEXT), source
            FROM keystile_changes WHERE id >= CAST(?1 AS INTEGER) LIMIT {limit})"
    )
}

/// Deletes entries that every reader has seen, and marks new ones as seen. The newest entry stays: readers recognise the
/// log by it.
pub(super) fn prune(seconds: u64) -> [String; 2] {
    [
        format!(
            "DELETE FROM keystile_changes WHERE seen_at < datetime('now', '-{seconds} seconds')
            AND id <> (SELECT MAX(id) FROM keystile_changes)"
        ),
        "UPDATE keystile_changes SET seen_at = datetime('now') WHERE seen_at IS NULL".to_owned(),
    ]
}
