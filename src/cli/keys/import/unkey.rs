//! Keys of Unkey.
//!
//! Its API returns no hashes. What can be imported is
//! - an answer of `apis.listKeys` with `decrypt`, for keys that are stored recoverably: it has `plaintext`;
//! - rows of its table `keys`, for operators of their own Unkey: they have `hash`, SHA-256 of the whole key, and `start`.

use anyhow::bail;
use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use serde_json::Value;

use super::{
    contents::{Contents, ReadOptions, parse_secret},
    documents::{self, Object, instant, is_set, objects, others, text, texts},
    losses::{Losses, shown, shown_field},
};
use crate::{
    credential::Prefix,
    record::Sha256Hash,
    store::{ExportedUser, ImportRow},
};

/// Fields that are carried over, or say nothing about what the key may do.
const KNOWN: [&str; 41] = [
    "apiId",
    "createdAt",
    "created_at",
    "created_at_m",
    "credits",
    "deletedAt",
    "deleted_at",
    "deleted_at_m",
    "enabled",
    "environment",
    "expires",
    "externalId",
    "external_id",
    "hash",
    "id",
    "identity",
    "identityId",
    "identity_id",
    "keyAuthId",
    "keyId",
    "key_auth_id",
    "keyring",
    "lastUsedAt",
    "last_refill_at",
    "last_used_at",
    "meta",
    "name",
    "ownerId",
    "owner_id",
    "permissions",
    "pk",
    "plaintext",
    "ratelimits",
    "refill_amount",
    "refill_day",
    "roles",
    "start",
    "updatedAt",
    "updated_at_m",
    "workspaceId",
    "workspace_id",
];

/// Columns that limit the number of requests altogether.
const REMAINING: &str = "remaining_requests";

/// Windows of limits that Keystile has, by their duration in milliseconds.
const WINDOWS: [(u64, &str); 3] = [
    (60_000, "rate_limit_per_minute"),
    (3_600_000, "rate_limit_per_hour"),
    (86_400_000, "rate_limit_per_day"),
];

/// Reads all keys of an export.
pub(super) fn read(text: &str, options: ReadOptions) -> anyhow::Result<Contents> {
    let mut contents = Contents::default();
    let mut has_more = false;
    let mut keys = Vec::new();
    for document in documents::json(text)? {
        match document {
            Value::Object(page) if page.get("data").is_some_and(Value::is_array) => {
                has_more =
                    page.get("pagination").and_then(|page| page.get("hasMore")) == Some(&Value::Bool(true));
                keys.extend(objects(&page, "data").cloned());
            }
            Value::Object(key) => keys.push(key),
            Value::Array(list) => keys.extend(list.into_iter().filter_map(|key| match key {
                Value::Object(key) => Some(key),
                _ => None,
            })),
            _ => bail!("it is no export of Unkey: a value is neither an object nor a list"),
        }
    }
    if has_more {
        bail!("the last page says that there are more; export all pages, with the cursor of each");
    }
    if keys.is_empty() {
        bail!("it has no keys");
    }
    for (at, key) in keys.iter().enumerate() {
        let line = at as u64 + 1;
        let id = ["keyId", "id"].into_iter().find_map(|name| key.get(name)?.as_str());
        contents
            .places
            .insert(line, id.map_or_else(|| format!("key {line}"), |id| format!("key {}", shown(id))));
        if ["deletedAt", "deleted_at", "deleted_at_m"].iter().any(|name| key.get(*name).is_some_and(is_set)) {
            contents.losses.note("deleted key");
            continue;
        }
        let row = row(line, key, options, &mut contents.losses);
        contents.add(row, line);
    }
    Ok(contents)
}

fn row(line: u64, key: &Object, options: ReadOptions, losses: &mut Losses) -> Result<ImportRow, String> {
    let mut fields: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| fields.push((name.to_owned(), value));
    if let Some(name) = text(key, "name")?.filter(|name| !name.is_empty()) {
        set("name", name.to_owned());
    }
    if let Some(enabled) = flag(key, "enabled")? {
        set("is_active", enabled.to_string());
    }
    let created = ["createdAt", "created_at_m"].into_iter().find_map(|name| key.get(name));
    if let Some(created) = created.and_then(|at| instant(at, 1e3)) {
        set("created_at", created);
    }
    match key.get("expires") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => set("expires_at", text.clone()),
        Some(number) => set("expires_at", instant(number, 1e3).ok_or("expires is no time")?),
    }
    let scopes = texts(key, "permissions")?;
    if scopes.iter().any(|scope| scope.is_empty() || scope.contains(char::is_whitespace)) {
        return Err("permissions has an entry that is no single word".into());
    }
    if !scopes.is_empty() {
        set("scopes", Value::from(scopes).to_string());
    }
    for (column, limit) in limits(key, losses) {
        set(column, limit.to_string());
    }
    count_losses(key, losses);
    let owner = owner(key)?;
    match text(key, "plaintext")? {
        Some(secret) => ImportRow::with_secret(line, parse_secret(secret, options)?, owner, fields),
        None => ImportRow::with_hash(line, hash(key)?, owner, fields),
    }
}

/// The beginning of the key, and its hash.
fn hash(key: &Object) -> Result<(Prefix, Sha256Hash), String> {
    let Some(hash) = text(key, "hash")? else {
        return Err("it has neither plaintext nor hash: Unkey's API returns no hashes; read its database, or decrypt \
                    recoverable keys"
            .into());
    };
    let encodings = [HEXLOWER_PERMISSIVE, BASE64, BASE64_NOPAD, BASE64URL_NOPAD];
    let bytes = encodings
        .iter()
        .find_map(|encoding| <[u8; 32]>::try_from(encoding.decode(hash.as_bytes()).ok()?).ok());
    let hash = bytes.map(Sha256Hash::of_digest).ok_or("hash is no SHA-256 in base64 or hexadecimal")?;
    let start = text(key, "start")?.unwrap_or_default();
    let prefix = start.get(..Prefix::LEN).and_then(|prefix| Prefix::parse(prefix).ok()).ok_or_else(|| {
        format!(
            "start has fewer than {} characters that a key can have, so the key cannot be found by them: give its \
             owner a new key",
            Prefix::LEN
        )
    })?;
    Ok((prefix, hash))
}

fn owner(key: &Object) -> Result<Option<ExportedUser>, String> {
    for name in ["externalId", "external_id", "ownerId", "owner_id"] {
        if let Some(id) = text(key, name)? {
            return Ok(Some(ExportedUser { id: Some(id.to_owned()), name: None }));
        }
    }
    let id = match key.get("identity") {
        Some(Value::Object(identity)) => text(identity, "externalId")?.map(str::to_owned),
        _ => None,
    };
    Ok(id.map(|id| ExportedUser { id: Some(id), name: None }))
}

/// The limits that Keystile has too. The lowest of each window counts.
fn limits(key: &Object, losses: &mut Losses) -> Vec<(&'static str, u64)> {
    let mut limits: Vec<(&'static str, u64)> = Vec::new();
    for limit in objects(key, "ratelimits") {
        let applies = limit.get("autoApply").or_else(|| limit.get("auto_apply"));
        let applies =
            applies.is_some_and(|applies| applies == &Value::Bool(true) || applies.as_u64() == Some(1));
        let number = |name: &str| limit.get(name).and_then(Value::as_u64);
        let window = WINDOWS.iter().find(|(millis, _)| number("duration") == Some(*millis));
        match (applies, window, number("limit").filter(|limit| i32::try_from(*limit).is_ok())) {
            (true, Some((_, column)), Some(count)) => {
                match limits.iter_mut().find(|(name, _)| name == column) {
                    Some((_, lowest)) => *lowest = count.min(*lowest),
                    None => limits.push((column, count)),
                }
            }
            (false, ..) => losses.restriction("ratelimit that is applied on request"),
            _ => losses.restriction("ratelimit of a window other than a minute, an hour or a day"),
        }
    }
    limits
}

fn count_losses(key: &Object, losses: &mut Losses) {
    if key.contains_key("hash") && !key.contains_key("ratelimits") {
        losses.restriction("ratelimits, which the file does not tell of");
    }
    let is_limited = |object: &Object| object.get("credits").is_some_and(is_set);
    if is_limited(key) || key.get(REMAINING).is_some_and(is_set) {
        losses.restriction("credits: the number of requests that remain");
    }
    if let Some(identity) = key.get("identity").and_then(Value::as_object) {
        objects(identity, "ratelimits").for_each(|_| losses.restriction("ratelimit of an identity"));
        if is_limited(identity) {
            losses.restriction("credits of an identity");
        }
        for field in others(identity, &["id", "externalId", "meta", "ratelimits", "credits"]) {
            losses.restriction(format!("identity.{}", shown_field(field)));
        }
    }
    for field in ["meta", "roles"] {
        if key.get(field).is_some_and(is_set) {
            losses.note(field);
        }
    }
    for field in others(key, &KNOWN).filter(|field| *field != REMAINING) {
        losses.restriction(shown_field(field));
    }
}

/// A flag, which MySQL writes as a number.
fn flag(key: &Object, name: &str) -> Result<Option<bool>, String> {
    match key.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(Value::Number(number)) if matches!(number.as_u64(), Some(0 | 1)) => {
            Ok(Some(number.as_u64() == Some(1)))
        }
        Some(_) => Err(format!("{name} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests;
