//! How a revoked key is denied within one second.
//!
//! The database logs each change in the transaction that makes it. The [`ChangeFeed`] reads that log. At each read it
//! verifies every condition that the log's completeness depends on ([`Evidence`]). It applies the changes at the
//! [`Fence`]: cached records are dropped, and a read that began earlier can no longer be cached. A record that another
//! instance cached in Redis states which changes its read had seen ([`LogPosition`]). While a condition cannot be
//! verified ([`Cause`]), the feed is not up, and no cached record older than [`WORST_CASE`] is used.

mod conditions;
mod feed;
mod fence;
mod log;
mod log_position;
mod snapshot;
mod status;
mod sync;

pub use conditions::{Cause, Evidence, Known, Problem, Verdict, verify};
pub use feed::ChangeFeed;
pub use fence::{CAPACITY, Change, Changes, Fence, Generation, MEMORY, WORST_CASE};
pub use log::{ChangeLog, LogError, LogRead, LoggedChange, Reading, Signals, Since};
pub use log_position::{LogPosition, NoLogPosition};
pub use snapshot::{NoSnapshot, Snapshot};
pub use status::{FeedState, Source};

#[cfg(test)]
mod tests;
