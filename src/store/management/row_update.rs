//! Updates of keys and users.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Map;

use super::{
    Action, Change, ColumnValue, Database, DisplayRow, ManagementError, Patch, Resource, Result, RowVersion,
    Schema, Statement, columns::ColumnKind, holds_time, keys, needs_column, patch::NewValue, update, users,
};
use crate::{
    clock,
    store::{
        SqlValue,
        statement::{Rows, Step},
        statements::Statements,
    },
};

impl Database {
    /// Applies a patch to the key with this id or prefix, and returns once it is committed. Nothing is written if nothing
    /// changes. With a version, the row must still be of that version.
    ///
    /// # Errors
    /// [`ManagementError`] when there is no such key, the patch does not fit, or the version is another.
    pub async fn update_key(
        &self,
        id_or_prefix: &str,
        patch: &Patch,
        if_version: Option<RowVersion>,
    ) -> Result<Change> {
        let key = self.find_key(id_or_prefix).await?;
        self.update_row(Resource::Key, &key, patch, if_version).await
    }

    /// The same for the user with this id or email.
    ///
    /// # Errors
    /// As above.
    pub async fn update_user(
        &self,
        id_or_email: &str,
        patch: &Patch,
        if_version: Option<RowVersion>,
    ) -> Result<Change> {
        let user = self.find_user(id_or_email).await?;
        self.update_row(Resource::User, &user, patch, if_version).await
    }

    /// Lets the keys of a disabled user work again.
    ///
    /// # Errors
    /// As above.
    pub async fn enable_user(&self, id_or_email: &str) -> Result<DisplayRow> {
        let active = Map::from_iter([("is_active".to_owned(), true.into())]);
        let patch = Patch::new(Resource::User, active)?;
        Ok(self.update_user(id_or_email, &patch, None).await?.after)
    }

    /// What the patch would change. Nothing is written.
    ///
    /// # Errors
    /// As above.
    pub async fn preview_update(
        &self,
        resource: Resource,
        row: &str,
        patch: &Patch,
        if_version: Option<RowVersion>,
    ) -> Result<Change> {
        let before = match resource {
            Resource::Key => self.find_key(row).await?,
            Resource::User => self.find_user(row).await?,
        };
        let plan = self.plan_update(resource, &before, patch, if_version).await?;
        let changed = plan.changed(&before)?;
        let mut after = before.clone();
        for new in changed {
            after.replace(new.column.name, new.shown);
        }
        let after = after.with_version();
        Ok(Change { before, after })
    }

    async fn update_row(
        &self,
        resource: Resource,
        row: &DisplayRow,
        patch: &Patch,
        if_version: Option<RowVersion>,
    ) -> Result<Change> {
        let mut plan = self.plan_update(resource, row, patch, if_version).await?;
        let lock = plan.select(true);
        self.decide_change(Action::Update, lock, move |rows| plan.next(rows)).await
    }

    /// Reads what an update needs beyond the row itself.
    async fn plan_update(
        &self,
        resource: Resource,
        row: &DisplayRow,
        patch: &Patch,
        if_version: Option<RowVersion>,
    ) -> Result<UpdatePlan> {
        if patch.resource() != resource {
            return Err(ManagementError::Refused("the patch is for another kind of row".into()));
        }
        let schema = self.operator_schema().await?;
        let Some(id) = row.get("id").as_i64() else {
            return Err(ManagementError::Refused("its id is no whole number".into()));
        };
        let is_role_elsewhere = resource == Resource::User && schema.has_roles();
        for field in patch.fields() {
            if !(field == "role" && is_role_elsewhere) {
                needs_column(&schema, resource.table(), field)?;
            }
            if schema.is_generated(resource.table(), field) {
                return Err(ManagementError::Refused(format!(
                    "{field}: the database computes this column; change the columns that it is computed from"
                )));
            }
        }
        let mut roles = BTreeMap::new();
        if is_role_elsewhere && let Some(role) = patch.get("role") {
            let name = role.as_str().map(str::to_owned);
            let id = match &name {
                Some(name) => self.role(&schema, name).await?.1,
                None => None,
            };
            roles.insert(name, id);
        }
        if let Some(email) = patch.get("email").and_then(|email| email.as_str()) {
            self.refuse_taken_email(email, id).await?;
        }
        if let Some(name) = patch.get("username").and_then(|name| name.as_str()) {
            self.refuse_taken_username(name, id).await?;
        }
        let (patch, statements) = (patch.clone(), self.statements());
        let updated_at = ("updated_at", self.now());
        Ok(UpdatePlan {
            resource,
            id,
            patch,
            if_version,
            schema,
            statements,
            roles,
            updated_at,
            state: State::Locked,
        })
    }

    /// The column may lack a unique index, or have one that distinguishes case.
    async fn refuse_taken_email(&self, email: &str, id: i64) -> Result<()> {
        let others = self.users_with_email(email).await?;
        if others.iter().any(|user| user.get("id").as_i64() != Some(id)) {
            return Err(ManagementError::Refused(format!(
                "email: another user has {email}; see `keystile users list`"
            )));
        }
        Ok(())
    }

    async fn refuse_taken_username(&self, name: &str, id: i64) -> Result<()> {
        let others = self.users_with_username(name).await?;
        if others.iter().any(|user| user.get("id").as_i64() != Some(id)) {
            return Err(ManagementError::Refused(format!(
                "username: another user has {name}; see `keystile users list`"
            )));
        }
        Ok(())
    }
}

/// One update, decided in the transaction that makes it.
struct UpdatePlan {
    resource: Resource,
    id: i64,
    patch: Patch,
    if_version: Option<RowVersion>,
    schema: Arc<Schema>,
    statements: &'static dyn Statements,
    /// Ids of roles by name, where roles are rows.
    roles: BTreeMap<SqlValue, SqlValue>,
    updated_at: ColumnValue,
    state: State,
}

/// The statement whose rows come next.
enum State {
    /// The one that locks the row.
    Locked,
    /// The one that writes it.
    Written {
        before: DisplayRow,
        changed: Vec<NewValue>,
    },
    /// The one that reads it again.
    ReadBack {
        before: DisplayRow,
        changed: Vec<NewValue>,
    },
    Done,
}

impl UpdatePlan {
    fn next(&mut self, rows: Rows) -> Result<Step<Change>> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Locked => {
                let before = self.one(rows)?;
                let changed = self.changed(&before)?;
                if changed.is_empty() {
                    return Ok(Step::Commit(Change { after: before.clone(), before }));
                }
                let statement = self.write(&changed);
                self.state = State::Written { before, changed };
                Ok(Step::Run(statement))
            }
            State::Written { before, changed } => {
                self.state = State::ReadBack { before, changed };
                Ok(Step::Run(self.select(false)))
            }
            State::ReadBack { before, changed } => {
                let after = self.one(rows)?;
                // Row-level security or a trigger may have ignored the update without an error.
                let kept =
                    changed.iter().find(|new| after.get(new.column.name) == before.get(new.column.name));
                if let Some(new) = kept {
                    return Err(ManagementError::Refused(format!(
                        "{}: the database left the row as it is; row-level security, a trigger or the column's type \
                         keeps it so",
                        new.column.name
                    )));
                }
                Ok(Step::Commit(Change { before, after }))
            }
            State::Done => Err(ManagementError::Refused("the update is over".into())),
        }
    }

    /// The columns that the patch changes in this row, which must be of the expected version.
    fn changed(&self, before: &DisplayRow) -> Result<Vec<NewValue>> {
        let current = RowVersion::of(before);
        if self.if_version.is_some_and(|expected| expected != current) {
            return Err(ManagementError::VersionMismatch { noun: self.resource.noun(), current });
        }
        let changed = self.patch.apply(before, clock::wall())?;
        // A change that follows from another one may need a column as well.
        for new in &changed {
            if !(new.column.name == "role" && self.resource == Resource::User) {
                needs_column(&self.schema, self.resource.table(), new.column.name)?;
            }
        }
        Ok(changed)
    }

    fn select(&self, locks: bool) -> Statement {
        let (alias, table) = match self.resource {
            Resource::Key => ("k", "api_keys"),
            Resource::User => ("u", "users"),
        };
        let id = format!("{alias}.{} = {}", self.schema.name(table, "id"), self.schema.param(1, table, "id"));
        let lock = if locks { self.statements.lock_rows(alias) } else { String::new() };
        let end = format!("WHERE {id}{lock}");
        let sql = match self.resource {
            Resource::Key => keys::select_keys(&self.schema, "", &end),
            Resource::User => users::select_users(&self.schema, &end),
        };
        Statement::new(sql, [Some(self.id.to_string())])
    }

    /// The row, which may have been deleted since its id was read.
    fn one(&self, rows: Rows) -> Result<DisplayRow> {
        let count = rows.len();
        match (count, rows.into_iter().next(), self.resource) {
            (1, Some(row), Resource::Key) => Ok(keys::key_row(row)),
            (1, Some(row), Resource::User) => Ok(users::user_row(row)),
            _ => Err(ManagementError::Refused(format!(
                "{count} rows of {} have the id {}, instead of one",
                self.resource.table(),
                self.id
            ))),
        }
    }

    fn write(&self, changed: &[NewValue]) -> Statement {
        let table = self.resource.table();
        let mut values: Vec<ColumnValue> = changed.iter().map(|new| self.value(new)).collect();
        if holds_time(&self.schema, table, "updated_at") {
            values.push(self.updated_at.clone());
        }
        update(&self.schema, table, self.id, values)
    }

    fn value(&self, new: &NewValue) -> ColumnValue {
        if let Some(role) = self.roles.get(&new.written).filter(|_| new.column.name == "role") {
            return ("role_id", role.clone());
        }
        let is_time = matches!(new.column.kind, ColumnKind::Timestamp | ColumnKind::Expiry);
        let written = new.written.clone();
        let written = if is_time { written.map(|text| self.statements.timestamp(text)) } else { written };
        (new.column.name, written)
    }
}
