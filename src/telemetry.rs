//! The log: lines on standard error, for people or for machines.

use std::io::IsTerminal;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, filter::ParseError, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

mod panics;

pub use panics::log_panics;

/// Where the events of this crate come from.
const OWN: &str = "keystile";

/// Starts logging what `directives` ask for, such as `info` or `info,keystile=debug`.
///
/// # Errors
/// When the directives cannot be read.
pub fn start(directives: &str, json: bool) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(directives)?;
    let colours = std::io::stderr().is_terminal();
    // Without its reports of lines that could not be written: they go to the same place, and panic there.
    let log = tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter);
    let log = log.with_ansi(colours).with_writer(std::io::stderr);
    // A second start, as in tests within one process, keeps the first one's settings.
    let _ = if json {
        log.json().flatten_event(true).finish().with(without_library_details()).try_init()
    } else {
        log.finish().with(without_library_details()).try_init()
    };
    Ok(())
}

/// Logs warnings of a command to standard error, for people.
pub fn start_for_commands() {
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(std::io::stderr);
    let _ = log.with_ansi(std::io::stderr().is_terminal()).without_time().with_target(false).try_init();
}

/// Drops what libraries log below INFO. A library may log parameters of statements or whole messages there, and so hashes
/// and credentials, from one version to the next.
fn without_library_details<S: Subscriber>() -> impl Layer<S> {
    filter_fn(is_logged)
}

fn is_logged(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let is_own = target.strip_prefix(OWN).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    is_own || *metadata.level() <= Level::INFO
}
