//! `keystile keys list`

use std::{
    io::{self, IsTerminal},
    num::NonZeroUsize,
};

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use time::OffsetDateTime;

use crate::{
    cli::{
        argument::{future, past, refuse_whole_key},
        database::{open_read_only, with_database_name},
        output::{JsonArray, Output, OutputFormat},
    },
    config::DatabaseOptions,
    store::{DisplayRow, KeyFilter, KeySort, KeyState, PageCursor, PageRequest},
};

/// The columns of a list of keys, as a table.
pub(super) const COLUMNS: &[(&str, &str)] = &[
    ("ID", "id"),
    ("Prefix", "key_prefix"),
    ("Name", "name"),
    ("User", "user_email"),
    ("Active", "is_active"),
    ("Created", "created_at"),
    ("Expires", "expires_at"),
    ("Last used", "last_used_at"),
];

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only keys of the user with this id or email.
    #[arg(long, value_name = "ID|EMAIL")]
    user: Option<String>,
    /// Only keys with this tag. Repeatable: keys with all of these tags.
    #[arg(long = "tag", value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
    tags: Vec<String>,
    /// Only keys whose prefix begins so.
    #[arg(long, value_name = "PREFIX", value_parser = NonEmptyStringValueParser::new())]
    prefix: Option<String>,
    /// Only keys that were not used since then, such as 90d or 2026-01-01T00:00:00Z. A key that was never used is as old
    /// as its row.
    #[arg(long, value_name = "TIME", value_parser = past)]
    unused_since: Option<OffsetDateTime>,
    /// Only keys that expire before then, such as 30d or 2026-12-31T23:59:59Z, and have not expired yet.
    #[arg(long, value_name = "TIME", value_parser = future, conflicts_with = "expired")]
    expiring_before: Option<OffsetDateTime>,
    /// Only keys that have expired.
    #[arg(long)]
    expired: bool,
    /// Only revoked, disabled and deleted keys.
    #[arg(long, conflicts_with = "all")]
    revoked: bool,
    /// Include revoked, disabled and deleted keys.
    #[arg(long)]
    all: bool,

    /// Order of the keys. Keys without a value come last.
    #[arg(long, value_name = "ORDER", default_value = "created", help_heading = "Order and pages")]
    sort: Order,
    /// Reverse the order.
    #[arg(long, help_heading = "Order and pages")]
    reverse: bool,
    /// Maximum number of keys: the rest is in the next pages. Without it, 100 as a table on a terminal, and all
    /// otherwise.
    #[arg(long, value_name = "COUNT", help_heading = "Order and pages")]
    limit: Option<NonZeroUsize>,
    /// Start after the page that ended with this cursor: `cursor` of the last key in JSON, which the last page does not
    /// have. Give the same conditions and order as for that page.
    #[arg(long, value_name = "CURSOR", help_heading = "Order and pages")]
    after: Option<PageCursor>,

    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    database: DatabaseOptions,
}

/// The orders there are.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Order {
    /// Newest first.
    Created,
    /// Latest use first.
    LastUsed,
    /// Soonest expiry first.
    Expires,
    /// By name, byte for byte.
    Name,
}

/// Keys on a terminal.
const TERMINAL_LIMIT: NonZeroUsize = NonZeroUsize::new(100).expect("not zero");

/// Keys that are read at once where all are listed.
const READ_AT_ONCE: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

impl From<Order> for KeySort {
    fn from(order: Order) -> Self {
        match order {
            Order::Created => Self::Created,
            Order::LastUsed => Self::LastUsed,
            Order::Expires => Self::Expires,
            Order::Name => Self::Name,
        }
    }
}

impl List {
    fn filter(&self) -> KeyFilter {
        KeyFilter {
            user: self.user.clone(),
            tags: self.tags.clone(),
            prefix: self.prefix.clone(),
            unused_since: self.unused_since,
            expiring_before: self.expiring_before,
            expired: self.expired,
            state: match (self.revoked, self.all) {
                (true, _) => KeyState::Revoked,
                (false, true) => KeyState::Any,
                (false, false) => KeyState::Active,
            },
        }
    }

    /// The limit of the output. None: all keys.
    fn limit(&self) -> Option<NonZeroUsize> {
        let is_screen = self.output.output == OutputFormat::Table && io::stdout().is_terminal();
        self.limit.or(is_screen.then_some(TERMINAL_LIMIT))
    }

    /// What to say where nothing is listed.
    fn none(&self) -> &'static str {
        let is_narrow = self.filter().is_narrow() || self.after.is_some();
        match (is_narrow, self.revoked, self.all) {
            (true, _, true) => "no key meets the conditions",
            (true, ..) => "no key meets the conditions; --all includes revoked and deleted ones",
            (false, true, _) => "no revoked keys",
            (false, _, true) => "no keys",
            (false, ..) => "no active keys; --all lists revoked and deleted ones too",
        }
    }
}

pub(super) async fn run(args: List) -> anyhow::Result<()> {
    if let Some(prefix) = &args.prefix {
        refuse_whole_key(prefix)?;
    }
    let database = open_read_only(&args.database)?;
    let (filter, limit) = (args.filter(), args.limit());
    let mut page = PageRequest {
        sort: args.sort.into(),
        reverse: args.reverse,
        limit: limit.or(Some(READ_AT_ONCE)),
        after: args.after.clone(),
    };
    let (mut array, mut rows) = (JsonArray::default(), Vec::new());
    loop {
        let read = database.list_keys(&filter, &page).await;
        let read = read.map_err(|error| with_database_name(&args.database, error))?;
        let is_last = limit.is_some() || read.next.is_none();
        if let (true, Some(next)) = (is_last, &read.next) {
            eprintln!("there are more keys; the next page: --after {next}");
        }
        let mut keys = read.keys;
        if args.output.output == OutputFormat::Json {
            if let Some(next) = read.next.as_ref().filter(|_| is_last)
                && let Some(last) = keys.pop()
            {
                keys.push(last.with("cursor", next.to_string()));
            }
            keys.iter().try_for_each(|key: &DisplayRow| array.item(key))?;
        } else {
            rows.append(&mut keys);
        }
        if is_last {
            break;
        }
        page.after = read.next;
    }
    match args.output.output {
        OutputFormat::Json => array.end(),
        OutputFormat::Table => args.output.rows(&rows, COLUMNS, args.none()),
    }
}
