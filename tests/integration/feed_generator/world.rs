//! One world: a database with random tables, instances that serve from it, and what happens to it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{sync::OwnedSemaphorePermit, task::AbortHandle};

use super::{
    changes,
    database::Database,
    events::{Aftermath, Event},
    model::Facts,
    schema::{Schema, chance, credential},
    watch::{GRACE, UpTime, Watch},
};
use crate::harness::{
    keystile,
    promise::{Instance, SECOND},
    redis::Redis,
    service::Setup,
};

/// See the file's first line.
pub struct World {
    pub rng: StdRng,
    pub schema: Schema,
    pub database: Database,
    pub watch: Arc<Watch>,
    pub facts: Facts,
    /// Whether an event has harmed what the feed rests on, and nobody has mended it.
    pub is_harmed: bool,
    /// Whether the feed cannot be up here: a standby is read, or rows are hidden.
    pub never_up: bool,
    /// Whether triggers do not notify.
    pub is_silent: bool,
    /// Statements that undo what `keystile migrate` does not mend.
    pub mends: Vec<String>,
    redis: Option<Redis>,
    next_key: usize,
    next_user: usize,
    watcher: AbortHandle,
}

const USERS: usize = 4;
const KEYS: usize = 10;
const SECRET: &str = "the-cache-secret-of-the-generator-of-faults";

impl World {
    /// An empty database.
    pub async fn create(seed: u64, is_postgres: bool, reads_replica: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let schema = Schema::random(&mut rng, is_postgres);
        let role = if chance(&mut rng, 30) { "reader" } else { "keystile" };
        let database =
            if is_postgres { Database::server(reads_replica, role).await } else { Database::file() };
        let watch = Arc::new(Watch::new());
        let watching = Arc::clone(&watch);
        let watcher = tokio::spawn(async move { watching.run().await }).abort_handle();
        let is_silent = is_postgres && chance(&mut rng, 30) && migrate_takes_notify();
        let redis = chance(&mut rng, 25).then(Redis::start);
        let world = Self {
            rng,
            schema,
            database,
            watch,
            facts: Facts::default(),
            is_harmed: false,
            never_up: reads_replica,
            is_silent,
            mends: Vec::new(),
            redis,
            next_key: 0,
            next_user: USERS + 1,
            watcher,
        };
        world.watch.note(&format!("{:?}", world.schema));
        world.watch.note(&format!(
            "instances log in as {role}, redis {}, standby {reads_replica}, notify {}",
            world.redis.is_some(),
            !world.is_silent
        ));
        world
    }

    /// Makes the tables, and starts the instances.
    async fn start(&mut self) -> Result<(), String> {
        let world = self;
        let tables = world.schema.create();
        world.database.execute(&tables).await?;
        let users: String = (0..=USERS).map(|id| world.schema.user(id, id > 0, &mut world.rng)).collect();
        world.database.execute(&users).await?;
        for _ in 0..KEYS {
            world.insert_key().await?;
        }
        world.migrate().await?;
        for _ in 0..2 {
            world.add_instance().await?;
        }
        Ok(())
    }

    async fn add_instance(&mut self) -> Result<(), String> {
        let instance = self.start_instance().await?;
        self.watch.instances.write().await.push(instance);
        Ok(())
    }

    async fn start_instance(&self) -> Result<Instance, String> {
        let redis = self.redis.as_ref().map(Redis::url);
        let settings: Vec<_> = redis
            .iter()
            .flat_map(|url| [("KEYSTILE_REDIS_URL", &**url), ("KEYSTILE_CACHE_SECRET", SECRET)])
            .collect();
        let keystile = Setup::with_database(&self.database.url()).start_unready(&settings);
        let deadline = Instant::now() + 20 * SECOND;
        loop {
            match keystile.setup.readyz().await {
                (200, _) => return Ok(Instance::of(keystile).await),
                (_, answer) if Instant::now() > deadline => {
                    return Err(format!("an instance does not start: {answer}\n{}", keystile.setup.log()));
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// One instance ends, and another takes its place: what it believes comes from Redis or the database.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart_instance(&mut self) -> Result<(), String> {
        let at = self.rng.random_range(0..2);
        let instance = self.start_instance().await?;
        self.watch.instances.write().await[at] = instance;
        Ok(())
    }

    /// Runs an event's own steps, after which the tables are read anew.
    ///
    /// # Errors
    /// What the database says.
    pub async fn commit(
        &mut self,
        what: &str,
        steps: impl AsyncFnOnce(&mut Database) -> Result<(), String>,
    ) -> Result<(), String> {
        self.watch.note(what);
        self.watch.begin();
        let done = steps(&mut self.database).await;
        let committed = Instant::now();
        let facts = Facts::read(&self.database).await;
        if let Ok(facts) = &facts {
            self.facts = facts.clone();
        }
        self.watch.end(&self.facts, committed, what);
        done.and(facts.map(drop))
    }

    /// Runs a script as some session or other does.
    ///
    /// # Errors
    /// What the database says: no change of an application may fail.
    pub async fn change(&mut self, sql: &str) -> Result<(), String> {
        let script = changes::in_a_session(sql, self.schema.is_postgres, &self.facts, &mut self.rng);
        let is_old = chance(&mut self.rng, 50);
        let note = if is_old { format!("{script} -- in an old session") } else { script.clone() };
        self.commit(&note, async |database| {
            if is_old {
                database.execute_in_old_session(&script).await
            } else {
                database.execute(&script).await
            }
        })
        .await
    }

    pub async fn insert_key(&mut self) -> Result<(), String> {
        let user = self.rng.random_range(1..=USERS);
        self.insert_key_of(user).await.map(drop)
    }

    /// Puts in a key of this user.
    pub async fn insert_key_of(&mut self, user: usize) -> Result<String, String> {
        let credential = credential(&mut self.rng);
        let hash = bcrypt::hash(&credential, 4).map_err(|error| error.to_string())?;
        let sql = self.schema.key(self.next_key, user, &credential, &hash, &mut self.rng);
        self.next_key += 1;
        self.watch.add_key(credential.clone(), hash);
        self.commit(&sql, async |database| database.execute(&sql).await).await?;
        Ok(credential)
    }

    /// Has all good keys in the memory of all instances.
    pub async fn warm(&self) {
        for instance in self.watch.instances.read().await.iter() {
            for key in self.watch.good() {
                instance.status(&key.credential).await;
            }
        }
    }

    /// Puts in a user who is active; their id.
    pub async fn new_user(&mut self) -> Result<usize, String> {
        let id = self.next_user;
        self.next_user += 1;
        let sql = self.schema.user(id, true, &mut self.rng);
        self.commit(&sql, async |database| database.execute(&sql).await).await?;
        Ok(id)
    }

    /// The id of the next key that is inserted.
    pub fn next_key(&self) -> usize {
        self.next_key
    }

    pub fn hash_of(&self, credential: &str) -> String {
        let keys = self.watch.keys();
        keys.into_iter().find(|key| key.credential == credential).map(|key| key.hash).unwrap_or_default()
    }

    /// Whether instances read a standby.
    pub fn reads_replica(&self) -> bool {
        matches!(&self.database, Database::Postgres(server) if server.replica.is_some())
    }

    /// A hash of a key that may be allowed.
    pub async fn victim(&mut self) -> Result<String, String> {
        if self.watch.good().len() < 4 {
            self.new_good_keys(3).await?;
            self.warm().await;
        }
        let good = self.watch.good();
        Ok(good.choose(&mut self.rng).map(|key| key.hash.clone()).unwrap_or_default())
    }

    /// Of the users that there were, perhaps none is left, and new ones may be locked by a default.
    async fn new_good_keys(&mut self, count: usize) -> Result<(), String> {
        let user = self.new_user().await?;
        for _ in 0..count {
            self.insert_key_of(user).await?;
        }
        if self.watch.good().is_empty() {
            let sql = changes::pardon(&self.schema, &self.facts);
            self.change(&sql).await?;
        }
        Ok(())
    }

    /// Some ordinary change.
    pub async fn step(&mut self) -> Result<(), String> {
        match self.rng.random_range(0..10) {
            0 => {
                let sql = *changes::IRRELEVANT.choose(&mut self.rng).unwrap();
                self.change(sql).await
            }
            1 => self.insert_key().await,
            2 => {
                let sql = changes::pardon(&self.schema, &self.facts);
                self.change(&sql).await
            }
            _ => self.deny(None).await,
        }
    }

    /// A change that denies a key, by what has this word in it if it is given.
    pub async fn deny(&mut self, word: Option<&str>) -> Result<(), String> {
        let hash = self.victim().await?;
        let all = changes::denials(&self.schema, &self.facts, &hash);
        let named =
            word.and_then(|word| changes::denial_by(&self.schema, &self.facts, &hash, word, &mut self.rng));
        let sql = named.or_else(|| all.choose(&mut self.rng).cloned()).unwrap();
        self.change(&sql).await
    }

    /// `keystile migrate`, by the owner of the tables.
    pub async fn migrate(&mut self) -> Result<(), String> {
        for mend in std::mem::take(&mut self.mends) {
            self.commit(&mend, async |database| database.execute(&mend).await).await?;
        }
        let arguments: &[&str] = if self.is_silent { &["migrate", "--notify=off"] } else { &["migrate"] };
        let url = self.database.owners_url();
        self.commit("keystile migrate", async |_| {
            let run = keystile::keystile(arguments, &url, "");
            if run.status == 0 { Ok(()) } else { Err(format!("keystile migrate: {}", run.stderr)) }
        })
        .await?;
        self.is_harmed = false;
        Ok(())
    }

    /// The feed may be down from now on until it has to be up again, if ever.
    pub fn expect_quiet(&self) {
        let is_sound = !self.is_harmed && !self.never_up;
        self.watch.quiet_from(is_sound.then(|| Instant::now() + GRACE));
    }

    /// Lives through the first of these events that fit.
    pub async fn live(
        &mut self,
        events: &[Event],
        count: usize,
        lane: OwnedSemaphorePermit,
    ) -> Result<(), String> {
        self.start().await?;
        self.begin().await?;
        let mut events = events.iter();
        for _ in 0..count {
            let Some(event) = events.find(|event| event.fits(self)) else { break };
            self.happen(*event).await?;
        }
        drop(lane);
        self.finish().await
    }

    async fn happen(&mut self, event: Event) -> Result<(), String> {
        self.watch.note(&format!("event {event:?}"));
        self.warm().await;
        if event != Event::Nothing {
            self.watch.quiet_from(None);
        }
        if event.happen(self).await? == Aftermath::Lasting {
            self.is_harmed = true;
        }
        if event != Event::Nothing {
            self.expect_quiet();
        }
        self.warm().await;
        self.deny(event.word()).await?;
        self.some_steps(3).await?;
        if self.is_harmed && chance(&mut self.rng, 40) {
            self.migrate().await?;
            self.expect_quiet();
            self.some_steps(2).await?;
        }
        Ok(())
    }

    /// A time in which the feed has to be up.
    async fn begin(&mut self) -> Result<(), String> {
        if !self.never_up {
            for instance in self.watch.instances.read().await.iter() {
                instance.wait_until_up().await;
            }
            self.watch.quiet_from(Some(Instant::now()));
        }
        self.warm().await;
        self.some_steps(2).await
    }

    async fn some_steps(&mut self, at_most: usize) -> Result<(), String> {
        for _ in 0..self.rng.random_range(1..=at_most) {
            self.check()?;
            self.step().await?;
            let pause = self.rng.random_range(0..=900);
            tokio::time::sleep(Duration::from_millis(if chance(&mut self.rng, 40) { 0 } else { pause }))
                .await;
        }
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        self.watch.failure().map_or(Ok(()), Err)
    }

    /// Everything is mended, what is pending ends, and the feed is up and of use.
    async fn finish(&mut self) -> Result<(), String> {
        let began = Instant::now();
        if self.is_harmed {
            self.migrate().await?;
            self.expect_quiet();
        }
        while began.elapsed() < GRACE + 3 * SECOND || self.watch.is_pending().await {
            self.check()?;
            if began.elapsed() > 45 * SECOND {
                return Err("a key is neither allowed nor denied 45 s after the last event".into());
            }
            if began.elapsed() < GRACE + 2 * SECOND {
                self.step().await?;
            }
            tokio::time::sleep(SECOND).await;
        }
        self.check()?;
        self.good_keys_work().await?;
        if self.never_up { Ok(()) } else { self.memory_serves().await }
    }

    async fn good_keys_work(&mut self) -> Result<(), String> {
        for instance in self.watch.instances.read().await.iter() {
            for key in self.watch.good() {
                let works = async || instance.status(&key.credential).await == 200;
                let deadline = Instant::now() + 12 * SECOND;
                while !works().await {
                    if Instant::now() > deadline {
                        return Err(format!("{}: a good key is denied", &key.credential[..8]));
                    }
                    tokio::time::sleep(SECOND / 10).await;
                }
            }
        }
        Ok(())
    }

    async fn memory_serves(&mut self) -> Result<(), String> {
        const ASKED: u64 = 20;
        self.new_good_keys(1).await?;
        for (at, instance) in self.watch.instances.read().await.iter().enumerate() {
            let key = &self.watch.good()[0];
            instance.expect_allowed(&key.credential).await;
            let before = instance.memory_hits().await;
            for _ in 0..ASKED {
                instance.status(&key.credential).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let hits = instance.memory_hits().await - before;
            if hits < ASKED / 2 {
                return Err(format!("instance {at}: memory has answered {hits} of {ASKED} look-ups"));
            }
        }
        Ok(())
    }

    pub fn up_time(&self) -> UpTime {
        self.watch.up_time()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Whether this Keystile knows `migrate --notify`.
fn migrate_takes_notify() -> bool {
    keystile::keystile(&["migrate", "--help"], "sqlite:/none", "").stdout.contains("--notify")
}
