//! The settings of the service that answers checks.

use std::time::Duration;

use super::field_filter::FieldFilter;
use crate::{
    config::{
        ClientAddress, CredentialSource, DenyFormat, Mode, OnFailure, RateLimitFields, RemoveHeaders,
        RotationLink,
    },
    credential::brands::KeyBrands,
};

/// How checks are read, decided and answered.
#[derive(Debug, Clone)]
pub struct ExtAuthzConfig {
    /// How requests are read.
    pub request: RequestConfig,
    /// Whether the credential is forwarded to the upstream.
    pub forward_credential: bool,
    /// Deadline of a check, when Envoy's own is not earlier.
    pub timeout: Duration,
    /// What an unavailable store becomes.
    pub on_failure: OnFailure,
    /// Whether denials are enforced where the route does not say.
    pub mode: Mode,
    /// Form of a denial's body.
    pub deny_format: DenyFormat,
    /// The page that callers of a rotated key are pointed to.
    pub rotation_link: Option<RotationLink>,
    /// Which further fields tell clients of their limits.
    pub rate_limit_fields: RateLimitFields,
    /// Which headers are sent to the upstream.
    pub upstream_headers: FieldFilter,
    /// Which metadata Envoy is sent.
    pub metadata: FieldFilter,
}

/// How requests are read.
#[derive(Debug, Clone)]
pub struct RequestConfig {
    /// Where credentials are looked for.
    pub credential_sources: Vec<CredentialSource>,
    /// How API keys begin.
    pub key_brands: KeyBrands,
    /// Where the client's address is taken from.
    pub client_address: ClientAddress,
    /// Which headers with Keystile's names are removed from a request.
    pub remove_headers: RemoveHeaders,
}
