//! What is tortured: three Envoys with an instance each, a primary and its standby, Redis and its replica.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use tokio_postgres::NoTls;

use super::keys::{self, Key, Role};
use super::oracle::Truth;
use crate::harness::{
    cluster::Cluster,
    envoy::{Gateway, VERSIONS},
    proxy::Proxy,
    redis::Redis,
    service::{Process, Setup},
};

/// How many Envoys there are, each with an instance of its own.
pub const INSTANCES: usize = 3;
const SECRETS: [&str; 2] =
    ["the first cache secret of the torture test", "the second cache secret of the torture test"];

/// The primary, and its standby while there is one.
pub struct Servers {
    pub primary: Cluster,
    pub standby: Option<Cluster>,
    /// Which place of an instance's list of hosts leads to the primary.
    pub place: usize,
}

/// A Redis, and the one that follows it.
pub struct Caches {
    pub primary: Redis,
    pub replica: Redis,
}

/// One Envoy, the instance that it asks, and the wires of the instance.
pub struct Instance {
    pub url: String,
    pub gateway: Mutex<Gateway>,
    pub databases: [Proxy; 2],
    pub redis: Proxy,
    settings: Mutex<Vec<(String, String)>>,
    /// When it could not reach the database: from, and until when.
    outages: Mutex<Vec<(Instant, Option<Instant>)>>,
}

/// Everything. Each part that a fault changes has a lock.
pub struct World {
    pub servers: tokio::sync::Mutex<Servers>,
    pub caches: Mutex<Caches>,
    pub instances: Vec<Instance>,
    pub keys: Vec<Key>,
    /// When instances dropped what they had cached, since they met another server or another time of its history.
    dropped: Mutex<Vec<Instant>>,
}

impl World {
    /// Starts everything. Instances get `more` settings.
    pub async fn start(seed: u64, known: usize, fresh: usize, more: &[(&str, &str)]) -> Self {
        let primary = Cluster::start();
        assert!(Setup::with_database(&primary.url()).run(&["migrate"]).status.success());
        let (keys, script) = keys::create(&mut StdRng::seed_from_u64(seed), known, fresh);
        let sent = Instant::now();
        primary.execute(&script).await;
        for key in &keys {
            key.change(Truth::Allowed, sent, Instant::now());
        }
        let standby = primary.standby();
        let caches = Caches { primary: Redis::start(), replica: Redis::start() };
        caches.replica.follow(&caches.primary);
        let mut instances = Vec::new();
        for at in 0..INSTANCES {
            let version = VERSIONS[at % 2];
            instances.push(Instance::start(version, &primary, &standby, &caches.primary, more).await);
        }
        let servers = Servers { primary, standby: Some(standby), place: 0 };
        let servers = tokio::sync::Mutex::new(servers);
        Self { servers, caches: Mutex::new(caches), instances, keys, dropped: Mutex::default() }
    }

    /// The keys of a role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| key.role == role)
    }

    /// From now on instances drop what they have cached.
    pub fn drop_caches(&self) {
        self.dropped.lock().unwrap().push(Instant::now());
    }

    /// When they last did so before then.
    pub fn last_drop(&self, before: Instant) -> Option<Instant> {
        self.dropped.lock().unwrap().iter().copied().filter(|dropped| *dropped < before).max()
    }

    /// From now on nothing is known of any key: rows may be lost.
    pub fn forget(&self) {
        let now = Instant::now();
        self.keys.iter().for_each(|key| key.change(Truth::Unknown, now, now));
    }

    /// Reads what is true of each key from the tables, after statements that were sent then. The caller holds the
    /// lock of the servers, so that nothing changes meanwhile.
    pub async fn read(&self, servers: &Servers, sent: Instant) {
        let sql = "SELECT k.id::bigint, k.key_hash, k.is_active AND coalesce(u.is_active, false)
            AND coalesce(k.expires_at > (now() AT TIME ZONE 'UTC'), true)
            AND (k.allowed_endpoints IS NULL OR k.allowed_endpoints::text LIKE '%/v1/models%')
            FROM api_keys k LEFT JOIN users u ON u.id = k.user_id";
        let committed = Instant::now();
        let rows = servers.client().await.expect("the primary answers").query(sql, &[]).await.unwrap();
        let allowed = |key: &Key| {
            let id = i64::try_from(key.id).unwrap();
            rows.iter().any(|row| {
                row.get::<_, i64>(0) == id && row.get::<_, String>(1) == key.hash && row.get::<_, bool>(2)
            })
        };
        for key in &self.keys {
            let truth = if allowed(key) { Truth::Allowed } else { Truth::Denied };
            if key.now() != truth {
                key.change(truth, sent, committed);
            }
        }
    }
}

impl Servers {
    /// A connection to the primary, past all wires.
    pub async fn client(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.primary.url(), NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }
}

impl Instance {
    async fn start(
        version: &str,
        primary: &Cluster,
        standby: &Cluster,
        redis: &Redis,
        more: &[(&str, &str)],
    ) -> Self {
        let databases = [Proxy::before(primary.address()).await, Proxy::before(standby.address()).await];
        let redis = Proxy::before(redis.address()).await;
        let hosts = databases.each_ref().map(|proxy| proxy.address.to_string()).join(",");
        let url =
            format!("postgres://keystile@{hosts}/postgres?sslmode=disable&target_session_attrs=read-write");
        let settings = [
            ("KEYSTILE_REDIS_URL", format!("redis://{}", redis.address)),
            ("KEYSTILE_CACHE_SECRET", SECRETS[0].to_owned()),
            ("KEYSTILE_RATE_LIMIT", "redis".to_owned()),
            ("KEYSTILE_RECORD_TTL", "20s".to_owned()),
        ];
        let mut settings: Vec<_> = settings.map(|(name, value)| (name.to_owned(), value)).into();
        settings.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let setup = Setup::with_database(&url);
        let keystile = setup.start(&pairs(&settings)).await;
        let gateway = Gateway::before(version, "tcp.yaml", keystile, &[]).await;
        let (url, settings) = (gateway.url.clone(), Mutex::new(settings));
        Self { url, gateway: Mutex::new(gateway), databases, redis, settings, outages: Mutex::default() }
    }

    /// Runs something with its process.
    pub fn with_process<T>(&self, act: impl FnOnce(&mut Process) -> T) -> T {
        act(&mut self.gateway.lock().unwrap().keystile.process)
    }

    /// Starts its process, which has ended.
    pub fn revive(&self) {
        let mut gateway = self.gateway.lock().unwrap();
        let log = std::fs::OpenOptions::new().append(true).open(gateway.keystile.setup.path("keystile.log"));
        let mut command = gateway.keystile.setup.serve(&pairs(&self.settings.lock().unwrap()));
        let command = command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        gateway.keystile.process = Process(command.stderr(log.unwrap()).spawn().unwrap());
    }

    /// The cache secrets that it is started with next, the newest first.
    pub fn set_secrets(&self, newest_first: &[usize]) {
        let secrets: Vec<_> = newest_first.iter().map(|at| SECRETS[*at]).collect();
        let mut settings = self.settings.lock().unwrap();
        let secret = settings.iter_mut().find(|(name, _)| name == "KEYSTILE_CACHE_SECRET");
        secret.expect("it is set").1 = secrets.join(",");
    }

    pub fn admin(&self) -> std::net::SocketAddr {
        self.gateway.lock().unwrap().keystile.setup.admin
    }

    /// Where it takes checks.
    pub fn address(&self) -> std::net::SocketAddr {
        self.gateway.lock().unwrap().keystile.setup.tcp
    }

    pub fn log(&self) -> String {
        self.gateway.lock().unwrap().keystile.setup.log()
    }

    /// From now on it cannot reach the database, or can again.
    pub fn outage(&self, begins: bool) {
        let mut outages = self.outages.lock().unwrap();
        let now = Instant::now();
        if begins {
            outages.push((now, None));
        } else {
            outages.iter_mut().for_each(|(_, until)| *until = until.or(Some(now)));
        }
    }

    /// For how long it could not reach the database in this time.
    pub fn outages(&self, from: Instant, to: Instant) -> Duration {
        let outages = self.outages.lock().unwrap();
        let overlap = |(began, ended): &(Instant, Option<Instant>)| {
            ended.map_or(to, |ended| ended.min(to)).saturating_duration_since((*began).max(from))
        };
        outages.iter().map(overlap).sum()
    }
}

fn pairs(settings: &[(String, String)]) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}
