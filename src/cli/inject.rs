//! `keystile inject`

use anyhow::Context;
use tracing::info;

use super::startup::Startup;
use crate::{
    config::{InjectOptions, LogFormat},
    injector, serve, telemetry,
};

pub(super) async fn run(options: InjectOptions, startup: &Startup) -> anyhow::Result<()> {
    let json = options.log_format == LogFormat::Json;
    telemetry::start(&options.log, json).with_context(|| format!("--log {}", options.log))?;
    startup.log();
    injector::run(options, serve::stop_signal()?).await?;
    info!("stopped");
    Ok(())
}
