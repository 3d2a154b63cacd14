//! TLS to Postgres, by libpq's `sslmode` and `sslrootcert`.

use std::{path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres::{Config, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How far the server must prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verify {
    Nothing,
    Chain,
    ChainAndName,
}

/// Reads a URL into tokio-postgres' own settings and the TLS that goes with them.
///
/// tokio-postgres knows neither `verify-ca`, `verify-full` nor `sslrootcert`, so they are taken out.
pub(super) fn settings(url: &url::Url) -> Result<(Config, MakeRustlsConnect), String> {
    let (mut mode, mut root, mut rest) = (None, None, Vec::new());
    for (name, value) in url.query_pairs() {
        match &*name {
            "sslmode" => mode = Some(value.into_owned()),
            "sslrootcert" => root = Some(value.into_owned()),
            _ => rest.push((name.into_owned(), value.into_owned())),
        }
    }
    let (ssl_mode, verify) = read_mode(mode.as_deref(), root.is_some())?;
    let mut url = url.clone();
    url.set_query(None);
    if !rest.is_empty() {
        // Not form-encoded: tokio-postgres would take the `+` of a space for a plus.
        let encode = |text: &str| percent_encoding::utf8_percent_encode(text, ENCODED).to_string();
        let query: Vec<_> =
            rest.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        url.set_query(Some(&query.join("&")));
    }
    let mut config: Config =
        url.as_str().parse().map_err(|error: tokio_postgres::Error| malformed(&error))?;
    config.ssl_mode(ssl_mode);
    if config.get_application_name().is_none() {
        config.application_name("keystile");
    }
    let tls = client_config(verify, root.as_deref().map(Path::new))?;
    Ok((config, MakeRustlsConnect::new(tls)))
}

const ENCODED: &percent_encoding::AsciiSet = percent_encoding::NON_ALPHANUMERIC;

fn malformed(error: &tokio_postgres::Error) -> String {
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    format!("--database-url is no Postgres URL: {reason}")
}

fn read_mode(mode: Option<&str>, has_root: bool) -> Result<(SslMode, Verify), String> {
    Ok(match mode {
        Some("disable") => (SslMode::Disable, Verify::Nothing),
        None | Some("prefer") => (SslMode::Prefer, Verify::Nothing),
        // As libpq has it: whoever names a root file wants it looked at.
        Some("require") if has_root => (SslMode::Require, Verify::Chain),
        Some("require") => (SslMode::Require, Verify::Nothing),
        Some("verify-ca") => (SslMode::Require, Verify::Chain),
        Some("verify-full") => (SslMode::Require, Verify::ChainAndName),
        Some(other) => {
            return Err(format!(
                "--database-url has sslmode={other}; write disable, prefer, require, verify-ca or verify-full"
            ));
        }
    })
}

fn client_config(verify: Verify, root: Option<&Path>) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let lenient = |chain| Arc::new(Lenient { provider: Arc::clone(&provider), chain });
    let verifier: Arc<dyn ServerCertVerifier> = match verify {
        Verify::Nothing => lenient(None),
        Verify::Chain => lenient(Some(webpki(&provider, root)?)),
        Verify::ChainAndName => webpki(&provider, root)?,
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn webpki(provider: &Arc<CryptoProvider>, root: Option<&Path>) -> Result<Arc<WebPkiServerVerifier>, String> {
    let roots = match root {
        Some(path) => roots_in(path).map_err(|error| format!("sslrootcert {}: {error}", path.display()))?,
        None => native_roots(),
    };
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    builder.build().map_err(|error| {
        format!("no certificate authority to verify Postgres by ({error}); name a file with sslrootcert")
    })
}

fn roots_in(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    match roots.is_empty() {
        true => Err("holds no PEM certificate".into()),
        false => Ok(roots),
    }
}

fn native_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Asks less than rustls would: nothing for `prefer` and `require`; for `verify-ca` that the authority
/// signed it, under whatever name.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    chain: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is looked at last, once the chain holds.
            Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
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

    fn read(url: &str) -> Result<Config, String> {
        settings(&url.parse().expect("a URL")).map(|(config, _)| config)
    }

    #[test]
    fn every_sslmode_is_read_as_libpq_does() {
        for (mode, has_root, expected) in [
            (None, false, (SslMode::Prefer, Verify::Nothing)),
            (Some("disable"), false, (SslMode::Disable, Verify::Nothing)),
            (Some("require"), false, (SslMode::Require, Verify::Nothing)),
            (Some("require"), true, (SslMode::Require, Verify::Chain)),
            (Some("verify-ca"), false, (SslMode::Require, Verify::Chain)),
            (Some("verify-full"), false, (SslMode::Require, Verify::ChainAndName)),
        ] {
            assert_eq!(read_mode(mode, has_root), Ok(expected), "{mode:?}");
        }
    }

    #[test]
    fn other_settings_reach_postgres_as_they_were_written() {
        let config =
            read("postgres://ada:p%40ss@db:6432/keys?sslmode=require&options=-c%20search_path%3Da%2Cb")
                .expect("good");
        assert_eq!(config.get_options(), Some("-c search_path=a,b"));
        assert_eq!(config.get_ports(), [6432]);
        assert_eq!(config.get_password(), Some(&b"p@ss"[..]));
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
    }

    #[test]
    fn errors_name_the_mend_and_no_password() {
        for (url, word) in [
            ("postgres://ada:hunter2@db/keys?sslmode=allow", "verify-full"),
            ("postgres://ada:hunter2@db/keys?colour=red", "colour"),
            ("postgres://ada:hunter2@db/keys?sslmode=verify-full&sslrootcert=/none.pem", "/none.pem"),
            ("postgres://ada:hunter2@db/keys?connect_timeout=soon", "connect_timeout"),
        ] {
            let error = read(url).expect_err(url);
            assert!(error.contains(word) && !error.contains("hunter2"), "{error}");
        }
    }
}
