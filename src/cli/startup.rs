//! What a process logs when it starts: its version, the settings that are not the default, and variables that look like
//! settings and are none.

use std::collections::BTreeSet;

use clap::{Arg, ArgMatches, Command, parser::ValueSource};
use tracing::{info, warn};

use crate::{
    config::{is_unread_libpq_variable, redacted},
    version::{COMMIT, VERSION},
};

/// The settings of one process, for its first log lines.
#[derive(Debug, Clone, Default)]
pub(super) struct Startup {
    command: String,
    /// `name=value` of each setting that a flag or a variable sets. Secrets are not shown.
    settings: Vec<String>,
    unknown: Vec<UnknownVariable>,
    /// Variables of libpq that change nothing, where the database is a Postgres.
    unread: Vec<String>,
}

/// A variable that no setting reads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct UnknownVariable {
    name: String,
    nearest: Option<String>,
}

/// The beginning of all variables.
const PREFIX: &str = "KEYSTILE_";

/// A name that is less similar is no suggestion.
const SIMILAR: f64 = 0.8;

impl Startup {
    /// Reads the arguments of the subcommand, and the names of the environment's `variables`.
    pub(super) fn new(root: &Command, matches: &ArgMatches, variables: impl Iterator<Item = String>) -> Self {
        let Some((name, matches)) = matches.subcommand() else { return Self::default() };
        let Some(command) = root.find_subcommand(name) else { return Self::default() };
        let settings = command.get_arguments().filter_map(|argument| shown(argument, matches)).collect();
        let known = known_variables(root);
        let is_postgres = || {
            let mut urls = matches.try_get_raw("database_url").ok().flatten().into_iter().flatten();
            urls.any(|url| url.to_string_lossy().starts_with("postgres"))
        };
        let (libpq, variables): (Vec<_>, Vec<_>) = variables.partition(|name| is_unread_libpq_variable(name));
        let unread = if !libpq.is_empty() && is_postgres() { libpq } else { Vec::new() };
        let unknown = variables.into_iter().filter(|name| is_setting(name) && !known.contains(name));
        let unknown = unknown.map(|name| UnknownVariable { nearest: nearest(&name, &known), name }).collect();
        Self { command: name.to_owned(), settings, unknown, unread }
    }

    /// An error for a misspelled variable of TLS, where listeners are started: without its CA, for example, a listener
    /// would let in each client.
    pub(super) fn misspelled_tls(&self) -> Option<String> {
        if !["serve", "management"].contains(&self.command.as_str()) {
            return None;
        }
        let UnknownVariable { name, nearest } =
            self.unknown.iter().find(|UnknownVariable { name, .. }| name.contains("_TLS_"))?;
        let meant = nearest.as_ref().map(|nearest| format!("; {nearest} is similar")).unwrap_or_default();
        Some(format!("no setting has the name {name}{meant}; correct the variable, or remove it"))
    }

    /// Writes the first lines of the log.
    pub(super) fn log(&self) {
        info!(
            version = VERSION,
            commit = COMMIT,
            settings = self.settings.join(" "),
            "keystile {} starts",
            self.command
        );
        for UnknownVariable { name, nearest } in &self.unknown {
            warn!(variable = name, nearest, "no setting has this name; the variable is ignored");
        }
        for name in &self.unread {
            warn!(
                variable = name,
                "this variable of libpq is not supported, and is ignored; set the parameter in --database-url"
            );
        }
    }
}

/// `name=value`, if a flag or a variable sets it.
fn shown(argument: &Arg, matches: &ArgMatches) -> Option<String> {
    let (id, name) = (argument.get_id().as_str(), argument.get_long()?);
    let source = matches.value_source(id)?;
    if source == ValueSource::DefaultValue {
        return None;
    }
    let values = matches.get_raw(id)?.map(|value| value.to_string_lossy());
    let is_secret = argument.is_hide_env_values_set();
    let values = values.map(|value| {
        // A URL in the wrong place may hold a password too.
        if is_secret || value.contains("://") {
            redacted(&value).unwrap_or_else(|| "(not shown)".to_owned())
        } else {
            value.into_owned()
        }
    });
    Some(format!("{name}={}", values.collect::<Vec<_>>().join(",")))
}

/// The variables of all commands: one environment may serve several.
fn known_variables(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str().map(str::to_owned));
    own.chain(command.get_subcommands().flat_map(known_variables)).collect()
}

/// Whether a variable looks like a setting. Kubernetes sets variables of its own in every pod for a Service named
/// `keystile`, such as `KEYSTILE_SERVICE_HOST` and `KEYSTILE_PORT_9191_TCP`.
fn is_setting(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let of_a_service = ["SERVICE_HOST", "SERVICE_PORT"].iter().any(|word| rest.contains(word));
    let port = rest.rsplit_once("PORT").map(|(_, after)| after);
    let of_a_port = port.is_some_and(|after| {
        after.is_empty() || after.trim_start_matches('_').starts_with(|first: char| first.is_ascii_digit())
    });
    !of_a_service && !of_a_port
}

fn nearest(name: &str, known: &BTreeSet<String>) -> Option<String> {
    let similarity = |known: &&String| strsim::jaro_winkler(without_prefix(name), without_prefix(known));
    let nearest = known.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(&nearest) >= SIMILAR).then(|| nearest.clone())
}

fn without_prefix(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Command {
        let flag = |name: &'static str, variable: &'static str| Arg::new(name).long(name).env(variable);
        let serve = Command::new("serve")
            .arg(flag("record-ttl", "KEYSTILE_TEST_RECORD_TTL").default_value("300s"))
            .arg(flag("listen", "KEYSTILE_TEST_LISTEN").value_delimiter(',').default_value("127.0.0.1:1"))
            .arg(flag("database-url", "KEYSTILE_TEST_DATABASE_URL").hide_env_values(true))
            .arg(flag("cache-secret", "KEYSTILE_TEST_CACHE_SECRET").hide_env_values(true));
        Command::new("keystile").subcommand(serve)
    }

    fn startup(arguments: &[&str], variables: &[&str]) -> Startup {
        let matches = root().get_matches_from([&["keystile", "serve"], arguments].concat());
        Startup::new(&root(), &matches, variables.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn settings_that_are_set_are_shown_without_secrets() {
        let url = "--database-url=postgres://app:hunter2@db:5432/keys";
        let startup = startup(&[url, "--cache-secret", "hunter2", "--listen", "127.0.0.1:2,unix:/s"], &[]);
        assert_eq!(
            startup.settings,
            ["listen=127.0.0.1:2,unix:/s", "database-url=postgres://db:5432", "cache-secret=(not shown)"]
        );
    }

    #[test]
    fn variable_that_no_setting_reads_is_named_with_the_nearest_setting() {
        let variables =
            ["KEYSTILE_TEST_RECORD_TTTL", "KEYSTILE_TEST_RECORD_TTL", "KEYSTILE_Q", "PATH", "KEYSTILE_PORT"];
        let unknown = startup(&[], &variables).unknown;
        let unknown: Vec<_> = unknown.iter().map(|it| (it.name.as_str(), it.nearest.as_deref())).collect();
        let nearest = Some("KEYSTILE_TEST_RECORD_TTL");
        assert_eq!(unknown, [("KEYSTILE_TEST_RECORD_TTTL", nearest), ("KEYSTILE_Q", None)]);
    }

    #[test]
    fn variables_of_a_kubernetes_service_are_no_settings() {
        for name in [
            "KEYSTILE_SERVICE_HOST",
            "KEYSTILE_SERVICE_PORT",
            "KEYSTILE_SERVICE_PORT_GRPC",
            "KEYSTILE_PORT",
            "KEYSTILE_PORT_9191_TCP",
            "KEYSTILE_PORT_9191_TCP_ADDR",
            "KEYSTILE_INJECTOR_SERVICE_HOST",
            "KEYSTILE_INJECTOR_PORT_443_TCP_PORT",
            "OTHER",
        ] {
            assert!(!is_setting(name), "{name}");
        }
        assert!(is_setting("KEYSTILE_INJECT_ADMIN_PRT") && is_setting("KEYSTILE_TIMEOUTS"));
    }
}
