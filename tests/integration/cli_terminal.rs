//! The output on a terminal: its width, and its colours. In a pipe: plain, and whole.

use std::process::Command;

use crate::harness::{
    keystile::{self, keystile},
    place::Place,
};

/// Runs a command on a terminal of this width, by Python's `pty`. Returns what the terminal receives.
const ON_TERMINAL: &str = r"
import fcntl, os, pty, struct, sys, termios
width, arguments = int(sys.argv[1]), sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 40, width, 0, 0))
    os.execv(arguments[0], arguments)
text = b''
while True:
    try:
        part = os.read(terminal, 65536)
    except OSError:
        break
    if not part:
        break
    text += part
os.waitpid(pid, 0)
sys.stdout.buffer.write(text.replace(b'\r\n', b'\n'))
";

fn on_terminal(width: u16, arguments: &[&str], url: &str, variables: &[(&str, &str)]) -> String {
    let command = keystile::command(arguments, url);
    let output = Command::new("python3")
        .args(["-c", ON_TERMINAL, &width.to_string()])
        .arg(command.get_program())
        .args(command.get_args())
        .env("KEYSTILE_DATABASE_URL", url)
        .envs(variables.iter().copied())
        .env_remove("NO_COLOR")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

const EMAIL: &str = "somebody.with.a.rather.long.name@department.example.com";

async fn place() -> Place {
    let place = Place::sqlite().await;
    keystile(&["users", "create", "--email", EMAIL, "--username", "somebody"], &place.url(), "").done();
    let create = ["keys", "create", "--user", EMAIL, "--expires-at", "90d", "--allowed-ip", "10.0.0.0/8"];
    let name = ["--name", "a name that is too long for the column of a narrow terminal"];
    keystile(&[&create[..], &name].concat(), &place.url(), "").done();
    place
}

/// Without the sequences of colours.
fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[tokio::test]
async fn tables_fit_the_terminal() {
    let place = place().await;
    for arguments in [&["keys", "list"][..], &["keys", "show", "1"], &["explain", "1"], &["users", "list"]] {
        let text = plain(&on_terminal(80, arguments, &place.url(), &[]));
        assert!(text.lines().count() > 1, "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{arguments:?}: {line}");
        }
    }
    let narrow = plain(&on_terminal(80, &["keys", "list"], &place.url(), &[]));
    assert!(narrow.contains('…') && narrow.contains("in 89d") && narrow.lines().count() == 2, "{narrow}");
    let wide = plain(&on_terminal(200, &["keys", "list"], &place.url(), &[]));
    assert!(wide.contains(EMAIL) && !wide.contains('…'), "{wide}");
}

#[tokio::test]
async fn states_are_coloured_on_a_terminal_unless_no_color_is_set() {
    let place = place().await;
    for arguments in [&["keys", "list"][..], &["explain", "1"]] {
        assert!(on_terminal(80, arguments, &place.url(), &[]).contains("\u{1b}["), "{arguments:?}");
        let plain = on_terminal(80, arguments, &place.url(), &[("NO_COLOR", "1")]);
        assert!(!plain.contains('\u{1b}') && !plain.contains('\u{2061}'), "{plain}");
        let piped = keystile(arguments, &place.url(), "").done();
        assert!(!piped.contains('\u{1b}') && !piped.contains('\u{2061}'), "{piped}");
    }
    let denied = on_terminal(200, &["explain", "1"], &place.url(), &[]);
    assert!(denied.contains("\u{1b}[1;31mdeny: ip_not_allowed\u{1b}[0m"), "{denied}");
}

#[tokio::test]
async fn pipe_gets_whole_rows_with_tabs_and_exact_times() {
    let place = place().await;
    let text = keystile(&["keys", "list"], &place.url(), "").done();
    let rows: Vec<Vec<_>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8], "{text}");
    assert_eq!(rows[1][3], EMAIL);
    for time in [rows[1][5], rows[1][6]] {
        assert!(time.len() == "2026-01-02T03:04:05Z".len() && time.ends_with('Z'), "{time}");
    }
}

#[tokio::test]
async fn key_has_one_shape_wherever_it_is_printed() {
    let place = place().await;
    let json =
        |arguments: &[&str]| keystile(&[arguments, &["--output", "json"]].concat(), &place.url(), "").json();
    let shape = |value: &serde_json::Value, without: &[&str]| {
        let names = value.as_object().unwrap().keys();
        names.filter(|name| !without.contains(&name.as_str())).cloned().collect::<Vec<_>>()
    };
    let shown = json(&["keys", "show", "1"]);
    let listed = &json(&["keys", "list"])[0];
    assert_eq!(&shown, listed);
    let created = json(&["keys", "create", "--user", "1"]);
    assert!(created["credential"].is_string());
    let revoked = json(&["keys", "revoke", "1"]);
    let waited = json(&["keys", "revoke", "2", "--wait"]);
    assert!(waited["invalidation"]["dropped"].is_array(), "{waited}");
    for (other, more) in [(&created, "credential"), (&revoked, ""), (&waited, "invalidation")] {
        assert_eq!(shape(other, &[more]), shape(&shown, &[]));
    }
    let user = json(&["users", "create", "--email", "b@example.com", "--username", "b"]);
    let users = json(&["users", "list"]);
    assert_eq!(users.as_array().unwrap().last(), Some(&user));
    assert_eq!(shape(&json(&["users", "disable", "b@example.com"]), &[]), shape(&user, &[]));
}
