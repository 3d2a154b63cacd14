//! `keystile probe`: asks a running `keystile serve` for its health, for probes that run in its container.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    config::{Listen, duration_or_none},
    tcp_listener::reached_at,
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
    let why = tokio::time::timeout(probe.timeout, why_not_ready(probe.admin_address, admin)).await;
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
    let tls = tls.filter(|_| matches!(address, Listen::Tcp(_)));
    let with_tls = if tls.is_some() { ", with TLS, and with a certificate of --ca-file" } else { "" };
    let mut connected = Err(anyhow!("no address"));
    for uri in uris(address) {
        let endpoint = Endpoint::from_shared(uri)?;
        let attempt = match &tls {
            Some(client) => endpoint.connect_with_connector(TlsConnection(client.clone())).await,
            None => endpoint.connect().await,
        };
        connected = attempt.map_err(|error| {
            let cause = cause(&error);
            anyhow!(
                "cannot connect: {cause}; is `keystile serve` running with this --listen address{with_tls}?"
            )
        });
        if connected.is_ok() {
            break;
        }
    }
    let channel = connected?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await;
    match answer {
        Ok(answer) => Ok(answer.into_inner().status()),
        Err(status) if tls.is_some() => bail!(
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

/// The URIs of an address, in the order in which to try.
fn uris(address: &Listen) -> Vec<String> {
    match address {
        Listen::Unix(path) => vec![format!("unix://{}", path.display())],
        Listen::Tcp(address) => {
            reached_at(*address).into_iter().map(|address| format!("http://{address}")).collect()
        }
    }
}
