//! Looks for the credential in a request, and notes where it was.

use percent_encoding::percent_decode_str;

use super::values;
use crate::{config::CredentialSource, credential::Credential, decision::Reason, ext_authz::wire::Http};

/// What to take out of the request so that the upstream does not see the credential.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::ext_authz) struct Strip<'a> {
    /// Header names.
    pub(in crate::ext_authz) headers: Vec<&'a str>,
    /// Query parameter names.
    pub(in crate::ext_authz) query_parameters: Vec<&'a str>,
    /// What the `cookie` header is to become.
    pub(in crate::ext_authz) cookie: Option<String>,
}

/// A search under way.
pub(super) struct Search<'h, 'a> {
    http: &'h Http<'h>,
    credential: Result<Credential, Reason>,
    strip: Strip<'a>,
}

impl<'a> Search<'_, 'a> {
    /// Looks in all sources, as a set.
    pub(super) fn all<'s>(
        http: &Http<'_>,
        sources: &'s [CredentialSource],
    ) -> (Result<Credential, Reason>, Strip<'s>) {
        let mut search = Search { http, credential: Err(Reason::MissingCredential), strip: Strip::default() };
        for source in sources {
            search.look_in(source);
        }
        (search.credential, search.strip)
    }

    fn look_in(&mut self, source: &'a CredentialSource) {
        match source {
            CredentialSource::Bearer => self.look_in_authorization(),
            CredentialSource::Header(name) => self.look_in_header(name),
            CredentialSource::Query(name) => self.look_in_query(name),
            CredentialSource::Cookie(name) => self.look_in_cookies(name),
        }
    }

    /// Other schemes are somebody else's and stay where they are.
    fn look_in_authorization(&mut self) {
        for value in values(self.http, "authorization") {
            if let Some(token) = bearer_token(value) {
                self.present(token);
                self.strip_header("authorization");
            }
        }
    }

    fn look_in_header(&mut self, name: &'a str) {
        for value in values(self.http, name) {
            self.present(trim_blanks(value));
            self.strip_header(name);
        }
    }

    /// Names are compared as they stand, not decoded: Envoy removes parameters by the name as it
    /// stands, and a key that cannot be removed must not be accepted.
    fn look_in_query(&mut self, name: &'a str) {
        let (_, query) = self.http.path.split_once('?').unwrap_or_default();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            if key == name {
                self.present(&percent_decode_str(value).collect::<Vec<u8>>());
                if !self.strip.query_parameters.contains(&name) {
                    self.strip.query_parameters.push(name);
                }
            }
        }
    }

    fn look_in_cookies(&mut self, name: &str) {
        let mut others = Vec::new();
        let mut found = false;
        // What an earlier cookie source left is what is left to look through.
        let header = self.strip.cookie.clone().map_or_else(|| cookie_header(self.http), String::into_bytes);
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
            self.strip.cookie = Some(others.join("; "));
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

    fn strip_header(&mut self, name: &'a str) {
        if !self.strip.headers.contains(&name) {
            self.strip.headers.push(name);
        }
    }
}

fn cookie_header(http: &Http<'_>) -> Vec<u8> {
    values(http, "cookie").collect::<Vec<_>>().join(&b"; "[..])
}

/// The token of a `Bearer` value, in any case; empty when there is none after the scheme.
fn bearer_token(value: &[u8]) -> Option<&[u8]> {
    let value = trim_blanks(value);
    let end = value.iter().position(is_blank).unwrap_or(value.len());
    let (scheme, token) = value.split_at(end);
    scheme.eq_ignore_ascii_case(b"bearer").then(|| trim_blanks(token))
}

/// What HTTP allows around a value (RFC 9110, section 5.5): other control characters stay, and
/// make a credential malformed.
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
