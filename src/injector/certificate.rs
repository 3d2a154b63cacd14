//! The webhook's certificate: from files, or self-signed at start.

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use zeroize::Zeroizing;

use crate::{
    clock,
    config::{InjectOptions, NamedFile, TlsFiles},
    tls::{Pem, TlsSource},
};

/// Lifetime of a self-signed certificate.
const SELF_SIGNED: time::Duration = time::Duration::days(365);

/// Where the certificate comes from, and the CA of a self-signed one, as PEM.
pub(super) fn certificate(options: &InjectOptions) -> anyhow::Result<(TlsSource, Option<String>)> {
    match (&options.self_signed, &options.tls_cert, &options.tls_key) {
        (Some(names), _, _) => {
            let made = self_signed(names);
            let (pem, authority) = made.with_context(|| format!("--self-signed {}", names.join(",")))?;
            Ok((TlsSource::Fixed(pem), Some(authority)))
        }
        (None, Some(certificate), Some(key)) => {
            let files = TlsFiles {
                certificate: NamedFile { flag: "--tls-cert", path: certificate.clone() },
                key: NamedFile { flag: "--tls-key", path: key.clone() },
                clients: None,
            };
            Ok((TlsSource::Files(files), None))
        }
        _ => anyhow::bail!("name --tls-cert and --tls-key, or --self-signed"),
    }
}

/// A new CA, whose key is not kept, and a certificate that it signs.
fn self_signed(names: &[String]) -> anyhow::Result<(Pem, String)> {
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
    let pem = Pem { chain: leaf.pem().into_bytes(), key: Zeroizing::new(key.serialize_pem().into_bytes()) };
    Ok((pem, authority.pem()))
}
