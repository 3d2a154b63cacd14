//! `keystile probe`: asks a running `keystile serve` for its health, for probes that run in its container.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    config::{Listen, duration_or_none},
    tls::TlsClient,
};

mod readiness;
mod tls;

use readiness::why_not_ready;
use tls::{ProbeClients, ProbeTls, TlsConnection};

#[derive(Debug, Args)]
pub(super) struct Probe {
    /// Address of the instance: `ADDRESS:PORT` or `unix:/PATH`. Of a comma-separated list, the first is used.
    #[arg(long, env = "KEYSTILE_LISTEN", default_value = "127.0.0.1:9191", value_delimiter = ',')]
    address: Vec<Listen>,

    /// Admin listener of the instance, which is asked why the instance is not ready.
    #[arg(long, env = "KEYSTILE_ADMIN_LISTEN", default_value = "127.0.0.1:9192", value_name = "ADDRESS")]
    admin_address: SocketAddr,

    /// Succeed on any answer: the instance runs, but may not be ready for checks.
    #[arg(long)]
    alive: bool,

    /// Deadline of the answer.
    #[arg(long, env = "KEYSTILE_PROBE_TIMEOUT", default_value = "2s", value_parser = duration_or_none)]
    timeout: Duration,

    #[command(flatten)]
    tls: ProbeTls,
}

pub(super) async fn run(probe: Probe) -> anyhow::Result<()> {
    let address = probe.address.first().context("--address names nothing")?;
    let ProbeClients { grpc, admin } = probe.tls.clients()?;
    let answer = tokio::time::timeout(probe.timeout, ask(address, grpc)).await;
    let status = answer
        .with_context(|| format!("no answer within {}", humantime::format_duration(probe.timeout)))
        .flatten()
        .with_context(|| format!("--address {address}"))?;
    if status == ServingStatus::Serving || probe.alive {
        return Ok(());
    }
    let why = why_not_ready(loopback(probe.admin_address), admin);
    let why = tokio::time::timeout(probe.timeout, why).await;
    match why.ok().flatten() {
        Some(why) => bail!("--address {address}: not ready: {why}"),
        None => bail!(
            "--address {address}: not ready; /readyz at its --admin-listen address says why \
             (nothing that says so answers at --admin-address {})",
            probe.admin_address
        ),
    }
}

async fn ask(address: &Listen, tls: Option<TlsClient>) -> anyhow::Result<ServingStatus> {
    let endpoint = Endpoint::from_shared(uri(address))?;
    let (connected, has_tls) = match (address, tls) {
        (Listen::Tcp(address), Some(client)) => {
            let connection = TlsConnection { client, address: loopback(*address) };
            (endpoint.connect_with_connector(connection).await, true)
        }
        _ => (endpoint.connect().await, false),
    };
    let channel = match connected {
        Ok(channel) => channel,
        Err(error) => {
            bail!(
                "cannot connect: {}; is `keystile serve` running with this --listen address{}?",
                cause(&error),
                if has_tls { ", with TLS, and with a certificate of --ca-file" } else { "" }
            )
        }
    };
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await;
    match answer {
        Ok(answer) => Ok(answer.into_inner().status()),
        Err(status) if has_tls => bail!(
            "the instance does not answer: {}; with mutual TLS, --cert-file must be a certificate that it accepts",
            cause(&status)
        ),
        Err(status) => bail!(
            "this is no Keystile, or it does not answer: {}; if it has TLS, set --tls-cert-file",
            status.message()
        ),
    }
}

/// The innermost error: each of those around it repeats its text, or says nothing of the cause.
fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// An instance that listens on all addresses is reached over loopback.
fn loopback(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn uri(address: &Listen) -> String {
    match address {
        Listen::Unix(path) => format!("unix://{}", path.display()),
        Listen::Tcp(address) => format!("http://{}", loopback(*address)),
    }
}
