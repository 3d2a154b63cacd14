//! The connections of a listener: their maximum number, and the choice of the connection that makes room for a new one.

use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map::Entry},
    future::{Future, poll_fn},
    net::{IpAddr, Ipv6Addr},
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

/// The connections of one listener, or of several listeners together. Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    limit: usize,
    idle: Ticks,
    open: Mutex<Open>,
    clock: Arc<AtomicU64>,
    /// Notified when a connection ends.
    ended: Notify,
    metrics: ConnectionMetrics,
}

#[derive(Default)]
struct Open {
    next: u64,
    is_draining: bool,
    connections: HashMap<u64, Arc<Connection>>,
    /// The number of open connections of each network.
    networks: HashMap<IpAddr, usize>,
}

/// The state of one connection. Its own task and the tasks that watch all connections share it.
pub struct Connection {
    /// Unique number of the connection.
    pub(super) id: u64,
    /// Number of calls in progress. Calls that are answered at once are not counted.
    pub(super) calls: AtomicUsize,
    /// Number of these calls that are being decided.
    pub(super) deciding: AtomicUsize,
    pub(super) clock: Arc<AtomicU64>,
    state: AtomicU8,
    task: AtomicWaker,
    opened: Ticks,
    /// The time of the last call. 0 if there was none.
    last_call: AtomicU64,
    blocked_since: AtomicU64,
    quiet: AtomicU64,
    network: Option<IpAddr>,
}

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It accepts calls.
    Open = 0,
    /// It accepts no more calls, and ends after the last one.
    Closing = 1,
    /// It ends immediately.
    Cut = 2,
}

/// The slot that a connection occupies until it ends.
pub struct Slot {
    connection: Arc<Connection>,
    connections: Connections,
}

/// A call that is being decided.
pub struct RunningCall(Arc<Connection>);

/// Time in units of [`TICK`].
type Ticks = u64;

/// Maximum time without progress of a write to a connection.
const STALLED: Ticks = 40;

/// Maximum time until a closing connection ends, while none of its calls is being decided.
const QUIET: Ticks = 5;

impl Connections {
    /// A maximum of `limit` connections. Connections without a call for `idle` are closed. `listener` is the label in
    /// metrics.
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

    /// Adds a connection of a peer at this address, if it has one. At the limit, closes the connection that has had no
    /// call for the longest time. Among those that never had one, the network with the most connections makes room.
    pub fn open(&self, address: Option<IpAddr>) -> Slot {
        let Inner { limit, clock, metrics, .. } = &*self.0;
        let now = clock.load(Relaxed);
        let mut open = self.0.open.lock();
        if open.connections.len() >= *limit {
            metrics.no_room.increment(1);
            open.make_room(*limit);
        }
        let id = open.next;
        open.next += 1;
        let network = address.map(network);
        if let Some(network) = network {
            *open.networks.entry(network).or_default() += 1;
        }
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
            network,
        });
        open.connections.insert(id, Arc::clone(&connection));
        metrics.open.set(open.connections.len() as f64);
        Slot { connection, connections: self.clone() }
    }

    /// Closes the least important connection, because the process has no free descriptor.
    pub fn make_room(&self) {
        self.0.metrics.no_room.increment(1);
        self.0.open.lock().make_room(0);
    }

    /// Inspects the connections once per [`TICK`]. It never returns.
    pub async fn watch(self) {
        let mut tick = interval(TICK);
        loop {
            tick.tick().await;
            self.look();
        }
    }

    /// Closes all present and later connections. Waits until none is open.
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

    /// Closes idle connections. Cuts connections that cannot be written to, or that take too long to close.
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
    /// Closes the least important connection. Connections that decide no call come before those that decide one. Within
    /// each group, connections that never called come first, of the network with the most connections, so that one
    /// network cannot keep others from beginning; then those with the oldest last call. Until closed
    /// connections have ended, the number may exceed the limit by an eighth. Above that, the connection is cut
    /// immediately.
    fn make_room(&self, limit: usize) {
        let turned = if self.connections.len() > limit + limit / 8 { State::Cut } else { State::Closing };
        let others = self.connections.values().filter(|connection| connection.state() < turned);
        let missed_least = others.min_by_key(|connection| {
            let is_busy = connection.deciding.load(SeqCst) > 0;
            let last_call = connection.last_call.load(Relaxed);
            let network = connection.network.filter(|_| last_call == 0);
            let neighbours = network.and_then(|network| self.networks.get(&network)).copied().unwrap_or(0);
            (is_busy, last_call, Reverse(neighbours), connection.opened, connection.id)
        });
        missed_least.iter().for_each(|connection| connection.turn(turned));
    }
}

impl Connection {
    /// The current state.
    pub fn state(&self) -> State {
        match self.state.load(SeqCst) {
            0 => State::Open,
            1 => State::Closing,
            _ => State::Cut,
        }
    }

    /// Records a call, so that the connection is not idle.
    pub fn called(&self) {
        self.last_call.store(self.clock.load(Relaxed), Relaxed);
    }

    /// Whether it has had a call.
    pub fn has_called(&self) -> bool {
        self.last_call.load(Relaxed) != 0
    }

    /// Records whether writes are blocked because the peer does not read.
    pub fn is_blocked(&self, blocked: bool) {
        let now = self.clock.load(Relaxed);
        self.blocked_since.store(if blocked { now } else { 0 }, Relaxed);
    }

    /// Accepts no more calls. Ends after the last one.
    pub fn close(&self) {
        self.turn(State::Closing);
    }

    /// Ends immediately.
    pub fn cut(&self) {
        self.turn(State::Cut);
    }

    /// Counts a call that is being decided, until the guard is dropped.
    pub fn begin_call(self: &Arc<Self>) -> RunningCall {
        self.called();
        self.calls.fetch_add(1, SeqCst);
        self.deciding.fetch_add(1, SeqCst);
        RunningCall(Arc::clone(self))
    }

    /// Registers the task to wake when the state changes.
    pub fn register(&self, task: &Waker) {
        self.task.register(task);
    }

    /// Wakes the registered task.
    pub fn wake(&self) {
        self.task.wake();
    }

    /// Runs `work` while the connection is open. Returns `None` if the state changes first.
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
    /// The connection in this slot.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Counts a connection that did not send its preface.
    pub fn without_preface(&self) {
        self.connections.0.metrics.no_preface.increment(1);
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.0.called();
        self.0.calls.fetch_sub(1, SeqCst);
        self.0.deciding.fetch_sub(1, SeqCst);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Inner { open, ended, metrics, .. } = &*self.connections.0;
        let mut open = open.lock();
        open.connections.remove(&self.connection.id);
        if let Some(network) = self.connection.network
            && let Entry::Occupied(mut count) = open.networks.entry(network)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        metrics.open.set(open.connections.len() as f64);
        ended.notify_waiters();
    }
}

/// The network that a peer has to itself: its address, or in IPv6 the /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_without_calls_ends_after_its_time() {
        let metrics = Metrics::new().expect("builds");
        let connections = Connections::new("grpc", 16, 8 * TICK, &metrics);
        let (idle, busy) = (connections.open(None), connections.open(None));
        let call = busy.connection().begin_call();
        for _ in 0..8 {
            connections.look();
            assert_eq!(idle.connection().state(), State::Open);
        }
        connections.look();
        assert_eq!(idle.connection().state(), State::Closing);
        assert_eq!(busy.connection().state(), State::Open, "its call has not ended");
        // It does not say that it has understood.
        (0..=QUIET).for_each(|_| connections.look());
        assert_eq!(idle.connection().state(), State::Cut);
        drop(call);
    }

    #[test]
    fn network_with_the_most_connections_makes_room_first() {
        let metrics = Metrics::new().expect("builds");
        let connections = Connections::new("grpc", 16, Duration::MAX, &metrics);
        let open = |address: &str| connections.open(Some(address.parse().expect("an address")));
        let good = open("2001:db8::1");
        let called = open("192.0.2.9");
        called.connection().called();
        let flood: Vec<_> = (0..40).map(|_| open("192.0.2.1")).collect();
        let is_open = |slot: &Slot| slot.connection().state() == State::Open;
        assert!(is_open(&good) && is_open(&called));
        assert!(flood.iter().filter(|slot| is_open(slot)).count() < 20);
        drop(flood);
        // The lower half of an address in IPv6 is the peer's choice.
        let flood: Vec<_> = (0..40).map(|host| open(&format!("2001:db8:0:1::{host:x}"))).collect();
        assert!(is_open(&good) && is_open(&called) && !is_open(&flood[0]));
        drop(flood);
        assert_eq!(connections.0.open.lock().networks.len(), 2, "those of ended connections are forgotten");
    }
}
