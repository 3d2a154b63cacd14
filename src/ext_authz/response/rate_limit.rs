//! Headers about the state of a key's limits, where they are counted.

use super::header_option::put_header;
use crate::{
    config::RateLimitFields,
    limits::{LimitStatus, PerSpan, Span, WindowStatus},
};

/// Names of headers, to the client and to the upstream.
pub(super) const LIMIT: PerSpan<&str> =
    ["x-ratelimit-limit-minute", "x-ratelimit-limit-hour", "x-ratelimit-limit-day"];
pub(super) const REMAINING: PerSpan<&str> =
    ["x-ratelimit-remaining-minute", "x-ratelimit-remaining-hour", "x-ratelimit-remaining-day"];
pub(super) const RESET: PerSpan<&str> =
    ["x-ratelimit-reset-minute", "x-ratelimit-reset-hour", "x-ratelimit-reset-day"];

/// Room for the state of a key's limits in a response, in bytes.
pub(super) fn expected_length(limit_status: Option<&LimitStatus>) -> usize {
    const METADATA: usize = 160;
    const WINDOW: usize = 320;
    limit_status.map_or(0, |limit_status| METADATA + WINDOW * limit_status.each().count())
}

/// Writes the headers for the client, as this field of the response. They replace those of the upstream, which would be
/// about something else.
pub(super) fn put_client_headers(
    into: &mut Vec<u8>,
    number: u32,
    limit_status: &LimitStatus,
    fields: RateLimitFields,
) {
    let mut digits = itoa::Buffer::new();
    for (span, left) in limit_status.each() {
        let span = span as usize;
        put_header(into, number, LIMIT[span], digits.format(left.limit));
        put_header(into, number, REMAINING[span], digits.format(left.remaining));
        put_header(into, number, RESET[span], digits.format(left.reset_seconds()));
    }
    if fields == RateLimitFields::Draft10 {
        for (name, value) in draft_10(limit_status) {
            put_header(into, number, name, &value);
        }
    }
}

/// The fields of draft-ietf-httpapi-ratelimit-headers-10.
fn draft_10(limit_status: &LimitStatus) -> [(&'static str, String); 2] {
    let list = |item: fn((Span, WindowStatus)) -> String| {
        limit_status.each().map(item).collect::<Vec<_>>().join(", ")
    };
    let policy = list(|(span, left)| format!("\"{}\";q={};w={}", span.name(), left.limit, span.seconds()));
    let state =
        list(|(span, left)| format!("\"{}\";r={};t={}", span.name(), left.remaining, left.reset_seconds()));
    [("ratelimit-policy", policy), ("ratelimit", state)]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limits::LimitScope;

    #[test]
    fn draft_fields_are_lists_of_policies() {
        let left = |limit, remaining, seconds| {
            Some(WindowStatus { limit, remaining, reset: Duration::from_secs_f64(seconds) })
        };
        let windows = [left(60, 3, 12.1), None, left(10_000, 9_000, 3_600.0)];
        let [policy, state] = draft_10(&LimitStatus { windows, counted: LimitScope::Redis });
        assert_eq!(policy.1, r#""minute";q=60;w=60, "day";q=10000;w=86400"#);
        assert_eq!(state.1, r#""minute";r=3;t=13, "day";r=9000;t=3600"#);
    }
}
