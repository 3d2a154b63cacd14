//! Lists of keys: conditions, orders and pages, all of them in the database.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{
    keystile::{Run, keystile},
    place::{HASH, Place},
};

/// Both databases, with users 1 and 2.
async fn places() -> [Place; 2] {
    let places = [Place::sqlite().await, Place::postgres().await];
    for place in &places {
        place.user().await;
        let eve = [("id", "2"), ("email", "eve@example.com"), ("username", "eve"), ("hashed_password", "!")];
        place.insert("users", &eve.map(|(name, value)| (name, Some(value)))).await;
    }
    places
}

fn run(place: &Place, flags: &[&str]) -> Run {
    keystile(&[&["keys", "list", "--output", "json"], flags].concat(), &place.url(), "")
}

fn ids(list: &Value) -> Vec<i64> {
    list.as_array().expect("a list").iter().map(|key| key["id"].as_i64().expect("an id")).collect()
}

fn list(place: &Place, flags: &str) -> Vec<i64> {
    ids(&run(place, &flags.split_whitespace().collect::<Vec<_>>()).json())
}

#[tokio::test]
async fn conditions_select_keys_and_combine() {
    for place in places().await {
        let key = async |id: &str, changes: &[(&str, &str)]| {
            let changes: Vec<_> = changes.iter().map(|(name, value)| (*name, Some(*value))).collect();
            place.key(id, &changes).await;
        };
        let old = ("created_at", "2020-01-01 00:00:00");
        key("1", &[old, ("tags", r#"["ci", "prod"]"#)]).await;
        key("2", &[old, ("user_id", "2"), ("tags", r#"["ci"]"#), ("key_prefix", "en_other")]).await;
        key("3", &[old, ("last_used_at", "2099-01-01 00:00:00"), ("tags", r#"{"ci": "ci"}"#)]).await;
        key("4", &[old, ("last_used_at", "2021-01-01 00:00:00"), ("expires_at", "2022-01-01 00:00:00")])
            .await;
        key("5", &[old, ("is_active", "0"), ("expires_at", "2090-01-01 00:00:00")]).await;
        key("6", &[("expires_at", "2090-01-01 00:00:00")]).await;
        for (flags, expected) in [
            ("", &[6, 4, 3, 2, 1][..]),
            ("--all", &[6, 5, 4, 3, 2, 1]),
            ("--revoked", &[5]),
            ("--user eve@example.com", &[2]),
            ("--tag ci", &[2, 1]),
            ("--tag ci --tag prod", &[1]),
            ("--tag c", &[]),
            ("--tag ci --user 2", &[2]),
            ("--prefix en_", &[2]),
            ("--prefix en_other", &[2]),
            ("--prefix EN_", &[]),
            ("--prefix %", &[]),
            ("--expired", &[4]),
            ("--expiring-before 2091-01-01T00:00:00Z", &[6]),
            ("--expiring-before 2091-01-01T00:00:00Z --all", &[6, 5]),
            ("--expiring-before 30d", &[]),
            ("--unused-since 90d", &[4, 2, 1]),
            ("--unused-since 2020-06-01T00:00:00Z", &[2, 1]),
            ("--unused-since 90d --tag prod", &[1]),
        ] {
            let found: BTreeSet<_> = list(&place, flags).into_iter().collect();
            assert_eq!(found, expected.iter().copied().collect(), "{flags}");
        }
    }
}

#[tokio::test]
async fn key_that_was_never_used_is_as_old_as_its_row_and_an_unreadable_use_is_a_use() {
    let place = &places().await[0];
    place.key("1", &[]).await;
    place.execute("UPDATE api_keys SET created_at = NULL, last_used_at = NULL").await;
    assert_eq!(list(place, "--unused-since 1d"), [0; 0], "its age is not known");
    place.execute("UPDATE api_keys SET created_at = '2020-01-01'").await;
    assert_eq!(list(place, "--unused-since 1d"), [1]);
    place.execute("UPDATE api_keys SET last_used_at = 'yesterday'").await;
    assert_eq!(list(place, "--unused-since 1d"), [0; 0]);
}

#[tokio::test]
async fn pages_of_every_order_are_the_whole_list_once() {
    for place in places().await {
        for id in 1..=23 {
            // Equal values, and none.
            let day = |days: i64| (id % 5 != 0).then(|| format!("2020-01-0{} 00:00:00.25", 1 + id % days));
            let name = (id % 4 != 0).then(|| ["a", "B", "\u{e9}"][id as usize % 3].to_owned());
            let (created, used, expires) = (day(3), day(4), day(2));
            let values = [
                ("created_at", created.as_deref()),
                ("last_used_at", used.as_deref()),
                ("expires_at", expires.as_deref()),
                ("name", name.as_deref()),
            ];
            place.key(&id.to_string(), &values).await;
        }
        for sort in ["created", "last-used", "expires", "name"] {
            for reverse in ["", "--reverse"] {
                let order = format!("--sort {sort} {reverse}");
                let whole = list(&place, &order);
                assert_eq!(whole.iter().collect::<BTreeSet<_>>().len(), 23, "{order}");
                let (mut paged, mut after) = (Vec::new(), String::new());
                loop {
                    let flags = format!("{order} --limit 7 {after}");
                    let ran = run(&place, &flags.split_whitespace().collect::<Vec<_>>());
                    let (stderr, page) = (ran.stderr.clone(), ran.json());
                    paged.extend(ids(&page));
                    let keys = page.as_array().expect("a list");
                    let (last, others) = keys.split_last().expect("keys");
                    assert!(others.iter().all(|key| key["cursor"].is_null()), "{page}");
                    let Some(cursor) = last["cursor"].as_str() else {
                        assert!(!stderr.contains("--after"), "{stderr}");
                        break;
                    };
                    assert!(stderr.contains(&format!("--after {cursor}")), "{stderr}");
                    after = format!("--after {cursor}");
                }
                assert_eq!(paged, whole, "{order}");
            }
        }
        assert_eq!(
            list(&place, "--sort created --limit 1"),
            [23],
            "newest first, by id where both are equal"
        );
        let expiring = list(&place, "--sort expires");
        assert!(
            expiring[..18].iter().all(|id| id % 5 != 0),
            "keys without an expiry come last: {expiring:?}"
        );
        assert!(list(&place, "--sort expires --reverse")[..18].iter().all(|id| id % 5 != 0));
    }
}

#[tokio::test]
async fn page_goes_on_where_the_one_before_ended_although_keys_came_and_went() {
    for place in places().await {
        for id in 1..=6 {
            place.key(&id.to_string(), &[("created_at", Some(&format!("2020-01-0{id} 00:00:00")))]).await;
        }
        let page = run(&place, &["--limit", "3"]).json();
        assert_eq!(ids(&page), [6, 5, 4]);
        let cursor = page[2]["cursor"].as_str().expect("more").to_owned();
        place.key("9", &[("created_at", Some("2020-02-01 00:00:00"))]).await;
        place.execute("DELETE FROM api_keys WHERE id IN (4, 5)").await;
        let next = |more: &[&str]| run(&place, &[&["--after", &cursor], more].concat());
        assert_eq!(ids(&next(&[]).json()), [3, 2, 1]);
        let said = next(&["--sort", "name"]).failed(1);
        assert!(said.contains("--after") && said.contains("same order"), "{said}");
        let said = run(&place, &["--after", "nonsense"]).failed(2);
        assert!(said.contains("--after") && said.contains("cursor"), "{said}");
        // A cursor is text from outside: none of it becomes SQL.
        let hostile = r#"{"s":"name","v":"' OR 1=1 --","i":0}"#;
        let hostile = data_encoding::BASE64URL_NOPAD.encode(hostile.as_bytes());
        run(&place, &["--sort", "name", "--after", &hostile]).done();
        let text = r#"{"s":"created","v":"no time","i":0}"#;
        let text = data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
        let ran = run(&place, &["--after", &text]);
        assert!(ran.status == 0 || ran.stderr.contains("no time"), "{ran:?}");
    }
}

#[tokio::test]
async fn list_without_a_limit_has_every_key_and_stays_one_array() {
    for place in places().await {
        let rows: Vec<_> = (1..=12_345).map(|id| format!("({id}, '{HASH}', 'ks_sampl', 1, '1')")).collect();
        let columns = "id, key_hash, key_prefix, user_id, is_active";
        place.execute(&format!("INSERT INTO api_keys ({columns}) VALUES {}", rows.join(", "))).await;
        let all = run(&place, &[]).json();
        assert_eq!(ids(&all).into_iter().collect::<BTreeSet<_>>().len(), 12_345);
        assert!(all.as_array().unwrap().iter().all(|key| key["cursor"].is_null()));
        let table = keystile(&["keys", "list"], &place.url(), "").done();
        assert_eq!(table.lines().count(), 12_346, "in a pipe it is whole");
    }
}

#[tokio::test]
async fn wrong_condition_is_named() {
    let place = &places().await[1];
    for (flags, words) in [
        ("--unused-since soon", ["--unused-since", "90d"]),
        ("--unused-since 2099-01-01T00:00:00Z", ["--unused-since", "in the future"]),
        ("--expiring-before 2020-01-01T00:00:00Z", ["--expiring-before", "in the past"]),
        ("--limit 0", ["--limit", "0"]),
        ("--sort age", ["--sort", "last-used"]),
        ("--revoked --all", ["--revoked", "--all"]),
    ] {
        let said = run(place, &flags.split_whitespace().collect::<Vec<_>>()).failed(2);
        assert!(words.iter().all(|word| said.contains(word)), "{flags}: {said}");
    }
    let said = run(place, &["--user", "nobody@example.com"]).failed(1);
    assert!(said.contains("nobody@example.com"), "{said}");
    place.execute("ALTER TABLE api_keys DROP COLUMN last_used_at, DROP COLUMN tags").await;
    for flags in [&["--unused-since", "1d"][..], &["--sort", "last-used"], &["--tag", "a"]] {
        let said = run(place, flags).failed(1);
        assert!(said.contains("no column last_used_at") || said.contains("no column tags"), "{said}");
    }
    let ran = keystile(&["keys", "list", "--expired"], &place.url(), "");
    assert!(ran.stderr.contains("no key meets the conditions"), "{}", ran.stderr);
}
