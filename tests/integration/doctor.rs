//! `keystile doctor` finds each planted fault, finds nothing in a sound database, shows no secret, and writes nothing.

use keystile::store::FindingKind;
use serde_json::Value;

use crate::harness::{
    keystile::{Run, keystile},
    place::{BUDGETS, Place},
};

mod access;
mod columns;
mod feed;
mod read_only;
mod rotations;
mod rows;

/// One run of the command.
struct Examined {
    status: i32,
    report: Value,
}

impl Examined {
    fn of(url: &str) -> Self {
        let Run { status, stdout, stderr } = keystile(&["doctor", "--output", "json"], url, "");
        let report =
            serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
        let examined = Self { status, report };
        for finding in examined.findings() {
            let kind = FindingKind::ALL.into_iter().find(|kind| finding["code"] == kind.code());
            let severities = kind.unwrap_or_else(|| panic!("no such kind: {finding}")).severities();
            let names: Vec<_> = severities.iter().map(ToString::to_string).collect();
            assert!(names.iter().any(|name| finding["severity"] == **name), "{finding}");
        }
        let has_errors = examined.report["errors"] != 0;
        assert_eq!(examined.status, i32::from(has_errors), "{}{stderr}", examined.report);
        examined
    }

    fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().expect("a list")
    }

    fn codes(&self) -> Vec<&str> {
        self.findings().iter().map(|finding| finding["code"].as_str().expect("a text")).collect()
    }

    /// The finding with this code, severity and place. The place is a table, a table and a column, or empty.
    #[track_caller]
    fn expect(&self, code: &str, severity: &str, place: &str) -> &Value {
        let (table, column) =
            place.split_once('.').map_or((place, None), |(table, column)| (table, Some(column)));
        let is_there =
            |name: &Value, expected: Option<&str>| name.as_str() == expected.filter(|text| !text.is_empty());
        let found = self.findings().iter().find(|finding| {
            finding["code"] == code
                && finding["severity"] == severity
                && is_there(&finding["table"], Some(table))
                && is_there(&finding["column"], column)
        });
        found.unwrap_or_else(|| panic!("no {severity} {code} in {place}: {:#}", self.report))
    }
}

/// Both databases with a user, key 3, and budget 9 of that key: nothing is wrong with them.
async fn sound() -> [Place; 2] {
    let places = [Place::sqlite().await, Place::postgres().await];
    for place in &places {
        place.execute(BUDGETS).await;
        place.database().migrate(None).await.unwrap();
        place.user().await;
        place.key("3", &[]).await;
        place
            .budget("9", &[("api_key_id", Some("3")), ("allowed_endpoints", Some(r#"["chat/completions"]"#))])
            .await;
    }
    places
}

/// What is found in sound databases after this change.
async fn after(change: &str) -> [Examined; 2] {
    let places = sound().await;
    for place in &places {
        place.execute(change).await;
    }
    places.each_ref().map(|place| Examined::of(&place.url()))
}

/// After the change, a finding with this code, severity and place is in both databases, for one row with this id.
async fn finds(change: &str, code: &str, severity: &str, place: &str, id: &str) {
    for examined in after(change).await {
        let finding = examined.expect(code, severity, place);
        assert_eq!(
            (&finding["count"], &finding["examples"]),
            (&1.into(), &serde_json::json!([id])),
            "{finding}"
        );
    }
}

#[tokio::test]
async fn sound_database_has_notes_only() {
    let [sqlite, postgres] = after("SELECT 1").await;
    assert_eq!(sqlite.codes(), ["column_unread", "hash_costs"], "{:#}", sqlite.report);
    assert_eq!(postgres.codes(), ["column_unread", "hash_costs", "role_unlimited"], "{:#}", postgres.report);
    for (examined, kind) in [(sqlite, "sqlite"), (postgres, "postgres")] {
        assert_eq!(examined.status, 0);
        assert_eq!(examined.report["notes"], examined.findings().len());
        assert_eq!(examined.report["database"], serde_json::json!({ "kind": kind, "keys": 1, "budgets": 1 }));
        examined.expect("column_unread", "note", "budgets");
        let costs = examined.expect("hash_costs", "note", "api_keys.key_hash");
        assert!(costs["message"].as_str().unwrap().contains("1 of cost 4"), "{costs}");
    }
}

#[tokio::test]
async fn table_shows_code_place_and_fix_and_the_status_tells_errors_from_warnings() {
    for place in sound().await {
        place.execute("DROP INDEX api_keys_key_prefix").await;
        let run = keystile(&["doctor"], &place.url(), "");
        assert!(run.stderr.contains("0 errors, 1 warning"), "{run:?}");
        let table = run.done();
        for word in ["warning", "index_missing", "api_keys.key_prefix", "Fix: run CREATE INDEX"] {
            assert!(table.contains(word), "{word} in {table}");
        }
        place.execute("UPDATE api_keys SET allowed_ips = '[\"10.0.0.256\"]'").await;
        let run = keystile(&["doctor"], &place.url(), "");
        assert!(run.stdout.contains("list_unreadable") && run.stdout.contains("id 3"), "{}", run.stdout);
        assert!(run.failed(1).contains("1 error, 1 warning"));
    }
}

/// Every kind of finding is planted by a test here.
#[test]
fn every_kind_of_finding_has_a_test() {
    let tests = [
        include_str!("doctor.rs"),
        include_str!("doctor/access.rs"),
        include_str!("doctor/columns.rs"),
        include_str!("doctor/feed.rs"),
        include_str!("doctor/read_only.rs"),
        include_str!("doctor/rotations.rs"),
        include_str!("doctor/rows.rs"),
    ]
    .concat();
    for kind in FindingKind::ALL {
        assert!(tests.contains(&format!("\"{}\"", kind.code())), "{}", kind.code());
    }
}
