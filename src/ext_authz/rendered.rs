//! The usual answer, which says the same for every request with a key: encoded once for each record.
//!
//! Fields of a message may stand in any order, and those of an inner message in several parts, so the answer
//! is put together from what was encoded before and what this request adds.

use bytes::Bytes;
use prost::Message;

use super::{
    ExtAuthzConfig,
    headers::Told,
    metadata::Said,
    request::{Copies, Strip},
    response,
    rows::Rows,
    service::framed,
    wire::{put_bytes, put_length},
};
use crate::{
    decision::{Proven, Tier},
    record::{Rendered, Slots},
};

/// Numbers of fields (envoy/service/auth/v3/external_auth.proto).
const OK_RESPONSE: u32 = 3;
const HEADERS_TO_REMOVE: u32 = 5;

/// Whether the answer depends on the record alone, and on what is left of its limits.
pub(super) fn is_usual(proven: &Proven, copies: &Copies) -> bool {
    proven.tier == Tier::Memory && !proven.stale && copies.is_usual()
}

/// Lets the request pass as this key.
pub(super) fn allow(proven: &Proven, strip: &Strip<'_>, copies: &Copies, config: &ExtAuthzConfig) -> Bytes {
    let render = |rows, strip: &_| render(rows, proven, strip, copies, config);
    let Slots { whole, lasting } = &proven.record.rendered;
    let (kept, own) = match proven.standing {
        None => (whole.get_or_init(|| render(Rows::All, &Strip::default())), stripped(strip)),
        Some(_) => {
            (lasting.get_or_init(|| render(Rows::Lasting, &Strip::default())), render(Rows::Counted, strip))
        }
    };
    let ok = kept.ok.len() + own.ok.len();
    framed(kept.rest.len() + own.rest.len() + ok + 8, |message| {
        message.extend_from_slice(&kept.rest);
        message.extend_from_slice(&own.rest);
        put_length(message, OK_RESPONSE, ok);
        message.extend_from_slice(&kept.ok);
        message.extend_from_slice(&own.ok);
    })
}

/// What takes the credential out of this request.
fn stripped(strip: &Strip<'_>) -> Rendered {
    let headers_alone = strip.query_parameters.is_empty() && strip.cookie.is_none();
    if !headers_alone {
        return Rendered { rest: Box::default(), ok: response::stripped(strip).encode_to_vec().into() };
    }
    let mut ok = Vec::with_capacity(32);
    strip.headers.iter().for_each(|name| put_bytes(&mut ok, HEADERS_TO_REMOVE, name.as_bytes()));
    Rendered { rest: Box::default(), ok: ok.into() }
}

/// Encodes a part of the answer.
fn render(
    rows: Rows,
    proven: &Proven,
    strip: &Strip<'_>,
    copies: &Copies,
    config: &ExtAuthzConfig,
) -> Rendered {
    let told = Told { result: "allow", record: Some(&proven.record), standing: proven.standing.as_ref() };
    let said =
        Said { decision: "allow", result: "allow", reason: None, proven: Some(proven), route_error: None };
    let mut ok = response::stripped(strip);
    response::tell(&mut ok, rows, &told, copies, config);
    let rest = response::allowed(said.to_struct(rows, &config.metadata), None);
    Rendered { rest: rest.encode_to_vec().into(), ok: ok.encode_to_vec().into() }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use envoy_types::ext_authz::v3::pb::{CheckResponse, HttpResponse};

    use super::*;
    use crate::{
        ext_authz::tests::config,
        limits::{Counted, Left, Standing},
        record::sample,
    };

    fn proven() -> Proven {
        let record = Arc::new(sample::record());
        Proven { record, tier: Tier::Memory, stale: false, standing: None }
    }

    fn standing(remaining: u64) -> Standing {
        let left = Left { limit: 60, remaining, reset: Duration::from_secs(7) };
        Standing { windows: [Some(left), None, None], counted: Counted::Local }
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
    fn expected(proven: &Proven, strip: &Strip<'_>, config: &ExtAuthzConfig) -> CheckResponse {
        let said = Said {
            decision: "allow",
            result: "allow",
            reason: None,
            proven: Some(proven),
            route_error: None,
        };
        let told = Told { result: "allow", record: Some(&proven.record), standing: proven.standing.as_ref() };
        let metadata = said.to_struct(Rows::All, &config.metadata);
        sorted(response::allow(told, metadata, strip, &Copies::Any, config))
    }

    #[test]
    fn answer_that_is_put_together_says_what_one_that_is_encoded_whole_does() {
        let (mut proven, config) = (proven(), config());
        let strips = [
            Strip::default(),
            Strip { headers: vec!["authorization", "x-api-key"], ..Strip::default() },
            Strip { query_parameters: vec!["key"], ..Strip::default() },
            Strip { headers: vec!["x-api-key"], cookie: Some("a=b".into()), ..Strip::default() },
            Strip { cookie: Some(String::new()), ..Strip::default() },
        ];
        for strip in strips {
            // Several times of one record: the first time makes what is kept. The counts may come and go.
            for standing in [None, Some(standing(2)), Some(standing(1)), None] {
                proven.standing = standing;
                let message = allow(&proven, &strip, &Copies::Any, &config);
                assert_eq!(read(&message), expected(&proven, &strip, &config), "{strip:?}, {standing:?}");
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
