//! What happens to servers, wires and instances.

use std::time::{Duration, Instant};

use rand::{RngExt, rngs::StdRng};
use rustix::process::{Signal, kill_process};

use super::world::{INSTANCES, Instance, World};
use crate::harness::{cluster::Restored, proxy::Wire, service::Setup};

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: what the others are compared with.
    None,
    DatabaseKilled,
    DatabasePaused,
    DatabaseCut,
    DatabaseHangs,
    DatabaseSlow,
    DatabaseLocked,
    /// The primary dies, and the standby, which has everything, is promoted.
    Failover,
    /// The same with a standby that lags: what was committed last is lost.
    FailoverWithLoss,
    RestoredSnapshot,
    RestoredPointInTime,
    Migration,
    RedisKilled,
    RedisPaused,
    RedisCut,
    RedisSlow,
    RedisFlushed,
    RedisPromoted,
    InstanceKilled,
    InstanceStopped,
    InstancePaused,
    AllKilled,
    SecretRotated,
}

pub const ALL: [Fault; 22] = [
    Fault::DatabaseKilled,
    Fault::DatabasePaused,
    Fault::DatabaseCut,
    Fault::DatabaseHangs,
    Fault::DatabaseSlow,
    Fault::DatabaseLocked,
    Fault::Failover,
    Fault::FailoverWithLoss,
    Fault::RestoredSnapshot,
    Fault::RestoredPointInTime,
    Fault::Migration,
    Fault::RedisKilled,
    Fault::RedisPaused,
    Fault::RedisCut,
    Fault::RedisSlow,
    Fault::RedisFlushed,
    Fault::RedisPromoted,
    Fault::InstanceKilled,
    Fault::InstanceStopped,
    Fault::InstancePaused,
    Fault::AllKilled,
    Fault::SecretRotated,
];

/// How long most faults last.
const LASTS: Duration = Duration::from_secs(3);

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::DatabaseKilled => "Postgres crashes, and starts again",
            Self::DatabasePaused => "Postgres stands still",
            Self::DatabaseCut => "connections to Postgres break",
            Self::DatabaseHangs => "nothing arrives from Postgres",
            Self::DatabaseSlow => "Postgres answers 200 ms later",
            Self::DatabaseLocked => "a transaction locks api_keys",
            Self::Failover => "the primary dies, its standby is promoted",
            Self::FailoverWithLoss => "the primary dies, the last commits are lost",
            Self::RestoredSnapshot => "Postgres is restored from a snapshot",
            Self::RestoredPointInTime => "Postgres is restored to a point in time",
            Self::Migration => "the tables are migrated",
            Self::RedisKilled => "Redis is killed, and starts empty",
            Self::RedisPaused => "Redis stands still",
            Self::RedisCut => "connections to Redis break",
            Self::RedisSlow => "Redis answers 30 ms later",
            Self::RedisFlushed => "Redis is flushed",
            Self::RedisPromoted => "Redis dies, its replica is promoted",
            Self::InstanceKilled => "an instance is killed, and starts again",
            Self::InstanceStopped => "an instance is stopped, and starts again",
            Self::InstancePaused => "an instance stands still",
            Self::AllKilled => "all instances are killed at once",
            Self::SecretRotated => "the cache secret is rotated",
        }
    }

    /// Whether instances go on without it, so that no request of a key in use may fail.
    pub fn spares_known_keys(self) -> bool {
        !matches!(
            self,
            Self::RestoredSnapshot
                | Self::RestoredPointInTime
                | Self::Failover
                | Self::FailoverWithLoss
                | Self::InstanceKilled
                | Self::InstanceStopped
                | Self::InstancePaused
                | Self::AllKilled
                | Self::SecretRotated
        )
    }

    /// Whether instances lose what they had in memory.
    pub fn empties_memory(self) -> bool {
        matches!(self, Self::InstanceKilled | Self::InstanceStopped | Self::AllKilled | Self::SecretRotated)
    }

    /// Whether a limit may be passed in the minutes that it touches.
    pub fn loosens_limits(self) -> bool {
        matches!(
            self,
            Self::RedisKilled
                | Self::RedisPaused
                | Self::RedisCut
                | Self::RedisSlow
                | Self::RedisFlushed
                | Self::RedisPromoted
                | Self::InstanceKilled
                | Self::InstanceStopped
                | Self::InstancePaused
                | Self::AllKilled
                | Self::SecretRotated
        )
    }

    /// Lets it happen, and end.
    pub async fn happen(self, world: &World, rng: &mut StdRng) {
        let some = some_instances(world, rng);
        match self {
            Self::None => tokio::time::sleep(2 * LASTS).await,
            Self::DatabaseKilled | Self::DatabasePaused => self.to_the_server(world).await,
            Self::DatabaseCut => on_wires(&some, Wire::Cut).await,
            Self::DatabaseHangs => on_wires(&some, Wire::Hanging).await,
            Self::DatabaseSlow => on_wires(&some, Wire::Slow(Duration::from_millis(200))).await,
            Self::DatabaseLocked => lock_table(world).await,
            Self::Failover | Self::FailoverWithLoss => fail_over(world, self == Self::FailoverWithLoss).await,
            Self::RestoredSnapshot => restore(world, Restored::Snapshot).await,
            Self::RestoredPointInTime => restore(world, Restored::PointInTime).await,
            Self::Migration => migrate(world).await,
            Self::RedisKilled | Self::RedisPaused | Self::RedisFlushed | Self::RedisPromoted => {
                self.to_redis(world).await;
            }
            Self::RedisCut => on_redis_wires(&some, Wire::Cut).await,
            Self::RedisSlow => on_redis_wires(&some, Wire::Slow(Duration::from_millis(30))).await,
            Self::InstanceKilled | Self::InstanceStopped | Self::InstancePaused => {
                self.to_an_instance(some[0]).await;
            }
            Self::AllKilled => {
                world.instances.iter().for_each(|instance| instance.with_process(|process| process.kill()));
                tokio::time::sleep(LASTS / 3).await;
                world.instances.iter().for_each(Instance::revive);
            }
            Self::SecretRotated => rotate_secret(world).await,
        }
    }

    async fn to_the_server(self, world: &World) {
        let mut servers = world.servers.lock().await;
        world.instances.iter().for_each(|instance| instance.outage(true));
        if self == Self::DatabaseKilled {
            servers.primary.stop();
            tokio::time::sleep(LASTS).await;
            tokio::task::block_in_place(|| servers.primary.revive());
            // It has another start time, and may be another server.
            world.drop_caches();
        } else {
            servers.primary.freeze(true);
            tokio::time::sleep(LASTS).await;
            servers.primary.freeze(false);
        }
        world.instances.iter().for_each(|instance| instance.outage(false));
    }

    async fn to_redis(self, world: &World) {
        match self {
            Self::RedisFlushed => drop(world.caches.lock().unwrap().primary.command(&["FLUSHALL"])),
            Self::RedisPaused => {
                let process = world.caches.lock().unwrap().primary.freeze();
                tokio::time::sleep(LASTS).await;
                kill_process(process, Signal::CONT).expect("goes on");
            }
            Self::RedisKilled => {
                world.caches.lock().unwrap().primary.kill();
                tokio::time::sleep(LASTS).await;
                let mut caches = world.caches.lock().unwrap();
                caches.primary.revive();
                caches.replica.follow(&caches.primary);
            }
            _ => {
                world.caches.lock().unwrap().primary.kill();
                tokio::time::sleep(LASTS / 3).await;
                let mut caches = world.caches.lock().unwrap();
                caches.replica.promote();
                world.instances.iter().for_each(|instance| instance.redis.lead_to(caches.replica.address()));
                caches.primary.revive();
                caches.primary.follow(&caches.replica);
                let caches = &mut *caches;
                std::mem::swap(&mut caches.primary, &mut caches.replica);
            }
        }
    }

    async fn to_an_instance(self, instance: &Instance) {
        match self {
            Self::InstanceKilled => instance.with_process(|process| process.kill()),
            Self::InstanceStopped => instance.with_process(|process| {
                process.signal(Signal::TERM);
                let ended = tokio::task::block_in_place(|| process.wait(Duration::from_secs(30)));
                assert_eq!(ended, Some(0), "it stops by itself");
            }),
            _ => {
                instance.with_process(|process| process.signal(Signal::STOP));
                tokio::time::sleep(LASTS).await;
                instance.with_process(|process| process.signal(Signal::CONT));
                return;
            }
        }
        tokio::time::sleep(LASTS / 3).await;
        instance.revive();
    }
}

/// One, two or all of them.
fn some_instances<'a>(world: &'a World, rng: &mut StdRng) -> Vec<&'a Instance> {
    let first = rng.random_range(0..INSTANCES);
    let count = if rng.random_bool(0.5) { INSTANCES } else { rng.random_range(1..INSTANCES) };
    (0..count).map(|at| &world.instances[(first + at) % INSTANCES]).collect()
}

async fn on_wires(instances: &[&Instance], wire: Wire) {
    let set = |wire| {
        for instance in instances {
            instance.databases.iter().for_each(|database| database.set(wire));
        }
    };
    instances.iter().for_each(|instance| instance.outage(true));
    set(wire);
    tokio::time::sleep(LASTS).await;
    set(Wire::Whole);
    instances.iter().for_each(|instance| instance.outage(false));
}

async fn on_redis_wires(instances: &[&Instance], wire: Wire) {
    instances.iter().for_each(|instance| instance.redis.set(wire));
    tokio::time::sleep(LASTS).await;
    instances.iter().for_each(|instance| instance.redis.mend());
}

async fn lock_table(world: &World) {
    let servers = world.servers.lock().await;
    world.instances.iter().for_each(|instance| instance.outage(true));
    let client = servers.client().await.unwrap();
    client.batch_execute("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").await.unwrap();
    tokio::time::sleep(LASTS).await;
    client.batch_execute("ROLLBACK").await.unwrap();
    world.instances.iter().for_each(|instance| instance.outage(false));
}

async fn fail_over(world: &World, with_loss: bool) {
    let mut servers = world.servers.lock().await;
    let standby = servers.standby.take().expect("there is one");
    if with_loss {
        standby.stop_receiving().await;
        drop(servers);
        tokio::time::sleep(LASTS / 2).await;
        servers = world.servers.lock().await;
    } else {
        standby.catch_up_with(&servers.primary).await;
    }
    world.instances.iter().for_each(|instance| instance.outage(true));
    world.forget();
    servers.primary.stop();
    tokio::time::sleep(LASTS / 3).await;
    standby.promote().await;
    servers.primary = standby;
    world.read(&servers, Instant::now()).await;
    world.instances.iter().for_each(|instance| instance.outage(false));
    let next = tokio::task::block_in_place(|| servers.primary.standby());
    let old = servers.place;
    world.instances.iter().for_each(|instance| instance.databases[old].lead_to(next.address()));
    servers.place = 1 - old;
    servers.standby = Some(next);
}

/// Takes the primary back to what it was a moment before, with changes in between.
async fn restore(world: &World, restored: Restored) {
    let servers = world.servers.lock().await;
    let backup = tokio::task::block_in_place(|| servers.primary.backup());
    drop(servers);
    tokio::time::sleep(LASTS).await;
    let mut servers = world.servers.lock().await;
    world.instances.iter().for_each(|instance| instance.outage(true));
    world.forget();
    servers.standby = None;
    tokio::task::block_in_place(|| servers.primary.restore(&backup, restored));
    world.read(&servers, Instant::now()).await;
    world.instances.iter().for_each(|instance| instance.outage(false));
    let next = tokio::task::block_in_place(|| servers.primary.standby());
    let other = 1 - servers.place;
    world.instances.iter().for_each(|instance| instance.databases[other].lead_to(next.address()));
    servers.standby = Some(next);
}

/// As an operator upgrades, and as an application adds what it needs.
async fn migrate(world: &World) {
    for sql in [
        "ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS deleted_at timestamp",
        "ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS colour text DEFAULT 'blue'",
        "ALTER TABLE users ADD COLUMN IF NOT EXISTS account_locked_until timestamp",
    ] {
        let servers = world.servers.lock().await;
        servers.client().await.unwrap().batch_execute(sql).await.unwrap();
        let database = Setup::with_database(&servers.primary.url());
        let migrated = tokio::task::block_in_place(|| database.run(&["migrate"]));
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        drop(servers);
        tokio::time::sleep(LASTS / 3).await;
    }
}

/// As the documentation says: first each instance knows both, then each has the new one alone.
async fn rotate_secret(world: &World) {
    for secrets in [&[1, 0][..], &[1], &[0, 1], &[0]] {
        for instance in &world.instances {
            instance.set_secrets(secrets);
            instance.with_process(|process| {
                process.signal(Signal::TERM);
                let ended = tokio::task::block_in_place(|| process.wait(Duration::from_secs(30)));
                assert_eq!(ended, Some(0), "it stops by itself");
            });
            instance.revive();
        }
        tokio::time::sleep(LASTS / 2).await;
    }
}
