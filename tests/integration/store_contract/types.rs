//! Values mean the same in every type of column that a schema may have, and in every session.

use keystile::{
    clock::Timestamps,
    metrics::Metrics,
    record::{KeyRecord, PeriodBudgets},
    store::{Database, KeyStore},
};

use crate::harness::{
    place::{CREDENTIAL, HASH, Place, options, prefix},
    postgres::{Schema, server},
};

/// A column, types that it may have, values in SQL (with `{type}` for the type), and how the record shows them.
pub(super) type Case = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

const TEXTS: &[&str] = &["varchar(255)", "text", "char(100)", "citext", "padded", "short"];
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
const FRACTIONS: &[&str] =
    &["numeric", "numeric(9, 2)", "real", "double precision", "varchar(20)", "char(20)"];
const FLAGS: &[&str] = &["boolean", "varchar(9)", "char(9)"];
const BITS: &[&str] = &["smallint", "int", "bigint", "numeric", "numeric(3, 1)", "real", "text", "char(4)"];
const JSON: &[&str] = &["json", "jsonb", "text", "varchar(200)", "char(200)", "document"];
const ARRAYS: &[&str] = &["text[]", "varchar(60)[]", "char(60)[]", "citext[]"];
const ZONED: &[&str] = &["timestamptz", "timestamptz(3)", "instant", "text", "char(60)"];
const LOCAL: &[&str] = &["timestamp", "timestamp(0)", "timestamptz", "text", "varchar(60)", "char(60)"];

pub(super) const POSTGRES: &[Case] = &[
    (
        "id",
        &["smallint", "int", "bigint", "numeric", "numeric(9, 2)", "real", "double precision"],
        &[("'7'", "7")],
    ),
    ("user_id", &["smallint", "int", "bigint", "numeric", "real", "double precision"], &[("1", "1")]),
    ("name", TEXTS, &[("'build server'", "build server")]),
    (
        "key_prefix",
        &["varchar(8)", "varchar(40)", "text", "char(8)", "char(12)", "citext", "padded"],
        &[("'ks_sampl'", "ks_sampl")],
    ),
    ("key_hash", &["varchar(60)", "text", "char(60)", "char(72)", "citext", "padded"], &[("'{hash}'", "4")]),
    ("key_hash", &["bytea"], &[("convert_to('{hash}', 'UTF8')", "4")]),
    ("is_active", FLAGS, &[("'true'", "true"), ("'false'", "false"), ("NULL", "false")]),
    ("is_active", BITS, &[("'1'", "true"), ("'0'", "false")]),
    ("deleted_at", LOCAL, &[("'2999-01-01'", "true"), ("'infinity'", "true"), ("NULL", "false")]),
    ("deleted_at", &["date", "bigint", "boolean"], &[("NULL", "false")]),
    ("deleted_at", &["boolean"], &[("false", "true")]),
    (
        "expires_at",
        LOCAL,
        &[
            ("'2030-01-02 03:04:05'", "2030-01-02T03:04:05Z"),
            ("'9999-12-31 23:59:59'", "9999-12-31T23:59:59Z"),
            ("'infinity'", "never"),
            ("'-infinity'", "-infinity"),
            ("NULL", "never"),
        ],
    ),
    (
        "expires_at",
        ZONED,
        &[
            ("'2030-06-02 03:04:05+09'", "2030-06-01T18:04:05Z"),
            ("'2030-10-27 02:30:00+02'", "2030-10-27T00:30:00Z"),
            ("'2030-10-27 02:30:00+01'", "2030-10-27T01:30:00Z"),
            ("'9999-12-31 23:59:59+00'", "9999-12-31T23:59:59Z"),
            ("'9999-12-31 23:59:59-05'", "never"),
        ],
    ),
    (
        "expires_at",
        &["timestamp", "timestamptz", "instant"],
        &[
            ("'294276-12-31 23:59:59.999999+00'", "never"),
            ("'4713-01-02 00:00:00+00 BC'", "-infinity"),
            ("'0045-02-29 00:00:00+00 BC'", "-infinity"),
        ],
    ),
    (
        "expires_at",
        &["date", "text", "char(20)"],
        &[("'2030-01-02'", "2030-01-02T00:00:00Z"), ("'infinity'", "never")],
    ),
    (
        "expires_at",
        &["date"],
        &[("'5874897-12-31'", "undecodable"), ("'20000-12-31'", "never"), ("'4713-01-01 BC'", "-infinity")],
    ),
    ("expires_at", &["bigint", "boolean", "jsonb", "time", "interval"], &[("NULL", "never")]),
    ("expires_at", &["bigint"], &[("1893553445", "undecodable")]),
    ("scopes", JSON, &[("'[\"chat\", \"embed\"]'", "chat embed"), ("'[]'", ""), ("NULL", "")]),
    (
        "scopes",
        ARRAYS,
        &[("ARRAY['chat', 'embed']", "chat embed"), ("'{}'", ""), ("'{NULL}'", "undecodable")],
    ),
    ("permissions", JSON, &[("'{\"files\": \"read\"}'", "{\"files\":\"read\"}")]),
    (
        "allowed_models",
        JSON,
        &[
            ("'[\"gpt-4o\"]'", "gpt-4o"),
            ("'[]'", "any"),
            ("NULL", "any"),
            ("'\"[]\"'", "unreadable, so none"),
            ("'{}'", "unreadable, so none"),
        ],
    ),
    (
        "allowed_models",
        ARRAYS,
        &[
            ("ARRAY['gpt-4o', 'o1']", "gpt-4o, o1"),
            ("'{}'", "any"),
            ("ARRAY['a', NULL]", "unreadable, so none"),
            ("'{{a},{b}}'", "unreadable, so none"),
        ],
    ),
    (
        "allowed_models",
        &["json[]", "jsonb[]"],
        &[("ARRAY['\"gpt-4o\"']::{type}", "gpt-4o"), ("ARRAY['[]']::{type}", "unreadable, so none")],
    ),
    ("allowed_endpoints", ARRAYS, &[("ARRAY['GET /v1/*']", "GET /v1/*")]),
    ("allowed_ips", JSON, &[("'[\"10.0.0.0/8\", \"::1\"]'", "10.0.0.0/8, ::1/128")]),
    (
        "allowed_ips",
        ARRAYS,
        &[("ARRAY['10.0.0.0/8']", "10.0.0.0/8"), ("ARRAY['10.0.0']", "unreadable, so none")],
    ),
    (
        "allowed_ips",
        &["inet[]", "cidr[]"],
        &[("ARRAY['10.0.0.0/8', '192.0.2.7/32']::{type}", "10.0.0.0/8, 192.0.2.7/32"), ("'{}'", "any")],
    ),
    ("allowed_ips", &["inet", "cidr"], &[("'10.0.0.0/8'", "unreadable, so none"), ("NULL", "any")]),
    (
        "allowed_chatbots",
        JSON,
        &[("'[7, \"a\"]'", "7, a"), ("'[7.5]'", "unreadable, so none"), ("'[]'", "any")],
    ),
    (
        "allowed_chatbots",
        &["smallint[]", "int[]", "bigint[]", "numeric[]"],
        &[("ARRAY[7, 8]", "7, 8"), ("'{}'", "any")],
    ),
    ("allowed_agents", ARRAYS, &[("ARRAY['7']", "7")]),
    (
        "allowed_extract_templates",
        JSON,
        &[("'[\"invoice\", 7]'", "invoice, 7"), ("'{}'", "unreadable, so none"), ("NULL", "any")],
    ),
    (
        "rate_limit_per_minute",
        WHOLE,
        &[("'60'", "60"), ("'0'", "0"), ("NULL", "none"), ("'-1'", "undecodable")],
    ),
    (
        "rate_limit_per_day",
        &["numeric", "real", "double precision", "text"],
        &[("'60.5'", "undecodable"), ("'NaN'", "undecodable")],
    ),
    ("budget_limit_cents", WHOLE, &[("'5000'", "5000"), ("NULL", "none")]),
    (
        "budget_limit_cents",
        &["numeric", "real", "double precision"],
        &[("'NaN'", "undecodable"), ("'Infinity'", "undecodable"), ("'-Infinity'", "undecodable")],
    ),
    (
        "budget_type",
        TEXTS,
        &[("'total'", "total, exhausted"), ("'monthly'", "monthly"), ("NULL", "none, exhausted")],
    ),
    ("budget_type", &["char(16)", "padded", "kind"], &[("'total'", "total, exhausted")]),
    ("total_cost", FRACTIONS, &[("'149.5'", "149.5"), ("'0.25'", "0.25"), ("NULL", "none")]),
    (
        "total_cost",
        &["numeric", "real", "double precision"],
        &[("'NaN'", "undecodable"), ("'1e10'", "10000000000")],
    ),
    ("users.email", TEXTS, &[("'ada@example.com'", "ada@example.com")]),
    ("users.role", TEXTS, &[("'engineer'", "engineer")]),
    ("users.is_active", FLAGS, &[("'true'", "true"), ("'false'", "false")]),
    ("users.account_locked", BITS, &[("'1'", "yes"), ("'0'", "no")]),
    (
        "users.account_locked_until",
        ZONED,
        &[("'2030-06-02 03:04:05+09'", "until 2030-06-01T18:04:05Z"), ("'9999-12-31 23:59:59-05'", "yes")],
    ),
    ("budgets.limit_cents", WHOLE, &[("'99'", "99")]),
    ("budgets.current_usage_cents", FRACTIONS, &[("'149.5'", "149.5"), ("NULL", "0")]),
    ("budgets.period_start", ZONED, &[("'2030-06-02 03:04:05+09'", "2030-06-01T18:04:05Z")]),
    (
        "budgets.period_end",
        LOCAL,
        &[("'2030-01-02 03:04:05'", "2030-01-02T03:04:05Z"), ("'infinity'", "never")],
    ),
    ("budgets.period_end", ZONED, &[("'9999-12-31 23:59:59-05'", "never")]),
    ("budgets.is_active", BITS, &[("'1'", "1 budgets"), ("'0'", "0 budgets")]),
    ("budgets.is_active", FLAGS, &[("'true'", "1 budgets"), ("'false'", "0 budgets"), ("NULL", "1 budgets")]),
    ("budgets.auto_renew", BITS, &[("'0'", "false")]),
    ("budgets.enforce_hard_limit", BITS, &[("'0'", "false")]),
    ("budgets.allowed_models", JSON, &[("'[\"o1\"]'", "o1"), ("'\"[]\"'", "unreadable allowed_models")]),
    ("budgets.allowed_endpoints", ARRAYS, &[("ARRAY['/v1/chat']", "/v1/chat")]),
];

/// Without arrays, and without types that SQLite would ignore.
pub(super) const SQLITE: &[Case] = &[
    ("name", &["text", "char(20)"], &[("'build server'", "build server")]),
    (
        "is_active",
        &["boolean", "integer", "real", "text", "numeric"],
        &[("1", "true"), ("'1'", "true"), ("0", "false"), ("'true'", "true"), ("NULL", "false")],
    ),
    (
        "deleted_at",
        &["timestamp", "text", "integer", "date"],
        &[("0", "true"), ("''", "true"), ("NULL", "false")],
    ),
    (
        "expires_at",
        &["timestamp", "text", "datetime", "date"],
        &[
            ("'2030-01-02 03:04:05'", "2030-01-02T03:04:05Z"),
            ("'2030-06-02T03:04:05+09:00'", "2030-06-01T18:04:05Z"),
            ("'2030-01-02'", "2030-01-02T00:00:00Z"),
            ("'infinity'", "never"),
            ("'10000-01-01 00:00:00'", "never"),
            ("CAST('2030-01-02 03:04:05' AS BLOB)", "2030-01-02T03:04:05Z"),
            ("1893553445", "undecodable"),
        ],
    ),
    (
        "allowed_models",
        &["json", "text", "blob"],
        &[
            ("'[\"gpt-4o\"]'", "gpt-4o"),
            ("CAST('[\"gpt-4o\"]' AS BLOB)", "gpt-4o"),
            ("7", "unreadable, so none"),
            ("NULL", "any"),
        ],
    ),
    ("allowed_chatbots", &["json", "text"], &[("'[7, \"a\"]'", "7, a"), ("'[]'", "any")]),
    (
        "budget_limit_cents",
        &["integer", "real", "text", "numeric"],
        &[("5000", "5000"), ("'5000'", "5000"), ("NULL", "none")],
    ),
    ("budget_type", &["text", "char(16)"], &[("'total'", "total, exhausted"), ("'monthly'", "monthly")]),
    (
        "total_cost",
        &["real", "numeric", "text"],
        &[("149.5", "149.5"), ("'149.5'", "149.5"), ("9e999", "undecodable")],
    ),
    ("users.is_active", &["boolean", "real"], &[("1", "true"), ("0", "false")]),
    (
        "budgets.is_active",
        &["boolean", "real", "text"],
        &[("1", "1 budgets"), ("0", "0 budgets"), ("'false'", "0 budgets")],
    ),
    ("budgets.limit_cents", &["integer", "real"], &[("99", "99")]),
];

/// What the column is in the record.
fn shown(column: &str, record: &KeyRecord) -> String {
    let none = |value: Option<String>| value.unwrap_or_else(|| "none".into());
    if let Some(column) = column.strip_prefix("budgets.") {
        return shown_budget(column, &record.period_budgets);
    }
    match column {
        "id" => record.id.0.to_string(),
        "user_id" => record.user.id.0.to_string(),
        "name" => none(record.name.clone()),
        "key_prefix" => record.prefix.to_string(),
        "key_hash" => record.hash.cost().expect("bcrypt").to_string(),
        "is_active" => record.is_active.to_string(),
        "deleted_at" => record.is_deleted.to_string(),
        "expires_at" => record.expiry.to_string(),
        "scopes" => record.scopes.join(" "),
        "permissions" => none(record.permissions.clone()),
        "allowed_models" => record.allowed.models.to_string(),
        "allowed_endpoints" => record.allowed.endpoints.to_string(),
        "allowed_ips" => record.allowed.ips.to_string(),
        "allowed_chatbots" => record.allowed.chatbots.to_string(),
        "allowed_agents" => record.allowed.agents.to_string(),
        "allowed_extract_templates" => record.allowed.extract_templates.to_string(),
        "rate_limit_per_minute" => none(record.limits.minute.map(|limit| limit.to_string())),
        "rate_limit_per_day" => none(record.limits.day.map(|limit| limit.to_string())),
        "budget_limit_cents" => none(record.budget.limit_cents.map(|limit| limit.to_string())),
        "budget_type" => {
            let exhausted = if record.budget.is_exhausted() { ", exhausted" } else { "" };
            format!("{}{exhausted}", none(record.budget.kind.clone()))
        }
        "total_cost" => none(record.budget.spent_cents.map(|spent| spent.to_string())),
        "users.email" => none(record.user.email.clone()),
        "users.role" => none(record.user.role.clone()),
        "users.is_active" => record.user.is_active.to_string(),
        "users.account_locked" | "users.account_locked_until" => record.user.lock.to_string(),
        other => panic!("{other}"),
    }
}

fn shown_budget(column: &str, budgets: &PeriodBudgets) -> String {
    if let [unreadable] = &budgets.unreadable[..] {
        return format!("unreadable {}", unreadable.column);
    }
    if column == "is_active" {
        return format!("{} budgets", budgets.rows.len());
    }
    let [budget] = &budgets.rows[..] else { panic!("{budgets:?}") };
    match column {
        "limit_cents" => budget.limit_cents.to_string(),
        "current_usage_cents" => budget.used_cents.to_string(),
        "period_start" => budget.start.to_string(),
        "period_end" => budget.end.to_string(),
        "auto_renew" => budget.renews.to_string(),
        "enforce_hard_limit" => budget.is_hard.to_string(),
        "allowed_models" => budget.models.join(" "),
        "allowed_endpoints" => budget.endpoints.join(" "),
        other => panic!("{other}"),
    }
}

pub(super) async fn read(database: &Database, column: &str) -> String {
    let found = database.records(prefix(), Timestamps::now()).await.expect("answers");
    match &found.records[..] {
        [] => "undecodable".to_owned(),
        [record] => shown(column, record),
        several => panic!("{several:?}"),
    }
}

/// The least that the tables may be, with a row in each.
fn tables() -> String {
    format!(
        "CREATE TABLE users (id int, is_active boolean);
        INSERT INTO users VALUES (1, true);
        CREATE TABLE api_keys (id int, key_prefix text, key_hash text, user_id int, is_active boolean,
            budget_limit_cents int, total_cost int);
        INSERT INTO api_keys VALUES (7, '{}', '{HASH}', 1, true, 100, 100);
        CREATE TABLE budgets (id int, user_id int, api_key_id int, limit_cents int, current_usage_cents int);
        INSERT INTO budgets VALUES (3, 1, NULL, 100, 0);",
        &CREDENTIAL[..8]
    )
}

/// The tables, with this type for the column.
pub(super) fn tables_with(column: &'static str, kind: &str) -> String {
    let (table, name) = split(column);
    let drop = if HAVE.contains(&column) {
        format!("ALTER TABLE {table} DROP COLUMN {name};")
    } else {
        String::new()
    };
    format!("{} {drop} ALTER TABLE {table} ADD COLUMN {name} {kind};", tables())
}

pub(super) fn set(column: &'static str, kind: &str, value: &str) -> String {
    let (table, name) = split(column);
    format!("UPDATE {table} SET {name} = {}", value.replace("{type}", kind).replace("{hash}", HASH))
}

fn split(column: &'static str) -> (&'static str, &'static str) {
    column.split_once('.').unwrap_or(("api_keys", column))
}

/// What [`tables`] have already.
const HAVE: [&str; 10] = [
    "id",
    "user_id",
    "key_prefix",
    "key_hash",
    "is_active",
    "budget_limit_cents",
    "total_cost",
    "users.is_active",
    "budgets.limit_cents",
    "budgets.current_usage_cents",
];

/// Sessions that print everything in another way than Keystile reads it.
const SESSIONS: [&str; 4] = [
    "-c TimeZone=UTC",
    "-c TimeZone=Asia/Tokyo -c DateStyle=SQL,DMY -c extra_float_digits=-15",
    "-c TimeZone=Europe/Berlin -c DateStyle=German -c bytea_output=escape",
    "-c TimeZone=America/New_York -c DateStyle=Postgres,MDY -c IntervalStyle=iso_8601",
];

#[tokio::test]
async fn values_mean_the_same_in_every_type_and_session_of_postgres() {
    let schema = Schema::create().await;
    let name = schema.name();
    schema
        .execute(
            "CREATE DOMAIN padded AS char(90); CREATE DOMAIN short AS padded; CREATE DOMAIN document AS jsonb;
            CREATE DOMAIN instant AS timestamptz; CREATE TYPE kind AS ENUM ('total', 'monthly')",
        )
        .await;
    let databases = SESSIONS.map(|session| {
        let session =
            format!("-c search_path={name},public {session}").replace(' ', "%20").replace('=', "%3D");
        let url = server().url("127.0.0.1", &format!("options={session}&sslmode=disable"));
        Database::connect(&options(&url, 5_000), &Metrics::new().expect("builds")).expect("good settings")
    });
    let client = schema.client().await;
    let settings =
        format!("SET search_path = {name}, public; SET timezone = 'UTC'; SET client_min_messages = warning");
    client.batch_execute(&settings).await.expect("sets");
    let version = schema.value("SHOW server_version_num").await.expect("a version");
    for (column, kinds, values) in POSTGRES {
        for kind in *kinds {
            let remake = "DROP TABLE IF EXISTS budgets, api_keys, users";
            client.batch_execute(&format!("{remake}; {}", tables_with(column, kind))).await.expect(kind);
            databases.iter().for_each(Database::forget_tables);
            for (value, expected) in *values {
                // Before version 14 no number is infinite.
                if version.as_str() < "140000" && kind.starts_with("numeric") && value.contains("Infinity") {
                    continue;
                }
                client.batch_execute(&set(column, kind, value)).await.expect(value);
                for (database, session) in databases.iter().zip(SESSIONS) {
                    let read = read(database, column).await;
                    assert_eq!(read, *expected, "{column} {kind} = {value} in a session with {session}");
                }
            }
        }
    }
}

#[tokio::test]
async fn values_mean_the_same_in_every_type_of_sqlite() {
    for (column, kinds, values) in SQLITE {
        for kind in *kinds {
            let place = Place::no_file();
            place.execute(&tables_with(column, kind)).await;
            let database = place.database();
            for (value, expected) in *values {
                place.execute(&set(column, kind, value)).await;
                assert_eq!(read(&database, column).await, *expected, "{column} {kind} = {value}");
            }
        }
    }
}
