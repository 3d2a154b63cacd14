//! How a key is created.

use std::collections::VecDeque;

use time::OffsetDateTime;

use super::{
    Action, ColumnValue, Database, DisplayRow, KeyFilter, ManagementError, Result, Schema, Statement,
    columns::write_list, id, insert, keys::blocking, needs_column, users::user_id,
};
use crate::{
    credential::{
        Credential,
        generate::{self, Brand},
    },
    record::{Limits, UserId},
    store::statement::{Rows, Step},
};

/// A key to create. Empty fields are not set.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// Id or email of its user.
    pub user: String,
    /// Its name.
    pub name: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// Expiry time.
    pub expires_at: Option<OffsetDateTime>,
    /// Its scopes.
    pub scopes: Vec<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// `allowed_models`.
    pub models: Vec<String>,
    /// `allowed_endpoints`.
    pub endpoints: Vec<String>,
    /// `allowed_ips`.
    pub ips: Vec<String>,
    /// `allowed_chatbots`.
    pub chatbots: Vec<String>,
    /// `allowed_agents`.
    pub agents: Vec<String>,
    /// `allowed_extract_templates`.
    pub extract_templates: Vec<String>,
    /// Its rate limits.
    pub limits: Limits,
    /// Its budget, in cents.
    pub budget_limit_cents: Option<i64>,
    /// The period of the budget.
    pub budget_type: Option<String>,
    /// Maximum number of the user's keys that are not revoked, with the new one.
    pub max_keys: Option<u32>,
}

/// Maximum number of generated keys until one has a new prefix. One in 14.7 million collides with a given key.
pub(super) const DRAWS: usize = 16;

impl Database {
    /// Creates a key: the row, and the credential, which cannot be shown again.
    ///
    /// # Errors
    /// [`ManagementError`] when the user is unknown, a setting has no column, or the database fails.
    pub async fn create_key(
        &self,
        new: &NewKey,
        brand: &Brand,
        cost: u32,
    ) -> Result<(DisplayRow, Credential)> {
        let schema = &self.operator_schema().await?;
        let user = user_id(&self.find_user(&new.user).await?)?;
        let mut values = self.settings(new);
        for (column, _) in &values {
            needs_column(schema, "api_keys", column)?;
        }
        values.push(("user_id", Some(user.0.to_string())));
        let defaults = self.defaults(new).into_iter();
        values.extend(defaults.filter(|(column, _)| schema.has("api_keys", column)));
        for _ in 0..DRAWS {
            let credential = generate::generate(brand, &mut rand::rng());
            if !self.find_keys(credential.prefix().as_str()).await?.is_empty() {
                continue;
            }
            let mut values = values.clone();
            values.push(("key_prefix", Some(credential.prefix().as_str().to_owned())));
            values.push(("key_hash", Some(hash(credential.clone(), cost).await?)));
            // Another process may have created the same prefix in between.
            let insert = insert(schema, "api_keys", values, &[&["key_prefix"]]);
            let rows = match new.max_keys {
                Some(max) => self.insert_below(schema, user, max, insert).await?,
                None => self.change_by(Action::Create, insert).await?,
            };
            if let Some(id) = id(&rows) {
                return Ok((self.find_key(&id.to_string()).await?, credential));
            }
        }
        Err(no_new_prefix(brand))
    }

    /// Inserts a key if its user has fewer than `max` keys. The user's row is locked meanwhile, so that no other insert
    /// passes the limit with it.
    async fn insert_below(&self, schema: &Schema, user: UserId, max: u32, insert: Statement) -> Result<Rows> {
        let lock = format!(
            "SELECT CAST(u.{id} AS text) FROM {} u WHERE u.{id} = {}{}",
            schema.relation("users"),
            schema.param(1, "users", "id"),
            self.statements().lock_rows("u"),
            id = schema.name("users", "id"),
        );
        let lock = Statement::new(lock, [Some(user.0.to_string())]);
        let filter = KeyFilter { user: Some(user.0.to_string()), ..KeyFilter::default() };
        let conditions = self.key_conditions(schema, &filter, Vec::new()).await?;
        let keys = schema.relation("api_keys");
        let count = format!("SELECT CAST(count(*) AS text) FROM {keys} k {}", conditions.clause());
        let mut steps = VecDeque::from([Statement::new(count, conditions.params), insert]);
        let mut creation = self.creation(Action::Create);
        self.decide_change(Action::Create, lock, move |rows| {
            if steps.len() == 1 && id(&rows).is_none_or(|count| count >= i64::from(max)) {
                return Err(ManagementError::Refused(format!(
                    "the user has {max} keys already, as many as allowed; revoke one first"
                )));
            }
            match steps.pop_front() {
                Some(step) => Ok(Step::Run(step)),
                None => creation(rows),
            }
        })
        .await
    }

    /// The settings of the new key, by column.
    fn settings(&self, new: &NewKey) -> Vec<ColumnValue> {
        let list = |list: &[String]| (!list.is_empty()).then(|| write_list(list));
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let mut values = vec![
            ("name", new.name.clone()),
            ("description", new.description.clone()),
            ("expires_at", new.expires_at.and_then(|end| self.time(end))),
            ("scopes", list(&new.scopes)),
            ("tags", list(&new.tags)),
            ("allowed_models", list(&new.models)),
            ("allowed_endpoints", list(&new.endpoints)),
            ("allowed_ips", list(&new.ips)),
            ("allowed_chatbots", list(&new.chatbots)),
            ("allowed_agents", list(&new.agents)),
            ("allowed_extract_templates", list(&new.extract_templates)),
            ("rate_limit_per_minute", number(new.limits.minute)),
            ("rate_limit_per_hour", number(new.limits.hour)),
            ("rate_limit_per_day", number(new.limits.day)),
            ("budget_limit_cents", new.budget_limit_cents.map(|cents| cents.to_string())),
            ("budget_type", new.budget_type.clone()),
        ];
        values.retain(|(_, value)| value.is_some());
        values
    }

    /// The values that every new key has, where there is a column.
    pub(super) fn defaults(&self, new: &NewKey) -> [ColumnValue; 7] {
        let flag = |flag: bool| Some(if flag { "1" } else { "0" }.to_owned());
        [
            ("is_active", flag(true)),
            ("is_unlimited", flag(new.budget_limit_cents.is_none())),
            ("created_at", self.now()),
            ("updated_at", self.now()),
            ("total_requests", Some("0".into())),
            ("total_tokens", Some("0".into())),
            ("total_cost", Some("0".into())),
        ]
    }
}

/// The error after [`DRAWS`] keys of this brand.
pub(super) fn no_new_prefix(brand: &Brand) -> ManagementError {
    ManagementError::Refused(format!(
        "--brand {brand}: {DRAWS} keys in a row began like one that exists; choose a shorter brand"
    ))
}

pub(super) async fn hash(credential: Credential, cost: u32) -> Result<String> {
    let hashed = blocking(move || bcrypt::hash(credential.expose(), cost)).await?;
    hashed.map_err(|error| ManagementError::Refused(format!("--cost {cost}: {error}")))
}
