//! Why a revoked key is denied within a second.
//!
//! The database logs each change in the transaction that makes it. The [`ChangeFeed`] reads that log, checks at
//! each read everything that the log's completeness rests on ([`Evidence`]), and applies the changes at the
//! [`Fence`]: what is cached is dropped, and a read that began earlier can no longer be cached. What another
//! process cached in Redis says which changes it had seen ([`LogPosition`]). While anything cannot be verified
//! ([`Cause`]), the feed is not up, and nothing older than [`WORST_CASE`] is believed.

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
pub use log::{ChangeLog, LogError, LogRead, Logged, Reading, Signals, Since};
pub use log_position::{LogPosition, NoLogPosition};
pub use snapshot::{NoSnapshot, Snapshot};
pub use status::{FeedState, Source};

#[cfg(test)]
mod tests;
