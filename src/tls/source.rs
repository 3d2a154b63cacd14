//! Where certificates, keys, CAs and revocation lists come from, and one read of them.

use std::{fmt, os::unix::fs::PermissionsExt};

use tracing::warn;
use zeroize::Zeroizing;

use crate::config::{ClientFiles, NamedFile, TlsFiles};

/// Where certificate and key come from.
#[derive(Clone)]
pub enum TlsSource {
    /// Files, which may change.
    Files(TlsFiles),
    /// Text, which does not change.
    Fixed(Pem),
}

/// A certificate chain and its key, as text.
#[derive(Clone, PartialEq)]
pub struct Pem {
    /// The chain.
    pub chain: Vec<u8>,
    /// The key.
    pub key: Zeroizing<Vec<u8>>,
}

/// One read of a file, or its error as text.
pub(super) type FileRead<T> = Result<T, String>;

/// One read of all files.
pub(super) struct Content {
    pub(super) pem: FileRead<Pem>,
    /// `None` without a CA of clients.
    pub(super) authorities: Option<FileRead<Vec<u8>>>,
    /// `None` without revocation lists.
    pub(super) revoked: Option<FileRead<Vec<u8>>>,
}

impl TlsSource {
    pub(super) fn read(&self) -> Content {
        let files = match self {
            Self::Fixed(pem) => return Content { pem: Ok(pem.clone()), authorities: None, revoked: None },
            Self::Files(files) => files,
        };
        let clients = files.clients.as_ref();
        Content {
            pem: read(&files.certificate).and_then(|chain| {
                let key = Zeroizing::new(read(&files.key)?);
                Ok(Pem { chain, key })
            }),
            authorities: clients.map(|clients| read(&clients.authorities)),
            revoked: clients.and_then(|clients| clients.revoked.as_ref()).map(read),
        }
    }

    pub(super) fn clients(&self) -> Option<&ClientFiles> {
        match self {
            Self::Files(files) => files.clients.as_ref(),
            Self::Fixed(_) => None,
        }
    }

    pub(super) fn has_revocation_lists(&self) -> bool {
        self.clients().is_some_and(|clients| clients.revoked.is_some())
    }

    /// Logs that other users of this machine can read the key.
    pub(super) fn warn_of_open_key(&self) {
        let Self::Files(TlsFiles { key: NamedFile { flag, path }, .. }) = self else { return };
        let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        if mode & 0o004 != 0 {
            warn!(flag, path = %path.display(), "each user of this machine can read the private key; chmod o-r");
        }
    }
}

impl fmt::Display for TlsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(TlsFiles { certificate, key, .. }) => write!(f, "{certificate} and {key}"),
            Self::Fixed(_) => f.write_str("the certificate of this process"),
        }
    }
}

fn read(file: &NamedFile) -> FileRead<Vec<u8>> {
    std::fs::read(&file.path).map_err(|error| format!("{file}: {error}"))
}
