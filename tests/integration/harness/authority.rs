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
    /// Its own serial number, of the CA above it.
    serial: u64,
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
        let issuer = CertifiedIssuer::self_signed(params_of_ca(), KeyPair::generate().unwrap()).unwrap();
        Self { issuer, next: Mutex::new(1), serial: 0 }
    }

    /// A CA below this one.
    pub fn intermediate(&self) -> Self {
        let mut params = params_of_ca();
        let serial = self.next_serial();
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        Self { issuer, next: Mutex::new(1), serial }
    }

    fn next_serial(&self) -> u64 {
        let mut next = self.next.lock();
        *next += 1;
        *next
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
        let now = OffsetDateTime::now_utc();
        self.issue_between(names, [now - Duration::days(30), now + validity], purposes, None)
    }

    /// The same, valid between two times, and with a common name in its subject.
    pub fn issue_between(
        &self,
        names: &[&str],
        validity: [OffsetDateTime; 2],
        purposes: &[ExtendedKeyUsagePurpose],
        common_name: Option<&str>,
    ) -> Issued {
        let serial = self.next_serial();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        let name = |name: &&str| {
            let text = Ia5String::try_from((*name).to_owned()).unwrap();
            if name.contains("://") { SanType::URI(text) } else { SanType::DnsName(text) }
        };
        params.subject_alt_names = names.iter().map(name).collect();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        [params.not_before, params.not_after] = validity;
        params.extended_key_usages = purposes.to_vec();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem(), serial }
    }

    /// A revocation list with these certificates, to be replaced after this time.
    pub fn revoke(&self, revoked: &[&Issued], valid_for: Duration) -> String {
        let serials: Vec<_> = revoked.iter().map(|issued| issued.serial).collect();
        self.list(&serials, Duration::days(1), valid_for)
    }

    /// A revocation list with a CA below this one.
    pub fn revoke_authority(&self, revoked: &Self) -> String {
        self.list(&[revoked.serial], Duration::days(1), Duration::days(1))
    }

    /// A revocation list that is so old, with these serial numbers.
    fn list(&self, serials: &[u64], age: Duration, valid_for: Duration) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked_certs = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now - age,
            next_update: now + valid_for,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// A revocation list that is older than those of `revoke`, and has no certificate.
    pub fn old_list(&self) -> String {
        self.list(&[], Duration::days(5), Duration::days(1))
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
    /// The same, sent with the certificate of the CA that issued it.
    pub fn through(mut self, authority: &Authority) -> Self {
        self.certificate.push_str(&authority.pem());
        self
    }

    /// Writes `tls.crt` and `tls.key`, by moving each into the folder.
    pub fn write(&self, folder: &Path) {
        write(&folder.join("tls.key"), &self.key);
        write(&folder.join("tls.crt"), &self.certificate);
    }
}

fn params_of_ca() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // CAs are told apart by their names.
    params.distinguished_name.push(DnType::CommonName, format!("CA {}", rand::random::<u64>()));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Replaces a file in one step.
pub fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}
