//! Judges by the promise alone what an instance does with a key after a committed change.
//!
//! A changed key is denied within a second while the change feed says that it is up, and within 30 s otherwise.

use std::{
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

use tonic::transport::Channel;

use super::{
    client::{ask, channel, status},
    service::{Keystile, Setup},
    until,
};

/// A running `keystile serve`, and a connection to it.
pub struct Instance {
    pub keystile: Keystile,
    channel: Channel,
}

/// What an instance says about its change feed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Feed {
    pub up: bool,
    /// Values of `cause` for which `keystile_change_feed_degraded` is 1.
    pub causes: Vec<String>,
}

/// A key that a committed change denies.
#[derive(Debug, Clone)]
pub struct Change {
    pub credential: String,
    /// When the commit returned.
    pub committed: Instant,
    /// What was changed, for the message of a failure.
    pub what: String,
}

/// How an instance came to deny a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// Time from the commit to the first denial.
    pub after: Duration,
    /// Whether the feed said at some time in between that it is not up.
    pub was_down: bool,
}

/// While the feed says that it is up.
pub const SECOND: Duration = Duration::from_secs(1);
/// While it does not.
pub const BOUND: Duration = Duration::from_secs(30);
/// For the way of the answer, and for what shares the machine.
const SLACK: Duration = Duration::from_millis(700);
/// A key that is allowed for so long while the feed says that it is up is allowed wrongly, however busy the machine is.
const BEYOND_DOUBT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(40);

impl Instance {
    /// Starts one, and waits until it is ready.
    pub async fn start(database_url: &str, settings: &[(&str, &str)]) -> Self {
        Self::of(Setup::with_database(database_url).start(settings).await).await
    }

    pub async fn of(keystile: Keystile) -> Self {
        let channel = channel(keystile.setup.tcp).await;
        Self { keystile, channel }
    }

    /// HTTP status for a request with this key.
    pub async fn status(&self, credential: &str) -> i32 {
        status(&ask(&self.channel, credential).await)
    }

    /// Whether the feed says that it is up.
    pub async fn is_up(&self) -> bool {
        self.keystile.setup.stats().await["change_feed"]["up"] == true
    }

    pub async fn wait_until_up(&self) {
        until("the feed is up", Duration::from_secs(20), async || self.is_up().await).await;
    }

    /// What it says about its feed, in `/stats` and in its metrics.
    pub async fn feed(&self) -> Feed {
        let up = self.is_up().await;
        let metrics = self.keystile.setup.metrics().await;
        let degraded = metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix("keystile_change_feed_degraded{cause=\"")?;
            rest.strip_suffix("\"} 1").map(str::to_owned)
        });
        Feed { up, causes: degraded.collect() }
    }

    /// How many look-ups of records memory has answered.
    pub async fn memory_hits(&self) -> u64 {
        let metrics = self.keystile.setup.metrics().await;
        let is_hit = |line: &&str| {
            line.starts_with("keystile_cache_lookups_total")
                && ["tier=\"memory\"", "kind=\"records\"", "result=\"hit\""]
                    .iter()
                    .all(|part| line.contains(part))
        };
        let hits =
            metrics.lines().filter(is_hit).filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        hits.sum()
    }

    /// The key works, and memory has it.
    pub async fn expect_allowed(&self, credential: &str) {
        until("the key works", Duration::from_secs(10), async || self.status(credential).await == 200).await;
    }

    /// Waits until this instance denies the key.
    ///
    /// # Errors
    /// How the promise was broken.
    pub async fn denies_as_promised(&self, change: &Change) -> Result<Denied, String> {
        let mut was_down = false;
        loop {
            let up_before = self.is_up().await;
            let asked = Instant::now();
            let answer = self.status(&change.credential).await;
            let up = up_before && self.is_up().await;
            was_down |= !up;
            let after = asked.saturating_duration_since(change.committed);
            match answer {
                200 => judge(after, stalls_since(change.committed), up)
                    .map_err(|problem| format!("{}: {problem}", change.what))?,
                // Unavailable: no allow, and no denial of this key either.
                503 => {}
                _ => return Ok(Denied { after, was_down }),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether a key may still be allowed this long after a change.
///
/// # Errors
/// Which limit is passed.
pub fn judge(after: Duration, stalled: Duration, up: bool) -> Result<(), String> {
    let net = after.saturating_sub(stalled);
    if up && (net > SECOND + SLACK || after > BEYOND_DOUBT) {
        return Err(format!(
            "allowed {after:?} after the commit while the feed says that it is up (machine stalled {stalled:?})"
        ));
    }
    if net > BOUND + SLACK {
        return Err(format!("allowed {after:?} after the commit, feed not up (machine stalled {stalled:?})"));
    }
    Ok(())
}

/// For how long this machine did not run what was due, since then.
pub fn stalls_since(since: Instant) -> Duration {
    let stalls = STALLS.lock().expect("no panic");
    stalls.iter().rev().take_while(|(ended, _)| *ended > since).map(|(_, lasted)| *lasted).sum()
}

/// When a thread that sleeps for 20 ms woke up late, and by how much.
static STALLS: LazyLock<Mutex<Vec<(Instant, Duration)>>> = LazyLock::new(|| {
    std::thread::spawn(|| {
        const BEAT: Duration = Duration::from_millis(20);
        loop {
            let before = Instant::now();
            std::thread::sleep(BEAT);
            let late = before.elapsed().saturating_sub(BEAT);
            if late > BEAT {
                STALLS.lock().expect("no panic").push((Instant::now(), late));
            }
        }
    });
    Mutex::default()
});
