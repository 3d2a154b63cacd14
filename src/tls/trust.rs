//! Whose certificates clients may present: CAs and revocation lists, from their files.

use std::{cmp::Reverse, sync::Arc};

use anyhow::{Context, bail};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{
    certificate::X509Certificate, prelude::FromDer, revocation_list::CertificateRevocationList,
};

use crate::config::{ClientFiles, NamedFile};

/// The CAs of clients.
pub(super) struct Authorities {
    pub(super) content: Vec<u8>,
    roots: Arc<RootCertStore>,
    subjects: Vec<Name>,
}

/// The revocation lists of these CAs and of those below them.
pub(super) struct RevocationLists {
    pub(super) content: Vec<u8>,
    /// The newest first. The verifier uses the first list of a CA that it finds.
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// The newest list of each issuer and each distribution point.
    in_use: Vec<ListInUse>,
}

struct ListInUse {
    issuer: Name,
    distribution_point: Option<Vec<u8>>,
    next_update: OffsetDateTime,
}

/// A distinguished name.
struct Name {
    der: Vec<u8>,
    text: String,
}

impl Authorities {
    pub(super) fn new(content: &[u8], file: &NamedFile) -> anyhow::Result<Self> {
        let (mut roots, mut subjects) = (RootCertStore::empty(), Vec::new());
        for certificate in CertificateDer::pem_slice_iter(content) {
            let certificate = certificate.with_context(|| format!("{file}: is no PEM"))?;
            if let Ok((_, parsed)) = X509Certificate::from_der(&certificate) {
                subjects.push(Name::of(parsed.subject()));
            }
            let added = roots.add(certificate);
            added.with_context(|| format!("{file}: a certificate cannot be a CA"))?;
        }
        if roots.is_empty() {
            bail!("{file}: holds no certificate (PEM), so no client could connect");
        }
        Ok(Self { content: content.to_vec(), roots: Arc::new(roots), subjects })
    }

    /// The verifier of clients.
    pub(super) fn verifier(
        &self,
        revoked: Option<&RevocationLists>,
        provider: &Arc<CryptoProvider>,
    ) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(provider));
        let builder = match revoked {
            Some(revoked) => builder.with_crls(revoked.lists.clone()).enforce_revocation_expiration(),
            None => builder,
        };
        Ok(builder.build()?)
    }
}

impl RevocationLists {
    pub(super) fn new(
        content: &[u8],
        file: &NamedFile,
        authorities: &Authorities,
        provider: &Arc<CryptoProvider>,
    ) -> anyhow::Result<Self> {
        let mut lists = Vec::new();
        for list in CertificateRevocationListDer::pem_slice_iter(content) {
            let der = list.with_context(|| format!("{file}: is no PEM"))?;
            let parsed = CertificateRevocationList::from_der(&der);
            let (_, parsed) = parsed.with_context(|| format!("{file}: a revocation list cannot be read"))?;
            let issuer = Name::of(parsed.issuer());
            let next_update = parsed.next_update().with_context(|| {
                format!("{file}: the revocation list of {} says no next update", issuer.text)
            })?;
            let in_use = ListInUse {
                issuer,
                distribution_point: distribution_point(&parsed),
                next_update: next_update.to_datetime(),
            };
            let age = (parsed.last_update().to_datetime(), parsed.crl_number().cloned());
            lists.push((age, in_use, der));
        }
        if lists.is_empty() {
            bail!("{file}: holds no revocation list (PEM, X509 CRL)");
        }
        lists.sort_by_key(|(age, ..)| Reverse(age.clone()));
        let (mut ders, mut in_use) = (Vec::new(), Vec::<ListInUse>::new());
        for (_, list, der) in lists {
            ders.push(der);
            if !in_use.iter().any(|newer| newer.replaces(&list)) {
                in_use.push(list);
            }
        }
        let lists = Self { content: content.to_vec(), lists: ders, in_use };
        let verifier = authorities.verifier(Some(&lists), provider);
        verifier.with_context(|| format!("{file}: a revocation list cannot be used"))?;
        Ok(lists)
    }

    /// The earliest time at which a list has to be replaced.
    pub(super) fn next_update(&self) -> Option<OffsetDateTime> {
        self.in_use.iter().map(|list| list.next_update).min()
    }

    /// Why clients of some CAs are refused now, although nothing is wrong with their certificates.
    pub(super) fn problems(
        &self,
        authorities: &Authorities,
        files: &ClientFiles,
        now: OffsetDateTime,
    ) -> Vec<String> {
        let Some(file) = &files.revoked else { return Vec::new() };
        let late = self.in_use.iter().filter(|list| list.next_update <= now).map(|list| {
            let until = list.next_update.format(&Rfc3339).unwrap_or_default();
            format!(
                "{file}: the list of {} is past its next update, {until}; clients of this CA are refused",
                list.issuer.text
            )
        });
        let without = authorities
            .subjects
            .iter()
            .filter(|subject| !self.in_use.iter().any(|list| list.issuer.der == subject.der));
        let without = without.map(|subject| {
            format!(
                "{file}: has no list of {}, a CA in {}; clients of this CA are refused",
                subject.text, files.authorities
            )
        });
        late.chain(without).collect()
    }
}

impl ListInUse {
    fn replaces(&self, older: &Self) -> bool {
        self.issuer.der == older.issuer.der && self.distribution_point == older.distribution_point
    }
}

impl Name {
    fn of(name: &x509_parser::x509::X509Name<'_>) -> Self {
        // The text is of the file that the operator trusts. It is quoted, since it may hold anything.
        Self { der: name.as_raw().to_vec(), text: format!("{:?}", name.to_string()) }
    }
}

/// The distribution point that the list is for, as bytes to compare.
fn distribution_point(list: &CertificateRevocationList<'_>) -> Option<Vec<u8>> {
    const ISSUING_DISTRIBUTION_POINT: &str = "2.5.29.28";
    let mut extensions = list.extensions().iter();
    let found = extensions.find(|extension| extension.oid.to_id_string() == ISSUING_DISTRIBUTION_POINT);
    found.map(|extension| extension.value.to_vec())
}
