//! `key-auth` credentials of Kong, with their consumers and ACL groups.
//!
//! - decK and handwritten files nest credentials in consumers, and `kong config db_export` lists them apart.
//! - The Admin API answers in pages, which follow each other in the file.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::bail;
use serde_json::Value;
use time::Duration;

use super::{
    contents::{Contents, ReadOptions, parse_secret},
    documents::{self, Object, instant, is_set, objects, others, text, texts},
    losses::{Losses, shown, shown_field},
};
use crate::{
    record::rfc3339,
    store::{ExportedUser, ImportRow},
};

/// Entities by kind, from all notations.
#[derive(Default)]
struct Entities {
    consumers: Vec<Object>,
    /// Each with its consumer, where it is nested in one.
    keys: Vec<(Object, Option<usize>)>,
    groups: Vec<(Object, Option<usize>)>,
    /// Kinds whose last page says that there are more.
    incomplete: BTreeSet<&'static str>,
}

/// A consumer, and what its keys get from it.
#[derive(Default)]
struct Consumer {
    user: ExportedUser,
    tags: Vec<String>,
    scopes: Vec<String>,
}

/// The group of credentials that this is about.
const KEYS: &str = "keyauth_credentials";

/// Other credentials of consumers, by their names in files.
const OTHER_CREDENTIALS: [&str; 8] = [
    "basicauth_credentials",
    "basic_auth_credentials",
    "hmacauth_credentials",
    "jwt_secrets",
    "keyauth_enc_credentials",
    "mtls_auth_credentials",
    "oauth2_credentials",
    "oauth2_tokens",
];

/// A `ttl` of so many seconds is a time: `db_export` writes the expiry, everything else the time that is left.
const LEAST_EPOCH: f64 = 1e9;

/// Tags by which Keystile decides.
const RESERVED_TAG: &str = "keystile:";

/// Reads all keys of an export.
pub(super) fn read(text: &str, options: ReadOptions) -> anyhow::Result<Contents> {
    let mut contents = Contents::default();
    let mut entities = Entities::default();
    for document in documents::parse(text)? {
        match document {
            Value::Object(object) if object.get("data").is_some_and(Value::is_array) => {
                entities.add_page(&object);
            }
            Value::Object(object) => entities.add_file(&object, &mut contents.losses),
            Value::Array(list) => list.iter().filter_map(Value::as_object).for_each(|one| entities.add(one)),
            _ => bail!("it is no export of Kong: a document is neither an object nor a list"),
        }
    }
    if let Some(kind) = entities.incomplete.first() {
        bail!("the last page of {kind} says that there are more; export all pages, such as with ?size=1000");
    }
    if entities.keys.is_empty() {
        bail!("it has no {KEYS}, nor an answer of /key-auths");
    }
    entities.into_rows(options, &mut contents);
    Ok(contents)
}

impl Entities {
    /// One answer of the Admin API.
    fn add_page(&mut self, page: &Object) {
        let mut kind = "a list";
        for entity in objects(page, "data") {
            kind = Self::kind(entity);
            self.add(entity);
        }
        if page.get("next").is_some_and(is_set) {
            self.incomplete.insert(kind);
        } else {
            self.incomplete.remove(kind);
        }
    }

    /// One entity of a list without a name.
    fn add(&mut self, entity: &Object) {
        match Self::kind(entity) {
            KEYS => self.keys.push((entity.clone(), None)),
            "acls" => self.groups.push((entity.clone(), None)),
            _ => self.add_consumer(entity),
        }
    }

    fn kind(entity: &Object) -> &'static str {
        let has = |name| entity.contains_key(name);
        match (has("key"), has("group")) {
            (true, _) => KEYS,
            (_, true) => "acls",
            _ => "consumers",
        }
    }

    /// A declarative file.
    fn add_file(&mut self, file: &Object, losses: &mut Losses) {
        objects(file, "consumers").for_each(|consumer| self.add_consumer(consumer));
        self.keys.extend(objects(file, KEYS).map(|key| (key.clone(), None)));
        self.groups.extend(objects(file, "acls").map(|group| (group.clone(), None)));
        for credentials in OTHER_CREDENTIALS {
            objects(file, credentials).for_each(|_| losses.note(credentials));
        }
        for plugin in objects(file, "consumer_groups").flat_map(|group| objects(group, "plugins")) {
            losses.restriction(format!("plugin {} of a consumer group", plugin_name(plugin)));
        }
        for plugin in objects(file, "plugins") {
            let name = plugin_name(plugin);
            if plugin.get("consumer").is_some_and(is_set) {
                losses.restriction(format!("plugin {name} of a consumer"));
            } else if plugin.get("consumer_group").is_some_and(is_set) {
                losses.restriction(format!("plugin {name} of a consumer group"));
            } else if name != "key-auth" {
                losses.note(format!("plugin {name}"));
            }
        }
    }

    fn add_consumer(&mut self, consumer: &Object) {
        let at = Some(self.consumers.len());
        self.keys.extend(objects(consumer, KEYS).map(|key| (key.clone(), at)));
        self.groups.extend(objects(consumer, "acls").map(|group| (group.clone(), at)));
        self.consumers.push(consumer.clone());
    }

    fn into_rows(self, options: ReadOptions, contents: &mut Contents) {
        let (mut consumers, by_name) = self.consumers(&mut contents.losses);
        let owner = |entity: &Object, nested: Option<usize>| {
            nested.or_else(|| by_name.get(&reference(entity)?).copied())
        };
        for (group, nested) in &self.groups {
            let consumer = owner(group, *nested).and_then(|at| consumers.get_mut(at));
            match (consumer, group.get("group").and_then(Value::as_str)) {
                (Some(consumer), Some(name)) if is_word(name) => consumer.scopes.push(name.to_owned()),
                _ => contents.losses.restriction("ACL group that cannot be a scope, or has no consumer here"),
            }
        }
        let mut numbers = BTreeMap::new();
        for (at, (key, nested)) in self.keys.iter().enumerate() {
            let (line, owner) = (at as u64 + 1, owner(key, *nested));
            let consumer = owner.and_then(|at| consumers.get(at));
            let number = numbers.entry(owner).and_modify(|number| *number += 1).or_insert(1);
            let place = match consumer
                .and_then(|consumer| consumer.user.name.as_ref().or(consumer.user.id.as_ref()))
            {
                Some(name) => format!("key {number} of consumer {}", shown(name)),
                None => format!("key {number} without a consumer"),
            };
            contents.places.insert(line, place);
            let row = row(line, key, consumer, options, &mut contents.losses);
            contents.add(row, line);
        }
    }

    /// The consumers in their order, and where each is by id and name.
    fn consumers(&self, losses: &mut Losses) -> (Vec<Consumer>, HashMap<String, usize>) {
        let (mut consumers, mut by_name) = (Vec::new(), HashMap::new());
        for (at, consumer) in self.consumers.iter().enumerate() {
            let string = |name: &str| consumer.get(name).and_then(Value::as_str).map(str::to_owned);
            for name in ["id", "username"].into_iter().filter_map(string) {
                by_name.insert(name, at);
            }
            objects(consumer, "plugins").for_each(|plugin| {
                losses.restriction(format!("plugin {} of a consumer", plugin_name(plugin)))
            });
            objects(consumer, "groups").for_each(|_| losses.restriction("consumer group"));
            for credentials in OTHER_CREDENTIALS {
                objects(consumer, credentials).for_each(|_| losses.note(credentials));
            }
            let known =
                ["id", "username", "custom_id", "tags", "created_at", "updated_at", "username_lower", "type"];
            let lists = [KEYS, "acls", "groups", "plugins"];
            for field in others(consumer, &[&known[..], &lists, &OTHER_CREDENTIALS].concat()) {
                losses.restriction(format!("consumers.{}", shown_field(field)));
            }
            consumers.push(Consumer {
                user: ExportedUser { id: string("custom_id"), name: string("username") },
                tags: texts(consumer, "tags").unwrap_or_default(),
                scopes: Vec::new(),
            });
        }
        (consumers, by_name)
    }
}

fn row(
    line: u64,
    key: &Object,
    consumer: Option<&Consumer>,
    options: ReadOptions,
    losses: &mut Losses,
) -> Result<ImportRow, String> {
    let secret = text(key, "key")?.ok_or("it has no key")?;
    if secret.starts_with("{vault://") {
        return Err("the key is a reference to a vault; export it with the key itself".into());
    }
    if secret.starts_with("${{") {
        return Err("the key is a variable of decK; export it with the key itself".into());
    }
    let secret = parse_secret(secret, options)?;
    let mut fields = Vec::new();
    let none = Consumer::default();
    let consumer_or_none = consumer.unwrap_or(&none);
    let ExportedUser { id, name } = &consumer_or_none.user;
    fields.extend(name.as_ref().or(id.as_ref()).map(|name| ("name", name.clone())));
    let tags = texts(key, "tags")?.into_iter().chain(consumer_or_none.tags.iter().cloned());
    let (reserved, tags): (Vec<_>, Vec<_>) = tags.partition(|tag| tag.starts_with(RESERVED_TAG));
    reserved.iter().for_each(|_| losses.note(format!("tag that begins with {RESERVED_TAG}")));
    if !tags.is_empty() {
        fields.push(("tags", Value::from(tags).to_string()));
    }
    if !consumer_or_none.scopes.is_empty() {
        fields.push(("scopes", Value::from(consumer_or_none.scopes.clone()).to_string()));
    }
    fields.extend(key.get("created_at").and_then(|at| instant(at, 1.0)).map(|at| ("created_at", at)));
    if let Some(ttl) = key.get("ttl").filter(|ttl| !ttl.is_null() && ttl.as_f64() != Some(0.0)) {
        fields.push(("expires_at", expiry(ttl, options).ok_or("ttl is no number of seconds")?));
    }
    for field in others(key, &["id", "key", "tags", "created_at", "updated_at", "ttl", "consumer"]) {
        losses.restriction(format!("{KEYS}.{}", shown_field(field)));
    }
    let owner = consumer.map(|consumer| consumer.user.clone());
    let fields = fields.into_iter().map(|(name, text)| (name.to_owned(), text));
    ImportRow::with_secret(line, secret, owner, fields)
}

fn expiry(ttl: &Value, options: ReadOptions) -> Option<String> {
    let seconds = ttl.as_f64()?;
    if seconds >= LEAST_EPOCH {
        return instant(ttl, 1.0);
    }
    let end = options.written_at.checked_add(Duration::checked_seconds_f64(seconds)?)?;
    Some(rfc3339(end))
}

/// The id or name of the consumer that an entity refers to.
fn reference(entity: &Object) -> Option<String> {
    let consumer = entity.get("consumer")?;
    let text = |name: &str| consumer.get(name).and_then(Value::as_str);
    let name = consumer.as_str().or_else(|| text("id")).or_else(|| text("username"));
    name.map(str::to_owned)
}

fn plugin_name(plugin: &Object) -> String {
    shown(plugin.get("name").and_then(Value::as_str).unwrap_or("without a name"))
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace)
}

#[cfg(test)]
mod tests;
