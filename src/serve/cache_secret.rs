//! The cache secret of `keystile serve`: configured, created once next to a SQLite file, or created for this process
//! only.

use std::{
    ffi::OsString,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::{
    config::{DatabaseUrl, DurableProofs, Secrets, ServeOptions},
    credential::{CacheSecret, CacheSecrets},
};

/// Secrets, and whether the next start will have them too.
pub(super) struct LastingSecrets {
    pub(super) secrets: CacheSecrets,
    pub(super) is_lasting: bool,
}

/// Suffix that is added to the name of a SQLite file to name its secret file.
const SUFFIX: &str = ".secret";

/// Returns the secrets for these options.
pub(super) fn cache_secrets(options: &ServeOptions) -> anyhow::Result<LastingSecrets> {
    if let Some(secrets) = options.cache_secrets().map_err(anyhow::Error::msg)?.as_ref().and_then(known) {
        return Ok(LastingSecrets { secrets, is_lasting: true });
    }
    if options.redis.redis_url.is_some() {
        warn!(
            "no --cache-secret: the Redis entries of this process are unreadable to other instances and \
             after a restart; create one with `openssl rand -hex 32`, and set it on all instances"
        );
    } else if options.durable_proofs != DurableProofs::None {
        match &options.database.database_url {
            DatabaseUrl::Sqlite(path) => match next_to(path) {
                Ok(secrets) => return Ok(LastingSecrets { secrets, is_lasting: true }),
                Err(error) => warn!(%error, "no cache secret: a restart costs one bcrypt for each key"),
            },
            DatabaseUrl::Postgres(_) => warn!(
                "no --cache-secret: a restart costs one bcrypt for each key; create one with `openssl rand -hex 32`, \
                 and set it on all instances, or set --durable-proofs none"
            ),
        }
    }
    Ok(LastingSecrets { secrets: CacheSecrets::one(CacheSecret::random()), is_lasting: false })
}

fn known(secrets: &Secrets) -> Option<CacheSecrets> {
    CacheSecrets::new(secrets.iter().map(|secret| CacheSecret::new(secret.expose())))
}

/// The secret in the file next to this database. The file is created if it does not exist.
fn next_to(database: &Path) -> io::Result<CacheSecrets> {
    let mut name = OsString::from(database);
    name.push(SUFFIX);
    let path = PathBuf::from(name);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    read_or_make(&path).map_err(named)
}

fn read_or_make(path: &Path) -> io::Result<CacheSecrets> {
    match read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make(path)?;
            // Another process may have created the file first: the secret in the file is the valid one.
            read(path)
        }
        secrets => secrets,
    }
}

fn read(path: &Path) -> io::Result<CacheSecrets> {
    let text = Zeroizing::new(std::fs::read_to_string(path)?);
    let secrets = text.trim_end_matches(['\r', '\n']).parse::<Secrets>();
    let secrets = secrets.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    known(&secrets).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// Writes the file under a temporary name first, so that no process reads an incomplete file. From its creation on,
/// only its owner can read it. An existing file is kept.
fn make(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let secret: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(file, "{}", *Zeroizing::new(HEXLOWER.encode(&*secret)))?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => {
            info!(path = %path.display(), "created a cache secret; keep it out of backups of the database");
            Ok(())
        }
        Err(refused) if refused.error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(refused) => Err(refused.error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::credential::Credential;

    fn digest(secrets: &CacheSecrets) -> String {
        Credential::parse(b"ks_sample").expect("well-formed").digest(secrets.newest()).to_text()
    }

    #[test]
    fn many_at_once_make_one_secret_which_its_owner_alone_can_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("keys.db");
        let digests: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..16).map(|_| scope.spawn(|| digest(&next_to(&database).expect("a secret")))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(digests.iter().all(|digest| *digest == digests[0]));
        let files: Vec<_> = std::fs::read_dir(folder.path()).expect("read").flatten().collect();
        let names: Vec<_> = files.iter().map(std::fs::DirEntry::file_name).collect();
        assert_eq!(names, ["keys.db.secret"], "nothing is left of the others");
        assert_eq!(files[0].metadata().expect("read").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn file_that_holds_no_secret_is_named_and_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.db.secret");
        std::fs::write(&path, "short").expect("written");
        let error = next_to(&folder.path().join("keys.db")).expect_err("no secret").to_string();
        assert!(error.contains("keys.db.secret") && error.contains("32 characters"), "{error}");
        assert_eq!(std::fs::read_to_string(path).expect("read"), "short");
    }
}
