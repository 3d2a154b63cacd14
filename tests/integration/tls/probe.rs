//! `keystile probe` and the probes of orchestrators, where the listeners have TLS.

use std::process::Output;

use super::{ENVOY, Files, NAME, SOON, borrowed};
use crate::harness::{
    authority::{Authority, Issued, write},
    service::{Keystile, Setup},
    tls::Client,
    until,
};

/// Runs the probe as in the instance's container: with its environment, and with further settings.
fn probe(keystile: &Keystile, environment: &[(String, String)], more: &[(&str, &str)]) -> Output {
    let mut command = keystile.setup.command(&["probe", "--timeout", "5s"]);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.env("KEYSTILE_LISTEN", keystile.setup.tcp.to_string());
    command.env("KEYSTILE_ADMIN_LISTEN", keystile.setup.admin.to_string());
    command.envs(more.iter().copied()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Writes the probe's own certificate and its key.
fn own(files: &Files, name: &str, issued: &Issued) -> [String; 2] {
    let paths = [files.path(&format!("{name}.crt")), files.path(&format!("{name}.key"))];
    write(&paths[0], &issued.certificate);
    write(&paths[1], &issued.key);
    paths.map(|path| path.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_in_the_container_of_an_instance_with_tls_needs_no_settings() {
    let files = Files::new();
    let settings: Vec<_> = files
        .settings("KEYSTILE_TLS", None)
        .into_iter()
        .filter(|(name, _)| !name.contains("CLIENT"))
        .collect();
    let keystile = Setup::new().start(&borrowed(&settings)).await;
    let output = probe(&keystile, &settings, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    // Without them, it says what is missing.
    let output = probe(&keystile, &[], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("--tls-cert-file"), "{}", said(&output));
    // With a CA, it verifies the certificate and its name.
    let (ca, other) = (files.path("servers.crt"), files.path("other.crt"));
    write(&ca, &files.servers.pem());
    write(&other, &Authority::new().pem());
    let (ca, other) = (ca.to_str().unwrap(), other.to_str().unwrap());
    for (ca, name, good) in [(ca, NAME, true), (ca, "portal.internal", false), (other, NAME, false)] {
        let more = [("KEYSTILE_PROBE_TLS_CA_FILE", ca), ("KEYSTILE_PROBE_TLS_NAME", name)];
        let output = probe(&keystile, &[], &more);
        assert_eq!(output.status.success(), good, "{name}: {}", said(&output));
        assert!(good || said(&output).contains("certificate"), "{}", said(&output));
    }
    let output = probe(&keystile, &settings, &[("KEYSTILE_PROBE_TLS_CA_FILE", "")]);
    assert_eq!(output.status.code(), Some(2), "empty is no CA: {}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_of_mutual_tls_shows_its_certificate_and_says_why_it_is_refused() {
    let files = Files::new();
    let settings = files.settings("KEYSTILE_TLS", Some(&format!("{ENVOY},probe.internal")));
    let keystile = Setup::new().start(&borrowed(&settings)).await;
    let output = probe(&keystile, &settings, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("--cert-file"), "{}", said(&output));
    for (name, good) in [("probe.internal", true), ("other.internal", false)] {
        let [certificate, key] = own(&files, name, &files.clients.issue(&[name]));
        let more =
            [("KEYSTILE_PROBE_TLS_CERT_FILE", certificate.as_str()), ("KEYSTILE_PROBE_TLS_KEY_FILE", &key)];
        let output = probe(&keystile, &settings, &more);
        assert_eq!(output.status.success(), good, "{name}: {}", said(&output));
        let output = probe(&keystile, &settings, &more[..1]);
        assert_eq!(output.status.code(), Some(2), "half of them: {}", said(&output));
        assert!(said(&output).contains("--key-file"), "{}", said(&output));
    }
}

/// The kubelet asks `/livez` and `/readyz` over HTTPS, without a certificate and without verification.
#[tokio::test(flavor = "multi_thread")]
async fn admin_listener_with_tls_answers_probes_and_says_why_an_instance_is_not_ready() {
    let files = Files::new();
    let settings: Vec<_> = files
        .settings("KEYSTILE_ADMIN_TLS", None)
        .into_iter()
        .filter(|(name, _)| !name.contains("CLIENT"))
        .collect();
    let setup = Setup::with_database("postgres://nobody@127.0.0.1:1/none");
    let keystile = setup.start_unready(&borrowed(&settings));
    let kubelet = Client::new(files.client(None), NAME);
    let ask = async |line: &str| {
        kubelet.send(keystile.setup.admin, line, "text/plain", b"").await.map_or(0, |answer| answer.0)
    };
    until("alive", SOON, async || ask("GET /livez").await == 200).await;
    until("not ready", SOON, async || ask("GET /readyz").await == 503).await;
    until("the probe knows why", SOON, async || {
        let output = probe(&keystile, &settings, &[]);
        assert_eq!(output.status.code(), Some(1));
        said(&output).contains("not ready: starting") && said(&output).contains("database: ")
    })
    .await;
}
