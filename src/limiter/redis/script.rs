//! The two scripts that Redis runs, each as one step that nothing can come between.

use std::time::Duration;

use data_encoding::HEXLOWER;
use fred::{clients::Client, interfaces::LuaInterface};
use futures_util::FutureExt;
use metrics::Histogram;
use sha1::{Digest, Sha1};

use crate::{
    limiter::lease::{Fleet, Order, Reply, Told},
    limits::{PerSpan, Span},
    metrics::Metrics,
    redis::{Redis, RedisError, STORE},
    resilience::Rejected,
};

/// Runs the scripts, in the name of one sidecar.
pub(super) struct Scripts {
    redis: Redis,
    me: String,
    charge: Script,
    beat: Script,
}

/// What a beat tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Beat {
    /// Redis's clock, since 1970.
    pub(super) now: Duration,
    /// Whether Redis did not know this sidecar.
    pub(super) is_new: bool,
    pub(super) fleet: Fleet,
    /// How many sidecars have said so within the last few beats.
    pub(super) awake: u64,
}

struct Script {
    source: &'static str,
    sha1: String,
    duration: Histogram,
}

/// A sidecar is gone that was silent for so long.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// In one place of a cluster, whatever keys are limited.
const SIDECARS: &str = "keystile:sidecars";

impl Scripts {
    pub(super) fn new(redis: Redis, metrics: &Metrics) -> Self {
        let script = |source, operation| {
            let duration = metrics.store_duration(STORE, operation);
            Script { source, sha1: HEXLOWER.encode(&Sha1::digest(source)), duration }
        };
        Self {
            redis,
            me: format!("s{:016x}", rand::random::<u64>()),
            charge: script(include_str!("charge.lua"), "charge"),
            beat: script(include_str!("beat.lua"), "beat"),
        }
    }

    /// Charges, and settles.
    pub(super) async fn charge(&self, order: &Order) -> Result<Reply, RedisError> {
        let Order { key, need, want, part, windows } = order;
        let mut keys = Vec::with_capacity(windows.len());
        let mut arguments = vec![need.to_string(), want.to_string(), part.to_string(), self.me.clone()];
        let lines = Span::ALL.into_iter().zip(windows).filter_map(|(span, line)| Some((span, (*line)?)));
        for (span, line) in lines {
            // The braces keep a key's windows together in a cluster.
            keys.push(format!("keystile:{{{}}}:limit:{}", key.0, span.name()));
            let numbers = [span.seconds(), line.limit, line.number, line.mine, line.back];
            arguments.extend(numbers.map(|number| number.to_string()));
        }
        let numbers = self.run(&self.charge, keys, arguments).await?;
        reply(order, &numbers).ok_or_else(|| RedisError::Refused("an answer that is none".into()))
    }

    /// Says that this sidecar is there.
    pub(super) async fn beat(&self) -> Result<Beat, RedisError> {
        let numbers = self.run_beat(false).await?;
        let [seconds, micros, is_new, count, place, awake] = numbers[..] else {
            return Err(RedisError::Refused("an answer that is none".into()));
        };
        let fleet = Fleet { count: count.max(1), place };
        Ok(Beat { now: clock(seconds, micros), is_new: is_new == 1, fleet, awake })
    }

    /// Says that it is not any more.
    pub(super) async fn leave(&self) -> Result<(), RedisError> {
        self.run_beat(true).await.map(drop)
    }

    async fn run_beat(&self, leaves: bool) -> Result<Vec<u64>, RedisError> {
        let arguments = [self.me.clone(), SILENCE.as_millis().to_string(), u8::from(leaves).to_string()];
        self.run(&self.beat, vec![SIDECARS.to_owned()], arguments.into()).await
    }

    /// Runs a script, and once more if there is no answer: one that is lost is no outage yet. Told twice,
    /// what a sidecar knows counts once.
    async fn run(
        &self,
        script: &Script,
        keys: Vec<String>,
        arguments: Vec<String>,
    ) -> Result<Vec<u64>, RedisError> {
        match self.run_once(script, keys.clone(), arguments.clone()).await {
            Err(error) if error != RedisError::Rejected(Rejected::QueueFull) => {
                self.run_once(script, keys, arguments).await
            }
            answer => answer,
        }
    }

    async fn run_once(
        &self,
        script: &Script,
        keys: Vec<String>,
        arguments: Vec<String>,
    ) -> Result<Vec<u64>, RedisError> {
        let run = |client: Client| async move {
            let known = client.evalsha(&script.sha1, keys.clone(), arguments.clone()).await;
            match known {
                // New to this server: restarted, promoted, or never told.
                Err(error) if error.details().starts_with("NOSCRIPT") => {
                    client.eval(script.source, keys, arguments).await
                }
                known => known,
            }
        };
        // Boxed: the client's futures are deep, and a call is rare beside what it is made for.
        self.redis.call(&script.duration, run).boxed().await
    }
}

fn reply(order: &Order, numbers: &[u64]) -> Option<Reply> {
    let (&[seconds, micros, grant], told) = numbers.split_first_chunk()?;
    let mut told = told.chunks_exact(3);
    let mut windows = PerSpan::default();
    for (window, _) in windows.iter_mut().zip(&order.windows).filter(|(_, line)| line.is_some()) {
        let &[number, used, mine] = told.next()? else { return None };
        *window = Some(Told { number, used, mine });
    }
    Some(Reply { now: clock(seconds, micros), grant, windows })
}

fn clock(seconds: u64, micros: u64) -> Duration {
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}
