//! The sidecar injector, asked over real TLS as an API server asks it.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Stdio,
    time::Duration,
};

use data_encoding::BASE64;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{keystile, process::free_port, service::Process, tls::Client, tools::promtool, until};

const JSON: &str = "application/json";
const SOON: Duration = Duration::from_secs(20);

/// A running `keystile inject`.
struct Injector {
    process: Process,
    listen: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
}

/// A CA that issues certificates for `localhost`.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes a new certificate and its key.
    fn issue(&self, folder: &Path) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        fs::write(folder.join("tls.crt"), params.signed_by(&key, &self.0).unwrap().pem()).unwrap();
        fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    }

    /// A client that trusts this CA alone.
    fn client(&self) -> Client {
        Client::trusting(&self.0.pem())
    }
}

impl Injector {
    async fn with_files(authority: &Authority) -> Self {
        let folder = tempfile::tempdir().unwrap();
        authority.issue(folder.path());
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (certificate, key) = (file("tls.crt"), file("tls.key"));
        Self::start(folder, &["--tls-cert", &certificate, "--tls-key", &key]).await
    }

    async fn start(folder: TempDir, arguments: &[&str]) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), folder, arguments).await
    }

    async fn start_at(ip: IpAddr, folder: TempDir, arguments: &[&str]) -> Self {
        let address = || SocketAddr::from((ip, free_port()));
        let (listen, admin) = (address(), address());
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = keystile::command(&[&["inject", "--image", "keystile:1"], arguments].concat(), "")
            .env("KEYSTILE_INJECT_LISTEN", listen.to_string())
            .env("KEYSTILE_INJECT_ADMIN_LISTEN", admin.to_string())
            .env("KEYSTILE_INJECT_TLS_INTERVAL", "50ms")
            .env("KEYSTILE_INJECT_DRAIN_DELAY", "1s")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let injector = Self { process: Process(child), listen, admin, folder };
        until("the injector is ready", SOON, async || {
            injector.admin("readyz").await.is_some_and(|a| a.0 == 200)
        })
        .await;
        injector
    }

    /// Status and body of a path of the admin listener.
    async fn admin(&self, path: &str) -> Option<(u16, String)> {
        let answer = reqwest::get(format!("http://{}/{path}", self.admin)).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// The status that a body gets.
    async fn post(&self, client: &Client, path: &str, content_type: &str, body: &[u8]) -> io::Result<u16> {
        Ok(client.send(self.listen, &format!("POST {path}"), content_type, body).await?.0)
    }

    /// What it answers to a question, whole.
    async fn ask(&self, client: &Client, path: &str, question: &Value) -> io::Result<Value> {
        let body = question.to_string();
        let answer = client.send(self.listen, &format!("POST {path}"), JSON, body.as_bytes()).await?;
        assert_eq!(answer.0, 200, "{}", answer.1);
        Ok(serde_json::from_str(&answer.1).unwrap())
    }
}

#[tokio::test]
async fn injector_answers_over_both_versions_of_ip() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    authority.issue(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (file("tls.crt"), file("tls.key"));
    let arguments = ["--tls-cert", &certificate, "--tls-key", &key];
    let mut injector = Injector::start_at(Ipv6Addr::UNSPECIFIED.into(), folder, &arguments).await;
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        injector.listen.set_ip(ip);
        injector.admin.set_ip(ip);
        let answer = injector.ask(&authority.client(), "/mutate/enabled-namespace", &question(&pod())).await;
        assert_eq!(answer.unwrap()["response"]["allowed"], true, "{ip}");
        assert_eq!(injector.admin("readyz").await.unwrap().0, 200, "{ip}");
    }
}

fn question(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "operation": "CREATE",
            "namespace": "shop",
            "dryRun": false,
            "object": pod,
        },
    })
}

fn pod() -> Value {
    json!({ "metadata": { "generateName": "cart-" }, "spec": { "containers": [{ "name": "envoy" }] } })
}

/// The pod that an answer makes of a pod.
fn patched(pod: &Value, answer: &Value) -> Value {
    let bytes = BASE64.decode(answer["response"]["patch"].as_str().expect("a patch").as_bytes()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&bytes).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

#[tokio::test]
async fn pod_is_injected_over_tls_and_not_twice() {
    let authority = Authority::new();
    let (injector, client) = (Injector::with_files(&authority).await, authority.client());
    let answer = injector.ask(&client, "/mutate/enabled-namespace", &question(&pod())).await.unwrap();
    assert_eq!(answer["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!(answer["response"]["allowed"], true);
    let injected = patched(&pod(), &answer);
    assert_eq!(injected["spec"]["initContainers"][0]["image"], "keystile:1");

    let again = injector.ask(&client, "/mutate/enabled-namespace", &question(&injected)).await.unwrap();
    let response = again["response"].as_object().unwrap();
    assert!(!response.contains_key("patch") && !response.contains_key("patchType"), "{again}");

    let mut dry = question(&pod());
    dry["request"]["dryRun"] = json!(true);
    assert_eq!(injector.ask(&client, "/mutate/enabled-namespace", &dry).await.unwrap(), answer);

    let unlabelled = injector.ask(&client, "/mutate", &question(&pod())).await.unwrap();
    assert_eq!(unlabelled["response"].get("patch"), None);

    let mut typo = pod();
    typo["metadata"]["annotations"] = json!({ "keystile.dev/cpu-limits": "1" });
    let refused = injector.ask(&client, "/mutate/enabled-namespace", &question(&typo)).await.unwrap();
    assert_eq!(refused["response"]["allowed"], false);
    let message = refused["response"]["status"]["message"].as_str().unwrap();
    assert!(message.contains("keystile.dev/cpu-limits"), "{message}");

    let metrics = injector.admin("metrics").await.unwrap().1;
    for (result, count) in [("injected", 2), ("untouched", 2), ("refused", 1), ("malformed", 0)] {
        let line = format!("keystile_injector_reviews_total{{result=\"{result}\"}} {count}");
        assert!(metrics.contains(&line), "{line} in:\n{metrics}");
    }
    assert_eq!(promtool(&["check", "metrics"], &metrics).good().trim(), "");
}

#[tokio::test]
async fn nonsense_is_refused_and_the_next_question_answered() {
    let authority = Authority::new();
    let (injector, client) = (Injector::with_files(&authority).await, authority.client());
    let whole = question(&pod()).to_string().into_bytes();
    for (content_type, body, status) in [
        (JSON, b"{".to_vec(), 400),
        (JSON, b"null".to_vec(), 400),
        (JSON, vec![b'['; 100_000], 400),
        (
            JSON,
            br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}"#.to_vec(),
            400,
        ),
        (JSON, vec![b' '; 8 * 1024 * 1024 + 1], 413),
        ("text/plain", whole.clone(), 415),
        ("application/json; charset=utf-8", whole.clone(), 200),
    ] {
        let length = body.len();
        let answered = injector.post(&client, "/mutate", content_type, &body).await;
        // A client that is told off in the middle of its body may see its connection end first.
        let ended_early = status == 413 && answered.is_err();
        assert!(ended_early || answered.unwrap() == status, "{content_type}, {length} bytes: {status}");
        assert_eq!(injector.post(&client, "/mutate", JSON, &whole).await.unwrap(), 200);
    }
    assert_eq!(client.send(injector.listen, "GET /mutate", JSON, b"").await.unwrap().0, 405);
    assert_eq!(injector.post(&client, "/", JSON, &whole).await.unwrap(), 404);
}

#[tokio::test]
async fn certificate_is_followed_without_a_restart() {
    let (old, new) = (Authority::new(), Authority::new());
    let injector = Injector::with_files(&old).await;
    let works = async |authority: &Authority| {
        injector.ask(&authority.client(), "/mutate", &question(&pod())).await.is_ok()
    };
    assert!(works(&old).await && !works(&new).await);

    // As seen between two writes: a key of another certificate. The old one serves on.
    fs::write(injector.folder.path().join("tls.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    until("the mismatch is counted", SOON, async || {
        !injector.admin("metrics").await.unwrap().1.contains("keystile_injector_certificate_errors_total 0\n")
    })
    .await;
    assert!(works(&old).await);

    new.issue(injector.folder.path());
    until("the new certificate serves", SOON, async || works(&new).await).await;
    assert!(!works(&old).await);
}

#[tokio::test]
async fn self_signed_injector_gives_out_its_own_authority() {
    let folder = tempfile::tempdir().unwrap();
    let injector =
        Injector::start(folder, &["--self-signed", "localhost,keystile-injector.keystile.svc"]).await;
    let (status, authority) = injector.admin("ca.crt").await.unwrap();
    assert_eq!(status, 200);
    let answer = injector.ask(&Client::trusting(&authority), "/mutate", &question(&pod())).await.unwrap();
    assert_eq!(answer["response"]["allowed"], true);
}

#[tokio::test]
async fn injector_goes_on_for_a_while_after_it_is_told_to_stop() {
    let authority = Authority::new();
    let (mut injector, client) = (Injector::with_files(&authority).await, authority.client());
    injector.process.signal(Signal::TERM);
    until("it is not ready", SOON, async || injector.admin("readyz").await.is_some_and(|a| a.0 == 503)).await;
    assert!(injector.ask(&client, "/mutate", &question(&pod())).await.is_ok());
    assert_eq!(injector.process.wait(SOON), Some(0));
}

#[test]
fn injector_without_a_certificate_says_what_to_do() {
    let run = keystile::keystile(&["inject", "--image", "keystile:1"], "", "");
    assert!(run.failed(2).contains("--tls-cert"));
    let missing =
        ["inject", "--image", "k", "--tls-cert", "/nowhere/tls.crt", "--tls-key", "/nowhere/tls.key"];
    assert!(keystile::keystile(&missing, "", "").failed(1).contains("--tls-cert /nowhere/tls.crt"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_bodies_that_do_not_end_hold_up_no_review() {
    let authority = Authority::new();
    let (injector, client) = (Injector::with_files(&authority).await, authority.client());
    let mut open = Vec::new();
    for _ in 0..300 {
        open.push(tokio::net::TcpStream::connect(injector.listen).await.unwrap());
    }
    let part = [
        b"POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 8000000\r\n\r\n",
        &[b' '; 1_000_000][..],
    ];
    let part = part.concat();
    let unfinished =
        futures_util::future::join_all((0..100).map(|_| client.begin(injector.listen, &part))).await;
    let answer = injector.ask(&client, "/mutate/enabled-namespace", &question(&pod())).await.unwrap();
    assert_eq!(answer["response"]["allowed"], true);
    let status = fs::read_to_string(format!("/proc/{}/status", injector.process.0.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 128 * 1024, "{peak} KiB");
    assert_eq!(injector.admin("readyz").await.unwrap().0, 200);
    drop((open, unfinished));
}
