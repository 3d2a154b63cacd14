//! Runs the two Lua scripts in Redis. Each script is one atomic step.

use data_encoding::HEXLOWER;
use fred::{clients::Client, interfaces::LuaInterface};
use futures_util::FutureExt;
use metrics::Histogram;
use sha1::{Digest, Sha1};

use super::{
    membership::SILENCE,
    protocol::{HeartbeatReply, LeaseReply, LeaseRequest},
};
use crate::{
    metrics::Metrics,
    redis::{Redis, RedisError, STORE},
    resilience::Rejected,
};

/// Runs the scripts in the name of one instance.
pub(super) struct Scripts {
    redis: Redis,
    /// This instance's random name.
    instance: String,
    charge: Script,
    heartbeat: Script,
}

struct Script {
    source: &'static str,
    sha1: String,
    duration: Histogram,
}

/// The key with the instances: one for all, on one server of a cluster. Its name is part of the protocol between
/// versions of Keystile.
const INSTANCES: &str = "keystile:sidecars";

impl Scripts {
    pub(super) fn new(redis: Redis, metrics: &Metrics) -> Self {
        let script = |source, operation| {
            let duration = metrics.store_duration(STORE, operation);
            Script { source, sha1: HEXLOWER.encode(&Sha1::digest(source)), duration }
        };
        Self {
            redis,
            instance: format!("s{:016x}", rand::random::<u64>()),
            charge: script(include_str!("charge.lua"), "charge"),
            heartbeat: script(include_str!("heartbeat.lua"), "beat"),
        }
    }

    /// Charges a key and reconciles its windows.
    pub(super) async fn charge(&self, request: &LeaseRequest) -> Result<LeaseReply, RedisError> {
        let (keys, arguments) = request.arguments(&self.instance);
        let numbers = self.run(&self.charge, keys, arguments).await?;
        LeaseReply::parse(request, &numbers).ok_or_else(unexpected_reply)
    }

    /// Reports that this instance runs.
    pub(super) async fn heartbeat(&self) -> Result<HeartbeatReply, RedisError> {
        let numbers = self.run_heartbeat(false).await?;
        HeartbeatReply::parse(&numbers).ok_or_else(unexpected_reply)
    }

    /// Reports that this instance stops.
    pub(super) async fn leave(&self) -> Result<(), RedisError> {
        self.run_heartbeat(true).await.map(drop)
    }

    async fn run_heartbeat(&self, leaves: bool) -> Result<Vec<u64>, RedisError> {
        let silence = SILENCE.as_millis().to_string();
        let arguments = [self.instance.clone(), silence, u8::from(leaves).to_string()];
        self.run(&self.heartbeat, vec![INSTANCES.to_owned()], arguments.into()).await
    }

    /// Runs a script, and once more if there is no answer: one lost answer is no outage. A report that Redis gets
    /// twice counts once.
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
            let answer = client.evalsha(&script.sha1, keys.clone(), arguments.clone()).await;
            match answer {
                // This server does not have the script: it was restarted or promoted, or is new.
                Err(error) if error.details().starts_with("NOSCRIPT") => {
                    client.eval(script.source, keys, arguments).await
                }
                answer => answer,
            }
        };
        // Boxed: the client's futures are large, and a call to Redis is rare compared with checks.
        self.redis.call(&script.duration, run).boxed().await
    }
}

fn unexpected_reply() -> RedisError {
    RedisError::Refused("the script's answer has an unexpected form".into())
}
