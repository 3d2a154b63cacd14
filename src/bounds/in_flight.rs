//! What calls hold in memory while they wait, bounded in all and for each connection.
//!
//! A call that is answered at once never comes here. One that waits, for the rest of its message, for the database or
//! bcrypt, or for its peer to read the answer, holds what it has received. Where that is too much in all, the oldest
//! call is refused: what ends, ends soon, and so the oldest is the one that does not.

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
}

/// Who holds how much; calls by age.
#[derive(Default)]
struct Ledger {
    next: u64,
    total: usize,
    calls: BTreeMap<u64, Held>,
    by_connection: BTreeSet<(u64, u64)>,
    connections: BTreeMap<u64, usize>,
    /// How often it was looked at since the process is to end.
    draining: Option<u64>,
}

struct Held {
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
    /// What the ledger has of it, so that nothing needs to be asked where nothing changes.
    bytes: AtomicU64,
    task: AtomicWaker,
}

/// What a call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The rest of its message.
    Receiving,
    /// A decision.
    Deciding,
    /// That its peer takes the answer.
    Answered,
    /// Nothing that has to end, such as a watch of health.
    Open,
}

/// Too much is held, and this call is the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

/// A call that does not end at once, in a task of its own.
pub struct Tracked {
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
    call: Arc<Call>,
}

/// Bytes that all calls may hold: two of the largest messages. With the process itself, what connections have not
/// handed over yet, and what the allocator keeps, that stays under 128 MiB.
const TOTAL: usize = 32 * 1024 * 1024;
/// Bytes that the calls of one connection may hold: more than the largest message, and less than all.
const PER_CONNECTION: usize = TOTAL / 4 * 3;
/// What every call holds: its task, the state of its stream, and a small message or answer.
const BASE: usize = 6 * 1024;

/// How often an answer may be found unread before its stream ends: ten seconds.
const UNREAD: u64 = 40;
/// How often calls may be found unfinished once the process is to end: a body that is on its way gets there.
const UNFINISHED: u64 = 3;

tokio::task_local! {
    static CALL: Arc<Call>;
}

/// Notes what the present call holds, and waits for.
///
/// # Errors
/// When it is to make room. It is denied then, and holds nothing more.
pub fn hold(bytes: usize, phase: Phase) -> Result<(), NoRoom> {
    // At its first poll a call is in no task of its own yet; if it has to wait, it is polled in one at once.
    CALL.try_with(|call| call.hold(bytes, phase)).unwrap_or(Ok(()))
}

/// The same where something is still to come; what has come is returned.
pub fn wait<T>(poll: Poll<T>, phase: Phase, bytes: impl FnOnce() -> usize) -> Poll<Result<T, NoRoom>> {
    match poll {
        Poll::Ready(value) => Poll::Ready(Ok(value)),
        Poll::Pending => match CALL.try_with(|call| call.hold(bytes(), phase)) {
            Ok(Err(no_room)) => Poll::Ready(Err(no_room)),
            Ok(Ok(())) | Err(_) => Poll::Pending,
        },
    }
}

/// Notes that the present call is decided, and has only to be sent.
pub fn answered() {
    // It holds its answer instead of its message; that it is refused no longer matters to what is sent.
    let _ = hold(0, Phase::Answered);
}

impl InFlight {
    /// Nothing waits yet.
    pub fn new(metrics: &Metrics) -> Self {
        Self(Arc::new(Inner { ledger: Mutex::default(), bytes: metrics.in_flight_bytes() }))
    }

    /// Notes a call that has to wait.
    pub fn track(
        &self,
        connection: &Arc<Connection>,
        work: Pin<Box<dyn Future<Output = ()> + Send>>,
    ) -> Tracked {
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
        let held = Held { call: Arc::clone(&call), bytes: 0, phase: Phase::Answered, since };
        ledger.calls.insert(id, held);
        ledger.by_connection.insert((connection.id, id));
        ledger.set(&call, BASE, Phase::Answered);
        self.0.bytes.set(ledger.total as f64);
        Tracked { work, call }
    }

    /// Has calls end that need not be waited for once the process is to end.
    pub fn drain(&self) {
        self.0.ledger.lock().draining.get_or_insert(0);
    }

    /// Looks after the calls for as long as the process lives.
    pub async fn watch(self) {
        let mut tick = interval(TICK);
        loop {
            tick.tick().await;
            self.look();
        }
    }

    /// Ends answers that their peer does not read and, while the process stops, calls that are not decided.
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
            // One that has just begun may yet say that it is being decided.
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
    }
}

impl Ledger {
    /// Notes what a call holds, and makes room for it.
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

    /// Has a call make room: it answers so, or ends if it has answered.
    fn refuse(&mut self, id: u64) {
        if let Some(call) = self.remove(id) {
            call.is_refused.store(true, SeqCst);
            call.task.wake();
        }
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Call>> {
        let Held { call, bytes, phase, .. } = self.calls.remove(&id)?;
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
        // The phase in the lowest bits.
        let now = (bytes as u64) << 2 | phase as u64;
        if self.bytes.swap(now, Relaxed) != now {
            let mut ledger = self.in_flight.0.ledger.lock();
            ledger.set(self, BASE + bytes, phase);
            self.in_flight.0.bytes.set(ledger.total as f64);
        }
        if self.is_refused.load(SeqCst) { Err(NoRoom) } else { Ok(()) }
    }
}

impl Future for Tracked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { work, call } = &mut *self;
        call.task.register(context.waker());
        let is_refused = call.is_refused.load(SeqCst);
        let state = CALL.sync_scope(Arc::clone(call), || work.as_mut().poll(context));
        // It has had its chance to say so.
        if is_refused { Poll::Ready(()) } else { state }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.call.in_flight.0.ledger.lock().remove(self.call.id);
    }
}
