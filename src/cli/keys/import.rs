//! `keystile keys import`

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use time::OffsetDateTime;

use crate::cli::{
    database::{open, with_database_name},
    output::{count, print},
};
use crate::{
    clock,
    config::{BcryptCost, DatabaseOptions},
    store::{ImportError, ImportOptions, ImportProgress, ImportStep, Imported, OwnerRule},
};

mod contents;
mod documents;
mod kong;
mod losses;
mod rows;
mod unkey;

use contents::{Contents, Lines, ReadOptions};
use losses::Losses;

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// File of keys; `-` is stdin. Rows have the columns of `api_keys`, and `user_email` where there is no `user_id`.
    file: PathBuf,
    /// Format of the file; by its ending (.csv, .jsonl, .ndjson, .yaml and .yml of Kong) when absent.
    #[arg(long)]
    format: Option<Format>,
    /// Try everything, and keep nothing.
    #[arg(long)]
    dry_run: bool,

    /// Whether an owner in Kong or Unkey has to be a user already, by email or username, or becomes one.
    #[arg(long, value_name = "RULE", default_value = "match", help_heading = "Keys of Kong and Unkey")]
    users: Users,
    /// Domain of the email of a new user whose owner has none, such as example.com.
    #[arg(long, value_name = "DOMAIN", value_parser = domain, help_heading = "Keys of Kong and Unkey")]
    email_domain: Option<String>,
    /// Take the owner's id (`custom_id`, `externalId`) for the id of the user.
    #[arg(long, help_heading = "Keys of Kong and Unkey")]
    by_id: bool,
    /// Give all keys to the user with this id or email.
    #[arg(long, value_name = "ID|EMAIL", conflicts_with_all = ["users", "email_domain", "by_id"], value_parser = NonEmptyStringValueParser::new(), help_heading = "Keys of Kong and Unkey")]
    user: Option<String>,
    /// Import keys without restrictions that cannot be carried over. The error lists them.
    #[arg(long, help_heading = "Keys of Kong and Unkey")]
    drop_restrictions: bool,
    /// Import keys of fewer than 16 characters. Logs and lists show the first 8.
    #[arg(long, help_heading = "Keys of Kong and Unkey")]
    allow_short_keys: bool,
    /// bcrypt cost of the hash of a plain key. `auto` is 12.
    #[arg(
        long,
        env = "KEYSTILE_BCRYPT_COST",
        default_value = "auto",
        help_heading = "Keys of Kong and Unkey"
    )]
    cost: BcryptCost,

    #[command(flatten)]
    database: DatabaseOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Comma-separated rows, with a header.
    Csv,
    /// One row as a JSON object a line.
    Jsonl,
    /// Kong: YAML or JSON of `deck gateway dump` or `kong config db_export`, or answers of the Admin API.
    Kong,
    /// Unkey: answers of `apis.listKeys`, or rows of its table `keys` as JSON.
    Unkey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Users {
    /// Each owner is a user already.
    Match,
    /// An owner who is no user becomes one.
    Create,
}

/// Errors shown; a file that is wrong throughout needs no more to be recognised.
const SHOWN: usize = 20;

/// A larger file is taken for a mistake.
const MAX_BYTES: u64 = 512 << 20;

pub(super) async fn run(args: Import) -> anyhow::Result<()> {
    let file = &args.file;
    let Some(format) = args.format.or_else(|| by_ending(file)) else {
        bail!("{}: its ending tells no format; say --format csv, jsonl, kong or unkey", file.display());
    };
    let owners = args.owners(format)?;
    let contents = args.read(format).with_context(|| file.display().to_string())?;
    if !contents.errors.is_empty() {
        return Err(refusal(&contents.errors, &contents.places));
    }
    if !args.drop_restrictions && contents.losses.restricts() {
        bail!(
            "nothing was imported: Keystile cannot carry over these restrictions, and the keys would be allowed more \
             than before:\n{}\nset limits and lists of the keys yourself, and give --drop-restrictions",
            contents.losses.restrictions()
        );
    }
    let options = ImportOptions { owners, cost: args.cost.of_new_hashes(), is_dry_run: args.dry_run };
    let (rows, bar) = (contents.rows, bar()?);
    let total = rows.len() as u64;
    let progress = bar.clone();
    let progress: ImportProgress = Arc::new(move |step, done| {
        progress.set_length(total);
        progress.set_message(match step {
            ImportStep::Comparing => "compared",
            ImportStep::Hashing => "hashed",
            ImportStep::Inserting => "inserted",
        });
        progress.set_position(done as u64);
    });
    let imported = open(&args.database)?.import(rows, &options, progress).await;
    bar.finish_and_clear();
    match imported {
        Ok(imported) => report(&imported, &contents.losses, args.dry_run),
        Err(ImportError::Lines(errors)) => Err(refusal(&errors, &contents.places)),
        Err(ImportError::Manage(error)) => Err(with_database_name(&args.database, error)),
    }
}

impl Import {
    fn owners(&self, format: Format) -> anyhow::Result<OwnerRule> {
        let is_table = matches!(format, Format::Csv | Format::Jsonl);
        for (flag, is_set) in [
            ("--users", self.users != Users::Match),
            ("--email-domain", self.email_domain.is_some()),
            ("--by-id", self.by_id),
            ("--user", self.user.is_some()),
            ("--drop-restrictions", self.drop_restrictions),
            ("--allow-short-keys", self.allow_short_keys),
        ] {
            if is_set && is_table {
                bail!("{flag} has no effect on rows: they have user_id or user_email, and every column");
            }
        }
        let by_id = self.by_id;
        Ok(match (&self.user, self.users, &self.email_domain) {
            (Some(user), ..) => OwnerRule::One(user.clone()),
            (None, Users::Match, Some(_)) => bail!("--email-domain has no effect without --users create"),
            (None, Users::Match, None) => OwnerRule::Match { by_id },
            (None, Users::Create, domain) => OwnerRule::Create { by_id, email_domain: domain.clone() },
        })
    }

    fn read(&self, format: Format) -> anyhow::Result<Contents> {
        let (input, written_at): (Box<dyn Read>, _) = if self.file.as_os_str() == "-" {
            (Box::new(io::stdin()), None)
        } else {
            let file = File::open(&self.file)?;
            let modified = file.metadata()?.modified().ok().map(OffsetDateTime::from);
            (Box::new(file), modified)
        };
        let now = clock::wall();
        let options = ReadOptions {
            // A time in the future would let keys live for longer than they may.
            written_at: written_at.unwrap_or(now).min(now),
            allow_short_keys: self.allow_short_keys,
        };
        match format {
            Format::Csv => rows::read_csv(input),
            Format::Jsonl => rows::read_json_lines(input),
            Format::Kong => kong::read(&text(input)?, options),
            Format::Unkey => unkey::read(&text(input)?, options),
        }
    }
}

fn text(input: Box<dyn Read>) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    input.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!("it is larger than {} MiB; split it", MAX_BYTES >> 20);
    }
    // The error's own text would be safe, and its bytes are not.
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("it is not UTF-8"))
}

fn by_ending(file: &Path) -> Option<Format> {
    match file.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "csv" => Some(Format::Csv),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        "yaml" | "yml" => Some(Format::Kong),
        _ => None,
    }
}

fn domain(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if text.is_empty() || !text.bytes().all(allowed) {
        return Err("is no domain, such as example.com");
    }
    Ok(text.to_owned())
}

fn bar() -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} keys {msg}, {eta} left")?;
    Ok(ProgressBar::new(0).with_style(style))
}

/// Values are nowhere repeated: a shifted column puts hashes where names should be.
fn refusal(errors: &Lines, places: &BTreeMap<u64, String>) -> anyhow::Error {
    let mut text = String::from("nothing was imported:");
    for (line, error) in errors.iter().take(SHOWN) {
        match places.get(line) {
            Some(place) => text.push_str(&format!("\n  {place}: {error}")),
            None => text.push_str(&format!("\n  line {line}: {error}")),
        }
    }
    if errors.len() > SHOWN {
        let what = if places.is_empty() { "lines" } else { "keys" };
        text.push_str(&format!("\n  and {} {what} more", errors.len() - SHOWN));
    }
    anyhow::Error::msg(text)
}

/// The result goes to stdout, what was lost to stderr.
fn report(imported: &Imported, losses: &Losses, is_dry_run: bool) -> anyhow::Result<()> {
    let Imported { keys, users, without_column } = imported;
    let mut losses = losses.clone();
    for (column, count) in without_column {
        losses.note_times(format!("{column}: this database has no such column"), *count);
    }
    let note = losses.all();
    if !note.is_empty() {
        eprintln!("not carried over:\n{note}");
    }
    let verb = if is_dry_run { "would import" } else { "imported" };
    let created =
        if *users == 0 { String::new() } else { format!(" and create {}", count(*users as u64, "user")) };
    let created = if is_dry_run { created } else { created.replace("create", "created") };
    print(&format!("{verb} {}{created}\n", count(*keys as u64, "key")))
}
