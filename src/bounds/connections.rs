//! The connections of a listener: how many there may be, and which of them makes room for a new one.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{
            AtomicU8, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;

use futures_util::task::AtomicWaker;
use tokio::{sync::Notify, time::interval};

use super::TICK;
use crate::metrics::{ConnectionMetrics, Metrics};

/// The connections of one listener, or of several together. Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    limit: usize,
    idle: Ticks,
    open: Mutex<Open>,
    clock: Arc<AtomicU64>,
    /// Told of each connection that ends.
    ended: Notify,
    metrics: ConnectionMetrics,
}

#[derive(Default)]
struct Open {
    next: u64,
    is_draining: bool,
    connections: HashMap<u64, Arc<Connection>>,
}

/// One connection, as its own task and those that look after all of them see it.
pub struct Connection {
    /// Unlike that of any other.
    pub(super) id: u64,
    /// Calls that are not answered yet, and were not at once.
    pub(super) calls: AtomicUsize,
    /// Those of them that are being decided.
    pub(super) deciding: AtomicUsize,
    pub(super) clock: Arc<AtomicU64>,
    state: AtomicU8,
    task: AtomicWaker,
    opened: Ticks,
    /// 0 for one that never called.
    last_call: AtomicU64,
    blocked_since: AtomicU64,
    quiet: AtomicU64,
}

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It goes on.
    Open = 0,
    /// It takes no more calls, and ends with the last one.
    Closing = 1,
    /// It ends now.
    Cut = 2,
}

/// The place that a connection takes for as long as it is there.
pub struct Slot {
    connection: Arc<Connection>,
    connections: Connections,
}

/// Time in units of [`TICK`].
type Ticks = u64;

/// How long a write to a connection may make no progress.
const STALLED: Ticks = 40;

/// How long a connection that is to end may take when none of its calls is being decided.
const QUIET: Ticks = 5;

impl Connections {
    /// At most `limit` connections; those without a call for `idle` are closed. They are called `listener` in metrics.
    pub fn new(listener: &'static str, limit: usize, idle: Duration, metrics: &Metrics) -> Self {
        let idle = Ticks::try_from(idle.as_millis() / TICK.as_millis()).unwrap_or(Ticks::MAX);
        let metrics = metrics.connections(listener);
        Self(Arc::new(Inner {
            limit,
            idle,
            open: Mutex::default(),
            // 0 means never.
            clock: Arc::new(AtomicU64::new(1)),
            ended: Notify::new(),
            metrics,
        }))
    }

    /// Takes a connection in. Where there are too many, the one that has been without calls for longest is closed.
    pub fn open(&self) -> Slot {
        let Inner { limit, clock, metrics, .. } = &*self.0;
        let now = clock.load(Relaxed);
        let mut open = self.0.open.lock();
        if open.connections.len() >= *limit {
            metrics.no_room.increment(1);
            open.make_room(*limit);
        }
        let id = open.next;
        open.next += 1;
        let connection = Arc::new(Connection {
            id,
            calls: AtomicUsize::new(0),
            deciding: AtomicUsize::new(0),
            clock: Arc::clone(clock),
            state: AtomicU8::new(if open.is_draining { State::Closing } else { State::Open } as u8),
            task: AtomicWaker::new(),
            opened: now,
            last_call: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            quiet: AtomicU64::new(0),
        });
        open.connections.insert(id, Arc::clone(&connection));
        metrics.open.set(open.connections.len() as f64);
        Slot { connection, connections: self.clone() }
    }

    /// Closes the connection that is missed least: the process is out of descriptors.
    pub fn make_room(&self) {
        self.0.metrics.no_room.increment(1);
        self.0.open.lock().make_room(0);
    }

    /// Looks after the connections for as long as the process lives.
    pub async fn watch(self) {
        let mut tick = interval(TICK);
        loop {
            tick.tick().await;
            self.look();
        }
    }

    /// Closes all of them, and those that come later, and waits for their end.
    pub async fn drain(&self) {
        let close = || {
            let mut open = self.0.open.lock();
            open.is_draining = true;
            open.connections.values().for_each(|connection| connection.turn(State::Closing));
        };
        close();
        loop {
            let ended = self.0.ended.notified();
            if self.0.open.lock().connections.is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// Makes an end of connections that are idle, or cannot be written to, or were to end a while ago.
    fn look(&self) {
        let Inner { idle, open, clock, metrics, .. } = &*self.0;
        let now = clock.fetch_add(1, Relaxed) + 1;
        for connection in open.lock().connections.values() {
            let blocked_since = connection.blocked_since.load(Relaxed);
            if blocked_since != 0 && now - blocked_since > STALLED {
                metrics.stalled.increment(1);
                connection.turn(State::Cut);
            }
            let is_idle =
                now.saturating_sub(connection.opened.max(connection.last_call.load(Relaxed))) > *idle;
            match connection.state() {
                State::Open if is_idle && connection.calls.load(SeqCst) == 0 => {
                    metrics.idle.increment(1);
                    connection.turn(State::Closing);
                }
                State::Closing if connection.deciding.load(SeqCst) > 0 => connection.quiet.store(0, Relaxed),
                State::Closing if connection.quiet.fetch_add(1, Relaxed) >= QUIET => {
                    connection.turn(State::Cut)
                }
                State::Open | State::Closing | State::Cut => {}
            }
        }
    }
}

impl Open {
    /// Closes the one that is missed least: it decides nothing, has never called, or not for longest. Until it is gone,
    /// an eighth more may be there; past that, it ends at once.
    fn make_room(&self, limit: usize) {
        let turned = match self.connections.len() > limit + limit / 8 {
            true => State::Cut,
            false => State::Closing,
        };
        let others = self.connections.values().filter(|connection| connection.state() < turned);
        let missed_least = others.min_by_key(|connection| {
            let is_busy = connection.deciding.load(SeqCst) > 0;
            (is_busy, connection.last_call.load(Relaxed), connection.opened, connection.id)
        });
        missed_least.iter().for_each(|connection| connection.turn(turned));
    }
}

impl Connection {
    /// What is to become of it.
    pub fn state(&self) -> State {
        match self.state.load(SeqCst) {
            0 => State::Open,
            1 => State::Closing,
            _ => State::Cut,
        }
    }

    /// Notes that calls came: it is not idle.
    pub fn called(&self) {
        self.last_call.store(self.clock.load(Relaxed), Relaxed);
    }

    /// Notes whether the peer takes what is written to it.
    pub fn is_blocked(&self, blocked: bool) {
        let now = self.clock.load(Relaxed);
        self.blocked_since.store(if blocked { now } else { 0 }, Relaxed);
    }

    /// Has the task woken when its state changes.
    pub fn register(&self, task: &Waker) {
        self.task.register(task);
    }

    /// Wakes its task.
    pub fn wake(&self) {
        self.task.wake();
    }

    /// Works until its state changes; `None` then.
    pub async fn while_open<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|context| {
            self.register(context.waker());
            if self.state() != State::Open {
                return Poll::Ready(None);
            }
            work.as_mut().poll(context).map(Some)
        })
        .await
    }

    fn turn(&self, state: State) {
        if self.state.fetch_max(state as u8, SeqCst) < state as u8 {
            self.task.wake();
        }
    }
}

impl Slot {
    /// The connection that has this place.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Counts a connection that did not begin.
    pub fn without_preface(&self) {
        self.connections.0.metrics.no_preface.increment(1);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Inner { open, ended, metrics, .. } = &*self.connections.0;
        let mut open = open.lock();
        open.connections.remove(&self.connection.id);
        metrics.open.set(open.connections.len() as f64);
        ended.notify_waiters();
    }
}
