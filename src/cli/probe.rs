//! `keystile probe`: asks a running `keystile serve` for its health, for probes that run in its container.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::config::{Listen, duration_or_none};

#[derive(Debug, Args)]
pub(super) struct Probe {
    /// Address of the instance: `ADDRESS:PORT` or `unix:/PATH`. Of a comma-separated list, the first is used.
    #[arg(long, env = "KEYSTILE_LISTEN", default_value = "127.0.0.1:9191", value_delimiter = ',')]
    address: Vec<Listen>,

    /// Succeed on any answer: the instance runs, but may not be ready for checks.
    #[arg(long)]
    alive: bool,

    /// Deadline of the answer.
    #[arg(long, env = "KEYSTILE_PROBE_TIMEOUT", default_value = "2s", value_parser = duration_or_none)]
    timeout: Duration,
}

pub(super) async fn run(probe: Probe) -> anyhow::Result<()> {
    let address = probe.address.first().context("--address names nothing")?;
    let answer = tokio::time::timeout(probe.timeout, ask(address)).await;
    let status = answer
        .with_context(|| format!("no answer within {}", humantime::format_duration(probe.timeout)))
        .flatten()
        .with_context(|| format!("--address {address}"))?;
    match status {
        ServingStatus::Serving => Ok(()),
        _ if probe.alive => Ok(()),
        _ => bail!("--address {address}: not ready"),
    }
}

async fn ask(address: &Listen) -> anyhow::Result<ServingStatus> {
    let channel = Endpoint::from_shared(uri(address))?.connect().await;
    let channel =
        channel.context("cannot connect; is `keystile serve` running with this --listen address?")?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await?;
    Ok(answer.into_inner().status())
}

fn uri(address: &Listen) -> String {
    match address {
        Listen::Unix(path) => format!("unix://{}", path.display()),
        // An instance that listens on all addresses is reached over loopback.
        Listen::Tcp(address) if address.ip().is_unspecified() => {
            let loopback = match address {
                SocketAddr::V4(_) => "127.0.0.1",
                SocketAddr::V6(_) => "[::1]",
            };
            format!("http://{loopback}:{}", address.port())
        }
        Listen::Tcp(address) => format!("http://{address}"),
    }
}
