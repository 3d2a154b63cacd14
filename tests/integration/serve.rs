//! `keystile serve` as a process: ready, told, refused, stopped.

use std::time::Duration;

use envoy_types::ext_authz::v3::pb::HttpResponse;
use rustix::process::Signal;

use crate::harness::{
    client::{Asked, ask, ask_about, channel, status},
    postgres::{self, Schema},
    proxy::Proxy,
    service::{Keystile, Setup},
    until,
};

/// A Keystile that must not start; its complaint.
fn complaint(setup: &Setup, settings: &[(&str, &str)]) -> String {
    let output = setup.serve(settings).output().unwrap();
    assert!(!output.status.success());
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(!complaint.contains("panicked"), "{complaint}");
    complaint
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_tells_liveness_readiness_and_metrics() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    let live = reqwest::get(format!("http://{}/livez", setup.admin)).await.unwrap();
    assert_eq!(live.status(), 200);
    let (status, body) = setup.readyz().await;
    assert_eq!((status, body["status"].as_str()), (200, Some("ready")));
    let channel = channel(setup.tcp).await;
    ask(&channel, &key.credential).await;
    ask(&channel, &key.credential).await;
    ask(&channel, "ks_nobodysKey").await;
    let metrics = setup.metrics().await;
    for line in [
        "keystile_checks_total{decision=\"allow\",reason=\"none\"} 2",
        "keystile_checks_total{decision=\"deny\",reason=\"invalid_credential\"} 1",
        "keystile_check_duration_seconds_count{tier=\"memory\"} 1",
        "keystile_cache_lookups_total{tier=\"memory\",kind=\"proofs\",result=\"hit\"} 1",
        // None for the key that does not exist.
        "keystile_bcrypt_duration_seconds_count 1",
        "keystile_first_proofs_total{outcome=\"proven\"} 1",
        "keystile_first_proofs_total{outcome=\"mismatch\"} 1",
        "keystile_store_up{store=\"sqlite\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in:\n{metrics}");
    }
    assert!(!metrics.contains(&key.credential));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_with_a_cold_key_cost_one_query_and_one_bcrypt() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &["--cost", "10"]);
    let Keystile { setup, process: _process } = setup.start(&[("KEYSTILE_TIMEOUT", "30s")]).await;
    let channel = channel(setup.tcp).await;
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let (channel, credential) = (channel.clone(), key.credential.clone());
            tokio::spawn(async move { status(&ask(&channel, &credential).await) })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), 200);
    }
    let metrics = setup.metrics().await;
    for line in [
        "keystile_store_duration_seconds_count{store=\"sqlite\",operation=\"records\"} 1",
        "keystile_bcrypt_duration_seconds_count 1",
    ] {
        assert!(metrics.contains(line), "{line} in:\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_is_who_knows_what_changed_before() {
    let setup = Setup::new();
    setup.create_user("ada");
    // Reading these takes a while, in which nothing that Redis has would be believed.
    setup.execute(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 50000)
        INSERT INTO keystile_changes (prefix) SELECT 'ks_other' FROM n",
    );
    let Keystile { setup, process: _process } = setup.start(&[("KEYSTILE_DATABASE_TIMEOUT", "5s")]).await;
    assert_eq!(setup.stats().await["change_feed"]["up"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_port_tells_health_and_describes_itself() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest,
    };
    let Keystile { setup, process: _process } = Setup::new().start(&[]).await;
    let channel = channel(setup.tcp).await;
    let request = HealthCheckRequest { service: "envoy.service.auth.v3.Authorization".into() };
    let health = HealthClient::new(channel.clone());
    // Ready by HTTP, it says so by gRPC a moment later.
    until("SERVING", Duration::from_secs(5), async || {
        health.clone().check(request.clone()).await.unwrap().into_inner().status == 1
    })
    .await;
    let symbol = MessageRequest::FileContainingSymbol("envoy.service.auth.v3.CheckRequest".into());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(symbol) };
    let answers =
        ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::once(request)).await;
    let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    assert!(format!("{answer:?}").contains("FileDescriptorResponse"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_signal_drains_and_exits_with_zero() {
    for signal in [Signal::TERM, Signal::INT] {
        let setup = Setup::new();
        setup.create_user("ada");
        // Cost 12: the first check is still under way when the signal arrives.
        let key = setup.create_key("ada", &["--cost", "12"]);
        let patience = [("KEYSTILE_TIMEOUT", "30s"), ("KEYSTILE_DRAIN_TIMEOUT", "30s")];
        let Keystile { setup, mut process } = setup.start(&patience).await;
        let channel = channel(setup.tcp).await;
        let slow = tokio::spawn({
            let (channel, credential) = (channel.clone(), key.credential.clone());
            async move { ask(&channel, &credential).await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        process.signal(signal);
        assert_eq!(status(&slow.await.unwrap()), 200, "a call under way is answered after {signal:?}");
        assert_eq!(process.wait(Duration::from_secs(40)), Some(0), "{signal:?}: {}", setup.log());
        assert!(!setup.socket().exists(), "the socket is removed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_change_is_seen_when_the_record_is_read_again() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let Keystile { setup, process: _process } = setup.start(&[("KEYSTILE_RECORD_TTL", "1s")]).await;
    let channel = channel(setup.tcp).await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);
    setup.json(&["keys", "revoke", &key.id.to_string()]);
    until("the revoked key is denied", Duration::from_secs(3), async || {
        status(&ask(&channel, &key.credential).await) == 401
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_and_envoy_are_told_what_was_chosen_and_no_forged_header_passes() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let chosen =
        [("KEYSTILE_UPSTREAM_HEADERS", "X-Auth-User-Id,x-auth-result"), ("KEYSTILE_METADATA", "key_id,Tier")];
    let Keystile { setup, process: _process } = setup.start(&chosen).await;
    let channel = channel(setup.tcp).await;
    // From the database, and then from memory.
    for _ in 0..2 {
        let answer = ask(&channel, &key.credential).await;
        let Some(HttpResponse::OkResponse(ok)) = &answer.http_response else { panic!("{answer:?}") };
        let mut set: Vec<_> =
            ok.headers.iter().map(|option| option.header.as_ref().unwrap().key.as_str()).collect();
        set.sort_unstable();
        assert_eq!(set, ["x-auth-result", "x-auth-user-id"]);
        assert!(
            ok.headers_to_remove.iter().any(|name| name == "x-auth-user-email"),
            "a forged one is removed"
        );
        let metadata = answer.dynamic_metadata.unwrap().fields;
        let mut said: Vec<_> = metadata.keys().map(String::as_str).collect();
        said.sort_unstable();
        assert_eq!(said, ["key_id", "tier"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_user_has_no_working_key() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    setup.json(&["users", "disable", "ada@example.com"]);
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    let answer = ask(&channel(setup.tcp).await, &key.credential).await;
    assert_eq!(status(&answer), 401);
    assert!(format!("{answer:?}").contains("user_inactive"));
}

/// `$2b$` hashes as the service that Keystile succeeds has written them.
#[tokio::test(flavor = "multi_thread")]
async fn key_hashed_by_passlib_is_accepted() {
    const CREDENTIAL: &str = "sk_live_passlibMadeThisOne";
    // passlib.hash.bcrypt.using(rounds=10).hash(CREDENTIAL), passlib 1.7.4.
    const HASH: &str = "$2b$10$jFhFUhJjg0IiY6AZ5u9xuuphyH09JtZjAQLGNUHj/Lp.A85Gulhxu";
    let setup = Setup::new();
    setup.create_user("ada");
    let row = serde_json::json!({
        "key_prefix": &CREDENTIAL[..8], "key_hash": HASH, "user_email": "ada@example.com", "name": "old",
        "is_active": true,
    });
    let file = setup.path("keys.jsonl");
    std::fs::write(&file, row.to_string()).unwrap();
    let output = setup.run(&["keys", "import", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    let channel = channel(setup.tcp).await;
    assert_eq!(status(&ask(&channel, CREDENTIAL).await), 200);
    assert_eq!(status(&ask(&channel, &format!("{CREDENTIAL}x")).await), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_postgres_are_served() {
    let schema = Schema::create().await;
    let setup = Setup::with_database(&schema.url());
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let Keystile { setup, process: _process } = setup.start(&[("KEYSTILE_RECORD_TTL", "1s")]).await;
    let channel = channel(setup.tcp).await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);
    assert_eq!(status(&ask(&channel, &format!("{}x", key.credential)).await), 401);
    schema.execute(&format!("UPDATE api_keys SET is_active = false WHERE id = {}", key.id)).await;
    until("the change is seen", Duration::from_secs(3), async || {
        status(&ask(&channel, &key.credential).await) == 401
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn known_keys_outlive_an_outage_and_unknown_ones_get_503() {
    let schema = Schema::create().await;
    let proxy = Proxy::before(postgres::server().address()).await;
    let url = schema.url().replace(&postgres::server().address().to_string(), &proxy.address.to_string());
    let setup = Setup::with_database(&url);
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let settings = [("KEYSTILE_RECORD_TTL", "1s"), ("KEYSTILE_NEGATIVE_TTL", "1s")];
    let Keystile { setup, process: _process } = setup.start(&settings).await;
    let channel = channel(setup.tcp).await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);

    proxy.cut();
    until("the outage is noticed", Duration::from_secs(10), async || {
        setup.readyz().await.1["status"] == "degraded"
    })
    .await;
    for _ in 0..20 {
        let known = ask(&channel, &key.credential).await;
        assert_eq!(status(&known), 200);
        assert_eq!(status(&ask(&channel, "ks_nobodysKey").await), 503);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let known = ask(&channel, &key.credential).await;
    assert!(known.dynamic_metadata.unwrap().fields.contains_key("stale"), "it says so");
    assert_eq!(setup.readyz().await.0, 200, "what memory holds is worth keeping in service");

    proxy.mend();
    until("unknown keys are denied again", Duration::from_secs(5), async || {
        status(&ask(&channel, "ks_nobodysKey").await) == 401
    })
    .await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn even_the_chattiest_log_shows_no_credential_and_no_hash() {
    let schema = Schema::create().await;
    let setup = Setup::with_database(&schema.url());
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let wrong = format!("{}Wrong", &key.credential[..30]);
    let secret = "0123456789abcdef0123456789abcdef";
    let settings = [("KEYSTILE_LOG", "trace"), ("KEYSTILE_CACHE_SECRET", secret)];
    let Keystile { setup, process: _process } = setup.start(&settings).await;
    let channel = channel(setup.tcp).await;
    for credential in [&key.credential, &wrong] {
        ask(&channel, credential).await;
    }
    until("the checks are logged", Duration::from_secs(5), async || {
        let log = setup.log();
        log.contains("result=\"allow\"") && log.contains("invalid_credential")
    })
    .await;
    let log = setup.log();
    let allowed =
        log.lines().find(|line| line.ends_with("checked") && line.contains("result=\"allow\"")).unwrap();
    for field in
        ["check{request_id=", "method=\"GET\"", "path=", &format!("key_id={}", key.id), "tier=\"database\""]
    {
        assert!(allowed.contains(field), "{field} is not in the span: {allowed}");
    }
    for hidden in [&key.credential[8..], &wrong[8..], "$2b$", secret] {
        assert!(!setup.log().contains(hidden), "{hidden} is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_missing_are_named_until_they_are_there() {
    let schema = Schema::create().await;
    let Keystile { setup, process: _process } = Setup::with_database(&schema.url()).start_unready(&[]);
    until("readiness names the mend", Duration::from_secs(10), async || {
        setup.readyz().await.1["database"]["problem"]
            .as_str()
            .is_some_and(|told| told.contains("keystile migrate"))
    })
    .await;
    assert!(setup.run(&["migrate"]).status.success());
    until("it is ready without a restart", Duration::from_secs(5), async || setup.readyz().await.0 == 200)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_without_a_path_is_a_request_like_others() {
    let setup = Setup::new();
    setup.create_user("ada");
    let open = setup.create_key("ada", &[]);
    let restricted = setup.create_key("ada", &["--allowed-endpoint", "/**"]);
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    let channel = channel(setup.tcp).await;
    for (credential, expected) in
        [(open.credential.as_str(), 200), (&restricted.credential, 403), ("ks_nobodysKey", 401)]
    {
        let asked = Asked { credential, method: "CONNECT", ..Asked::default() };
        assert_eq!(status(&ask_about(&channel, &asked).await), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn database_that_does_not_answer_is_503_and_not_ready_until_it_does() {
    let setup = Setup::with_database("postgres://nobody@127.0.0.1:1/none");
    let Keystile { setup, process: _process } = setup.start_unready(&[]);
    until("the admin port answers", Duration::from_secs(10), async || setup.readyz().await.0 == 503).await;
    until("it says why", Duration::from_secs(5), async || {
        setup.readyz().await.1["database"]["problem"].as_str().is_some_and(|problem| !problem.is_empty())
    })
    .await;
    let answer = ask(&channel(setup.tcp).await, "ks_someonesKey").await;
    assert_eq!(status(&answer), 503);
    assert!(format!("{answer:?}").contains("unavailable"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_it_from_starting_is_named() {
    let setup = Setup::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let complaint = |settings: &[(&str, &str)]| complaint(&setup, settings);
    for (variable, value, expected) in [
        ("KEYSTILE_LISTEN", address.as_str(), "--listen"),
        ("KEYSTILE_ADMIN_LISTEN", address.as_str(), "--admin-listen"),
        ("KEYSTILE_LISTEN", "localhost", "--listen"),
        ("KEYSTILE_DATABASE_URL", "mysql://root:hunter2@db/keys", "--database-url"),
        ("KEYSTILE_CACHE_SECRET", "hunter2", "--cache-secret"),
        ("KEYSTILE_CACHE_SECRET_FILE", "/nowhere/secret", "/nowhere/secret"),
        ("KEYSTILE_CREDENTIAL_SOURCES", "bearer,form:key", "form:key"),
        ("KEYSTILE_RECORD_TTL", "soon", "--record-ttl"),
        ("KEYSTILE_LOG", "keystile=loud", "--log"),
        ("KEYSTILE_UPSTREAM_HEADERS", "x-auth-user-id,x-auth-shoe-size", "x-auth-shoe-size"),
        ("KEYSTILE_METADATA", "key_id,shoe_size", "--metadata: Keystile does not send \"shoe_size\""),
        ("KEYSTILE_REMOVE_HEADERS", "some", "--remove-headers"),
    ] {
        let told = complaint(&[(variable, value)]);
        assert!(told.contains(expected), "{variable}={value}: {told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_of_a_live_process_is_not_taken_over() {
    let Keystile { setup, process: _process } = Setup::new().start(&[]).await;
    let listen = format!("unix:{}", setup.socket().display());
    let second = Setup::new();
    let told = complaint(&second, &[("KEYSTILE_LISTEN", &listen)]);
    assert!(told.contains("a live process listens on this socket"), "{told}");
    assert_eq!(setup.readyz().await.0, 200);
}

#[test]
fn unknown_flag_is_wrong_usage() {
    let output = Setup::new().run(&["serve", "--lisen", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--listen"));
}
