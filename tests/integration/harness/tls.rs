//! Asks a server over TLS, whose authority is known; a connection for each question.

use std::{io, net::SocketAddr, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A client that trusts one authority, and expects this name to answer.
pub struct Client(TlsConnector, &'static str);

/// Status and body.
pub type Answer = (u16, String);

impl Client {
    pub fn new(config: ClientConfig, name: &'static str) -> Self {
        Self(TlsConnector::from(Arc::new(config)), name)
    }

    pub fn trusting(authority: &str) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        Self::new(config, "localhost")
    }

    /// Begins a connection with these bytes, and leaves it open.
    pub async fn begin(&self, server: SocketAddr, bytes: &[u8]) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(server).await?;
        let mut stream = self.0.connect(ServerName::try_from(self.1).unwrap(), tcp).await?;
        stream.write_all(bytes).await?;
        Ok(stream)
    }

    /// Sends a request without further headers.
    pub async fn send(
        &self,
        server: SocketAddr,
        line: &str,
        content_type: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        self.send_with(server, line, "x-none: 1", content_type, body).await
    }

    /// Sends a request whole, with one more header, unless the server ends it earlier, and reads the answer.
    pub async fn send_with(
        &self,
        server: SocketAddr,
        line: &str,
        header: &str,
        content_type: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        let tcp = TcpStream::connect(server).await?;
        let name = ServerName::try_from(self.1).unwrap();
        let mut stream = self.0.connect(name, tcp).await?;
        let head = format!(
            "{line} HTTP/1.1\r\n{header}\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {content_type}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        let sent = stream.write_all(body).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return Err(sent.and(read).err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
        };
        Ok((head[9..12].parse().unwrap(), body.to_owned()))
    }
}
