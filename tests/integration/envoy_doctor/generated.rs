//! What Istio and Envoy Gateway make: what they have no setting for is a note.

use keystile::findings::Severity;

use super::{codes, examined, faults};
use crate::harness::tools::read;

/// Codes that are notes for Istio, and are in each of its configurations.
const ISTIO: &[&str] = &[
    "check_conditional",
    "circuit_breaker_low",
    "client_address_missing",
    "escaped_slashes_kept",
    "health_check_missing",
    "mutations_not_validated",
    "raw_headers_missing",
    "retry_missing",
    "slashes_not_merged",
];

/// The same for Envoy Gateway.
const ENVOY_GATEWAY: &[&str] = &[
    "circuit_breaker_low",
    "client_address_missing",
    "health_check_missing",
    "mutations_not_validated",
    "raw_headers_missing",
    "retry_missing",
];

#[test]
fn generated_configurations_have_the_listed_notes_only() {
    for (file, listed, further) in [
        ("istio.yaml", ISTIO, &["cors_after_check", "network_check"][..]),
        ("istio-jwt.yaml", ISTIO, &[]),
        ("envoy-gateway.yaml", ENVOY_GATEWAY, &["route_unchecked"]),
        ("envoy-gateway-jwt.yaml", ENVOY_GATEWAY, &[]),
    ] {
        let examined = examined(&read(&format!("tests/integration/gateways/{file}")));
        assert_eq!(faults(&examined), [""; 0], "{file}");
        let expected = listed.iter().chain(further).copied().collect();
        assert_eq!(codes(&examined), expected, "{file}");
    }
}

#[test]
fn note_says_whose_settings_lack_it() {
    let examined = examined(&read("tests/integration/gateways/istio.yaml"));
    let note = examined.findings.iter().find(|finding| finding.code == "retry_missing").unwrap();
    assert_eq!(note.severity, Severity::Note);
    assert!(note.message.ends_with("; Istio has no setting for it"), "{}", note.message);
}

#[test]
fn what_they_can_set_is_found() {
    for (file, from, to, code) in [
        ("istio.yaml", "status_on_error: {code: ServiceUnavailable}", "", "status_not_503"),
        ("istio.yaml", ", authority: keystile.internal", "", "authority_invalid"),
        ("istio.yaml", "normalize_path: true", "normalize_path: false", "path_not_normalized"),
        ("istio.yaml", "x[-_](auth|ratelimit)[-_].*", "x-(auth|ratelimit)-.*", "underscores_allowed"),
        ("envoy-gateway.yaml", "status_on_error: {code: ServiceUnavailable}", "", "status_not_503"),
        ("envoy-gateway.yaml", "timeout: 3s", "timeout: 0.2s", "timeout_short"),
        (
            "envoy-gateway.yaml",
            "- remove_on_match: {key_matcher: {prefix: x-auth-}}",
            "",
            "identity_headers_kept",
        ),
    ] {
        let text = read(&format!("tests/integration/gateways/{file}"));
        assert!(text.contains(from), "{file} has no {from}");
        // A cluster as these generators name it.
        let text = text.replace("cluster_name: keystile,", "cluster_name: outbound|9191||keystile.internal,");
        let text = text.replace("cluster_name: keystile}", "cluster_name: outbound|9191||keystile.internal}");
        let text = text.replace("- name: keystile\n", "- name: outbound|9191||keystile.internal\n");
        let examined = examined(&text.replacen(from, to, 1));
        let faults = faults(&examined);
        assert!(faults.iter().any(|fault| fault.starts_with(code)), "{file} {code}: {faults:?}");
    }
}
