//! The environment variables of libpq, which psql and other programs read: the values of what a Postgres URL leaves out.

use std::{collections::BTreeMap, env, path::PathBuf};

use zeroize::Zeroizing;

use super::{
    DatabaseUrl, PostgresUrl,
    password_file::{PasswordEntry, password_for},
};

/// Variables that are read, and the parameter that each of them stands for.
const READ: [(&str, &str); 7] = [
    ("PGHOST", "host"),
    ("PGPORT", "port"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGDATABASE", "dbname"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
];

/// The variable that names the file with passwords. Without it, the file is `.pgpass` in the home folder.
const PASSFILE: &str = "PGPASSFILE";

/// Variables of libpq that are not read, and would change what psql does.
const NOT_READ: [&str; 29] = [
    "PGAPPNAME",
    "PGCHANNELBINDING",
    "PGCLIENTENCODING",
    "PGCONNECT_TIMEOUT",
    "PGDATESTYLE",
    "PGGSSENCMODE",
    "PGGSSLIB",
    "PGHOSTADDR",
    "PGKRBSRVNAME",
    "PGLOADBALANCEHOSTS",
    "PGMAXPROTOCOLVERSION",
    "PGMINPROTOCOLVERSION",
    "PGOPTIONS",
    "PGREQUIREAUTH",
    "PGREQUIREPEER",
    "PGREQUIRESSL",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGSSLCERT",
    "PGSSLCERTMODE",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGSSLKEY",
    "PGSSLMAXPROTOCOLVERSION",
    "PGSSLMINPROTOCOLVERSION",
    "PGSSLNEGOTIATION",
    "PGSSLSNI",
    "PGTARGETSESSIONATTRS",
    "PGTZ",
];

/// Whether libpq reads this variable, and Keystile does not.
pub fn is_unread_libpq_variable(name: &str) -> bool {
    NOT_READ.contains(&name)
}

/// Reads a URL and completes it from the environment. A warning about a file with passwords goes to stderr.
pub(super) fn complete_database_url(text: &str) -> Result<DatabaseUrl, String> {
    let DatabaseUrl::Postgres(url) = text.parse()? else { return text.parse() };
    let (url, warning) = LibpqVariables::of_process().complete(url)?;
    if let Some(warning) = warning {
        eprintln!("warning: {warning}");
    }
    Ok(DatabaseUrl::Postgres(url))
}

/// The variables that are set and not empty.
struct LibpqVariables(BTreeMap<&'static str, Zeroizing<String>>);

impl LibpqVariables {
    #[expect(clippy::disallowed_methods, reason = "a URL is parsed once, with the settings")]
    fn of_process() -> Self {
        let names = READ.iter().map(|(name, _)| *name).chain([PASSFILE, "HOME"]);
        Self(names.filter_map(|name| Some((name, env::var(name).ok()?.into()))).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.as_str()).filter(|value| !value.is_empty())
    }

    /// The URL with the parameters that it leaves out, and a warning about the file with passwords.
    fn complete(&self, mut url: PostgresUrl) -> Result<(PostgresUrl, Option<String>), String> {
        for (variable, parameter) in READ {
            let is_elsewhere = parameter == "host" && url.get("hostaddr").is_some();
            if let Some(value) = self.get(variable)
                && url.get(parameter).is_none()
                && !is_elsewhere
            {
                url.set(parameter, value);
            }
        }
        if url.get("password").is_some() {
            return Ok((url, None));
        }
        let file = self.get(PASSFILE).map(PathBuf::from);
        let Some(file) = file.or_else(|| self.get("HOME").map(|home| PathBuf::from(home).join(".pgpass")))
        else {
            return Ok((url, None));
        };
        match password_for(&url, &file)? {
            PasswordEntry::Password(password) => url.set("password", &password),
            PasswordEntry::Absent => {}
            PasswordEntry::Ignored(warning) => return Ok((url, Some(warning))),
        }
        Ok((url, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(url: &str, variables: &[(&'static str, &str)]) -> PostgresUrl {
        let variables = variables.iter().map(|(name, value)| (*name, (*value).to_owned().into()));
        let variables = LibpqVariables(variables.collect());
        variables.complete(url.parse().expect("a URL")).expect("completes").0
    }

    #[test]
    fn variables_fill_what_the_url_leaves_out_and_change_nothing_else() {
        let variables = [
            ("PGHOST", "db2"),
            ("PGPORT", "6432"),
            ("PGUSER", "ada"),
            ("PGPASSWORD", "p@ss/word"),
            ("PGDATABASE", "other"),
            ("PGSSLMODE", "require"),
            ("PGSSLROOTCERT", ""),
        ];
        for (url, expected) in [
            ("postgres://", ["db2", "6432", "ada", "p@ss/word", "other", "require"]),
            ("postgres://u:p@h:1/d?sslmode=disable", ["h", "1", "u", "p", "d", "disable"]),
            ("postgres://h/d", ["h", "6432", "ada", "p@ss/word", "d", "require"]),
        ] {
            let url = complete(url, &variables);
            let names = ["host", "port", "user", "password", "dbname", "sslmode"];
            assert_eq!(names.map(|name| url.get(name).unwrap_or_default()), expected);
            assert_eq!(url.get("sslrootcert"), None);
        }
        assert_eq!(complete("postgres://?hostaddr=10.0.0.1", &variables).get("host"), None);
    }
}
