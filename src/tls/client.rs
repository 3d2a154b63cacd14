//! TLS of a client of Keystile's own listeners: `keystile probe`.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, bail};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::SingleCertAndKey,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use zeroize::Zeroizing;

use super::{TlsListener, private_key::certified_key};
use crate::config::NamedFile;

/// Connects to a listener with TLS. Cheap to clone.
#[derive(Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

/// What a client shows and verifies.
#[derive(Debug, Clone)]
pub struct TlsClientFiles {
    /// The CAs of the listener's certificate (PEM). `None`: it is not verified.
    pub authorities: Option<NamedFile>,
    /// The name in the listener's certificate. `None`: its address.
    pub name: Option<ServerName<'static>>,
    /// The client's own certificate and its key (PEM).
    pub own: Option<(NamedFile, NamedFile)>,
}

/// Takes each certificate whose key the listener has.
#[derive(Debug)]
struct NoVerifier(Arc<CryptoProvider>);

impl TlsClient {
    /// Reads the files.
    ///
    /// # Errors
    /// Returns an error that names the flag and the file if they cannot be used.
    pub fn new(files: &TlsClientFiles) -> anyhow::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match &files.authorities {
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file)? {
                    roots
                        .add(certificate)
                        .with_context(|| format!("{file}: a certificate cannot be a CA"))?;
                }
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                    .build()
                    .with_context(|| file.to_string())?
            }
            None => Arc::new(NoVerifier(Arc::clone(&provider))),
        };
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let config = match &files.own {
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let pem = Zeroizing::new(std::fs::read(&key.path).with_context(|| key.to_string())?);
                let own = PrivateKeyDer::from_pem_slice(&pem);
                let own = own.with_context(|| format!("{key}: holds no private key (PEM)"))?;
                let own = certified_key(chain, own)
                    .with_context(|| format!("{key}: does not belong to {certificate}, or cannot be used"))?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Self { config: Arc::new(config), name: files.name.clone() })
    }

    /// Connects to a listener. In TLS 1.3 the first read shows whether it lets the client in.
    ///
    /// # Errors
    /// Returns an error if there is no connection, or if the handshake fails.
    pub async fn connect(
        &self,
        address: SocketAddr,
        listener: TlsListener,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = vec![listener.protocol().to_vec()];
        let name = self.name.clone().unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

fn certificates(file: &NamedFile) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(&file.path).with_context(|| file.to_string())?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.with_context(|| format!("{file}: is no PEM"))?;
    if certificates.is_empty() {
        bail!("{file}: holds no certificate (PEM)");
    }
    Ok(certificates)
}

impl ServerCertVerifier for NoVerifier {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
