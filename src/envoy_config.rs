//! Envoy's configuration, examined for `keystile doctor --envoy`: what is unsafe or slow for this service.
//!
//! Pure, in two steps. `read` turns the document, a static configuration or the `config_dump` of a running Envoy, into
//! the types of `config`. `rules` is a table of the rules that these are compared with.

use crate::findings::{Finding, Location, Severity};

mod config;
mod document;
mod matcher;
mod node;
mod read;
mod rules;
mod version;

pub use config::Origin;
pub use document::{DocumentError, DocumentKind, MAX_BYTES};
pub use rules::{Rule, rules};
pub use version::EnvoyVersion;

use document::Document;

/// The place of what is about all of it.
const WHOLE: &str = "configuration";

/// The result of an examination.
#[derive(Debug)]
pub struct Examination {
    /// What was examined.
    pub kind: DocumentKind,
    /// Envoy's version, where the document or the caller knows it.
    pub version: Option<EnvoyVersion>,
    /// The number of chains of filters for HTTP.
    pub http_chains: usize,
    /// The number of filters that ask an authorization service.
    pub checks: usize,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// Examines a document. `version` is that of the Envoy that it comes from, unless the document says it.
///
/// # Errors
/// [`DocumentError`] for a document that is no configuration of Envoy.
pub fn examine(text: &str, version: Option<EnvoyVersion>) -> Result<Examination, DocumentError> {
    let document = Document::parse(text)?;
    let mut config = read::config(&document)?;
    config.version = config.version.or(version);
    let mut findings: Vec<_> = rules().flat_map(|rule| rule.findings(&config)).collect();
    // A cluster that several filters name is examined for each.
    findings.sort_by(|a, b| (a.code, &a.location, &a.message).cmp(&(b.code, &b.location, &b.message)));
    findings.dedup();
    Ok(Examination {
        kind: document.kind,
        version: config.version,
        http_chains: config.chains.len(),
        checks: config.checks().count() + config.network_checks.len(),
        findings,
    })
}

impl Rule {
    /// What this rule finds.
    fn findings(&self, config: &config::Config) -> impl Iterator<Item = Finding> {
        (self.examine)(config).into_iter().map(|fault| {
            let author = fault.origin.name().filter(|_| self.not_settable.contains(&fault.origin));
            let colon = if fault.detail.is_empty() { "" } else { ": " };
            let mut message = format!("{}{colon}{}", self.meaning, fault.detail);
            if let Some(author) = author {
                message += &format!("; {author} has no setting for it");
            }
            Finding {
                code: self.code,
                severity: if author.is_some() { Severity::Note } else { fault.severity },
                message,
                location: Location::path(if fault.path.is_empty() { WHOLE } else { &fault.path }),
                count: None,
                examples: Vec::new(),
                fix: self.fix.to_owned(),
            }
        })
    }
}
