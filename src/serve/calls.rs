//! The calls of one connection. Calls that do not wait are answered in the connection's own task: all calls that were
//! read together are answered before anything is written. The other calls continue in tasks of their own.
//!
//! A check that is answered from memory takes a few microseconds. A task of its own, as is usual, would cost the same
//! again: the task is created, queued and perhaps moved to another core, and each answer wakes the connection's task.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use parking_lot::Mutex;

use hyper::rt::Executor;

use crate::bounds::{Connection, InFlight, Slot, State};

/// Calls that were read from a connection and have not started.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<Mutex<Vec<Call>>>);

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Wakes the connection's task, except while its calls are being answered: after that the task polls the connection
/// again without a wake-up.
struct Bell {
    connection: Arc<Connection>,
    is_muted: AtomicBool,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        self.0.lock().push(Box::pin(call));
    }
}

impl Calls {
    /// Drives a connection that executes its calls here, until it ends or is cut. `close` makes the connection accept
    /// no more calls.
    pub(super) async fn drive<C: Future>(
        self,
        connection: C,
        close: impl Fn(Pin<&mut C>),
        slot: Slot,
        in_flight: InFlight,
    ) -> Option<C::Output> {
        let mut connection = std::pin::pin!(connection);
        let bell =
            Arc::new(Bell { connection: Arc::clone(slot.connection()), is_muted: AtomicBool::new(false) });
        let waker = Waker::from(Arc::clone(&bell));
        let mut is_closing = false;
        poll_fn(|context| {
            bell.connection.register(context.waker());
            match bell.connection.state() {
                State::Open => {}
                State::Closing if is_closing => {}
                State::Closing => {
                    is_closing = true;
                    close(connection.as_mut());
                }
                State::Cut => return Poll::Ready(None),
            }
            loop {
                let state = connection.as_mut().poll(&mut Context::from_waker(&waker));
                let calls = std::mem::take(&mut *self.0.lock());
                if calls.is_empty() {
                    return state.map(Some);
                }
                bell.connection.called();
                bell.is_muted.store(true, Ordering::SeqCst);
                calls.into_iter().for_each(|call| begin(call, &bell.connection, &in_flight));
                bell.is_muted.store(false, Ordering::SeqCst);
                if state.is_ready() {
                    return state.map(Some);
                }
            }
        })
        .await
    }
}

/// Answers a call at once, or spawns a task for it. A panic ends only that call.
fn begin(mut call: Call, connection: &Arc<Connection>, in_flight: &InFlight) {
    // No waker is stored: the next poll registers its own.
    let mut context = Context::from_waker(Waker::noop());
    if let Ok(Poll::Pending) = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut context))) {
        tokio::spawn(in_flight.track(connection, call));
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_muted.load(Ordering::SeqCst) {
            self.connection.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Duration};

    use futures_util::task::AtomicWaker;
    use tokio::sync::oneshot;

    use super::*;
    use crate::{bounds::Connections, metrics::Metrics};

    /// A connection that runs the script at each poll, and then waits or ends.
    fn scripted(
        calls: &Calls,
        mut script: impl FnMut(usize, &Calls, &Waker) -> Poll<()>,
    ) -> impl Future<Output = Option<()>> {
        let (driven, calls, mut looked) = (calls.clone(), calls.clone(), 0);
        let metrics = Metrics::new().expect("builds");
        let slot = Connections::new("grpc", 1, Duration::MAX, &metrics).open(None);
        let connection = poll_fn(move |context| {
            looked += 1;
            script(looked, &calls, context.waker())
        });
        driven.drive(connection, |_| (), slot, InFlight::new(&metrics))
    }

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn calls_are_answered_together_and_wake_nobody() {
        let (calls, answered, looks) = (Calls::default(), Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
        let connection = scripted(&calls, |looked, calls, waker| {
            looks.store(looked, Ordering::SeqCst);
            assert_eq!(answered.load(Ordering::SeqCst), if looked == 1 { 0 } else { 3 });
            for _ in 0..if looked == 1 { 3 } else { 0 } {
                let (answered, waker) = (Arc::clone(&answered), waker.clone());
                calls.execute(async move {
                    // Each answer does this. The connection is polled again in any case.
                    waker.wake();
                    answered.fetch_add(1, Ordering::SeqCst);
                });
            }
            Poll::Pending
        });
        let woken = Arc::new(WakeCount::default());
        let waker = Waker::from(Arc::clone(&woken));
        assert!(std::pin::pin!(connection).poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!((looks.into_inner(), woken.0.load(Ordering::SeqCst)), (2, 0));
    }

    #[tokio::test]
    async fn call_that_waits_goes_on_without_holding_up_the_others() {
        let (calls, (allow, allowed), (done, is_done)) =
            (Calls::default(), oneshot::channel(), oneshot::channel());
        let (mut slow, mut allow) = (Some((allowed, done)), Some(allow));
        let connection = scripted(&calls, |looked, calls, _| match looked {
            1 => {
                let (allowed, done): (oneshot::Receiver<()>, oneshot::Sender<()>) =
                    slow.take().expect("once");
                calls.execute(async move {
                    allowed.await.expect("allowed");
                    done.send(()).expect("awaited");
                });
                Poll::Pending
            }
            _ => Poll::Ready(()),
        });
        connection.await;
        allow.take().expect("once").send(()).expect("it waits");
        is_done.await.expect("it went on after its connection");
    }

    #[tokio::test]
    async fn call_that_panics_ends_alone() {
        let (calls, (done, is_done)) = (Calls::default(), oneshot::channel());
        let mut done = Some(done);
        scripted(&calls, |looked, calls, _| match done.take() {
            Some(done) => {
                calls.execute(async { panic!("as the test wants") });
                calls.execute(async move { done.send(()).expect("awaited") });
                Poll::Pending
            }
            None => {
                assert_eq!(looked, 2);
                Poll::Ready(())
            }
        })
        .await;
        is_done.await.expect("the other was answered");
    }

    #[test]
    fn connection_is_woken_from_outside() {
        let (calls, kept) = (Calls::default(), AtomicWaker::new());
        let connection = scripted(&calls, |looked, calls, waker| {
            kept.register(waker);
            if looked == 1 {
                calls.execute(async {});
            }
            Poll::Pending
        });
        let woken = Arc::new(WakeCount::default());
        let waker = Waker::from(Arc::clone(&woken));
        assert!(std::pin::pin!(connection).poll(&mut Context::from_waker(&waker)).is_pending());
        kept.wake();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    }
}
