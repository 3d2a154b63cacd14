//! The chain of a key, for operators: what was rotated to what, and who still uses the old key.

use serde_json::Value;

use super::{
    Database, DisplayRow, Result, Statement,
    columns::{Column, ColumnKind},
};
use crate::store::schema::{ROTATIONS, Schema};

/// The values of one rotation.
const COLUMNS: [Column; 8] = [
    Column { name: "predecessor_id", kind: ColumnKind::Integer },
    Column { name: "successor_id", kind: ColumnKind::Integer },
    Column { name: "limit_id", kind: ColumnKind::Integer },
    Column { name: "created_at", kind: ColumnKind::Timestamp },
    Column { name: "predecessor_requests", kind: ColumnKind::Integer },
    Column { name: "expires_at", kind: ColumnKind::Expiry },
    Column { name: "last_used_at", kind: ColumnKind::Timestamp },
    Column { name: "total_requests", kind: ColumnKind::Integer },
];

impl Database {
    /// The one key with this id or prefix, and its chain where it was rotated.
    ///
    /// # Errors
    /// [`ManagementError::Refused`](super::ManagementError) when there is none, or more than one.
    pub async fn describe_key(&self, id_or_prefix: &str) -> Result<DisplayRow> {
        let key = self.find_key(id_or_prefix).await?;
        self.with_chain(key).await
    }

    /// Adds the chain of a key to its row. For a key that was never rotated, nothing.
    ///
    /// # Errors
    /// [`ManagementError`](super::ManagementError) when the database fails.
    pub async fn with_chain(&self, mut key: DisplayRow) -> Result<DisplayRow> {
        let Some(id) = key.get("id").as_i64() else { return Ok(key) };
        let rotations = self.rotations_of(id).await?;
        let Some(first) = rotations.first() else { return Ok(key) };
        key = key.with("limit_id", first.get("limit_id").clone());
        let mut members = Vec::new();
        for rotation in &rotations {
            for name in ["predecessor_id", "successor_id"] {
                let member = rotation.get(name).clone();
                if !members.contains(&member) {
                    members.push(member);
                }
            }
        }
        key = key.with("chain", members);
        let by = |name: &str| rotations.iter().find(|rotation| *rotation.get(name) == id);
        if let Some(rotation) = by("successor_id") {
            key = key
                .with("rotated_from", rotation.get("predecessor_id").clone())
                .with("predecessor_expires_at", rotation.get("expires_at").clone())
                .with("predecessor_last_used_at", rotation.get("last_used_at").clone())
                .with("predecessor_requests_since_rotation", requests_since(rotation));
        }
        if let Some(rotation) = by("predecessor_id") {
            key = key
                .with("rotated_to", rotation.get("successor_id").clone())
                .with("rotated_at", rotation.get("created_at").clone())
                .with("requests_since_rotation", requests_since(rotation));
        }
        Ok(key)
    }

    /// The other keys of the chain of a key, the oldest first.
    pub(super) async fn other_members(&self, id: i64) -> Result<Vec<i64>> {
        let mut members = Vec::new();
        for rotation in self.rotations_of(id).await? {
            let both = [rotation.get("predecessor_id").as_i64(), rotation.get("successor_id").as_i64()];
            for member in both.into_iter().flatten() {
                if member != id && !members.contains(&member) {
                    members.push(member);
                }
            }
        }
        Ok(members)
    }

    /// The rotations of the chain of a key, the oldest first.
    async fn rotations_of(&self, id: i64) -> Result<Vec<DisplayRow>> {
        let schema = &self.operator_schema().await?;
        if !schema.has_rotations() {
            return Ok(Vec::new());
        }
        let key = |column| schema.column("api_keys", column);
        let sql = format!(
            "SELECT {}, {}, {}, {} FROM {} c LEFT JOIN {} k ON k.{} = c.predecessor_id WHERE c.limit_id = {}
            ORDER BY c.successor_id",
            schema.select(
                ROTATIONS,
                ["predecessor_id", "successor_id", "limit_id", "created_at", "predecessor_requests"]
            ),
            key("expires_at"),
            key("last_used_at"),
            key("total_requests"),
            schema.relation(ROTATIONS),
            schema.relation("api_keys"),
            schema.name("api_keys", "id"),
            schema.limit_id(&id.to_string()),
        );
        let rows = self.query(Statement::plain(sql)).await?;
        Ok(rows.into_iter().map(|row| DisplayRow::new(COLUMNS, row)).collect())
    }
}

/// A condition on ids: those of the chain of this key, itself included only where it was rotated.
pub(super) fn is_in_chain_of(schema: &Schema, id: i64) -> String {
    let (rotations, first) = (schema.relation(ROTATIONS), schema.limit_id(&id.to_string()));
    let members = ["predecessor_id", "successor_id"]
        .map(|column| format!("SELECT c.{column} FROM {rotations} c WHERE c.limit_id = {first}"));
    format!("IN ({})", members.join(" UNION "))
}

/// Requests with the predecessor since the rotation; null where they are not counted.
fn requests_since(rotation: &DisplayRow) -> Value {
    let number = |name| rotation.get(name).as_i64();
    number("total_requests")
        .zip(number("predecessor_requests"))
        .map_or(Value::Null, |(now, then)| (now - then).into())
}
