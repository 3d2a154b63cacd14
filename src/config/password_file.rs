//! libpq's file with passwords, `~/.pgpass`: lines of `host:port:database:user:password`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use zeroize::Zeroizing;

use super::PostgresUrl;

/// What the file says about a URL.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PasswordEntry {
    Password(Zeroizing<String>),
    /// There is no file, or no line in it for these servers.
    Absent,
    /// The file is ignored, for this reason.
    Ignored(String),
}

/// The password for the servers of a URL.
///
/// # Errors
/// When the servers have different passwords: all connections of a URL use one.
pub(super) fn password_for(url: &PostgresUrl, file: &Path) -> Result<PasswordEntry, String> {
    let Ok(metadata) = fs::metadata(file) else { return Ok(PasswordEntry::Absent) };
    let name = file.display();
    let ignored = |why: &str| Ok(PasswordEntry::Ignored(format!("the password file {name} {why}")));
    if !metadata.is_file() {
        return ignored("is not a plain file, and is ignored");
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return ignored(&format!("can be read by others, and is ignored; run: chmod 0600 {name}"));
    }
    let text = match fs::read_to_string(file) {
        Ok(text) => Zeroizing::new(text),
        Err(error) => return ignored(&format!("is ignored: {error}")),
    };
    let servers = servers(url);
    let mut passwords: Vec<_> = servers.iter().map(|server| find(&text, server)).collect();
    passwords.dedup();
    match &mut passwords[..] {
        [password] => Ok(password.take().map_or(PasswordEntry::Absent, PasswordEntry::Password)),
        _ => Err(format!(
            "has hosts for which {name} has different passwords; name hosts with one password, or write it in the URL"
        )),
    }
}

/// Host, port, database and user of each server of a URL, as the file names them.
fn servers(url: &PostgresUrl) -> Vec<[String; 4]> {
    let list =
        |name: &str| url.get(name).unwrap_or_default().split(',').map(str::to_owned).collect::<Vec<_>>();
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let user = url.get("user").unwrap_or_default();
    let database = url.get("dbname").unwrap_or(user);
    let at =
        |list: &[String], at: usize| list.get(at).or(list.first()).filter(|item| !item.is_empty()).cloned();
    (0..hosts.len().max(addresses.len()))
        .map(|n| {
            let host = hosts.get(n).or(addresses.get(n)).filter(|host| !host.is_empty()).cloned();
            let host = host.or_else(|| addresses.get(n).filter(|address| !address.is_empty()).cloned());
            let is_default = |host: &String| SOCKETS.contains(&host.as_str());
            let host = host.filter(|host| !is_default(host)).unwrap_or_else(|| "localhost".to_owned());
            let port = at(&ports, n).unwrap_or_else(|| "5432".to_owned());
            [host, port, database.to_owned(), user.to_owned()]
        })
        .collect()
}

/// The folders of sockets that libpq uses by default. The file calls them `localhost`.
const SOCKETS: [&str; 2] = ["/tmp", "/var/run/postgresql"];

/// The password of the first line that fits.
fn find(text: &str, server: &[String; 4]) -> Option<Zeroizing<String>> {
    text.lines().map(|line| line.strip_suffix('\r').unwrap_or(line)).find_map(|line| {
        if line.starts_with('#') {
            return None;
        }
        let mut rest = line;
        for value in server {
            let (field, is_any, after) = field(rest)?;
            if !is_any && field != *value {
                return None;
            }
            rest = after;
        }
        let password = Zeroizing::new(unescaped(rest));
        (!password.is_empty()).then_some(password)
    })
}

/// The field before the next `:`, whether it is a `*`, and the text after it.
fn field(text: &str) -> Option<(String, bool, &str)> {
    let mut is_escaped = false;
    let end = text.char_indices().find(|(_, c)| {
        let is_end = *c == ':' && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_end
    });
    let (end, _) = end?;
    let (value, rest) = (text.get(..end)?, text.get(end + 1..)?);
    Some((unescaped(value), value == "*", rest))
}

/// Without the backslashes before `:` and `\`.
fn unescaped(text: &str) -> String {
    let mut characters = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(c) = characters.next() {
        plain.extend(if c == '\\' { characters.next() } else { Some(c) });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# host:port:database:user:password\n\
        db:5432:keys:ada:one\n\
        \n\
        db:*:keys:ada:a\\:b\\\\c\n\
        [x:5432\n\
        fe80\\:\\:1:5432:keys:ada:six\n\
        localhost:5432:*:ada:socket\r\n\
        *:*:*:eve:eves\n";

    fn password(url: &str) -> Result<Option<String>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pgpass");
        fs::write(&file, FILE).expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
        password_for(&url.parse().expect("a URL"), &file).map(|entry| match entry {
            PasswordEntry::Password(password) => Some(password.to_string()),
            PasswordEntry::Absent => None,
            PasswordEntry::Ignored(why) => panic!("{why}"),
        })
    }

    #[test]
    fn first_line_that_fits_has_the_password() {
        for (url, expected) in [
            ("postgres://ada@db/keys", Some("one")),
            ("postgres://ada@db:6432/keys", Some("a:b\\c")),
            ("postgres://ada@[fe80::1]/keys", Some("six")),
            ("postgres://ada@/keys?host=/var/run/postgresql", Some("socket")),
            ("postgres://ada@/keys", Some("socket")),
            ("postgres://ada@/keys?host=/run/other", None),
            ("postgres://eve@anything:7/x", Some("eves")),
            ("postgres://eve@a,b/x", Some("eves")),
            ("postgres://ada@db/other", None),
            ("postgres://bob@db/keys", None),
        ] {
            assert_eq!(password(url).expect("no conflict").as_deref(), expected, "{url}");
        }
        let refused = password("postgres://ada@db,other/keys").expect_err("two passwords");
        assert!(refused.contains("different passwords") && !refused.contains("one,"), "{refused}");
    }

    #[test]
    fn file_that_others_can_read_is_ignored_with_the_fix() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pgpass");
        fs::write(&file, FILE).expect("writes");
        let url = "postgres://ada@db/keys".parse().expect("a URL");
        for (mode, is_read) in [(0o640, false), (0o604, false), (0o600, true), (0o400, true)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("a mode");
            match password_for(&url, &file).expect("no conflict") {
                PasswordEntry::Password(password) => assert!(is_read && *password == "one", "{mode:o}"),
                PasswordEntry::Ignored(why) => assert!(!is_read && why.contains("chmod 0600"), "{mode:o}"),
                PasswordEntry::Absent => panic!("{mode:o}"),
            }
        }
        assert_eq!(password_for(&url, &folder.path().join("none")), Ok(PasswordEntry::Absent));
        let entry = password_for(&url, folder.path()).expect("no conflict");
        assert!(matches!(entry, PasswordEntry::Ignored(_)), "{entry:?}");
    }
}
