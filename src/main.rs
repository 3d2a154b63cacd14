//! Parses the command line and runs what it says.

use std::process::ExitCode;

use keystile::cli::{self, Cli};

#[tokio::main]
async fn main() -> ExitCode {
    cli::run(Cli::read()).await
}
