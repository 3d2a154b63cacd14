//! The values of the headers about a record, bounded so that servers accept them.

use super::{Source, TABLE, TRUNCATED};
use crate::{ext_authz::field_filter::FieldFilter, record::KeyRecord};

/// Longest value. Servers accept at least 8 KiB for all headers.
pub(super) const MAX_VALUE: usize = 4 * 1024;
/// Longest sum of all values about a record. Envoy accepts 60 KiB together with the client's headers.
pub(super) const MAX_VALUES: usize = 16 * 1024;

/// The values of the headers about a record.
pub(crate) struct RecordValues {
    /// By the order of [`TABLE`]; `None` for a header without a value, or that is about something else.
    pub(crate) values: Vec<Option<String>>,
    /// Names of the headers whose value is too long.
    pub(crate) truncated: Vec<&'static str>,
}

impl RecordValues {
    /// The values of the headers that are sent.
    pub(crate) fn new(record: &KeyRecord, sent: &FieldFilter) -> Self {
        let values = TABLE.iter().map(|header| match header.source {
            Source::Record(value) if sent.has(header.name) => value(record),
            _ => None,
        });
        let mut values: Vec<_> = values.collect();
        let mut truncated = Vec::new();
        while let Some(longest) = longest(&values) {
            values[longest] = Some(TRUNCATED.to_owned());
            truncated.push(TABLE[longest].name);
        }
        let own = TABLE.iter().position(|header| matches!(header.source, Source::Truncated));
        if let Some(own) = own.filter(|own| !truncated.is_empty() && sent.has(TABLE[*own].name)) {
            values[own] = Some(truncated.join(","));
        }
        Self { values, truncated }
    }
}

/// The place of the longest value, if it is too long, or all of them together are.
fn longest(values: &[Option<String>]) -> Option<usize> {
    let lengths = || values.iter().map(|value| value.as_ref().map_or(0, String::len));
    let (longest, length) = lengths().enumerate().max_by_key(|(_, length)| *length)?;
    (length > MAX_VALUE || lengths().sum::<usize>() > MAX_VALUES).then_some(longest)
}
