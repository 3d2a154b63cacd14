//! The keys of a run: what they are for, what is true of them, and how they come into the database.

use std::sync::Mutex;

use rand::{RngExt, distr::Alphanumeric, rngs::StdRng};

use super::oracle::{History, Span, Truth};

/// Keys of each user: they share what happens to their user.
const KEYS_OF_USER: usize = 4;
/// Cheap, so that first proofs load the machine no more than everything else.
const COST: u32 = 6;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// In use all the time, and changed.
    Known,
    /// Used for the first time at some moment of the run.
    Fresh,
    /// May use [`OWN_PATH`] alone.
    Restricted,
    /// May be used [`LIMIT`] times a minute, and is not changed.
    Limited,
}

/// The path that a restricted key may use.
pub const OWN_PATH: &str = "/v1/models";
/// Requests a minute.
pub const LIMIT: u64 = 60;

/// A key.
#[derive(Debug)]
pub struct Key {
    pub id: usize,
    pub user: usize,
    pub role: Role,
    pub credential: String,
    pub hash: String,
    history: Mutex<History>,
}

impl Key {
    fn new(id: usize, role: Role, rng: &mut StdRng) -> Self {
        let credential = format!("ks_{}", text(rng, 37));
        // Limited keys have a user of their own, who is not changed.
        let user = if role == Role::Limited { 1 } else { 2 + id / KEYS_OF_USER };
        Self { id, user, role, credential, hash: String::new(), history: Mutex::default() }
    }

    /// Notes a change.
    pub fn change(&self, truth: Truth, sent: std::time::Instant, committed: std::time::Instant) {
        self.history.lock().unwrap().change(truth, sent, committed);
    }

    pub fn now(&self) -> Truth {
        self.history.lock().unwrap().now()
    }

    pub fn may(&self, truth: Truth, span: Span, late: std::time::Duration) -> bool {
        self.history.lock().unwrap().may(truth, span, late)
    }

    pub fn last_change(&self, before: std::time::Instant) -> Option<std::time::Instant> {
        self.history.lock().unwrap().last_change(before)
    }

    /// What is known of it, for the message of a failure: changes before and after a request.
    pub fn describe(&self, sent: std::time::Instant) -> String {
        format!("key {} of user {}: {}", self.id, self.user, self.history.lock().unwrap().describe(sent))
    }

    /// Another secret with the same prefix.
    pub fn wrong_secret(&self, rng: &mut StdRng) -> String {
        format!("{}{}", &self.credential[..8], text(rng, 32))
    }
}

/// A credential that was never made.
pub fn made_up(rng: &mut StdRng) -> String {
    format!("ks_{}", text(rng, 37))
}

fn text(rng: &mut StdRng, count: usize) -> String {
    rng.sample_iter(Alphanumeric).take(count).map(char::from).collect()
}

/// The keys, and the script that creates them and their users.
pub fn create(rng: &mut StdRng, known: usize, fresh: usize) -> (Vec<Key>, String) {
    let roles = std::iter::repeat_n(Role::Known, known)
        .chain(std::iter::repeat_n(Role::Restricted, 6))
        .chain(std::iter::repeat_n(Role::Limited, 2))
        .chain(std::iter::repeat_n(Role::Fresh, fresh));
    let mut keys: Vec<_> = roles.enumerate().map(|(id, role)| Key::new(id + 1, role, rng)).collect();
    std::thread::scope(|scope| {
        for part in keys.chunks_mut(64) {
            scope.spawn(|| {
                for key in part {
                    key.hash = bcrypt::hash(&key.credential, COST).unwrap();
                }
            });
        }
    });
    let users = 2 + keys.len() / KEYS_OF_USER;
    let mut sql = format!(
        "INSERT INTO users (id, email, username, hashed_password, is_active)
         SELECT id, id || '@example.com', 'user' || id, '!', true FROM generate_series(1, {users}) AS id;"
    );
    for key in &keys {
        let Key { id, user, credential, hash, .. } = key;
        let prefix = &credential[..8];
        let (endpoints, limit) = match key.role {
            Role::Restricted => (format!("'[\"{OWN_PATH}\"]'"), "NULL".to_owned()),
            Role::Limited => ("NULL".to_owned(), LIMIT.to_string()),
            Role::Known | Role::Fresh => ("NULL".to_owned(), "NULL".to_owned()),
        };
        sql += &format!(
            "INSERT INTO api_keys (id, user_id, name, key_prefix, key_hash, is_active, allowed_endpoints,
             rate_limit_per_minute, is_unlimited)
             VALUES ({id}, {user}, 'torture', '{prefix}', '{hash}', true, {endpoints}, {limit}, {limit} IS NULL);"
        );
    }
    // The ids above were given, and those of further keys follow them.
    sql += "SELECT setval(pg_get_serial_sequence('api_keys', 'id'), (SELECT max(id) FROM api_keys));";
    (keys, sql)
}
