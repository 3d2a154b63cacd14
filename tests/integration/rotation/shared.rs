//! Budgets that the keys of a chain share.

use super::*;
use crate::harness::place::options;

use keystile::{clock::Timestamps, credential::Prefix, record::KeyRecord, store::KeyStore};

async fn record(place: &Place, key: &Value) -> KeyRecord {
    let prefix = Prefix::parse(key["key_prefix"].as_str().unwrap()).unwrap();
    let database = keystile::store::Database::connect(&options(&place.url(), 5_000), &place.metrics).unwrap();
    let found = database.records(prefix, Timestamps::now()).await.unwrap();
    (*found.records[0]).clone()
}

#[tokio::test]
async fn every_key_of_a_chain_knows_the_first_and_what_all_have_spent() {
    for place in places().await {
        let first = create(&place, &["--budget-limit-cents", "100"]);
        let mut chain = vec![first];
        for _ in 0..4 {
            chain.push(rotate(&place, chain.last().unwrap(), &["--overlap", "7d"]));
        }
        place.execute("UPDATE api_keys SET total_cost = 10").await;
        for key in &chain {
            let record = record(&place, key).await;
            assert_eq!(record.limit_id.0, chain[0]["id"]);
            assert_eq!(record.budget.spent_cents, Some(50.0));
            assert_eq!(record.chain.unwrap().others.len(), 4);
        }
        place.execute(&format!("UPDATE api_keys SET total_cost = 60 WHERE id = {}", id(&chain[2]))).await;
        for key in &chain {
            assert_eq!(explain(&place, key, &[])["code"], "budget_exhausted");
        }
        let explained = explain(&place, &chain[4], &[]);
        let looks_at = |check: &str| {
            let checks = explained["checks"].as_array().unwrap();
            let found = checks.iter().find(|found| found["step"] == check).unwrap();
            found["detail"].as_str().unwrap().to_owned()
        };
        let budget = looks_at("budget");
        assert!(
            budget.contains("spent: 100 of 100 cents")
                && budget.contains(&format!("key {} (60 cents)", id(&chain[2]))),
            "{budget}"
        );
        let first = format!("counted under key {}", id(&chain[0]));
        assert!(looks_at("limits").contains(&first), "{explained}");
        let expiry = explain(&place, &chain[0], &[])["checks"][1]["detail"].to_string();
        assert!(expiry.contains(&format!("rotated to key {}", id(&chain[1]))), "{expiry}");
    }
}

#[tokio::test]
async fn budgets_of_a_period_are_copied_and_their_use_adds_up() {
    for place in places().await {
        create_budgets(&place).await;
        run(&place, &["migrate"]).done();
        let first = create(&place, &[]);
        let key = id(&first);
        place.budget("3", &[("api_key_id", Some(&key)), ("name", Some("chat"))]).await;
        place.budget("4", &[("api_key_id", Some(&key)), ("is_active", Some("0"))]).await;
        place.budget("5", &[("current_usage_cents", Some("1"))]).await;
        if place.file().is_none() {
            place.execute("SELECT setval('budgets_id_seq', 100)").await;
        }
        place.execute("UPDATE budgets SET current_usage_cents = 40 WHERE id = 3").await;
        let second = rotate(&place, &first, &["--overlap", "7d"]);
        let third = rotate(&place, &second, &["--overlap", "7d"]);
        let copies = "SELECT count(*) || '/' || max(name) || '/' || sum(current_usage_cents) FROM budgets
            WHERE api_key_id = ";
        for copy in [&second, &third] {
            let found = place.value(&format!("{copies}{}", id(copy))).await;
            assert_eq!(found.as_deref(), Some("1/chat/0"));
        }
        let spend = |key: &Value, cents: u32| {
            format!("UPDATE budgets SET current_usage_cents = {cents} WHERE api_key_id = {}", id(key))
        };
        place.execute(&spend(&second, 30)).await;
        for key in [&first, &second, &third] {
            assert_eq!(explain(&place, key, &["--at", "2026-06-01T00:00:00Z"])["code"], Value::Null);
        }
        place.execute(&spend(&third, 30)).await;
        for key in [&first, &second, &third] {
            let explained = explain(&place, key, &["--at", "2026-06-01T00:00:00Z"]);
            assert_eq!(explained["code"], "budget_exhausted", "{explained}");
            let budget =
                explained["budgets"].as_array().unwrap().iter().find(|row| row["denies"] == true).unwrap();
            let status = budget["status"].as_str().unwrap();
            assert!(status.contains("spent: 100 of 100") && status.contains("other keys"), "{status}");
        }
        // The application has reset the row of one key for a new period, and nothing else.
        let reset = "UPDATE budgets SET period_start = '2027-01-01', period_end = '2028-01-01', current_usage_cents = 99
            WHERE api_key_id = ";
        place.execute(&format!("{reset}{}", id(&third))).await;
        assert_eq!(explain(&place, &third, &["--at", "2027-06-01T00:00:00Z"])["code"], Value::Null);
        assert_eq!(explain(&place, &second, &["--at", "2026-06-01T00:00:00Z"])["code"], Value::Null);
    }
}

#[tokio::test]
async fn budget_of_the_user_counts_once() {
    for place in places().await {
        create_budgets(&place).await;
        let first = create(&place, &[]);
        place.budget("3", &[("current_usage_cents", Some("60"))]).await;
        let second = rotate(&place, &first, &["--overlap", "7d"]);
        for key in [&first, &second] {
            assert_eq!(explain(&place, key, &["--at", "2026-06-01T00:00:00Z"])["code"], Value::Null);
        }
        assert_eq!(place.value("SELECT CAST(count(*) AS text) FROM budgets").await.as_deref(), Some("1"));
    }
}
