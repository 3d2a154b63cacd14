//! Random patches leave the same row in both databases, and the row that a model has.

use keystile::store::{ManagementError, Patch, Resource};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};

use super::places;

/// Fields and the values that they may get.
fn values(field: &str) -> Vec<Value> {
    match field {
        "name" | "description" | "budget_type" => {
            vec![json!("a"), json!("b \u{e9}\n"), json!("'\"\\"), Value::Null]
        }
        "expires_at" => vec![json!("2090-01-01T00:00:00Z"), json!("2091-06-01T12:00:00.25Z"), Value::Null],
        "is_active" => vec![json!(true), json!(false)],
        "is_unlimited" => vec![json!(true), json!(false), Value::Null],
        "rate_limit_per_minute" | "rate_limit_per_day" => vec![json!(0), json!(60), Value::Null],
        "budget_limit_cents" => vec![json!(0), json!(500), Value::Null],
        "permissions" => vec![
            json!({"a": 1}),
            json!({"a": {"b": [1, null]}, "c": null}),
            json!({"a": {"b": null, "d": "x"}}),
            json!([1]),
            json!("text"),
            Value::Null,
        ],
        "allowed_chatbots" => vec![json!([7, "a"]), json!(["7"]), json!([]), Value::Null],
        "allowed_models" => vec![json!(["m"]), json!(["m", "gpt-4*"]), json!([]), Value::Null],
        "allowed_ips" => vec![json!(["10.0.0.0/8"]), json!(["::1", "10.0.0.1"]), Value::Null],
        _ => vec![json!(["a"]), json!(["a", "b", "\u{1f600}"]), json!([]), Value::Null],
    }
}

const FIELDS: [&str; 15] = [
    "name",
    "description",
    "budget_type",
    "expires_at",
    "is_active",
    "is_unlimited",
    "rate_limit_per_minute",
    "rate_limit_per_day",
    "budget_limit_cents",
    "permissions",
    "allowed_chatbots",
    "allowed_models",
    "allowed_ips",
    "scopes",
    "tags",
];

/// RFC 7386, as its section 2 has it.
fn merge(target: Value, patch: &Value) -> Value {
    let Value::Object(members) = patch else { return patch.clone() };
    let mut target = if let Value::Object(target) = target { target } else { Map::new() };
    for (name, value) in members {
        if value.is_null() {
            target.remove(name);
        } else {
            let old = target.remove(name).unwrap_or(Value::Null);
            target.insert(name.clone(), merge(old, value));
        }
    }
    Value::Object(target)
}

/// The row after the patch. None where the patch is refused.
fn model(row: &Value, patch: &Map<String, Value>, edits: &[(&str, bool, &str)]) -> Option<Value> {
    let mut after = merge(row.clone(), &Value::Object(patch.clone()));
    let limit = patch.get("budget_limit_cents");
    if limit.is_some_and(|limit| !limit.is_null())
        && !patch.contains_key("is_unlimited")
        && row["is_unlimited"] == true
    {
        after["is_unlimited"] = json!(false);
    }
    for (list, adds, entry) in edits {
        let mut entries = after[list].as_array().cloned().unwrap_or_default();
        let restricts = list.starts_with("allowed_");
        if restricts && entries.is_empty() {
            return None;
        }
        entries.retain(|other| *adds || other != entry);
        if *adds && !entries.iter().any(|other| other == entry) {
            entries.push(json!(entry));
        }
        if restricts && entries.is_empty() {
            return None;
        }
        after[list] = entries.into();
    }
    Some(after)
}

/// The fields that have a value.
fn fields(row: &Value) -> Value {
    let set = FIELDS.iter().filter(|field| !row[**field].is_null());
    Value::Object(set.map(|field| ((*field).to_owned(), row[*field].clone())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_patches_leave_the_row_that_the_model_has_in_both_databases() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let places = places().await;
    for place in &places {
        place.execute("UPDATE api_keys SET created_at = '2026-01-01'").await;
    }
    let databases = places.each_ref().map(crate::harness::place::Place::database);
    let row = async |at: usize| serde_json::to_value(databases[at].find_key("7").await.unwrap()).unwrap();
    let mut expected = fields(&row(0).await);
    for round in 0..150 {
        let mut document = Map::new();
        for _ in 0..rng.random_range(0..4) {
            let field = *FIELDS.choose(&mut rng).unwrap();
            document.insert(field.to_owned(), values(field).choose(&mut rng).unwrap().clone());
        }
        let mut edits = Vec::new();
        let list = *["tags", "scopes", "allowed_models"].choose(&mut rng).unwrap();
        if rng.random_bool(0.4) {
            edits.push((list, rng.random_bool(0.5), *["a", "m", "z"].choose(&mut rng).unwrap()));
        }
        let modelled = model(&expected, &document, &edits);
        let mut patch = Patch::new(Resource::Key, document.clone()).unwrap();
        for (list, adds, entry) in &edits {
            let (entry, none) = (vec![(*entry).to_owned()], Vec::new());
            let (added, removed) = if *adds { (entry, none) } else { (none, entry) };
            patch = patch.edit_list(list, added, removed).unwrap();
        }
        let what = format!("seed {seed}, round {round}: {document:?} {edits:?} on {expected}");
        for (at, database) in databases.iter().enumerate() {
            let preview = database.preview_update(Resource::Key, "7", &patch, None).await;
            match (database.update_key("7", &patch, None).await, &modelled) {
                (Ok(change), Some(after)) => {
                    assert_eq!(fields(&row(at).await), *after, "{what}");
                    assert_eq!(change.differences(), preview.unwrap().differences(), "{what}");
                    assert_eq!(change.is_empty(), *after == expected, "{what}");
                }
                (Err(ManagementError::Patch(_)), None) => assert!(preview.is_err(), "{what}"),
                (result, _) => panic!("{what}: {result:?}"),
            }
        }
        assert_eq!(row(0).await["version"], row(1).await["version"], "{what}");
        expected = modelled.unwrap_or(expected);
    }
}
