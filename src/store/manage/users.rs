//! Users: create, list, disable.

use super::{
    Catalog, Column, Database, Kind, Listed, ManageError, Result, Statement, USERS, UserId, Value, id,
    insert, needs_column, update,
};

/// A user to create.
#[derive(Debug, Clone, Default)]
pub struct NewUser {
    /// Unique.
    pub email: String,
    /// Unique.
    pub username: String,
    /// Any text, or a name in `roles` where there is such a table.
    pub role: Option<String>,
    /// Told to upstreams.
    pub superuser: bool,
}

impl Database {
    /// Creates a user, who can do nothing but own keys: the password is one that no hash matches.
    ///
    /// # Errors
    /// [`ManageError`] when there is one with this email or name, or the role is unknown.
    pub async fn create_user(&self, new: &NewUser) -> Result<Listed> {
        let catalog = &self.tables().await?;
        let mut values: Vec<Value> = vec![
            ("email", Some(new.email.clone())),
            ("username", Some(new.username.clone())),
            ("hashed_password", Some("!".into())),
            ("is_active", Some("1".into())),
            ("is_superuser", Some(if new.superuser { "1" } else { "0" }.into())),
            ("account_locked", Some("0".into())),
            ("created_at", self.now()),
            ("updated_at", self.now()),
        ];
        values.retain(|(column, _)| catalog.has("users", column));
        for column in ["email", "username"] {
            needs_column(catalog, "users", column)?;
        }
        if new.superuser {
            needs_column(catalog, "users", "is_superuser")?;
        }
        if let Some(role) = &new.role {
            values.push(self.role(catalog, role).await?);
        }
        let rows = self.query(insert(catalog, "users", values, &[&["email"], &["username"]])).await?;
        let Some(id) = id(&rows) else {
            return Err(ManageError::Refused(format!(
                "there is a user with --email {} or --username {} already; see `keystile users list`",
                new.email, new.username
            )));
        };
        self.find_user(&id.to_string()).await
    }

    /// All users, by id.
    ///
    /// # Errors
    /// [`ManageError`] when the database does not answer.
    pub async fn list_users(&self) -> Result<Vec<Listed>> {
        self.users("", None).await
    }

    /// The user with this id or email.
    ///
    /// # Errors
    /// [`ManageError::Refused`] when there is none, or more than one.
    pub async fn find_user(&self, id_or_email: &str) -> Result<Listed> {
        let catalog = &self.tables().await?;
        let by = match id_or_email.parse::<i64>() {
            Ok(_) => format!("WHERE u.id = {}", catalog.param(1, "users", "id")),
            Err(_) => {
                needs_column(catalog, "users", "email")?;
                format!("WHERE lower(u.email) = lower({})", catalog.param(1, "users", "email"))
            }
        };
        let mut users = self.users(&by, Some(id_or_email)).await?;
        match users.len() {
            1 => Ok(users.remove(0)),
            0 => Err(ManageError::Refused(format!(
                "no user has the id or email {id_or_email}; see `keystile users list`"
            ))),
            _ => Err(ManageError::Refused(format!(
                "several users have the email {id_or_email}: give the id of one, which is {}",
                users.iter().map(|user| user.text("id")).collect::<Vec<_>>().join(" or ")
            ))),
        }
    }

    /// Disables a user and thereby every key of theirs.
    ///
    /// # Errors
    /// [`ManageError::Refused`] when there is no such user.
    pub async fn disable_user(&self, id_or_email: &str) -> Result<Listed> {
        let user = self.find_user(id_or_email).await?;
        let catalog = &self.tables().await?;
        needs_column(catalog, "users", "is_active")?;
        let values = vec![("is_active", Some("0".into())), ("updated_at", self.now())];
        self.query(update(catalog, "users", user_id(&user)?.0, values)).await?;
        self.find_user(&user.text("id")).await?.inactive()
    }

    async fn users(&self, filter: &str, param: Option<&str>) -> Result<Vec<Listed>> {
        let catalog = &self.tables().await?;
        let columns = catalog.select("users", USERS);
        let sql = format!("SELECT {columns} FROM users u{} {filter} ORDER BY u.id", catalog.roles());
        let params: Vec<_> = param.map(|param| Some(param.to_owned())).into_iter().collect();
        let rows = self.query(Statement::new(sql, params)).await?;
        Ok(rows.into_iter().map(|cells| Listed::new(USERS.iter().copied(), cells)).collect())
    }

    async fn role(&self, catalog: &Catalog, role: &str) -> Result<Value> {
        if !catalog.has_roles() {
            needs_column(catalog, "users", "role")?;
            return Ok(("role", Some(role.to_owned())));
        }
        let sql = "SELECT CAST(id AS text), CAST(name AS text) FROM roles ORDER BY id";
        let rows = self.query(Statement::new(sql, [])).await?;
        let named = rows.iter().find(|cells| cells.get(1).and_then(Option::as_deref) == Some(role));
        let Some(id) = named.and_then(|cells| cells[0].clone()) else {
            let names: Vec<_> = rows.iter().filter_map(|cells| cells.get(1)?.as_deref()).collect();
            return Err(ManageError::Refused(format!(
                "--role {role}: the table roles has no such name; it has {}",
                names.join(", ")
            )));
        };
        Ok(("role_id", Some(id)))
    }
}

/// The email of a key's user, beside the key's own columns.
pub(super) const EMAIL: Column = Column { name: "email", kind: Kind::Text };

pub(super) fn user_id(user: &Listed) -> Result<UserId> {
    let id = user.get("id").as_i64().map(UserId);
    id.ok_or_else(|| ManageError::Refused("the user's id is no whole number".into()))
}
