//! TLS to Postgres, by libpq's `sslmode`, `sslrootcert` and related parameters.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use tokio_postgres::config::SslMode;

mod verifier;

use verifier::{Authorities, CertificateVerifier, certificates_in};

/// The TLS parameters of a URL.
#[derive(Debug, Default)]
pub(super) struct TlsOptions {
    pub(super) mode: Option<String>,
    /// A file, or `system`.
    pub(super) root: Option<String>,
    /// The client's certificate.
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    /// Whether TLS starts without a request in the protocol of Postgres.
    pub(super) is_direct: bool,
    /// Whether the handshake sends no server name.
    pub(super) hides_name: bool,
    pub(super) only_12: bool,
    pub(super) only_13: bool,
}

/// What is verified of the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verification {
    Nothing,
    Chain,
    ChainAndName,
}

/// The TLS configuration for the options.
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
            Some(Authorities::read(&provider, options.root.as_deref())?)
        }
    };
    let verifier = CertificateVerifier {
        provider: Arc::clone(&provider),
        authorities,
        verifies_name: verify == Verification::ChainAndName,
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

fn key_in(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let failed =
        |error| format!("sslkey {}: holds no PEM key without a passphrase ({error})", path.display());
    PrivateKeyDer::from_pem_file(path).map_err(failed)
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
}
