//! `keystile management`

use anyhow::Context;
use tracing::info;

use super::startup::Startup;
use crate::{
    config::{LogFormat, ManagementOptions},
    management_api, serve, telemetry,
};

pub(super) async fn run(options: ManagementOptions, startup: &Startup) -> anyhow::Result<()> {
    let json = options.log_format == LogFormat::Json;
    telemetry::start(&options.log, json).with_context(|| format!("--log {}", options.log))?;
    startup.log();
    management_api::run(options, serve::stop_signal()?).await?;
    info!("stopped");
    Ok(())
}
