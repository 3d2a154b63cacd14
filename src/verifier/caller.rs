//! The sender of a credential.

use std::{net::IpAddr, time::Instant};

use crate::clock::Timestamps;

/// The sender of a credential, and the arrival and deadline of its check.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// The client's address, if Envoy vouches for it.
    pub client: Option<IpAddr>,
    /// The arrival of the check.
    pub now: Timestamps,
    /// The deadline of the check.
    pub deadline: Instant,
}
