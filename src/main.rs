//! Parses the command line and runs what it says.

use std::process::ExitCode;

use keystile::{
    cli::{self, Cli},
    core_dumps, telemetry,
};

#[tokio::main]
async fn main() -> ExitCode {
    // Before a secret is read.
    telemetry::log_panics();
    if let Err(error) = core_dumps::disable() {
        eprintln!("warning: core dumps, which would hold secrets, cannot be switched off: {error}");
    }
    cli::run(Cli::read()).await
}
