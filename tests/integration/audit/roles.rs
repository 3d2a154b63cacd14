//! Nobody but the triggers writes the audit log.

use tokio_postgres::NoTls;

use crate::harness::{cluster::Cluster, keystile::keystile};

/// As in the documentation: a role that manages keys and reads the audit log. An administrator gave every application all
/// rights to new tables.
const MANAGER: &str = "CREATE ROLE manager LOGIN;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO manager;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO manager;
    ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO manager";

async fn manager() -> (Cluster, tokio_postgres::Client) {
    let server = Cluster::start();
    server.execute(MANAGER).await;
    keystile(&["migrate"], &server.url(), "").done();
    server.execute("GRANT CREATE ON SCHEMA public TO manager").await;
    let (client, connection) = tokio_postgres::connect(&server.url_as("manager", ""), NoTls).await.unwrap();
    tokio::spawn(connection);
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn role_that_manages_keys_cannot_change_or_forge_entries() {
    let (server, manager) = manager().await;
    let url = server.url_as("manager", "");
    let user = ["users", "create", "--email", "ada@example.com", "--username", "ada"];
    keystile(&user, &url, "").done();
    let audit = keystile(&["audit"], &url, "").stdout;
    assert!(audit.contains("create users 1"), "it reads the log: {audit}");
    manager.batch_execute("CREATE TABLE own (LIKE users)").await.unwrap();
    for forgery in [
        "INSERT INTO keystile_audit (source, action, table_name) VALUES ('user', 'create', 'users')",
        "UPDATE keystile_audit SET actor = 'eve'",
        "DELETE FROM keystile_audit",
        "TRUNCATE keystile_audit",
        "DROP TABLE keystile_audit",
        "ALTER TABLE keystile_audit DISABLE TRIGGER ALL",
        "ALTER TABLE users DISABLE TRIGGER ALL",
        "SELECT setval('keystile_audit_lost', 1, false)",
        "SELECT setval('keystile_audit_id_seq', 1, false)",
        "CREATE TRIGGER forged BEFORE INSERT ON keystile_audit EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE TRIGGER forged AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION keystile_audit_users()",
    ] {
        let refused = manager.batch_execute(forgery).await;
        assert!(refused.is_err(), "it may: {forgery}");
    }
    assert_eq!(server.value("SELECT count(*) FROM keystile_audit").await.as_deref(), Some("1"));
    let refused = keystile(&["audit", "--prune-before", "0s"], &url, "");
    assert_eq!(refused.status, 1, "{}", refused.stdout);
    assert!(refused.stderr.contains("permission denied"), "{}", refused.stderr);
}

/// It may pretend to act for another actor, but not as another role.
#[tokio::test(flavor = "multi_thread")]
async fn role_is_recorded_whatever_the_session_claims() {
    let (server, manager) = manager().await;
    let insert =
        "INSERT INTO users (email, username, hashed_password) VALUES ('ada@example.com', 'ada', '!')";
    manager.batch_execute(insert).await.unwrap();
    server.execute("CREATE ROLE team; GRANT team TO manager; GRANT ALL ON users TO team").await;
    for claim in [
        r#"SET keystile.actor = '{"kind": "user", "name": "root", "action": "create"}'"#,
        "SET keystile.actor = 'no JSON'",
        r#"SET keystile.actor = '{"name": "\u0000"}'"#,
        "SET keystile.actor = '[]'",
        "SET application_name = 'innocent'",
        "SET session_replication_role = default",
        "SET standard_conforming_strings = off",
        "SET search_path = pg_temp",
        "SET ROLE team",
    ] {
        let _ = manager.batch_execute(claim).await;
        manager.batch_execute("UPDATE public.users SET is_active = NOT is_active").await.unwrap();
        let recorded = "SELECT database_role || ': ' || (after_values ->> 'is_active') FROM keystile_audit
            ORDER BY id DESC LIMIT 1";
        let recorded = server.value(recorded).await.unwrap();
        assert!(recorded.starts_with("manager"), "{claim}: {recorded}");
    }
    let count = "SELECT count(*) FROM keystile_audit WHERE action = 'update' OR action = 'create'";
    assert_eq!(server.value(count).await.as_deref(), Some("9"));
    assert_eq!(
        server.value("SELECT database_role FROM keystile_audit ORDER BY id DESC LIMIT 1").await.as_deref(),
        Some("manager as team")
    );
    let lost = "SELECT pg_sequence_last_value('keystile_audit_lost')";
    assert_eq!(server.value(lost).await, None);
}
