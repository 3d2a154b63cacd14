//! Values are written to, and looked for in, every type of column that a schema may have.

use keystile::{
    clock::Timestamps,
    record::Expiry,
    store::{Database, KeyFilter, KeyState, KeyStore, PageRequest, Patch, Resource},
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::types::{Case, POSTGRES, SQLITE, read, set, tables_with};
use crate::harness::place::{Place, prefix};

/// A column, types that it may have, new values, and how the record shows them.
type Written = (&'static str, &'static [&'static str], Value, &'static str);

const JSON: &[&str] = &["json", "jsonb", "text", "varchar(200)", "char(200)"];
const ARRAYS: &[&str] = &["text[]", "varchar(60)[]", "char(60)[]", "public.citext[]"];
const TIMES: &[&str] =
    &["timestamp", "timestamp(0)", "timestamptz", "timestamptz(3)", "text", "varchar(60)", "char(60)"];
const WHOLE: &[&str] = &[
    "smallint",
    "int",
    "bigint",
    "numeric",
    "numeric(9, 2)",
    "real",
    "double precision",
    "text",
    "char(20)",
];
const FLAGS: &[&str] =
    &["boolean", "varchar(9)", "char(9)", "smallint", "int", "numeric(3, 1)", "real", "text"];

fn written() -> Vec<Written> {
    vec![
        (
            "name",
            &["varchar(255)", "text", "char(100)", "public.citext"],
            json!("build 'server'"),
            "build 'server'",
        ),
        ("is_active", FLAGS, json!(false), "false"),
        ("is_active", FLAGS, json!(true), "true"),
        ("expires_at", TIMES, json!("2090-06-02T03:04:05+09:00"), "2090-06-01T18:04:05Z"),
        ("expires_at", TIMES, Value::Null, "never"),
        ("expires_at", &["date"], json!("2090-06-02T00:00:00Z"), "2090-06-02T00:00:00Z"),
        ("scopes", JSON, json!(["chat", "e\"m,b'ed"]), "chat e\"m,b'ed"),
        ("scopes", ARRAYS, json!(["chat", "e\"m,b'ed"]), "chat e\"m,b'ed"),
        ("scopes", ARRAYS, json!([]), ""),
        ("scopes", ARRAYS, Value::Null, ""),
        ("permissions", JSON, json!({"files": "read"}), "{\"files\":\"read\"}"),
        ("allowed_models", JSON, json!(["gpt-4o"]), "gpt-4o"),
        ("allowed_models", ARRAYS, json!(["gpt-4o", "o1"]), "gpt-4o, o1"),
        ("allowed_models", &["json[]", "jsonb[]"], json!(["gpt-4o"]), "gpt-4o"),
        (
            "allowed_ips",
            &["inet[]", "cidr[]", "text[]"],
            json!(["10.0.0.0/8", "::1/128"]),
            "10.0.0.0/8, ::1/128",
        ),
        ("allowed_chatbots", JSON, json!([7, "a"]), "7, a"),
        ("allowed_chatbots", &["smallint[]", "int[]", "numeric[]", "text[]"], json!([7, 8]), "7, 8"),
        ("allowed_chatbots", &["int[]"], Value::Null, "any"),
        ("rate_limit_per_minute", WHOLE, json!(60), "60"),
        ("rate_limit_per_minute", WHOLE, Value::Null, "none"),
        ("budget_limit_cents", WHOLE, json!(5000), "5000"),
        ("budget_type", &["text", "char(16)", "budget_kind"], json!("monthly"), "monthly"),
    ]
}

/// A key that was made with these tables, with its value written, read by a look-up.
async fn write(database: &Database, column: &'static str, value: &Value) -> Result<String, String> {
    let patch = json!({ column: value }).to_string();
    let patch = Patch::parse(Resource::Key, patch.as_bytes()).expect("fits");
    match database.update_key("7", &patch, None).await {
        Ok(_) => Ok(read(database, column).await),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test]
async fn update_writes_every_type_of_column_of_postgres() {
    let place = Place::empty_schema().await;
    place.execute("CREATE TYPE budget_kind AS ENUM ('total', 'monthly')").await;
    for (column, kinds, value, expected) in written() {
        for kind in kinds {
            place.execute("DROP TABLE IF EXISTS budgets, api_keys, users").await;
            place.execute(&tables_with(column, kind)).await;
            let read = write(&place.database(), column, &value).await;
            assert_eq!(read, Ok(expected.to_owned()), "{column} {kind} = {value}");
        }
    }
    // A type that cannot hold the value refuses it.
    for (column, kind, value) in [
        ("allowed_chatbots", "int[]", json!(["a"])),
        ("name", "varchar(3)", json!("long")),
        ("budget_type", "budget_kind", json!("yearly")),
        ("rate_limit_per_minute", "smallint", json!(40_000)),
        ("expires_at", "bigint", json!("2090-01-01T00:00:00Z")),
    ] {
        place.execute("DROP TABLE IF EXISTS budgets, api_keys, users").await;
        place.execute(&tables_with(column, kind)).await;
        let error = write(&place.database(), column, &value).await.expect_err(kind);
        assert!(error.contains("the database refuses"), "{column} {kind} = {value}: {error}");
    }
}

#[tokio::test]
async fn update_writes_every_type_of_column_of_sqlite() {
    for (column, kinds, value, expected) in written() {
        for kind in kinds.iter().filter(|kind| !kind.ends_with("[]") && !kind.contains('.')) {
            let place = Place::no_file();
            place.execute(&tables_with(column, kind)).await;
            let read = write(&place.database(), column, &value).await;
            assert_eq!(read, Ok(expected.to_owned()), "{column} {kind} = {value}");
        }
    }
}

/// Whether the filter selects the key of the tables.
async fn selects(database: &Database, filter: &KeyFilter) -> bool {
    let page = database.list_keys(filter, &PageRequest::default()).await;
    !page.expect("answers").keys.is_empty()
}

/// Compares conditions in SQL with what a check reads from the same value.
async fn compare(place: &Place, column: &'static str, kind: &str, value: &str) {
    place.execute(&set(column, kind, value)).await;
    let (database, what) = (place.database(), format!("{column} {kind} = {value}"));
    let any = KeyFilter { state: KeyState::Any, ..KeyFilter::default() };
    let found = database.records(prefix(), Timestamps::now()).await.expect("answers");
    let record = found.records.first();
    match column {
        "is_active" | "deleted_at" => {
            let active = record.is_some_and(|record| record.is_active && !record.is_deleted);
            assert_eq!(selects(&database, &KeyFilter::default()).await, active, "{what}");
            let revoked = KeyFilter { state: KeyState::Revoked, ..KeyFilter::default() };
            assert_eq!(selects(&database, &revoked).await, !active, "{what}");
        }
        "expires_at" => {
            let expiry = record.map(|record| record.expiry);
            let far = OffsetDateTime::now_utc() + time::Duration::days(365 * 1_000);
            let expired = KeyFilter { expired: true, ..any.clone() };
            let expiring = KeyFilter { expiring_before: Some(far), ..any };
            assert_eq!(selects(&database, &expired).await, expiry == Some(Expiry::Always), "{what}");
            let soon = matches!(expiry, Some(Expiry::At(end)) if end < far);
            assert_eq!(selects(&database, &expiring).await, soon, "{what}");
            for reverse in [false, true] {
                let sort = keystile::store::KeySort::Expires;
                let page = PageRequest { sort, reverse, ..PageRequest::default() };
                let all = KeyFilter { state: KeyState::Any, ..KeyFilter::default() };
                let listed = database.list_keys(&all, &page).await.expect("answers");
                assert_eq!(listed.keys.len(), 1, "{what}");
            }
        }
        _ => {
            let tags = record.map_or_else(Vec::new, |record| record.tags.clone());
            for tag in ["chat", "embed", "", "[]", "\u{1f600}"] {
                let tagged = KeyFilter { tags: vec![tag.to_owned()], ..any.clone() };
                let is_found = selects(&database, &tagged).await;
                // Postgres cannot decode it. It must not fail.
                if value.contains("\\u0000") {
                    continue;
                }
                assert_eq!(is_found, tags.iter().any(|other| other == tag), "{what}: {tag}");
            }
        }
    }
}

/// Values of times and lists that a text column may hold.
const TEXTS: &[(&str, &[&str])] = &[
    (
        "expires_at",
        &[
            "'2030-02-30'",
            "'2030-01-02T03:04:05.25+0230'",
            "'2030-01-02 03:04:05-05'",
            "'0000-00-00 00:00:00'",
            "'2030-01-02 03:04'",
            "'Infinity'",
            "'soon'",
            "''",
            "'2030-13-45T99:99:99Z'",
            "'1893553445'",
            "'0044-03-15 BC'",
        ],
    ),
    (
        "tags",
        &[
            r#"'["chat", "\ud83d\ude00"]'"#,
            r#"'["\ud83d"]'"#,
            r#"'["\u0000", "chat"]'"#,
            r#"'["chat", 7]'"#,
            r#"'["chat"'"#,
            r#"'"chat"'"#,
            r#"'{"chat": "chat"}'"#,
            r#"' [ "embed" ,"a\"b" ] '"#,
            "'chat'",
            "''",
            "'null'",
            r#"'[["chat"]]'"#,
            r#"'["cha\u0074"]'"#,
            r#"'[""]'"#,
            r#"'["[]"]'"#,
        ],
    ),
];

#[tokio::test]
async fn conditions_read_every_type_of_postgres_as_a_check_does() {
    let place = Place::empty_schema().await;
    place
        .execute(
            "CREATE DOMAIN padded AS char(90); CREATE DOMAIN short AS padded; CREATE DOMAIN document AS jsonb;
            CREATE DOMAIN instant AS timestamptz; CREATE TYPE kind AS ENUM ('total', 'monthly')",
        )
        .await;
    let remade = async |column, kind: &str| {
        place.execute("DROP TABLE IF EXISTS budgets, api_keys, users").await;
        place.execute(&tables_with(column, kind)).await;
    };
    for (column, kinds, values) in cases(POSTGRES) {
        for kind in kinds {
            remade(column, kind).await;
            for (value, _) in &values {
                compare(&place, column, kind, value).await;
            }
        }
    }
    for (column, values) in TEXTS {
        for kind in ["text", "char(100)"] {
            remade(column, kind).await;
            for value in *values {
                compare(&place, column, kind, value).await;
            }
        }
    }
    for value in [r#"'["\u0000", "chat"]'"#, r#"'["\ud83d"]'"#] {
        remade("tags", "json").await;
        compare(&place, "tags", "json", value).await;
    }
}

#[tokio::test]
async fn conditions_read_every_type_of_sqlite_as_a_check_does() {
    let compare_all = async |column, kind: &str, values: Vec<&'static str>| {
        let place = Place::no_file();
        place.execute(&tables_with(column, kind)).await;
        for value in values {
            compare(&place, column, kind, value).await;
        }
    };
    for (column, kinds, values) in cases(SQLITE) {
        for kind in kinds {
            compare_all(column, kind, values.iter().map(|(value, _)| *value).collect()).await;
        }
    }
    for (column, values) in TEXTS {
        compare_all(column, "text", values.to_vec()).await;
    }
}

/// The cases of columns that conditions read. Those of scopes are cases of tags, too.
fn cases(
    all: &'static [Case],
) -> impl Iterator<Item = (&'static str, Vec<&'static str>, Vec<(&'static str, &'static str)>)> {
    all.iter().filter_map(|(column, kinds, values)| {
        let column = if *column == "scopes" { "tags" } else { *column };
        let is_read = ["is_active", "deleted_at", "expires_at", "tags"].contains(&column);
        // That type is in another schema.
        let kinds = kinds.iter().copied().filter(|kind| !kind.contains("citext"));
        is_read.then(|| (column, kinds.collect(), values.to_vec()))
    })
}
