//! A record together with the parts of responses that it decides.

use std::sync::OnceLock;

use crate::record::{KeyRecord, StoredRecord};

/// A record as the store hands it to this adapter: each part of a response that the record alone decides is encoded at
/// its first use, and kept for as long as the record lives.
#[derive(Debug, Clone)]
pub struct EncodedRecord {
    record: KeyRecord,
    /// Fields of a `CheckResponse`: the metadata about the record.
    pub(super) metadata: OnceLock<Box<[u8]>>,
    /// The headers about the record.
    pub(super) headers: OnceLock<RecordHeaders>,
}

/// Upstream headers about a record, or about the absence of one.
#[derive(Debug, Clone)]
pub(super) struct RecordHeaders {
    /// Fields of an `OkHttpResponse`.
    pub(super) encoded: Box<[u8]>,
    /// Which headers are set, by their place in the table.
    pub(super) set: HeaderSet,
}

/// Some headers of the table, by their place in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct HeaderSet(u64);

impl HeaderSet {
    /// Adds a header.
    pub(super) fn insert(&mut self, place: usize) {
        self.0 |= 1 << place;
    }

    /// Whether the header is one of them.
    pub(super) fn contains(self, place: usize) -> bool {
        self.0 & (1 << place) != 0
    }

    /// Their places.
    pub(super) fn places(self) -> impl Iterator<Item = usize> {
        (0..64).filter(move |place| self.contains(*place))
    }
}

impl StoredRecord for EncodedRecord {
    fn record(&self) -> &KeyRecord {
        &self.record
    }
}

impl From<KeyRecord> for EncodedRecord {
    fn from(record: KeyRecord) -> Self {
        Self { record, metadata: OnceLock::new(), headers: OnceLock::new() }
    }
}
