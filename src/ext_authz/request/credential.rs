//! Looks for the credential in a request, and records where it was.

use percent_encoding::percent_decode_str;

use super::header_values::values;
use crate::{
    config::CredentialSource, credential::Credential, decision::Reason,
    ext_authz::proto::check_request::HttpRequestView,
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
}

/// A search in progress.
pub(super) struct CredentialSearch<'h, 'a> {
    http: &'h HttpRequestView<'h>,
    credential: Result<Credential, Reason>,
    removal: CredentialRemoval<'a>,
}

impl<'a> CredentialSearch<'_, 'a> {
    /// Looks in every source. Their order does not matter.
    pub(super) fn run<'s>(
        http: &HttpRequestView<'_>,
        sources: &'s [CredentialSource],
    ) -> (Result<Credential, Reason>, CredentialRemoval<'s>) {
        let credential = Err(Reason::MissingCredential);
        let mut search = CredentialSearch { http, credential, removal: CredentialRemoval::default() };
        for source in sources {
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

    /// Other schemes are not API keys and stay in the request.
    fn look_in_authorization(&mut self) {
        for value in values(self.http, "authorization") {
            if let Some(token) = bearer_token(value) {
                self.present(token);
                self.remove_header("authorization");
            }
        }
    }

    fn look_in_header(&mut self, name: &'a str) {
        for value in values(self.http, name) {
            self.present(trim_blanks(value));
            self.remove_header(name);
        }
    }

    /// Names are compared without decoding: Envoy removes parameters by their undecoded name, and a key that cannot be
    /// removed must not be accepted.
    fn look_in_query(&mut self, name: &'a str) {
        let (_, query) = self.http.path.split_once('?').unwrap_or_default();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            if key == name {
                self.present(&percent_decode_str(value).collect::<Vec<u8>>());
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
            match pair.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")) {
                Some(value) => {
                    found = true;
                    self.present(unquoted(value));
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
    fn present(&mut self, bytes: &[u8]) {
        let presented = Credential::parse(bytes).map_err(|_| Reason::MalformedCredential);
        self.credential = match (&self.credential, presented) {
            (Err(Reason::MissingCredential), presented) => presented,
            (Ok(first), Ok(second)) if *first == second => return,
            (Ok(_), Ok(_)) => Err(Reason::AmbiguousCredential),
            (Ok(_), Err(reason)) => Err(reason),
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

/// The token of a `Bearer` value, in any case; empty when there is none after the scheme.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let value = trim_blanks(value);
    let end = value.iter().position(is_blank).unwrap_or(value.len());
    let (scheme, token) = value.split_at(end);
    scheme.eq_ignore_ascii_case(b"bearer").then(|| trim_blanks(token))
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

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}
