//! Envoy's configuration, as far as the rules read it. Everything has its path.

use std::collections::BTreeMap;

use super::{matcher::NameMatcher, version::EnvoyVersion};

mod cluster;
mod mutation_rules;
mod route;
mod service;

pub(super) use cluster::{Cluster, Endpoint, GrpcHealthCheck, Transport};
pub(super) use mutation_rules::MutationRules;
pub(super) use route::{BodySettings, FilterSettings, Route};
pub(super) use service::{Service, Target};

/// Who wrote a part of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A person, or an unknown generator.
    Own,
    /// Istio.
    Istio,
    /// Envoy Gateway.
    EnvoyGateway,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Config {
    pub(super) version: Option<EnvoyVersion>,
    pub(super) chains: Vec<HttpChain>,
    pub(super) network_checks: Vec<NetworkCheck>,
    /// Chains that pass connections on without a check: their path and the cluster.
    pub(super) open_tcp_chains: Vec<(String, String)>,
    pub(super) clusters: BTreeMap<String, Cluster>,
    /// Parts that are not in the document: their path, and what they are.
    pub(super) missing: Vec<(String, &'static str)>,
    /// Whether clusters may exist that are not in the document.
    pub(super) has_more_clusters: bool,
}

/// A chain of filters for HTTP: an HTTP connection manager.
#[derive(Debug)]
pub(super) struct HttpChain {
    pub(super) path: String,
    pub(super) listener: String,
    pub(super) origin: Origin,
    pub(super) normalizes_path: bool,
    pub(super) merges_slashes: bool,
    pub(super) keeps_escaped_slashes: bool,
    pub(super) allows_underscores: bool,
    pub(super) uses_remote_address: bool,
    /// Headers that are removed before routing.
    pub(super) early_removals: Vec<NameMatcher>,
    /// Headers that are set before routing, from what a client may have sent.
    pub(super) early_settings: Vec<String>,
    pub(super) filters: Vec<HttpFilter>,
    pub(super) routes: Vec<Route>,
}

/// One filter of a chain.
#[derive(Debug)]
pub(super) struct HttpFilter {
    pub(super) path: String,
    /// What settings of routes name it by.
    pub(super) name: String,
    /// Whether it runs only on routes that switch it on.
    pub(super) is_disabled: bool,
    /// Whether a matcher decides if it runs.
    pub(super) has_matcher: bool,
    pub(super) kind: FilterKind,
}

/// What a filter does.
#[derive(Debug)]
pub(super) enum FilterKind {
    Check(Box<HttpCheck>),
    Cors,
    /// The headers that it removes or sets.
    HeaderMutation {
        removed: Vec<NameMatcher>,
        set: Vec<String>,
    },
    Other,
}

/// The filter that asks Keystile.
#[derive(Debug)]
pub(super) struct HttpCheck {
    pub(super) path: String,
    pub(super) service: Service,
    pub(super) fails_open: bool,
    pub(super) is_shadow: bool,
    pub(super) validates_mutations: bool,
    pub(super) encodes_raw_headers: bool,
    pub(super) clears_route_cache: bool,
    pub(super) answers_503: bool,
    /// The part of requests that are checked.
    pub(super) fraction: f64,
    /// Whether metadata decides if a request is checked.
    pub(super) has_condition: bool,
    pub(super) allowed_headers: Option<Vec<NameMatcher>>,
    pub(super) disallowed_headers: Vec<NameMatcher>,
    pub(super) body: Option<BodySettings>,
    pub(super) mutation_rules: Option<MutationRules>,
}

/// The filter that asks Keystile for connections that are not HTTP.
#[derive(Debug)]
pub(super) struct NetworkCheck {
    pub(super) path: String,
    pub(super) origin: Origin,
    pub(super) service: Service,
    pub(super) fails_open: bool,
}

/// A filter that asks Keystile, with its chain.
#[derive(Clone, Copy)]
pub(super) struct CheckInChain<'a> {
    pub(super) chain: &'a HttpChain,
    /// Its place in the chain.
    pub(super) at: usize,
    pub(super) filter: &'a HttpFilter,
    pub(super) check: &'a HttpCheck,
}

/// How Keystile is called, and by whom.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) service: &'a Service,
    pub(super) origin: Origin,
}

impl Origin {
    /// Its name. None for a person.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Own => None,
            Self::Istio => Some("Istio"),
            Self::EnvoyGateway => Some("Envoy Gateway"),
        }
    }
}

impl Config {
    /// Every filter that asks Keystile about HTTP.
    pub(super) fn checks(&self) -> impl Iterator<Item = CheckInChain<'_>> {
        self.chains.iter().flat_map(HttpChain::checks)
    }

    /// Every setting of how Keystile is called: those of filters, and those of routes that have their own.
    pub(super) fn calls(&self) -> impl Iterator<Item = Call<'_>> {
        let filters =
            self.checks().map(|here| Call { service: &here.check.service, origin: here.chain.origin });
        let network =
            self.network_checks.iter().map(|check| Call { service: &check.service, origin: check.origin });
        let routes = self.chains.iter().flat_map(|chain| {
            let settings = chain.routes.iter().flat_map(|route| &route.settings);
            let services = settings.filter_map(|settings| settings.service.as_deref());
            services.map(|service| Call { service, origin: chain.origin })
        });
        filters.chain(network).chain(routes)
    }

    /// Every cluster that is asked, with how it is called.
    pub(super) fn asked_clusters(&self) -> impl Iterator<Item = (&str, &Cluster, Call<'_>)> {
        self.calls().filter_map(|call| {
            let name = call.service.cluster()?;
            Some((name, self.clusters.get(name)?, call))
        })
    }
}

impl HttpChain {
    /// The filters of this chain that ask Keystile.
    pub(super) fn checks(&self) -> impl Iterator<Item = CheckInChain<'_>> {
        self.filters.iter().enumerate().filter_map(move |(at, filter)| match &filter.kind {
            FilterKind::Check(check) => Some(CheckInChain { chain: self, at, filter, check }),
            _ => None,
        })
    }

    /// Whether a filter runs on a route.
    pub(super) fn runs_on(filter: &HttpFilter, route: &Route) -> bool {
        let own = route.settings.iter().rfind(|settings| settings.filter == filter.name);
        own.map_or(!filter.is_disabled, |settings| !settings.is_disabled)
    }

    /// Whether a body is sent with the checks of a route.
    pub(super) fn sends_body(here: &CheckInChain<'_>, route: &Route) -> bool {
        let own = route.settings.iter().rfind(|settings| settings.filter == here.filter.name);
        let has_own = own.is_some_and(|settings| settings.body.is_some());
        has_own || (here.check.body.is_some() && !own.is_some_and(|settings| settings.disables_body))
    }

    /// Whether some filter asks Keystile about the requests of a route.
    pub(super) fn is_checked(&self, route: &Route) -> bool {
        self.checks().any(|here| here.check.service.is_grpc() && Self::runs_on(here.filter, route))
    }
}
