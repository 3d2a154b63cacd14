//! `keystile doctor --envoy`: examines the configuration of Envoy.

use std::{convert::Infallible, io::Read, path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context, bail};
use serde::Serialize;
use url::Url;

use super::{admin_listener, report};
use crate::{
    cli::output::{Output, count as number_of},
    config::redacted,
    envoy_config::{self, DocumentKind, EnvoyVersion, MAX_BYTES},
    findings::Report,
};

/// Where a configuration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EnvoySource {
    Stdin,
    File(PathBuf),
    /// Something with a scheme.
    Url(String),
}

/// What was examined.
#[derive(Debug, Serialize)]
struct Subject {
    envoy: ExaminedEnvoy,
}

/// The configuration that was examined.
#[derive(Debug, Serialize)]
struct ExaminedEnvoy {
    kind: DocumentKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// The number of chains of filters for HTTP.
    http_chains: usize,
    /// The number of filters that ask an authorization service.
    checks: usize,
}

impl FromStr for EnvoySource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "-" => Self::Stdin,
            url if url.contains("://") => Self::Url(url.to_owned()),
            path => Self::File(path.into()),
        })
    }
}

pub(super) async fn run(source: &EnvoySource, timeout: Duration, output: Output) -> anyhow::Result<()> {
    let (name, text, version) = match source {
        EnvoySource::Stdin => ("-".to_owned(), stdin(), None),
        EnvoySource::File(path) => (path.display().to_string(), file(path), None),
        EnvoySource::Url(url) => {
            let name = redacted(url).unwrap_or_else(|| "(not shown)".to_owned());
            match live(url, timeout).await {
                Ok((text, version)) => (name, Ok(text), version),
                Err(error) => (name, Err(error), None),
            }
        }
    };
    let examined = text.and_then(|text| Ok(envoy_config::examine(&text, version)?));
    let examined = examined.with_context(|| format!("--envoy {name}"))?;
    let version = examined.version.map(|version| version.to_string());
    let known = version
        .as_ref()
        .map_or_else(|| "a version that it does not say".to_owned(), |version| format!("version {version}"));
    let chains = number_of(examined.http_chains as u64, "HTTP filter chain");
    let summary = format!("{chains} of Envoy, {known}");
    let envoy = ExaminedEnvoy {
        kind: examined.kind,
        version,
        http_chains: examined.http_chains,
        checks: examined.checks,
    };
    report::print(output, Subject { envoy }, Report::new(examined.findings), &summary)
}

/// The configuration and the version of a running Envoy.
async fn live(url: &str, timeout: Duration) -> anyhow::Result<(String, Option<EnvoyVersion>)> {
    let parsed = Url::parse(url).context("it is no URL; write it as http://127.0.0.1:9901")?;
    if parsed.scheme() != "http" {
        bail!("Envoy's admin listener speaks plain HTTP; write its URL as http://127.0.0.1:9901");
    }
    let answers = tokio::time::timeout(timeout, async {
        let dump = admin_listener::get(&parsed, "/config_dump").await?;
        // Without it, the dump may still say the version.
        let info = admin_listener::get(&parsed, "/server_info").await.ok();
        let info: Option<serde_json::Value> = info.and_then(|info| serde_json::from_str(&info).ok());
        let version = info.and_then(|info| EnvoyVersion::from_server_info(info["version"].as_str()?));
        anyhow::Ok((dump, version))
    });
    answers.await.with_context(|| {
        format!("no answer within {}; see --envoy-timeout", humantime::format_duration(timeout))
    })?
}

fn file(path: &PathBuf) -> anyhow::Result<String> {
    let about = std::fs::metadata(path).context("the file cannot be read")?;
    if about.is_dir() {
        bail!("it is a folder; name a file, or a URL such as http://127.0.0.1:9901");
    }
    bounded(std::fs::File::open(path).context("the file cannot be read")?)
}

fn stdin() -> anyhow::Result<String> {
    bounded(std::io::stdin().lock())
}

/// Everything that a reader has, up to one byte more than is examined.
fn bounded(reader: impl Read) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    reader.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).context("it cannot be read")?;
    String::from_utf8(bytes).ok().context("it is no text in UTF-8; Envoy's binary formats are not read")
}
