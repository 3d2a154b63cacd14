//! Singleflight: concurrent callers of one key share one piece of work. It is finished even if all callers leave.

use std::{collections::HashMap, future::Future, hash::Hash, sync::Arc};

use parking_lot::Mutex;

use tokio::sync::watch;

/// The work in progress, by key. Cheap to clone.
#[derive(Debug)]
pub struct Singleflight<K, V> {
    in_progress: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

/// The work ended without a result, because it panicked or the runtime is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work that this caller waited for was abandoned")]
pub struct Abandoned;

impl<K, V> Clone for Singleflight<K, V> {
    fn clone(&self) -> Self {
        Self { in_progress: Arc::clone(&self.in_progress) }
    }
}

impl<K, V> Default for Singleflight<K, V> {
    fn default() -> Self {
        Self { in_progress: Arc::default() }
    }
}

impl<K, V> Singleflight<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the work in progress for `key`, or starts it.
    ///
    /// The work runs in its own task. A caller that is dropped, because its deadline passed or its connection
    /// closed, cancels nothing for the others.
    ///
    /// # Errors
    /// [`Abandoned`] when the work ended without a result.
    pub async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<V, Abandoned>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut result = self.result_of(key, work);
        let value = result.wait_for(Option::is_some).await.map_err(|_| Abandoned)?;
        value.clone().ok_or(Abandoned)
    }

    /// Later callers of `key` start new work. The work in progress continues for the callers that wait for it.
    pub fn forget(&self, key: &K) {
        self.in_progress.lock().remove(key);
    }

    /// The same for every key.
    pub fn forget_all(&self) {
        self.in_progress.lock().clear();
    }

    fn result_of<F>(&self, key: K, work: impl FnOnce() -> F) -> watch::Receiver<Option<V>>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut in_progress = self.in_progress.lock();
        if let Some(result) = in_progress.get(&key) {
            return result.clone();
        }
        let (sender, result) = watch::channel(None);
        in_progress.insert(key, result.clone());
        let cleanup = Cleanup { singleflight: self.clone(), key, result: result.clone() };
        let work = work();
        tokio::spawn(async move {
            let value = work.await;
            // Leaves the map before the result is published, so that later callers start new work.
            drop(cleanup);
            sender.send_replace(Some(value));
        });
        result
    }
}

/// Removes the work from the map when it ends, also by a panic.
struct Cleanup<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    singleflight: Singleflight<K, V>,
    key: K,
    result: watch::Receiver<Option<V>>,
}

impl<K, V> Drop for Cleanup<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        let mut in_progress = self.singleflight.in_progress.lock();
        // After `forget`, the entry may belong to newer work.
        if in_progress.get(&self.key).is_some_and(|result| result.same_channel(&self.result)) {
            in_progress.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    #[tokio::test]
    async fn a_thousand_callers_share_one_piece_of_work() {
        let singleflight = Singleflight::<u8, usize>::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let callers = (0..1000).map(|_| {
            let (singleflight, runs) = (singleflight.clone(), Arc::clone(&runs));
            tokio::spawn(async move {
                let work = async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    runs.fetch_add(1, Ordering::SeqCst) + 1
                };
                singleflight.join(1, || work).await
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            assert_eq!(caller.await.expect("no panic"), Ok(1));
        }
        assert!(singleflight.in_progress.lock().is_empty());
    }

    #[tokio::test]
    async fn work_is_finished_after_its_only_caller_left() {
        let singleflight = Singleflight::<u8, ()>::default();
        let (done, finished) = tokio::sync::oneshot::channel();
        let work = async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            done.send(()).expect("the test listens");
        };
        let caller = singleflight.join(1, || work);
        assert!(tokio::time::timeout(Duration::from_millis(1), caller).await.is_err());
        finished.await.expect("finished");
    }

    #[tokio::test]
    async fn forgotten_work_ends_for_its_callers_and_later_ones_start_afresh() {
        let singleflight = Singleflight::<u8, u8>::default();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let first = tokio::spawn({
            let singleflight = singleflight.clone();
            async move { singleflight.join(1, || async { finished.await.map_or(0, |()| 1) }).await }
        });
        while singleflight.in_progress.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        singleflight.forget(&1);
        let (second_done, second) = tokio::sync::oneshot::channel::<()>();
        let second = tokio::spawn({
            let singleflight = singleflight.clone();
            async move { singleflight.join(1, || async { second.await.map_or(0, |()| 2) }).await }
        });
        while singleflight.in_progress.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        finish.send(()).expect("waits");
        assert_eq!(first.await.expect("no panic"), Ok(1));
        assert_eq!(singleflight.in_progress.lock().len(), 1, "the second is under way still");
        second_done.send(()).expect("waits");
        assert_eq!(second.await.expect("no panic"), Ok(2));
        assert!(singleflight.in_progress.lock().is_empty());
    }

    #[tokio::test]
    async fn panic_abandons_its_callers_and_not_the_key() {
        let singleflight = Singleflight::<u8, u8>::default();
        assert_eq!(singleflight.join(1, || async { panic!("as the test wants") }).await, Err(Abandoned));
        assert_eq!(singleflight.join(1, || async { 2 }).await, Ok(2));
    }
}
