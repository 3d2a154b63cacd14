//! Work that many callers want at once is done once, and done even if they all leave.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;

use crate::mutex::lock;

/// Work under way, by what it is about. Cheap to clone.
#[derive(Debug)]
pub struct Flights<K, V> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

/// The work ended without a result, because it panicked or the runtime is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work that this caller waited for was abandoned")]
pub struct Abandoned;

impl<K, V> Clone for Flights<K, V> {
    fn clone(&self) -> Self {
        Self { under_way: Arc::clone(&self.under_way) }
    }
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { under_way: Arc::default() }
    }
}

impl<K, V> Flights<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the work under way for `key`, or starts it.
    ///
    /// The work runs as a task of its own: a caller that is dropped, because its deadline passed
    /// or its connection closed, takes nothing away from the others or from what is remembered.
    ///
    /// # Errors
    /// [`Abandoned`] when the work ended without a result.
    pub async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<V, Abandoned>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut result = self.result_of(key, work);
        let landed = result.wait_for(Option::is_some).await.map_err(|_| Abandoned)?;
        landed.clone().ok_or(Abandoned)
    }

    /// Whoever asks for `key` from now on starts afresh; the work under way goes on for those who wait.
    pub fn forget(&self, key: &K) {
        lock(&self.under_way).remove(key);
    }

    /// The same for every key.
    pub fn forget_all(&self) {
        lock(&self.under_way).clear();
    }

    fn result_of<F>(&self, key: K, work: impl FnOnce() -> F) -> watch::Receiver<Option<V>>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut under_way = lock(&self.under_way);
        if let Some(result) = under_way.get(&key) {
            return result.clone();
        }
        let (sender, result) = watch::channel(None);
        under_way.insert(key, result.clone());
        let landing = Landing { flights: self.clone(), key, result: result.clone() };
        let work = work();
        tokio::spawn(async move {
            let value = work.await;
            // Leaves the map before the result is out: whoever comes later starts afresh.
            drop(landing);
            sender.send_replace(Some(value));
        });
        result
    }
}

/// Takes the work out of the map, however it ended.
struct Landing<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    flights: Flights<K, V>,
    key: K,
    result: watch::Receiver<Option<V>>,
}

impl<K, V> Drop for Landing<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        let mut under_way = lock(&self.flights.under_way);
        // Forgotten meanwhile, its place may be another's.
        if under_way.get(&self.key).is_some_and(|result| result.same_channel(&self.result)) {
            under_way.remove(&self.key);
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
        let flights = Flights::<u8, usize>::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let callers = (0..1000).map(|_| {
            let (flights, runs) = (flights.clone(), Arc::clone(&runs));
            tokio::spawn(async move {
                let work = async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    runs.fetch_add(1, Ordering::SeqCst) + 1
                };
                flights.join(1, || work).await
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            assert_eq!(caller.await.expect("no panic"), Ok(1));
        }
        assert!(lock(&flights.under_way).is_empty());
    }

    #[tokio::test]
    async fn work_is_finished_after_its_only_caller_left() {
        let flights = Flights::<u8, ()>::default();
        let (done, finished) = tokio::sync::oneshot::channel();
        let work = async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            done.send(()).expect("the test listens");
        };
        let caller = flights.join(1, || work);
        assert!(tokio::time::timeout(Duration::from_millis(1), caller).await.is_err());
        finished.await.expect("finished");
    }

    #[tokio::test]
    async fn forgotten_work_ends_for_its_callers_and_later_ones_start_afresh() {
        let flights = Flights::<u8, u8>::default();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let first = tokio::spawn({
            let flights = flights.clone();
            async move { flights.join(1, || async { finished.await.map_or(0, |()| 1) }).await }
        });
        while lock(&flights.under_way).is_empty() {
            tokio::task::yield_now().await;
        }
        flights.forget(&1);
        let (second_done, second) = tokio::sync::oneshot::channel::<()>();
        let second = tokio::spawn({
            let flights = flights.clone();
            async move { flights.join(1, || async { second.await.map_or(0, |()| 2) }).await }
        });
        while lock(&flights.under_way).is_empty() {
            tokio::task::yield_now().await;
        }
        finish.send(()).expect("waits");
        assert_eq!(first.await.expect("no panic"), Ok(1));
        assert_eq!(lock(&flights.under_way).len(), 1, "the second is under way still");
        second_done.send(()).expect("waits");
        assert_eq!(second.await.expect("no panic"), Ok(2));
        assert!(lock(&flights.under_way).is_empty());
    }

    #[tokio::test]
    async fn panic_abandons_its_callers_and_not_the_key() {
        let flights = Flights::<u8, u8>::default();
        assert_eq!(flights.join(1, || async { panic!("as the test wants") }).await, Err(Abandoned));
        assert_eq!(flights.join(1, || async { 2 }).await, Ok(2));
    }
}
