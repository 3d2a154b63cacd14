//! A service without a network: the whole way from an encoded `CheckRequest` to an encoded `CheckResponse`.

use std::time::Duration;

use envoy_types::ext_authz::v3::pb::CheckResponse;
use http::HeaderMap;
use keystile::{
    authorizer::Authorizer,
    config::{BcryptCost, ClientAddress, DenyFormat, Mode, OnFailure, RateLimitFields, RemoveHeaders},
    credential::{CacheSecret, CacheSecrets, brands::KeyBrands},
    ext_authz::{EncodedRecord, ExtAuthz, ExtAuthzConfig, FieldFilter, RequestConfig},
    limiter::Limiter,
    metrics::Metrics,
    store::KeyStore,
    usage::Usage,
    verifier::{Verifier, VerifierConfig},
};
use tokio::runtime::{Builder, Runtime};

#[allow(clippy::duplicate_mod, reason = "the tests load two targets that share it")]
#[path = "fields.rs"]
mod fields;

/// The service, and what runs it.
pub struct Service<K> {
    runtime: Runtime,
    ext_authz: ExtAuthz<K, Limiter>,
}

impl<K: KeyStore<EncodedRecord>> Service<K> {
    /// Starts it with the keys of this store.
    pub fn start(keys: K) -> Self {
        let metrics = Metrics::new().expect("builds");
        let proofs = VerifierConfig {
            threads: 1,
            cost: BcryptCost::Fixed(4),
            failed_attempts: None,
            capacity: 1000,
            proof_ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(60),
        };
        let sources = ["bearer", "header:x-api-key", "query:api_key", "cookie:api_key"];
        let config = ExtAuthzConfig {
            request: RequestConfig {
                credential_sources: sources.map(|source| source.parse().expect("a source")).into(),
                key_brands: KeyBrands::new(
                    ["en_", "ks_"].map(|brand| brand.parse().expect("a brand")).into(),
                ),
                client_address: ClientAddress::Auto,
                remove_headers: RemoveHeaders::Seen,
            },
            forward_credential: false,
            timeout: Duration::from_secs(10),
            on_failure: OnFailure::Deny,
            mode: Mode::Enforce,
            deny_format: DenyFormat::Problem,
            rate_limit_fields: RateLimitFields::None,
            rotation_link: None,
            upstream_headers: FieldFilter::all(),
            metadata: FieldFilter::all(),
        };
        let verifier =
            Verifier::new(CacheSecrets::one(CacheSecret::random()), proofs, |_, _, _| (), &metrics);
        let authorizer = Authorizer::new(keys, verifier, Limiter::Off);
        Self {
            runtime: Builder::new_current_thread().enable_time().build().expect("a runtime"),
            ext_authz: ExtAuthz::new(authorizer, Usage::new(true, &metrics), config, &metrics),
        }
    }

    /// The answer to a message, as the generated types read it.
    pub fn ask(&self, message: &[u8]) -> CheckResponse {
        let answer = self.runtime.block_on(self.ext_authz.check(&HeaderMap::new(), message));
        let answer = answer.expect("a denial is an answer");
        let (prefix, message) = answer.split_at(5);
        assert_eq!(prefix, [&[0], &(message.len() as u32).to_be_bytes()[..]].concat(), "gRPC's prefix");
        fields::checked(message)
    }
}
