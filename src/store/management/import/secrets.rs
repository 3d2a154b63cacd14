//! The secrets of imported keys: found among the keys that exist, and hashed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use data_encoding::BASE64_NOPAD;
use parking_lot::Mutex;

use super::{
    super::{
        Database, ManagementError, Result, Schema,
        keys::{blocking, proves},
    },
    options::{ImportOptions, ImportProgress, ImportStep},
    row::ImportRow,
};
use crate::{clock::Timestamps, credential::Credential, store::KeyStore};

/// Keys that are there already and are named. Each costs bcrypt, and the import fails with the first.
const SHOWN_THERE: usize = 50;

impl Database {
    /// Refuses keys that are in the file twice, or in the database already. A bcrypt hash differs each time, so the secret
    /// itself is compared.
    pub(super) async fn refuse_duplicates(
        &self,
        schema: &Schema,
        rows: &[ImportRow],
        errors: &mut BTreeMap<u64, String>,
        progress: &ImportProgress,
    ) -> Result<()> {
        let mut seen = HashMap::new();
        for row in rows.iter().filter(|row| row.exported.is_some()) {
            let Some(hash) = row.sha256() else { continue };
            if seen.insert(hash.tag(), row.line).is_some() {
                errors.entry(row.line).or_insert_with(|| "the same key is in the file twice".into());
            }
        }
        let known = self.prefixes(schema).await?;
        let mut found_there = 0;
        for (done, row) in rows.iter().enumerate() {
            progress(ImportStep::Comparing, done + 1);
            let Some(secret) = row.secret().filter(|_| known.contains_key(row.prefix())) else { continue };
            if found_there == SHOWN_THERE {
                break;
            }
            let found = self.records(secret.prefix(), Timestamps::now()).await?;
            for record in found.records.iter() {
                let (secret, hash) = (secret.clone(), record.hash.clone());
                if blocking(move || proves(&secret, &hash)).await? {
                    let id = record.id.0;
                    found_there += 1;
                    errors.entry(row.line).or_insert_with(|| format!("it is there already, as key {id}"));
                }
            }
        }
        Ok(())
    }
}

/// Makes the hash of each row that has none, with as many threads as there are cores. A dry run needs none, and gets texts of
/// the same length.
pub(super) async fn hash(
    rows: &mut [ImportRow],
    options: &ImportOptions,
    progress: &ImportProgress,
) -> Result<()> {
    let secrets: Vec<_> = rows.iter().map(|row| row.secret().cloned()).collect();
    let (cost, is_dry_run, progress) = (options.cost, options.is_dry_run, progress.clone());
    let hashes = blocking(move || {
        if is_dry_run {
            return Ok(secrets.iter().map(|secret| secret.as_ref().map(|_| placeholder())).collect());
        }
        hash_all(&secrets, cost, &*progress)
    });
    let hashes: Vec<Option<String>> = hashes.await??;
    for (row, hash) in rows.iter_mut().zip(hashes) {
        if let Some(hash) = hash {
            row.values.push(("key_hash", Some(hash)));
        }
    }
    Ok(())
}

fn hash_all(
    secrets: &[Option<Credential>],
    cost: u32,
    progress: &(dyn Fn(ImportStep, usize) + Send + Sync),
) -> Result<Vec<Option<String>>> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let hashes: Vec<_> = secrets.iter().map(|_| Mutex::new(None)).collect();
    let failed = Mutex::new(None);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(secrets.len());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(secret) = secrets.get(at) else { return };
                    match secret.as_ref().map(|secret| bcrypt::hash(secret.expose(), cost)).transpose() {
                        Ok(hash) => *hashes[at].lock() = hash,
                        Err(error) => *failed.lock() = Some(error),
                    }
                    progress(ImportStep::Hashing, done.fetch_add(1, Ordering::Relaxed) + 1);
                }
            });
        }
    });
    if let Some(error) = failed.into_inner() {
        return Err(ManagementError::Refused(format!("--cost {cost}: {error}")));
    }
    Ok(hashes.into_iter().map(Mutex::into_inner).collect())
}

/// A text with the length and the form of a bcrypt hash, and different each time. It is no hash of anything.
fn placeholder() -> String {
    let random: [u8; 39] = rand::random();
    format!("$2b$00${}.", BASE64_NOPAD.encode(&random))
}
