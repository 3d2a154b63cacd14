//! The command writes nothing, and creates nothing.

use std::{collections::BTreeMap, fs, path::Path, time::SystemTime};

use keystile::{
    metrics::Metrics,
    store::{Database, NewUser},
};

use super::{Examined, sound};
use crate::harness::{
    cluster::Cluster,
    keystile::keystile,
    place::{Place, options},
};

/// The files in a folder, with content and time.
fn files(folder: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entry = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let modified = path.metadata().unwrap().modified().unwrap();
        (path.display().to_string(), (fs::read(&path).unwrap(), modified))
    };
    fs::read_dir(folder).unwrap().map(entry).collect()
}

#[tokio::test]
async fn missing_file_is_an_error_and_is_not_created() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/keystile.db", folder.path().display());
    let said = keystile(&["doctor"], &url, "").failed(1);
    assert!(said.contains(&url) && said.contains("No such file"), "{said}");
    assert!(files(folder.path()).is_empty());
}

#[tokio::test]
async fn empty_file_stays_empty() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keystile.db");
    fs::write(&file, "").unwrap();
    Examined::of(&format!("sqlite:{}", file.display())).expect("table_missing", "error", "api_keys");
    assert_eq!(files(folder.path()).len(), 1);
    assert_eq!(fs::read(&file).unwrap(), b"");
}

#[tokio::test]
async fn file_and_its_folder_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("odd ?name#%41.db");
    let url = format!("sqlite:{}", file.display());
    keystile(&["migrate"], &url, "").done();
    for mode in ["wal", "delete"] {
        rusqlite::Connection::open(&file).unwrap().pragma_update(None, "journal_mode", mode).unwrap();
        let before = files(folder.path());
        assert_eq!(before.len(), 1, "{:?}", before.keys());
        let examined = Examined::of(&url);
        assert_eq!(examined.codes(), [""; 0], "{:#}", examined.report);
        assert_eq!(files(folder.path()), before, "{mode}");
    }
}

/// What another process has committed is in `-wal` until its next checkpoint.
#[tokio::test]
async fn file_in_use_is_read_with_its_latest_commits() {
    let [place, _] = sound().await;
    let file = place.file().unwrap();
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute("UPDATE api_keys SET rate_limit_per_day = -1", []).unwrap();
    assert!(Path::new(&format!("{}-wal", file.display())).exists());
    Examined::of(&place.url()).expect("undecodable", "error", "api_keys.rate_limit_per_day");
    other.execute("UPDATE api_keys SET rate_limit_per_day = NULL", []).unwrap();
}

async fn expect_refusal_to_write(place: &Place) {
    let metrics = Metrics::new().unwrap();
    let database = Database::connect_read_only(&options(&place.url(), 5_000), &metrics).unwrap();
    let user =
        NewUser { email: "eve@example.com".into(), username: "eve".into(), role: None, superuser: false };
    let refusal = database.create_user(&user).await.unwrap_err().to_string();
    assert!(refusal.contains("read-only") || refusal.contains("readonly"), "{refusal}");
    assert_eq!(place.value("SELECT CAST(count(*) AS text) FROM users").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn connection_for_reading_refuses_to_write() {
    for place in sound().await {
        expect_refusal_to_write(&place).await;
        // A file that another process has open is opened in another way.
        let other = place.file().map(|file| rusqlite::Connection::open(file).unwrap());
        if let Some(other) = &other {
            other.execute("UPDATE api_keys SET name = 'in use'", []).unwrap();
        }
        expect_refusal_to_write(&place).await;
    }
}

/// A transaction that writes has a number.
#[tokio::test(flavor = "multi_thread")]
async fn no_transaction_of_a_server_writes() {
    let server = Cluster::start();
    keystile(&["migrate"], &server.url(), "").done();
    let next = "SELECT CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text)";
    let before = server.value(next).await;
    assert_eq!(Examined::of(&server.url()).status, 0);
    assert_eq!(server.value(next).await, before);
}
