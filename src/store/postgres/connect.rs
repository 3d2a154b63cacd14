//! Connects to one of a URL's servers: each address is tried for its share of the deadline, and one that did not work
//! is tried after the others next time.
//!
//! A connection knows its server. When a server turns out to be the wrong one, or silent, its other connections are
//! given up as well, instead of each of them being found out by a check that fails.

use std::{
    collections::HashMap,
    fmt,
    future::poll_fn,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use futures_util::future::join_all;
use rand::seq::SliceRandom;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_postgres::{
    AsyncMessage, Client, Config, Notification, SimpleQueryMessage, Socket, tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    errors::{is_read_only, refuses_login, unavailable},
    settings::{Place, Role, Session, Settings, without_tls},
};
use crate::{
    addresses::{Failures, Lookup},
    clock,
    store::StoreError,
};

/// Makes connections by one URL. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    settings: Settings,
    lookup: Arc<dyn Lookup>,
    deadline: Duration,
    failures: Failures<Address>,
    servers: Mutex<HashMap<Address, watch::Sender<Standing>>>,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf, u16),
}

/// Up to when connections to a server are given up, and why.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    given_up: Option<Instant>,
    reason: Option<Reason>,
}

/// Why the connections to a server are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// It has become another: read-only, or no standby any more.
    Changed,
    /// It owed an answer for too long, or it is shutting down.
    Silent,
}

/// A connection's server.
pub(super) struct Server {
    connector: Connector,
    address: Address,
    /// When connecting began.
    since: Instant,
    /// Whether it was read-only from the start, where it said so.
    was_read_only: Option<bool>,
    standing: watch::Receiver<Standing>,
    /// Set when it has become another than was asked for by `target_session_attrs`.
    is_unfit: Arc<AtomicBool>,
}

/// One address to try, and what the certificate there must be for.
struct Candidate {
    address: Address,
    name: String,
}

/// What moves a connection's bytes.
type Connection = tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Minimum share of the deadline, however many addresses a name has: less is no fair chance for a handshake.
const MIN_SHARE: Duration = Duration::from_millis(100);

/// Minimum time between two such decisions about one server.
const GIVE_UP_PAUSE: Duration = Duration::from_secs(1);

/// The same for a server that was read-only when it was connected to, and still refuses a write.
const READ_ONLY_PAUSE: Duration = Duration::from_secs(2);

impl Connector {
    pub(super) fn new(settings: Settings, lookup: Arc<dyn Lookup>, deadline: Duration) -> Self {
        let (failures, servers) = (Failures::default(), Mutex::default());
        Self(Arc::new(Inner { settings, lookup, deadline, failures, servers }))
    }

    /// For the requests to cancel.
    pub(super) fn tls(&self) -> MakeRustlsConnect {
        self.0.settings.tls.clone()
    }

    /// Connects to the first server that will do. `change` has the last word on the settings; notifications go to
    /// `heard`.
    ///
    /// # Errors
    /// [`StoreError`] with what each address said.
    pub(super) async fn connect(
        &self,
        change: impl Fn(&mut Config),
        heard: Option<mpsc::UnboundedSender<Notification>>,
    ) -> Result<(Client, Server), StoreError> {
        let (mut candidates, mut errors) = self.candidates().await;
        let Inner { settings, failures, deadline, .. } = &*self.0;
        if settings.is_random {
            candidates.shuffle(&mut rand::rng());
        }
        failures.sort_by_key(&mut candidates, clock::monotonic(), |candidate| candidate.address.clone());
        let (passes, count) = (settings.session.passes(), candidates.len());
        for n in 0..count * passes.len() {
            let (session, candidate) = (passes[n / count], &candidates[n % count]);
            let Candidate { address, .. } = candidate;
            let is_last = n + 1 == count * passes.len();
            let share = (*deadline / u32::try_from(count).unwrap_or(u32::MAX)).max(MIN_SHARE);
            let share = if is_last { *deadline } else { share.min(*deadline) };
            let limit = settings.connect_timeout.map_or(share, |limit| limit.min(share));
            if failures.contains(address, clock::monotonic()) {
                // While this attempt pays for it, others do not.
                failures.add(address.clone(), clock::monotonic());
            }
            let attempt = self.attempt(session, candidate, &change, heard.clone());
            let error = match timeout(limit, attempt).await {
                Ok(Ok(connected)) => {
                    failures.remove(address);
                    return Ok(connected);
                }
                Ok(Err(Failed::Final(error))) => return Err(error),
                Ok(Err(Failed::Here(error))) => error,
                Err(_) => StoreError::Timeout(limit),
            };
            failures.add(address.clone(), clock::monotonic());
            errors.push((address.to_string(), error));
        }
        Err(combined(errors))
    }

    /// All addresses of all hosts, and the errors of names that have none.
    async fn candidates(&self) -> (Vec<Candidate>, Vec<(String, StoreError)>) {
        let Inner { settings, lookup, deadline, .. } = &*self.0;
        let limit = if settings.hosts.len() > 1 { *deadline / 2 } else { *deadline };
        let looked_up = join_all(settings.hosts.iter().map(|host| async move {
            let addresses = match &host.place {
                Place::Socket(folder) => vec![Address::Unix(folder.clone(), host.port)],
                Place::Address(address) => vec![Address::Tcp((*address, host.port).into())],
                Place::Name(name) => {
                    let failed = |error: String| (host.name.clone(), StoreError::Unavailable(error.into()));
                    let found = timeout(limit, lookup.addresses(name, host.port)).await;
                    let found = found.map_err(|_| (host.name.clone(), StoreError::Timeout(limit)))?;
                    let found = found.map_err(|error| failed(format!("cannot look up the name: {error}")))?;
                    found.into_iter().map(Address::Tcp).collect()
                }
            };
            Ok::<_, (String, StoreError)>(
                addresses.into_iter().map(|address| Candidate { address, name: host.name.clone() }),
            )
        }));
        let (mut candidates, mut errors) = (Vec::new(), Vec::new());
        for lookup in looked_up.await {
            match lookup {
                Ok(found) => candidates.extend(found),
                Err(error) => errors.push(error),
            }
        }
        (candidates, errors)
    }

    async fn attempt(
        &self,
        session: Session,
        candidate: &Candidate,
        change: &impl Fn(&mut Config),
        heard: Option<mpsc::UnboundedSender<Notification>>,
    ) -> Result<(Client, Server), Failed> {
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
        let (client, connection) = config.connect(self.tls()).await.map_err(|error| Failed::of(&error))?;
        let role = Role::of(&connection);
        let is_unfit = Arc::new(AtomicBool::new(false));
        let watch = Watch {
            connector: self.clone(),
            address: address.clone(),
            since,
            session,
            before: role,
            is_unfit: Arc::clone(&is_unfit),
        };
        tokio::spawn(watch.drive(connection, heard));
        if session != Session::Any {
            let role = Role::ask(&client).await.map_err(|error| Failed::of(&error))?;
            if let Some(objection) = session.objection(role) {
                return Err(Failed::Here(StoreError::Unavailable(objection.into())));
            }
        }
        let mut servers = self.0.servers.lock();
        servers.retain(|_, standing| standing.receiver_count() > 0);
        let standing = servers.entry(address.clone()).or_default().subscribe();
        drop(servers);
        let (connector, address) = (self.clone(), address.clone());
        let was_read_only = role.map(|role| role.is_read_only);
        Ok((client, Server { connector, address, since, was_read_only, standing, is_unfit }))
    }

    /// A server takes no writes: its name may lead elsewhere by now, or another address may. Without either, making
    /// its connections again is no help, so one that was read-only from the start is given up less often.
    fn takes_no_writes(&self, address: &Address, since: Instant, was_read_only: bool) {
        if matches!(self.0.settings.session, Session::ReadOnly | Session::Standby) {
            return;
        }
        self.0.failures.add(address.clone(), clock::monotonic());
        let pause = if was_read_only { READ_ONLY_PAUSE } else { GIVE_UP_PAUSE };
        if self.give_up(address, since, Reason::Changed, pause) && !was_read_only {
            tracing::warn!(server = %address, "the server takes no writes any more: looking for another one");
        }
    }

    fn give_up(&self, address: &Address, since: Instant, reason: Reason, pause: Duration) -> bool {
        let mut servers = self.0.servers.lock();
        let standing = servers.entry(address.clone()).or_default();
        standing.send_if_modified(|standing| {
            // One that is younger than that says nothing new.
            let is_new = standing.given_up.is_none_or(|at| since > at && at.elapsed() > pause);
            if is_new {
                *standing = Standing { given_up: Some(clock::monotonic()), reason: Some(reason) };
            }
            is_new
        })
    }
}

impl Server {
    /// Whether a connection to it may still be used.
    pub(super) fn is_fit(&self) -> bool {
        let given_up = self.standing.borrow().given_up;
        !self.is_unfit.load(Ordering::Relaxed) && given_up.is_none_or(|at| self.since > at)
    }

    /// It owed an answer for too long, or says that it ends: its connections are made again.
    pub(super) fn give_up_silent(&self) {
        self.connector.give_up(&self.address, self.since, Reason::Silent, GIVE_UP_PAUSE);
    }

    /// Takes an error of a statement into account: a primary may have become read-only while its connections live.
    pub(super) fn learn(&self, error: &tokio_postgres::Error) {
        if is_read_only(error) {
            self.connector.takes_no_writes(&self.address, self.since, self.was_read_only == Some(true));
        }
    }

    /// This connection has just had an answer, so what was given up before meant others.
    pub(super) fn confirm(&mut self) {
        self.since = clock::monotonic();
    }

    /// Waits until its connections are given up, and says why.
    pub(super) async fn given_up(&mut self) -> Reason {
        let since = self.since;
        let given_up =
            self.standing.wait_for(|standing| standing.given_up.is_some_and(|at| since <= at)).await;
        match given_up.map(|standing| standing.reason) {
            Ok(reason) => reason.unwrap_or(Reason::Silent),
            Err(_) => std::future::pending().await,
        }
    }
}

/// How an attempt failed.
enum Failed {
    /// Another address may do.
    Here(StoreError),
    /// Every server would say the same: the user or the database is wrong.
    Final(StoreError),
}

impl Failed {
    fn of(error: &tokio_postgres::Error) -> Self {
        if refuses_login(error) { Self::Final(unavailable(error)) } else { Self::Here(unavailable(error)) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(folder, port) => write!(f, "{}/.s.PGSQL.{port}", folder.display()),
        }
    }
}

/// Watches what a server says of itself while a connection to it lives.
struct Watch {
    connector: Connector,
    address: Address,
    since: Instant,
    session: Session,
    /// When the connection began, where it said so.
    before: Option<Role>,
    is_unfit: Arc<AtomicBool>,
}

impl Watch {
    /// Moves the connection's bytes until it ends; one that listens ends with its server's fitness.
    async fn drive(self, mut connection: Connection, heard: Option<mpsc::UnboundedSender<Notification>>) {
        loop {
            let message = poll_fn(|context| {
                let message = connection.poll_message(context);
                self.look(&connection);
                message
            })
            .await;
            match (message, &heard) {
                (Some(Ok(AsyncMessage::Notification(notification))), Some(heard)) => {
                    if heard.send(notification).is_err() {
                        return;
                    }
                }
                (Some(Ok(_)), _) => {}
                (Some(Err(_)) | None, _) => return,
            }
        }
    }

    /// Servers from version 14 on say so when they become standby, primary or read-only.
    fn look(&self, connection: &Connection) {
        let now = Role::of(connection);
        let (Some(before), Some(now)) = (self.before, now) else { return };
        if now == before || self.is_unfit.load(Ordering::Relaxed) {
            return;
        }
        let became_read_only = now.is_read_only && !before.is_read_only;
        if became_read_only {
            self.connector.takes_no_writes(&self.address, self.since, false);
        }
        if self.session.objection(now).is_some() || became_read_only {
            self.is_unfit.store(true, Ordering::Relaxed);
            self.connector.give_up(&self.address, self.since, Reason::Changed, GIVE_UP_PAUSE);
        }
    }
}

fn is_on(connection: &Connection, parameter: &str) -> Option<bool> {
    connection.parameter(parameter).map(|value| value == "on")
}

impl Role {
    /// What the server has said of itself, if it does.
    fn of(connection: &Connection) -> Option<Self> {
        let is_standby = is_on(connection, "in_hot_standby")?;
        let is_read_only = is_standby || is_on(connection, "default_transaction_read_only")?;
        Some(Self { is_standby, is_read_only })
    }

    /// What the server answers.
    async fn ask(client: &Client) -> Result<Self, tokio_postgres::Error> {
        let sql = "SELECT pg_is_in_recovery()::text, current_setting('transaction_read_only')";
        let answers = client.simple_query(sql).await?;
        let role = answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => {
                Some(Self { is_standby: row.get(0) == Some("true"), is_read_only: row.get(1) == Some("on") })
            }
            _ => None,
        });
        // Without an answer it is taken for one that can do the least.
        Ok(role.unwrap_or(Self { is_standby: true, is_read_only: true }))
    }
}

fn combined(mut errors: Vec<(String, StoreError)>) -> StoreError {
    if errors.len() == 1 {
        return errors.remove(0).1;
    }
    let said = |(address, error): &(String, StoreError)| match error {
        StoreError::Unavailable(words) => format!("{address}: {words}"),
        StoreError::Timeout(limit) => {
            format!("{address}: no answer within {}", humantime::format_duration(*limit))
        }
        error => format!("{address}: {error}"),
    };
    StoreError::Unavailable(errors.iter().map(said).collect::<Vec<_>>().join("; ").into())
}
