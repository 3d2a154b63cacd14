//! No secret is where it does not belong (G7): unique secrets go through everything that handles them, and are then
//! looked for in everything that is said or kept.

use std::{os::unix::process::CommandExt, time::Duration};

use ::keystile::cli::Cli;
use clap::CommandFactory;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use rustix::process::{Signal, geteuid};
use serde_json::{Value, json};

use crate::harness::{
    authority::Authority,
    client::{self, Asked, ask, ask_about, channel},
    cluster::Cluster,
    envoy::{Gateway, VERSIONS},
    keystile,
    management::Management,
    place::Place,
    redis::Redis,
    service::{Keystile, Setup},
    until,
    upstream::Seen,
};

mod canaries;
mod commands;
mod memory;
mod places;
mod processes;

use canaries::{Canary, Leak, leaks};
use places::{Places, RedisMonitor};

/// Secrets by name, and all that was seen.
struct World {
    cluster: Cluster,
    redis: Redis,
    monitor: RedisMonitor,
    setup: Setup,
    /// Credentials of keys, by where a request has them.
    keys: Vec<Canary>,
    canaries: Vec<Canary>,
    places: Places,
}

/// The one thing that is found again: what proves that the search works.
const CONTROL: &str = "control";

impl World {
    async fn start() -> Self {
        let cluster = Cluster::start();
        let [password, redis_password, cache_secret] =
            ["database password", "Redis password", "cache secret"].map(Canary::random);
        cluster.create_role_with_password("app", &password.text).await;
        let user = format!("user app on >{} ~* &* +@all", redis_password.text);
        let redis = Redis::with(&[&user]);
        let monitor = RedisMonitor::start(&redis);
        let keys = [
            Canary::with("key in a header", "hd_k", "/+=~"),
            Canary::with("key as bearer", "be_k", "/+~=="),
            Canary::with("key in the query", "qu_k", "/+&=%"),
            Canary::with("key in a cookie", "co_k", "~!"),
            Canary::with("wrong key", "hd_k", "wrong"),
        ];
        let setup = Setup::with_database(&cluster.url());
        let address = cluster.address();
        let write = |name: &str, text: &str| std::fs::write(setup.path(name), format!("{text}\n")).unwrap();
        write(
            "database-url",
            &format!("postgres://app:{}@{address}/postgres?sslmode=disable", password.text),
        );
        write("redis-url", &format!("redis://app:{}@{}", redis_password.text, redis.address()));
        write("cache-secret", &cache_secret.text);
        let authority = Authority::new();
        let issued = authority.issue(&["localhost"]);
        write("tls.pem", &issued.certificate);
        write("tls.key", &issued.key);
        // The lines of the key itself.
        let body: String = issued.key.lines().filter(|line| !line.starts_with("-----")).collect();
        let tls_key = Canary::new("TLS key", &body);
        let canaries = vec![password, redis_password, cache_secret, tls_key, Canary::random("request body")];
        Self { cluster, redis, monitor, setup, keys: keys.into(), canaries, places: Places::default() }
    }

    /// Settings by files, as the documentation recommends: no secret is in an environment.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.setup.path(name).to_str().unwrap().to_owned();
        vec![
            ("KEYSTILE_DATABASE_URL", String::new()),
            ("KEYSTILE_DATABASE_URL_FILE", path("database-url")),
            ("KEYSTILE_REDIS_URL_FILE", path("redis-url")),
            ("KEYSTILE_CACHE_SECRET_FILE", path("cache-secret")),
        ]
    }

    fn canary(&self, name: &str) -> &Canary {
        self.canaries.iter().chain(&self.keys).find(|canary| canary.name == name).expect("a canary")
    }

    /// The hashes of all keys so far.
    async fn add_hashes(&mut self) {
        let hashes = self.cluster.client().await.query("SELECT key_hash FROM api_keys", &[]).await.unwrap();
        self.canaries.retain(|canary| canary.name != "hash");
        self.canaries.extend(hashes.iter().map(|row| Canary::new("hash", row.get(0))));
    }

    /// What was found in all that was seen, and may not be there.
    fn leaks(&self) -> Vec<Leak> {
        let all: Vec<_> = self.canaries.iter().chain(&self.keys).cloned().collect();
        let mut found = leaks(&self.places.take(), &all);
        // The database is the place of hashes. The one statement that writes a hash is in its log.
        found.retain(|leak| {
            let is_place = ["table api_keys", "log of Postgres"].contains(&&*leak.place);
            !(leak.canary == "hash" && is_place)
        });
        found
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_secret_is_where_it_does_not_belong() {
    let mut world = World::start().await;
    commands::create_and_fail(&mut world).await;
    let settings = world.settings();
    let mut settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (certificate, key) = (world.setup.path("tls.pem"), world.setup.path("tls.key"));
    settings.extend([
        ("KEYSTILE_LOG", "trace"),
        ("KEYSTILE_CREDENTIAL_SOURCES", "bearer,header:x-api-key,query:api_key,cookie:key"),
        ("KEYSTILE_RATE_LIMIT", "redis"),
        ("KEYSTILE_USAGE_INTERVAL", "1s"),
    ]);
    let text = Setup::with_database("").start(&settings).await;
    settings.extend([
        ("KEYSTILE_LOG_FORMAT", "json"),
        ("KEYSTILE_TLS_CERT_FILE", certificate.to_str().unwrap()),
        ("KEYSTILE_TLS_KEY_FILE", key.to_str().unwrap()),
    ]);
    let mut json = Setup::with_database("").start(&settings).await;
    for (name, keystile) in [("serve", &text), ("serve with TLS", &json)] {
        world.places.add_process(name, keystile.process.0.id());
    }
    direct(&world, &text).await;
    // A whole answer as metadata, and as headers of the upstream, in the access log.
    let metadata = "%DYNAMIC_METADATA(envoy.filters.http.ext_authz";
    let edits = [(&*format!("{metadata}:key_id)%"), &*format!("{metadata})%"))];
    let gateway = Gateway::before(VERSIONS[1], "body.yaml", text, &edits).await;
    through_envoy(&world, &gateway).await;
    management(&mut world).await;
    reload(&world, &json).await;

    let secrets: Vec<_> = [&gateway.keystile, &json].map(|keystile| keystile.setup.admin).into();
    for admin in secrets {
        for path in ["metrics", "readyz", "livez", "stats", "nothing"] {
            let request = reqwest::Client::new().get(format!("http://{admin}/{path}"));
            world.places.add_answer(&format!("/{path}"), request).await;
        }
    }
    json.process.signal(Signal::TERM);
    assert_eq!(json.process.wait(Duration::from_secs(20)), Some(0), "{}", json.setup.log());
    world.places.add("log of serve", gateway.keystile.setup.log());
    world.places.add("log of serve with TLS", json.setup.log());
    world.places.add("access log of Envoy", gateway.log());
    world.places.add_redis(&world.redis, &world.monitor);
    world.places.add_database(&world.cluster).await;
    assert_eq!(world.leaks(), []);

    expect_control(&mut world, gateway).await;
}

/// A secret that is put into each place is found there.
async fn expect_control(world: &mut World, gateway: Gateway) {
    let control = Canary::random(CONTROL);
    let (text, key) = (control.text.clone(), world.keys[0].text.clone());
    world.canaries = vec![control];
    world.keys.clear();
    world.redis.command(&["SET", "keystile:control", &text]);
    world.cluster.execute(&format!("UPDATE users SET username = '{text}'")).await;
    let session = world.cluster.client().await;
    session.batch_execute(&format!("SET application_name = '{text}'")).await.unwrap();
    // The upstream's answer repeats the path.
    let request = gateway.get(&format!("/{text}")).header("x-api-key", key);
    world.places.add_answer("an answer", request).await;
    let seen = |log: fn(&Gateway) -> String| log(&gateway).contains(&text);
    until("the logs have it", Duration::from_secs(10), async || {
        seen(|gateway| gateway.log()) && seen(|gateway| gateway.keystile.setup.log())
    })
    .await;
    let (_, printed) = world.places.run(world.setup.command(&["users", "list"]), "", false);
    assert!(printed.contains(&text));
    world.places.run(world.setup.command(&["users", "disable", &text]), "", false);
    world.places.add("log of serve", gateway.keystile.setup.log());
    world.places.add("access log of Envoy", gateway.log());
    world.places.add_redis(&world.redis, &world.monitor);
    world.places.add_database(&world.cluster).await;
    let places: Vec<_> = world.leaks().into_iter().map(|leak| leak.place).collect();
    for place in [
        "Redis",
        "MONITOR of Redis",
        "table users",
        "log of Postgres",
        "pg_stat_activity",
        "log of serve",
        "access log of Envoy",
        "body of an answer",
        "stdout of [\"users\", \"list\"]",
        &format!("cmdline of [\"users\", \"disable\", \"{text}\"]"),
        &format!("stderr of [\"users\", \"disable\", \"{text}\"]"),
    ] {
        assert!(places.iter().any(|found| found == place), "nothing is found in {place}: {places:?}");
    }
}

/// Calls without Envoy: what Envoy would refuse, and answers whole.
async fn direct(world: &World, keystile: &Keystile) {
    let channel = channel(keystile.setup.tcp).await;
    let body = &world.canary("request body").text;
    for key in &world.keys {
        let answer = ask(&channel, &key.text).await;
        world.places.add("an answer to Envoy", format!("{answer:?}"));
        let two = format!("{},{}", key.text, key.text);
        for (credential, path) in [
            (two.as_str(), "/v1/models"),
            (&key.text, "no path"),
            ("", &*format!("/x?api_key={}%zz", key.text)),
        ] {
            let asked = Asked {
                credential,
                method: "POST",
                path,
                body: Some(format!("{{\"model\": \"{body}\", \"messages\": [{{\"{body}\"")),
                route: &[("keystile.model", "required")],
                ..Asked::default()
            };
            world.places.add("an answer to Envoy", format!("{:?}", ask_about(&channel, &asked).await));
        }
    }
    assert_eq!(client::status(&ask(&channel, &world.keys[0].text).await), 200);
    assert_eq!(client::status(&ask(&channel, &world.canary("wrong key").text).await), 401);
}

/// Requests with a key in each place, right and wrong, with a body.
async fn through_envoy(world: &World, gateway: &Gateway) {
    let body = json!({ "model": "m", "messages": [world.canary("request body").text] });
    let key = |name: &str| world.canary(name).text.clone();
    for wrong in ["", "x"] {
        let [header, bearer, query, cookie] =
            ["key in a header", "key as bearer", "key in the query", "key in a cookie"]
                .map(|name| key(name) + wrong);
        let post = |path: &str| gateway.request(Method::POST, path).json(&body);
        for (what, request) in [
            ("header", post("/v1/a").header("x-api-key", &header)),
            ("bearer", post("/v1/a").bearer_auth(&bearer)),
            ("query", post(&format!("/v1/a?a=b&api_key={}", utf8_percent_encode(&query, NON_ALPHANUMERIC)))),
            ("cookie", post("/v1/a").header("cookie", format!("a=b; key={cookie}"))),
            ("two", post("/v1/a").header("x-api-key", &header).bearer_auth(&bearer)),
            ("malformed", post("/v1/a").header("x-api-key", format!("{header} {bearer}"))),
        ] {
            let status = world.places.add_answer(&format!("a request with {what}"), request).await;
            let is_good = wrong.is_empty() && !["two", "malformed"].contains(&what);
            assert_eq!(status == 200, is_good, "{what} {wrong}: {status}");
        }
    }
    // What the upstream sees: its answer is this list.
    let request = gateway.get("/v1/a").header("x-api-key", key("key in a header"));
    let seen: Seen = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(seen.headers["x-auth-result"], "allow");
    world.places.add("headers to the upstream", format!("{seen:?}"));
}

/// The management API, good and bad requests.
async fn management(world: &mut World) {
    let settings = world.settings();
    let mut settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.retain(|(name, _)| name.starts_with("KEYSTILE_DATABASE"));
    settings.push(("KEYSTILE_LOG", "trace"));
    let api = Management::start(&world.setup, &settings).await;
    world.places.add_process("management", api.process.0.id());
    let token = world.canary("management token").text.clone();
    let idempotency = Canary::random("idempotency key");
    let new = json!({ "user": "ada@example.com", "name": "by the API" });
    let create = api.request(&token, Method::POST, "/v1/keys").header("idempotency-key", &idempotency.text);
    let made: Value = create.json(&new).send().await.unwrap().json().await.unwrap();
    let credential = Canary::new("key made by the API", made["credential"].as_str().expect("a key"));
    let path = format!("/v1/keys/{}/rotate", made["id"]);
    let (_, rotated) = api.post(&token, &path, &json!({ "overlap": "1h" })).await;
    let successor = rotated["successor"]["credential"].as_str().expect("a key");
    let successor = Canary::new("key rotated by the API", successor);
    let identify = json!({ "credential": credential.text });
    assert_eq!(api.post(&token, "/v1/keys/identify", &identify).await.0, 200);

    let body = &world.canary("request body").text;
    let id = &made["id"];
    for (n, (bearer, path, content)) in [
        // Again: the answer is the same without the secret.
        (&*token, "/v1/keys", new.to_string()),
        (&*token, "/v1/keys", json!({ "user": "ada@example.com", "name": body }).to_string()),
        (&*token, "/v1/keys", format!("{{\"user\": \"{body}")),
        (&*token, "/v1/keys", json!({ "key_hash": body }).to_string()),
        (&*token, "/v1/keys/identify", json!({ "credential": format!("{}x", credential.text) }).to_string()),
        (&*token, "/v1/keys/identify", json!({ "credential": [credential.text] }).to_string()),
        (&*token, &*format!("/v1/keys/{id}/explain"), json!({ "path": 7, "body": body }).to_string()),
        (&*format!("{token}x"), "/v1/keys", new.to_string()),
        (&token.replace('_', "-"), "/v1/keys", new.to_string()),
    ]
    .into_iter()
    .enumerate()
    {
        let request = api.request(bearer, Method::POST, path).header("content-type", "application/json");
        let request = request.header("idempotency-key", &idempotency.text).body(content);
        let status = world.places.add_answer(&format!("API request {n}"), request).await;
        assert_eq!(status < 300, n == 0, "{n}: {status}");
    }
    for path in ["/v1/keys", "/v1/users", &format!("/v1/keys/{id}"), "/nothing"] {
        world.places.add_answer(path, api.request(&token, Method::GET, path)).await;
    }
    world.places.add("log of management", api.log());
    world.canaries.extend([idempotency, credential, successor]);
    world.add_hashes().await;
}

/// A key file that is replaced by a broken one, and by one of another certificate.
async fn reload(world: &World, keystile: &Keystile) {
    let file = world.setup.path("tls.key");
    let good = std::fs::read_to_string(&file).unwrap();
    let other = Authority::new().issue(&["localhost"]).key;
    for (broken, said) in
        [(good.replace("-----END", "-----ND"), "no private key"), (other, "does not belong")]
    {
        std::fs::write(&file, broken).unwrap();
        until(said, Duration::from_secs(20), async || keystile.setup.log().contains(said)).await;
    }
    std::fs::write(&file, good).unwrap();
}
