//! TLS of the probe: whether the instance's listeners have it, what the probe verifies, and what it shows.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
};

use clap::Args;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use crate::{
    config::NamedFile,
    tls::{TlsClient, TlsClientFiles, TlsListener},
};

/// The files of the probe.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct ProbeTls {
    /// Certificate of the instance's gRPC listener. If it is set, the probe speaks TLS there. The file is not read.
    #[arg(long, env = "KEYSTILE_TLS_CERT_FILE", value_name = "FILE")]
    tls_cert_file: Option<PathBuf>,

    /// Certificate of the instance's admin listener. If it is set, the probe speaks TLS there. The file is not read.
    #[arg(long, env = "KEYSTILE_ADMIN_TLS_CERT_FILE", value_name = "FILE")]
    admin_tls_cert_file: Option<PathBuf>,

    /// CAs of the instance's certificates (PEM). Turns on TLS of the gRPC listener. Default: the certificates are not verified, since the probe sends nothing secret.
    #[arg(long, env = "KEYSTILE_PROBE_TLS_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Name in the instance's certificates. Default: the address.
    #[arg(long, env = "KEYSTILE_PROBE_TLS_NAME", requires = "ca_file", value_parser = server_name)]
    name: Option<ServerName<'static>>,

    /// Certificate of the probe (PEM), for listeners with mutual TLS. Its name must be one of their client names.
    #[arg(long, env = "KEYSTILE_PROBE_TLS_CERT_FILE", requires = "key_file", value_name = "FILE")]
    cert_file: Option<PathBuf>,

    /// Private key of the probe's certificate (PEM).
    #[arg(long, env = "KEYSTILE_PROBE_TLS_KEY_FILE", requires = "cert_file", value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// How the listeners are reached. `None`: without TLS.
pub(super) struct ProbeClients {
    pub(super) grpc: Option<TlsClient>,
    pub(super) admin: Option<TlsClient>,
}

/// Connects a gRPC client to the address in its URI.
#[derive(Clone)]
pub(super) struct TlsConnection(pub(super) TlsClient);

impl ProbeTls {
    pub(super) fn clients(&self) -> anyhow::Result<ProbeClients> {
        let (mut grpc, admin) = (self.tls_cert_file.is_some(), self.admin_tls_cert_file.is_some());
        // From another machine, the files of the instance are not known.
        grpc |= !admin && (self.ca_file.is_some() || self.cert_file.is_some());
        if !grpc && !admin {
            return Ok(ProbeClients { grpc: None, admin: None });
        }
        let file = |flag, path: &Option<PathBuf>| Some(NamedFile { flag, path: path.clone()? });
        let own = file("--cert-file", &self.cert_file).zip(file("--key-file", &self.key_file));
        let authorities = file("--ca-file", &self.ca_file);
        let client = TlsClient::new(&TlsClientFiles { authorities, name: self.name.clone(), own })?;
        Ok(ProbeClients { grpc: grpc.then(|| client.clone()), admin: admin.then_some(client) })
    }
}

fn server_name(text: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(text.to_owned())
}

impl Service<Uri> for TlsConnection {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self(client) = self.clone();
        Box::pin(async move {
            let address = uri.authority().and_then(|address| address.as_str().parse::<SocketAddr>().ok());
            let address = address.ok_or(io::ErrorKind::InvalidInput)?;
            client.connect(address, TlsListener::Grpc).await.map(TokioIo::new)
        })
    }
}
