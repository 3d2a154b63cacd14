//! Limits the memory that waiting calls hold, in total and for each connection.
//!
//! A call that is answered at once is not tracked here. Other calls wait for one of these:
//! - the rest of their message,
//! - the database or bcrypt,
//! - their peer, which must read the answer.
//!
//! A waiting call holds the bytes that it has received. Above a limit, the oldest call is refused: normal calls end
//! soon, so the oldest call is the one that does not end.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
};

use parking_lot::Mutex;

use futures_util::task::AtomicWaker;
use metrics::Gauge;
use tokio::time::interval;

use super::{Connection, TICK};
use crate::metrics::Metrics;

/// The calls that wait. Cheap to clone.
#[derive(Clone)]
pub struct InFlight(Arc<Inner>);

struct Inner {
    ledger: Mutex<Ledger>,
    bytes: Gauge,
    checks: Gauge,
}

/// The bytes that each call and each connection holds. Calls are ordered by age.
#[derive(Default)]
struct Ledger {
    next: u64,
    total: usize,
    calls: BTreeMap<u64, Holding>,
    by_connection: BTreeSet<(u64, u64)>,
    connections: BTreeMap<u64, usize>,
    /// Number of inspections since the process began to stop.
    draining: Option<u64>,
}

struct Holding {
    call: Arc<Call>,
    bytes: usize,
    phase: Phase,
    since: u64,
}

struct Call {
    id: u64,
    connection: Arc<Connection>,
    in_flight: InFlight,
    is_refused: AtomicBool,
    /// The bytes and the phase in the ledger. If they do not change, the ledger is not locked.
    bytes: AtomicU64,
    task: AtomicWaker,
}

/// The reason why a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It waits for the rest of its message.
    Receiving,
    /// It waits for a decision.
    Deciding,
    /// It waits until its peer reads the answer.
    Answered,
    /// It need not end, such as a health watch.
    Open,
}

/// The memory limit is reached, and this call is the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

/// A call that is not answered at once. It runs in its own task.
pub struct CallTask {
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
    call: Arc<Call>,
}

/// Maximum bytes for all calls: two of the largest messages. The total memory then stays under 128 MiB, including the
/// process itself, the data that connections have not handed over yet, and the memory that the allocator keeps.
const TOTAL: usize = 32 * 1024 * 1024;
/// Maximum bytes for the calls of one connection: more than the largest message, and less than [`TOTAL`].
const PER_CONNECTION: usize = TOTAL / 4 * 3;
/// Bytes that every call holds: its task, the state of its stream, and a small message or answer.
const BASE: usize = 6 * 1024;

/// Number of ticks that an answer may stay unread before its stream ends: ten seconds.
const UNREAD: u64 = 40;
/// Number of inspections that unfinished calls survive once the process stops, so that a body in transit can arrive.
const UNFINISHED: u64 = 3;

tokio::task_local! {
    static CALL: Arc<Call>;
}

/// Records the bytes that the current call holds, and the reason why it waits.
///
/// # Errors
/// When the call must make room. It is then denied, and holds nothing more.
pub fn hold(bytes: usize, phase: Phase) -> Result<(), NoRoom> {
    // At its first poll a call has no task of its own. If it must wait, it is polled again in one immediately.
    CALL.try_with(|call| call.hold(bytes, phase)).unwrap_or(Ok(()))
}

/// Same as [`hold`] for a pending poll. A ready value is returned.
pub fn wait<T>(poll: Poll<T>, phase: Phase, bytes: impl FnOnce() -> usize) -> Poll<Result<T, NoRoom>> {
    match poll {
        Poll::Ready(value) => Poll::Ready(Ok(value)),
        Poll::Pending => match CALL.try_with(|call| call.hold(bytes(), phase)) {
            Ok(Err(no_room)) => Poll::Ready(Err(no_room)),
            Ok(Ok(())) | Err(_) => Poll::Pending,
        },
    }
}

/// Records that the current call is decided. Only its answer must still be sent.
pub fn answered() {
    // The call now holds its answer instead of its message. A refusal no longer changes the answer.
    let _ = hold(0, Phase::Answered);
}

impl InFlight {
    /// Creates an empty ledger.
    pub fn new(metrics: &Metrics) -> Self {
        Self(Arc::new(Inner {
            ledger: Mutex::default(),
            bytes: metrics.in_flight_bytes(),
            checks: metrics.checks_in_flight(),
        }))
    }

    /// Tracks a call that must wait.
    pub fn track(
        &self,
        connection: &Arc<Connection>,
        work: Pin<Box<dyn Future<Output = ()> + Send>>,
    ) -> CallTask {
        let mut ledger = self.0.ledger.lock();
        let id = ledger.next;
        ledger.next += 1;
        let call = Arc::new(Call {
            id,
            connection: Arc::clone(connection),
            in_flight: self.clone(),
            is_refused: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            task: AtomicWaker::new(),
        });
        connection.calls.fetch_add(1, SeqCst);
        let since = connection.clock.load(Relaxed);
        let held = Holding { call: Arc::clone(&call), bytes: 0, phase: Phase::Answered, since };
        ledger.calls.insert(id, held);
        ledger.by_connection.insert((connection.id, id));
        ledger.set(&call, BASE, Phase::Answered);
        self.0.bytes.set(ledger.total as f64);
        CallTask { work, call }
    }

    /// Starts to end the calls for which a stopping process need not wait.
    pub fn drain(&self) {
        self.0.ledger.lock().draining.get_or_insert(0);
    }

    /// Inspects the calls once per [`TICK`]. It never returns.
    pub async fn watch(self) {
        let mut tick = interval(TICK);
        loop {
            tick.tick().await;
            self.look();
        }
    }

    /// Ends calls whose peer does not read the answer. While the process stops, also ends all calls that are not being
    /// decided.
    fn look(&self) {
        let mut ledger = self.0.ledger.lock();
        let is_ending = match &mut ledger.draining {
            Some(looks) => {
                *looks += 1;
                *looks > UNFINISHED
            }
            None => false,
        };
        let over = ledger.calls.values().filter(|held| {
            let age = held.call.connection.clock.load(Relaxed).saturating_sub(held.since);
            // A call that has just begun may still change to `Deciding`.
            let ends = is_ending && age > 1;
            match held.phase {
                Phase::Deciding => false,
                Phase::Answered => ends || age > UNREAD,
                Phase::Receiving | Phase::Open => ends,
            }
        });
        let over: Vec<_> = over.map(|held| held.call.id).collect();
        over.into_iter().for_each(|id| ledger.refuse(id));
        self.0.bytes.set(ledger.total as f64);
        let waits = |held: &&Holding| matches!(held.phase, Phase::Receiving | Phase::Deciding);
        self.0.checks.set(ledger.calls.values().filter(waits).count() as f64);
    }
}

impl Ledger {
    /// Records the bytes and the phase of a call. Above a limit, refuses the oldest calls.
    fn set(&mut self, call: &Call, bytes: usize, phase: Phase) {
        let Some(held) = self.calls.get_mut(&call.id) else { return };
        if held.phase != phase {
            let decides = |phase| usize::from(phase == Phase::Deciding);
            call.connection.deciding.fetch_add(decides(phase), SeqCst);
            call.connection.deciding.fetch_sub(decides(held.phase), SeqCst);
            held.since = call.connection.clock.load(Relaxed);
            held.phase = phase;
        }
        let before = std::mem::replace(&mut held.bytes, bytes);
        self.total = self.total + bytes - before;
        let of_connection = self.connections.entry(call.connection.id).or_default();
        *of_connection = *of_connection + bytes - before;
        while self.connections.get(&call.connection.id).is_some_and(|held| *held > PER_CONNECTION) {
            let of_connection = (call.connection.id, 0)..=(call.connection.id, u64::MAX);
            let Some((_, oldest)) = self.by_connection.range(of_connection).next().copied() else { break };
            self.refuse(oldest);
        }
        while self.total > TOTAL {
            let Some(oldest) = self.calls.keys().next().copied() else { break };
            self.refuse(oldest);
        }
    }

    /// Makes a call give up its room. It answers with a refusal, or ends if it has already answered.
    fn refuse(&mut self, id: u64) {
        if let Some(call) = self.remove(id) {
            call.is_refused.store(true, SeqCst);
            call.task.wake();
        }
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Call>> {
        let Holding { call, bytes, phase, .. } = self.calls.remove(&id)?;
        let connection = &call.connection;
        self.by_connection.remove(&(connection.id, id));
        connection.calls.fetch_sub(1, SeqCst);
        connection.deciding.fetch_sub(usize::from(phase == Phase::Deciding), SeqCst);
        self.total -= bytes;
        if let Some(of_connection) = self.connections.get_mut(&connection.id) {
            *of_connection -= bytes;
            if *of_connection == 0 {
                self.connections.remove(&connection.id);
            }
        }
        Some(call)
    }
}

impl Call {
    fn hold(&self, bytes: usize, phase: Phase) -> Result<(), NoRoom> {
        // The two lowest bits contain the phase.
        let now = (bytes as u64) << 2 | phase as u64;
        if self.bytes.swap(now, Relaxed) != now {
            let mut ledger = self.in_flight.0.ledger.lock();
            ledger.set(self, BASE + bytes, phase);
            self.in_flight.0.bytes.set(ledger.total as f64);
        }
        if self.is_refused.load(SeqCst) { Err(NoRoom) } else { Ok(()) }
    }
}

impl Future for CallTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { work, call } = &mut *self;
        call.task.register(context.waker());
        let is_refused = call.is_refused.load(SeqCst);
        let state = CALL.sync_scope(Arc::clone(call), || work.as_mut().poll(context));
        // A refused call is polled once more, so that it can answer. Then it ends.
        if is_refused { Poll::Ready(()) } else { state }
    }
}

impl Drop for CallTask {
    fn drop(&mut self) {
        self.call.in_flight.0.ledger.lock().remove(self.call.id);
    }
}
