//! No core dumps: they would hold keys, passwords and secrets.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Switches core dumps of this process off, and with them the access of other processes of the same user: they can
/// neither attach a debugger nor read its memory or its environment in `/proc`. Root still can.
///
/// Where core dumps go to a program, as with systemd-coredump, the kernel ignores the limit. The attribute stops both.
///
/// # Errors
/// When the system does not allow it.
pub fn disable() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
