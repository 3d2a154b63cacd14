//! Facts about tokens of other issuers, where brands are set.

use super::*;

const JWT: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI3In0.c2lnbmF0dXJlLW9mLTMyLWJ5dGVz";
const SOURCES: &str = "bearer,header:x-api-key,header:x-goog-api-key,query:key,cookie:key";

fn with_brands(http: HttpRequest) -> ParsedRequest<'static> {
    let credential_sources = SOURCES.split(',').map(|source| source.parse().expect("a source")).collect();
    let key_brands = KeyBrands::new(["ks_", "en_"].map(|brand| brand.parse().expect("a brand")).into());
    let config = RequestConfig { credential_sources, key_brands, ..config() };
    read(&check_request(http), &HeaderMap::new(), config)
}

/// The credential, and the names of headers with a foreign token.
fn found(headers: &[(&str, &str)]) -> (Result<String, Reason>, Vec<&'static str>) {
    let parsed = with_brands(raw(headers));
    let credential = parsed.attributes.credential.map(|credential| credential.expose().to_owned());
    (credential, parsed.removal.foreign_headers)
}

#[test]
fn foreign_token_counts_as_no_credential_and_stays() {
    for (name, value) in [
        ("authorization", format!("Bearer {JWT}")),
        ("authorization", format!("bearer  {JWT} ")),
        ("authorization", "Bearer 1|opaque".to_owned()),
        ("authorization", JWT.to_owned()),
        ("authorization", "Basic dXNlcjpwYXNz".to_owned()),
        ("authorization", "Basic".to_owned()),
        ("x-api-key", JWT.to_owned()),
        ("x-api-key", format!("Bearer {JWT}")),
        ("x-goog-api-key", "AIzaSyA-0".to_owned()),
    ] {
        for http in [raw(&[(name, &value)]), joined(&[(name, &value)])] {
            let parsed = with_brands(http);
            assert_eq!(parsed.attributes.credential.err(), Some(Reason::MissingCredential), "{value}");
            assert_eq!(parsed.removal.foreign_headers, [name], "{value}");
            assert!(parsed.removal.headers.is_empty(), "{value}");
        }
    }
}

#[test]
fn key_is_found_with_a_foreign_token_in_another_header() {
    let bearer = format!("Bearer {JWT}");
    let jwt = ("authorization", bearer.as_str());
    assert_eq!(found(&[jwt, ("x-api-key", KEY)]), (Ok(KEY.into()), vec!["authorization"]));
    assert_eq!(
        found(&[("x-api-key", JWT), ("authorization", "Bearer ks_abcdefghijkl")]).0.as_deref(),
        Ok(KEY)
    );
    let foreign = vec!["authorization", "x-goog-api-key"];
    assert_eq!(found(&[jwt, ("x-goog-api-key", "theirs"), ("x-api-key", KEY)]), (Ok(KEY.into()), foreign));
    assert_eq!(found(&[jwt, ("x-api-key", "")]), (Err(Reason::MissingCredential), vec!["authorization"]));
    assert_eq!(found(&[jwt, ("x-api-key", "ks_")]).0, Err(Reason::MalformedCredential));
    let two_keys = [jwt, ("x-api-key", KEY), ("x-goog-api-key", OTHER)];
    assert_eq!(found(&two_keys).0, Err(Reason::AmbiguousCredential));
}

#[test]
fn value_with_a_brand_in_another_place_or_spelling_is_malformed() {
    for value in [
        "KS_abcdefghijkl",
        "Ks_abcdefghijkl",
        "%6bs_abcdefghijkl",
        "ks%5fabcdefghijkl",
        "%256bs_abcdefghijkl",
        "\"ks_abcdefghijkl\"",
        "Bearer=ks_abcdefghijkl",
        "Bearerks_abcdefghijkl",
        "Bearer Bearerks_abcdefghijkl",
        "Bearer KS_abcdefghijkl",
        "Basic ks_abcdefghijkl",
        "ks_abcdefghijkl Basic",
        "eyJhbGciOiJub25lIn0.e30.ks_abcdefghijkl",
        "x.en_abcdefghijkl",
        "\u{a0}ks_abcdefghijkl",
        "Bearer \u{a0}ks_abcdefghijkl",
        "\u{ff4b}s_abcdefghijkl",
    ] {
        for name in ["authorization", "x-api-key"] {
            let (credential, foreign) = found(&[(name, value)]);
            assert_eq!(credential, Err(Reason::MalformedCredential), "{name}: {value}");
            assert!(foreign.is_empty(), "{name}: {value}");
        }
    }
    // With a scheme, this is a key. Without one, servers differ.
    assert_eq!(found(&[("x-api-key", KEY)]).0.as_deref(), Ok(KEY));
    assert_eq!(found(&[("authorization", KEY)]).0, Err(Reason::MalformedCredential));
}

#[test]
fn two_tokens_in_one_header_are_malformed() {
    let (two, joined_two) = (format!("Bearer {JWT} {JWT}"), format!("Bearer {JWT},Bearer {JWT}"));
    let (mixed, last) = (format!("Bearer {JWT}, Bearer {KEY}"), format!("Basic eA==, Bearer {JWT}"));
    for headers in [
        [("authorization", two.as_str())].as_slice(),
        &[("authorization", &joined_two)],
        &[("authorization", &mixed)],
        &[("authorization", &last)],
        &[("authorization", "Digest username=\"ada\", realm=\"x\"")],
        &[("x-api-key", JWT), ("x-api-key", KEY)],
        &[("x-api-key", KEY), ("x-api-key", JWT)],
        &[("x-api-key", JWT), ("x-api-key", JWT)],
        &[("x-api-key", KEY), ("x-api-key", KEY), ("x-api-key", "theirs")],
        &[("x-api-key", "theirs"), ("X-API-Key", KEY)],
    ] {
        assert_eq!(found(headers).0, Err(Reason::MalformedCredential), "{headers:?}");
    }
    assert_eq!(found(&[("x-api-key", KEY), ("x-api-key", "")]).0.as_deref(), Ok(KEY));
    assert_eq!(found(&[("x-api-key", ""), ("x-api-key", JWT)]).1, ["x-api-key"]);
}

#[test]
fn query_and_cookie_values_are_never_foreign() {
    let http = |path: &str, cookie: &str| HttpRequest { path: path.into(), ..raw(&[("cookie", cookie)]) };
    for http in [http("/?key=theirs-abcdef", ""), http("/", "key=theirs-abcdef")] {
        let parsed = with_brands(http);
        let credential = parsed.attributes.credential.expect("taken for a key");
        assert_eq!(credential.expose(), "theirs-abcdef");
        assert!(parsed.removal.foreign_headers.is_empty());
    }
}

#[test]
fn header_that_is_no_source_is_not_foreign() {
    assert_eq!(found(&[("x-auth-token", JWT)]), (Err(Reason::MissingCredential), vec![]));
}

proptest! {
    /// However a key is wrapped: it is proven, or the request is denied, or no lenient server finds it.
    #[test]
    fn no_key_passes_as_a_foreign_token(
        name in "(authorization|x-api-key)",
        before in "(|[ -~]{0,8}|Bearer |bearer|Basic |eyJ[a-z.]{0,6}|%20|,|\")",
        key in "(ks_abcdefghijkl|KS_abcdefghijkl|%6bs_abcdefghijkl|ks%5Fabcdefghijkl|%256bs_abcdefghijkl)",
        after in "(|[ -~]{0,8}|,|;x|\"|%00)",
    ) {
        let value = format!("{before}{key}{after}");
        let (credential, foreign) = found(&[(&name, &value)]);
        prop_assert!(foreign.is_empty(), "{}: {} is foreign", name, value);
        prop_assert!(credential != Err(Reason::MissingCredential), "{}: {} is nothing", name, value);
    }
}
