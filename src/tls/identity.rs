//! The certificate that Keystile shows, and its key.

use std::sync::Arc;

use anyhow::Context;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use time::OffsetDateTime;

use super::{
    certificate::CertificateFacts,
    private_key::certified_key,
    source::{Pem, TlsSource},
};

/// A certificate chain that belongs to its key.
pub(super) struct Identity {
    pub(super) pem: Pem,
    pub(super) key: Arc<CertifiedKey>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

impl Identity {
    pub(super) fn new(pem: &Pem, source: &TlsSource) -> anyhow::Result<Self> {
        let chain = CertificateDer::pem_slice_iter(&pem.chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.with_context(|| format!("{source}: the certificate file is no PEM"))?;
        let leaf = chain.first().and_then(CertificateFacts::read);
        let leaf =
            leaf.with_context(|| format!("{source}: the certificate file holds no certificate (PEM)"))?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key);
        let key = key.with_context(|| format!("{source}: the key file holds no private key (PEM)"))?;
        let key = certified_key(chain, key).with_context(|| {
            format!("{source}: the key does not belong to the certificate, or cannot be used")
        })?;
        let CertificateFacts { not_before, not_after, .. } = leaf;
        Ok(Self { pem: pem.clone(), key: Arc::new(key), not_before, not_after })
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
}
