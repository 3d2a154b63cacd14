//! Budgets that a look-up of a key does not read, for explanations.

use super::{Database, Result, Statement};
use crate::{
    record::{BudgetId, KeyRecord},
    store::decode::value,
};

/// Maximum number of rows that are read.
const MAX_ROWS: usize = 1000;

/// A row of `budgets` that binds no request with a key, although it is a row of the key or of its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadBudget {
    /// `budgets.id`.
    pub id: Option<BudgetId>,
    /// Why it does not bind.
    pub why: String,
}

impl Database {
    /// The rows of `budgets` of this key and of its user that are not in the key's record.
    ///
    /// # Errors
    /// [`ManagementError`](super::ManagementError) when the database fails.
    pub async fn unread_budgets(&self, record: &KeyRecord) -> Result<Vec<UnreadBudget>> {
        let schema = &self.operator_schema().await?;
        if !schema.has_budgets() {
            return Ok(Vec::new());
        }
        let name = |column| schema.name("budgets", column);
        let sql = format!(
            "SELECT {} FROM {} b WHERE b.{} = {} OR b.{} = {} ORDER BY b.{} LIMIT {MAX_ROWS}",
            schema.select("budgets", ["id", "api_key_id", "is_active"]),
            schema.relation("budgets"),
            name("api_key_id"),
            schema.param(1, "budgets", "api_key_id"),
            name("user_id"),
            schema.param(2, "budgets", "user_id"),
            name("id"),
        );
        let ids = [record.id.0, record.user.id.0].map(|id| Some(id.to_string()));
        let rows = self.query(Statement::new(sql, ids)).await?;
        let read: Vec<_> = {
            let budgets = &record.period_budgets;
            let unreadable = budgets.unreadable.iter().filter_map(|budget| budget.id);
            budgets.rows.iter().map(|budget| budget.id).chain(unreadable).collect()
        };
        let unread = rows.into_iter().filter_map(|row| {
            let mut values = row.into_iter();
            let [id, key, is_active] = std::array::from_fn(|_| values.next().flatten());
            let id = id.and_then(|id| value::integer(&id).ok()).map(BudgetId);
            if id.is_some_and(|id| read.contains(&id)) {
                return None;
            }
            let is_inactive = is_active.is_some_and(|flag| value::boolean(&flag) == Ok(false));
            let other = key.filter(|key| value::integer(key) != Ok(record.id.0));
            let other = other.map(|key| format!("it is for key {key}"));
            let reasons: Vec<_> =
                other.into_iter().chain(is_inactive.then(|| "is_active is false".to_owned())).collect();
            // A row without a reason was added since the record was read.
            (!reasons.is_empty()).then(|| UnreadBudget { id, why: reasons.join("; ") })
        });
        Ok(unread.collect())
    }
}
