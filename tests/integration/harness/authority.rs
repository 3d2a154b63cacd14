//! A CA of the test's own: it issues certificates and revokes them.

use std::{fs, path::Path, sync::Arc};

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, string::Ia5String,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use time::{Duration, OffsetDateTime};

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    next: Mutex<u64>,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
    serial: u64,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // CAs are told apart by their names.
        params.distinguished_name.push(DnType::CommonName, format!("CA {}", rand::random::<u64>()));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, next: Mutex::new(1) }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate of a client or server with these names: DNS names, and URIs where they have `://`.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_for(names, Duration::days(1))
    }

    /// The same, valid for so long, or no longer.
    pub fn issue_for(&self, names: &[&str], validity: Duration) -> Issued {
        self.issue_with(names, validity, &[])
    }

    /// The same, for these purposes only.
    pub fn issue_with(
        &self,
        names: &[&str],
        validity: Duration,
        purposes: &[ExtendedKeyUsagePurpose],
    ) -> Issued {
        let serial = {
            let mut next = self.next.lock();
            *next += 1;
            *next
        };
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        let name = |name: &&str| {
            let text = Ia5String::try_from((*name).to_owned()).unwrap();
            if name.contains("://") { SanType::URI(text) } else { SanType::DnsName(text) }
        };
        params.subject_alt_names = names.iter().map(name).collect();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - Duration::days(30), now + validity);
        params.extended_key_usages = purposes.to_vec();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem(), serial }
    }

    /// A revocation list with these certificates, to be replaced after this time.
    pub fn revoke(&self, revoked: &[&Issued], valid_for: Duration) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked_certs = revoked.iter().map(|issued| RevokedCertParams {
            serial_number: SerialNumber::from(issued.serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now - Duration::days(1),
            next_update: now + valid_for,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// A client that trusts this CA, with a certificate or without.
    pub fn client(
        &self,
        own: Option<&Issued>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let Some(own) = own else { return config.with_no_client_auth() };
        let chain = CertificateDer::pem_slice_iter(own.certificate.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
        config.with_client_auth_cert(chain, key).unwrap()
    }
}

impl Issued {
    /// Writes `tls.crt` and `tls.key`, by moving each into the folder.
    pub fn write(&self, folder: &Path) {
        write(&folder.join("tls.key"), &self.key);
        write(&folder.join("tls.crt"), &self.certificate);
    }
}

/// Replaces a file in one step.
pub fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}
