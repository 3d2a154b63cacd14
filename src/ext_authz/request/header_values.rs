//! The headers of a request, in both forms in which Envoy sends them.

use crate::ext_authz::proto::check_request::HttpRequestView;

/// The first value of a header, if it is text.
pub(super) fn text<'a>(http: &HttpRequestView<'a>, name: &str) -> Option<&'a str> {
    values(http, name).next().and_then(|value| std::str::from_utf8(value).ok())
}

/// Every value of a header: from `headers`, or from the `header_map` that Envoy sends with `encode_raw_headers`, whose
/// bytes are unchanged.
pub(super) fn values<'a>(http: &HttpRequestView<'a>, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let raw = http.header_map.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name));
    http.header(name).map(str::as_bytes).into_iter().chain(raw.map(|(_, value)| *value))
}
