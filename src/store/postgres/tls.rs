//! TLS to Postgres, by libpq's `sslmode`, `sslrootcert` and the like.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
    version::{TLS12, TLS13},
};
use tokio_postgres::config::SslMode;
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

/// What a URL says of TLS.
#[derive(Debug, Default)]
pub(super) struct TlsOptions {
    pub(super) mode: Option<String>,
    /// A file, or `system`.
    pub(super) root: Option<String>,
    /// What the client shows of itself.
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    /// Whether TLS begins without asking in Postgres' own protocol.
    pub(super) is_direct: bool,
    /// Whether the handshake says no name.
    pub(super) hides_name: bool,
    pub(super) only_12: bool,
    pub(super) only_13: bool,
}

/// How far the server must prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verification {
    Nothing,
    Chain,
    ChainAndName,
}

/// Makes a configuration of the options.
pub(super) fn read(options: &TlsOptions) -> Result<(SslMode, ClientConfig), String> {
    let (mode, verify) = read_mode(options.mode.as_deref(), options.root.as_deref())?;
    if options.is_direct && mode != SslMode::Require {
        return Err("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full".into());
    }
    let provider = Arc::new(ring::default_provider());
    let versions: &[_] = match (options.only_12, options.only_13) {
        (true, true) => return Err("ssl_max_protocol_version is below ssl_min_protocol_version".into()),
        (true, false) => &[&TLS12],
        (false, true) => &[&TLS13],
        (false, false) => &[&TLS13, &TLS12],
    };
    let authorities = match verify {
        Verification::Nothing => None,
        Verification::Chain | Verification::ChainAndName => {
            Some(authorities(&provider, options.root.as_deref())?)
        }
    };
    let verifier = CertificateVerifier {
        provider: Arc::clone(&provider),
        authorities,
        asks_name: verify == Verification::ChainAndName,
    };
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let config = config.map_err(|error| error.to_string())?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&options.certificate, &options.key) {
        (None, None) => config.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let (chain, key) = (certificates_in("sslcert", certificate)?, key_in(key)?);
            config
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("sslcert and sslkey: {error}"))?
        }
        (Some(_), None) => return Err("sslcert needs sslkey, the file with its key".into()),
        (None, Some(_)) => return Err("sslkey needs sslcert, the file with its certificate".into()),
    };
    config.enable_sni = !options.hides_name;
    if options.is_direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok((mode, config))
}

fn read_mode(mode: Option<&str>, root: Option<&str>) -> Result<(SslMode, Verification), String> {
    if root == Some("system") {
        return match mode {
            None | Some("verify-full") => Ok((SslMode::Require, Verification::ChainAndName)),
            Some(_) => Err("sslrootcert=system needs sslmode=verify-full".into()),
        };
    }
    Ok(match mode {
        Some("disable") => (SslMode::Disable, Verification::Nothing),
        None | Some("prefer") => (SslMode::Prefer, Verification::Nothing),
        // As in libpq: a root file that is named is checked against.
        Some("require") if root.is_some() => (SslMode::Require, Verification::Chain),
        Some("require") => (SslMode::Require, Verification::Nothing),
        Some("verify-ca") => (SslMode::Require, Verification::Chain),
        Some("verify-full") => (SslMode::Require, Verification::ChainAndName),
        Some(other) => {
            return Err(format!(
                "sslmode={other} is not supported; write disable, prefer, require, verify-ca or verify-full"
            ));
        }
    })
}

/// By whom a server's certificate must be signed, or which it must be.
#[derive(Debug)]
struct Authorities {
    webpki: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

fn authorities(provider: &Arc<CryptoProvider>, root: Option<&str>) -> Result<Authorities, String> {
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
    Ok(Authorities { webpki, pinned })
}

fn certificates_in(parameter: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{parameter} {}: {error}", path.display());
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
    if certificates.is_empty() { Err(failed(&"holds no PEM certificate")) } else { Ok(certificates) }
}

fn key_in(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let failed =
        |error| format!("sslkey {}: holds no PEM key without a passphrase ({error})", path.display());
    PrivateKeyDer::from_pem_file(path).map_err(failed)
}

/// Asks as much of a server as libpq does: nothing for `prefer` and `require`, that its certificate is from the
/// authority for `verify-ca`, and that it is for the host as well for `verify-full`.
#[derive(Debug)]
struct CertificateVerifier {
    provider: Arc<CryptoProvider>,
    authorities: Option<Authorities>,
    asks_name: bool,
}

impl Authorities {
    /// That the certificate is from one of these, and for `name` where webpki can say so.
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        // A self-signed certificate is its own authority, which webpki takes for no server's.
        if self.pinned.contains(certificate) {
            return is_current(&parsed(certificate)?, now);
        }
        match self.webpki.verify_server_cert(certificate, intermediates, name, &[], now) {
            // The name is looked at last, once the chain holds, and by the caller.
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

/// That a certificate is for a host: by the names that it lists, or, where it lists none, by its common name.
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

/// Whether a common name is that of a host. A `*` stands for the first label of a name of three or more.
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
        if self.asks_name {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sslmode_is_read_as_libpq_does() {
        for (mode, root, expected) in [
            (None, None, (SslMode::Prefer, Verification::Nothing)),
            (Some("disable"), None, (SslMode::Disable, Verification::Nothing)),
            (Some("require"), None, (SslMode::Require, Verification::Nothing)),
            (Some("require"), Some("ca.pem"), (SslMode::Require, Verification::Chain)),
            (Some("verify-ca"), None, (SslMode::Require, Verification::Chain)),
            (Some("verify-full"), None, (SslMode::Require, Verification::ChainAndName)),
            (None, Some("system"), (SslMode::Require, Verification::ChainAndName)),
        ] {
            assert_eq!(read_mode(mode, root), Ok(expected), "{mode:?}");
        }
        assert!(read_mode(Some("require"), Some("system")).is_err());
    }

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
