//! A restriction that cannot be read denies its key: any text in any such column. An independent oracle decides which
//! texts allow the request.

use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};
use time::{OffsetDateTime, macros::datetime};

use super::super::{budgets, fixtures::row_with, *};
use crate::{
    attributes::{Attributes, body::Body, route::RouteSettings},
    credential::Credential,
    policy::{self, Facts},
    record::fixtures::CREDENTIAL,
};

const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

/// Whether the policy allows a request with the key of this row.
fn is_allowed(values: &[SqlValue]) -> bool {
    let Ok(record) = decode(values, AccountLock::Deny) else { return false };
    let settings = [("keystile.chatbot", "segment:1"), ("keystile.agent", "segment:2")];
    let route = RouteSettings::parse(settings).expect("readable");
    let attributes = Attributes {
        vouched_client: None,
        credential: Ok(Credential::parse(CREDENTIAL.as_bytes()).expect("well-formed")),
        request_id: "",
        stream_id: "",
        method: "POST",
        path: "/bot/agent",
        client: Some(IpAddr::from([10, 1, 2, 3])),
        is_grpc: false,
        body: Body::Whole(br#"{"model":"gpt-4o"}"#.to_vec().into()),
        route: Ok(RouteSettings::default()),
    };
    policy::check(&Facts { record: &record, attributes: &attributes, route: &route, now: NOW }).is_ok()
}

/// A row with this value in a column. Its other columns deny the request unless this value lifts the restriction.
fn row(column: &str, value: &str) -> Vec<SqlValue> {
    if let Some(column) = column.strip_prefix("budgets.") {
        let spent = [
            ("id", "3"),
            ("limit_cents", "100"),
            ("current_usage_cents", "100"),
            ("period_start", "2020-01-01"),
        ];
        let values = budgets::COLUMNS.map(|name| {
            let known = spent.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
            if name == column { Some(value) } else { known }
        });
        return row_with(&[("active rows", Some(&json!([values]).to_string()))]);
    }
    let mut changes = vec![(column, Some(value))];
    changes.extend(match column {
        "budget_type" | "budget_limit_cents" | "total_cost" | "is_unlimited" => {
            vec![("budget_limit_cents", Some("100")), ("total_cost", Some("100"))]
        }
        "users.account_locked_until" => vec![("users.account_locked", Some("true"))],
        _ => vec![],
    });
    row_with(&changes)
}

const COLUMNS_THAT_RESTRICT: &[&str] = &[
    "is_active",
    "deleted_at",
    "expires_at",
    "allowed_models",
    "allowed_endpoints",
    "allowed_ips",
    "allowed_chatbots",
    "allowed_agents",
    "allowed_extract_templates",
    "is_unlimited",
    "budget_limit_cents",
    "budget_type",
    "total_cost",
    "users.is_active",
    "users.account_locked",
    "users.account_locked_until",
    "budgets.limit_cents",
    "budgets.current_usage_cents",
    "budgets.period_start",
    "budgets.period_end",
    "budgets.is_active",
    "budgets.auto_renew",
    "budgets.enforce_hard_limit",
    "budgets.allowed_models",
    "budgets.allowed_endpoints",
];

/// Whether this text lifts the restriction, or restricts other requests only.
fn opens(column: &str, text: &str) -> bool {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    let is_true = number == Some(1.0) || ["true", "t"].contains(&&*text.to_ascii_lowercase());
    let is_false = number == Some(0.0) || ["false", "f"].contains(&&*text.to_ascii_lowercase());
    // Near this date, times sort as their texts do.
    let year = text.split('-').next().and_then(|year| year.parse::<u32>().ok());
    let is_future = text.eq_ignore_ascii_case("infinity") || year.is_some_and(|year| year >= 2026);
    let is_past = text.eq_ignore_ascii_case("-infinity") || year.is_some_and(|year| year <= 2026);
    let list = serde_json::from_str::<Value>(text).ok();
    let is_open_list = matches!(&list, Some(Value::Null))
        || list.as_ref().and_then(Value::as_array).is_some_and(Vec::is_empty);
    let is_list_of = |is_entry: fn(&Value) -> bool| {
        list.as_ref()
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty() && list.iter().all(is_entry))
    };
    match column {
        "is_active" | "users.is_active" | "is_unlimited" => is_true,
        "expires_at" => is_future,
        "allowed_chatbots" | "allowed_agents" | "allowed_extract_templates" => {
            is_open_list || is_list_of(|entry| entry.is_string() || entry.is_i64())
        }
        column if column.starts_with("allowed_") => is_open_list || is_list_of(Value::is_string),
        "budget_limit_cents" | "budgets.limit_cents" => number.is_some_and(|limit| limit > 100.0),
        "total_cost" | "budgets.current_usage_cents" => number.is_some_and(|spent| spent < 100.0),
        "budget_type" => {
            let period = text.trim().to_ascii_lowercase();
            ["hourly", "daily", "weekly", "monthly", "quarterly", "yearly", "annual", "annually"]
                .contains(&&*period)
        }
        "users.account_locked" => is_false,
        "users.account_locked_until" | "budgets.period_end" => is_past || text.ends_with(" BC"),
        "budgets.is_active" | "budgets.enforce_hard_limit" => is_false,
        "budgets.allowed_models" | "budgets.allowed_endpoints" => is_list_of(Value::is_string),
        "deleted_at" | "budgets.period_start" | "budgets.auto_renew" => false,
        other => panic!("{other}"),
    }
}

fn arbitrary_text() -> impl Strategy<Value = String> {
    let known = proptest::sample::select(
        &[
            "true",
            "false",
            "TRUE",
            "1",
            "0",
            "t",
            "f",
            "yes",
            "no",
            "on",
            "[]",
            "null",
            "{}",
            "\"\"",
            "\"[]\"",
            "[null]",
            "[1]",
            "[1.5]",
            "[[]]",
            "[{}]",
            "[\"\"]",
            "infinity",
            "-infinity",
            "never",
            "today",
            "2999-01-01",
            "2999-01-01 00:00:00",
            "1999-01-01T00:00:00Z",
            "2999-13-01",
            "10000-01-01",
            "0044-03-15 BC",
            "total",
            "monthly",
            "Daily",
            "lifetime",
            "100",
            "101",
            "99.5",
            "1e9",
            "NaN",
            "inf",
            "-1",
            "0x10",
            "1_000",
            "",
            " ",
            "\u{a0}",
            "+",
            ",",
        ][..],
    );
    let piece = prop_oneof![4 => known.prop_map(str::to_owned), 1 => "\\PC{0,6}"];
    prop_oneof![3 => piece.clone(), 1 => (piece.clone(), piece).prop_map(|(one, other)| one + &other)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn unreadable_restriction_denies(column in proptest::sample::select(COLUMNS_THAT_RESTRICT), text in arbitrary_text()) {
        prop_assert!(!is_allowed(&row(column, &text)) || opens(column, &text), "{} = {:?}", column, text);
    }

    #[test]
    fn unreadable_limit_is_not_lost(
        column in proptest::sample::select(&["rate_limit_per_minute", "rate_limit_per_hour", "rate_limit_per_day"][..]), text in arbitrary_text(),
    ) {
        if let Ok(record) = decode(&row_with(&[(column, Some(&text))]), AccountLock::Deny) {
            prop_assert!(!record.limits.is_empty(), "{} = {:?}", column, text);
        }
    }
}

#[test]
fn readable_value_opens() {
    for (column, text) in [
        ("is_active", "true"),
        ("expires_at", "2999-01-01"),
        ("allowed_models", "[]"),
        ("is_unlimited", "t"),
        ("budget_limit_cents", "101"),
        ("budget_type", "monthly"),
        ("total_cost", "99.5"),
        ("users.account_locked", "0"),
        ("users.account_locked_until", "1999-01-01T00:00:00Z"),
        ("budgets.limit_cents", "101"),
        ("budgets.current_usage_cents", "99.5"),
        ("budgets.is_active", "false"),
        ("budgets.enforce_hard_limit", "0"),
        ("budgets.period_end", "2025-12-31"),
    ] {
        assert!(is_allowed(&row(column, text)), "{column} = {text}");
        assert!(opens(column, text), "{column} = {text}");
    }
}
