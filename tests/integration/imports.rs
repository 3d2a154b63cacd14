//! Keys of other products are imported, and then they work: the right secret is allowed, and no other.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::harness::{
    client::{ask, channel, code, status},
    envoy::{Gateway, VERSIONS},
    keystile::{Run, keystile},
    place::Place,
    postgres::Schema,
    service::{Keystile, Setup},
    until,
};

const KONG_DECK: &str = include_str!("imports/kong-deck.yaml");
const KONG_DB_EXPORT: &str = include_str!("imports/kong-db-export.yaml");
const KONG_ADMIN: &str = include_str!("imports/kong-admin.json");
const UNKEY_API: &str = include_str!("imports/unkey-api.json");
const UNKEY_TABLE: &str = include_str!("imports/unkey-table.jsonl");

/// The keys of ada in Kong's files.
const KONG_KEYS: [&str; 2] = ["mPWlQmYyMUxYdWEdpUbWmqMKYNJXQEiN", "0qZk2vJ8bT6hYx4sLw1nR9eD3gF7cA5u"];
/// The keys of ada in Unkey's files: the second is disabled.
const UNKEY_KEYS: [&str; 2] = ["acme_4Bu2cxyEPvyFRGdpxvBnPk", "acme_9Xw1aBcDeFgHiJkMnPqRsT"];

/// Imports a text, and checks that no secret of it is shown.
fn import(url: &str, text: &str, arguments: &[&str]) -> Run {
    let run = keystile(&[&["keys", "import", "-"], arguments].concat(), url, text);
    for secret in KONG_KEYS.iter().chain(&UNKEY_KEYS) {
        assert!(!format!("{run:?}").contains(&secret[8..]), "a secret is shown: {run:?}");
    }
    run
}

fn listed(url: &str) -> Vec<Value> {
    let keys = keystile(&["keys", "list", "--all", "--output", "json"], url, "").json();
    keys.as_array().expect("a list").clone()
}

/// The imported key that begins like this one.
fn like<'a>(keys: &'a [Value], credential: &str) -> &'a Value {
    let found = keys.iter().find(|key| key["key_prefix"] == credential[..8]);
    found.unwrap_or_else(|| panic!("{} is not there", &credential[..8]))
}

/// The right secret is allowed, and one that differs in its last character is not.
async fn expect_working(channel: &Channel, credential: &str) {
    assert_eq!(status(&ask(channel, credential).await), 200, "{}", &credential[..8]);
    for wrong in [format!("{}~", &credential[..credential.len() - 1]), format!("{credential}x")] {
        let answer = ask(channel, &wrong).await;
        assert_eq!((status(&answer), code(&answer).as_deref()), (401, Some("invalid_credential")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_each_kong_export_work() {
    for (text, more) in [
        (KONG_DECK, &["--users", "create", "--email-domain", "example.com"][..]),
        (KONG_DB_EXPORT, &[]),
        (KONG_ADMIN, &[]),
    ] {
        let setup = Setup::new();
        setup.create_user("ada");
        let arguments = [&["--format", "kong"], more].concat();
        let said = import(&setup.database_url, text, &arguments).done();
        let expected =
            if more.is_empty() { "imported 2 keys\n" } else { "imported 3 keys and created 1 user\n" };
        assert_eq!(said, expected);
        let keys = listed(&setup.database_url);
        for key in KONG_KEYS {
            let key = like(&keys, key);
            assert_eq!((&key["user_email"], &key["name"]), (&json!("ada@example.com"), &json!("ada")));
            assert!(key["scopes"].as_array().expect("scopes").contains(&json!("readers")), "{key}");
            assert!(
                key["is_active"] == true && key["is_unlimited"] == true && key["total_requests"] == 0,
                "{key}"
            );
        }
        let Keystile { setup, process: _process } = setup.start(&[]).await;
        let channel = channel(setup.tcp).await;
        for key in KONG_KEYS {
            expect_working(&channel, key).await;
        }
    }
}

#[tokio::test]
async fn tags_times_and_expiry_of_kong_are_carried_over() {
    let place = Place::sqlite().await;
    place.user().await;
    import(&place.url(), KONG_DECK, &["--format", "kong", "--user", "ada@example.com"]).done();
    let keys = listed(&place.url());
    assert_eq!(like(&keys, KONG_KEYS[0])["tags"], json!(["laptop", "team-a"]));
    assert_eq!(like(&keys, KONG_KEYS[0])["scopes"], json!(["readers", "writers"]));
    assert_eq!(like(&keys, "90210902")["user_email"], "ada@example.com", "all keys are of one user");

    let place = Place::sqlite().await;
    place.user().await;
    import(&place.url(), KONG_DB_EXPORT, &["--format", "kong"]).done();
    let keys = listed(&place.url());
    let (one, two) = (like(&keys, KONG_KEYS[0]), like(&keys, KONG_KEYS[1]));
    assert_eq!((&one["created_at"], &one["expires_at"]), (&json!("2024-12-16T06:07:25Z"), &Value::Null));
    assert_eq!(two["expires_at"], "2080-01-01T00:00:00Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_each_unkey_export_work() {
    for (text, hash) in [(UNKEY_API, "$2b$04$"), (UNKEY_TABLE, "$sha256$")] {
        for place in [Place::sqlite().await, Place::postgres().await] {
            place.user().await;
            let run = import(&place.url(), text, &["--format", "unkey"]);
            if hash == "$sha256$" {
                assert!(run.stderr.contains("deleted key (1)"), "{run:?}");
            }
            run.done();
            let keys = listed(&place.url());
            let key = like(&keys, UNKEY_KEYS[0]);
            assert_eq!(
                (&key["name"], &key["created_at"]),
                (&json!("laptop"), &json!("2023-12-01T10:10:00Z"))
            );
            if hash == "$2b$04$" {
                assert_eq!(key["scopes"], json!(["documents.read", "documents.write"]));
                assert_eq!(
                    (&key["rate_limit_per_hour"], &key["rate_limit_per_day"]),
                    (&json!(1000), &Value::Null)
                );
            } else {
                assert_eq!(key["expires_at"], "2106-02-07T06:28:15Z");
                assert_eq!(like(&keys, UNKEY_KEYS[1])["is_active"], false);
            }
            let stored =
                place.value("SELECT key_hash FROM api_keys ORDER BY id LIMIT 1").await.expect("a hash");
            assert!(stored.starts_with(hash));
            let identified =
                keystile(&["keys", "show", "-", "--output", "json"], &place.url(), UNKEY_KEYS[0]).json();
            assert_eq!(identified["id"], key["id"]);
            let Keystile { setup, process: _process } = Setup::with_database(&place.url()).start(&[]).await;
            let channel = channel(setup.tcp).await;
            expect_working(&channel, UNKEY_KEYS[0]).await;
            if hash == "$sha256$" {
                assert_eq!(code(&ask(&channel, UNKEY_KEYS[1]).await).as_deref(), Some("disabled"));
            }
        }
    }
}

/// What a caller sees of a wrong secret is what it sees of an unknown prefix; and nothing of it costs bcrypt.
#[tokio::test(flavor = "multi_thread")]
async fn sha256_keys_work_through_envoy_and_tell_nothing_to_others() {
    for version in VERSIONS {
        let setup = Setup::new();
        setup.create_user("ada");
        import(&setup.database_url, UNKEY_TABLE, &["--format", "unkey"]).done();
        let gateway = Gateway::start(version, "uds.yaml", setup, &[("KEYSTILE_BCRYPT_COST", "4")]).await;
        for _ in 0..2 {
            assert_eq!(gateway.status(UNKEY_KEYS[0]).await, 200);
        }
        let mut answers = Vec::new();
        for attempt in [format!("{}x", UNKEY_KEYS[0]), "zzzz_4Bu2cxyEPvyFRGdpxvBnPx".to_owned()] {
            let answer = gateway.get("/v1/models").bearer_auth(attempt).send().await.unwrap();
            let (status, mut headers) = (answer.status(), answer.headers().clone());
            ["date", "x-envoy-upstream-service-time"].iter().for_each(|name| drop(headers.remove(*name)));
            let mut body: Value = answer.json().await.unwrap();
            body["request_id"] = Value::Null;
            answers.push((status, headers, body));
        }
        assert_eq!(answers[0], answers[1]);
        let metrics = gateway.keystile.setup.metrics().await;
        let count = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.trim().parse::<u64>().expect("a number")
        };
        assert_eq!(count("keystile_first_proofs_total{outcome=\"mismatch\"}"), 2);
        assert_eq!(count("keystile_first_proofs_total{outcome=\"proven\"}"), 1);
        assert_eq!(count("keystile_bcrypt_duration_seconds_count"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_sha256_hash_ends_the_key_and_a_malformed_one_denies() {
    let setup = Setup::new();
    setup.create_user("ada");
    import(&setup.database_url, UNKEY_TABLE, &["--format", "unkey"]).done();
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    let channel = channel(setup.tcp).await;
    assert_eq!(status(&ask(&channel, UNKEY_KEYS[0]).await), 200);
    for hash in [
        "$sha256$",
        "$sha256$47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU",
        "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    ] {
        setup.execute(&format!("UPDATE api_keys SET key_hash = '{hash}' WHERE key_prefix = 'acme_4Bu'"));
        until("the change is seen", Duration::from_secs(5), async || {
            status(&ask(&channel, UNKEY_KEYS[0]).await) == 401
        })
        .await;
    }
}

/// A restart costs nothing, and nothing of such a key is stored for it.
#[tokio::test(flavor = "multi_thread")]
async fn sha256_proofs_are_not_stored() {
    let setup = Setup::new();
    setup.create_user("ada");
    import(&setup.database_url, UNKEY_TABLE, &["--format", "unkey"]).done();
    let Keystile { setup, mut process } = setup.start(&[("KEYSTILE_DURABLE_PROOFS", "all")]).await;
    let channel = channel(setup.tcp).await;
    assert_eq!(status(&ask(&channel, UNKEY_KEYS[0]).await), 200);
    process.signal(rustix::process::Signal::TERM);
    process.wait(Duration::from_secs(20)).expect("ends");
    assert_eq!(setup.value("SELECT count(*) FROM keystile_proofs"), "0");
}

#[tokio::test]
async fn one_key_that_does_not_fit_keeps_every_other_out() {
    for place in [Place::sqlite().await, Place::postgres().await] {
        place.user().await;
        let kong = ["--format", "kong"];
        let unknown_owner = KONG_DB_EXPORT.replace("username: ada", "username: eve");
        let twice = KONG_DB_EXPORT.replace(KONG_KEYS[1], KONG_KEYS[0]);
        let short = KONG_DB_EXPORT.replace(KONG_KEYS[1], "tooShort");
        let without_consumer =
            "keyauth_credentials: [{key: abcdefghijklmnop, consumer: 00000000}]".to_owned();
        let many: String = (0..9).map(|n| format!("  - key: same_beginning_of_{n}\n")).collect();
        let many = format!("consumers:\n- username: ada\n  keyauth_credentials:\n{many}");
        for (text, words) in [
            (&unknown_owner, "key 1 of consumer eve: its owner is no user"),
            (&twice, "key 2 of consumer ada: the same key is in the file twice"),
            (&short, "key 2 of consumer ada: the key has fewer than 16 characters"),
            (&without_consumer, "does not say whose it is"),
            (&many, "key 9 of consumer ada: more than 8 keys"),
        ] {
            let error = import(&place.url(), text, &kong).failed(1);
            assert!(error.contains("nothing was imported") && error.contains(words), "{error}");
            assert_eq!(listed(&place.url()), Vec::<Value>::new(), "{words}");
        }
        // The second time, every key is there already: bcrypt says so, since its hashes differ each time.
        import(&place.url(), KONG_DB_EXPORT, &kong).done();
        let error = import(&place.url(), KONG_DB_EXPORT, &kong).failed(1);
        assert!(error.contains("key 1 of consumer ada: it is there already, as key"), "{error}");
        let unkey = ["--format", "unkey"];
        import(&place.url(), UNKEY_TABLE, &unkey).done();
        let error = import(&place.url(), UNKEY_TABLE, &unkey).failed(1);
        assert!(error.contains("key key_1234567890abcdef: a key with this id or this key_hash"), "{error}");
        let error = import(&place.url(), UNKEY_API, &unkey).failed(1);
        assert!(error.contains("it is there already"), "the same key by another hash: {error}");
        assert_eq!(listed(&place.url()).len(), 4);
    }
}

#[tokio::test]
async fn restriction_that_is_lost_needs_consent() {
    let place = Place::sqlite().await;
    place.user().await;
    let limited = format!(
        "{KONG_DB_EXPORT}plugins:\n- {{name: rate-limiting, consumer: 59d1ef15-24a5-4373-b957-e8192c15ff6e}}\n"
    );
    let error = import(&place.url(), &limited, &["--format", "kong"]).failed(1);
    assert!(
        error.contains("plugin rate-limiting of a consumer (1)") && error.contains("--drop-restrictions"),
        "{error}"
    );
    assert_eq!(listed(&place.url()).len(), 0);
    let run = import(&place.url(), &limited, &["--format", "kong", "--drop-restrictions"]);
    assert!(run.stderr.contains("not carried over:\n  plugin rate-limiting of a consumer (1)"), "{run:?}");
    assert_eq!(run.done(), "imported 2 keys\n");
}

#[tokio::test]
async fn dry_run_finds_what_the_database_would_refuse_and_keeps_nothing() {
    for place in [Place::sqlite().await, Place::postgres().await] {
        keystile(&["users", "create", "--email", "ada@example.com", "--username", "ada"], &place.url(), "")
            .done();
        let arguments =
            ["--format", "kong", "--users", "create", "--email-domain", "example.com", "--dry-run"];
        let said = import(&place.url(), KONG_DECK, &arguments).done();
        assert_eq!(said, "would import 3 keys and create 1 user\n");
        let users = keystile(&["users", "list", "--output", "json"], &place.url(), "").json();
        assert_eq!((listed(&place.url()).len(), users.as_array().map(Vec::len)), (0, Some(1)));
        place.execute("CREATE UNIQUE INDEX one_key_each ON api_keys (user_id)").await;
        let error = import(&place.url(), KONG_DB_EXPORT, &["--format", "kong", "--dry-run"]).failed(1);
        assert!(
            error.contains("key 2 of consumer ada") && error.to_lowercase().contains("unique"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn owner_is_a_user_by_id_only_where_that_is_said() {
    let place = Place::sqlite().await;
    place.user().await;
    place.execute("UPDATE users SET id = 4711, username = 'lovelace', email = 'lovelace@example.com'").await;
    let one = KONG_DECK.replace("grace@example.com", "lovelace@example.com");
    let error = import(&place.url(), &one, &["--format", "kong"]).failed(1);
    assert!(error.contains("key 1 of consumer ada") && error.contains("--by-id"), "{error}");
    import(&place.url(), &one, &["--format", "kong", "--by-id"]).done();
    assert!(listed(&place.url()).iter().all(|key| key["user_id"] == 4711));
}

#[tokio::test]
async fn owner_who_could_be_two_users_is_refused() {
    let place = Place::sqlite().await;
    place.user().await;
    let other =
        [("id", Some("2")), ("email", Some("4711")), ("username", Some("x")), ("hashed_password", Some("!"))];
    place.insert("users", &other).await;
    let error = import(&place.url(), KONG_DECK, &["--format", "kong", "--users", "create"]).failed(1);
    assert!(error.contains("key 1 of consumer ada: its owner could be several users"), "{error}");
    // Two owners never become one user.
    let twins = "consumers: [{username: eve, custom_id: eve@example.com, keyauth_credentials: [{key: abcdefghijklmnop}]}, \
                 {username: eva, custom_id: EVE@example.com, keyauth_credentials: [{key: bcdefghijklmnopq}]}]";
    let error = import(&place.url(), twins, &["--format", "kong", "--users", "create"]).failed(1);
    assert!(error.contains("key 1 of consumer eva: two owners would become one user"), "{error}");
}

#[tokio::test]
async fn flags_without_effect_and_unknown_formats_are_refused() {
    let place = Place::sqlite().await;
    for (arguments, words) in [
        (&["--format", "csv", "--users", "create"][..], "--users"),
        (&["--format", "jsonl", "--drop-restrictions"], "--drop-restrictions"),
        (&["--format", "kong", "--email-domain", "example.com"], "--users create"),
        (&[], "--format"),
    ] {
        let error = import(&place.url(), KONG_DECK, arguments).failed(1);
        assert!(error.contains(words), "{error}");
    }
    for arguments in [
        &["--format", "kong", "--user", "1", "--by-id"][..],
        &["--email-domain", "a b"],
        &["--format", "tyk"],
    ] {
        import(&place.url(), KONG_DECK, arguments).failed(2);
    }
}

/// The commands of the guide, with litellm's tables as far as they read them.
#[tokio::test]
async fn users_of_litellm_get_new_keys_as_the_guide_says() {
    let (place, litellm) = (Place::sqlite().await, Schema::create().await);
    place.user().await;
    litellm
        .execute(
            "CREATE TABLE \"LiteLLM_UserTable\" (user_id text PRIMARY KEY, user_email text);
             CREATE TABLE \"LiteLLM_VerificationToken\" (token text PRIMARY KEY, key_name text, user_id text,
                 blocked boolean, expires timestamp(3));
             INSERT INTO \"LiteLLM_UserTable\" VALUES ('1', 'ada@example.com'), ('2', 'grace@example.com'),
                 ('3', 'gone@example.com'), ('4', NULL), ('5', 'without-key@example.com');
             INSERT INTO \"LiteLLM_VerificationToken\" VALUES ('a', 'sk-...abcd', '1', NULL, NULL),
                 ('b', 'sk-...bcde', '1', false, '2099-01-01'), ('c', 'sk-...cdef', '2', NULL, NULL),
                 ('d', 'sk-...defg', '3', true, NULL), ('e', 'sk-...efgh', '3', NULL, '2020-01-01'),
                 ('f', 'sk-...fghi', '4', NULL, NULL);",
        )
        .await;
    let guide = crate::harness::tools::read("docs/guides/import.md");
    let (_, section) = guide.split_once("## From litellm").expect("the section");
    let (_, block) = section.split_once("```sh\n").expect("commands");
    let (script, _) = block.split_once("```").expect("their end");
    let folder = tempfile::tempdir().expect("a folder");
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_keystile")).parent().expect("its folder");
    let output = std::process::Command::new("bash")
        .env_clear()
        .env("KEYSTILE_DATABASE_URL", place.url())
        .env("KEYSTILE_BCRYPT_COST", "4")
        .env("PATH", format!("{}:{}", binary.display(), std::env::var("PATH").expect("a path")))
        .env("LITELLM_DATABASE_URL", litellm.url())
        .current_dir(folder.path())
        .args(["-e", "-c", script])
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut keys: Vec<_> = listed(&place.url()).iter().map(|key| key["user_email"].clone()).collect();
    keys.sort_by_key(Value::to_string);
    assert_eq!(keys, ["ada@example.com", "grace@example.com"]);
    for user in ["ada", "grace"] {
        let file = folder.path().join(format!("new-keys/{user}@example.com.env"));
        let text = fs::read_to_string(file).expect("a file for each user");
        let key = text.trim_end().strip_prefix("API_KEY=").expect("a variable");
        let shown = keystile(&["keys", "show", "-", "--output", "json"], &place.url(), key).json();
        assert_eq!(shown["user_email"], format!("{user}@example.com"));
    }
}

/// The format is that of the ending; the time of the file is when its `ttl` began.
#[tokio::test]
async fn file_tells_its_format_and_when_it_was_written() {
    let place = Place::sqlite().await;
    place.user().await;
    let file = tempfile::Builder::new().suffix(".yml").tempfile().expect("a file");
    fs::write(file.path(), KONG_DB_EXPORT.replace("ttl: 3471292800", "ttl: 86400")).expect("writes");
    let written = std::time::SystemTime::now() - Duration::from_secs(80_000);
    file.as_file().set_modified(written).expect("sets the time");
    let said = keystile(&["keys", "import", file.path().to_str().expect("UTF-8")], &place.url(), "").done();
    assert_eq!(said, "imported 2 keys\n");
    let keys = listed(&place.url());
    let end = like(&keys, KONG_KEYS[1])["expires_at"].as_str().expect("a time").to_owned();
    let format = &time::format_description::well_known::Rfc3339;
    let left = time::OffsetDateTime::parse(&end, format).expect("a time") - time::OffsetDateTime::now_utc();
    assert!((6_000..=6_400).contains(&left.whole_seconds()), "{left}");
}

#[tokio::test]
async fn column_that_restricts_nothing_may_be_missing_and_others_may_not() {
    let place = Place::sqlite().await;
    place.user().await;
    place.execute("ALTER TABLE api_keys DROP COLUMN tags").await;
    keystile(&["migrate"], &place.url(), "").done();
    let run = import(&place.url(), KONG_DECK, &["--format", "kong", "--user", "1"]);
    assert!(run.stderr.contains("tags: this database has no such column (2)"), "{run:?}");
    run.done();
    let place = Place::sqlite().await;
    place.user().await;
    place.execute("ALTER TABLE api_keys DROP COLUMN expires_at").await;
    keystile(&["migrate"], &place.url(), "").done();
    let error = import(&place.url(), KONG_DB_EXPORT, &["--format", "kong"]).failed(1);
    assert!(error.contains("key 2 of consumer ada") && error.contains("expires_at"), "{error}");
}
