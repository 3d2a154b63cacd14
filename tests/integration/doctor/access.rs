//! Rights, row-level security, and the mode of a file.

use std::{
    fs::{Permissions, set_permissions},
    os::unix::fs::PermissionsExt,
    process::Command,
};

use super::{Examined, sound};
use crate::harness::{
    place::Place,
    postgres::{Schema, hand_over},
};

/// The rights that the documentation gives to the role of an instance.
const RIGHTS: &str = "
    GRANT USAGE ON SCHEMA {schema} TO {role};
    GRANT SELECT ON api_keys, users, budgets TO {role};
    GRANT UPDATE (total_requests, last_used_at) ON api_keys TO {role};
    GRANT SELECT, UPDATE, DELETE ON keystile_changes TO {role};
    GRANT SELECT, INSERT, DELETE ON keystile_proofs TO {role};";

/// What a role with these rights finds after a change.
async fn as_instance(change: &str) -> Examined {
    let [_, place] = sound().await;
    let schema = place.value("SELECT CAST(current_schema() AS text)").await.unwrap();
    let role = format!("role_of_{schema}");
    place.execute(&format!("DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN")).await;
    for sql in [RIGHTS, change] {
        place.execute(&sql.replace("{schema}", &schema).replace("{role}", &role)).await;
    }
    let url = place.url().replace("postgres://keystile@", &format!("postgres://{role}@"));
    let examined = Examined::of(&url);
    place.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    examined
}

#[tokio::test]
async fn documented_rights_are_enough() {
    let examined = as_instance("SELECT 1").await;
    assert_eq!(examined.codes(), ["column_unread", "hash_costs"], "{:#}", examined.report);
}

#[tokio::test]
async fn missing_right_is_found_with_its_grant() {
    for (change, severity, table, right) in [
        ("REVOKE SELECT ON budgets FROM {role}", "error", "budgets", "SELECT (user_id, "),
        (
            "REVOKE SELECT ON users FROM {role}; GRANT SELECT (id, is_active, email, role, username, is_superuser,
                account_locked) ON users TO {role}",
            "error",
            "users",
            "SELECT (account_locked_until)",
        ),
        (
            "REVOKE UPDATE (total_requests) ON api_keys FROM {role}",
            "warning",
            "api_keys",
            "UPDATE (total_requests)",
        ),
        ("REVOKE DELETE ON keystile_changes FROM {role}", "warning", "keystile_changes", "DELETE"),
        ("REVOKE INSERT ON keystile_proofs FROM {role}", "note", "keystile_proofs", "INSERT"),
        ("REVOKE SELECT ON keystile_proofs FROM {role}", "note", "keystile_proofs", "SELECT"),
    ] {
        let examined = as_instance(change).await;
        let finding = examined.expect("right_missing", severity, table);
        let fix = finding["fix"].as_str().unwrap();
        assert!(fix.starts_with(&format!("run GRANT {right}")), "{change}: {fix}");
        assert!(fix.contains(&format!(" ON {table} TO ")), "{change}: {fix}");
    }
}

#[tokio::test]
async fn table_that_may_not_be_read_is_reported_as_not_examined() {
    let examined = as_instance("REVOKE SELECT ON budgets FROM {role}").await;
    let finding = examined.expect("not_examined", "error", "budgets");
    assert!(finding["message"].as_str().unwrap().contains("permission denied"), "{finding}");
}

#[tokio::test]
async fn schema_that_may_not_be_used_hides_its_tables() {
    let examined = as_instance("REVOKE USAGE ON SCHEMA {schema} FROM {role}").await;
    let finding = examined.expect("table_missing", "error", "api_keys");
    assert!(finding["fix"].as_str().unwrap().contains("USAGE"), "{finding}");
}

#[tokio::test]
async fn log_that_may_not_be_read_is_found() {
    let examined = as_instance("REVOKE SELECT ON keystile_changes FROM {role}").await;
    let finding = examined.expect("feed_unreadable", "warning", "");
    assert!(finding["message"].as_str().unwrap().contains("permission denied"), "{finding}");
}

#[tokio::test]
async fn row_level_security_is_found_where_it_may_hide_rows() {
    let enable = "ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;";
    let all = "CREATE POLICY everything ON api_keys FOR SELECT TO {role} USING (true);";
    let active = "CREATE POLICY active_keys ON api_keys FOR SELECT USING (is_active);";
    let restrictive = "CREATE POLICY fewer ON api_keys AS RESTRICTIVE FOR SELECT USING (is_active);";
    for (policies, is_found) in [
        (String::new(), true),
        (active.to_owned(), true),
        (all.to_owned(), false),
        ([all, active].concat(), false),
        ([all, restrictive].concat(), true),
        (all.replace("TO {role}", "TO keystile"), true),
        (all.replace("FOR SELECT", "FOR UPDATE"), true),
    ] {
        let examined = as_instance(&format!("{enable}{policies}")).await;
        if is_found {
            examined.expect("rows_hidden", "error", "api_keys");
        } else {
            assert!(!examined.codes().contains(&"rows_hidden"), "{policies}: {:#}", examined.report);
        }
    }
}

#[tokio::test]
async fn row_level_security_of_the_log_is_found() {
    let examined = as_instance("ALTER TABLE keystile_changes ENABLE ROW LEVEL SECURITY").await;
    examined.expect("feed_rows_hidden", "warning", "");
}

#[tokio::test]
async fn owner_is_told_that_its_rights_say_nothing_about_instances() {
    let schema = Schema::create().await;
    let role = format!("owner_of_{}", schema.name());
    schema
        .execute(&format!(
            "DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA {} TO {role}",
            schema.name()
        ))
        .await;
    let url = schema.url().replace("postgres://keystile@", &format!("postgres://{role}@"));
    crate::harness::keystile::keystile(&["migrate"], &url, "").done();
    Examined::of(&url).expect("role_unlimited", "note", "");
    schema.execute(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn file_that_others_can_use_is_found() {
    let place = Place::sqlite().await;
    let file = place.file().unwrap();
    for (mode, severity) in [(0o644, "warning"), (0o666, "error")] {
        set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        Examined::of(&place.url()).expect("file_mode", severity, "");
    }
    set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    assert!(!Examined::of(&place.url()).codes().contains(&"file_mode"));
}

#[tokio::test]
async fn file_that_cannot_be_written_is_found() {
    let place = Place::sqlite().await;
    let file = place.file().unwrap();
    let folder = file.parent().unwrap();
    let user = hand_over(folder);
    set_permissions(&file, Permissions::from_mode(0o400)).unwrap();
    let program = env!("CARGO_BIN_EXE_keystile");
    let command = [&user[..], &[program, "doctor", "--output", "json"]].concat();
    let output = Command::new(command[0])
        .args(&command[1..])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("KEYSTILE_DATABASE_URL", place.url())
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout);
    let report =
        report.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let examined = Examined { status: output.status.code().unwrap(), report };
    examined.expect("file_read_only", "warning", "");
    assert_eq!(examined.status, 0);
}
