//! The flags of database and Redis. Their URLs hold passwords, so each can be given in a file.

use std::{path::PathBuf, time::Duration};

use clap::{ArgMatches, Args, Command, FromArgMatches, Id, error::ErrorKind};

use super::{DatabaseUrl, RedisUrl, duration, libpq::complete_database_url, secret_file::read_secret_file};

/// The database of the keys.
#[derive(Debug, Clone)]
pub struct DatabaseOptions {
    /// Where it is.
    pub database_url: DatabaseUrl,
    /// Deadline of each call.
    pub database_timeout: Duration,
    /// Where the change feed reads, if elsewhere.
    pub change_feed_url: Option<DatabaseUrl>,
    /// Maximum number of connections.
    pub database_connections: u32,
}

/// The Redis that instances share.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Where it is. `None`: there is no Redis.
    pub redis_url: Option<RedisUrl>,
    /// Deadline of each call.
    pub redis_timeout: Duration,
}

/// The flags of the database. Every command that needs it has these flags.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Database")]
struct DatabaseFlags {
    /// `sqlite:FILE` or `postgres://USER:PASSWORD@HOST/NAME?sslmode=MODE`. `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`, `PGDATABASE`, `PGSSLMODE`, `PGSSLROOTCERT` and the file `~/.pgpass` give what a Postgres URL leaves out.
    #[arg(long, env = "KEYSTILE_DATABASE_URL", default_value = "sqlite:keystile.db", hide_env_values = true, value_parser = complete_database_url)]
    database_url: DatabaseUrl,

    /// File with the URL of the database, so that its password is in no environment.
    #[arg(long, env = "KEYSTILE_DATABASE_URL_FILE", value_name = "FILE", conflicts_with = "database_url")]
    database_url_file: Option<PathBuf>,

    /// Deadline of each call to the database.
    #[arg(long, env = "KEYSTILE_DATABASE_TIMEOUT", default_value = "500ms", value_parser = duration)]
    database_timeout: Duration,

    /// Postgres URL for the change feed. Set it where `--database-url` goes through a pooler that drops notifications, such as PgBouncer in transaction mode. Default: `--database-url`.
    #[arg(long, env = "KEYSTILE_CHANGE_FEED_URL", hide_env_values = true, value_parser = complete_database_url)]
    change_feed_url: Option<DatabaseUrl>,

    /// File with the Postgres URL for the change feed.
    #[arg(
        long,
        env = "KEYSTILE_CHANGE_FEED_URL_FILE",
        value_name = "FILE",
        conflicts_with = "change_feed_url"
    )]
    change_feed_url_file: Option<PathBuf>,

    /// Maximum number of database connections. One is reserved for the change feed. With Postgres, one more listens for notifications.
    #[arg(long, env = "KEYSTILE_DATABASE_CONNECTIONS", default_value = "8", value_parser = clap::value_parser!(u32).range(1..=1000))]
    database_connections: u32,
}

/// The flags of Redis.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Redis")]
struct RedisFlags {
    /// `redis://USER:PASSWORD@HOST:PORT/DB`, `rediss://` for TLS, `redis-cluster://`, `redis-sentinel://…?sentinelServiceName=NAME`. Default: no Redis.
    #[arg(long, env = "KEYSTILE_REDIS_URL", hide_env_values = true)]
    redis_url: Option<RedisUrl>,

    /// File with the URL of Redis, so that its password is in no environment.
    #[arg(long, env = "KEYSTILE_REDIS_URL_FILE", value_name = "FILE", conflicts_with = "redis_url")]
    redis_url_file: Option<PathBuf>,

    /// Deadline of each call to Redis.
    #[arg(long, env = "KEYSTILE_REDIS_TIMEOUT", default_value = "50ms", value_parser = duration)]
    redis_timeout: Duration,
}

impl DatabaseFlags {
    fn read(self) -> Result<DatabaseOptions, String> {
        let read = |flag, path| from_file(flag, path, complete_database_url);
        Ok(DatabaseOptions {
            database_url: match self.database_url_file {
                Some(path) => read("--database-url-file", path)?,
                None => self.database_url,
            },
            database_timeout: self.database_timeout,
            change_feed_url: match self.change_feed_url_file {
                Some(path) => Some(read("--change-feed-url-file", path)?),
                None => self.change_feed_url,
            },
            database_connections: self.database_connections,
        })
    }
}

impl RedisFlags {
    fn read(self) -> Result<RedisOptions, String> {
        let redis_url = match self.redis_url_file {
            Some(path) => Some(from_file("--redis-url-file", path, str::parse)?),
            None => self.redis_url,
        };
        Ok(RedisOptions { redis_url, redis_timeout: self.redis_timeout })
    }
}

/// Reads a URL from a file. Its parser's error shows nothing of the text.
fn from_file<T>(
    flag: &str,
    path: PathBuf,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, String> {
    let text = read_secret_file(flag, &path)?;
    parse(&text).map_err(|error| format!("{flag} {}: the URL {error}", path.display()))
}

/// Flags become options where clap reads them, so that nothing behind this file knows of the files.
macro_rules! args_by_flags {
    ($options:ty, $flags:ty) => {
        impl FromArgMatches for $options {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                let read = <$flags>::from_arg_matches(matches)?.read();
                read.map_err(|error| clap::Error::raw(ErrorKind::ValueValidation, format!("{error}\n")))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Args for $options {
            fn group_id() -> Option<Id> {
                <$flags>::group_id()
            }

            fn augment_args(command: Command) -> Command {
                <$flags>::augment_args(command)
            }

            fn augment_args_for_update(command: Command) -> Command {
                <$flags>::augment_args_for_update(command)
            }
        }
    };
}

args_by_flags!(DatabaseOptions, DatabaseFlags);
args_by_flags!(RedisOptions, RedisFlags);
