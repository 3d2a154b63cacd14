//! What cannot be rotated, and that nothing is half done then.

use super::*;

/// Runs a rotation that must fail, and nothing must change.
async fn refuse(place: &Place, key: &Value, more: &[&str]) -> String {
    let rows = || async {
        let keys = "SELECT count(*) || '/' || coalesce(max(cast(expires_at AS text)), '') || '/' ||
            (SELECT count(*) FROM keystile_rotations) FROM api_keys";
        place.value(keys).await
    };
    let before = rows().await;
    let refused = run(place, &[&["keys", "rotate", &id(key)], more].concat()).failed(1);
    assert_eq!(rows().await, before, "{refused}");
    refused
}

#[tokio::test]
async fn key_that_does_not_work_is_not_rotated() {
    for place in places().await {
        place.execute("ALTER TABLE api_keys ADD COLUMN deleted_at timestamp").await;
        run(&place, &["migrate"]).done();
        for (sql, why) in [
            ("UPDATE api_keys SET is_active = false", "revoked"),
            ("UPDATE api_keys SET is_active = NULL", "revoked"),
            ("UPDATE api_keys SET deleted_at = '2026-01-02 03:04:05'", "deleted"),
            ("UPDATE api_keys SET expires_at = '2026-01-02 03:04:05'", "expired at 2026-01-02T03:04:05Z"),
            ("UPDATE users SET is_active = false", "user 1, who is disabled"),
            ("UPDATE api_keys SET scopes = '\"chat\"'", "keystile explain"),
        ] {
            let key = create(&place, &[]);
            place.execute(sql).await;
            let refused = refuse(&place, &key, &["--overlap", "1d"]).await;
            assert!(refused.contains(why) && refused.contains(&format!("key {}", id(&key))), "{refused}");
            place.execute("UPDATE users SET is_active = true; DELETE FROM api_keys").await;
        }
    }
}

#[tokio::test]
async fn key_is_rotated_once() {
    for place in places().await {
        let old = create(&place, &[]);
        let new = rotate(&place, &old, &["--overlap", "1d"]);
        let refused = refuse(&place, &old, &["--overlap", "1d"]).await;
        assert!(refused.contains(&format!("rotate key {}", id(&new))), "{refused}");
        place.execute(&format!("DELETE FROM api_keys WHERE id = {}", id(&new))).await;
        let refused = refuse(&place, &old, &["--overlap", "1d"]).await;
        assert!(refused.contains("no longer exists"), "{refused}");
        place.execute(&format!("DELETE FROM keystile_rotations WHERE predecessor_id = {}", id(&old))).await;
        rotate(&place, &old, &[]);
    }
}

#[tokio::test]
async fn times_that_make_no_sense_are_refused() {
    for place in places().await {
        let key = create(&place, &["--expires-at", "10d"]);
        for (arguments, why) in [
            (&["--overlap", "11d"][..], "itself expires at"),
            (&["--overlap", "9d", "--expires-at", "8d"], "successor would expire at"),
        ] {
            let refused = refuse(&place, &key, arguments).await;
            assert!(refused.contains(why), "{refused}");
        }
        for overlap in ["2020-01-02T03:04:05Z", "soon", "-1d", "", "10000y"] {
            let refused =
                run(&place, &["keys", "rotate", &id(&key), &format!("--overlap={overlap}")]).failed(2);
            assert!(refused.contains("--overlap"), "{refused}");
        }
        // The machine's clock, by which the overlap would end, is far behind.
        place.execute("UPDATE api_keys SET created_at = '2099-01-02 03:04:05'").await;
        let refused = refuse(&place, &key, &["--overlap", "1d"]).await;
        assert!(refused.contains("clock"), "{refused}");
    }
}

#[tokio::test]
async fn whole_key_and_unknown_id_are_refused() {
    for place in places().await {
        let key = create(&place, &[]);
        let secret = key["credential"].as_str().unwrap();
        let refused = run(&place, &["keys", "rotate", secret]);
        assert!(refused.status != 0 && !refused.stderr.contains(secret), "{refused:?}");
        assert!(run(&place, &["keys", "rotate", "4711"]).failed(1).contains("4711"));
    }
}

#[tokio::test]
async fn table_without_an_expiry_is_refused() {
    for place in places().await {
        let key = create(&place, &[]);
        place.execute("ALTER TABLE api_keys DROP COLUMN expires_at").await;
        let refused = run(&place, &["keys", "rotate", &id(&key)]).failed(1);
        assert!(refused.contains("expires_at"), "{refused}");
    }
}

#[tokio::test]
async fn unique_column_of_the_application_is_named_and_nothing_is_half_done() {
    for place in places().await {
        create_budgets(&place).await;
        place.execute("CREATE UNIQUE INDEX one_name ON api_keys (user_id, name)").await;
        run(&place, &["migrate"]).done();
        let key = create(&place, &["--name", "ci"]);
        let refused = refuse(&place, &key, &["--overlap", "1d"]).await;
        assert!(refused.contains("nothing was changed") && refused.contains("name"), "{refused}");
        rotate(&place, &key, &["--name", "ci-2"]);
    }
}

/// What a role with the printed rights is answered to a rotation, after a change of them.
async fn rotated_by_role(place: &Place, key: &Value, change: &str) -> Run {
    let schema = place.value("SELECT CAST(current_schema() AS text)").await.unwrap();
    let (reader, role) = (format!("rotates_{schema}"), format!("rotates_{schema}_admin"));
    for name in [&reader, &role] {
        place.execute(&format!("DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN")).await;
    }
    let rights = keystile(&["migrate", "--print-grants", "--role", &reader], &place.url(), "").done();
    place.execute(&rights).await;
    place.execute(&change.replace("keystile_admin", &role)).await;
    let url = place.url().replace("postgres://keystile@", &format!("postgres://{role}@"));
    let run = keystile(&["keys", "rotate", &id(key), "--output", "json"], &url, "");
    for name in [&reader, &role] {
        place.execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}")).await;
    }
    run
}

#[tokio::test]
async fn printed_rights_are_enough() {
    let place = Place::postgres().await;
    place.user().await;
    create_budgets(&place).await;
    run(&place, &["migrate"]).done();
    let key = create(&place, &[]);
    place.budget("1", &[("api_key_id", Some(&id(&key)))]).await;
    place.execute("SELECT setval('budgets_id_seq', 100)").await;
    let new = rotated_by_role(&place, &key, "SELECT 1").await.json();
    assert_eq!(new["rotated_from"], key["id"]);
    let copies = place.value("SELECT CAST(count(*) AS text) FROM keystile_rotated_budgets").await;
    assert_eq!(copies.as_deref(), Some("2"));
}

#[tokio::test]
async fn missing_right_is_named_and_nothing_is_half_done() {
    let place = Place::postgres().await;
    place.user().await;
    create_budgets(&place).await;
    run(&place, &["migrate"]).done();
    let key = create(&place, &[]);
    place.budget("1", &[("api_key_id", Some(&id(&key)))]).await;
    place.execute("SELECT setval('budgets_id_seq', 100)").await;
    let rows = "SELECT (SELECT count(*) FROM api_keys) || '/' || (SELECT count(*) FROM budgets) || '/' ||
        (SELECT count(*) FROM keystile_rotations)";
    for (revoked, table) in [
        ("INSERT ON keystile_rotations", "keystile_rotations"),
        ("INSERT ON budgets", "budgets"),
        ("UPDATE (expires_at) ON api_keys", "api_keys"),
        ("INSERT ON api_keys", "api_keys"),
    ] {
        let change = format!("REVOKE {revoked} FROM keystile_admin");
        let refused = rotated_by_role(&place, &key, &change).await.failed(1);
        assert!(refused.contains(table) && refused.contains("nothing was changed"), "{refused}");
        assert_eq!(place.value(rows).await.as_deref(), Some("1/1/0"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_at_the_same_time_leaves_no_successor() {
    for place in places().await {
        for round in 0..6 {
            let key = create(&place, &[]);
            let command = |verb: &'static str| {
                let (url, id) = (place.url(), id(&key));
                // Now one is first, now the other.
                let pause = std::time::Duration::from_millis(if verb == "revoke" { 4 * round } else { 8 });
                std::thread::spawn(move || {
                    std::thread::sleep(pause);
                    keystile(&["keys", verb, &id], &url, "")
                })
            };
            let threads = [command("rotate"), command("revoke")];
            let [rotated, revoked] = threads.map(|thread| thread.join().unwrap());
            revoked.done();
            let active = "SELECT CAST(count(*) AS text) FROM api_keys WHERE is_active";
            assert_eq!(place.value(active).await.as_deref(), Some("0"), "{rotated:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_rotations_at_once_one_wins() {
    for place in places().await {
        let key = create(&place, &[]);
        let url = place.url();
        let rotations: Vec<_> = (0..6)
            .map(|_| {
                let (url, id) = (url.clone(), id(&key));
                std::thread::spawn(move || keystile(&["keys", "rotate", &id, "--overlap", "1d"], &url, ""))
            })
            .collect();
        let runs: Vec<Run> = rotations.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(runs.iter().filter(|run| run.status == 0).count(), 1, "{runs:?}");
        for run in runs.iter().filter(|run| run.status != 0) {
            let said = &run.stderr;
            assert!(said.contains("already rotated") || said.contains("at the same time"), "{said}");
        }
        let counts =
            "SELECT (SELECT count(*) FROM api_keys) || '/' || (SELECT count(*) FROM keystile_rotations)";
        assert_eq!(place.value(counts).await.as_deref(), Some("2/1"));
    }
}
