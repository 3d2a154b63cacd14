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
        let key = create(&place, &["--name", "ci"]);
        let refused = refuse(&place, &key, &["--overlap", "1d"]).await;
        assert!(refused.contains("nothing was changed") && refused.contains("name"), "{refused}");
        rotate(&place, &key, &["--name", "ci-2"]);
    }
}

#[tokio::test]
async fn missing_right_is_named_and_nothing_is_half_done() {
    let place = Place::postgres().await;
    place.user().await;
    let key = create(&place, &[]);
    let schema = place.value("SELECT CAST(current_schema() AS text)").await.unwrap();
    let role = format!("role_of_{schema}");
    place
        .execute(&format!(
            "DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};
            GRANT SELECT, INSERT, UPDATE ON api_keys, users TO {role};
            GRANT USAGE, UPDATE ON SEQUENCE api_keys_id_seq TO {role}"
        ))
        .await;
    let url = place.url().replace("postgres://keystile@", &format!("postgres://{role}@"));
    let refused = keystile(&["keys", "rotate", &id(&key)], &url, "").failed(1);
    assert!(refused.contains("keystile_rotations") && refused.contains("nothing was changed"), "{refused}");
    place.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    let count = place.value("SELECT CAST(count(*) AS text) FROM api_keys").await;
    assert_eq!(count.as_deref(), Some("1"));
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
