//! `keystile backup`: a copy of a SQLite file that is in use.

use std::os::unix::fs::MetadataExt;

use crate::harness::{
    keystile::keystile,
    service::{Keystile, Setup},
};

#[tokio::test(flavor = "multi_thread")]
async fn copy_has_what_is_only_in_the_write_ahead_log() {
    let setup = Setup::new();
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    // A connection that stays open, as an instance has, keeps the log from being merged into the file.
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    setup.json(&["keys", "revoke", &key.id.to_string()]);
    let is_active = |file: &str| {
        let connection = rusqlite::Connection::open(setup.path(file)).unwrap();
        let sql = "SELECT is_active FROM api_keys WHERE id = ?1";
        connection.query_row(sql, [key.id], |row| row.get::<_, bool>(0)).unwrap()
    };
    std::fs::copy(setup.path("keystile.db"), setup.path("copied.db")).unwrap();
    assert!(is_active("copied.db"), "a plain copy is older; otherwise this test shows nothing");

    assert!(setup.run(&["backup", "backup.db"]).status.success());
    assert_eq!(std::fs::metadata(setup.path("backup.db")).unwrap().mode() & 0o777, 0o600);
    assert!(!is_active("backup.db"));
    assert!(!setup.path("backup.db-wal").exists());
    let copy = format!("sqlite:{}", setup.path("backup.db").display());
    assert_eq!(
        keystile(&["keys", "list", "--all", "--output", "json"], &copy, "").json()[0]["is_active"],
        false
    );
}

#[test]
fn backup_overwrites_nothing_and_creates_no_database() {
    let setup = Setup::new();
    let failed = |arguments: &[&str], words: &[&str]| {
        let output = setup.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        words.iter().for_each(|word| assert!(error.contains(word), "{word} in {error}"));
    };
    failed(&["backup", "backup.db"], &["no such file", "keystile.db"]);
    assert!(!setup.path("keystile.db").exists() && !setup.path("backup.db").exists());
    assert!(setup.run(&["migrate"]).status.success());
    std::fs::write(setup.path("backup.db"), "precious").unwrap();
    failed(&["backup", "backup.db"], &["backup.db exists already"]);
    assert_eq!(std::fs::read_to_string(setup.path("backup.db")).unwrap(), "precious");
    failed(&["backup", "no/such/folder.db"], &["no/such/folder.db"]);
    failed(
        &["backup", "x.db", "--database-url", "postgres://app:hunter2@db/keys"],
        &["pg_dump", "postgres://db"],
    );
}
