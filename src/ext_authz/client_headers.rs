//! What the client is told of its limits, where they are counted.

use crate::limits::{Left, PerSpan, Span, Standing};

const LIMIT: PerSpan<&str> = ["x-ratelimit-limit-minute", "x-ratelimit-limit-hour", "x-ratelimit-limit-day"];
const REMAINING: PerSpan<&str> =
    ["x-ratelimit-remaining-minute", "x-ratelimit-remaining-hour", "x-ratelimit-remaining-day"];
const RESET: PerSpan<&str> = ["x-ratelimit-reset-minute", "x-ratelimit-reset-hour", "x-ratelimit-reset-day"];

/// By the names under which the upstream is told it.
pub(super) fn x_ratelimit(standing: &Standing) -> impl Iterator<Item = (&'static str, u64)> {
    standing.each().flat_map(|(span, left)| {
        [
            (LIMIT[span as usize], left.limit),
            (REMAINING[span as usize], left.remaining),
            (RESET[span as usize], left.reset_seconds()),
        ]
    })
}

/// In the fields that the IETF works on, as of draft-ietf-httpapi-ratelimit-headers-10.
pub(super) fn draft_10(standing: &Standing) -> [(&'static str, String); 2] {
    let list = |item: fn((Span, Left)) -> String| standing.each().map(item).collect::<Vec<_>>().join(", ");
    let policy = list(|(span, left)| format!("\"{}\";q={};w={}", span.name(), left.limit, span.seconds()));
    let now =
        list(|(span, left)| format!("\"{}\";r={};t={}", span.name(), left.remaining, left.reset_seconds()));
    [("ratelimit-policy", policy), ("ratelimit", now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ext_authz::headers::{TABLE, Told},
        limits::Counted,
        record::sample,
    };
    use std::time::Duration;

    fn standing() -> Standing {
        let left = |limit, remaining, seconds| {
            Some(Left { limit, remaining, reset: Duration::from_secs_f64(seconds) })
        };
        Standing { windows: [left(60, 3, 12.1), None, left(10_000, 9_000, 3_600.0)], counted: Counted::Redis }
    }

    #[test]
    fn client_is_told_what_the_upstream_is() {
        let (record, standing) = (sample::record(), standing());
        let told = Told { result: "allow", record: Some(&record), standing: Some(&standing) };
        let limits = TABLE.iter().filter(|header| header.name.starts_with("x-ratelimit-"));
        let mut upstream: Vec<_> =
            limits.filter_map(|header| Some((header.name, header.value(&told)?))).collect();
        let mut client: Vec<_> =
            x_ratelimit(&standing).map(|(name, value)| (name, value.to_string())).collect();
        upstream.sort();
        client.sort();
        assert_eq!(client, upstream);
        assert!(client.contains(&("x-ratelimit-reset-minute", "13".into())), "never too early");
    }

    #[test]
    fn draft_fields_are_lists_of_policies() {
        let [policy, now] = draft_10(&standing());
        assert_eq!(policy.1, r#""minute";q=60;w=60, "day";q=10000;w=86400"#);
        assert_eq!(now.1, r#""minute";r=3;t=13, "day";r=9000;t=3600"#);
    }
}
