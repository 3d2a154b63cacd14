//! Keeps what was read before a change from being remembered after it.
//!
//! A reading takes a [`Ticket`] before it asks. When a change is heard of, what is remembered is dropped and
//! the prefix is given a newer number, in one step; when the reading lands, its ticket is too old. What another
//! process has read has no ticket of ours, but says which changes it has [seen](Snapshot).

mod bars;
mod snapshot;
mod sync;

pub use bars::{CAPACITY, Change, Fence, MEMORY, News, Ticket, WORST_CASE};
pub use snapshot::{NoSnapshot, Snapshot};

#[cfg(test)]
mod tests;
