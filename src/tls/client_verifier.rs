//! Verifies the certificates of clients: their CA, their validity, their revocation, and their names.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::certificate::CertificateFacts;
use crate::config::ClientName;

/// A verifier of CAs, validity and revocation, and the names that it lets through. Empty: each name.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    pub(super) names: Vec<ClientName>,
    pub(super) names_flag: &'static str,
}

/// No name of the certificate is allowed.
#[derive(Debug, thiserror::Error)]
#[error("none of the names in the client's certificate is in {flag}: {}", shown(.names))]
struct NameNotAllowed {
    flag: &'static str,
    names: Vec<ClientName>,
}

fn shown(names: &[ClientName]) -> String {
    if names.is_empty() {
        return "it has no DNS name and no URI as subject alternative name".to_owned();
    }
    // The CA has signed them, but they are the client's own text.
    names.iter().map(|name| format!("{:?}", name.to_string())).collect::<Vec<_>>().join(", ")
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if self.names.is_empty() {
            return Ok(verified);
        }
        let names = CertificateFacts::read(end_entity).map(|facts| facts.names).unwrap_or_default();
        if names.iter().any(|name| self.names.contains(name)) {
            return Ok(verified);
        }
        let refused = NameNotAllowed { flag: self.names_flag, names };
        Err(CertificateError::Other(OtherError(Arc::new(refused))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
