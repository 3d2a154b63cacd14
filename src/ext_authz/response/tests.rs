//! Responses, decoded by the generated types and compared with the tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use envoy_types::{
    ext_authz::v3::pb::{CheckResponse, DeniedHttpResponse, HeaderValueOption, HttpResponse, OkHttpResponse},
    pb::google::protobuf::{Struct, Value, value::Kind},
};
use prost::Message;
use serde_json::{Map, json};

use super::{
    body,
    headers::{RecordValues, Source, TABLE},
    *,
};
use crate::{
    attributes::{Attributes, body::Body, route::RouteSettings},
    config::{DenyFormat, RateLimitFields, RemoveHeaders, RotationLink},
    decision::{Reason, Tier},
    ext_authz::{
        config::ExtAuthzConfig,
        encoded_record::HeaderSet,
        field_filter::FieldFilter,
        outcome::{Admission, Denial, Proven},
        request::{CredentialRemoval, ParsedRequest, SpoofedHeaders},
        tests::config,
    },
    limits::{LimitScope, LimitStatus, WindowStatus},
    metrics::Metrics,
    record::{Chain, Expiry, KeyId, KeyRecord, Rotation, fixtures},
};

fn proven() -> Proven {
    let record = Arc::new(fixtures::record().into());
    Proven { record, tier: Tier::Memory, stale: false, limit_status: None }
}

fn limit_status(remaining: u64) -> LimitStatus {
    let left = |limit| Some(WindowStatus { limit, remaining, reset: Duration::from_millis(6_100) });
    LimitStatus { windows: [left(60), None, left(10_000)], counted: LimitScope::Local }
}

fn attributes<'a>(request_id: &'a str, is_grpc: bool, route: &'a str) -> Attributes<'a> {
    Attributes {
        credential: Err(Reason::MissingCredential),
        request_id,
        stream_id: "",
        method: "GET",
        path: "/",
        client: None,
        vouched_client: None,
        is_grpc,
        body: Body::Absent,
        route: RouteSettings::parse([(route, "")]),
    }
}

fn request<'a>(removal: CredentialRemoval<'a>, spoofed: SpoofedHeaders) -> ParsedRequest<'a> {
    ParsedRequest { removal, spoofed, ..plain(attributes("r-1", false, "other")) }
}

/// A request with nothing to remove.
fn plain(attributes: Attributes<'_>) -> ParsedRequest<'_> {
    ParsedRequest { attributes, removal: CredentialRemoval::default(), spoofed: SpoofedHeaders::Any }
}

fn allows(config: &ExtAuthzConfig) -> AllowResponses {
    AllowResponses::new(config, &Metrics::new().expect("builds"))
}

/// The message behind its prefix.
fn decoded(framed: &[u8]) -> CheckResponse {
    assert_eq!(framed[..5], [&[0], &(framed.len() as u32 - 5).to_be_bytes()[..]].concat());
    CheckResponse::decode(&framed[5..]).expect("a message")
}

fn allowed(framed: &[u8]) -> (serde_json::Value, OkHttpResponse) {
    let response = decoded(framed);
    assert_eq!(response.status.expect("explicit").code, 0);
    let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!("not allowed") };
    (as_json(response.dynamic_metadata.expect("metadata")), ok)
}

fn denied(framed: &[u8]) -> (i32, Option<serde_json::Value>, DeniedHttpResponse) {
    let response = decoded(framed);
    let Some(HttpResponse::DeniedResponse(denied)) = response.http_response else { panic!("not denied") };
    (response.status.expect("explicit").code, response.dynamic_metadata.map(as_json), denied)
}

fn as_json(fields: Struct) -> serde_json::Value {
    fn plain(value: Value) -> serde_json::Value {
        match value.kind.expect("a kind") {
            Kind::NullValue(_) => json!(null),
            Kind::NumberValue(number) => json!(number),
            Kind::StringValue(text) => json!(text),
            Kind::BoolValue(boolean) => json!(boolean),
            Kind::StructValue(fields) => as_json(fields),
            Kind::ListValue(list) => list.values.into_iter().map(plain).collect(),
        }
    }
    fields.fields.into_iter().map(|(name, field)| (name, plain(field))).collect::<Map<_, _>>().into()
}

/// Headers by their names. Each replaces others of its name, and comes once.
fn by_name(options: &[HeaderValueOption]) -> BTreeMap<&str, &str> {
    let mut headers = BTreeMap::new();
    for option in options {
        assert_eq!(option.append_action, 2, "OVERWRITE_IF_EXISTS_OR_ADD");
        let header = option.header.as_ref().expect("a header");
        assert_eq!(headers.insert(header.key.as_str(), header.value.as_str()), None, "{}", header.key);
    }
    headers
}

/// Compares the headers of an allow with the table.
fn check_headers(
    ok: &OkHttpResponse,
    admission: &Admission,
    result: &str,
    request: &ParsedRequest<'_>,
    config: &ExtAuthzConfig,
) {
    let proven = admission.proven();
    let values = proven.map(|proven| RecordValues::new(proven.record(), &config.upstream_headers).values);
    let limit_status = proven.and_then(|proven| proven.limit_status.as_ref());
    let (mut set, mut removed) = (BTreeMap::new(), BTreeSet::new());
    for (place, header) in TABLE.iter().enumerate() {
        let value = match header.source {
            Source::Outcome => Some(result.to_owned()),
            Source::Record(_) | Source::Truncated => values.as_ref().and_then(|values| values[place].clone()),
            Source::Limit(..) => {
                limit_status.and_then(|limit_status| header.limit_value(limit_status)).map(|v| v.to_string())
            }
        };
        let may_be_spoofed = match request.spoofed {
            SpoofedHeaders::Any => true,
            SpoofedHeaders::Seen(seen) => seen.contains(place),
        };
        match value.filter(|_| config.upstream_headers.has(header.name)) {
            Some(value) => _ = set.insert(header.name, value),
            None if may_be_spoofed => _ = removed.insert(header.name),
            None => {}
        }
    }
    let mut parameters = Vec::new();
    if !config.forward_credential {
        removed.extend(&request.removal.headers);
        removed.extend(request.removal.foreign_headers.iter().filter(|_| proven.is_some()));
        parameters.clone_from(&request.removal.query_parameters);
        match request.removal.cookie.as_deref() {
            Some("") => _ = removed.insert("cookie"),
            Some(rest) => _ = set.insert("cookie", rest.to_owned()),
            None => {}
        }
    }
    let set: BTreeMap<_, _> = set.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(by_name(&ok.headers), set);
    assert_eq!(ok.headers_to_remove.len(), removed.len(), "each once");
    assert_eq!(ok.headers_to_remove.iter().map(String::as_str).collect::<BTreeSet<_>>(), removed);
    assert_eq!(ok.query_parameters_to_remove, parameters);
}

fn filter(name: &str, names: &'static [&'static str]) -> FieldFilter {
    FieldFilter::parse(&[name.to_owned()], names.iter().copied()).expect("a name")
}

fn removals() -> [CredentialRemoval<'static>; 7] {
    [
        CredentialRemoval::default(),
        CredentialRemoval { headers: vec!["authorization", "x-api-key"], ..CredentialRemoval::default() },
        CredentialRemoval { query_parameters: vec!["key"], ..CredentialRemoval::default() },
        CredentialRemoval {
            headers: vec!["x-api-key"],
            cookie: Some("a=b".into()),
            ..CredentialRemoval::default()
        },
        CredentialRemoval { cookie: Some(String::new()), ..CredentialRemoval::default() },
        CredentialRemoval { foreign_headers: vec!["authorization"], ..CredentialRemoval::default() },
        CredentialRemoval {
            headers: vec!["x-api-key"],
            foreign_headers: vec!["authorization", "x-goog-api-key"],
            ..CredentialRemoval::default()
        },
    ]
}

/// Compares several responses for the same record: its parts are encoded for the first of them.
fn check_admissions(config: &ExtAuthzConfig) {
    let seen = |places: &[usize]| {
        let mut set = HeaderSet::default();
        places.iter().for_each(|place| set.insert(*place));
        SpoofedHeaders::Seen(set)
    };
    let spoofed = match config.request.remove_headers {
        RemoveHeaders::All => vec![SpoofedHeaders::Any],
        RemoveHeaders::Seen => (0..TABLE.len()).map(|place| seen(&[place, 9])).chain([seen(&[])]).collect(),
    };
    let allows = allows(config);
    let proven = proven();
    let with = |limit_status, tier, stale| Proven { limit_status, tier, stale, ..proven.clone() };
    for removal in removals() {
        for spoofed in &spoofed {
            let request = request(removal.clone(), *spoofed);
            for (admission, result) in [
                (Admission::Key(with(None, Tier::Memory, false)), "allow"),
                (Admission::Key(with(Some(limit_status(0)), Tier::Memory, false)), "allow"),
                (Admission::Key(with(Some(limit_status(1 << 40)), Tier::Redis, false)), "allow"),
                (Admission::Key(with(None, Tier::Database, true)), "allow"),
                (Admission::Anonymous, "anonymous"),
                (Admission::Shadow(Reason::MissingCredential.into()), "missing_credential"),
                (Admission::Shadow(proven.clone().deny(Reason::Expired)), "expired"),
            ] {
                let (_, ok) = allowed(&allows.write(&admission, &request));
                check_headers(&ok, &admission, result, &request, config);
            }
        }
    }
}

#[test]
fn headers_of_an_allow_are_those_of_the_table() {
    for remove_headers in [RemoveHeaders::All, RemoveHeaders::Seen] {
        for forward_credential in [true, false] {
            let mut config = ExtAuthzConfig { forward_credential, ..config() };
            config.request.remove_headers = remove_headers;
            check_admissions(&config);
        }
    }
}

#[test]
fn headers_of_an_allow_are_those_that_the_operator_wants() {
    let remaining = "x-ratelimit-remaining-day";
    for upstream_headers in [
        filter(remaining, &["x-ratelimit-remaining-day"]),
        filter("x-auth-user-id", &["x-auth-user-id"]),
        filter("none", &[]),
    ] {
        for remove_headers in [RemoveHeaders::All, RemoveHeaders::Seen] {
            let mut config = ExtAuthzConfig { upstream_headers: upstream_headers.clone(), ..config() };
            config.request.remove_headers = remove_headers;
            check_admissions(&config);
        }
    }
}

#[test]
fn client_reads_the_same_limits_as_the_upstream() {
    for rate_limit_fields in [RateLimitFields::None, RateLimitFields::Draft10] {
        let config = ExtAuthzConfig { rate_limit_fields, ..config() };
        let proven = Proven { limit_status: Some(limit_status(3)), ..proven() };
        let request = request(CredentialRemoval::default(), SpoofedHeaders::Any);
        let (_, ok) = allowed(&allows(&config).write(&Admission::Key(proven.clone()), &request));
        let mut client = by_name(&ok.response_headers_to_add);
        let denial = proven.limit(limit_status(3), 5);
        let (_, _, denied) = denied(&DenyResponses::new(&config).write(&denial, &request));
        let of_denial = by_name(&denied.headers);
        assert!(client.iter().all(|(name, value)| of_denial.get(name) == Some(value)));
        assert_eq!(of_denial["retry-after"], "7");
        let has_draft = rate_limit_fields == RateLimitFields::Draft10;
        assert_eq!(client.remove("ratelimit").is_some(), has_draft);
        assert_eq!(client.remove("ratelimit-policy").is_some(), has_draft);
        let mut upstream = by_name(&ok.headers);
        upstream.retain(|name, _| name.starts_with("x-ratelimit-"));
        assert_eq!(client, upstream);
        assert_eq!(client["x-ratelimit-reset-minute"], "7", "never too early");
    }
}

/// The record of the tests, rotated at 1,000,000 seconds to key 8, and ending a minute later.
fn rotated() -> KeyRecord {
    let at = |seconds| time::OffsetDateTime::from_unix_timestamp(seconds).expect("a time");
    let successor = Some(Rotation { key: KeyId(8), rotated_at: Some(at(1_000_000)) });
    let chain = Some(Box::new(Chain { successor, ..Chain::default() }));
    KeyRecord { limit_id: KeyId(3), chain, expiry: Expiry::At(at(1_000_060)), ..fixtures::record() }
}

#[test]
fn callers_of_a_rotated_key_are_told_of_its_end_and_others_are_not() {
    let link: RotationLink = "https://example.com/rotation".parse().expect("a URL");
    let config = ExtAuthzConfig { rotation_link: Some(link), ..config() };
    let request = request(CredentialRemoval::default(), SpoofedHeaders::Any);
    let client = |config: &ExtAuthzConfig, record: KeyRecord| {
        let proven = Proven { record: Arc::new(record.into()), ..proven() };
        let (response, ok) = allowed(&allows(config).write(&Admission::Key(proven), &request));
        (response, ok.response_headers_to_add)
    };
    let (_, headers) = client(&config, rotated());
    let expected = [
        ("deprecation", "@1000000"),
        ("sunset", "Mon, 12 Jan 1970 13:47:40 GMT"),
        ("link", "<https://example.com/rotation>; rel=\"deprecation sunset\""),
    ];
    let (link, others) = headers.split_last().expect("headers");
    assert_eq!(by_name(others), expected[..2].iter().copied().collect());
    let value = link.header.as_ref().map(|header| (&*header.key, &*header.value));
    assert_eq!(value, Some(expected[2]));
    assert_eq!(link.append_action, 0, "the upstream's own links stay");
    let (_, headers) = client(&ExtAuthzConfig { rotation_link: None, ..config.clone() }, rotated());
    assert_eq!(headers.len(), 2);
    let (_, headers) = client(&config, KeyRecord { expiry: Expiry::Never, ..rotated() });
    assert_eq!(headers.len(), 2, "no end that would be none");
    assert!(client(&config, fixtures::record()).1.is_empty());
    let expiring = KeyRecord { chain: None, ..rotated() };
    assert!(client(&config, expiring).1.is_empty(), "an expiry alone is no rotation");
}

/// The metadata of the record of the tests.
fn of_record() -> serde_json::Value {
    json!({
        "key_id": "7",
        "limit_id": "7",
        "user_id": "42",
        "user": {"id": 42.0, "superuser": false, "name": "ada", "email": "ada@example.com", "role": "engineer"},
        "key": {
            "id": 7.0, "prefix": "ks_sampl", "scopes": ["chat", "embed"], "tags": ["team:a,b"],
            "name": "build server",
        },
        "rate_limit": {"minute": 60.0, "day": 10_000.0},
        "limit_minute": {"requests_per_unit": 60.0, "unit": "MINUTE"},
        "limit_day": {"requests_per_unit": 10_000.0, "unit": "DAY"},
    })
}

fn merged(mut one: serde_json::Value, other: serde_json::Value) -> serde_json::Value {
    let (Some(fields), serde_json::Value::Object(more)) = (one.as_object_mut(), other) else {
        panic!("objects")
    };
    fields.extend(more);
    one
}

#[test]
fn metadata_says_how_it_was_decided_and_on_which_key() {
    let config = config();
    let (allows, denials) = (allows(&config), DenyResponses::new(&config));
    let request = request(CredentialRemoval::default(), SpoofedHeaders::Any);
    let written = |admission: Admission| allowed(&allows.write(&admission, &request)).0;
    let proven = proven();
    let usual = json!({"decision": "allow", "result": "allow", "tier": "memory"});
    assert_eq!(written(Admission::Key(proven.clone())), merged(usual.clone(), of_record()));
    let counted =
        Proven { limit_status: Some(limit_status(3)), tier: Tier::Redis, stale: true, ..proven.clone() };
    let state = json!({
        "tier": "redis", "stale": true, "rate_limit_counted": "local",
        "rate_limit_remaining": {"minute": 3.0, "day": 3.0}, "rate_limit_reset": {"minute": 7.0, "day": 7.0},
    });
    assert_eq!(written(Admission::Key(counted)), merged(merged(usual, of_record()), state));
    assert_eq!(written(Admission::Anonymous), json!({"decision": "allow", "result": "anonymous"}));
    let shadow = json!({"decision": "allow", "result": "expired", "reason": "expired", "tier": "memory"});
    let denial = || proven.clone().deny(Reason::Expired);
    assert_eq!(written(Admission::Shadow(denial())), merged(shadow.clone(), of_record()));

    let enforced = merged(merged(shadow, of_record()), json!({"decision": "deny"}));
    assert_eq!(denied(&denials.write(&denial(), &request)).1, Some(enforced));
}

#[test]
fn metadata_says_that_a_token_is_foreign_also_where_it_is_stripped_or_denied() {
    let config = config();
    let removal =
        CredentialRemoval { foreign_headers: vec!["authorization"], ..CredentialRemoval::default() };
    let request = request(removal, SpoofedHeaders::Any);
    for admission in [Admission::Key(proven()), Admission::Anonymous] {
        let (metadata, _) = allowed(&allows(&config).write(&admission, &request));
        assert_eq!(metadata["foreign_credential"], true);
    }
    let denial = Denial::from(Reason::MissingCredential);
    let (_, metadata, _) = denied(&DenyResponses::new(&config).write(&denial, &request));
    let code = "missing_credential";
    let expected = json!({"decision": "deny", "result": code, "reason": code, "foreign_credential": true});
    assert_eq!(metadata, Some(expected));
}

#[test]
fn metadata_names_what_is_wrong_with_a_route() {
    let request = plain(attributes("r-1", false, "keystile.unknown"));
    let error = request.attributes.route.as_ref().expect_err("unknown").to_string();
    let denial = Denial::from(Reason::RouteMisconfigured);
    let code = "route_misconfigured";
    let expected = json!({"decision": "deny", "result": code, "reason": code, "route_error": error});
    let (_, metadata, _) = denied(&DenyResponses::new(&config()).write(&denial, &request));
    assert_eq!(metadata, Some(expected));
}

#[test]
fn metadata_is_what_the_operator_wants() {
    for (name, names, expected) in [
        ("none", &[][..], json!({})),
        ("key_id", &["key_id"], json!({"key_id": "7"})),
        ("tier", &["tier"], json!({"tier": "memory"})),
        ("decision", &["decision"], json!({"decision": "allow"})),
    ] {
        let config = ExtAuthzConfig { metadata: filter(name, names), ..config() };
        let request = request(CredentialRemoval::default(), SpoofedHeaders::Any);
        let written = allows(&config).write(&Admission::Key(proven()), &request);
        assert_eq!(allowed(&written).0, expected);
    }
}

#[test]
fn each_denial_has_its_status_headers_and_body() {
    for format in [DenyFormat::Problem, DenyFormat::Openai, DenyFormat::Text] {
        let denials = DenyResponses::new(&ExtAuthzConfig { deny_format: format, ..config() });
        for reason in Reason::ALL {
            for id in ["r-1", "", r#"a"b\c"#] {
                let denial = Denial::from(reason);
                let request = |is_grpc| plain(attributes(id, is_grpc, "other"));
                let (grpc, _, denied_http) = denied(&denials.write(&denial, &request(false)));
                assert_ne!(grpc, 0);
                assert_eq!(denied_http.status.expect("a status").code, i32::from(reason.status()));
                assert_eq!(denied_http.body, body::write(format, reason, id));
                let headers = by_name(&denied_http.headers);
                assert_eq!(headers["content-type"], body::content_type(format));
                assert_eq!(headers.contains_key("www-authenticate"), reason.status() == 401);
                assert_eq!(headers.contains_key("retry-after"), denial.retry_after.is_some());

                let (_, _, of_grpc) = denied(&denials.write(&denial, &request(true)));
                assert_eq!(of_grpc.body, body::write(DenyFormat::Text, reason, id).trim_end());
                assert_eq!(by_name(&of_grpc.headers)["grpc-status"], grpc.to_string());
            }
            let (grpc, metadata, unread) = denied(&denials.write_unread(reason));
            assert_ne!(grpc, 0);
            assert_eq!(metadata, None);
            assert_eq!(unread.body, body::write(format, reason, ""));
        }
    }
}
