//! Connects to one of a URL's servers. Each address has its share of the deadline. An address that failed lately is
//! tried after the others.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use rand::seq::SliceRandom;
use tokio::{sync::mpsc, time::timeout};
use tokio_postgres::{Client, Config, Notification};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    error::{refuses_login, unavailable},
    hosts::HostAddress,
    server::{Address, Server, Servers},
    session_attrs::{Role, SessionAttrs},
    settings::{Settings, without_tls},
};
use crate::{
    addresses::Resolver,
    clock,
    dependencies::{Cause, ErrorText},
    resilience::CallError,
    store::StoreError,
};

/// Makes connections by one URL. Cheap to clone.
#[derive(Clone)]
pub(super) struct PostgresConnector(Arc<Inner>);

struct Inner {
    settings: Settings,
    resolver: Arc<dyn Resolver>,
    deadline: Duration,
    servers: Arc<Servers>,
}

/// One address to try, and the name that its certificate must have.
struct Candidate {
    address: Address,
    name: String,
}

/// How an attempt failed.
enum AttemptError {
    /// Another address may work.
    Address(StoreError),
    /// Every server would say the same: the user or the database is wrong.
    Login(StoreError),
}

/// Minimum share of the deadline, however many addresses a name has: a handshake needs this time.
const MIN_SHARE: Duration = Duration::from_millis(100);

impl PostgresConnector {
    pub(super) fn new(settings: Settings, resolver: Arc<dyn Resolver>, deadline: Duration) -> Self {
        let servers = Arc::new(Servers::new(settings.session_attrs));
        Self(Arc::new(Inner { settings, resolver, deadline, servers }))
    }

    /// For cancel requests.
    pub(super) fn tls(&self) -> MakeRustlsConnect {
        self.0.settings.tls.clone()
    }

    /// Connects to the first acceptable server. `change` overrides the settings. Notifications go to `notifications`.
    ///
    /// # Errors
    /// [`StoreError`] with the error of each address.
    pub(super) async fn connect(
        &self,
        change: impl Fn(&mut Config),
        notifications: Option<mpsc::UnboundedSender<Notification>>,
    ) -> Result<(Client, Server), StoreError> {
        let (mut candidates, mut errors) = self.candidates().await;
        let Inner { settings, servers, deadline, .. } = &*self.0;
        let failures = &servers.failures;
        if settings.is_random {
            candidates.shuffle(&mut rand::rng());
        }
        failures.sort_by_key(&mut candidates, clock::monotonic(), |candidate| candidate.address.clone());
        let (passes, count) = (settings.session_attrs.passes(), candidates.len());
        for n in 0..count * passes.len() {
            let (session_attrs, candidate) = (passes[n / count], &candidates[n % count]);
            let Candidate { address, .. } = candidate;
            let is_last = n + 1 == count * passes.len();
            let share = (*deadline / u32::try_from(count).unwrap_or(u32::MAX)).max(MIN_SHARE);
            let share = if is_last { *deadline } else { share.min(*deadline) };
            let limit = settings.connect_timeout.map_or(share, |limit| limit.min(share));
            if failures.contains(address, clock::monotonic()) {
                // While this attempt waits for the address, others try it last.
                failures.add(address.clone(), clock::monotonic());
            }
            let attempt = self.attempt(session_attrs, candidate, &change, notifications.clone());
            let error = match timeout(limit, attempt).await {
                Ok(Ok(connected)) => {
                    failures.remove(address);
                    return Ok(connected);
                }
                Ok(Err(AttemptError::Login(error))) => return Err(error),
                Ok(Err(AttemptError::Address(error))) => error,
                Err(_) => StoreError::Timeout(limit),
            };
            failures.add(address.clone(), clock::monotonic());
            errors.push((address.to_string(), error));
        }
        Err(combined(errors))
    }

    /// All addresses of all hosts, and the errors of names without one.
    async fn candidates(&self) -> (Vec<Candidate>, Vec<(String, StoreError)>) {
        let Inner { settings, resolver, deadline, .. } = &*self.0;
        let limit = if settings.hosts.len() > 1 { *deadline / 2 } else { *deadline };
        let resolved = join_all(settings.hosts.iter().map(|host| async move {
            let addresses = match &host.address {
                HostAddress::Socket(folder) => vec![Address::Unix(folder.clone(), host.port)],
                HostAddress::Address(address) => vec![Address::Tcp((*address, host.port).into())],
                HostAddress::Name(name) => {
                    let failed = |error: String| {
                        (
                            host.name.clone(),
                            StoreError::Unavailable(ErrorText::new(Cause::NameUnknown, error)),
                        )
                    };
                    let addresses = timeout(limit, resolver.addresses(name, host.port)).await;
                    let addresses = addresses.map_err(|_| (host.name.clone(), StoreError::Timeout(limit)))?;
                    let addresses =
                        addresses.map_err(|error| failed(format!("cannot look up the name: {error}")))?;
                    addresses.into_iter().map(Address::Tcp).collect()
                }
            };
            let name = || host.name.clone();
            let candidates = addresses.into_iter().map(|address| Candidate { address, name: name() });
            Ok::<_, (String, StoreError)>(candidates.collect::<Vec<_>>())
        }));
        let (mut candidates, mut errors) = (Vec::new(), Vec::new());
        for host in resolved.await {
            match host {
                Ok(addresses) => candidates.extend(addresses),
                Err(error) => errors.push(error),
            }
        }
        (candidates, errors)
    }

    async fn attempt(
        &self,
        session_attrs: SessionAttrs,
        candidate: &Candidate,
        change: &impl Fn(&mut Config),
        notifications: Option<mpsc::UnboundedSender<Notification>>,
    ) -> Result<(Client, Server), AttemptError> {
        let Candidate { address, name } = candidate;
        let mut config = self.0.settings.config.clone();
        match address {
            Address::Tcp(address) => config.host(name).hostaddr(address.ip()).port(address.port()),
            Address::Unix(folder, port) => config.host_path(folder).port(*port),
        };
        if matches!(address, Address::Unix(..)) {
            without_tls(&mut config);
        }
        change(&mut config);
        let since = clock::monotonic();
        let (client, driver) = config.connect(self.tls()).await.map_err(|error| AttemptError::new(&error))?;
        let servers = &self.0.servers;
        let monitor = servers.drive(driver, address, since, session_attrs, notifications);
        if session_attrs != SessionAttrs::Any {
            let role = Role::query(&client).await.map_err(|error| AttemptError::new(&error))?;
            if let Some(objection) = session_attrs.objection(role) {
                return Err(AttemptError::Address(StoreError::Unavailable(ErrorText::new(
                    Cause::ReadOnly,
                    objection,
                ))));
            }
        }
        Ok((client, servers.server(monitor)))
    }
}

impl AttemptError {
    fn new(error: &tokio_postgres::Error) -> Self {
        if refuses_login(error) { Self::Login(unavailable(error)) } else { Self::Address(unavailable(error)) }
    }
}

fn combined(mut errors: Vec<(String, StoreError)>) -> StoreError {
    if errors.len() == 1 {
        return errors.remove(0).1;
    }
    let describe = |(address, error): &(String, StoreError)| match error {
        StoreError::Unavailable(words) => format!("{address}: {words}"),
        StoreError::Timeout(limit) => {
            format!("{address}: no answer within {}", humantime::format_duration(*limit))
        }
        error => format!("{address}: {error}"),
    };
    let text = errors.iter().map(describe).collect::<Vec<_>>().join("; ");
    // The first address names the cause: the others are tried because it failed.
    let cause = errors.first().map_or(Cause::Unreachable, |(_, error)| error.cause());
    StoreError::Unavailable(ErrorText::new(cause, text))
}
