//! The usual answer, which says the same for every request with a key: encoded once for each record.
//!
//! Fields of a message may stand in any order, and those of an inner message in several parts, so the answer
//! is put together from what was encoded before and what this request adds.

use bytes::Bytes;
use envoy_types::ext_authz::v3::pb::{CheckResponse, HttpResponse};
use prost::Message;

use super::{
    ExtAuthzConfig,
    headers::Told,
    metadata::Said,
    request::{Copies, Strip},
    response,
    service::framed,
    wire::{put_bytes, put_length},
};
use crate::{
    decision::{Proven, Tier},
    record::Rendered,
};

/// Numbers of fields (envoy/service/auth/v3/external_auth.proto).
const OK_RESPONSE: u32 = 3;
const HEADERS_TO_REMOVE: u32 = 5;

/// Whether the answer depends on the record alone.
pub(super) fn is_usual(proven: &Proven, copies: &Copies) -> bool {
    proven.tier == Tier::Memory && !proven.stale && proven.standing.is_none() && copies.is_usual()
}

/// Lets the request pass as this key.
pub(super) fn allow(proven: &Proven, strip: &Strip<'_>, copies: &Copies, config: &ExtAuthzConfig) -> Bytes {
    let Rendered { rest, ok } = proven.record.rendered.get_or_make(|| render(proven, copies, config));
    let own = own(strip);
    framed(rest.len() + ok.len() + own.len() + 8, |message| {
        message.extend_from_slice(rest);
        put_length(message, OK_RESPONSE, ok.len() + own.len());
        message.extend_from_slice(ok);
        message.extend_from_slice(&own);
    })
}

/// What this request adds.
fn own(strip: &Strip<'_>) -> Vec<u8> {
    let headers_alone = strip.query_parameters.is_empty() && strip.cookie.is_none();
    if !headers_alone {
        return response::stripped(strip).encode_to_vec();
    }
    let mut own = Vec::with_capacity(32);
    strip.headers.iter().for_each(|name| put_bytes(&mut own, HEADERS_TO_REMOVE, name.as_bytes()));
    own
}

/// Encodes what every answer for the record has.
fn render(proven: &Proven, copies: &Copies, config: &ExtAuthzConfig) -> Rendered {
    let said =
        Said { decision: "allow", result: "allow", reason: None, proven: Some(proven), route_error: None };
    let told = Told { result: "allow", record: Some(&proven.record), standing: None };
    let metadata = said.to_struct(&config.metadata);
    let answer = response::allow(told, metadata, &Strip::default(), copies, config);
    let CheckResponse { status, dynamic_metadata, http_response } = answer;
    let ok = match http_response {
        Some(HttpResponse::OkResponse(ok)) => ok.encode_to_vec(),
        _ => unreachable!("an allow is an OK response"),
    };
    let rest = CheckResponse { status, dynamic_metadata, http_response: None }.encode_to_vec();
    Rendered { rest: rest.into(), ok: ok.into() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{ext_authz::tests::config, record::sample};

    fn proven() -> Proven {
        let record = Arc::new(sample::record());
        Proven { record, tier: Tier::Memory, stale: false, standing: None }
    }

    fn sorted(mut answer: CheckResponse) -> CheckResponse {
        if let Some(HttpResponse::OkResponse(ok)) = &mut answer.http_response {
            ok.headers_to_remove.sort();
            ok.headers.sort_by_key(|option| option.header.as_ref().map(|header| header.key.clone()));
        }
        answer
    }

    #[test]
    fn answer_that_is_put_together_says_what_one_that_is_encoded_whole_does() {
        let proven = proven();
        let said = Said {
            decision: "allow",
            result: "allow",
            reason: None,
            proven: Some(&proven),
            route_error: None,
        };
        let told = Told { result: "allow", record: Some(&proven.record), standing: None };
        let config = config();
        let strips = [
            Strip::default(),
            Strip { headers: vec!["authorization", "x-api-key"], ..Strip::default() },
            Strip { query_parameters: vec!["key"], ..Strip::default() },
            Strip { headers: vec!["x-api-key"], cookie: Some("a=b".into()), ..Strip::default() },
            Strip { cookie: Some(String::new()), ..Strip::default() },
        ];
        for strip in strips {
            let metadata = said.to_struct(&config.metadata);
            let whole = response::allow(told, metadata, &strip, &Copies::Any, &config);
            // Twice: the second time from what was kept.
            for _ in 0..2 {
                let message = allow(&proven, &strip, &Copies::Any, &config);
                assert_eq!(message[..5], [&[0], &(message.len() as u32 - 5).to_be_bytes()[..]].concat());
                let together = CheckResponse::decode(&message[5..]).expect("a message");
                assert_eq!(sorted(together), sorted(whole.clone()), "{strip:?}");
            }
        }
    }

    #[test]
    fn only_what_the_record_alone_decides_is_kept() {
        assert!(is_usual(&proven(), &Copies::Any));
        assert!(is_usual(&proven(), &Copies::Seen(vec![])));
        assert!(!is_usual(&proven(), &Copies::Seen(vec!["x-auth-scopes"])));
        assert!(!is_usual(&Proven { stale: true, ..proven() }, &Copies::Any));
        assert!(!is_usual(&Proven { tier: Tier::Redis, ..proven() }, &Copies::Any));
    }
}
