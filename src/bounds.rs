//! How much peers can make the process hold, and for how long: connections, memory of calls, descriptors.
//!
//! Each bound gives way in the same order: the oldest that does nothing, or has not ended, makes room for the newest.
//! So idle or slow peers cannot keep others out, and calls that end quickly are never affected.

use std::{io, time::Duration};

use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

mod connections;
mod http;
mod in_flight;

pub use connections::{Connection, Connections, Slot, State};
pub use http::serve_http;
pub use in_flight::{InFlight, NoRoom, Phase, answered, hold, wait};

/// How often connections and calls are looked at.
pub const TICK: Duration = Duration::from_millis(250);

/// Connections of operators and monitoring: far more than they need, far fewer than there are descriptors.
pub const ADMIN_CONNECTIONS: usize = 64;

/// How long nothing is accepted once something is exhausted.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection over HTTP may be without a whole request.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Connections of Envoys: one for each of their workers. More would be over a gigabyte of sockets and HTTP/2 state.
const MAX_CONNECTIONS: usize = 4096;

/// Descriptors for everything else: listeners, files, Redis, connections that are being closed.
const OTHER_DESCRIPTORS: usize = 64;

/// Raises the number of descriptors that the process may have to what the system lets it, and returns it.
pub fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        // The process continues with the limit that it has.
        Err(_) => current.unwrap_or(u64::MAX),
    }
}

/// Whether a connection could not be accepted for want of something that the next one wants as well. Any other failure
/// is about that connection alone.
pub fn is_exhausted(error: &io::Error) -> bool {
    let errors = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| errors.iter().any(|errno| errno.raw_os_error() == code))
}

/// Maximum number of gRPC connections, after the descriptors that everything else needs.
pub fn grpc_connections(descriptors: u64, database_connections: u32) -> usize {
    let others = ADMIN_CONNECTIONS + OTHER_DESCRIPTORS + database_connections as usize;
    let left = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(others);
    // A new connection is there before the one that makes room for it is gone.
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
