//! The log: lines on standard error, for people or for machines.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, filter::ParseError};

/// Starts logging what `directives` ask for, such as `info` or `info,keystile=debug`.
///
/// # Errors
/// When the directives cannot be read.
pub fn start(directives: &str, json: bool) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(directives)?;
    let colours = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    // A second start, as in tests within one process, keeps the first one's settings.
    let _ = if json { log.json().flatten_event(true).try_init() } else { log.try_init() };
    Ok(())
}

/// Logs warnings of a command to standard error, for people.
pub fn start_for_commands() {
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr);
    let _ = log.with_ansi(std::io::stderr().is_terminal()).without_time().with_target(false).try_init();
}
