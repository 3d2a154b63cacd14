//! `keystile completions` and `keystile man`, from the definitions of the command line.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Command};
use clap_complete::Shell;

use super::output::print;

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Shell to complete in.
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Folder for the pages, such as /usr/local/share/man/man1. It is created if it does not exist.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the completions of `command`.
pub(super) fn completions(Completions { shell }: Completions, mut command: Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "keystile", &mut script);
    print(&String::from_utf8(script).context("completions are UTF-8")?)
}

/// Writes a manual page for `command`, and for each of its commands.
pub(super) fn man(Man { folder }: Man, command: Command) -> anyhow::Result<()> {
    let shown = folder.display();
    if folder.exists() && !folder.is_dir() {
        bail!("{shown}: not a folder; name one, and a page for each command is written into it");
    }
    fs::create_dir_all(&folder).with_context(|| format!("{shown}: creating the folder"))?;
    let pages = |command: Command| clap_mangen::generate_to(command, &folder);
    pages(command.disable_help_subcommand(true)).with_context(|| format!("{shown}: writing the pages"))?;
    print(&format!("wrote the pages to {shown}; see `man -l {}`\n", folder.join("keystile.1").display()))
}
