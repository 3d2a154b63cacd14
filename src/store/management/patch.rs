//! Changes of the columns of a key or user, as a JSON merge patch (RFC 7386).

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{
    columns::{self, Column, ColumnKind},
    display_row::{DisplayRow, show},
    strict_json,
};
use crate::{
    record::Expiry,
    store::{SqlValue, decode::timestamp},
};

/// A change of some columns of a key or a user: new values, `null` to remove a value, and entries to add to lists and
/// to remove from them. Names and types are checked; what depends on the row is checked when it is applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    resource: Resource,
    merge: Map<String, Value>,
    lists: BTreeMap<&'static str, ListEdit>,
}

/// What a patch changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// A row of `api_keys`.
    Key,
    /// A row of `users`.
    User,
}

/// Entries to add to a list and to remove from it.
#[derive(Debug, Clone, Default, PartialEq)]
struct ListEdit {
    added: Vec<String>,
    removed: Vec<String>,
}

/// Why a patch cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", .field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default())]
pub struct PatchError {
    /// The field that is wrong. None when it is the whole document.
    pub field: Option<String>,
    /// What is wrong with it, and the fix. It repeats no value.
    pub problem: String,
}

/// A column that a patch changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NewValue {
    pub(super) column: Column,
    /// As it is written.
    pub(super) written: SqlValue,
    /// As it is shown.
    pub(super) shown: Value,
}

impl Resource {
    /// Its table.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Key => "api_keys",
            Self::User => "users",
        }
    }

    fn columns(self) -> &'static [Column] {
        match self {
            Self::Key => columns::API_KEYS,
            Self::User => columns::USERS,
        }
    }

    /// The names of the columns that a patch may change.
    pub fn fields(self) -> impl Iterator<Item = &'static str> {
        let fields = self.columns().iter().map(|column| column.name);
        fields.filter(move |name| columns::read_only(self.table(), name).is_none())
    }

    /// The column of this name, if a patch may change it.
    fn field(self, name: &str) -> Result<Column, PatchError> {
        if let Some(why) = columns::read_only(self.table(), name) {
            return Err(PatchError::of(name, why));
        }
        let column = self.columns().iter().find(|column| column.name == name);
        column.copied().ok_or_else(|| {
            let similar = self
                .fields()
                .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
            let similar = similar.filter(|field| strsim::jaro_winkler(field, name) > 0.8);
            let hint = similar.map_or_else(
                || format!("the fields are {}", self.fields().collect::<Vec<_>>().join(", ")),
                |field| format!("there is {field}"),
            );
            PatchError::of(name, format!("is no field of a {}; {hint}", self.noun()))
        })
    }

    /// What one row is called.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::User => "user",
        }
    }
}

impl PatchError {
    fn of(field: &str, problem: impl Into<String>) -> Self {
        Self { field: Some(field.to_owned()), problem: problem.into() }
    }
}

impl Patch {
    /// A patch from the members of a JSON object. `null` removes a value.
    ///
    /// # Errors
    /// [`PatchError`] that names a field that there is not, that cannot be changed, or whose value is wrong.
    pub fn new(resource: Resource, merge: Map<String, Value>) -> Result<Self, PatchError> {
        for (name, value) in &merge {
            let column = resource.field(name)?;
            // An object is merged into what is there, so it is checked with the row.
            if !(column.kind == ColumnKind::Json && value.is_object()) {
                new_value(column, value.clone())?;
            }
        }
        Ok(Self { resource, merge, lists: BTreeMap::new() })
    }

    /// A patch from the text of a JSON object.
    ///
    /// # Errors
    /// As above, and for a text that is no JSON object, or has a member twice.
    pub fn parse(resource: Resource, text: &[u8]) -> Result<Self, PatchError> {
        let object = strict_json::object(text).map_err(|problem| PatchError { field: None, problem })?;
        Self::new(resource, object)
    }

    /// Adds entries to a list, and removes others from it, after the rest of the patch is applied.
    ///
    /// # Errors
    /// [`PatchError`] when it is no list, or has an invalid entry.
    pub fn edit_list(
        mut self,
        name: &str,
        added: Vec<String>,
        removed: Vec<String>,
    ) -> Result<Self, PatchError> {
        let column = self.resource.field(name)?;
        if !column.kind.is_list() {
            return Err(PatchError::of(name, "is no list"));
        }
        if let Some(both) = added.iter().find(|entry| removed.contains(entry)) {
            return Err(PatchError::of(name, format!("has {both:?} both to add and to remove")));
        }
        new_value(column, added.clone().into())?;
        let edit = self.lists.entry(column.name).or_default();
        edit.added.extend(added);
        edit.removed.extend(removed);
        Ok(self)
    }

    /// The fields that it sets.
    pub fn into_fields(self) -> Map<String, Value> {
        self.merge
    }

    /// Whether it changes nothing, whatever the row is.
    pub fn is_empty(&self) -> bool {
        self.merge.is_empty() && self.lists.is_empty()
    }

    /// What it changes.
    pub fn resource(&self) -> Resource {
        self.resource
    }

    /// The new value of this field, if the patch sets it.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.merge.get(field)
    }

    /// The names of the fields that it sets or edits.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        let merge = self.merge.keys().map(String::as_str);
        merge.chain(self.lists.keys().copied().filter(|name| !self.merge.contains_key(*name)))
    }

    /// The columns that differ from the row once the patch is applied.
    ///
    /// A budget limit that is set on an unlimited key ends `is_unlimited`, unless the patch sets that too: otherwise the
    /// limit would bind nothing.
    pub(super) fn apply(&self, row: &DisplayRow, now: OffsetDateTime) -> Result<Vec<NewValue>, PatchError> {
        let current = self.fields().map(|name| (name.to_owned(), row.get(name).clone()));
        let mut merged = Value::Object(current.collect());
        json_patch::merge(&mut merged, &Value::Object(self.merge.clone()));
        let sets_limit = self.merge.get("budget_limit_cents").is_some_and(|limit| !limit.is_null());
        if sets_limit && !self.merge.contains_key("is_unlimited") && *row.get("is_unlimited") == true {
            merged["is_unlimited"] = false.into();
        }
        for (name, edit) in &self.lists {
            let restricts = name.starts_with("allowed_");
            let edited = edit.apply(&merged[name], restricts);
            merged[name] = edited.map_err(|problem| PatchError::of(name, problem))?;
        }
        let mut changed = Vec::new();
        for column in self.resource.columns() {
            let touched = self.fields().any(|name| name == column.name) || merged.get(column.name).is_some();
            let wanted = merged.get(column.name).cloned().unwrap_or(Value::Null);
            if !touched || wanted == *row.get(column.name) {
                continue;
            }
            let new = new_value(*column, wanted)?;
            if new.shown != *row.get(column.name) {
                refuse(*column, &new, row, now)?;
                changed.push(new);
            }
        }
        Ok(changed)
    }
}

impl ListEdit {
    /// An empty list is no restriction, as NULL is. No edit restricts a key that was not restricted, or ends a
    /// restriction.
    fn apply(&self, current: &Value, restricts: bool) -> Result<Value, &'static str> {
        let mut entries = match current {
            Value::Null => Vec::new(),
            Value::Array(entries) => entries.clone(),
            _ => return Err("cannot be read as a list; set the whole list"),
        };
        if restricts && entries.is_empty() {
            return Err("is not restricted, so there is no list to edit; set the whole list");
        }
        // An id may be stored as a number.
        let is = |entry: &Value, text: &str| match entry {
            Value::String(other) => other == text,
            Value::Number(id) => id.to_string() == text,
            _ => false,
        };
        entries.retain(|entry| !self.removed.iter().any(|removed| is(entry, removed)));
        for added in &self.added {
            if !entries.iter().any(|entry| is(entry, added)) {
                entries.push(added.clone().into());
            }
        }
        if restricts && entries.is_empty() {
            return Err("would be empty, which allows everything; clear it if you mean that");
        }
        Ok(Value::Array(entries))
    }
}

/// What a value is once it is stored. Fails for a value of the wrong type or form.
fn new_value(column: Column, value: Value) -> Result<NewValue, PatchError> {
    let error = |problem: String| PatchError::of(column.name, problem);
    let text = match (column.kind, value) {
        (kind, Value::Null) if kind.needs_value(column.name) => {
            return Err(error("cannot be null".into()));
        }
        (_, Value::Null) => return Ok(NewValue { column, written: None, shown: Value::Null }),
        (ColumnKind::Text, Value::String(text)) if text.is_empty() => {
            return Err(error("is empty; null removes it".into()));
        }
        (ColumnKind::Expiry, Value::String(text)) if text.eq_ignore_ascii_case("never") => {
            return Ok(NewValue { column, written: None, shown: Value::Null });
        }
        (ColumnKind::Text | ColumnKind::Timestamp | ColumnKind::Expiry, Value::String(text)) => text,
        (ColumnKind::Boolean, Value::Bool(flag)) => flag.to_string(),
        (ColumnKind::Integer | ColumnKind::Count | ColumnKind::Cents | ColumnKind::Number, number)
            if number.is_number() =>
        {
            number.to_string()
        }
        (ColumnKind::Json, json) => json.to_string(),
        (kind, list) if kind.is_list() && list.is_array() => list.to_string(),
        (kind, _) => return Err(error(format!("is not {}", kind.expectation()))),
    };
    let mut written = column.kind.normalize(&text).map_err(|expected| error(format!("is not {expected}")))?;
    if column.kind == ColumnKind::Names {
        // Ids stay numbers where they are numbers.
        written = Some(text);
    }
    Ok(NewValue { column, shown: show(column.kind, written.clone()), written })
}

/// Refuses new values that the row, or the time, does not allow.
fn refuse(column: Column, new: &NewValue, row: &DisplayRow, now: OffsetDateTime) -> Result<(), PatchError> {
    let error = |problem: &str| Err(PatchError::of(column.name, problem));
    let expiry = new.written.as_deref().filter(|_| column.kind == ColumnKind::Expiry);
    match expiry.map(timestamp::expiry) {
        Some(Ok(Expiry::At(end))) if end <= now => {
            return error("is in the past; to end the key now, revoke or disable it");
        }
        Some(Ok(Expiry::Always)) => return error("is in the past; to end the key now, revoke or disable it"),
        Some(Ok(Expiry::Never)) => return error("is too far away; null means never"),
        _ => {}
    }
    if column.name == "is_active" && new.shown == true && !row.get("deleted_at").is_null() {
        return error("stays false: the key is revoked for good (deleted_at is set); create a new key");
    }
    Ok(())
}
