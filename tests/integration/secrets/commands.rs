//! Every command with secrets, in use and in failure.

use std::process::Command;

use super::*;

impl World {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.setup.command(arguments);
        command.envs(self.settings()).env("KEYSTILE_DATABASE_TIMEOUT", "2s");
        command
    }

    /// Runs a command whose stdout is the answer of a success, and what a failure says is evidence.
    fn run(&self, arguments: &[&str], stdin: &str, succeeds: bool) -> String {
        let (is_done, stdout) = self.places.run(self.command(arguments), stdin, false);
        assert_eq!(is_done, succeeds, "{arguments:?}: {stdout}");
        stdout
    }

    /// The answer has a secret, once.
    fn answer(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--output", "json"]].concat();
        let (is_done, stdout) = self.places.run(self.command(&arguments), "", true);
        assert!(is_done, "{arguments:?}");
        serde_json::from_str(&stdout).unwrap()
    }
}

pub async fn create_and_fail(world: &mut World) {
    world.run(&["migrate"], "", true);
    world.run(&["users", "create", "--email", "ada@example.com", "--username", "ada"], "", true);
    import(world);
    let made =
        world.answer(&["keys", "create", "--user", "ada@example.com", "--name", "made", "--cost", "4"]);
    let made_id = made["id"].to_string();
    let rotated = world.answer(&["keys", "rotate", &made_id, "--overlap", "1h", "--cost", "4"]);
    let token = world.answer(&["management-tokens", "create", "--name", "ci", "--scope", "write"]);
    let text = |value: &Value| value.as_str().expect("a secret").to_owned();
    let credential = text(&made["credential"]);
    world.canaries.extend([
        Canary::new("key made by a command", &credential),
        Canary::new("key rotated by a command", &text(&rotated["credential"])),
        Canary::new("management token", &text(&token["token"])),
    ]);
    world.add_hashes().await;
    world.run(&["keys", "show", "-"], &credential, true);
    world.run(&["keys", "show", "-"], &format!("{credential}x"), false);
    for arguments in [
        &["keys", "list", "--all", "--output", "json"][..],
        &["keys", "show", &made_id],
        &["users", "list"],
        &["management-tokens", "list"],
        &["explain", &made_id, "--path", "/v1/models"],
        &["audit", "--output", "json"],
        &["doctor", "--output", "json"],
        &["doctor"],
        &["invalidate", "--all"],
    ] {
        // Doctor and invalidate may have something to say: what they say counts here.
        world.places.run(world.command(arguments), "", false);
    }
    fail(world, &credential);
}

/// Plain keys and hashes, in files that are right and in files that are not.
fn import(world: &World) {
    let keys: Vec<_> = world.keys.iter().filter(|key| key.name != "wrong key").collect();
    let key = |key: &Canary| json!({ "key": key.text });
    let consumer = |keys: &[Value]| json!({ "username": "ada", "keyauth_credentials": keys });
    let file = |keys: &[Value]| json!({ "consumers": [consumer(keys)] }).to_string();
    let good: Vec<_> = keys.iter().map(|canary| key(canary)).collect();
    let kong = ["keys", "import", "-", "--format", "kong", "--cost", "4"];
    let broken = format!("{{\"consumers\": [{{\"username\": \"{}\n", keys[0].text);
    let with = |bad: Value| file(&[good.as_slice(), &[bad]].concat());
    for bad in [
        broken,
        with(json!({ "key": format!("{} {}", keys[0].text, keys[1].text) })),
        with(json!({ "key": [keys[0].text] })),
        with(json!({ "key": keys[1].text, keys[0].text.as_str(): 7 })),
        with(json!({ "key": keys[0].text, "ttl": keys[1].text })),
    ] {
        // Some of these are accepted: what is said counts.
        world.places.run(world.command(&[&kong[..], &["--dry-run"]].concat()), &bad, false);
    }
    world.run(&kong, &file(&good), true);
    let rows = |hash: &str| {
        let wrong = world.canary("wrong key");
        format!("name,key_hash,key_prefix,user_email\n{0},{hash},{0},{0}\n{hash},{0}\n", wrong.text)
    };
    world.run(&["keys", "import", "-", "--format", "csv"], &rows("$2b$04$short"), false);
    world.run(
        &["keys", "import", "-", "--format", "jsonl"],
        &format!("{{\"key_hash\": \"{}\"", keys[0].text),
        false,
    );
}

/// Servers that refuse, are not there, or cannot be named; files that hold something else.
fn fail(world: &mut World, credential: &str) {
    let wrong = Canary::with("wrong password", "", "%2F%40");
    let (postgres, redis) = (world.cluster.address(), world.redis.address());
    let database = |place: &str| format!("postgres://app:{}@{place}/postgres?sslmode=disable", wrong.text);
    let admin = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "none"];
    for (name, text) in [
        ("KEYSTILE_DATABASE_URL_FILE", database(&postgres.to_string())),
        ("KEYSTILE_DATABASE_URL_FILE", database("127.0.0.1:1")),
        ("KEYSTILE_DATABASE_URL_FILE", database("host:none")),
        ("KEYSTILE_DATABASE_URL_FILE", database("[::1")),
        ("KEYSTILE_DATABASE_URL_FILE", format!("{}&sslpassword={0}", database("h"))),
        ("KEYSTILE_DATABASE_URL_FILE", format!("mysql://app:{}@h/x", wrong.text)),
        ("KEYSTILE_DATABASE_URL_FILE", wrong.text.clone()),
        ("KEYSTILE_CHANGE_FEED_URL_FILE", database("host:none")),
        ("KEYSTILE_REDIS_URL_FILE", format!("redis://app:{}@{redis}:none", wrong.text)),
        ("KEYSTILE_REDIS_URL_FILE", format!("http://app:{}@{redis}", wrong.text)),
        ("KEYSTILE_REDIS_URL_FILE", wrong.text.clone()),
        ("KEYSTILE_CACHE_SECRET_FILE", format!("{},{}", wrong.text, &wrong.text[..20])),
    ] {
        let file = world.setup.path("wrong");
        std::fs::write(&file, text).unwrap();
        for arguments in
            [&["keys", "list"][..], &["doctor"], &["explain", "1"], &["migrate"], &["backup", "b"], &admin]
        {
            let mut command = world.command(arguments);
            command.env(name, &file);
            let (is_done, _) = world.places.run(command, "", false);
            let is_read = name.contains("DATABASE") || arguments == admin;
            assert!(!(is_read && is_done), "{name} {arguments:?}");
        }
    }
    // A secret in the place of something else. Its arguments are the mistake itself.
    let token = world.canary("management token").text.clone();
    for secret in [credential, &token] {
        for arguments in [
            &["keys", "show", secret][..],
            &["keys", "revoke", secret],
            &["keys", "rotate", secret],
            &["keys", "update", secret, "--name", "x"],
            &["explain", secret],
            &["invalidate", secret],
            &["management-tokens", "revoke", secret],
            &["users", "disable", secret],
            &["keys", "create", "--user", secret],
        ] {
            let output = world.command(arguments).output().unwrap();
            assert!(!output.status.success(), "{arguments:?}");
            let said = [output.stdout, output.stderr].concat();
            world.places.add(format!("a mistake with {}", arguments[0]), String::from_utf8_lossy(&said));
        }
    }
    world.canaries.push(wrong);
}

/// Texts that no error repeats, wherever they are given.
#[tokio::test]
async fn key_or_token_is_repeated_by_no_command_in_the_place_of_any_argument() {
    let place = Place::sqlite().await;
    place.user().await;
    let setup = Setup::with_database(&place.url());
    let run = |arguments: &[&str]| keystile::keystile(arguments, &place.url(), "").json();
    let made = run(&["keys", "create", "--user", "ada@example.com", "--name", "x", "--output", "json"]);
    let token = ["management-tokens", "create", "--name", "x", "--scope", "read", "--output", "json"];
    let secrets =
        [&made["credential"], &run(&token)["token"]].map(|secret| secret.as_str().unwrap().to_owned());
    let mut tried = 0;
    for arguments in all_arguments(&Cli::command(), &[]) {
        for secret in &secrets {
            let arguments: Vec<_> = arguments.iter().map(|word| word.replace("SECRET", secret)).collect();
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            let mut command = setup.command(&arguments);
            command.env("KEYSTILE_LISTEN", "127.0.0.1:0").env("KEYSTILE_ADMIN_LISTEN", "none");
            let output = command.env("KEYSTILE_MANAGEMENT_ADMIN_LISTEN", "none").output().unwrap();
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(!said.contains(&secret[8..]), "{arguments:?}: {said}");
            tried += 1;
        }
    }
    assert!(tried > 200, "{tried}");
}

/// Each command with `SECRET` in the place of each of its arguments. Those that write are not run to their end, for
/// they lack other arguments.
fn all_arguments(command: &clap::Command, before: &[&str]) -> Vec<Vec<String>> {
    let words = |name: &str| -> Vec<String> {
        before.iter().map(|word| (*word).to_owned()).chain([name.to_owned()]).collect()
    };
    let mut all = vec![words("SECRET")];
    for argument in command.get_arguments() {
        all.extend(argument.get_long().map(|flag| words(&format!("--{flag}=SECRET"))));
    }
    for inner in command.get_subcommands().filter(|inner| !["help", "man"].contains(&inner.get_name())) {
        all.extend(all_arguments(inner, &[before, &[inner.get_name()]].concat()));
    }
    all
}
