//! Several instances on one database, asked one after the other or all at once.

use std::time::{Duration, Instant};

use tonic::transport::Channel;

use super::{
    client::{ask, channel, code, status},
    keystile::{self, Run},
    postgres::Schema,
    service::{Key, Keystile, Setup},
    until,
};

/// Instances with a schema of their own.
pub struct Fleet {
    pub schema: Schema,
    pub instances: Vec<Keystile>,
    pub channels: Vec<Channel>,
}

impl Fleet {
    /// Starts some, all ready and hearing of changes, with these settings; `ada` can have keys.
    pub async fn start(count: usize, settings: &[(&str, &str)]) -> Self {
        let schema = Schema::create().await;
        let url = schema.url();
        Self::on(schema, &url, count, settings).await
    }

    /// The same, with the database by this URL.
    pub async fn on(schema: Schema, url: &str, count: usize, settings: &[(&str, &str)]) -> Self {
        let setup = Setup::with_database(&schema.url());
        assert!(setup.run(&["migrate"]).status.success());
        setup.create_user("ada");
        let mut fleet = Self { schema, instances: Vec::new(), channels: Vec::new() };
        for _ in 0..count {
            fleet.add(url, settings).await;
        }
        fleet
    }

    /// Starts one more.
    pub async fn add(&mut self, url: &str, settings: &[(&str, &str)]) {
        let keystile = Setup::with_database(url).start(settings).await;
        until("it is in touch with everything", Duration::from_secs(10), async || {
            let stats = keystile.setup.stats().await;
            let redis = &stats["redis"];
            stats["change_feed"]["up"] == true && (redis["enabled"] == false || redis["up"] == true)
        })
        .await;
        self.channels.push(channel(keystile.setup.tcp).await);
        self.instances.push(keystile);
    }

    /// A new key.
    pub fn key(&self, options: &[&str]) -> Key {
        Setup::with_database(&self.schema.url()).create_key("ada", options)
    }

    /// Runs a command that prints no JSON.
    pub fn run_plain(&self, arguments: &[&str]) -> Run {
        keystile::keystile(arguments, &self.schema.url(), "")
    }

    /// Runs a command on the database, past every proxy.
    pub fn run(&self, arguments: &[&str]) -> Run {
        keystile::keystile(&[arguments, &["--output", "json"]].concat(), &self.schema.url(), "")
    }

    /// What one instance answers.
    pub async fn status(&self, instance: usize, key: &Key) -> i32 {
        status(&ask(&self.channels[instance], &key.credential).await)
    }

    /// The code of its denial, if it is one.
    pub async fn code(&self, instance: usize, key: &Key) -> Option<String> {
        code(&ask(&self.channels[instance], &key.credential).await)
    }

    /// All of them answer this.
    pub async fn expect(&self, key: &Key, expected: i32) {
        for instance in 0..self.channels.len() {
            assert_eq!(self.status(instance, key).await, expected, "instance {instance}");
        }
    }

    /// Runs a script past Keystile; how long until all of them answer this.
    pub async fn after(&self, sql: &str, key: &Key, expected: i32) -> Duration {
        self.schema.execute(sql).await;
        let changed = Instant::now();
        for instance in 0..self.channels.len() {
            until("the change counts", Duration::from_secs(10), async || {
                self.status(instance, key).await == expected
            })
            .await;
        }
        changed.elapsed()
    }

    /// How many changes an instance has heard of.
    pub async fn changes(&self, instance: usize) -> u64 {
        let metrics = self.instances[instance].setup.metrics().await;
        let counts = metrics.lines().filter(|line| line.starts_with("keystile_invalidations_total"));
        counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }

    /// How many listen, as the database sees it.
    pub async fn readers(&self) -> usize {
        let count = "SELECT count(*) FROM pg_stat_activity
            WHERE application_name LIKE 'keystile/' || to_regclass('keystile_changes')::oid || '/%'";
        self.schema.value(count).await.unwrap().parse().unwrap()
    }
}
