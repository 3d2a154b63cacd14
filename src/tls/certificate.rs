//! What a certificate says: its names and its validity.

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{ASN1Time, FromDer},
};

use crate::config::ClientName;

/// The names and the validity of a certificate.
#[derive(Debug, Clone)]
pub(super) struct CertificateFacts {
    /// Subject alternative names. The common name is not one: it has no agreed meaning.
    pub(super) names: Vec<ClientName>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

impl CertificateFacts {
    /// Reads a certificate. `None` if it is none.
    pub(super) fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()?;
        let names = names.iter().flat_map(|extension| &extension.value.general_names);
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(ClientName::dns(name)),
            GeneralName::URI(uri) => Some(ClientName::Uri((*uri).to_owned())),
            _ => None,
        });
        let validity = parsed.validity();
        Some(Self {
            names: names.collect(),
            not_before: time(validity.not_before),
            not_after: time(validity.not_after),
        })
    }
}

/// The time, or the end of all time where this type has no such year.
fn time(time: ASN1Time) -> OffsetDateTime {
    time.to_datetime()
}
