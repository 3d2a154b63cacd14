//! Headers with Keystile's names that came with the request: a client wrote them, and no upstream may believe them.

use crate::{
    config::RemoveHeaders,
    ext_authz::{encoded_record::HeaderSet, proto::check_request::HttpRequestView, response::headers::TABLE},
};

/// Which of Keystile's headers the request may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpoofedHeaders {
    /// Any: Envoy does not send all headers, or they are not looked at.
    Any,
    /// These.
    Seen(HeaderSet),
}

impl SpoofedHeaders {
    pub(super) fn find(http: &HttpRequestView<'_>, remove: RemoveHeaders) -> Self {
        if remove == RemoveHeaders::All {
            return Self::Any;
        }
        let mut seen = HeaderSet::default();
        let raw = http.header_map.iter().map(|(name, _)| *name);
        for name in http.headers.iter().map(|(name, _)| *name).chain(raw) {
            let place = TABLE.iter().position(|header| header.name.eq_ignore_ascii_case(name));
            place.into_iter().for_each(|place| seen.insert(place));
        }
        Self::Seen(seen)
    }
}
