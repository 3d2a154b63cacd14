//! Envoy's configuration, as far as the rules read it. Everything has its path.

use std::{collections::BTreeMap, time::Duration};

use super::{matcher::NameMatcher, version::EnvoyVersion};

/// Envoy's default for the deadline of a check.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);

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

/// How Keystile is called.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) path: String,
    pub(super) target: Target,
    /// None for Envoy's default. Zero for none.
    pub(super) timeout: Option<Duration>,
    /// The deadline of each try, where calls are tried again.
    pub(super) try_timeout: Option<Duration>,
    pub(super) metadata: Vec<(String, String)>,
}

/// What is called.
#[derive(Debug)]
pub(super) enum Target {
    Cluster {
        name: String,
        authority: Option<String>,
    },
    /// Another client than Envoy's own.
    GoogleGrpc,
    /// A service that is no gRPC, so no Keystile.
    Http,
    Missing,
}

/// What is sent of a body.
#[derive(Debug)]
pub(super) struct BodySettings {
    pub(super) path: String,
    pub(super) max_bytes: f64,
    pub(super) allows_partial: bool,
    pub(super) packs_as_bytes: bool,
}

/// Which changes of headers Envoy takes from Keystile.
#[derive(Debug)]
pub(super) struct MutationRules {
    pub(super) path: String,
    pub(super) disallows_all: bool,
    pub(super) allowed: Option<NameMatcher>,
    pub(super) disallowed: Option<NameMatcher>,
}

/// A route. Each cluster of a weighted route is a route of its own.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) path: String,
    pub(super) name: String,
    pub(super) virtual_host: String,
    /// Where requests go. None for an answer of Envoy's own.
    pub(super) cluster: Option<String>,
    /// The settings of filters, by their names, from the least to the most specific.
    pub(super) settings: Vec<FilterSettings>,
    /// Headers that are removed or set after all filters.
    pub(super) changed_headers: Vec<String>,
}

/// The settings of a filter on a route, its virtual host or its route configuration.
#[derive(Debug, Clone)]
pub(super) struct FilterSettings {
    pub(super) path: String,
    pub(super) filter: String,
    pub(super) is_disabled: bool,
    /// Whether they are of the type of the filter that asks Keystile.
    pub(super) is_check: bool,
    pub(super) context: Vec<(String, String)>,
    pub(super) body: Option<std::sync::Arc<BodySettings>>,
    /// Whether bodies are not sent, whatever the filter says.
    pub(super) disables_body: bool,
    /// Another service than the filter's.
    pub(super) service: Option<std::sync::Arc<Service>>,
}

/// A cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) path: String,
    pub(super) connect_timeout: Duration,
    pub(super) speaks_http2: bool,
    pub(super) has_keepalive: bool,
    pub(super) transport: Transport,
    /// The hosts of its endpoints. Those of a discovery service are not known.
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) max_requests: Option<f64>,
    pub(super) max_pending: Option<f64>,
    pub(super) grpc_health_checks: Vec<GrpcHealthCheck>,
    /// Percent.
    pub(super) panic_threshold: f64,
}

/// What protects the connections of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Plain,
    /// TLS that accepts every certificate.
    UnverifiedTls,
    /// TLS, or another kind of socket.
    Protected,
}

/// A health check with gRPC's protocol.
#[derive(Debug)]
pub(super) struct GrpcHealthCheck {
    pub(super) path: String,
    pub(super) service: String,
    pub(super) authority: Option<String>,
}

/// Where a cluster leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Endpoint {
    Pipe,
    Host(String),
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

impl Service {
    /// The cluster that is called.
    pub(super) fn cluster(&self) -> Option<&str> {
        match &self.target {
            Target::Cluster { name, .. } => Some(name),
            _ => None,
        }
    }

    pub(super) fn is_grpc(&self) -> bool {
        matches!(self.target, Target::Cluster { .. } | Target::GoogleGrpc)
    }

    /// The deadline of a whole check. None where there is none.
    pub(super) fn deadline(&self) -> Option<Duration> {
        Some(self.timeout.unwrap_or(DEFAULT_TIMEOUT)).filter(|timeout| !timeout.is_zero())
    }
}

impl MutationRules {
    /// Whether Envoy takes a change of this header, as its `HeaderMutationRules` say.
    pub(super) fn admit(&self, name: &str) -> bool {
        let matches =
            |matcher: &Option<NameMatcher>| matcher.as_ref().is_some_and(|matcher| matcher.matches(name));
        !matches(&self.disallowed) && (matches(&self.allowed) || !self.disallows_all)
    }
}

impl Endpoint {
    /// Whether what is sent stays on this machine.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Pipe => true,
            Self::Host(host) => {
                host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
            }
        }
    }
}
