//! Refuses whole API keys as arguments.

use anyhow::bail;

use crate::credential::Prefix;

/// Refuses a whole key as an argument: arguments are in the shell's history and in the list of processes. The error
/// does not repeat it.
pub(super) fn refuse_whole_key(argument: &str) -> anyhow::Result<()> {
    if argument.len() > Prefix::LEN && argument.parse::<i64>().is_err() {
        bail!(
            "the argument is longer than a prefix; give the id or the first {} characters of the key \
             (`keystile keys show -` reads a whole key from stdin)",
            Prefix::LEN
        );
    }
    Ok(())
}
