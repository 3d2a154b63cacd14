//! Each rule, with a sound configuration that an edit breaks.

use std::collections::BTreeSet;

use keystile::{
    envoy_config::{EnvoyVersion, rules},
    findings::Severity::{self, Error, Note, Warning},
};

use super::{codes, examined, examined_as};
use crate::harness::tools::read;

/// A configuration, an edit, and what is found after it.
struct Broken {
    file: &'static str,
    /// The first place of this text is replaced, which must be there.
    from: &'static str,
    to: &'static str,
    code: &'static str,
    severity: Severity,
    /// The end of the path.
    place: &'static str,
}

const fn broken(
    code: &'static str,
    severity: Severity,
    place: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
) -> Broken {
    Broken { file, from, to, code, severity, place }
}

const UDS: &str = "envoy/uds.yaml";
const TCP: &str = "envoy/tcp.yaml";
const BODY: &str = "envoy/body.yaml";
const ROUTES: &str = "envoy/routes.yaml";
const OPENAI: &str = "envoy/openai.yaml";

/// The whole setting of the headers that are removed early.
const EARLY: &str = r#"              mutations:
              - remove_on_match: {key_matcher: {prefix: x-auth-, ignore_case: true}}
              - remove_on_match: {key_matcher: {prefix: x-ratelimit-, ignore_case: true}}
"#;

/// A second listener before the first, which leads to the same upstream.
const OPEN_LISTENER: &str = r#"  listeners:
  - name: back-door
    address: {socket_address: {address: 0.0.0.0, port_value: 8088}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: back
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: CLUSTER}}]}]}
          http_filters:
          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#;

/// The same without HTTP.
const OPEN_TCP: &str = r#"  listeners:
  - name: back-door
    address: {socket_address: {address: 0.0.0.0, port_value: 8088}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: back
          cluster: upstream
"#;

/// A mutation that removes Keystile's headers after the check.
const LATE_MUTATION: &str = r#"              emit_filter_state_stats: true

          - name: late
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
              mutations: {request_mutations: [{remove: x-auth-user-id}]}
"#;

const NETWORK: &str = r#"    - filters:
      - name: authz
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz
          stat_prefix: tcp
          failure_mode_allow: true
          grpc_service: {envoy_grpc: {cluster_name: keystile, authority: keystile}, timeout: 2s}
"#;

const CORS: &str = r#"              emit_filter_state_stats: true
          - name: envoy.filters.http.cors
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
"#;

const RUNS_WITH_BODY: &str = r#"                      with_request_body:
                        max_request_bytes: 1048576
                        allow_partial_message: false
                      context_extensions: {keystile.agent: "body:agent_config_id"}
"#;

const RUNS_WITHOUT_BODY: &str = r#"                      disable_request_body_buffering: true
                      context_extensions: {keystile.agent: "body:agent_config_id"}
"#;

/// TLS that accepts every certificate.
const UNVERIFIED_TLS: &str = r#"    lb_policy: LEAST_REQUEST
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: x}
"#;

const TABLE: &[Broken] = &[
    // What lets requests pass.
    broken(
        "fail_open",
        Error,
        ".failure_mode_allow",
        UDS,
        "failure_mode_allow: false",
        "failure_mode_allow: true",
    ),
    broken(
        "fail_open",
        Error,
        ".failure_mode_allow",
        UDS,
        "failure_mode_allow: false",
        "failure_mode_allow: yes",
    ),
    broken(
        "fail_open",
        Error,
        ".failure_mode_allow",
        UDS,
        "failure_mode_allow: false",
        "failureModeAllow: true",
    ),
    broken(
        "fail_open",
        Error,
        "filters[authz].typed_config.failure_mode_allow",
        UDS,
        "    - filters:\n",
        NETWORK,
    ),
    broken("shadow_mode", Error, ".shadow_mode", UDS, "failure_mode_allow: false", "shadow_mode: true"),
    broken(
        "check_partial",
        Error,
        ".filter_enabled",
        UDS,
        "failure_mode_allow: false",
        "filter_enabled: {default_value: {numerator: 999, denominator: TEN_THOUSAND}}",
    ),
    broken(
        "check_conditional",
        Note,
        ".typed_config",
        UDS,
        "failure_mode_allow: false",
        "filter_enabled_metadata: {filter: x, path: [{key: y}], value: {present_match: true}}",
    ),
    broken(
        "check_missing",
        Error,
        "configuration",
        UDS,
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz\n",
        "envoy.extensions.filters.http.buffer.v3.Buffer\n",
    ),
    broken("service_missing", Error, ".typed_config", UDS, "grpc_service:\n", "unknown_service:\n"),
    broken("service_missing", Error, ".grpc_service", UDS, "cluster_name: keystile, authority", "authority"),
    broken("service_not_examined", Note, ".typed_config", UDS, "grpc_service:\n", "http_service:\n"),
    broken("network_check", Note, "filters[authz].typed_config", UDS, "    - filters:\n", NETWORK),
    broken(
        "not_in_document",
        Warning,
        "dynamic_resources.lds_config",
        UDS,
        "static_resources:\n",
        "dynamic_resources: {lds_config: {path_config_source: {path: /etc/envoy/lds.yaml}}}\nstatic_resources:\n",
    ),
    broken("not_in_document", Warning, ".rds", UDS, "          route_config:\n", "          rds:\n"),
    // Routes.
    broken("listener_unchecked", Error, ".typed_config", UDS, "  listeners:\n", OPEN_LISTENER),
    broken("listener_unchecked", Error, "filters[tcp].typed_config", UDS, "  listeners:\n", OPEN_TCP),
    broken("route_unchecked", Note, "virtual_hosts[shop]", UDS, "- name: api\n", "- name: shop\n"),
    broken(
        "route_settings_ignored",
        Error,
        "typed_per_filter_config[envoy.filters.http.ext_authz]",
        UDS,
        "- name: envoy.filters.http.ext_authz\n",
        "- name: keys\n",
    ),
    broken(
        "route_misconfigured",
        Error,
        "]",
        ROUTES,
        r#"keystile.scopes: "admin""#,
        r#"keystile.scope: "admin""#,
    ),
    broken("route_shadow", Note, "]", BODY, r#"keystile.model: "ignore""#, r#"keystile.mode: "shadow""#),
    broken(
        "route_cache_cleared",
        Warning,
        ".clear_route_cache",
        UDS,
        "encode_raw",
        "clear_route_cache: true\n              encode_raw",
    ),
    // Headers.
    broken(
        "identity_headers_kept",
        Warning,
        "early_header_mutation_extensions",
        UDS,
        EARLY,
        "              mutations:\n",
    ),
    broken(
        "identity_headers_kept",
        Warning,
        "early_header_mutation_extensions",
        UDS,
        "prefix: x-auth-,",
        "prefix: x-auth-user,",
    ),
    broken(
        "identity_headers_kept",
        Warning,
        "early_header_mutation_extensions",
        UDS,
        "prefix: x-auth-, ignore_case: true",
        "prefix: X-Auth-",
    ),
    broken(
        "underscores_allowed",
        Error,
        "headers_with_underscores_action",
        UDS,
        "headers_with_underscores_action: REJECT_REQUEST",
        "headers_with_underscores_action: ALLOW",
    ),
    broken(
        "underscores_allowed",
        Error,
        "_action",
        UDS,
        "headers_with_underscores_action: REJECT_REQUEST\n",
        "max_headers_count: 100\n",
    ),
    broken(
        "headers_not_sent",
        Warning,
        ".allowed_headers",
        UDS,
        "- {exact: content-type, ignore_case: true}",
        "- {exact: x}",
    ),
    broken(
        "headers_not_sent",
        Warning,
        ".allowed_headers",
        BODY,
        "- {exact: content-encoding, ignore_case: true}",
        "- {exact: x}",
    ),
    broken(
        "raw_headers_missing",
        Warning,
        ".encode_raw_headers",
        UDS,
        "encode_raw_headers: true",
        "encode_raw_headers: false",
    ),
    broken(
        "cors_after_check",
        Warning,
        "[envoy.filters.http.cors]",
        UDS,
        "              emit_filter_state_stats: true\n",
        CORS,
    ),
    // Changes of headers.
    broken(
        "mutations_not_validated",
        Warning,
        ".validate_mutations",
        UDS,
        "validate_mutations: true",
        "validate_mutations: false",
    ),
    broken(
        "mutations_refused",
        Error,
        ".decoder_header_mutation_rules",
        UDS,
        "(x-auth-.*|x-ratelimit-.*|",
        "(x-auth-.*|",
    ),
    broken(
        "identity_headers_changed",
        Warning,
        "[late]",
        UDS,
        "              emit_filter_state_stats: true\n",
        LATE_MUTATION,
    ),
    broken(
        "identity_headers_changed",
        Warning,
        "routes[default]",
        UDS,
        "                match: {prefix: /}\n",
        "                match: {prefix: /}\n                request_headers_to_remove: [X-Auth-User-Id]\n",
    ),
    // Paths and addresses.
    broken(
        "path_not_normalized",
        Error,
        ".normalize_path",
        UDS,
        "normalize_path: true",
        "normalize_path: false",
    ),
    broken(
        "slashes_not_merged",
        Warning,
        ".merge_slashes",
        UDS,
        "merge_slashes: true",
        "merge_slashes: false",
    ),
    broken(
        "escaped_slashes_kept",
        Warning,
        ".path_with_escaped_slashes_action",
        UDS,
        "path_with_escaped_slashes_action: REJECT_REQUEST",
        "path_with_escaped_slashes_action: KEEP_UNCHANGED",
    ),
    broken(
        "client_address_missing",
        Warning,
        ".initial_metadata",
        UDS,
        "{key: x-client-ip,",
        "{key: x-client,",
    ),
    broken(
        "client_address_forgeable",
        Error,
        ".initial_metadata",
        UDS,
        r#"{key: x-client-ip, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}"#,
        r#"{key: x-client-ip, value: "%REQ(X-FORWARDED-FOR)%"}"#,
    ),
    broken(
        "client_address_forgeable",
        Warning,
        ".use_remote_address",
        UDS,
        "use_remote_address: true",
        "use_remote_address: false",
    ),
    // Calls.
    broken("timeout_short", Error, ".grpc_service.timeout", UDS, "timeout: 2s\n", "timeout: 0.25s\n"),
    broken("timeout_short", Warning, ".grpc_service.timeout", UDS, "timeout: 2s\n", "timeout: 0.5s\n"),
    broken("timeout_short", Error, ".grpc_service.timeout", UDS, "                timeout: 2s\n", ""),
    broken("timeout_missing", Warning, ".grpc_service.timeout", UDS, "timeout: 2s\n", "timeout: 0s\n"),
    broken("try_short", Error, ".max_interval", UDS, ", max_interval: 2s", ""),
    broken("try_short", Warning, ".max_interval", UDS, "max_interval: 2s", "max_interval: 1s"),
    broken("retry_missing", Warning, ".retry_policy", UDS, "retry_policy:\n", "unknown:\n"),
    broken(
        "status_not_503",
        Warning,
        ".status_on_error",
        UDS,
        "status_on_error: {code: 503}",
        "status_on_error: {code: 401}",
    ),
    broken(
        "authority_invalid",
        Error,
        ".envoy_grpc",
        UDS,
        "authority: keystile}",
        "authority: outbound|9191||keystile}",
    ),
    broken("authority_missing", Note, ".envoy_grpc", UDS, ", authority: keystile}", "}"),
    // The cluster.
    broken(
        "cluster_missing",
        Error,
        ".cluster_name",
        UDS,
        "cluster_name: keystile, authority",
        "cluster_name: keystyle, authority",
    ),
    broken(
        "cluster_not_http2",
        Error,
        ".typed_extension_protocol_options",
        UDS,
        "          http2_protocol_options:\n            connection_keepalive",
        "          http_protocol_options:\n            connection_keepalive",
    ),
    broken(
        "plain_text",
        Warning,
        ".transport_socket",
        TCP,
        "127.0.0.1, port_value: 9191",
        "keystile.internal, port_value: 9191",
    ),
    broken(
        "circuit_breaker_low",
        Warning,
        ".circuit_breakers",
        UDS,
        "max_requests: 8192",
        "max_requests: 1024",
    ),
    broken(
        "circuit_breaker_low",
        Warning,
        ".circuit_breakers",
        UDS,
        "- max_requests: 8192",
        "- priority: HIGH\n        max_requests: 8192",
    ),
    broken("health_check_missing", Warning, ".health_checks", UDS, "grpc_health_check:", "tcp_health_check:"),
    broken(
        "health_check_unknown",
        Error,
        ".health_checks",
        UDS,
        "service_name: envoy.service",
        "service_name: Envoy.service",
    ),
    broken(
        "panic_threshold",
        Warning,
        ".healthy_panic_threshold",
        UDS,
        "healthy_panic_threshold: {value: 0}",
        "healthy_panic_threshold: {value: 1}",
    ),
    broken(
        "panic_threshold",
        Warning,
        ".healthy_panic_threshold",
        UDS,
        "healthy_panic_threshold: {value: 0}",
        "unknown: {}",
    ),
    broken(
        "keepalive_missing",
        Warning,
        ".typed_extension_protocol_options",
        TCP,
        "connection_keepalive:",
        "unknown:",
    ),
    broken(
        "connect_timeout_long",
        Warning,
        ".connect_timeout",
        TCP,
        "connect_timeout: 0.25s",
        "connect_timeout: 2s",
    ),
    // Bodies.
    broken(
        "body_too_large",
        Error,
        ".max_request_bytes",
        BODY,
        "max_request_bytes: 1048576",
        "max_request_bytes: 16777216",
    ),
    broken(
        "body_partial",
        Warning,
        ".allow_partial_message",
        BODY,
        "allow_partial_message: false",
        "allow_partial_message: true",
    ),
    broken("body_not_bytes", Warning, ".pack_as_bytes", BODY, "pack_as_bytes: true", "pack_as_bytes: false"),
    broken(
        "body_not_bytes",
        Warning,
        ".pack_as_bytes",
        OPENAI,
        "              with_request_body:\n",
        "              unknown:\n",
    ),
    broken(
        "body_not_sent",
        Error,
        "routes[runs].typed_per_filter_config[envoy.filters.http.ext_authz]",
        ROUTES,
        RUNS_WITH_BODY,
        RUNS_WITHOUT_BODY,
    ),
    broken(
        "body_held_back",
        Warning,
        "routes[admin].typed_per_filter_config[envoy.filters.http.ext_authz]",
        ROUTES,
        "                      disable_request_body_buffering: true\n                      context_extensions: {keystile.scopes: \"admin\"}",
        "                      context_extensions: {keystile.scopes: \"admin\"}",
    ),
    broken(
        "tls_unverified",
        Error,
        ".transport_socket",
        TCP,
        "    lb_policy: LEAST_REQUEST\n",
        UNVERIFIED_TLS,
    ),
    broken(
        "authority_invalid",
        Error,
        ".envoy_grpc",
        UDS,
        "authority: keystile}",
        "authority: security/shop/keys}",
    ),
    broken(
        "identity_headers_kept",
        Warning,
        "early_header_mutation_extensions",
        UDS,
        "              - remove: x-envoy-auth-partial-body\n",
        "              - append: {header: {key: X-Auth-User-Id, value: \"%REQ(x-user)%\"}}\n",
    ),
];

impl Broken {
    fn text(&self) -> String {
        let text = read(self.file);
        assert!(text.contains(self.from), "{} has no {:?}", self.file, self.from);
        text.replacen(self.from, self.to, 1).replace("cluster: CLUSTER", "cluster: upstream")
    }

    /// What is missing after the edit.
    fn missing(&self) -> Option<String> {
        let examined = examined(&self.text());
        let found = examined.findings.iter().any(|finding| {
            finding.code == self.code
                && finding.severity == self.severity
                && finding.location.to_string().ends_with(self.place)
        });
        let line = format!("{} {} at {}: {:?}", self.severity, self.code, self.place, codes(&examined));
        (!found).then_some(line)
    }
}

#[test]
fn each_planted_fault_is_found_and_is_not_in_the_sound_configuration() {
    for broken in TABLE {
        let sound = examined(&read(broken.file));
        let may_be_there = ["route_unchecked", "route_shadow"].contains(&broken.code);
        assert!(may_be_there || !codes(&sound).contains(broken.code), "{}", broken.code);
    }
    let missing: Vec<_> = TABLE.iter().filter_map(Broken::missing).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_rule_has_a_broken_configuration() {
    let tested: BTreeSet<_> = TABLE.iter().map(|broken| broken.code).collect();
    // Those of versions have tests below.
    let all = rules().map(|rule| rule.code).filter(|code| !code.starts_with("version_")).collect();
    assert_eq!(tested, all);
    let codes: BTreeSet<_> = rules().map(|rule| rule.code).collect();
    assert_eq!(codes.len(), rules().count(), "codes are unique");
}

#[test]
fn early_removal_is_an_error_where_unchecked_requests_reach_an_upstream() {
    let open = "direct_response: {status: 200, body: {inline_string: \"ok\\n\"}}";
    let text = read(UDS).replacen(EARLY, "              mutations:\n", 1);
    let text = text.replacen(open, "route: {cluster: upstream}", 1);
    let examined = examined(&text);
    let found = examined.findings.iter().find(|finding| finding.code == "identity_headers_kept").unwrap();
    assert_eq!(found.severity, Error);
    assert!(found.message.contains("x-auth-result, x-auth-user-id"), "{}", found.message);
}

/// A cluster on another machine, with this socket.
fn remote_with(socket: &str) -> BTreeSet<&'static str> {
    let text = read(TCP).replace("127.0.0.1, port_value: 9191", "10.0.0.7, port_value: 9191");
    let policy = "    lb_policy: LEAST_REQUEST\n";
    assert!(text.contains(policy));
    codes(&examined(&text.replacen(policy, &format!("{policy}    {socket}\n"), 1)))
}

#[test]
fn kind_of_socket_decides_whether_keys_are_protected() {
    let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    let raw = r#"{name: a, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}"#;
    let verified = format!(
        r#"{{name: b, typed_config: {{"@type": {tls}, common_tls_context: {{validation_context: {{trusted_ca: {{filename: /ca.pem}}}}}}}}}}"#
    );
    assert!(remote_with(&format!("transport_socket: {raw}")).contains("plain_text"));
    let found = remote_with(&format!("transport_socket: {verified}"));
    assert!(!found.contains("plain_text") && !found.contains("tls_unverified"), "{found:?}");
    let matches = format!(
        "transport_socket_matches: [{{name: x, transport_socket: {verified}}}, {{name: y, transport_socket: {raw}}}]"
    );
    assert!(!remote_with(&matches).contains("plain_text"));
    let wrapped = format!(
        r#"transport_socket: {{name: c, typed_config: {{"@type": x/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, transport_socket: {raw}}}}}"#
    );
    assert!(remote_with(&wrapped).contains("plain_text"));
}

#[test]
fn mixed_spellings_of_identity_headers_must_be_removed_where_underscores_are_allowed() {
    let text = read(UDS)
        .replace("headers_with_underscores_action: REJECT_REQUEST", "headers_with_underscores_action: ALLOW");
    let with = |matchers: &str| {
        let removals = format!("              mutations:\n{matchers}");
        codes(&examined(&text.replacen(EARLY, &removals, 1))).contains("underscores_allowed")
    };
    let removal =
        |matcher: &str| format!("              - remove_on_match: {{key_matcher: {{{matcher}}}}}\n");
    let underscores: String = ["prefix: x_auth_", "prefix: x_ratelimit_"].map(removal).concat();
    assert!(with(&underscores), "x-auth_user-id is kept");
    assert!(!with(&removal(r#"safe_regex: {regex: "x[-_](auth|ratelimit)[-_].*"}"#)));
}

#[test]
fn listener_with_clusters_of_its_own_is_a_note() {
    let text = read(UDS).replacen("  listeners:\n", OPEN_LISTENER, 1).replace("CLUSTER", "metrics");
    let examined = examined(&text);
    let found = examined.findings.iter().find(|finding| finding.code == "listener_unchecked").unwrap();
    assert_eq!(found.severity, Note);
}

#[test]
fn known_faults_of_versions_are_named_where_the_configuration_meets_them() {
    let text = read(UDS);
    let of = |server_info: &str| {
        let examined = examined_as(&text, EnvoyVersion::from_server_info(server_info));
        let messages = examined.findings.iter().filter(|finding| finding.code.starts_with("version_"));
        messages.map(|finding| format!("{} {}", finding.code, finding.message)).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(of("9d0e/1.40.0/Clean/RELEASE/BoringSSL"), "");
    for old in ["x/1.36.4/y", "x/1.39.0/y", "x/1.38.3-dev/y"] {
        let found = of(old);
        assert!(found.contains("CVE-2026-73547") && found.contains("CVE-2026-73551"), "{old}: {found}");
        assert!(!found.contains("CVE-2026-47205"), "no route has its own service: {found}");
    }
    assert!(of("x/1.30.1/y").contains("version_untested"), "{}", of("x/1.30.1/y"));
    let own_service =
        "check_settings: {grpc_service: {envoy_grpc: {cluster_name: keystile, authority: k}, timeout: 2s}}";
    let text = text.replacen("disabled: true", own_service, 1);
    let own = examined_as(&text, EnvoyVersion::from_server_info("x/1.38.2/y"));
    assert!(
        own.findings.iter().any(|finding| finding.message.contains("CVE-2026-47205")),
        "{:?}",
        own.findings
    );
}
