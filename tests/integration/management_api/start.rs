//! When the API starts, and how it stops.

use super::*;
use crate::harness::{
    authority::{Authority, write},
    tls::Client,
};

fn addresses() -> (SocketAddr, SocketAddr) {
    let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
    (address(), address())
}

#[test]
fn api_that_nobody_could_use_safely_does_not_start() {
    let (listen, admin) = addresses();
    let start = |setup: &Setup, listen: SocketAddr, settings: &[(&str, &str)]| {
        let output = setup.management(listen, admin, settings).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let without_token = Setup::new();
    without_token.create_user("ada");
    let (status, text) = start(&without_token, listen, &[]);
    assert!(status == 1 && text.contains("management-tokens create"), "{status}: {text}");
    // Revoked and expired tokens allow nobody.
    without_token.create_token("gone", &["--scope", "write"]);
    without_token.json(&["management-tokens", "revoke", "gone"]);
    without_token.create_token("late", &["--scope", "write", "--expires-at", "1s"]);
    std::thread::sleep(Duration::from_millis(1200));
    let (status, text) = start(&without_token, listen, &[]);
    assert!(status == 1 && text.contains("no caller is allowed"), "{status}: {text}");

    let (setup, _) = setup();
    for everywhere in ["0.0.0.0", "[::]"] {
        let listen = format!("{everywhere}:{}", listen.port()).parse().unwrap();
        let (status, text) = start(&setup, listen, &[]);
        assert!(status == 1 && text.contains("--tls-cert-file"), "{status}: {text}");
    }
    let (status, text) = start(&setup, listen, &[("KEYSTILE_MANAGEMENT_TLS_CERT_FILE", "")]);
    assert!(status == 2 && text.contains("--tls-cert-file"), "{status}: {text}");
    let mut command = setup.command(&["management"]);
    let output = command.output().unwrap();
    assert!(
        output.status.code() == Some(2) && String::from_utf8(output.stderr).unwrap().contains("--listen")
    );
}

#[test]
fn database_without_the_tables_says_what_to_run() {
    let (setup, _) = setup();
    setup.execute("DROP TABLE keystile_management_tokens");
    let (listen, admin) = addresses();
    let output = setup.management(listen, admin, &[]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && text.contains("keystile migrate"), "{text}");
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_token("again", &["--scope", "read"]);
}

#[tokio::test]
async fn certificate_has_the_scope_that_its_name_has() {
    let (setup, token) = setup();
    let (servers, clients) = (Authority::new(), Authority::new());
    servers.issue(&["localhost"]).write(setup.path("").as_path());
    write(&setup.path("clients.crt"), &clients.pem());
    let file = |name: &str| setup.path(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("tls.crt"), file("tls.key"), file("clients.crt"));
    let settings = [
        ("KEYSTILE_MANAGEMENT_TLS_CERT_FILE", cert.as_str()),
        ("KEYSTILE_MANAGEMENT_TLS_KEY_FILE", &key),
        ("KEYSTILE_MANAGEMENT_TLS_CLIENT_CA_FILE", &ca),
        (
            "KEYSTILE_MANAGEMENT_TLS_CLIENT_NAMES",
            "read:monitor.internal,write:spiffe://local/ci,portal.internal",
        ),
    ];
    let api = Management::start(&setup, &settings).await;
    let reader = setup.create_token("reader", &["--scope", "read"]);
    let send = async |name: Option<&str>, line: &str, token: &str, body: &str| {
        let own = name.map(|name| clients.issue(&[name]));
        let config = servers.client(own.as_ref(), rustls::DEFAULT_VERSIONS);
        let client = Client::new(config, "localhost");
        let header =
            if token.is_empty() { "x-none: 1".to_owned() } else { format!("authorization: Bearer {token}") };
        let answer = client.send_with(api.listen, line, &header, "application/json", body.as_bytes()).await;
        answer.ok().map(|answer| answer.0)
    };
    let new = r#"{"user": "ada@example.com"}"#;
    for (name, token, reads, writes) in [
        (Some("monitor.internal"), "", Some(200), Some(403)),
        (Some("spiffe://local/ci"), "", Some(200), Some(201)),
        // Its certificate lets it connect, and no more.
        (Some("portal.internal"), "", Some(401), Some(401)),
        (Some("portal.internal"), token.as_str(), Some(200), Some(201)),
        // A token decides where there is one.
        (Some("spiffe://local/ci"), &reader, Some(200), Some(403)),
        (Some("spiffe://local/ci"), "nonsense", Some(401), Some(401)),
        (Some("other.internal"), &token, None, None),
        (None, &token, None, None),
    ] {
        assert_eq!(send(name, "GET /v1/keys", token, "").await, reads, "{name:?} reads");
        assert_eq!(send(name, "POST /v1/keys", token, new).await, writes, "{name:?} writes");
    }
}

#[tokio::test]
async fn process_answers_what_it_has_begun_and_stops() {
    let (setup, token) = setup();
    let mut api = Management::start(&setup, &[("KEYSTILE_BCRYPT_COST", "13")]).await;
    let slow = tokio::spawn(
        api.request(&token, Method::POST, "/v1/keys").json(&json!({ "user": "ada@example.com" })).send(),
    );
    tokio::time::sleep(Duration::from_millis(150)).await;
    api.process.signal(Signal::TERM);
    assert_eq!(slow.await.unwrap().unwrap().status(), 201);
    assert_eq!(api.process.wait(SOON), Some(0), "{}", api.log());
}
