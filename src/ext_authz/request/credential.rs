//! Looks for the credential in a request, and records where it was.

use percent_encoding::percent_decode_str;

use super::header_values::values;
use crate::{
    config::CredentialSource,
    credential::{
        Credential, MalformedCredential,
        brands::{KeyBrands, TokenKind},
    },
    decision::Reason,
    ext_authz::{config::RequestConfig, proto::check_request::HttpRequestView},
};

/// What is removed from the request so that the upstream does not see the credential.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CredentialRemoval<'a> {
    /// Header names.
    pub(crate) headers: Vec<&'a str>,
    /// Query parameter names.
    pub(crate) query_parameters: Vec<&'a str>,
    /// The new value of the `cookie` header.
    pub(crate) cookie: Option<String>,
    /// Names of headers with a foreign token, which is removed only from requests with a proven key: it may be somebody
    /// else's identity.
    pub(crate) foreign_headers: Vec<&'a str>,
}

/// A search in progress.
pub(super) struct CredentialSearch<'h, 'a> {
    http: &'h HttpRequestView<'h>,
    brands: &'a KeyBrands,
    credential: Result<Credential, Reason>,
    removal: CredentialRemoval<'a>,
}

impl<'a> CredentialSearch<'_, 'a> {
    /// Looks in every source. Their order does not matter.
    pub(super) fn run<'s>(
        http: &HttpRequestView<'_>,
        config: &'s RequestConfig,
    ) -> (Result<Credential, Reason>, CredentialRemoval<'s>) {
        let (brands, removal) = (&config.key_brands, CredentialRemoval::default());
        let mut search =
            CredentialSearch { http, brands, credential: Err(Reason::MissingCredential), removal };
        for source in &config.credential_sources {
            search.look_in(source);
        }
        (search.credential, search.removal)
    }

    fn look_in(&mut self, source: &'a CredentialSource) {
        match source {
            CredentialSource::Bearer => self.look_in_authorization(),
            CredentialSource::Header(name) => self.look_in_header(name),
            CredentialSource::Query(name) => self.look_in_query(name),
            CredentialSource::Cookie(name) => self.look_in_cookies(name),
        }
    }

    /// Other schemes are not API keys and stay in the request. Where brands are set, they are foreign.
    fn look_in_authorization(&mut self) {
        let brands = self.brands;
        let tokens = values(self.http, "authorization").map(trim_blanks).filter_map(|value| {
            let other_scheme = || (!brands.is_empty()).then(|| (value, kind_of_other_scheme(value, brands)));
            bearer_token(value).map(|token| (token, brands.kind(token))).or_else(other_scheme)
        });
        self.take("authorization", tokens);
    }

    fn look_in_header(&mut self, name: &'a str) {
        let brands = self.brands;
        let tokens =
            values(self.http, name).map(trim_blanks).map(|value| bearer_token(value).unwrap_or(value));
        self.take(name, tokens.map(|token| (token, brands.kind(token))));
    }

    /// Takes the tokens of one header. An empty one is none. If one of several is foreign, all are malformed: servers
    /// differ in which of them they read.
    fn take<'t>(
        &mut self,
        name: &'a str,
        tokens: impl Iterator<Item = (&'t [u8], Result<TokenKind, MalformedCredential>)>,
    ) {
        let (mut has_any, mut has_foreign) = (false, false);
        for (token, kind) in tokens.filter(|(token, _)| !token.is_empty()) {
            let is_foreign = kind == Ok(TokenKind::Foreign);
            if has_foreign || (has_any && is_foreign) {
                self.present(Err(MalformedCredential));
                self.remove_header(name);
            } else if is_foreign {
                self.removal.foreign_headers.push(name);
            } else {
                self.present(kind.and_then(|_| Credential::parse(token)));
                self.remove_header(name);
            }
            (has_any, has_foreign) = (true, has_foreign || is_foreign);
        }
    }

    /// Envoy removes parameters by their undecoded name, and a key that cannot be removed must not be accepted. So a name
    /// that needs decoding, as upstreams do, is malformed.
    fn look_in_query(&mut self, name: &'a str) {
        let (_, query) = self.http.path.split_once('?').unwrap_or_default();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            if value.is_empty() {
                continue;
            }
            if key != name {
                if key.contains('%') && percent_decode_str(key).eq(name.bytes()) {
                    self.present(Err(MalformedCredential));
                }
            } else {
                self.present(Credential::parse(&percent_decode_str(value).collect::<Vec<u8>>()));
                if !self.removal.query_parameters.contains(&name) {
                    self.removal.query_parameters.push(name);
                }
            }
        }
    }

    fn look_in_cookies(&mut self, name: &str) {
        let mut others = Vec::new();
        let mut found = false;
        // An earlier cookie source may have removed some.
        let header = self.removal.cookie.clone().map_or_else(|| cookie_header(self.http), String::into_bytes);
        for pair in header.split(|byte| *byte == b';').map(trim_blanks).filter(|pair| !pair.is_empty()) {
            match cookie_value(pair, name.as_bytes()).filter(|value| !value.is_empty()) {
                Some(value) => {
                    found = true;
                    self.present(Credential::parse(value));
                }
                // Envoy takes headers back as UTF-8 only; no browser sends other cookies.
                None => others.extend(std::str::from_utf8(pair)),
            }
        }
        if found {
            self.removal.cookie = Some(others.join("; "));
        }
    }

    /// The same credential twice is one; a second, different one makes the request ambiguous.
    fn present(&mut self, presented: Result<Credential, MalformedCredential>) {
        self.credential = match (&self.credential, presented) {
            (Err(Reason::MissingCredential), presented) => presented.map_err(|_| Reason::MalformedCredential),
            (Ok(first), Ok(second)) if *first == second => return,
            (Ok(_), Ok(_)) => Err(Reason::AmbiguousCredential),
            (Ok(_), Err(MalformedCredential)) => Err(Reason::MalformedCredential),
            (Err(_), _) => return,
        };
    }

    fn remove_header(&mut self, name: &'a str) {
        if !self.removal.headers.contains(&name) {
            self.removal.headers.push(name);
        }
    }
}

fn cookie_header(http: &HttpRequestView<'_>) -> Vec<u8> {
    values(http, "cookie").collect::<Vec<_>>().join(&b"; "[..])
}

/// The token of a trimmed `Bearer` value, in any case; empty if there is none after the scheme.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer";
    let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
    let is_bearer = scheme.eq_ignore_ascii_case(SCHEME) && rest.first().is_none_or(is_blank);
    is_bearer.then(|| trim_blanks(rest))
}

/// Whose a value is that has another scheme, or none. A server that ignores the scheme must find no key in it.
fn kind_of_other_scheme(value: &[u8], brands: &KeyBrands) -> Result<TokenKind, MalformedCredential> {
    let (scheme, token) = split_at_blank(value);
    let is_foreign = brands.is_foreign(scheme) && brands.is_foreign(token);
    if is_foreign { Ok(TokenKind::Foreign) } else { Err(MalformedCredential) }
}

/// The first word of a trimmed value, and the rest.
fn split_at_blank(value: &[u8]) -> (&[u8], &[u8]) {
    let (word, rest) = value.split_at(value.iter().position(is_blank).unwrap_or(value.len()));
    (word, trim_blanks(rest))
}

/// Removes the blanks that HTTP allows around a value (RFC 9110, section 5.5). Other control characters stay, and make a
/// credential malformed.
fn trim_blanks(value: &[u8]) -> &[u8] {
    let Some(start) = value.iter().position(|byte| !is_blank(byte)) else { return &[] };
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    &value[start..end]
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// The value of a pair with this name. Upstreams ignore blanks on both sides of `=`.
fn cookie_value<'v>(pair: &'v [u8], name: &[u8]) -> Option<&'v [u8]> {
    let rest = trim_blanks(pair.strip_prefix(name)?);
    rest.strip_prefix(b"=").map(|value| unquoted(trim_blanks(value)))
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}
