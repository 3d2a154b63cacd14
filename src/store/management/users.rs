//! Users: create, list, disable.

use std::num::NonZeroUsize;

use super::{
    Action, ColumnValue, Database, DisplayRow, KeyFilter, KeyState, ManagementError, PageRequest, Result,
    Schema, Statement,
    columns::{Column, ColumnKind, USERS},
    id, insert, needs_column, update,
};
use crate::{credential::Prefix, record::UserId, store::Row};

/// A user to create.
#[derive(Debug, Clone, Default)]
pub struct NewUser {
    /// Unique.
    pub email: String,
    /// Unique.
    pub username: String,
    /// Any text, or a name in `roles` if that table exists.
    pub role: Option<String>,
    /// Upstreams receive this flag.
    pub superuser: bool,
}

impl Database {
    /// Creates a user who can only own keys: no password matches the stored hash.
    ///
    /// # Errors
    /// [`ManagementError`] when the email or name is taken, or the role is unknown.
    pub async fn create_user(&self, new: &NewUser) -> Result<DisplayRow> {
        let schema = &self.operator_schema().await?;
        let mut values = self.user_values(schema, new)?;
        if new.superuser {
            needs_column(schema, "users", "is_superuser")?;
        }
        if let Some(role) = &new.role {
            values.push(self.role(schema, role).await?);
        }
        let insert = insert(schema, "users", values, &[&["email"], &["username"]]);
        let rows = self.change_by(Action::Create, insert).await?;
        let Some(id) = id(&rows) else {
            return Err(ManagementError::Refused(format!(
                "there is a user with --email {} or --username {} already; see `keystile users list`",
                new.email, new.username
            )));
        };
        self.find_user(&id.to_string()).await
    }

    /// Inserts a user, or returns no row if the email or the name is taken.
    pub(super) fn new_user(&self, schema: &Schema, new: &NewUser) -> Result<Statement> {
        Ok(insert(schema, "users", self.user_values(schema, new)?, &[&["email"], &["username"]]))
    }

    fn user_values(&self, schema: &Schema, new: &NewUser) -> Result<Vec<ColumnValue>> {
        let mut values: Vec<ColumnValue> = vec![
            ("email", Some(new.email.clone())),
            ("username", Some(new.username.clone())),
            ("hashed_password", Some("!".into())),
            ("is_active", Some("1".into())),
            ("is_superuser", Some(if new.superuser { "1" } else { "0" }.into())),
            ("account_locked", Some("0".into())),
            ("created_at", self.now()),
            ("updated_at", self.now()),
        ];
        values.retain(|(column, _)| schema.has("users", column));
        for column in ["email", "username"] {
            needs_column(schema, "users", column)?;
        }
        Ok(values)
    }

    /// All users, by id.
    ///
    /// # Errors
    /// [`ManagementError`] when the database does not answer.
    pub async fn list_users(&self) -> Result<Vec<DisplayRow>> {
        self.users("", None).await
    }

    /// Users with an id above this one, by id, at most `limit`.
    ///
    /// # Errors
    /// [`ManagementError`] when the database does not answer.
    pub async fn users_after(&self, after: Option<i64>, limit: usize) -> Result<Vec<DisplayRow>> {
        let schema = &self.operator_schema().await?;
        let id = schema.name("users", "id");
        let condition = match after {
            Some(after) if schema.holds_integer("users", "id", after) => {
                format!("WHERE u.{id} > {}", schema.param(1, "users", "id"))
            }
            Some(after) if after > 0 => return Ok(Vec::new()),
            _ => String::new(),
        };
        let params =
            if condition.is_empty() { Vec::new() } else { vec![after.map(|after| after.to_string())] };
        let sql = select_users(schema, &format!("{condition} ORDER BY u.{id} LIMIT {limit}"));
        let rows = self.query(Statement::new(sql, params)).await?;
        Ok(rows.into_iter().map(user_row).collect())
    }

    /// The users with this id or email. There are several only with an email.
    ///
    /// # Errors
    /// [`ManagementError`] when the database does not answer.
    pub async fn find_users(&self, id_or_email: &str) -> Result<Vec<DisplayRow>> {
        let schema = &self.operator_schema().await?;
        let Ok(id) = id_or_email.parse::<i64>() else { return self.users_with_email(id_or_email).await };
        if !schema.holds_integer("users", "id", id) {
            return Ok(Vec::new());
        }
        let by = format!("WHERE u.{} = {}", schema.name("users", "id"), schema.param(1, "users", "id"));
        self.users(&by, Some(id_or_email)).await
    }

    /// The user with this id or email.
    ///
    /// # Errors
    /// [`ManagementError::Refused`] when there is none, or more than one.
    pub async fn find_user(&self, id_or_email: &str) -> Result<DisplayRow> {
        let mut users = self.find_users(id_or_email).await?;
        match users.len() {
            1 => Ok(users.remove(0)),
            0 => Err(ManagementError::Refused(format!(
                "no user has the id or email {id_or_email}; see `keystile users list`"
            ))),
            _ => Err(ManagementError::Refused(format!(
                "several users have the email {id_or_email}: give the id of one, which is {}",
                users.iter().map(|user| user.text("id")).collect::<Vec<_>>().join(" or ")
            ))),
        }
    }

    /// The users with this email, in any case.
    pub(super) async fn users_with_email(&self, email: &str) -> Result<Vec<DisplayRow>> {
        let schema = &self.operator_schema().await?;
        needs_column(schema, "users", "email")?;
        let (column, param) = (schema.name("users", "email"), schema.param(1, "users", "email"));
        self.users(&format!("WHERE lower(u.{column}) = lower({param})"), Some(email)).await
    }

    /// The users with this name. Names are compared as the database compares them.
    pub(super) async fn users_with_username(&self, name: &str) -> Result<Vec<DisplayRow>> {
        let schema = &self.operator_schema().await?;
        needs_column(schema, "users", "username")?;
        let (column, param) = (schema.name("users", "username"), schema.param(1, "users", "username"));
        self.users(&format!("WHERE u.{column} = {param}"), Some(name)).await
    }

    /// The prefix of one of the user's keys, if there is one that a credential can have. An instance that has read a later
    /// entry of the log of changes for it has read the change of the user.
    ///
    /// # Errors
    /// [`ManagementError`] when the database fails.
    pub async fn prefix_of_user(&self, user: UserId) -> Result<Option<Prefix>> {
        let filter =
            KeyFilter { user: Some(user.0.to_string()), state: KeyState::Any, ..KeyFilter::default() };
        let page = PageRequest { limit: NonZeroUsize::new(1), ..PageRequest::default() };
        let keys = self.list_keys(&filter, &page).await?.keys;
        Ok(keys.first().and_then(|key| Prefix::parse(&key.text("key_prefix")).ok()))
    }

    /// Disables a user, and thereby every key of the user.
    ///
    /// # Errors
    /// [`ManagementError::Refused`] when there is no such user.
    pub async fn disable_user(&self, id_or_email: &str) -> Result<DisplayRow> {
        let user = self.find_user(id_or_email).await?;
        let schema = &self.operator_schema().await?;
        needs_column(schema, "users", "is_active")?;
        let values = vec![("is_active", Some("0".into())), ("updated_at", self.now())];
        self.change_by(Action::Disable, update(schema, "users", user_id(&user)?.0, values)).await?;
        self.find_user(&user.text("id")).await?.inactive()
    }

    async fn users(&self, filter: &str, param: Option<&str>) -> Result<Vec<DisplayRow>> {
        let schema = &self.operator_schema().await?;
        let sql = select_users(schema, &format!("{filter} ORDER BY u.{}", schema.name("users", "id")));
        let params: Vec<_> = param.map(|param| Some(param.to_owned())).into_iter().collect();
        let rows = self.query(Statement::new(sql, params)).await?;
        Ok(rows.into_iter().map(user_row).collect())
    }

    pub(super) async fn role(&self, schema: &Schema, role: &str) -> Result<ColumnValue> {
        if !schema.has_roles() {
            needs_column(schema, "users", "role")?;
            return Ok(("role", Some(role.to_owned())));
        }
        let roles = schema.relation("roles");
        let sql = format!("SELECT CAST(id AS text), CAST(name AS text) FROM {roles} ORDER BY id");
        let rows = self.query(Statement::new(sql, [])).await?;
        let named = rows.iter().find(|row| row.get(1).and_then(Option::as_deref) == Some(role));
        let Some(id) = named.and_then(|row| row[0].clone()) else {
            let names: Vec<_> = rows.iter().filter_map(|row| row.get(1)?.as_deref()).collect();
            return Err(ManagementError::Refused(format!(
                "--role {role}: the table roles has no such name; it has {}",
                names.join(", ")
            )));
        };
        Ok(("role_id", Some(id)))
    }
}

/// Selects what [`user_row`] reads.
pub(super) fn select_users(schema: &Schema, end: &str) -> String {
    let columns = schema.select("users", USERS.iter().map(|column| column.name));
    format!("SELECT {columns} FROM {} u{} {end}", schema.relation("users"), schema.roles())
}

/// A user as operators see it, with its version.
pub(super) fn user_row(row: Row) -> DisplayRow {
    DisplayRow::new(USERS.iter().copied(), row).with_version()
}

/// The email of a key's user, which is shown with the key's own columns.
pub(super) const EMAIL: Column = Column { name: "email", kind: ColumnKind::Text };

pub(super) fn user_id(user: &DisplayRow) -> Result<UserId> {
    let id = user.get("id").as_i64().map(UserId);
    id.ok_or_else(|| ManagementError::Refused("the user's id is no whole number".into()))
}
