//! The least that a service behind Envoy can be with stock parts: it decodes the check, looks at nothing and answers OK.
//!
//! What Keystile costs is measured against it. Its argument is where it listens: `ADDRESS:PORT` or `unix:/PATH`, one or more.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the rules of the library")]

use envoy_types::{
    ext_authz::v3::pb::{
        Authorization, AuthorizationServer, CheckRequest, CheckResponse, HttpResponse, OkHttpResponse,
    },
    pb::google::rpc,
};
use keystile::config::Listen;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

struct Null;

#[tonic::async_trait]
impl Authorization for Null {
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(CheckResponse {
            status: Some(rpc::Status::default()),
            http_response: Some(HttpResponse::OkResponse(OkHttpResponse::default())),
            ..CheckResponse::default()
        }))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut servers = tokio::task::JoinSet::new();
    for address in std::env::args().skip(1) {
        let router = Server::builder().add_service(AuthorizationServer::new(Null));
        match address.parse::<Listen>().map_err(anyhow::Error::msg)? {
            Listen::Tcp(address) => {
                let incoming = TcpIncoming::from(TcpListener::bind(address).await?).with_nodelay(Some(true));
                servers.spawn(router.serve_with_incoming(incoming));
            }
            Listen::Unix(path) => {
                let incoming = UnixListenerStream::new(UnixListener::bind(path)?);
                servers.spawn(router.serve_with_incoming(incoming));
            }
        }
    }
    while let Some(ended) = servers.join_next().await {
        ended??;
    }
    Ok(())
}
