//! Verification of a Postgres server's certificate.

use std::{net::IpAddr, path::Path, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

/// The authorities that must have signed a server's certificate, and certificates that are accepted as they are.
#[derive(Debug)]
pub(super) struct Authorities {
    webpki: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

/// Verifies a server's certificate as libpq does: not at all for `prefer` and `require`, that an authority signed it for
/// `verify-ca`, and the host as well for `verify-full`.
#[derive(Debug)]
pub(super) struct CertificateVerifier {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) authorities: Option<Authorities>,
    pub(super) verifies_name: bool,
}

impl Authorities {
    /// Reads the authorities of a file, or those of the system.
    pub(super) fn read(provider: &Arc<CryptoProvider>, root: Option<&str>) -> Result<Self, String> {
        let (mut roots, mut pinned) = (RootCertStore::empty(), Vec::new());
        match root {
            Some(path) if path != "system" => {
                pinned = certificates_in("sslrootcert", Path::new(path))?;
                let mut added = pinned.iter().map(|certificate| roots.add(certificate.clone()));
                added.try_for_each(|added| added.map_err(|error| format!("sslrootcert {path}: {error}")))?;
            }
            _ => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
        }
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        let webpki = builder.build().map_err(|error| {
            format!("no certificate authority to verify Postgres by ({error}); name a file with sslrootcert")
        })?;
        Ok(Self { webpki, pinned })
    }

    /// Verifies that one of these signed the certificate. The caller verifies the name.
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        // A self-signed certificate is its own authority. webpki does not accept it as a server's.
        if self.pinned.contains(certificate) {
            return is_current(&parsed(certificate)?, now);
        }
        match self.webpki.verify_server_cert(certificate, intermediates, name, &[], now) {
            // webpki checks the name last, when the chain is valid.
            Ok(_) | Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    parsed.map(|(_, certificate)| certificate).map_err(|_| CertificateError::BadEncoding.into())
}

fn is_current(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() { Err(CertificateError::Expired.into()) } else { Ok(()) }
}

/// Verifies that a certificate is for a host: by its alternative names, or by its common name if it has none.
fn is_for(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let by_list =
        ParsedCertificate::try_from(certificate).and_then(|parsed| verify_server_name(&parsed, name));
    let Err(error) = by_list else { return Ok(()) };
    let parsed = parsed(certificate)?;
    let listed = parsed.subject_alternative_name().map_err(|_| error.clone())?;
    let counts = |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_));
    if listed.is_some_and(|listed| listed.value.general_names.iter().any(counts)) {
        return Err(error);
    }
    let mut common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let matches = |common: &str| match name {
        ServerName::DnsName(host) => is_name_of(common, host.as_ref()),
        ServerName::IpAddress(host) => {
            common.parse().is_ok_and(|common: IpAddr| common == IpAddr::from(*host))
        }
        _ => false,
    };
    if common.any(matches) { Ok(()) } else { Err(error) }
}

/// Whether a common name matches a host. A `*` matches the first label of a name with at least three labels.
fn is_name_of(common: &str, host: &str) -> bool {
    match common.strip_prefix("*.") {
        Some(domain) => {
            let of_host = host.split_once('.').map(|(_, domain)| domain);
            domain.contains('.') && of_host.is_some_and(|of_host| of_host.eq_ignore_ascii_case(domain))
        }
        None => common.eq_ignore_ascii_case(host),
    }
}

impl ServerCertVerifier for CertificateVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(authorities) = &self.authorities {
            authorities.verify(certificate, intermediates, name, now)?;
        }
        if self.verifies_name {
            is_for(certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The certificates in the file of this parameter.
pub(super) fn certificates_in(parameter: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{parameter} {}: {error}", path.display());
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
    if certificates.is_empty() { Err(failed(&"holds no PEM certificate")) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_names_match_as_libpq_matches_them() {
        for (common, host, matches) in [
            ("db.example.com", "DB.example.com", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.com", "example.com", false),
            ("*", "db", false),
            ("db.example.com", "db.example.org", false),
        ] {
            assert_eq!(is_name_of(common, host), matches, "{common} {host}");
        }
    }
}
