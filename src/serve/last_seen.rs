//! The newest change that an earlier run had seen, kept outside the database. A database without that change was restored
//! from a backup, and keys that were revoked since the backup may be active again.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use data_encoding::HEXLOWER;
use fred::{clients::Client, interfaces::KeysInterface};
use metrics::Gauge;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::{
    clock,
    config::DatabaseUrl,
    metrics::Metrics,
    redis::{Redis, STORE},
    revocation::{ChangeLog, FeedState, LogRead, MEMORY, Since},
    store::Database,
};

/// A change of the log, and when the log was last seen to have it as its newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LastSeen {
    /// The entry's number and its random number.
    entry: String,
    /// In seconds since 1970.
    at: i64,
}

/// Where it is kept: in Redis for all instances, or next to a SQLite file.
enum Place {
    Redis(Redis, String),
    File(PathBuf),
}

/// Suffix that is added to the name of a SQLite file.
const SUFFIX: &str = ".seen";

/// Maximum length in bytes. Keystile writes no longer one.
const MAX_LEN: usize = 1 << 10;

/// How often the place is written without a new change, so that the time in it is recent, and a Redis that lost it has it
/// again.
const REFRESH: Duration = Duration::from_secs(60);
/// Minimum time between two writes, and between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// Compares the database with what was seen of it, once it answers. Then keeps the newest change that the feed has seen.
/// Ends at once where there is no place for it.
pub(super) async fn watch_last_seen(
    database: Database,
    url: DatabaseUrl,
    redis: Option<Redis>,
    mut feed: watch::Receiver<FeedState>,
    metrics: Metrics,
) {
    let older = metrics.database_older();
    older.set(0.0);
    let Some(place) = Place::of(&url, redis) else { return };
    let _ = feed.wait_for(|state| state.newest.is_some()).await;
    compare(&database, &place, &older, &metrics).await;
    loop {
        let newest = feed.borrow_and_update().newest.clone();
        if let Some(entry) = &newest {
            let seen = LastSeen { entry: entry.clone(), at: clock::wall().unix_timestamp() };
            if let Err(error) = place.write(&seen, &metrics).await {
                debug!(%error, "the newest change that was seen is not kept");
            }
        }
        tokio::time::sleep(PAUSE).await;
        let is_new = feed.wait_for(|state| state.newest != newest);
        let _ = tokio::time::timeout(REFRESH, is_new).await;
    }
}

/// Warns if the database lacks what was seen of it.
async fn compare(database: &Database, place: &Place, older: &Gauge, metrics: &Metrics) {
    let seen = match place.read(metrics).await {
        Ok(Some(seen)) => seen,
        Ok(None) => return,
        Err(error) => return debug!(%error, "what an earlier run had seen is unknown"),
    };
    loop {
        match lacks(database, &seen).await {
            Ok(true) => {
                older.set(1.0);
                warn!(
                    cause = "restored",
                    fix = "revoke again the keys that were revoked since the backup: see docs/operations/backups.md",
                    "the database is older than what an earlier run had seen, as after the restore of a backup: keys \
                     that were revoked since may be active again"
                );
                return;
            }
            Ok(false) => return,
            Err(error) => debug!(%error, "the log of changes could not be compared with what was seen of it"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the log must have this entry, and does not.
///
/// Instances delete old entries, but never the newest, and none that was new within [`MEMORY`].
async fn lacks<L: ChangeLog>(log: &L, seen: &LastSeen) -> Result<bool, crate::revocation::LogError> {
    let LogRead::Read(first) = log.read(None).await? else { return Ok(false) };
    let Some(position) = first.position else { return Ok(false) };
    let since = Since { position, anchor: Some(seen.entry.clone()) };
    let LogRead::Read(reading) = log.read(Some(since)).await? else { return Ok(false) };
    if reading.evidence.anchor_is_there || reading.evidence.hides_rows {
        return Ok(false);
    }
    let newest = reading.evidence.anchor.as_deref().and_then(number);
    let is_not_newer = newest.is_none_or(|newest| number(&seen.entry).is_some_and(|seen| newest <= seen));
    let age = clock::wall().unix_timestamp().saturating_sub(seen.at);
    Ok(is_not_newer || age < MEMORY.as_secs().cast_signed() / 2)
}

/// The number of an entry.
fn number(entry: &str) -> Option<u64> {
    let (number, random) = entry.split_once(':')?;
    random.parse::<i64>().ok()?;
    number.parse().ok()
}

impl Place {
    fn of(url: &DatabaseUrl, redis: Option<Redis>) -> Option<Self> {
        match (redis, url) {
            (Some(redis), _) => {
                let digest = Sha256::digest(url.to_string());
                let name = format!("keystile:seen:{}", HEXLOWER.encode(&digest[..8]));
                Some(Self::Redis(redis, name))
            }
            (None, DatabaseUrl::Sqlite(path)) => {
                let mut name = OsString::from(path);
                name.push(SUFFIX);
                Some(Self::File(name.into()))
            }
            (None, DatabaseUrl::Postgres(_)) => None,
        }
    }

    /// None where nothing was seen yet, or another program wrote it.
    async fn read(&self, metrics: &Metrics) -> Result<Option<LastSeen>, String> {
        let text = match self {
            Self::Redis(redis, name) => {
                // The empty text where there is none. Keystile's user in Redis needs this command anyhow.
                let get =
                    |client: Client| async move { client.getrange::<String, _>(name, 0, MAX_LEN).await };
                let text = redis.call(&metrics.store_duration(STORE, "read"), get).await;
                Some(text.map_err(|error| error.to_string())?)
            }
            Self::File(path) => match fs::read_to_string(path) {
                Ok(text) => Some(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(format!("{}: {error}", path.display())),
            },
        };
        let seen = text.and_then(|text| serde_json::from_str::<LastSeen>(&text).ok());
        Ok(seen.filter(|seen| number(&seen.entry).is_some()))
    }

    async fn write(&self, seen: &LastSeen, metrics: &Metrics) -> Result<(), String> {
        let text = serde_json::to_string(seen).map_err(|error| error.to_string())?;
        match self {
            Self::Redis(redis, name) => {
                let set = |client: Client| async move {
                    client.set::<(), _, _>(name, text, None, None, false).await
                };
                let written = redis.call(&metrics.store_duration(STORE, "write"), set).await;
                written.map_err(|error| error.to_string())
            }
            Self::File(path) => replace(path, &text).map_err(|error| format!("{}: {error}", path.display())),
        }
    }
}

/// Writes a new file in the place of the old one. Its permissions are for its owner.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}
