//! The servers that connections lead to.
//!
//! A connection knows its server. When a server turns out to be the wrong one, or does not answer, its other
//! connections are abandoned as well. Otherwise one check after the other would fail on them.

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
use tokio::sync::{mpsc, watch};
use tokio_postgres::{AsyncMessage, Client, Notification, SimpleQueryMessage, Socket, tls::MakeTlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    error::is_read_only,
    session_attrs::{Role, SessionAttrs},
};
use crate::{addresses::Failures, clock};

/// The servers of one URL, and the recent failures of their addresses.
pub(super) struct Servers {
    pub(super) session_attrs: SessionAttrs,
    pub(super) failures: Failures<Address>,
    statuses: Mutex<HashMap<Address, watch::Sender<ServerStatus>>>,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf, u16),
}

/// When the connections to a server were last abandoned, and why.
#[derive(Debug, Clone, Copy, Default)]
struct ServerStatus {
    abandoned_at: Option<Instant>,
    reason: Option<AbandonReason>,
}

/// Why the connections to a server are abandoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AbandonReason {
    /// Its role changed: it became read-only, or is no longer a standby.
    RoleChanged,
    /// It did not answer for too long, or it is shutting down.
    Unresponsive,
}

/// A connection's server.
pub(super) struct Server {
    servers: Arc<Servers>,
    address: Address,
    /// When connecting began.
    since: Instant,
    /// Whether it was read-only from the start, where it reported that.
    was_read_only: Option<bool>,
    status: watch::Receiver<ServerStatus>,
    /// Set when its role no longer matches `target_session_attrs`.
    is_unfit: Arc<AtomicBool>,
}

/// What moves a connection's bytes.
pub(super) type Driver =
    tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Minimum time between two decisions to abandon the connections of one server.
const ABANDON_PAUSE: Duration = Duration::from_secs(1);

/// The same for a server that was read-only when it was connected to, and still refuses a write.
const READ_ONLY_PAUSE: Duration = Duration::from_secs(2);

impl Servers {
    pub(super) fn new(session_attrs: SessionAttrs) -> Self {
        Self { session_attrs, failures: Failures::default(), statuses: Mutex::default() }
    }

    /// Drives a new connection in the background, and watches the role that its server reports. Notifications go to
    /// `notifications`. `session_attrs` are those of this connection.
    pub(super) fn drive(
        self: &Arc<Self>,
        driver: Driver,
        address: &Address,
        since: Instant,
        session_attrs: SessionAttrs,
        notifications: Option<mpsc::UnboundedSender<Notification>>,
    ) -> ServerMonitor {
        let role = Role::reported(&driver);
        let monitor = ServerMonitor {
            servers: Arc::clone(self),
            address: address.clone(),
            since,
            session_attrs,
            role,
            is_unfit: Arc::default(),
        };
        tokio::spawn(monitor.clone().run(driver, notifications));
        monitor
    }

    /// The server of a connection that is accepted.
    pub(super) fn server(self: &Arc<Self>, monitor: ServerMonitor) -> Server {
        let ServerMonitor { address, since, role, is_unfit, .. } = monitor;
        let mut statuses = self.statuses.lock();
        statuses.retain(|_, status| status.receiver_count() > 0);
        let status = statuses.entry(address.clone()).or_default().subscribe();
        drop(statuses);
        let was_read_only = role.map(|role| role.is_read_only);
        Server { servers: Arc::clone(self), address, since, was_read_only, status, is_unfit }
    }

    /// A server refuses writes: its name may lead elsewhere now, or another address may accept them. Otherwise new
    /// connections do not help, so one that was read-only from the start is abandoned less often.
    fn refuses_writes(&self, address: &Address, since: Instant, was_read_only: bool) {
        if matches!(self.session_attrs, SessionAttrs::ReadOnly | SessionAttrs::Standby) {
            return;
        }
        self.failures.add(address.clone(), clock::monotonic());
        let pause = if was_read_only { READ_ONLY_PAUSE } else { ABANDON_PAUSE };
        if self.abandon(address, since, AbandonReason::RoleChanged, pause) && !was_read_only {
            tracing::warn!(server = %address, "the server no longer accepts writes: looking for another one");
        }
    }

    fn abandon(&self, address: &Address, since: Instant, reason: AbandonReason, pause: Duration) -> bool {
        let mut statuses = self.statuses.lock();
        let status = statuses.entry(address.clone()).or_default();
        status.send_if_modified(|status| {
            // A connection from before the last decision says nothing new.
            let is_new = status.abandoned_at.is_none_or(|at| since > at && at.elapsed() > pause);
            if is_new {
                *status = ServerStatus { abandoned_at: Some(clock::monotonic()), reason: Some(reason) };
            }
            is_new
        })
    }
}

impl Server {
    /// Whether a connection to it may still be used.
    pub(super) fn is_fit(&self) -> bool {
        let abandoned_at = self.status.borrow().abandoned_at;
        !self.is_unfit.load(Ordering::Relaxed) && abandoned_at.is_none_or(|at| self.since > at)
    }

    /// Abandons its connections: it did not answer for too long, or reports that it is shutting down.
    pub(super) fn abandon_unresponsive(&self) {
        self.servers.abandon(&self.address, self.since, AbandonReason::Unresponsive, ABANDON_PAUSE);
    }

    /// Evaluates the error of a statement: a primary may have become read-only while its connections live.
    pub(super) fn note_error(&self, error: &tokio_postgres::Error) {
        if is_read_only(error) {
            self.servers.refuses_writes(&self.address, self.since, self.was_read_only == Some(true));
        }
    }

    /// This connection has just received an answer, so an earlier decision does not apply to it.
    pub(super) fn confirm(&mut self) {
        self.since = clock::monotonic();
    }

    /// Waits until its connections are abandoned, and returns why.
    pub(super) async fn abandoned(&mut self) -> AbandonReason {
        let since = self.since;
        let status = self.status.wait_for(|status| status.abandoned_at.is_some_and(|at| since <= at)).await;
        match status.map(|status| status.reason) {
            Ok(reason) => reason.unwrap_or(AbandonReason::Unresponsive),
            Err(_) => std::future::pending().await,
        }
    }
}

/// Watches the role that a server reports while a connection to it lives.
#[derive(Clone)]
pub(super) struct ServerMonitor {
    servers: Arc<Servers>,
    address: Address,
    since: Instant,
    session_attrs: SessionAttrs,
    /// The role when the connection began, where it was reported.
    role: Option<Role>,
    is_unfit: Arc<AtomicBool>,
}

impl ServerMonitor {
    /// Moves the connection's bytes until it ends. A connection that listens ends with its receiver.
    async fn run(self, mut driver: Driver, notifications: Option<mpsc::UnboundedSender<Notification>>) {
        loop {
            let message = poll_fn(|context| {
                let message = driver.poll_message(context);
                self.check_role(&driver);
                message
            })
            .await;
            match (message, &notifications) {
                (Some(Ok(AsyncMessage::Notification(notification))), Some(notifications)) => {
                    if notifications.send(notification).is_err() {
                        return;
                    }
                }
                (Some(Ok(_)), _) => {}
                (Some(Err(_)) | None, _) => return,
            }
        }
    }

    /// Servers from version 14 on report when they become standby, primary or read-only.
    fn check_role(&self, driver: &Driver) {
        let now = Role::reported(driver);
        let (Some(before), Some(now)) = (self.role, now) else { return };
        if now == before || self.is_unfit.load(Ordering::Relaxed) {
            return;
        }
        let became_read_only = now.is_read_only && !before.is_read_only;
        if became_read_only {
            self.servers.refuses_writes(&self.address, self.since, false);
        }
        if self.session_attrs.objection(now).is_some() || became_read_only {
            self.is_unfit.store(true, Ordering::Relaxed);
            self.servers.abandon(&self.address, self.since, AbandonReason::RoleChanged, ABANDON_PAUSE);
        }
    }
}

impl Role {
    /// The role that the server has reported, if it reports that.
    fn reported(driver: &Driver) -> Option<Self> {
        let is_on = |parameter| driver.parameter(parameter).map(|value| value == "on");
        let is_standby = is_on("in_hot_standby")?;
        let is_read_only = is_standby || is_on("default_transaction_read_only")?;
        Some(Self { is_standby, is_read_only })
    }

    /// Queries the server for its role.
    pub(super) async fn query(client: &Client) -> Result<Self, tokio_postgres::Error> {
        let sql = "SELECT pg_is_in_recovery()::text, current_setting('transaction_read_only')";
        let messages = client.simple_query(sql).await?;
        let role = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some(Self { is_standby: row.get(0) == Some("true"), is_read_only: row.get(1) == Some("on") })
            }
            _ => None,
        });
        // Without a row, the server is assumed to be the least capable one.
        Ok(role.unwrap_or(Self { is_standby: true, is_read_only: true }))
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
