//! From the files to the settings of handshakes. Each file takes effect on its own: a certificate that cannot be used must
//! not hold up a revocation.

use std::{sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, UnixTime},
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use time::OffsetDateTime;

use super::{
    client_verifier::ClientVerifier,
    identity::Identity,
    source::{Content, FileRead, TlsSource},
    trust::{Authorities, RevocationLists},
};
use crate::{config::ClientFiles, metrics::TlsMetrics};

/// The settings of handshakes, made of the files' content.
pub(super) struct Material {
    provider: Arc<CryptoProvider>,
    protocol: &'static [u8],
    identity: Arc<Identity>,
    clients: Option<Clients>,
    pub(super) config: Arc<ServerConfig>,
}

#[derive(Clone)]
struct Clients {
    authorities: Arc<Authorities>,
    revoked: Option<Arc<RevocationLists>>,
    verifier: Arc<ClientVerifier>,
}

/// What a second read of the files leads to.
pub(super) struct Reload {
    /// The new settings. `None` if nothing that can be used has changed.
    pub(super) material: Option<Material>,
    /// What cannot be used.
    pub(super) problems: Vec<String>,
}

impl Material {
    pub(super) fn load(source: &TlsSource, protocol: &'static [u8]) -> anyhow::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let content = source.read();
        let identity = Identity::new(&usable(&content.pem)?, source)?;
        let clients = match (source.clients(), &content.authorities) {
            (Some(files), Some(authorities)) => {
                let authorities = Authorities::new(&usable(authorities)?, &files.authorities)?;
                let revoked = match (&files.revoked, &content.revoked) {
                    (Some(file), Some(revoked)) => {
                        let lists = RevocationLists::new(&usable(revoked)?, file, &authorities, &provider)?;
                        Some(Arc::new(lists))
                    }
                    _ => None,
                };
                Some(Clients::new(Arc::new(authorities), revoked, files, &provider)?)
            }
            _ => None,
        };
        Self::new(provider, protocol, Arc::new(identity), clients)
    }

    fn new(
        provider: Arc<CryptoProvider>,
        protocol: &'static [u8],
        identity: Arc<Identity>,
        clients: Option<Clients>,
    ) -> anyhow::Result<Self> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match &clients {
            Some(Clients { verifier, .. }) => {
                builder.with_client_cert_verifier(Arc::clone(verifier) as Arc<dyn ClientCertVerifier>)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config =
            builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&identity.key))));
        config.alpn_protocols = vec![protocol.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { provider, protocol, identity, clients, config: Arc::new(config) })
    }

    /// Whether the files are the ones in use.
    pub(super) fn is_made_of(&self, content: &Content) -> bool {
        let clients = self.clients.as_ref();
        let authorities = clients.map(|clients| &clients.authorities.content);
        let revoked = clients.and_then(|clients| clients.revoked.as_ref()).map(|lists| &lists.content);
        let is_same = |read: &Option<FileRead<Vec<u8>>>, used: Option<&Vec<u8>>| match read {
            Some(read) => read.as_ref().ok() == used,
            None => used.is_none(),
        };
        content.pem.as_ref().is_ok_and(|pem| *pem == self.identity.pem)
            && is_same(&content.authorities, authorities)
            && is_same(&content.revoked, revoked)
    }

    /// What two reads of the files lead to. A file that changed between them is still being written, and its turn comes
    /// at the next two reads.
    pub(super) fn reload(
        &self,
        source: &TlsSource,
        before: &Content,
        content: &Content,
        now: OffsetDateTime,
    ) -> Reload {
        let mut problems = Vec::new();
        let identity = renewed(Some(&before.pem), Some(&content.pem), &self.identity.pem, |pem| {
            let identity = Identity::new(pem, source)?;
            match identity.validity_problem(now) {
                Some(problem) if self.identity.validity_problem(now).is_none() => {
                    anyhow::bail!("{source}: {problem}")
                }
                _ => Ok(identity),
            }
        });
        let identity = settled(identity, &mut problems);
        let clients = match (source.clients(), &self.clients) {
            (Some(files), Some(clients)) => {
                clients.renewed(files, before, content, &self.provider, &mut problems)
            }
            _ => None,
        };
        if identity.is_none() && clients.is_none() {
            return Reload { material: None, problems };
        }
        let identity = identity.unwrap_or_else(|| Arc::clone(&self.identity));
        let clients = clients.or_else(|| self.clients.clone());
        let material = Self::new(Arc::clone(&self.provider), self.protocol, identity, clients);
        let material = material.map_err(|error| problems.push(format!("{error:#}"))).ok();
        Reload { material, problems }
    }

    /// Why peers are refused, or refuse, although the files can be used.
    pub(super) fn problems(&self, source: &TlsSource, now: OffsetDateTime) -> Vec<String> {
        let identity = self.identity.validity_problem(now).map(|problem| format!("{source}: {problem}"));
        let lists = source.clients().zip(self.clients.as_ref()).and_then(|(files, clients)| {
            Some(clients.revoked.as_ref()?.problems(&clients.authorities, files, now))
        });
        identity.into_iter().chain(lists.into_iter().flatten()).collect()
    }

    /// When the certificate expires.
    pub(super) fn not_after(&self) -> OffsetDateTime {
        self.identity.not_after
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
        let now = UnixTime::since_unix_epoch(since);
        clients.verifier.verify_client_cert(leaf, intermediates, now).map(drop)
    }

    /// Whether a revocation list has to be replaced by now.
    pub(super) fn is_past_update(&self, now: OffsetDateTime) -> bool {
        self.next_update().is_some_and(|update| update <= now)
    }

    pub(super) fn report(&self, metrics: &TlsMetrics) {
        metrics.not_after.set(seconds(self.not_after()));
        if let (Some(gauge), Some(update)) = (&metrics.next_update, self.next_update()) {
            gauge.set(seconds(update));
        }
    }

    fn next_update(&self) -> Option<OffsetDateTime> {
        self.clients.as_ref()?.revoked.as_ref()?.next_update()
    }
}

impl Clients {
    fn new(
        authorities: Arc<Authorities>,
        revoked: Option<Arc<RevocationLists>>,
        files: &ClientFiles,
        provider: &Arc<CryptoProvider>,
    ) -> anyhow::Result<Self> {
        let inner = authorities.verifier(revoked.as_deref(), provider)?;
        let verifier = ClientVerifier { inner, names: files.names.clone(), names_flag: files.names_flag };
        Ok(Self { authorities, revoked, verifier: Arc::new(verifier) })
    }

    /// The same with the CAs and the lists that are there now. `None` if nothing that can be used has changed.
    fn renewed(
        &self,
        files: &ClientFiles,
        before: &Content,
        content: &Content,
        provider: &Arc<CryptoProvider>,
        problems: &mut Vec<String>,
    ) -> Option<Self> {
        let (before_authorities, authorities) = (before.authorities.as_ref(), content.authorities.as_ref());
        let authorities =
            renewed(before_authorities, authorities, &self.authorities.content, |authorities| {
                Authorities::new(authorities, &files.authorities)
            });
        let authorities = settled(authorities, problems);
        let revoked = self.revoked.as_ref().zip(files.revoked.as_ref()).map(|(lists, file)| {
            renewed(before.revoked.as_ref(), content.revoked.as_ref(), &lists.content, |lists| {
                RevocationLists::new(lists, file, &self.authorities, provider)
            })
        });
        let revoked = revoked.and_then(|revoked| settled(revoked, problems));
        if authorities.is_none() && revoked.is_none() {
            return None;
        }
        let authorities = authorities.unwrap_or_else(|| Arc::clone(&self.authorities));
        let revoked = revoked.or_else(|| self.revoked.clone());
        let clients = Self::new(authorities, revoked, files, provider);
        clients.map_err(|error| problems.push(format!("{error:#}"))).ok()
    }
}

/// What a file has now. `None` if that is in use, or if the two reads differ: then it is still being written.
fn renewed<C: PartialEq, T>(
    before: Option<&FileRead<C>>,
    read: Option<&FileRead<C>>,
    used: &C,
    parse: impl FnOnce(&C) -> anyhow::Result<T>,
) -> anyhow::Result<Option<Arc<T>>> {
    let Some(read) = read.filter(|read| Some(*read) == before) else { return Ok(None) };
    let read = read.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    if read == used { Ok(None) } else { parse(read).map(|part| Some(Arc::new(part))) }
}

/// Keeps what is in use, and notes why.
fn settled<T>(renewed: anyhow::Result<Option<T>>, problems: &mut Vec<String>) -> Option<T> {
    renewed.map_err(|error| problems.push(format!("{error:#}"))).ok().flatten()
}

/// The content of a file at the start, where each error is final.
fn usable<T: Clone>(read: &FileRead<T>) -> anyhow::Result<T> {
    read.clone().map_err(|error| anyhow::anyhow!("{error}"))
}

/// Seconds since 1970, for metrics.
fn seconds(time: OffsetDateTime) -> f64 {
    time.unix_timestamp() as f64
}
