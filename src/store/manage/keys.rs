//! Keys: create, list, find, revoke.

use super::{
    API_KEYS, Column, Database, KeyId, Kind, Listed, ManageError, OffsetDateTime, Result, Statement, Value,
    cell::Cell,
    id, insert, needs_column, update,
    users::{EMAIL, user_id},
};
use crate::{
    credential::{
        Credential, Prefix,
        generate::{self, Brand},
    },
    record::Limits,
    store::{KeyStore, columns::write_list},
};

/// A key to create; what is empty is not set.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// Id or email of its user.
    pub user: String,
    /// What its owner calls it.
    pub name: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// When it stops to work.
    pub expires_at: Option<OffsetDateTime>,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Labels.
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
    /// How often it may be used.
    pub limits: Limits,
    /// What it may spend.
    pub budget_limit_cents: Option<i64>,
    /// Over which time.
    pub budget_type: Option<String>,
}

/// One draw in 14.7 million meets a given key: so many in a row mean something else is wrong.
const DRAWS: usize = 16;

impl Database {
    /// Makes a key: the row, and the credential that nobody can be shown again.
    ///
    /// # Errors
    /// [`ManageError`] when the user is unknown, a column is missing for what is set, or the
    /// database does not take it.
    pub async fn create_key(&self, new: &NewKey, brand: &Brand, cost: u32) -> Result<(Listed, Credential)> {
        let catalog = &self.tables().await?;
        let user = user_id(&self.find_user(&new.user).await?)?;
        let mut values = self.settings(new);
        for (column, _) in &values {
            needs_column(catalog, "api_keys", column)?;
        }
        values.push(("user_id", Some(user.0.to_string())));
        let defaults = self.defaults(new).into_iter();
        values.extend(defaults.filter(|(column, _)| catalog.has("api_keys", column)));
        for _ in 0..DRAWS {
            let credential = generate::generate(brand, &mut rand::rng());
            if !self.find_keys(credential.prefix().as_str()).await?.is_empty() {
                continue;
            }
            let mut values = values.clone();
            values.push(("key_prefix", Some(credential.prefix().as_str().to_owned())));
            values.push(("key_hash", Some(hash(credential.clone(), cost).await?)));
            // Somebody else may have drawn the same in between.
            let rows = self.query(insert(catalog, "api_keys", values, &[&["key_prefix"]])).await?;
            if let Some(id) = id(&rows) {
                return Ok((self.find_key(&id.to_string()).await?, credential));
            }
        }
        Err(ManageError::Refused(format!(
            "--brand {brand}: {DRAWS} keys in a row began like one that exists; choose a shorter brand"
        )))
    }

    /// Keys, newest first: of one user or of all, the revoked and deleted ones only where `all` is set.
    ///
    /// # Errors
    /// [`ManageError`] when the user is unknown or the database does not answer.
    pub async fn list_keys(&self, user: Option<&str>, all: bool) -> Result<Vec<Listed>> {
        let mut keys = match user {
            None => self.keys("", vec![]).await?,
            Some(user) => {
                let user = user_id(&self.find_user(user).await?)?;
                let param = self.tables().await?.param(1, "api_keys", "user_id");
                self.keys(&format!("WHERE k.user_id = {param}"), vec![Some(user.0.to_string())]).await?
            }
        };
        let lives = |key: &Listed| *key.get("is_active") == true && key.get("deleted_at").is_null();
        keys.retain(|key| all || lives(key));
        Ok(keys)
    }

    /// The keys with this id or prefix, newest first.
    ///
    /// # Errors
    /// [`ManageError`] when the database does not answer.
    pub async fn find_keys(&self, id_or_prefix: &str) -> Result<Vec<Listed>> {
        let catalog = &self.tables().await?;
        let (mut either, mut params) = (Vec::new(), Vec::new());
        let by_id = id_or_prefix.parse::<i64>().is_ok();
        for (column, fits) in [("id", by_id), ("key_prefix", id_or_prefix.len() == Prefix::LEN)] {
            if fits {
                params.push(Some(id_or_prefix.to_owned()));
                let name = format!("k.{}", catalog.name("api_keys", column));
                let mut same = format!("{name} = {}", catalog.param(params.len(), "api_keys", column));
                if column == "key_prefix" {
                    same.push_str(&format!(" AND {}", self.dialect().is_exactly(&name, params.len())));
                }
                either.push(same);
            }
        }
        match either.is_empty() {
            true => Ok(Vec::new()),
            false => self.keys(&format!("WHERE {}", either.join(" OR ")), params).await,
        }
    }

    /// The one key with this id or prefix.
    ///
    /// # Errors
    /// [`ManageError::Refused`] when there is none, or more than one.
    pub async fn find_key(&self, id_or_prefix: &str) -> Result<Listed> {
        let mut keys = self.find_keys(id_or_prefix).await?;
        match keys.len() {
            1 => Ok(keys.remove(0)),
            0 => Err(ManageError::Refused(format!(
                "no key has the id or prefix {id_or_prefix}; see `keystile keys list --all`"
            ))),
            _ => Err(ManageError::Refused(format!(
                "{} keys have the prefix {id_or_prefix}: give the id of one, which is {}",
                keys.len(),
                keys.iter().map(|key| key.text("id")).collect::<Vec<_>>().join(" or ")
            ))),
        }
    }

    /// The key that this credential is, proven by bcrypt; `None` when it is no key's.
    ///
    /// # Errors
    /// [`ManageError`] when the database does not answer.
    pub async fn identify(&self, credential: &Credential) -> Result<Option<Listed>> {
        let now = crate::clock::Timestamps::now();
        let found = self.records(credential.prefix(), now).await?;
        for record in found.records.iter() {
            let (credential, hash) = (credential.clone(), record.hash.clone());
            let proof = move || {
                let hash = hash.expose().unwrap_or_default();
                bcrypt::verify(credential.expose(), hash).unwrap_or(false)
            };
            if blocking(proof).await? {
                return self.find_key(&record.id.0.to_string()).await.map(Some);
            }
        }
        Ok(None)
    }

    /// Revokes the one key with this id or prefix.
    ///
    /// # Errors
    /// [`ManageError::Refused`] when there is none, or more than one.
    pub async fn revoke_key(&self, id_or_prefix: &str) -> Result<Listed> {
        let key = self.find_key(id_or_prefix).await?;
        let id = key.get("id").as_i64().map(KeyId);
        let id = id.ok_or_else(|| ManageError::Refused("the key's id is no whole number".into()))?;
        let catalog = &self.tables().await?;
        needs_column(catalog, "api_keys", "is_active")?;
        let values = vec![("is_active", Some("0".into())), ("updated_at", self.now())];
        self.query(update(catalog, "api_keys", id.0, values)).await?;
        self.find_key(&id.0.to_string()).await?.inactive()
    }

    async fn keys(&self, filter: &str, params: Vec<Cell>) -> Result<Vec<Listed>> {
        let catalog = &self.tables().await?;
        let shown: Vec<Column> =
            API_KEYS.iter().copied().filter(|column| column.kind != Kind::Hash).collect();
        let sql = format!(
            "SELECT {}, {} FROM {} {filter} {}",
            catalog.select("api_keys", &shown),
            catalog.select("users", &[EMAIL]),
            catalog.joined(),
            catalog.newest_first(),
        );
        let rows = self.query(Statement::new(sql, params)).await?;
        let email = Column { name: "user_email", ..EMAIL };
        let columns = || shown.iter().copied().chain([email]);
        Ok(rows.into_iter().map(|cells| Listed::new(columns(), cells)).collect())
    }

    /// What was asked for, by column.
    fn settings(&self, new: &NewKey) -> Vec<Value> {
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
            ("rate_limit_per_minute", number(new.limits.minute)),
            ("rate_limit_per_hour", number(new.limits.hour)),
            ("rate_limit_per_day", number(new.limits.day)),
            ("budget_limit_cents", new.budget_limit_cents.map(|cents| cents.to_string())),
            ("budget_type", new.budget_type.clone()),
        ];
        values.retain(|(_, cell)| cell.is_some());
        values
    }

    /// What every new key has, where there is a column for it.
    fn defaults(&self, new: &NewKey) -> [Value; 7] {
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

async fn hash(credential: Credential, cost: u32) -> Result<String> {
    let hashed = blocking(move || bcrypt::hash(credential.expose(), cost)).await?;
    hashed.map_err(|error| ManageError::Refused(format!("--cost {cost}: {error}")))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let work = tokio::task::spawn_blocking(work).await;
    work.map_err(|_| ManageError::Refused("bcrypt ended early; please report this".into()))
}
