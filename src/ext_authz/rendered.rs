//! The usual answer, which says the same for every request with a key: encoded once for each record.
//!
//! Fields of a message may stand in any order, and those of an inner message in several parts, so the answer
//! is put together from what was encoded before and what this request adds.

use bytes::Bytes;
use envoy_types::ext_authz::v3::pb::OkHttpResponse;
use prost::Message;

use super::{
    ExtAuthzConfig,
    counted::{self, HEADERS_TO_REMOVE},
    headers::Told,
    metadata::Said,
    request::{Copies, Strip},
    response,
    rows::Rows,
    service::framed,
    truncation::Truncation,
    wire::{put_bytes, put_length},
};
use crate::{
    decision::{Proven, Tier},
    record::{Rendered, Slots},
};

/// The number of a field of `CheckResponse` (envoy/service/auth/v3/external_auth.proto).
const OK_RESPONSE: u32 = 3;

/// Whether the answer depends on the record alone, and on what is left of its limits.
pub(super) fn is_usual(proven: &Proven, copies: &Copies) -> bool {
    proven.tier == Tier::Memory && !proven.stale && copies.is_usual()
}

/// Lets the request pass as this key.
pub(super) fn allow(
    proven: &Proven,
    strip: &Strip<'_>,
    copies: &Copies,
    config: &ExtAuthzConfig,
    truncation: &Truncation,
) -> Bytes {
    let Slots { whole, lasting } = &proven.record.rendered;
    let (mut rest, mut ok) = (Vec::new(), Vec::new());
    let kept = match &proven.standing {
        None => whole.get_or_init(|| render(Rows::All, proven, copies, config, truncation)),
        Some(standing) => {
            (rest, ok) = (Vec::with_capacity(256), Vec::with_capacity(1024));
            counted::put_metadata(&mut rest, standing, config);
            counted::put_headers(&mut ok, standing, copies, config);
            lasting.get_or_init(|| render(Rows::Lasting, proven, copies, config, truncation))
        }
    };
    put_stripped(&mut ok, strip);
    let length = kept.ok.len() + ok.len();
    framed(kept.rest.len() + rest.len() + length + 8, |message| {
        message.extend_from_slice(&kept.rest);
        message.extend_from_slice(&rest);
        put_length(message, OK_RESPONSE, length);
        message.extend_from_slice(&kept.ok);
        message.extend_from_slice(&ok);
    })
}

/// Writes into the OK response what takes the credential out of this request.
fn put_stripped(ok: &mut Vec<u8>, strip: &Strip<'_>) {
    let headers_alone = strip.query_parameters.is_empty() && strip.cookie.is_none();
    if !headers_alone {
        return ok.extend(response::stripped(strip).encode_to_vec());
    }
    ok.reserve(32);
    strip.headers.iter().for_each(|name| put_bytes(ok, HEADERS_TO_REMOVE, name.as_bytes()));
}

/// Encodes what every answer for the record has.
fn render(
    rows: Rows,
    proven: &Proven,
    copies: &Copies,
    config: &ExtAuthzConfig,
    truncation: &Truncation,
) -> Rendered {
    let told = Told { result: "allow", record: Some(&proven.record), standing: proven.standing.as_ref() };
    let said =
        Said { decision: "allow", result: "allow", reason: None, proven: Some(proven), route_error: None };
    let mut ok = OkHttpResponse::default();
    truncation.note(&response::tell(&mut ok, rows, &told, copies, config), told.record);
    let rest = response::allowed(said.to_struct(rows, &config.metadata), None);
    Rendered { rest: rest.encode_to_vec().into(), ok: ok.encode_to_vec().into() }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use envoy_types::ext_authz::v3::pb::{CheckResponse, HttpResponse};

    use super::*;
    use crate::{
        config::RateLimitFields,
        ext_authz::{Chosen, tests::config},
        limits::{Counted, Left, Standing},
        metrics::Metrics,
        record::sample,
    };

    fn proven() -> Proven {
        let record = Arc::new(sample::record());
        Proven { record, tier: Tier::Memory, stale: false, standing: None }
    }

    fn truncation() -> Truncation {
        Truncation::new(&Metrics::new().expect("builds"))
    }

    fn standing(remaining: u64) -> Standing {
        let left = |limit| Some(Left { limit, remaining, reset: Duration::from_secs(7) });
        Standing { windows: [left(60), None, left(u64::MAX)], counted: Counted::Local }
    }

    /// The answer, with what may stand in any order in one.
    fn read(message: &[u8]) -> CheckResponse {
        assert_eq!(message[..5], [&[0], &(message.len() as u32 - 5).to_be_bytes()[..]].concat());
        sorted(CheckResponse::decode(&message[5..]).expect("a message"))
    }

    fn sorted(mut answer: CheckResponse) -> CheckResponse {
        if let Some(HttpResponse::OkResponse(ok)) = &mut answer.http_response {
            ok.headers_to_remove.sort();
            ok.headers.sort_by_key(|option| option.header.as_ref().map(|header| header.key.clone()));
        }
        answer
    }

    /// What [`allow`] has to say, encoded whole.
    fn expected(
        proven: &Proven,
        strip: &Strip<'_>,
        copies: &Copies,
        config: &ExtAuthzConfig,
    ) -> CheckResponse {
        let said = Said {
            decision: "allow",
            result: "allow",
            reason: None,
            proven: Some(proven),
            route_error: None,
        };
        let told = Told { result: "allow", record: Some(&proven.record), standing: proven.standing.as_ref() };
        let metadata = said.to_struct(Rows::All, &config.metadata);
        sorted(response::allow(told, metadata, strip, copies, config, &truncation()))
    }

    /// Compares the two, several times of one record: the first time makes what is kept. Counts may come and go.
    fn compare(strip: &Strip<'_>, copies: &Copies, config: &ExtAuthzConfig) {
        let mut proven = proven();
        for standing in [None, Some(standing(0)), Some(standing(1 << 40)), None] {
            proven.standing = standing;
            let message = allow(&proven, strip, copies, config, &truncation());
            assert_eq!(read(&message), expected(&proven, strip, copies, config), "{strip:?}, {config:?}");
        }
    }

    #[test]
    fn answer_that_is_put_together_says_what_one_that_is_encoded_whole_does() {
        for strip in [
            Strip::default(),
            Strip { headers: vec!["authorization", "x-api-key"], ..Strip::default() },
            Strip { query_parameters: vec!["key"], ..Strip::default() },
            Strip { headers: vec!["x-api-key"], cookie: Some("a=b".into()), ..Strip::default() },
            Strip { cookie: Some(String::new()), ..Strip::default() },
        ] {
            compare(&strip, &Copies::Any, &config());
        }
    }

    #[test]
    fn whatever_the_operator_chose_to_be_told() {
        let chosen = |name: &str, names: &'static [&'static str]| {
            Chosen::parse(&[name.to_owned()], names.iter().copied()).expect("a name")
        };
        let few = [
            chosen("x-ratelimit-remaining-day", &["x-ratelimit-remaining-day"]),
            chosen("rate_limit_counted", &["rate_limit_counted"]),
            chosen("none", &[]),
        ];
        for rate_limit_fields in [RateLimitFields::None, RateLimitFields::Draft10] {
            for (upstream_headers, metadata) in
                few.iter().flat_map(|one| few.iter().map(move |two| (one, two)))
            {
                let (upstream_headers, metadata) = (upstream_headers.clone(), metadata.clone());
                let config = ExtAuthzConfig { upstream_headers, metadata, rate_limit_fields, ..config() };
                compare(&Strip::default(), &Copies::Any, &config);
                compare(&Strip::default(), &Copies::Seen(vec![]), &config);
            }
        }
    }

    #[test]
    fn only_what_the_record_and_its_limits_decide_is_usual() {
        assert!(is_usual(&proven(), &Copies::Any));
        assert!(is_usual(&Proven { standing: Some(standing(2)), ..proven() }, &Copies::Any));
        assert!(is_usual(&proven(), &Copies::Seen(vec![])));
        assert!(!is_usual(&proven(), &Copies::Seen(vec!["x-auth-scopes"])));
        assert!(!is_usual(&Proven { stale: true, ..proven() }, &Copies::Any));
        assert!(!is_usual(&Proven { tier: Tier::Redis, ..proven() }, &Copies::Any));
    }
}
