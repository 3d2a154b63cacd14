//! Who may do what, to which object: each operation, by each kind of caller, for an object of its own and of another user.

use super::*;
use crate::harness::keystile;

/// A caller of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    Nonsense,
    Revoked,
    Expired,
    Read,
    Write,
    /// `own`, with a template.
    Own,
    /// `own`, without one.
    OwnBare,
    /// `own`, of a user who is disabled.
    OwnDisabled,
}

const ALL: [Who; 9] = [
    Who::Nobody,
    Who::Nonsense,
    Who::Revoked,
    Who::Expired,
    Who::Read,
    Who::Write,
    Who::Own,
    Who::OwnBare,
    Who::OwnDisabled,
];

/// An operation of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    ListKeys,
    GetKey,
    CreateKey,
    PatchKey,
    RotateKey,
    RevokeKey,
    Explain,
    Identify,
    ListUsers,
    GetUser,
    CreateUser,
    PatchUser,
}

const OPERATIONS: [What; 12] = [
    What::ListKeys,
    What::GetKey,
    What::CreateKey,
    What::PatchKey,
    What::RotateKey,
    What::RevokeKey,
    What::Explain,
    What::Identify,
    What::ListUsers,
    What::GetUser,
    What::CreateUser,
    What::PatchUser,
];

/// The rules, in other words than the code's: what a caller gets for an object of its own user, and of another.
fn expected(who: Who, what: What, is_own: bool) -> u16 {
    let is_write = matches!(
        what,
        What::CreateKey
            | What::PatchKey
            | What::RotateKey
            | What::RevokeKey
            | What::CreateUser
            | What::PatchUser
    );
    let good = if matches!(what, What::CreateKey | What::RotateKey | What::CreateUser) { 201 } else { 200 };
    match who {
        Who::Nobody | Who::Nonsense | Who::Revoked | Who::Expired | Who::OwnDisabled => 401,
        Who::Read if is_write => 403,
        Who::Read | Who::Write => good,
        Who::Own | Who::OwnBare => match what {
            What::ListKeys | What::CreateKey if !is_own => 403,
            What::CreateKey if who == Who::OwnBare => 403,
            What::ListKeys | What::CreateKey => good,
            // Another user's key does not exist.
            What::GetKey | What::RotateKey | What::RevokeKey if !is_own => 404,
            What::GetKey | What::RotateKey | What::RevokeKey => good,
            _ => 403,
        },
    }
}

struct World {
    api: Management,
    setup: Setup,
    tokens: Vec<String>,
}

impl World {
    async fn start() -> Self {
        let (setup, write) = setup();
        setup.create_user("bob");
        setup.create_user("eve");
        let template = ["--template", r#"{"scopes":["chat"]}"#, "--max-keys", "1000"];
        let own = |name: &str, user: &str, more: &[&str]| {
            let user = format!("{user}@example.com");
            setup.create_token(name, &[&["--scope", "own", "--user", &user], more].concat())
        };
        let revoked = setup.create_token("revoked", &["--scope", "write"]);
        setup.json(&["management-tokens", "revoke", "revoked"]);
        let expired = setup.create_token("expired", &["--scope", "write", "--expires-at", "1s"]);
        let disabled = own("disabled", "eve", &template);
        setup.json(&["users", "disable", "eve@example.com"]);
        let tokens = vec![
            String::new(),
            format!("ksm_000000000000_{}", "A".repeat(43)),
            revoked,
            expired,
            setup.create_token("reader", &["--scope", "read"]),
            write,
            own("portal", "ada", &template),
            own("bare", "ada", &[]),
            disabled,
        ];
        let off = ("KEYSTILE_MANAGEMENT_FAILED_ATTEMPTS", "off");
        let api = Management::start(&setup, &[off]).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        Self { api, setup, tokens }
    }

    fn token(&self, who: Who) -> &str {
        &self.tokens[ALL.iter().position(|other| *other == who).unwrap()]
    }

    async fn ask(&self, who: Who, what: What, is_own: bool) -> (u16, Value) {
        let (user, token) = (if is_own { "ada" } else { "bob" }, self.token(who));
        let id = if is_own { 1 } else { 2 };
        let key = self.setup.create_key(user, &[]);
        let path = format!("/v1/keys/{}", key.id);
        match what {
            What::ListKeys => self.api.get(token, &format!("/v1/keys?user={id}")).await,
            What::GetKey => self.api.get(token, &path).await,
            What::CreateKey => self.api.post(token, "/v1/keys", &json!({ "user": id })).await,
            What::PatchKey => self.api.patch(token, &path, &json!({ "name": "x" })).await,
            What::RevokeKey => {
                let request = self.api.request(token, Method::POST, &format!("{path}/revoke"));
                answered(request.send().await.unwrap()).await
            }
            What::RotateKey => {
                self.api.post(token, &format!("{path}/rotate"), &json!({ "overlap": "1d" })).await
            }
            What::Explain => self.api.post(token, &format!("{path}/explain"), &json!({})).await,
            What::Identify => {
                self.api.post(token, "/v1/keys/identify", &json!({ "credential": key.credential })).await
            }
            What::ListUsers => self.api.get(token, "/v1/users").await,
            What::GetUser => self.api.get(token, &format!("/v1/users/{id}")).await,
            What::CreateUser => {
                let name = format!("new{}", key.id);
                self.api.post(token, "/v1/users", &json!({ "email": name, "username": name })).await
            }
            What::PatchUser => {
                self.api.patch(token, &format!("/v1/users/{id}"), &json!({ "role": "x" })).await
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_gets_what_the_table_says_and_changes_nothing_else() {
    let world = World::start().await;
    let rows = "SELECT (SELECT count(*) FROM users) * 1000000 + (SELECT count(*) FROM api_keys) * 1000 \
                + (SELECT count(*) FROM api_keys WHERE is_active = 1 AND name = 'test')";
    for who in ALL {
        for what in OPERATIONS {
            for is_own in [true, false] {
                let before: i64 = world.setup.value(rows).parse().unwrap();
                let (status, body) = world.ask(who, what, is_own).await;
                let after: i64 = world.setup.value(rows).parse().unwrap();
                let what = format!("{who:?} {what:?}, own: {is_own}: {body}");
                assert_eq!(status, expected(who, self::parse(&what), is_own), "{what}");
                if status >= 400 {
                    // The key that the test itself made.
                    assert_eq!(after, before + 1001, "{what}");
                    assert_eq!(body["status"], json!(status), "{what}");
                }
            }
        }
    }
}

/// The operation of a description.
fn parse(description: &str) -> What {
    OPERATIONS.into_iter().find(|what| description.contains(&format!(" {what:?},"))).unwrap()
}

#[tokio::test]
async fn user_creates_keys_by_the_template_and_no_others() {
    let setup = Setup::new();
    setup.create_user("ada");
    setup.create_user("bob");
    let template = r#"{"scopes": ["chat"], "tags": ["portal"], "rate_limit_per_minute": 60, "allowed_models": ["gpt-4*"]}"#;
    let options = ["--scope", "own", "--user", "ada@example.com", "--template", template, "--max-keys", "3"];
    let token = setup.create_token("portal", &[&options[..], &["--max-lifetime", "30d"]].concat());
    let api = Management::start(&setup, &[]).await;
    let (status, key) = api.post(&token, "/v1/keys", &json!({ "name": "mine" })).await;
    assert_eq!(status, 201, "{key}");
    assert_eq!(
        [
            &key["user_id"],
            &key["name"],
            &key["scopes"],
            &key["tags"],
            &key["rate_limit_per_minute"],
            &key["allowed_models"]
        ],
        [&json!(1), &json!("mine"), &json!(["chat"]), &json!(["portal"]), &json!(60), &json!(["gpt-4*"])]
    );
    assert!(key["expires_at"].is_string(), "the lifetime of the token applies: {key}");
    for (field, value) in [
        ("scopes", json!(["admin"])),
        ("scopes", json!(["chat"])),
        ("tags", json!(["keystile:shadow"])),
        ("allowed_models", json!(["gpt-4o"])),
        ("rate_limit_per_minute", json!(6000)),
        ("budget_limit_cents", json!(1)),
        ("is_active", json!(true)),
        ("user_id", json!(2)),
        ("user", json!(2)),
        ("user", json!("bob@example.com")),
        ("expires_at", json!("9000-01-01T00:00:00Z")),
        ("no_such_field", json!(1)),
    ] {
        let answer = api.post(&token, "/v1/keys", &json!({ "name": "x", field: value })).await;
        problem(&answer, 403, "forbidden");
        assert_eq!(answer.1["field"], json!(field));
    }
    let path = format!("/v1/keys/{}", key["id"]);
    for patch in [json!({ "tags": ["keystile:shadow"] }), json!({ "is_active": true }), json!({})] {
        problem(&api.patch(&token, &path, &patch).await, 403, "forbidden");
    }
    let rotate = format!("{path}/rotate");
    problem(&api.post(&token, &rotate, &json!({ "overlap": "31d" })).await, 403, "forbidden");
    problem(
        &api.post(&token, &rotate, &json!({ "expires_at": "9000-01-01T00:00:00Z" })).await,
        403,
        "forbidden",
    );
    // Three at most, also when they are created at once.
    let api = Arc::new(api);
    let creations: Vec<_> = (0..6)
        .map(|_| {
            let (api, token) = (Arc::clone(&api), token.clone());
            tokio::spawn(async move { api.post(&token, "/v1/keys", &json!({})).await })
        })
        .collect();
    let mut created = 1;
    for creation in creations {
        let answer = creation.await.unwrap();
        if answer.0 == 201 {
            created += 1;
        } else {
            problem(&answer, 409, "refused");
        }
    }
    assert_eq!((created, setup.value("SELECT count(*) FROM api_keys").as_str()), (3, "3"));
}

#[tokio::test]
async fn template_with_a_wrong_column_is_refused() {
    let setup = Setup::new();
    setup.create_user("ada");
    for (template, named) in [
        (r#"{"scope": ["chat"]}"#, "scope"),
        (r#"{"key_hash": "x"}"#, "key_hash"),
        (r#"{"name": "x"}"#, "name"),
        (r#"{"scopes": "chat"}"#, "scopes"),
        ("nonsense", "--template"),
        ("[]", "--template"),
    ] {
        let arguments = ["management-tokens", "create", "--name", "p", "--scope", "own", "--user", "1"];
        let output = setup.run(&[&arguments[..], &["--template", template]].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && text.contains(named), "{template}: {text}");
    }
    for wrong in [&["--scope", "own"][..], &["--scope", "read", "--user", "1"], &["--scope", "all"]] {
        let output = setup.run(&[&["management-tokens", "create", "--name", "p"], wrong].concat());
        assert!(!output.status.success(), "{wrong:?}");
    }
}

#[tokio::test]
async fn revoked_token_ends_at_once_and_secrets_are_nowhere() {
    let (setup, token) = setup();
    let api = Management::start(&setup, &[]).await;
    let (status, key) = api.post(&token, "/v1/keys", &json!({ "user": 1 })).await;
    assert_eq!(status, 201);
    let credential = key["credential"].as_str().unwrap();
    api.post(&token, "/v1/keys/identify", &json!({ "credential": credential })).await;
    api.get("ksm_nonsense", "/v1/keys").await;
    let tokens = setup.json(&["management-tokens", "list"]);
    assert_eq!((&tokens[0]["name"], &tokens[0]["state"]), (&json!("ops"), &json!("active")));
    assert!(tokens[0]["last_used_at"].is_string() && tokens[0].get("digest").is_none(), "{tokens}");
    setup.json(&["management-tokens", "revoke", "ops"]);
    problem(&api.get(&token, "/v1/keys").await, 401, "unauthenticated");
    assert_eq!(setup.json(&["management-tokens", "list"])[0]["state"], json!("revoked"));
    // The name is free again.
    setup.create_token("ops", &["--scope", "read"]);
    assert!(
        !setup.run(&["management-tokens", "create", "--name", "ops", "--scope", "read"]).status.success()
    );

    let audit = keystile::keystile(&["audit", "--output", "json"], &setup.database_url, "").done();
    let by_token: Vec<_> = audit.lines().filter(|line| line.contains("\"ops\"")).collect();
    assert!(by_token.iter().any(|line| line.contains("api_keys") && line.contains("127.0.0.1")), "{audit}");
    let file = std::fs::read(setup.path("keystile.db")).unwrap();
    let log = api.log();
    assert!(log.contains("create_key") && log.contains("caller=\"ops\""), "{log}");
    for secret in [token.as_str(), credential] {
        assert!(!log.contains(secret) && !audit.contains(secret), "{log}{audit}");
        assert!(!file.windows(secret.len()).any(|part| part == secret.as_bytes()));
    }
}

#[tokio::test]
async fn callers_and_networks_have_limits() {
    let (setup, token) = setup();
    let other = setup.create_token("other", &["--scope", "read"]);
    let settings =
        [("KEYSTILE_MANAGEMENT_RATE_LIMIT", "5/1h"), ("KEYSTILE_MANAGEMENT_FAILED_ATTEMPTS", "3/1h")];
    let api = Management::start(&setup, &settings).await;
    for _ in 0..5 {
        assert_eq!(api.get(&token, "/v1/users").await.0, 200);
    }
    let refused = api.request(&token, Method::GET, "/v1/users").send().await.unwrap();
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 3000);
    problem(&answered(refused).await, 429, "too_many_requests");
    assert_eq!(api.get(&other, "/v1/users").await.0, 200, "others have limits of their own");
    for _ in 0..3 {
        assert_eq!(api.get("nonsense", "/v1/users").await.0, 401);
    }
    problem(&api.get("nonsense", "/v1/users").await, 429, "too_many_requests");
    // The network is refused, whatever it presents.
    problem(&api.get(&other, "/v1/users").await, 429, "too_many_requests");
}
