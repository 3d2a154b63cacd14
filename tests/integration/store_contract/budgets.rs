//! Budgets of a period are read with the record that they bind.

use keystile::{
    clock::Timestamps,
    record::{BudgetId, Expiry, PeriodBudget, PeriodBudgets, UnreadableBudget},
    store::{Database, KeyStore, StoreError},
};
use time::macros::datetime;

use super::only_record;
use crate::harness::place::{BUDGETS, Place, options, prefix};

contract! {
    sqlite sqlite_older postgres postgres_older: [
        database_without_budgets_has_none
        table_of_that_name_that_is_not_ours_is_left_alone
        budgets_of_the_key_and_of_its_user_are_read_and_no_others
        every_column_of_a_budget_is_read
        columns_that_budgets_lack_read_as_their_defaults
        period_may_be_infinite
        records_of_one_prefix_have_their_own_budgets
        undecodable_budget_is_kept_apart_and_counted
    ]
}

async fn budgets_of(place: &Place) -> PeriodBudgets {
    only_record(place).await.period_budgets
}

fn ids(budgets: &PeriodBudgets) -> Vec<i64> {
    assert_eq!(budgets.unreadable, []);
    budgets.rows.iter().map(|budget| budget.id.0).collect()
}

/// User 1 with key 7, and a table of budgets.
async fn key_and_table(place: &Place) {
    place.user().await;
    place.key("7", &[]).await;
    place.execute(BUDGETS).await;
}

async fn database_without_budgets_has_none(place: &Place) {
    place.user().await;
    place.key("7", &[]).await;
    assert_eq!(budgets_of(place).await, PeriodBudgets::default());
    place.execute(BUDGETS).await;
    assert_eq!(budgets_of(place).await, PeriodBudgets::default());
}

async fn table_of_that_name_that_is_not_ours_is_left_alone(place: &Place) {
    place.user().await;
    place.key("7", &[]).await;
    place.execute("CREATE TABLE budgets (id integer, user_id text, limit_cents text)").await;
    place.insert("budgets", &[("id", Some("1")), ("user_id", Some("1")), ("limit_cents", Some("0"))]).await;
    assert_eq!(budgets_of(place).await, PeriodBudgets::default());
}

async fn budgets_of_the_key_and_of_its_user_are_read_and_no_others(place: &Place) {
    key_and_table(place).await;
    place.budget("6", &[("is_active", None)]).await;
    place.budget("1", &[("api_key_id", Some("7"))]).await;
    place.budget("2", &[]).await;
    place.budget("3", &[("api_key_id", Some("8"))]).await;
    place.budget("4", &[("user_id", Some("2"))]).await;
    place.budget("5", &[("is_active", Some("0"))]).await;
    assert_eq!(ids(&budgets_of(place).await), [1, 2, 6]);
    place.execute("UPDATE budgets SET is_active = '0' WHERE id < 6").await;
    assert_eq!(ids(&budgets_of(place).await), [6]);
    assert_eq!(place.undecodable(), 0);
}

async fn every_column_of_a_budget_is_read(place: &Place) {
    key_and_table(place).await;
    let changes = [
        ("limit_cents", Some("5000")),
        ("current_usage_cents", Some("1250")),
        ("period_start", Some("2026-02-01 03:04:05")),
        ("period_end", Some("2026-03-01 03:04:05.25")),
        ("auto_renew", Some("0")),
        ("enforce_hard_limit", Some("0")),
        ("allowed_models", Some(r#"["m \"1\"", "é"]"#)),
        ("allowed_endpoints", Some(r#"["/v1/chat"]"#)),
    ];
    place.budget("3", &changes).await;
    let budget = PeriodBudget {
        id: BudgetId(3),
        limit_cents: 5_000,
        used_cents: 1250.0,
        start: Expiry::At(datetime!(2026-02-01 03:04:05 UTC)),
        end: Expiry::At(datetime!(2026-03-01 03:04:05.25 UTC)),
        renews: false,
        is_hard: false,
        models: vec!["m \"1\"".into(), "é".into()],
        endpoints: vec!["/v1/chat".into()],
        shared: vec![],
    };
    assert_eq!(budgets_of(place).await, PeriodBudgets { rows: vec![budget], unreadable: vec![] });
}

async fn columns_that_budgets_lack_read_as_their_defaults(place: &Place) {
    key_and_table(place).await;
    place.budget("3", &[("current_usage_cents", None), ("allowed_models", Some("null"))]).await;
    let whole = budgets_of(place).await.rows.remove(0);
    assert!(whole.renews && whole.is_hard && whole.models.is_empty() && whole.endpoints.is_empty());
    for column in [
        "period_start",
        "period_end",
        "is_active",
        "auto_renew",
        "enforce_hard_limit",
        "allowed_models",
        "allowed_endpoints",
    ] {
        place.execute(&format!("ALTER TABLE budgets DROP COLUMN {column}")).await;
    }
    let bare = PeriodBudget { start: Expiry::Always, end: Expiry::Never, ..whole };
    assert_eq!(budgets_of(place).await, PeriodBudgets { rows: vec![bare], unreadable: vec![] });
}

async fn period_may_be_infinite(place: &Place) {
    key_and_table(place).await;
    place.budget("3", &[("period_start", Some("-infinity")), ("period_end", Some("infinity"))]).await;
    let budget = budgets_of(place).await.rows.remove(0);
    assert_eq!((budget.start, budget.end), (Expiry::Always, Expiry::Never));
}

async fn records_of_one_prefix_have_their_own_budgets(place: &Place) {
    key_and_table(place).await;
    place.key("8", &[]).await;
    place.budget("1", &[("api_key_id", Some("7"))]).await;
    place.budget("2", &[("api_key_id", Some("8"))]).await;
    let records = place.records().await.expect("answers");
    let budgets: Vec<_> = records.iter().map(|record| (record.id.0, ids(&record.period_budgets))).collect();
    assert_eq!(budgets, [(8, vec![2]), (7, vec![1])]);
}

async fn undecodable_budget_is_kept_apart_and_counted(place: &Place) {
    key_and_table(place).await;
    // A JSON string that holds a list: unwrapped once too often, it would be about everything.
    place.budget("2", &[("allowed_models", Some(r#""[]""#))]).await;
    place.budget("1", &[]).await;
    let budgets = budgets_of(place).await;
    let [UnreadableBudget { id: Some(BudgetId(2)), column: "allowed_models", .. }] = budgets.unreadable[..]
    else {
        panic!("{budgets:?}")
    };
    assert_eq!(budgets.rows.len(), 1);
    assert_eq!(place.undecodable(), 1);
}

/// Not taken for a database without budgets: that would open every key.
#[tokio::test]
async fn budgets_that_may_not_be_read_are_an_error_that_names_them() {
    let place = Place::postgres().await;
    key_and_table(&place).await;
    let schema = place.value("SELECT current_schema()").await.expect("a schema");
    let role = format!("{schema}_reader");
    place
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};
             GRANT SELECT ON api_keys, users TO {role}"
        ))
        .await;
    let url = place.url().replace("keystile@", &format!("{role}@"));
    let database = Database::connect(&options(&url, 5_000), &place.metrics).expect("good settings");
    let error = database.records(prefix(), Timestamps::now()).await.expect_err("may not be read");
    assert!(matches!(error, StoreError::Unfit(_)), "{error:?}");
    assert!(error.to_string().contains("permission denied for table budgets"), "{error}");
    place.execute(&format!("GRANT SELECT ON budgets TO {role}")).await;
    let found = database.records(prefix(), Timestamps::now()).await.expect("answers");
    assert_eq!(found.records.len(), 1);
}
