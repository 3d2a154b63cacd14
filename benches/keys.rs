//! Puts the benchmarks' keys into a SQLite file that `keystile migrate` has made, and what is proven of them into Redis.
//!
//! A million bcrypt hashes take minutes, even at the least cost. With `--redis` all keys have one hash, which is that of
//! none of them but the first, and stand in Redis as if another sidecar had proven each: a Keystile with the same
//! cache secret then believes them without bcrypt, as it does after a restart.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::string_slice,
    reason = "the rules of the library"
)]

use std::{
    io::{BufWriter, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    path::PathBuf,
    thread,
};

use anyhow::Context;
use clap::Parser;
use keystile::{
    clock::Timestamps,
    config::{AccountLock, DatabaseOptions, DatabaseUrl},
    credential::{CacheSecret, CacheSecrets, Credential},
    metrics::Metrics,
    proof::ProofKey,
    store::{
        Database, KeyStore,
        envelope::{Envelopes, RedisTimestamps},
    },
};
use rusqlite::{Connection, params};

mod credential;

use credential::credential;

/// Puts keys into a SQLite file.
#[derive(Debug, Parser)]
struct Options {
    /// The file.
    #[arg(long)]
    database: PathBuf,
    /// The number of the first key.
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// How many keys.
    #[arg(long)]
    count: u32,
    /// bcrypt cost of their hashes.
    #[arg(long, default_value_t = 4)]
    cost: u32,
    /// Where Redis is, to put proofs into.
    #[arg(long, requires = "cache_secret")]
    redis: Option<SocketAddr>,
    /// The cache secret of those who will read them.
    #[arg(long, requires = "redis")]
    cache_secret: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let hashes = match options.redis {
        Some(_) => vec![bcrypt::hash(credential(options.first), options.cost)?; options.count as usize],
        None => hashes(&options)?,
    };
    insert(&options, &hashes)?;
    match (options.redis, &options.cache_secret) {
        (Some(redis), Some(secret)) => prove(&options, redis, CacheSecret::new(secret.as_bytes())).await,
        _ => Ok(()),
    }
}

/// On all cores.
fn hashes(options: &Options) -> anyhow::Result<Vec<String>> {
    let numbers: Vec<_> = (options.first..options.first + options.count).collect();
    let share = numbers.len().div_ceil(thread::available_parallelism()?.get()).max(1);
    let hash = |number: &u32| bcrypt::hash(credential(*number), options.cost);
    let shares: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = numbers
            .chunks(share)
            .map(|share| scope.spawn(move || share.iter().map(hash).collect::<Result<Vec<_>, _>>()))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread.join().map_err(|_| anyhow::anyhow!("panicked"))?.map_err(anyhow::Error::from)
            })
            .collect::<anyhow::Result<_>>()
    })?;
    Ok(shares.concat())
}

/// Ordinary keys of one user: scopes, limits, tags, and no restriction.
fn insert(options: &Options, hashes: &[String]) -> anyhow::Result<()> {
    let mut connection = Connection::open(&options.database)?;
    connection.pragma_update(None, "synchronous", "off")?;
    let transaction = connection.transaction()?;
    transaction.execute(
        "INSERT OR IGNORE INTO users (id, email, username, hashed_password, role)
         VALUES (1, 'ada@example.com', 'ada', '!', 'engineer')",
        [],
    )?;
    {
        let mut key = transaction.prepare(
            r#"INSERT INTO api_keys (id, name, key_hash, key_prefix, user_id, permissions, scopes, tags,
                   rate_limit_per_minute, rate_limit_per_hour, rate_limit_per_day)
               VALUES (?1, ?2, ?3, ?4, 1, '{"files":"read"}', '["chat","embed"]', '["team:search"]', 60, 1000, 10000)"#,
        )?;
        for (number, hash) in (options.first..).zip(hashes) {
            let prefix = &credential(number)[..8];
            key.execute(params![number + 1, format!("key {number}"), hash, prefix])?;
        }
    }
    Ok(transaction.commit()?)
}

/// Writes what Keystile would have written into Redis for each key.
async fn prove(options: &Options, redis: SocketAddr, secret: CacheSecret) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    let url = format!("sqlite:{}", options.database.display());
    let database = Database::connect(
        &DatabaseOptions {
            database_url: url.parse::<DatabaseUrl>().map_err(anyhow::Error::msg)?,
            database_timeout: std::time::Duration::from_secs(60),
            change_feed_url: None,
            database_connections: 1,
        },
        &metrics,
    )?;
    let entries = Envelopes::new(CacheSecrets::one(secret.clone()), AccountLock::Deny);
    let socket = TcpStream::connect(redis).context("redis")?;
    let answers = thread::spawn({
        let mut socket = socket.try_clone()?;
        move || {
            let mut answers = Vec::new();
            socket.read_to_end(&mut answers).map(|_| answers)
        }
    });
    let mut commands = BufWriter::new(&socket);
    for number in options.first..options.first + options.count {
        let credential = Credential::parse(credential(number).as_bytes())?;
        let (prefix, now) = (credential.prefix(), Timestamps::now());
        let found = database.hashed(prefix, now).await?;
        let record = found.records.first().context("no such row")?;
        let digest = credential.digest(&secret);
        let proof_key = ProofKey { digest, key: Some(record.id), hash: record.hash.tag() };
        let (name, field) = (format!("keystile:{{{prefix}}}:proofs"), digest.to_text());
        let proof = entries
            .proof(&format!("{name}:{field}"), &proof_key, now.wall, now.wall + keystile::proof::MAX_AGE)
            .context("no proof")?;
        command(&mut commands, &["APPEND", &name, &format!("{field} {proof}\n")])?;
        let name = format!("keystile:{{{prefix}}}:records");
        // Redis runs on this machine, by the same clock.
        let read_at = RedisTimestamps { instance: now.wall, redis: now.wall };
        command(&mut commands, &["SET", &name, &entries.records(&name, &found, read_at)])?;
    }
    commands.flush()?;
    drop(commands);
    socket.shutdown(Shutdown::Write)?;
    let answers = answers.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    let answers = String::from_utf8_lossy(&answers);
    anyhow::ensure!(!answers.contains('-'), "Redis refused: {answers:.200}");
    Ok(())
}

/// As Redis takes it.
fn command(commands: &mut impl Write, words: &[&str]) -> std::io::Result<()> {
    write!(commands, "*{}\r\n", words.len())?;
    words.iter().try_for_each(|word| write!(commands, "${}\r\n{word}\r\n", word.len()))
}
