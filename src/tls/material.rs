//! Certificates, keys, CAs and revocation lists: from files to the settings of handshakes.

use std::{fmt, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use time::OffsetDateTime;
use tracing::warn;
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};
use zeroize::Zeroizing;

use super::{certificate::CertificateFacts, client_verifier::ClientVerifier, private_key::certified_key};
use crate::{
    config::{ClientFiles, NamedFile, TlsFiles},
    metrics::TlsMetrics,
};

/// Where certificate and key come from.
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

/// The content of the files.
#[derive(PartialEq)]
struct Content {
    pem: Pem,
    authorities: Vec<u8>,
    revoked: Option<Vec<u8>>,
}

/// The settings of handshakes, made of the files' content.
pub(super) struct Material {
    content: Content,
    protocol: &'static [u8],
    pub(super) config: Arc<ServerConfig>,
    clients: Option<Arc<ClientVerifier>>,
    not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    /// The earliest time at which a revocation list has to be replaced.
    next_update: Option<OffsetDateTime>,
}

impl TlsSource {
    fn read(&self) -> anyhow::Result<Content> {
        let files = match self {
            Self::Fixed(pem) => {
                return Ok(Content { pem: pem.clone(), authorities: Vec::new(), revoked: None });
            }
            Self::Files(files) => files,
        };
        let clients = files.clients.as_ref();
        Ok(Content {
            pem: Pem { chain: read(&files.certificate)?, key: Zeroizing::new(read(&files.key)?) },
            authorities: clients.map(|clients| read(&clients.authorities)).transpose()?.unwrap_or_default(),
            revoked: clients.and_then(|clients| clients.revoked.as_ref()).map(read).transpose()?,
        })
    }

    fn clients(&self) -> Option<&ClientFiles> {
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

impl Material {
    pub(super) fn load(source: &TlsSource, protocol: &'static [u8]) -> anyhow::Result<Self> {
        Self::new(source.read()?, source, protocol)
    }

    /// What the files are now. `None` if they have not changed.
    pub(super) fn reload(&self, source: &TlsSource, now: OffsetDateTime) -> anyhow::Result<Option<Self>> {
        let content = source.read()?;
        if content == self.content {
            return Ok(None);
        }
        let material = Self::new(content, source, self.protocol)?;
        if let Some(problem) = material.validity_problem(now)
            && self.validity_problem(now).is_none()
        {
            bail!("{source}: {problem}");
        }
        Ok(Some(material))
    }

    fn new(content: Content, source: &TlsSource, protocol: &'static [u8]) -> anyhow::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let (mut clients, mut next_update) = (None, None);
        if let Some(files) = source.clients() {
            let (verifier, update) = client_verifier(files, &content, &provider)?;
            (clients, next_update) = (Some(Arc::new(verifier)), update);
        }
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match &clients {
            Some(clients) => {
                builder.with_client_cert_verifier(Arc::clone(clients) as Arc<dyn ClientCertVerifier>)
            }
            None => builder.with_no_client_auth(),
        };
        let chain = CertificateDer::pem_slice_iter(&content.pem.chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.with_context(|| format!("{source}: the certificate file is no PEM"))?;
        let leaf = chain.first().and_then(CertificateFacts::read);
        let leaf =
            leaf.with_context(|| format!("{source}: the certificate file holds no certificate (PEM)"))?;
        let key = PrivateKeyDer::from_pem_slice(&content.pem.key);
        let key = key.with_context(|| format!("{source}: the key file holds no private key (PEM)"))?;
        let key = certified_key(chain, key).with_context(|| {
            format!("{source}: the key does not belong to the certificate, or cannot be used")
        })?;
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![protocol.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            content,
            protocol,
            config: Arc::new(config),
            clients,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            next_update,
        })
    }

    /// Why clients will refuse the certificate now.
    pub(super) fn validity_problem(&self, now: OffsetDateTime) -> Option<&'static str> {
        if now < self.not_before {
            Some("the certificate is not valid yet; check the clock")
        } else if now > self.not_after {
            Some("the certificate has expired")
        } else {
            None
        }
    }

    /// Whether a client may have a connection now.
    pub(super) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<(), rustls::Error> {
        let Some(clients) = &self.clients else { return Ok(()) };
        let [leaf, intermediates @ ..] = chain else { return Err(rustls::Error::NoCertificatesPresented) };
        let since = Duration::from_secs(now.unix_timestamp().try_into().unwrap_or(0));
        clients.verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(since)).map(drop)
    }

    /// Whether a revocation list has to be replaced by now.
    pub(super) fn is_past_update(&self, now: OffsetDateTime) -> bool {
        self.next_update.is_some_and(|update| update < now)
    }

    pub(super) fn report(&self, metrics: &TlsMetrics) {
        metrics.not_after.set(seconds(self.not_after));
        if let (Some(gauge), Some(update)) = (&metrics.next_update, self.next_update) {
            gauge.set(seconds(update));
        }
    }
}

/// The verifier, and when its revocation lists have to be replaced.
fn client_verifier(
    files: &ClientFiles,
    content: &Content,
    provider: &Arc<CryptoProvider>,
) -> anyhow::Result<(ClientVerifier, Option<OffsetDateTime>)> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&content.authorities) {
        let certificate = certificate.with_context(|| format!("{}: is no PEM", files.authorities))?;
        roots
            .add(certificate)
            .with_context(|| format!("{}: a certificate cannot be a CA", files.authorities))?;
    }
    if roots.is_empty() {
        bail!("{}: holds no certificate (PEM), so no client could connect", files.authorities);
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider));
    let mut next_update = None;
    if let (Some(file), Some(revoked)) = (&files.revoked, &content.revoked) {
        let lists = CertificateRevocationListDer::pem_slice_iter(revoked).collect::<Result<Vec<_>, _>>();
        let lists = lists.with_context(|| format!("{file}: is no PEM"))?;
        if lists.is_empty() {
            bail!("{file}: holds no revocation list (PEM, X509 CRL)");
        }
        let updates = lists.iter().filter_map(|list| {
            let (_, list) = CertificateRevocationList::from_der(list).ok()?;
            Some(list.next_update()?.to_datetime())
        });
        next_update = updates.min();
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    let inner = builder.build().with_context(|| match &files.revoked {
        Some(revoked) => format!("{} and {revoked}", files.authorities),
        None => files.authorities.to_string(),
    })?;
    Ok((ClientVerifier { inner, names: files.names.clone(), names_flag: files.names_flag }, next_update))
}

fn read(file: &NamedFile) -> anyhow::Result<Vec<u8>> {
    std::fs::read(&file.path).with_context(|| file.to_string())
}

/// Seconds since 1970, for metrics.
fn seconds(time: OffsetDateTime) -> f64 {
    time.unix_timestamp() as f64
}
