//! Limits on the resources that peers can hold, and on the time: connections, memory of calls, descriptors.
//!
//! At each limit, the oldest connection without activity or the oldest unfinished call makes room for the newest. So
//! idle or slow peers cannot lock out others. Calls that end quickly are never affected.

use std::{io, time::Duration};

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

mod connections;
mod in_flight;

pub use connections::{Connection, Connections, RunningCall, Slot, State};
pub use in_flight::{InFlight, NoRoom, Phase, answered, hold, wait};

/// Time between two inspections of connections and calls.
pub const TICK: Duration = Duration::from_millis(250);

/// Maximum number of connections for operators and monitoring. It is far more than they need, and far fewer than the
/// number of descriptors.
pub const ADMIN_CONNECTIONS: usize = 64;

/// Pause before the next accept when a resource is exhausted.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Maximum time for an HTTP connection to send a complete request.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Maximum number of connections from Envoys. Each Envoy worker opens one. More connections would need over a gigabyte
/// for sockets and HTTP/2 state.
const MAX_CONNECTIONS: usize = 4096;

/// Descriptors reserved for everything else: listeners, files, Redis, connections that are being closed.
const OTHER_DESCRIPTORS: usize = 64;

/// Raises the descriptor limit of the process to the maximum that the system allows. Returns the resulting limit.
pub fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        // The process continues with its current limit.
        Err(_) => current.unwrap_or(u64::MAX),
    }
}

/// Whether an accept failed because a resource is exhausted that the next accept needs too. Any other failure concerns
/// only that connection.
pub fn is_exhausted(error: &io::Error) -> bool {
    let errors = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| errors.iter().any(|errno| errno.raw_os_error() == code))
}

/// Maximum number of gRPC connections, calculated from the descriptors that remain after all other uses.
pub fn grpc_connections(descriptors: u64, database_connections: u32) -> usize {
    let others = ADMIN_CONNECTIONS + OTHER_DESCRIPTORS + database_connections as usize;
    let left = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(others);
    // An eighth is reserved: a new connection opens before the connection that makes room for it is closed.
    (left - left / 8).clamp(8, MAX_CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_connections_together_fit_into_the_descriptors() {
        for descriptors in [256, 1024, 20_000, u64::MAX] {
            let connections = grpc_connections(descriptors, 8);
            let all = connections + connections / 8 + ADMIN_CONNECTIONS + ADMIN_CONNECTIONS / 8 + 8 + 50;
            assert!(connections >= 100 && all as u64 <= descriptors, "{descriptors}: {connections}");
        }
        assert_eq!(grpc_connections(64, 8), 8, "it starts all the same");
    }
}
