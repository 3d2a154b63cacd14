//! Every row of `keystile_rotations`: whether both keys exist, the old one ends, and the chain is one.

use super::{FindingKind, Inspector, keys::observation, tally::Tally};
use crate::{
    findings::Severity,
    record::Expiry,
    store::{
        SqlValue, StoreError,
        decode::{timestamp, value},
        schema::ROTATIONS,
        statement::Statement,
    },
};

/// Maximum number of rows that are examined.
const MAX_ROWS: usize = 100_000;

impl Inspector<'_> {
    pub(super) async fn examine_rotations(&mut self) -> Result<(), StoreError> {
        let schema = &self.schema;
        let (keys, rotations) = (schema.relation("api_keys"), schema.relation(ROTATIONS));
        let id = schema.name("api_keys", "id");
        let exists = |key: &str| {
            format!("CASE WHEN EXISTS (SELECT 1 FROM {keys} e WHERE e.{id} = c.{key}) THEN '1' ELSE '0' END")
        };
        let sql = format!(
            "SELECT CAST(c.predecessor_id AS text), {}, {}, {}, {},
                CASE WHEN c.limit_id = COALESCE((SELECT p.limit_id FROM {rotations} p
                    WHERE p.successor_id = c.predecessor_id), c.predecessor_id) THEN '1' ELSE '0' END
            FROM {rotations} c LEFT JOIN {keys} k ON k.{id} = c.predecessor_id
            ORDER BY c.predecessor_id LIMIT {MAX_ROWS}",
            exists("predecessor_id"),
            exists("successor_id"),
            schema.column("api_keys", "is_active"),
            schema.column("api_keys", "expires_at"),
        );
        let mut tally = Tally::default();
        for row in self.query(Statement::plain(sql)).await? {
            let mut values = row.into_iter();
            let [id, predecessor, successor, is_active, expires_at, is_one] =
                std::array::from_fn(|_| values.next().flatten());
            let id = id.and_then(|id| id.parse().ok());
            let mut add = |kind, severity, column: &str| {
                tally.add(observation(kind, severity, ROTATIONS, column, ""), id);
            };
            let is_set = |flag: &SqlValue| flag.as_deref() == Some("1");
            for (column, exists) in [("predecessor_id", &predecessor), ("successor_id", &successor)] {
                if !is_set(exists) {
                    add(FindingKind::RotationDangling, Severity::Note, column);
                }
            }
            let is_active = is_active.is_some_and(|flag| value::boolean(&flag) == Ok(true));
            let expiry = expires_at.map_or(Ok(Expiry::Never), |text| timestamp::expiry(&text));
            if is_set(&predecessor) && is_active && expiry == Ok(Expiry::Never) {
                add(FindingKind::RotationEndless, Severity::Warning, "predecessor_id");
            }
            if !is_set(&is_one) {
                add(FindingKind::RotationChainBroken, Severity::Warning, "limit_id");
            }
        }
        self.inspection.findings.extend(tally.findings());
        Ok(())
    }
}
