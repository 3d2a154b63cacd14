//! The webhook's certificate: from files, which are read again when they change, or self-signed at start.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum_server::tls_rustls::RustlsConfig;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::time::interval;
use tracing::{info, warn};

use crate::{
    clock,
    config::InjectOptions,
    metrics::{InjectorCertificate, Metrics},
};

/// Lifetime of a self-signed certificate.
const SELF_SIGNED: time::Duration = time::Duration::days(365);

/// Where the certificate comes from.
pub(super) enum Source {
    Files { certificate: PathBuf, key: PathBuf },
    SelfSigned { pem: Pem, authority: String },
}

/// A chain and its key, as text.
#[derive(PartialEq)]
pub(super) struct Pem {
    chain: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
}

/// The certificate in use.
pub(super) struct Certificate {
    pem: Pem,
    tls: RustlsConfig,
    metrics: InjectorCertificate,
}

impl Source {
    pub(super) fn of(options: &InjectOptions) -> anyhow::Result<Self> {
        match (&options.self_signed, &options.tls_cert, &options.tls_key) {
            (Some(names), _, _) => {
                self_signed(names).with_context(|| format!("--self-signed {}", names.join(",")))
            }
            (None, Some(certificate), Some(key)) => {
                Ok(Self::Files { certificate: certificate.clone(), key: key.clone() })
            }
            _ => anyhow::bail!("name --tls-cert and --tls-key, or --self-signed"),
        }
    }

    /// The CA of a self-signed certificate, as PEM.
    pub(super) fn authority(&self) -> Option<String> {
        match self {
            Self::Files { .. } => None,
            Self::SelfSigned { authority, .. } => Some(authority.clone()),
        }
    }

    pub(super) fn load(&self, metrics: &Metrics) -> anyhow::Result<Certificate> {
        let pem = self.read()?;
        let (config, not_after) = server_config(&pem).with_context(|| self.to_string())?;
        let metrics = metrics.injector_certificate();
        metrics.not_after.set(not_after as f64);
        Ok(Certificate { pem, tls: RustlsConfig::from_config(config), metrics })
    }

    fn read(&self) -> anyhow::Result<Pem> {
        match self {
            Self::Files { certificate, key } => Ok(Pem {
                chain: read("--tls-cert", certificate)?,
                key: zeroize::Zeroizing::new(read("--tls-key", key)?),
            }),
            Self::SelfSigned { pem, .. } => Ok(Pem { chain: pem.chain.clone(), key: pem.key.clone() }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files { certificate, key } => {
                write!(f, "--tls-cert {} and --tls-key {}", certificate.display(), key.display())
            }
            Self::SelfSigned { .. } => f.write_str("--self-signed"),
        }
    }
}

impl Certificate {
    /// The listener's TLS settings. They follow every change.
    pub(super) fn tls(&self) -> RustlsConfig {
        self.tls.clone()
    }

    /// Reads the source once in a period. The files' content decides: the kubelet swaps a link.
    pub(super) async fn keep_fresh(mut self, source: Source, period: Duration) {
        let mut tick = interval(period);
        loop {
            tick.tick().await;
            if let Err(error) = self.refresh(&source) {
                self.metrics.errors.increment(1);
                warn!(
                    error = format!("{error:#}"),
                    "the certificate cannot be reloaded; the current one stays in use"
                );
            }
        }
    }

    fn refresh(&mut self, source: &Source) -> anyhow::Result<()> {
        let pem = source.read()?;
        if pem == self.pem {
            return Ok(());
        }
        // Between two writes the files may not match. The next read finds both.
        let (config, not_after) = server_config(&pem)?;
        self.tls.reload_from_config(config);
        self.metrics.not_after.set(not_after as f64);
        self.pem = pem;
        info!("certificate reloaded");
        Ok(())
    }
}

fn read(flag: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{flag} {}", path.display()))
}

/// TLS settings with this certificate, and its expiry in seconds since 1970.
fn server_config(pem: &Pem) -> anyhow::Result<(Arc<ServerConfig>, i64)> {
    let chain = CertificateDer::pem_slice_iter(&pem.chain).collect::<Result<Vec<_>, _>>()?;
    let leaf = chain.first().context("the first file holds no certificate (PEM)")?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).context("the certificate cannot be read")?;
    let not_after = parsed.validity().not_after.timestamp();
    let key =
        PrivateKeyDer::from_pem_slice(&pem.key).context("the second file holds no private key (PEM)")?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok((Arc::new(config), not_after))
}

/// A new CA, whose key is not kept, and a certificate that it signs.
fn self_signed(names: &[String]) -> anyhow::Result<Source> {
    let now = clock::wall();
    let params = |names: &[String], common_name: &str| -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        // The clock of another machine may be behind.
        params.not_before = now - time::Duration::hours(1);
        params.not_after = now + SELF_SIGNED;
        Ok(params)
    };
    let mut authority = params(&[], "keystile inject --self-signed")?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let mut leaf = params(names, "keystile inject")?;
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &authority)?;
    let pem = Pem {
        chain: leaf.pem().into_bytes(),
        key: zeroize::Zeroizing::new(key.serialize_pem().into_bytes()),
    };
    Ok(Source::SelfSigned { pem, authority: authority.pem() })
}
