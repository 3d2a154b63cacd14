//! Facts about where credentials are found, in both forms in which Envoy sends headers.

use envoy_types::{
    ext_authz::v3::pb::CheckRequest,
    pb::envoy::{
        config::core::v3::{HeaderMap as RawHeaders, HeaderValue, address::Address as Kind},
        service::auth::v3::{
            AttributeContext,
            attribute_context::{HttpRequest, Request},
        },
    },
};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{
    config::RemoveHeaders,
    credential::{Credential, brands::KeyBrands},
    decision::Reason,
    ext_authz::response::headers::TABLE,
};

const KEY: &str = "ks_abcdefghijkl";
const OTHER: &str = "ks_zzzzzzzzzzzz";

fn check_request(http: HttpRequest) -> CheckRequest {
    let request = Request { http: Some(http), ..Request::default() };
    CheckRequest {
        attributes: Some(AttributeContext { request: Some(request), ..AttributeContext::default() }),
    }
}

fn joined(headers: &[(&str, &str)]) -> HttpRequest {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    HttpRequest { headers: headers.collect(), ..HttpRequest::default() }
}

fn raw(headers: &[(&str, &str)]) -> HttpRequest {
    let header = |(name, value): &(&str, &str)| HeaderValue {
        key: (*name).to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..HeaderValue::default()
    };
    let header_map = RawHeaders { headers: headers.iter().map(header).collect() };
    HttpRequest { header_map: Some(header_map), ..HttpRequest::default() }
}

/// Looks for no credential.
fn config() -> RequestConfig {
    RequestConfig {
        credential_sources: vec![],
        key_brands: KeyBrands::default(),
        client_address: ClientAddress::Auto,
        remove_headers: RemoveHeaders::All,
    }
}

fn parsed(http: HttpRequest, sources: &str) -> ParsedRequest<'static> {
    let credential_sources = sources.split(',').map(|source| source.parse().expect("a source")).collect();
    read(&check_request(http), &HeaderMap::new(), RequestConfig { credential_sources, ..config() })
}

/// Reads a message by way of its bytes, which are left to the end of the tests: what is read borrows from them.
fn read(request: &CheckRequest, metadata: &HeaderMap, config: RequestConfig) -> ParsedRequest<'static> {
    let (message, config) = (request.encode_to_vec().leak(), Box::leak(Box::new(config)));
    ParsedRequest::read(message, metadata, config).expect("a message")
}

fn found(http: HttpRequest, sources: &str) -> Result<String, Reason> {
    parsed(http, sources).attributes.credential.map(|credential| credential.expose().to_owned())
}

/// In both forms, from the default sources.
fn found_in(headers: &[(&str, &str)]) -> Result<String, Reason> {
    let of_raw = found(raw(headers), "bearer,header:x-api-key");
    let mut names: Vec<_> = headers.iter().map(|(name, _)| name).collect();
    names.dedup();
    if names.len() == headers.len() {
        assert_eq!(found(joined(headers), "bearer,header:x-api-key"), of_raw, "both forms agree");
    }
    of_raw
}

#[test]
fn default_sources_are_bearer_and_x_api_key() {
    for headers in [
        [("authorization", "Bearer ks_abcdefghijkl")].as_slice(),
        &[("authorization", "bEaReR \t ks_abcdefghijkl ")],
        &[("x-api-key", KEY)],
        &[("x-api-key", KEY), ("authorization", "Bearer ks_abcdefghijkl")],
        &[("x-api-key", KEY), ("x-api-key", KEY)],
        &[("x-api-key", KEY), ("authorization", "Basic dXNlcjpwYXNz")],
        &[("x-api-key", "Bearer ks_abcdefghijkl")],
        &[("x-api-key", " beareR\tks_abcdefghijkl ")],
        &[("x-api-key", "Bearer ks_abcdefghijkl"), ("authorization", "Bearer ks_abcdefghijkl")],
        // SDKs with an empty variable send the one, or the other.
        &[("x-api-key", ""), ("authorization", "Bearer ks_abcdefghijkl")],
        &[("x-api-key", KEY), ("authorization", "Bearer ")],
        &[("x-api-key", KEY), ("authorization", "")],
        &[("x-api-key", ""), ("x-api-key", KEY)],
    ] {
        assert_eq!(found_in(headers).as_deref(), Ok(KEY), "{headers:?}");
    }
}

#[test]
fn what_is_not_one_good_credential_is_refused() {
    use Reason::{AmbiguousCredential, MalformedCredential, MissingCredential};
    for (headers, reason) in [
        ([].as_slice(), MissingCredential),
        (&[("authorization", "Basic dXNlcjpwYXNz")], MissingCredential),
        (&[("authorization", "Bearerks_abcdefghijkl")], MissingCredential),
        (&[("authorization", "")], MissingCredential),
        (&[("authorization", "Bearer")], MissingCredential),
        (&[("authorization", "Bearer ")], MissingCredential),
        (&[("authorization", "Bearer ks_abc defghij")], MalformedCredential),
        (&[("authorization", "Bearer ks_abcdefghijkl,Bearer ks_abcdefghijkl")], MalformedCredential),
        (&[("authorization", "Bearer Bearer ks_abcdefghijkl")], MalformedCredential),
        (&[("x-api-key", "")], MissingCredential),
        (&[("x-api-key", " \t ")], MissingCredential),
        (&[("x-api-key", "Bearer")], MissingCredential),
        (&[("x-api-key", ""), ("authorization", "Bearer ")], MissingCredential),
        (&[("x-api-key", "Basic ks_abcdefghijkl")], MalformedCredential),
        (&[("x-api-key", "Bearer Bearer ks_abcdefghijkl")], MalformedCredential),
        (&[("x-api-key", "ks_abcd")], MalformedCredential),
        (&[("x-api-key", "ks_abcdefghijkl,ks_abcdefghijkl")], MalformedCredential),
        (&[("x-api-key", "ks_abcdefg\u{e9}")], MalformedCredential),
        (&[("x-api-key", "ks_abcdefgh\n")], MalformedCredential),
        (&[("x-api-key", KEY), ("authorization", "Bearer ks_zzzzzzzzzzzz")], AmbiguousCredential),
        (&[("x-api-key", KEY), ("x-api-key", OTHER)], AmbiguousCredential),
        (&[("x-api-key", KEY), ("authorization", "Bearer short")], MalformedCredential),
    ] {
        assert_eq!(found_in(headers), Err(reason), "{headers:?}");
    }
}

#[test]
fn third_equal_credential_does_not_heal_an_ambiguous_request() {
    let headers = [("x-api-key", KEY), ("x-api-key", OTHER), ("x-api-key", KEY)];
    assert_eq!(found_in(&headers), Err(Reason::AmbiguousCredential));
}

#[test]
fn spoofed_headers_are_seen_in_both_forms() {
    let headers = [
        ("x-auth-scopes", "admin"),
        ("x-auth-token", "theirs"),
        ("X-RateLimit-Limit-Day", "9"),
        ("accept", "*/*"),
    ];
    let names = ["x-auth-scopes", "x-ratelimit-limit-day"];
    for http in [joined(&headers), raw(&headers)] {
        let spoofed = |remove_headers| {
            let config = RequestConfig { remove_headers, ..config() };
            read(&check_request(http.clone()), &HeaderMap::new(), config).spoofed
        };
        let SpoofedHeaders::Seen(seen) = spoofed(RemoveHeaders::Seen) else { panic!("looked for") };
        let seen: Vec<_> = seen.places().map(|place| TABLE[place].name).collect();
        assert_eq!(seen, names);
        assert_eq!(spoofed(RemoveHeaders::All), SpoofedHeaders::Any);
    }
}

#[test]
fn credential_of_ten_kilobytes_is_malformed() {
    let long = "k".repeat(10 * 1024);
    assert_eq!(found_in(&[("x-api-key", &long)]), Err(Reason::MalformedCredential));
}

#[test]
fn raw_bytes_that_are_no_text_are_malformed() {
    let mut http = raw(&[("x-api-key", "")]);
    http.header_map.as_mut().expect("raw").headers[0].raw_value = b"ks_abcdefgh\xff\xfe".to_vec();
    assert_eq!(found(http, "header:x-api-key"), Err(Reason::MalformedCredential));
}

#[test]
fn query_and_cookie_are_sources_only_when_asked_for() {
    let http =
        HttpRequest { path: format!("/v1?api_key={KEY}"), ..raw(&[("cookie", "key=ks_abcdefghijkl")]) };
    assert_eq!(found(http.clone(), "bearer"), Err(Reason::MissingCredential));
    assert_eq!(found(http.clone(), "query:api_key").as_deref(), Ok(KEY));
    assert_eq!(found(http, "cookie:key").as_deref(), Ok(KEY));
}

#[test]
fn query_values_are_decoded_and_names_are_not() {
    let at = |path: &str| found(HttpRequest { path: path.into(), ..HttpRequest::default() }, "query:key");
    assert_eq!(at("/?a=b&key=ks%5Fabcdefghijkl&c").as_deref(), Ok(KEY));
    assert_eq!(at("/?key=ks_abcdefghijkl&key=ks_abcdefghijkl").as_deref(), Ok(KEY));
    assert_eq!(at("/?key=ks_abcdefghijkl&key=ks_zzzzzzzzzzzz"), Err(Reason::AmbiguousCredential));
    // Envoy could not remove it, and an upstream could read it.
    assert_eq!(at("/?k%65y=ks_abcdefghijkl"), Err(Reason::MalformedCredential));
    assert_eq!(at("/?key=ks_abcdefghijkl&%6bey=ks_abcdefghijkl"), Err(Reason::MalformedCredential));
    assert_eq!(at("/?k%65ys=ks_abcdefghijkl&k%65y="), Err(Reason::MissingCredential));
    assert_eq!(at("/?key=%ff%fe_abcdefg"), Err(Reason::MalformedCredential));
    assert_eq!(at("/?key="), Err(Reason::MissingCredential));
    assert_eq!(at("/?key=&key=ks_abcdefghijkl").as_deref(), Ok(KEY));
    assert_eq!(at("/?key=Bearer%20ks_abcdefghijkl"), Err(Reason::MalformedCredential));
    assert_eq!(at(""), Err(Reason::MissingCredential));
}

#[test]
fn credential_is_removed_from_where_it_was() {
    let removal = |http, sources| parsed(http, sources).removal;
    let headers = [("x-api-key", KEY), ("authorization", "Bearer ks_abcdefghijkl")];
    let both = removal(raw(&headers), "bearer,header:x-api-key");
    assert_eq!(both.headers, ["authorization", "x-api-key"]);
    let basic =
        removal(raw(&[("x-api-key", KEY), ("authorization", "Basic eA==")]), "bearer,header:x-api-key");
    assert_eq!(basic.headers, ["x-api-key"]);
    let query = HttpRequest { path: format!("/?key={KEY}&key={KEY}"), ..HttpRequest::default() };
    assert_eq!(removal(query, "query:key").query_parameters, ["key"]);
    let cookies = raw(&[("cookie", "a=1; key=ks_abcdefghijkl;b=2"), ("cookie", "keys=3")]);
    assert_eq!(removal(cookies, "cookie:key").cookie.as_deref(), Some("a=1; b=2; keys=3"));
    let alone = raw(&[("cookie", "key=\"ks_abcdefghijkl\"")]);
    assert_eq!(removal(alone, "cookie:key").cookie.as_deref(), Some(""));
    let blanks = raw(&[("cookie", "a=1; key\t= ks_abcdefghijkl ;keys =2")]);
    assert_eq!(found(blanks.clone(), "cookie:key").as_deref(), Ok(KEY));
    assert_eq!(removal(blanks, "cookie:key").cookie.as_deref(), Some("a=1; keys =2"));
    let two = raw(&[("cookie", "a=ks_abcdefghijkl; b=ks_abcdefghijkl; c=3")]);
    assert_eq!(removal(two, "cookie:a,cookie:b").cookie.as_deref(), Some("c=3"));
}

#[test]
fn empty_value_is_no_credential_and_stays() {
    let path = "/?key=".to_owned();
    for cookie in ["a=1; key=", "a=1; key=\"\""] {
        let headers = [("x-api-key", ""), ("authorization", "Bearer"), ("cookie", cookie)];
        let http = HttpRequest { path: path.clone(), ..raw(&headers) };
        let parsed = parsed(http, "bearer,header:x-api-key,query:key,cookie:key");
        assert_eq!(parsed.attributes.credential.err(), Some(Reason::MissingCredential));
        assert_eq!(parsed.removal, CredentialRemoval::default());
    }
    let one_of_two = parsed(raw(&[("cookie", "key=; key=ks_abcdefghijkl")]), "cookie:key");
    assert_eq!(one_of_two.removal.cookie.as_deref(), Some("key="));
}

#[test]
fn path_is_kept_without_its_query() {
    let http = HttpRequest { path: "/v1/chat?key=secret".into(), ..HttpRequest::default() };
    assert_eq!(parsed(http, "bearer").attributes.path, "/v1/chat");
}

#[test]
fn request_id_is_envoys_and_safe_to_show() {
    let id = |http: HttpRequest| parsed(http, "bearer").attributes.printable_request_id();
    let stream = HttpRequest { id: "stream-1".into(), ..raw(&[("x-request-id", "abc\u{1b}[31m-\u{e9}1")]) };
    assert_eq!(id(stream), "abc[31m-1");
    assert_eq!(id(HttpRequest { id: "stream-1".into(), ..HttpRequest::default() }), "stream-1");
    assert_eq!(id(HttpRequest { id: "x".repeat(500), ..HttpRequest::default() }).len(), 128);
}

#[test]
fn client_is_whom_envoy_names_and_else_the_peer() {
    use envoy_types::pb::envoy::{
        config::core::v3::{Address, SocketAddress},
        service::auth::v3::attribute_context::Peer,
    };
    let client = |sent_address: Option<&'static str>, client_address| {
        let peer = SocketAddress { address: "192.0.2.7".into(), ..SocketAddress::default() };
        let peer = Address { address: Some(Kind::SocketAddress(peer)) };
        let source = Some(Peer { address: Some(peer), ..Peer::default() });
        // Never read: which hops to trust is Envoy's to decide.
        let request = Request { http: Some(joined(&[("x-forwarded-for", "1.1.1.1")])), ..Request::default() };
        let context = AttributeContext { source, request: Some(request), ..AttributeContext::default() };
        let mut metadata = HeaderMap::new();
        sent_address
            .map(|sent_address| metadata.insert("x-client-ip", sent_address.parse().expect("a value")));
        metadata.insert("x-forwarded-for", "2.2.2.2".parse().expect("a value"));
        let config = RequestConfig { client_address, ..config() };
        let attributes = read(&CheckRequest { attributes: Some(context) }, &metadata, config).attributes;
        let is_vouched_for = sent_address.is_some() && client_address == ClientAddress::Auto;
        assert_eq!(attributes.vouched_client, attributes.client.filter(|_| is_vouched_for));
        attributes.client
    };
    let address = |text: &str| Some(text.parse::<IpAddr>().expect("an address"));
    assert_eq!(client(Some("203.0.113.9"), ClientAddress::Auto), address("203.0.113.9"));
    assert_eq!(client(Some("203.0.113.9"), ClientAddress::Source), address("192.0.2.7"));
    assert_eq!(client(None, ClientAddress::Auto), address("192.0.2.7"));
    assert_eq!(client(Some("nonsense"), ClientAddress::Auto), None);
}

#[test]
fn body_is_whole_or_not_looked_at() {
    let sent = |headers: &[(&str, &str)], size| {
        let http = HttpRequest { raw_body: b"{}".to_vec(), size, ..raw(headers) };
        parsed(http, "bearer").attributes.body
    };
    let whole = Body::Whole(b"{}".to_vec().into());
    assert_eq!(sent(&[], 2), whole);
    assert_eq!(sent(&[], -1), whole);
    assert_eq!(sent(&[("x-envoy-auth-partial-body", "false")], 2), whole);
    for json in ["application/json; charset=UTF-8", "text/json", "application/vnd.api+json"] {
        assert_eq!(sent(&[("content-type", json)], 2), whole, "{json}");
    }
    for headers in [
        [("content-encoding", "identity")].as_slice(),
        &[("content-encoding", "Identity")],
        &[("transfer-encoding", "chunked")],
    ] {
        assert_eq!(sent(headers, 2), whole, "{headers:?}");
    }
    for headers in [
        [("x-envoy-auth-partial-body", "true")].as_slice(),
        // A client may have sent the first of the two.
        &[("x-envoy-auth-partial-body", "false"), ("x-envoy-auth-partial-body", "true")],
        &[("content-encoding", "gzip")],
        &[("content-encoding", "")],
        &[("content-encoding", "identity,gzip")],
        &[("content-encoding", "identity"), ("content-encoding", "identity")],
        &[("content-encoding", "identity;q=1")],
        &[("transfer-encoding", "gzip, chunked")],
        &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        &[("transfer-encoding", "identity")],
        &[("upgrade", "websocket")],
        &[("content-type", "application/json;charset=utf-16")],
        &[("content-type", "application/json"), ("content-type", "application/json")],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "application/x-www-form-urlencoded,x+json")],
        &[("content-type", "application/json,multipart/form-data; boundary=x+json")],
    ] {
        assert_eq!(sent(headers, 2), Body::Unreadable, "{headers:?}");
    }
    assert_eq!(sent(&[], 3), Body::Unreadable);
    let text = HttpRequest { body: "{}".into(), size: 2, ..HttpRequest::default() };
    assert_eq!(parsed(text, "bearer").attributes.body, whole);
    assert_eq!(parsed(HttpRequest::default(), "bearer").attributes.body, Body::Absent);
}

#[test]
fn grpc_callers_are_known_by_their_content_type() {
    for (kind, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;x=y", false),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        assert_eq!(parsed(raw(&[("content-type", kind)]), "bearer").attributes.is_grpc, expected, "{kind}");
    }
}

#[test]
fn route_settings_are_context_extensions() {
    let context = |name: &str, value: &str| {
        let extensions = [(name.to_owned(), value.to_owned()), ("api".to_owned(), "v1".to_owned())];
        let context =
            AttributeContext { context_extensions: extensions.into(), ..AttributeContext::default() };
        read(&CheckRequest { attributes: Some(context) }, &HeaderMap::new(), config()).attributes.route
    };
    assert_eq!(context("keystile.scopes", "a b").expect("readable").scopes, ["a", "b"]);
    assert!(context("keystile.scope", "a b").is_err());
}

proptest! {
    #[test]
    fn any_header_bytes_are_a_credential_only_by_the_rule(
        names in proptest::collection::vec("(authorization|x-api-key|cookie)", 0..4),
        values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 4),
        path in "(/[a-z]*)?(\\?(key|k)=[ -~]{0,80})?",
    ) {
        let mut http = raw(&names.iter().map(|name| (name.as_str(), "")).collect::<Vec<_>>());
        http.path = path;
        for (header, value) in http.header_map.as_mut().expect("raw").headers.iter_mut().zip(values) {
            header.raw_value = value;
        }
        let parsed = parsed(http, "bearer,header:x-api-key,query:key,cookie:key");
        if let Ok(credential) = parsed.attributes.credential {
            prop_assert!(Credential::parse(credential.expose().as_bytes()).is_ok());
            prop_assert_ne!(parsed.removal, CredentialRemoval::default(), "what was found is removed");
        }
    }

    #[test]
    fn well_formed_key_is_found_whatever_the_source(key in "[!-+.-:<-~]{8,72}") {
        prop_assert_eq!(found_in(&[("x-api-key", &key)]), Ok(key.clone()));
        prop_assert_eq!(found_in(&[("authorization", &format!("Bearer {key}"))]), Ok(key));
    }
}

mod foreign;
