//! Where usage is written, as its writer needs it.

use std::{fmt::Display, future::Future};

use super::Batch;
use crate::dependencies::Cause;

/// A store that takes the usage of keys.
pub trait UsageStore: Send + Sync + 'static {
    /// Why a write fails.
    type Error: WriteError;

    /// Writes a batch once. A batch without rows finds out whether the store accepts writes.
    fn write_usage(&self, batch: &Batch) -> impl Future<Output = WriteOutcome<Self::Error>> + Send;

    /// Whether a transaction was committed. `None` while that is unknown.
    ///
    /// # Errors
    /// The store's error when it does not answer. A refusal means that it will never know.
    fn was_written(
        &self,
        transaction: &str,
    ) -> impl Future<Output = Result<Option<bool>, Self::Error>> + Send;
}

/// The outcome of a write that must happen once.
#[derive(Debug, Clone)]
pub enum WriteOutcome<E> {
    /// It was committed.
    Done,
    /// It was not committed.
    Failed(E),
    /// The answer was lost.
    Unknown {
        /// By which [`UsageStore::was_written`] finds out.
        transaction: String,
        /// Why the answer was lost.
        error: E,
    },
}

/// Why a write failed.
pub trait WriteError: Display + Send + Sync {
    /// Whether the store answered that it refuses these rows. Other failures pass.
    fn is_refusal(&self) -> bool;

    /// Why the write failed.
    fn cause(&self) -> Cause;
}
